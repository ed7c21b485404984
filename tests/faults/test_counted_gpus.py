"""Chains of two ranks on nodes of two GPUs: one is lost for good, and people are waited for without holding any."""

import json
import time
from pathlib import Path

import pytest

from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.store import Store
from tests.support.experiments import experiment_text
from tests.support.fault_cluster import MARK, Nodes, parent_of, processes
from tests.support.fault_harness import ON_COUNTED_GPUS, Life, Setting
from tests.support.fault_logs import at_once, repeated
from tests.support.person import Person
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NETWORK = "{backbone: mobilenetv2_035, pretrained: none}"


def test_chains_finish_when_one_of_two_nodes_is_lost(tmp_path: Path, mark: dict[str, str], nodes: Nodes) -> None:
    grid = "[{acquire.strategy: [random], seed: [0, 1, 2, 3, 4, 5], budget: [10, 20]}]"
    text = experiment_text("faults", model=NETWORK, grid=grid)
    life = Life(tmp_path / "life", Setting(text), mark, nodes.address)
    driver = life.launch("-c", ON_COUNTED_GPUS, nodes.address)

    def stages_of_a_chain_that_works_on() -> dict[str, str]:
        """The chains of the fits that the newest node has stored, by key, once one of them works on."""
        life.logs.read_new()
        here = {line.pid for line in life.logs.lines if parent_of(line.pid) == nodes.raylet}
        mine = [line for line in life.logs.lines if line.pid in here and line.rank == 0]
        stored = {line.key: line.chain for line in mine if line.phase == "fit" and line.key in life.finished()}
        working = {line.chain for line in mine if "fit" in life.logs.open_phases(line.pid, at=time.time())}
        return stored if set(stored.values()) & working else {}

    lost_stages, lost_at = wait_for(stages_of_a_chain_that_works_on), time.time()
    nodes.lose_worker()
    life.ends_well(driver, nodes)
    life.logs.read_new()
    assert len(Store(life.place / "store").names("fit")) == 12
    assert repeated(life.logs.lines, life.finished()) + at_once(life.logs.lines) == []
    assert lost_stages.keys() <= life.finished().keys()
    begun = {line.chain for line in life.logs.lines if line.time > lost_at}
    assert set(lost_stages.values()) & begun  # chains of the lost node went on elsewhere


def test_chains_that_wait_for_people_hold_neither_a_process_nor_a_gpu(
    tmp_path: Path, mark: dict[str, str], nodes: Nodes
) -> None:
    """Both rounds of questions are answered once the run waits; it goes on by itself, and ends."""
    grid = "[{acquire.strategy: [margin, random], seed: [0], budget: [10, 20]}]"
    text = experiment_text("faults", model=NETWORK, oracle="{name: human}", grid=grid)
    life = Life(tmp_path / "life", Setting(text), mark, nodes.address)
    driver = life.launch("-c", ON_COUNTED_GPUS, nodes.address, "wait")
    person = Person(Store(life.place / "store"), load_experiment(life.place / "faults.yaml", []))

    def holds_nothing() -> bool:
        return not nodes.placement_groups() and not any(one.is_trial or one.is_rank for one in processes(mark[MARK]))

    for rounds in (1, 2):
        wait_for(lambda: life.output().count("answers: ") >= rounds or driver.poll() is not None)  # noqa: B023
        assert driver.poll() is None, life.output()
        wait_for(holds_nothing, seconds=20)
        person.answer_all()
    life.ends_well(driver, nodes)
    places = [answer.place for answer in person.said]
    assert len(places) == len(set(places)) > 40 + 40
    provenance = [json.loads(path.read_text()) for path in (life.place / "store").glob("fit/*/provenance.json")]
    assert [entry["world_size"] for entry in provenance] == [2] * 3
