"""A node of a full cluster is lost for good: what it computed is stored, and its chains go elsewhere."""

import time
from pathlib import Path

import pytest

from pixelpick_ray.store import Store
from tests.support.experiments import experiment_text
from tests.support.fault_cluster import MARK, Nodes, parent_of, wait_until_gone
from tests.support.fault_harness import ROOT, Life, Setting
from tests.support.fault_logs import at_once, repeated

pytestmark = pytest.mark.ray

SEEDS = list(range(12))
EXPERIMENT = experiment_text(
    "faults",
    model="{backbone: mobilenetv2_035, pretrained: none}",
    grid=f"[{{acquire.strategy: [random], seed: {SEEDS}, budget: [10, 20]}}]",
)
# The command line refuses GPUs for ranks on CPUs; here they are only counted, to place ranks as on a node with four.
DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from pixelpick_ray.planning import claim_name, make_plan
from pixelpick_ray.runner import session
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.store import Store
here = Path.cwd()
planned = make_plan(load_experiment(here / "faults.yaml", []))
places = here / "data", str(here / "store"), here / "cache", here / "runs"
execution = Execution(*places, ranks=2, gpus_per_rank=1.0, device="cpu", address=sys.argv[1])
session.prepare(planned, execution, Console())
claim_name(planned, Store(execution.store))
sys.exit(session.run(planned, execution, Console(), session.StopRequest(None), local=False, annotate="").status)
"""
NODE = {"num_cpus": 4, "num_gpus": 4}


@pytest.mark.slow
def test_twelve_chains_of_two_ranks_finish_when_one_of_two_nodes_with_four_gpus_is_lost(
    tmp_path: Path, mark: dict[str, str]
) -> None:
    mark |= {"PYTHONPATH": str(ROOT)}
    nodes = Nodes(mark, {"num_cpus": 0}, NODE)
    try:
        nodes.join_worker()
        life = Life(tmp_path / "life", Setting(EXPERIMENT, ()), mark, nodes.address)
        driver = life.launch("-c", DRIVER, nodes.address)
        lost_stages, lost_at = lose_a_node_with_finished_stages(life, nodes)
        assert driver.wait(timeout=500) == 0, life.output()
        life.logs.read_new()
        fits = Store(life.place / "store").names("fit")
        assert len(fits) == 24
        assert repeated(life.logs.lines, life.finished()) + at_once(life.logs.lines) == []
        assert lost_stages
        assert lost_stages.keys() <= life.finished().keys()
        begun = {line.chain for line in life.logs.lines if line.time > lost_at}
        assert set(lost_stages.values()) & begun  # chains of the lost node went on elsewhere
        assert wait_until_gone(mark[MARK], services_too=False) == []
        assert nodes.placement_groups() == []
    finally:
        nodes.stop()


def lose_a_node_with_finished_stages(life: Life, nodes: Nodes) -> tuple[dict[str, str], float]:
    """Wait until a chain on the newest node has stored a stage and works on; returns its stored fits' chains by key."""
    until = time.monotonic() + 400
    while time.monotonic() < until:
        life.logs.read_new()
        here = {line.pid for line in life.logs.lines if parent_of(line.pid) == nodes.raylet}
        mine = [line for line in life.logs.lines if line.pid in here and line.rank == 0]
        stored = {line.key: line.chain for line in mine if line.phase == "fit" and line.key in life.finished()}
        working = {line.chain for line in mine if "fit" in life.logs.open_phases(line.pid, at=time.time())}
        if set(stored.values()) & working:
            nodes.lose_worker()
            return stored, time.time()
        time.sleep(0.02)
    raise AssertionError(f"no chain of that node got so far\n{life.output()}")
