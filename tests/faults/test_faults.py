"""SIGKILL of every part in every phase, the same command again, and nothing is lost, repeated or left behind."""

import functools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.store import Store
from tests.support.experiments import experiment_text
from tests.support.fault_cluster import MARK, Nodes, wait_until_gone
from tests.support.fault_harness import RUN_SECONDS, Life, Setting, Study
from tests.support.fault_logs import at_once, epochs_repeated, repeated
from tests.support.launch import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EPOCHS, MOST_LIVES = 3, 8
FOUR_CHAINS = experiment_text(
    "faults",
    dataset="{name: scenes, size: [32, 48], images: 7}",
    model="{backbone: mobilenetv2_035, pretrained: none}",
    train=f"{{epochs: {EPOCHS}, batch_size: 4, optimizer: {{name: adam, lr: 1e-3}}}}",
    evaluate="{splits: {test: {}}, when: every_epoch, report: test}",
    grid="[{acquire.strategy: [margin, random], seed: [0, 1], budget: [10, 20, 30]}]",
)
SETTINGS = {
    "one rank, two nodes": Setting(
        FOUR_CHAINS, ("driver", "trial", "raylet", "report"), 1, ("--max-concurrent", "2"), nodes=(1, 2)
    ),
    "two ranks on two nodes": Setting(FOUR_CHAINS, ("driver", "trial", "rank", "raylet", "report"), 2, nodes=(1, 1)),
    "one rank, own cluster": Setting(FOUR_CHAINS, ("driver", "trial", "report")),
    "two ranks, own cluster": Setting(FOUR_CHAINS, ("driver", "trial", "rank", "report"), 2),
}
# Each half of the wishes of a setting with nodes is tried twice.
STUDIES = [(name, number) for name, one in SETTINGS.items() for number in range(4 if one.nodes else 1)]
LOGS = Path(os.environ.get("PIXELPICK_FAULTS_LOGS", ROOT / "build" / "faults"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Life]:
    """The undisturbed life of so many ranks; where it runs is not part of what comes out."""

    @functools.cache
    def of(ranks: int) -> Life:
        alone = Setting(FOUR_CHAINS, (), ranks, ("--local",) if ranks == 1 else ())
        with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # sockets need short paths
            life = Life(tmp_path_factory.mktemp("undisturbed") / "life", alone, {"RAY_TMPDIR": folder}, None)
            for start in (life.run, life.report):
                assert start().wait(timeout=RUN_SECONDS) == 0, life.output()
        return life

    return of


def problems_of(life: Life, expected: Life, cluster: Nodes | None, mark: dict[str, str]) -> list[str]:
    """Everything that is not as if nothing had happened."""
    lines, results, aims = life.logs.lines, life.results(), expected.results()
    found = [f"{name} differs" for name in sorted(results.keys() | aims) if results.get(name) != aims.get(name)]
    found += repeated(lines, life.finished()) + at_once(lines)
    epochs = epochs_repeated(lines, EPOCHS).values()
    found += [
        f"{again} epochs of a fit repeated, begun again {times} times" for again, times in epochs if again > times
    ]
    left = wait_until_gone(mark[MARK], services_too=cluster is None)
    found += [f"left behind: {process.pid} {process.title}" for process in left]
    found += [f"left in the store: {name}" for name in life.remains()]
    found += [f"still leased: {name} by {who}" for name, who in Store(life.place / "store").leased().items()]
    if cluster is not None:
        found += [f"left on the cluster: a placement group that is {state}" for state in cluster.placement_groups()]
    return found


@pytest.mark.parametrize(("name", "number"), STUDIES, ids=[f"{name}, {at}" for name, at in STUDIES])
def test_every_kill_of_a_study_leaves_what_an_undisturbed_run_leaves(
    name: str, number: int, tmp_path: Path, mark: dict[str, str], reference: Callable[[int], Life]
) -> None:
    """Lives of a study until every wish has come true."""
    setting, who = SETTINGS[name], f"{name}, {number}"  # which is its seed
    wishes = setting.wishes()[number % 2 :: 2] if setting.nodes else setting.wishes()
    log = LOGS / f"{name.replace(',', '').replace(' ', '-')}-{number}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    expected = reference(setting.ranks)
    study = Study(who, setting, wishes, mark, len(expected.finished()))
    cluster = Nodes(mark, *({"num_cpus": cpus} for cpus in setting.nodes)) if setting.nodes else None
    try:
        for at in range(MOST_LIVES):
            if study.wishes:
                life = study.live(tmp_path / f"life-{at}", cluster)
                problems = problems_of(life, expected, cluster, mark)
                write_log(log, {"study": who, "life": at}, life, problems)
                assert not problems, life.output()
        assert not study.wishes
    finally:
        if cluster is not None:
            cluster.stop()


def write_log(path: Path, who: dict[str, Any], life: Life, problems: list[str]) -> None:
    """Append a line a kill and one for the life."""
    known = {
        "problems": problems,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "ray")),
    }
    with open(path, "a", encoding="utf-8") as file:
        for line in (*map(asdict, life.kills), known):
            file.write(json.dumps(who | line) + "\n")
