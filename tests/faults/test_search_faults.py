"""Searches on real Ray whose driver, trial or node is lost."""

import json
import os
import signal
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest

from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.search.design import make_search
from pixelpick_ray.search.journal import Journal, Sample
from pixelpick_ray.store import Store
from tests.support.experiments import TWO_PIXELS, experiment_text
from tests.support.fault_cluster import MARK, Nodes, processes, wait_until_gone
from tests.support.fault_harness import ON_COUNTED_GPUS, Life, Setting
from tests.support.launch import ROOT, launch
from tests.support.waiting import wait_for

pytestmark = pytest.mark.ray

QUICKSTART = (ROOT / "experiments" / "search-quickstart.yaml").read_text(encoding="utf-8")
EXPERIMENT = experiment_text(
    "faults",
    model="{backbone: mobilenetv2_035, pretrained: none}",
    acquire=TWO_PIXELS,
    grid="[{seed: [0, 1], budget: [2, 4, 6]}]",
    search="{space: {train.optimizer.lr: {loguniform: [1e-5, 1e-1]}}, scheduler: asha, reduction_factor: 2, "
    "num_samples: 6}",
)


def journal_of(life: Life) -> Journal:
    return Journal(Store(life.place / "store"), make_search(load_experiment(life.place / "faults.yaml")))


def reports(life: Life) -> int:
    """How many reports the journal of a life has."""
    found = (json.loads(path.read_text()) for path in life.place.glob("store/experiments/*/samples/*.json"))
    return sum(len(sample["reports"]) for sample in found)


def ended(life: Life, size: int) -> list[Sample]:
    """The samples of a search that has ended: each is over, no two are equal, and every fit and pick was published
    once; what is told of images is described by whoever comes first, or two.
    """
    journal = journal_of(life)
    assert len(journal.samples) == size
    assert journal.is_complete(size)
    assert len({json.dumps(dict(one.values), sort_keys=True) for one in journal.samples}) == size
    life.logs.read_new()
    published = [line.key for line in life.logs.lines if (line.phase, line.event) == ("publish", "end")]
    assert set(Counter(key for key in published if key in life.finished()).values()) == {1}
    assert Store(life.place / "store").leased() == {}
    for leftover in ("unfinished/*", "fit/*/weights.safetensors"):
        assert list(life.place.glob(f"store/{leftover}")) == []
    return journal.samples


@pytest.mark.always("a search with a killed trial")
def test_the_shipped_search_killed_twice_ends_with_exactly_its_samples(tmp_path: Path, mark: dict[str, str]) -> None:
    """First its driver is killed, then a trial."""
    text = QUICKSTART.replace("name: search-quickstart", "name: faults").replace("epochs: 8", "epochs: 1")
    text = text.replace("images: 24", "images: 4").replace("size: [48, 64]", "size: [32, 48]").replace("10, 15]", "10]")
    life = Life(tmp_path / "life", Setting(text.replace("num_samples: 12", "num_samples: 4")), mark, None)
    driver = life.run()
    wait_for(lambda: reports(life) >= 2 or driver.poll() is not None)
    assert driver.poll() is None, life.output()
    driver.kill()
    driver.wait()
    assert wait_until_gone(mark[MARK], services_too=False) == []
    before = journal_of(life).samples
    driver = life.run()
    trial = next(iter(wait_for(lambda: [one.pid for one in processes(mark[MARK]) if one.is_trial])))
    wait_for(lambda: reports(life) > sum(len(one.reports) for one in before) or driver.poll() is not None)
    os.kill(trial, signal.SIGKILL)
    assert driver.wait(timeout=400) == 0, life.output()
    samples = ended(life, 4)
    assert [one.values for one in samples[: len(before)]] == [one.values for one in before]
    [found] = life.place.glob("found/*.yaml")
    assert set(load_experiment(found).grid[0]["seed"]).isdisjoint({0})
    with patch.dict(os.environ, {"XDG_CACHE_HOME": str(life.place / "cache")}):
        planned = launch(life.place, "plan", "faults.yaml", "--json")
    assert sum(json.loads(planned.out)["samples_by_state"][state] for state in ("running", "waiting", "missing")) == 0
    assert wait_until_gone(mark[MARK], services_too=True) == []


@pytest.mark.slow
def test_samples_of_two_ranks_on_a_lost_node_go_on_elsewhere(
    tmp_path: Path, mark: dict[str, str], nodes: Nodes
) -> None:
    life = Life(tmp_path / "life", Setting(EXPERIMENT), mark, nodes.address)
    driver = life.launch("-c", ON_COUNTED_GPUS, nodes.address)
    wait_for(lambda: reports(life) >= 4 or driver.poll() is not None)
    nodes.lose_worker()
    life.ends_well(driver, nodes)
    assert all(report.mious.keys() == {"0", "1"} for one in ended(life, 6) for report in one.reports)
