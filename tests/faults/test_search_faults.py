"""Searches on real Ray: each scheduler with samples of two ranks on a node of eight GPUs; the shipped one, killed."""

from pathlib import Path

import pytest
from fault_cluster import MARK, Nodes, wait_until_gone
from fault_harness import ROOT, Life, Setting

from pixelpick_ray.search.design import make_search
from pixelpick_ray.search.journal import Journal, Sample
from pixelpick_ray.spec.experiment import load_experiment
from pixelpick_ray.store import Store

EXPERIMENT = """
name: faults
dataset: {name: scenes, size: [32, 48], images: 4}
model: {backbone: mobilenetv2_035, pretrained: none}
train: {epochs: 1, batch_size: 4, optimizer: {name: adam, lr: 1e-3}}
evaluate: {splits: {test: {}}, report: test}
grid: [{seed: SEEDS, budget: [2, 4, 6]}]
acquire: {initial_pixels: 2, pixels_per_stage: 2}
search:
  space:
    train.optimizer.lr: {loguniform: [1e-5, 1e-1]}
    acquire.pool_fraction: {choice: [0.05, 0.1, 0.2]}
  searcher: SEARCHER
  scheduler: SCHEDULER
  reduction_factor: 2
  num_samples: 6
"""
# As in test_lost_node: GPUs are only counted.
DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from pixelpick_ray.plan import claim_name, make_plan
from pixelpick_ray.runner import session
from pixelpick_ray.search.design import make_search
from pixelpick_ray.spec.execution import Execution
from pixelpick_ray.spec.experiment import load_experiment
from pixelpick_ray.store import Store
here = Path.cwd()
search = make_search(load_experiment(here / "faults.yaml", []))
places = here / "data", str(here / "store"), here / "cache", here / "runs"
execution = Execution(
    *places, ranks=2, gpus_per_rank=1.0, device="cpu", address=sys.argv[1], max_concurrent=2
)
session.prepare(search.ends_plan, execution, Console())
claim_name(make_plan(search.experiment), Store(execution.store))
sys.exit(session.run_search(search, execution, Console(), session.StopRequest(None), here / "faults.yaml"))
"""


def read(place: Path, file: str) -> tuple[Journal, list[Sample]]:
    journal = Journal(Store(place / "store"), make_search(load_experiment(place / file)))
    return journal, journal.samples


@pytest.mark.parametrize(
    ("searcher", "scheduler", "seeds"),
    [
        ("random", "hyperband", [0]),
        pytest.param("random", "none", [0, 1], marks=pytest.mark.slow),
        pytest.param("optuna", "asha", [0, 1], marks=pytest.mark.slow),
        pytest.param("optuna", "median", [0], marks=pytest.mark.slow),
        pytest.param("hyperopt", "asha", [0], marks=pytest.mark.slow),
        pytest.param("bohb", "hyperband", [0, 1], marks=pytest.mark.slow),
    ],
)
def test_a_scheduler_leaves_no_process_and_no_placement_group_of_samples_of_two_ranks(
    searcher: str, scheduler: str, seeds: list[int], tmp_path: Path, mark: dict[str, str]
) -> None:
    for package in {"hyperopt": ["hyperopt"], "bohb": ["hpbandster", "ConfigSpace"]}.get(searcher, []):
        pytest.importorskip(package)
    mark |= {"PYTHONPATH": str(ROOT)}
    nodes = Nodes(mark, {"num_cpus": 0}, {"num_cpus": 8, "num_gpus": 8})
    try:
        text = EXPERIMENT.replace("SEARCHER", searcher).replace("SCHEDULER", scheduler).replace("SEEDS", str(seeds))
        life = Life(tmp_path / "life", Setting(text, ()), mark, nodes.address)
        assert life.launch("-c", DRIVER, nodes.address).wait(timeout=500) == 0, life.output()
        journal, samples = read(life.place, "faults.yaml")
        assert len(samples) == 6
        assert journal.is_complete(6)
        assert all(set(report.mious) == set(map(str, seeds)) for one in samples for report in one.reports)
        assert any(journal.is_finished(one) for one in samples)
        stopped = [one for one in samples if one.stopped]
        assert bool(stopped) == (scheduler in ("asha", "hyperband")) or scheduler == "median"
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
