"""The state of every stage: from results, live leases and failed attempts."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.planning import Chain, Plan
from pixelpick_ray.status import Status, status_of
from pixelpick_ray.store import Store, run_lease
from tests.support.stores import do_steps, execution_at, tiny_plan


@pytest.fixture
def plan() -> Plan:
    """Margin and random with three stages each; they share the first fit."""
    return tiny_plan()


@pytest.fixture
def execution(write_camvid: Callable[..., Path], tmp_path: Path) -> Execution:
    return execution_at(tmp_path, write_camvid(splits=("train", "test")))


@pytest.fixture
def keys(plan: Plan, execution: Execution, tmp_path: Path) -> dict[str, str]:
    """The keys of all results of the first chain."""
    return do_steps(plan, plan.chains[0], execution_at(tmp_path / "all", execution.data_path))


def stages(status: Status) -> list[tuple[str, ...]]:
    return [chain.stages for chain in status.chains]


def test_only_what_is_stored_and_measured_is_stored(plan: Plan, execution: Execution) -> None:
    assert stages(status_of(plan, execution)) == [("missing",) * 3] * 2
    assert not Path(execution.store).exists()
    do_steps(plan, plan.chains[0], execution, 2)  # the first fit, not measured yet
    assert stages(status_of(plan, execution)) == [("missing",) * 3] * 2
    do_steps(plan, plan.chains[0], execution, 6)
    assert stages(status_of(plan, execution)) == [("stored", "stored", "missing"), FIRST_STORED]


FIRST_STORED = ("stored", "missing", "missing")


@pytest.mark.parametrize(
    ("done", "step", "expected"),
    [
        (0, "pick", [("waiting",) * 3] * 2),  # the first pixels of both
        (1, "fit 0", [("running", "waiting", "waiting")] * 2),  # the shared fit
        (3, "pick 0", [("stored", "waiting", "waiting"), FIRST_STORED]),
        (4, "fit 1", [("stored", "running", "waiting"), FIRST_STORED]),
        (7, "fit 2", [("stored", "stored", "running"), FIRST_STORED]),
    ],
)
def test_a_live_lease_runs_and_what_comes_after_it_waits(
    plan: Plan, execution: Execution, keys: dict[str, str], done: int, step: str, expected: list[tuple[str, ...]]
) -> None:
    do_steps(plan, plan.chains[0], execution, done)
    Store(execution.store).record_attempt(plan.chains[0].id, "OSError: earlier")
    with Store(execution.store).take(step.split()[0], keys[step]) or pytest.fail("it is free"):
        state = status_of(plan, execution)
    assert stages(state) == expected
    assert state.chains[0].error == ""  # it is being tried again
    assert stages(status_of(plan, execution))[0][done // 3] == "failed"


def test_the_lease_of_a_dead_process_does_not_run(plan: Plan, execution: Execution) -> None:
    key = do_steps(plan, plan.chains[0], execution, 2)["fit 0"]
    lease = Path(execution.store) / "leases" / f"fit-{key}"
    lease.parent.mkdir()
    lease.write_text(f"{socket.gethostname()} pid {os.getpid()}")
    assert stages(status_of(plan, execution)) == [("running", "waiting", "waiting")] * 2
    os.utime(lease, (time.time() - 3600,) * 2)
    assert stages(status_of(plan, execution)) == [("missing",) * 3] * 2


def test_what_is_waited_for_is_told_with_its_holder(plan: Plan, execution: Execution, keys: dict[str, str]) -> None:
    me = f"{socket.gethostname()} pid {os.getpid()}"
    store = Store(execution.store)
    do_steps(plan, plan.chains[0], execution, 4)

    def waits() -> list[str]:
        return [chain.waits_for for chain in status_of(plan, execution).chains]

    assert waits() == ["", ""]
    with store.take("run", f"{run_lease(plan.experiment)}1"):
        assert waits() == [f"a free place in the run of {me}"] * 2
        assert stages(status_of(plan, execution)) == [("stored", "waiting", "waiting")] * 2
        with store.take("fit", keys["fit 1"]):
            assert waits() == [f"stage 1, which {me} trains", f"a free place in the run of {me}"]
            text = status_of(plan, execution).as_text()
            assert f"WAITING test_resnet margin seed 0: for stage 1, which {me} trains" in text.splitlines()
    with store.take("run", "another experiment"):
        assert waits() == ["", ""]


def fail(execution: Execution, chain: Chain, *texts: str) -> None:
    for text in texts:
        Store(execution.store).record_attempt(chain.id, text)


def test_the_stage_that_failed_is_told_with_the_last_line_of_the_last_attempt(plan: Plan, execution: Execution) -> None:
    margin, random = plan.chains
    do_steps(plan, margin, execution, 6)
    fail(execution, margin, "Traceback\nKeyError: first", "Traceback\n  deep inside\nOSError: the disk is full\n\n")
    state = status_of(plan, execution)
    assert stages(state) == [("stored", "stored", "failed"), FIRST_STORED]
    assert [chain.error for chain in state.chains] == ["OSError: the disk is full", ""]
    counts = {"stored": 2, "running": 0, "waiting": 0, "missing": 2, "failed": 1, "diverged": 0}
    assert state.as_dict()["stages"] == counts
    assert state.as_text().splitlines() == [
        "test_resnet margin seed 0  2 stored, 1 failed",
        "test_resnet random seed 0  1 stored, 2 missing",
        "FAILED test_resnet margin seed 0: OSError: the disk is full",
        "2 stored, 2 missing, 1 failed",  # distinct ones: the first is shared
        "2 of 5 stages stored, 4 to train (1 of them again, to get weights or measurements that only training gives)",
    ]
    fail(execution, random, "")
    assert Store(execution.store).last_error(random.id) == ""
    do_steps(plan, margin, execution)  # a chain that ended well has no error whatever happened before
    state = status_of(plan, execution)
    assert (stages(state)[0], state.chains[0].error) == (("stored",) * 3, "")


def test_without_data_and_record_every_stage_is_missing_or_failed(plan: Plan, tmp_path: Path) -> None:
    execution = execution_at(tmp_path, tmp_path / "absent")
    fail(execution, plan.chains[1], "OSError: no data")
    assert stages(status_of(plan, execution)) == [("missing",) * 3, ("failed", "missing", "missing")]
