"""The runner in this process: its contract, stopping between epochs, and chains that fail."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pixelpick_ray.training
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.data import datasets
from pixelpick_ray.engine.batches import FitJob
from pixelpick_ray.engine.fit import fit
from pixelpick_ray.errors import SpecError
from pixelpick_ray.events import ChainDone, ChainFailed, Event, StageDone
from pixelpick_ray.planning import Plan, make_plan, progress_of
from pixelpick_ray.runner import local
from pixelpick_ray.status import status_of
from pixelpick_ray.store import Store
from tests.support.person import nobody
from tests.support.tiny_data import TinyDataset, tiny_experiment

pytestmark = pytest.mark.training

GRID = "grid=[{acquire.strategy: [margin, random], seed: [0], budget: [3, 6]}, {seed: [1], budget: [3]}]"


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(datasets.DATASETS, "tiny", TinyDataset)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def execution(tmp_path: Path, cache_path: Path) -> Execution:
    return Execution(tmp_path / "data", str(tmp_path / "store"), cache_path, tmp_path / "runs")


@pytest.fixture
def plan() -> Plan:
    """Two strategies that share their first fit, and another seed with one stage."""
    return make_plan(tiny_experiment(GRID, "train.epochs=2"))


def run(
    plan: Plan, execution: Execution, stop: Callable[[list[Event]], bool] = lambda events: False
) -> tuple[dict[str, str], list[Event]]:
    """Errors and events of running all chains; `stop` is given the events so far."""
    events: list[Event] = []
    errors = local.run(plan, list(plan.chains), execution, events.append, lambda: stop(events), nobody(plan, execution))
    return errors, events


def results(execution: Execution) -> dict[str, bytes]:
    """Bytes of picks, measurements and losses."""
    names = ("pixels.npz", "confusion.npz", "training.json")
    found = [path for name in names for path in Path(execution.store).glob(f"*/*/{name}")]
    return {str(path.relative_to(Path(execution.store))): path.read_bytes() for path in found}


def test_chains_run_one_after_another_and_each_says_when_it_is_done(plan: Plan, execution: Execution) -> None:
    errors, events = run(plan, execution)
    assert errors == {}
    ids = [chain.id for chain in plan.chains]
    assert list(dict.fromkeys(event.chain for event in events)) == ids
    assert [event.chain for event in events if isinstance(event, ChainDone)] == ids
    stages = [(event.chain, event.stage, event.trained) for event in events if isinstance(event, StageDone)]
    assert stages == [
        (ids[0], 0, True), (ids[0], 1, True), (ids[1], 0, False), (ids[1], 1, True), (ids[2], 0, True),
    ]  # fmt: skip
    assert progress_of(plan, execution).stored_fits == plan.num_fits == 4
    assert torch.get_num_threads() == 1
    wanted = replace(execution, cpus_per_rank=2)
    assert local.run(plan, [], wanted, events.append, lambda: False, nobody(plan, wanted)) == {}
    assert torch.get_num_threads() == 2


def test_a_stop_leaves_a_store_to_go_on_from(plan: Plan, execution: Execution, tmp_path: Path) -> None:
    undisturbed = replace(execution, store=str(tmp_path / "undisturbed"))
    run(plan, undisturbed)
    # asked after the first epoch, the last epoch of a fit (which is published first), a stage, a pick
    for asked, last in ((1, 1), (2, 3), (3, 3), (4, 4)):
        place = replace(execution, store=str(tmp_path / f"store-{asked}"))
        errors, events = run(plan, place, lambda events: len(events) >= asked)  # noqa: B023
        assert errors == {}
        assert len(events) == last  # nothing more happened
        assert Store(place.store).leased() == {}
        stages = [stage for chain in status_of(plan, place).chains for stage in chain.stages]
        assert set(stages) == {"stored", "missing"} if asked > 1 else {"missing"}
        before = results(place)
        assert run(plan, place)[0] == {}
        assert results(place) == results(undisturbed)
        assert before.items() <= results(undisturbed).items()


def test_a_chain_that_fails_stops_no_other(plan: Plan, execution: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(job: FitJob, *rest: Any) -> nn.Module:
        if job.stage == 1:
            raise OSError("the disk is gone\nand so is the rest")
        return fit(job, *rest)

    monkeypatch.setattr(pixelpick_ray.training, "fit", breaks)
    errors, events = run(plan, execution)
    margin, random, other = (chain.id for chain in plan.chains)
    assert errors == dict.fromkeys((margin, random), "stage 1, training epoch 1: OSError: the disk is gone")
    assert [event.chain for event in events if isinstance(event, ChainDone)] == [other]
    assert {event.chain: event.message for event in events if isinstance(event, ChainFailed)} == errors
    (attempt,) = (Path(execution.store) / "attempts" / margin).iterdir()
    assert re.match("(?s)Traceback.*in breaks", attempt.read_text())
    assert not (Path(execution.store) / "attempts" / other).exists()
    state = status_of(plan, execution)
    assert [chain.stages for chain in state.chains] == [("stored", "failed"), ("stored", "failed"), ("stored",)]
    assert [chain.error for chain in state.chains] == [*errors.values(), ""]
    monkeypatch.undo()
    monkeypatch.setitem(datasets.DATASETS, "tiny", TinyDataset)
    assert run(plan, execution)[0] == {}
    assert [chain.error for chain in status_of(plan, execution).chains] == ["", "", ""]


def test_a_gpu_that_is_not_there_is_refused(plan: Plan, execution: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match="--device cuda: torch sees no GPU here; use --device cpu, or auto"):
        run(plan, replace(execution, device="cuda"))
    assert not Path(execution.store).exists()
