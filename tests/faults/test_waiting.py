"""Chains of two ranks that wait for people, on a cluster: they hold nothing, and go on by themselves."""

import json
import time
from pathlib import Path

from fault_cluster import MARK, Nodes, processes, wait_until_gone
from fault_harness import ROOT, Life, Setting
from test_lost_node import DRIVER

from pixelpick_ray.spec.experiment import load_experiment
from pixelpick_ray.store import Store
from tests.people import Person

EXPERIMENT = """
name: faults
dataset: {name: scenes, size: [32, 48], images: 4}
model: {backbone: mobilenetv2_035, pretrained: none}
train: {epochs: 1, batch_size: 4, optimizer: {name: adam, lr: 1e-3}}
oracle: {name: human}
evaluate: {splits: {val: {}}, report: val}
grid: [{acquire.strategy: [margin, random], seed: [0], budget: [10, 20]}]
"""


def held(nodes: Nodes, mark: str) -> list[str]:
    """What a run still holds on the cluster after at most so many seconds."""
    until = time.monotonic() + 20
    while True:
        ranks = [one.title for one in processes(mark) if one.is_trial or one.is_rank]
        found = [*nodes.placement_groups(), *ranks]
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.2)


def test_chains_that_wait_for_people_hold_no_gpu_and_go_on_by_themselves(tmp_path: Path, mark: dict[str, str]) -> None:
    mark |= {"PYTHONPATH": str(ROOT)}
    nodes = Nodes(mark, {"num_cpus": 0}, {"num_cpus": 2, "num_gpus": 2})
    try:
        life = Life(tmp_path / "life", Setting(EXPERIMENT, ()), mark, nodes.address)
        driver = life.launch("-c", DRIVER.replace("ranks=2", "ranks=2, wait=True"), nodes.address)
        person = Person(Store(life.place / "store"), load_experiment(life.place / "faults.yaml", []))
        for rounds in (1, 2):
            until = time.monotonic() + 200
            while life.output().count("answers are waited for") < rounds:
                assert driver.poll() is None, life.output()
                assert time.monotonic() < until, life.output()
                time.sleep(0.2)
            assert held(nodes, mark[MARK]) == []
            person.answer_all()
        assert driver.wait(timeout=200) == 0, life.output()
        places = [answer.place for answer in person.said]
        assert len(places) == len(set(places)) > 40 + 40
        provenance = [json.loads(path.read_text()) for path in (life.place / "store").glob("fit/*/provenance.json")]
        assert [entry["world_size"] for entry in provenance] == [2] * 3
        assert nodes.placement_groups() == []
        assert wait_until_gone(mark[MARK], services_too=False) == []
    finally:
        nodes.stop()
