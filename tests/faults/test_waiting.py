"""Chains of two ranks that wait for people, on a cluster: they hold nothing, and go on by themselves."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_lost_node import DRIVER

from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.store import Store
from tests.support.experiments import experiment_text
from tests.support.fault_cluster import MARK, Nodes, processes, wait_until_gone
from tests.support.fault_harness import ROOT, Life, Setting
from tests.support.person import Person

pytestmark = pytest.mark.ray

EXPERIMENT = experiment_text(
    "faults",
    model="{backbone: mobilenetv2_035, pretrained: none}",
    oracle="{name: human}",
    grid="[{acquire.strategy: [margin, random], seed: [0], budget: [10, 20]}]",
)


@pytest.mark.slow
def test_a_run_waits_for_people_without_a_trial_and_goes_on_by_itself(tmp_path: Path, mark: dict[str, str]) -> None:
    life = Life(tmp_path / "life", Setting(EXPERIMENT, (), ranks=2, options=("--wait",)), mark, None)
    driver = life.run()
    answer_when_asked(life, driver, lambda: trials(mark[MARK]))
    assert wait_until_gone(mark[MARK], services_too=True) == []


@pytest.mark.slow
def test_chains_that_wait_for_people_hold_no_gpu_of_a_cluster(tmp_path: Path, mark: dict[str, str]) -> None:
    mark |= {"PYTHONPATH": str(ROOT)}
    nodes = Nodes(mark, {"num_cpus": 0}, {"num_cpus": 2, "num_gpus": 2})
    try:
        life = Life(tmp_path / "life", Setting(EXPERIMENT, ()), mark, nodes.address)
        driver = life.launch("-c", DRIVER.replace("ranks=2", "ranks=2, wait=True"), nodes.address)
        answer_when_asked(life, driver, lambda: [*nodes.placement_groups(), *trials(mark[MARK])])
        assert nodes.placement_groups() == []
        assert wait_until_gone(mark[MARK], services_too=False) == []
    finally:
        nodes.stop()


def trials(mark: str) -> list[str]:
    """The processes of trials and of their ranks."""
    return [one.title for one in processes(mark) if one.is_trial or one.is_rank]


def answer_when_asked(life: Life, driver: "subprocess.Popen[bytes]", held: Callable[[], list[str]]) -> None:
    """Answer both rounds of questions once the run waits, and holds nothing; then it ends well."""
    person = Person(Store(life.place / "store"), load_experiment(life.place / "faults.yaml", []))
    for rounds in (1, 2):
        wait_until(lambda: life.output().count("answers: ") >= rounds or driver.poll() is not None, 240)  # noqa: B023
        assert driver.poll() is None, life.output()
        wait_until(lambda: not held(), 20)
        assert held() == []
        person.answer_all()
    assert driver.wait(timeout=240) == 0, life.output()
    places = [answer.place for answer in person.said]
    assert len(places) == len(set(places)) > 40 + 40
    provenance = [json.loads(path.read_text()) for path in (life.place / "store").glob("fit/*/provenance.json")]
    assert [entry["world_size"] for entry in provenance] == [2] * 3


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    """Wait until something holds, at most so long."""
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.2)
