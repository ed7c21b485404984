"""Searches on real Ray: each scheduler with samples of two ranks on a node of eight GPUs; the shipped one, killed."""

import json
import os
import signal
import time
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
from tests.support.fault_harness import ROOT, Life, Setting
from tests.support.launch import launch
from tests.support.waiting import wait_for

pytestmark = pytest.mark.ray

# As in test_lost_node: GPUs are only counted.
DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from pixelpick_ray.planning import claim_name, make_plan
from pixelpick_ray.runner import session
from pixelpick_ray.search.design import make_search
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.store import Store
here = Path.cwd()
search = make_search(load_experiment(here / "faults.yaml", []))
places = here / "data", str(here / "store"), here / "cache", here / "runs"
execution = Execution(
    *places, ranks=2, gpus_per_rank=1.0, device="cpu", address=sys.argv[1], max_concurrent=2
)
session.prepare(search.ends_plan, execution, Console())
claim_name(make_plan(search.experiment), Store(execution.store))
sys.exit(session.run_search(search, execution, Console(), session.StopRequest(None), here / "faults.yaml").status)
"""


def experiment_of(searcher: str, scheduler: str, seeds: list[int], size: int) -> str:
    search = f"""
  space:
    train.optimizer.lr: {{loguniform: [1e-5, 1e-1]}}
    acquire.pool_fraction: {{choice: [0.05, 0.1, 0.2]}}
  searcher: {searcher}
  scheduler: {scheduler}
  reduction_factor: 2
  num_samples: {size}"""
    grid = f"[{{seed: {seeds}, budget: [2, 4, 6]}}]"
    return experiment_text(
        "faults", model="{backbone: mobilenetv2_035, pretrained: none}", acquire=TWO_PIXELS, grid=grid, search=search
    )


def read(place: Path, file: str) -> tuple[Journal, list[Sample]]:
    journal = Journal(Store(place / "store"), make_search(load_experiment(place / file)))
    return journal, journal.samples


def published(life: Life) -> Counter[str]:
    """How often each fit and pick was published; what is told of images is described by whoever comes first, or two."""
    life.logs.read_new()
    ended = [line.key for line in life.logs.lines if (line.phase, line.event) == ("publish", "end")]
    return Counter(key for key in ended if key in life.finished())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("searcher", "scheduler", "seeds", "size"),
    [("random", "asha", [0, 1], 3), ("random", "none", [0, 1], 6), ("optuna", "asha", [0, 1], 6)],
)
def test_a_scheduler_leaves_no_process_and_no_placement_group_of_samples_of_two_ranks(
    searcher: str, scheduler: str, seeds: list[int], size: int, tmp_path: Path, mark: dict[str, str]
) -> None:
    mark |= {"PYTHONPATH": str(ROOT)}
    nodes = Nodes(mark, {"num_cpus": 0}, {"num_cpus": 8, "num_gpus": 8})
    try:
        text = experiment_of(searcher, scheduler, seeds, size)
        life = Life(tmp_path / "life", Setting(text, ()), mark, nodes.address)
        assert life.launch("-c", DRIVER, nodes.address).wait(timeout=500) == 0, life.output()
        journal, samples = read(life.place, "faults.yaml")
        assert len(samples) == size
        assert journal.is_complete(size)
        assert all(set(report.mious) == set(map(str, seeds)) for one in samples for report in one.reports)
        assert any(journal.is_finished(one) for one in samples)
        stopped = [one for one in samples if one.stopped]
        assert bool(stopped) == (scheduler == "asha") or size == 3
        life.logs.read_new()
        begun = [
            line.key for line in life.logs.lines if (line.phase, line.rank) == ("fit", 0) and line.event == "begin"
        ]
        assert len(begun) == len(set(begun))  # nothing was trained twice, though samples share their first trainings
        known = {key for one in samples for keys in one.reports[-1].fits.values() for key in keys}
        assert known <= set(begun)
        assert not list(life.place.glob("store/fit/*/weights.safetensors"))
        assert wait_until_gone(mark[MARK], services_too=False) == []
        assert nodes.placement_groups() == []
    finally:
        nodes.stop()


@pytest.mark.slow
def test_samples_of_a_lost_node_go_on_elsewhere(tmp_path: Path, mark: dict[str, str]) -> None:
    mark |= {"PYTHONPATH": str(ROOT)}
    nodes = Nodes(mark, {"num_cpus": 0}, {"num_cpus": 2, "num_gpus": 2})
    try:
        nodes.join_worker()
        text = experiment_of("random", "asha", [0], 6)
        life = Life(tmp_path / "life", Setting(text, ()), mark, nodes.address)
        driver = life.launch("-c", DRIVER, nodes.address)
        until = time.monotonic() + 300
        while reports(life) < 4 and driver.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        nodes.lose_worker()
        assert driver.wait(timeout=400) == 0, life.output()
        journal, samples = read(life.place, "faults.yaml")
        assert len(samples) == 6
        assert journal.is_complete(6)
        assert set(published(life).values()) == {1}
        assert wait_until_gone(mark[MARK], services_too=False) == []
        assert nodes.placement_groups() == []
    finally:
        nodes.stop()


QUICKSTART = (ROOT / "experiments" / "search-quickstart.yaml").read_text(encoding="utf-8")


def reports(life: Life) -> int:
    """How many reports the journal of a life has."""
    found = (json.loads(path.read_text()) for path in life.place.glob("store/experiments/*/samples/*.json"))
    return sum(len(sample["reports"]) for sample in found)


def kill_at(life: Life, mark: dict[str, str], wanted: int) -> None:
    """Run the search and kill its driver with SIGKILL once its journal has so many reports."""
    driver = life.run()
    until = time.monotonic() + 400
    while reports(life) < wanted and driver.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert driver.poll() is None, life.output()
    driver.kill()
    driver.wait()
    assert reports(life) >= wanted
    assert wait_until_gone(mark[MARK], services_too=False) == []


def ended(life: Life, size: int = 12) -> list[Sample]:
    """The samples of a search that has ended: each is over, and what was begun was ended once."""
    journal, samples = read(life.place, "faults.yaml")
    assert len(samples) == size
    assert journal.is_complete(size)
    assert len({json.dumps(dict(one.values), sort_keys=True) for one in samples}) == size
    assert set(published(life).values()) == {1}
    assert Store(life.place / "store").leased() == {}
    for leftover in ("unfinished/*", "fit/*/weights.safetensors"):
        assert list(life.place.glob(f"store/{leftover}")) == []
    return samples


@pytest.mark.always("a search with a killed trial")
def test_the_shipped_search_killed_twice_ends_with_exactly_its_samples(tmp_path: Path, mark: dict[str, str]) -> None:
    """First its driver is killed, then a trial."""
    text = QUICKSTART.replace("name: search-quickstart", "name: faults").replace("epochs: 8", "epochs: 1")
    text = text.replace("images: 24", "images: 4").replace("size: [48, 64]", "size: [32, 48]")
    life = Life(tmp_path / "life", Setting(text.replace("num_samples: 12", "num_samples: 4"), ()), mark, None)
    kill_at(life, mark, 2)
    before = read(life.place, "faults.yaml")[1]
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
def test_the_shipped_search_stops_bad_samples_early_and_beats_its_files_own(
    tmp_path: Path, mark: dict[str, str]
) -> None:
    life = Life(
        tmp_path / "life", Setting(QUICKSTART.replace("name: search-quickstart", "name: faults"), ()), mark, None
    )
    began = time.monotonic()
    assert life.run().wait(timeout=600) == 0, life.output()
    assert time.monotonic() - began < 360
    samples = ended(life)
    assert sum(bool(one.stopped) for one in samples) >= 4
    own = samples[0]
    assert own.is_own
    best = max(one.reports[-1].score for one in samples if len(one.reports) == 3)
    assert best > own.reports[-1].score
