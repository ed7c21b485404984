"""SIGKILL of every part in every phase, the same command again, and nothing is lost, repeated or left behind."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import pytest

from pixelpick_ray.store import Store
from tests.support.experiments import experiment_text
from tests.support.fault_cluster import MARK, Nodes, wait_until_gone
from tests.support.fault_harness import ROOT, Life, Setting, Study, Wish, undisturbed
from tests.support.fault_logs import at_once, epochs_repeated, repeated
from tests.support.launch import launch

pytestmark = pytest.mark.ray

EPOCHS, MOST_LIVES = 3, 8
COMMON = {
    "dataset": "{name: scenes, size: [32, 48], images: 7}",
    "model": "{backbone: mobilenetv2_035, pretrained: none}",
    "train": f"{{epochs: {EPOCHS}, batch_size: 4, optimizer: {{name: adam, lr: 1e-3}}}}",
    "evaluate": "{splits: {test: {}}, when: every_epoch, report: test}",
}
FOUR_CHAINS = experiment_text(
    "faults", **COMMON, grid="[{acquire.strategy: [margin, random], seed: [0, 1], budget: [10, 20, 30]}]"
)
ONE_CHAIN = experiment_text("faults", **COMMON, grid="[{seed: [0], budget: [10, 20]}]")
SETTINGS = {
    "one rank, two nodes": Setting(
        FOUR_CHAINS, ("driver", "trial", "raylet", "report"), 1, ("--max-concurrent", "2"), nodes=(1, 2)
    ),
    "two ranks on two nodes": Setting(FOUR_CHAINS, ("driver", "trial", "rank", "raylet", "report"), 2, nodes=(1, 1)),
    "one rank, own cluster": Setting(FOUR_CHAINS, ("driver", "trial", "report")),
    "two ranks, own cluster": Setting(FOUR_CHAINS, ("driver", "trial", "rank", "report"), 2),
}
STUDIES = [
    (name, number, slices)
    for name, slices, rounds in [
        ("one rank, two nodes", 2, 2),
        ("two ranks on two nodes", 2, 2),
        ("one rank, own cluster", 1, 1),
        ("two ranks, own cluster", 1, 1),
    ]
    for number in range(slices * rounds)
]
LOGS = Path(os.environ.get("PIXELPICK_FAULTS_LOGS", ROOT / "build" / "faults"))
Reference = Callable[[Setting], Life]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The undisturbed life of a setting; where it runs is not part of what comes out."""
    lives: dict[tuple[str, int], Life] = {}

    def of(setting: Setting) -> Life:
        key = setting.experiment, setting.ranks
        if key not in lives:
            alone = replace(setting, options=("--local",) if setting.ranks == 1 else (), nodes=None)
            with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # sockets need short paths
                place = tmp_path_factory.mktemp("undisturbed") / "life"
                lives[key] = undisturbed(Life(place, alone, {"RAY_TMPDIR": folder}, None))
        return lives[key]

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


def disturbed(
    name: str, setting: Setting, wishes: list[Wish], place: Path, mark: dict[str, str], expected: Life
) -> Iterator[tuple[Life, list[str]]]:
    """Lives of a study until every wish has come true, each with what is wrong with it."""
    study = Study(name, setting, wishes, mark, len(expected.finished()))
    cluster = Nodes(mark, *({"num_cpus": cpus} for cpus in setting.nodes)) if setting.nodes else None
    try:
        for number in range(MOST_LIVES):
            if study.wishes:
                life = study.live(place / f"life-{number}", cluster)
                yield life, problems_of(life, expected, cluster, mark)
        assert not study.wishes
    finally:
        if cluster is not None:
            cluster.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number", "slices"), STUDIES, ids=[f"{name}, {at}" for name, at, _ in STUDIES])
def test_every_kill_of_a_study_leaves_what_an_undisturbed_run_leaves(
    name: str, number: int, slices: int, tmp_path: Path, mark: dict[str, str], reference: Reference
) -> None:
    setting = SETTINGS[name]
    wishes = setting.wishes()[number % slices :: slices]
    log = LOGS / f"{name.replace(',', '').replace(' ', '-')}-{number}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    study, expected = f"{name}, {number}", reference(setting)
    for life_number, (life, problems) in enumerate(disturbed(study, setting, wishes, tmp_path, mark, expected)):
        write_log(log, study, life_number, life, problems, expected)
        assert not problems, life.output()


def write_log(path: Path, study: str, number: int, life: Life, problems: list[str], expected: Life) -> None:
    """Append a line a kill and one for the life."""
    who = {"study": study, "life": number}  # the study's name is its seed
    known = {
        "seconds": round(life.ended - life.began, 1),
        "undisturbed_seconds": round(expected.ended - expected.began, 1),
        "commands": life.commands,
        "epochs_repeated": sum(max(again, 0) for again, _ in epochs_repeated(life.logs.lines, EPOCHS).values()),
        "problems": problems,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "ray")),
    }
    with open(path, "a", encoding="utf-8") as file:
        for kill in life.kills:
            file.write(json.dumps(who | asdict(kill)) + "\n")
        file.write(json.dumps(who | known) + "\n")


@pytest.mark.slow
def test_a_few_kills_leave_what_an_undisturbed_run_leaves(tmp_path: Path, mark: dict[str, str]) -> None:
    """The short version: one chain of one rank on two nodes."""
    setting = Setting(ONE_CHAIN, ("driver", "trial", "raylet"), nodes=(1, 1))
    expected = Life(tmp_path / "undisturbed", setting, {}, None)
    for words in (("run", "--local"), ("report", "--out", "report")):
        assert launch(expected.place, words[0], "faults.yaml", *words[1:]).status == 0
    wishes = [Wish("trial", "evaluate"), Wish("raylet", "fit"), Wish("driver", "publish")]
    for life, problems in disturbed("short", setting, wishes, tmp_path / "disturbed", mark, expected):
        assert not problems, life.output()
        assert life.kills
