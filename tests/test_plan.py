"""Plans, against counts by hand, what is stored of them and refused; and the state of every stage."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import parse_experiment
from pixelpick_ray.data.cache import training_names
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.planning import Plan, Progress, StageStatus, claim_name, progress_of
from pixelpick_ray.status import Status, status_of
from pixelpick_ray.store import Store, experiment_folder, run_lease
from tests.support.data_folders import loaded
from tests.support.launch import ROOT, launch_without_torch
from tests.support.results import ME
from tests.support.stores import check_plan, do_steps, execution_at, tiny_plan


def test_the_published_experiment_is_planned_without_torch_and_data(camvid_yaml: str, tmp_path: Path) -> None:
    (tmp_path / "camvid.yaml").write_text(camvid_yaml)
    counts = {"trials": 30, "chains": 10, "fits": 55, "fits_unshared": 155}
    counts["picks"] = 50  # of five seeds: the initial pixels and nine picks
    unknown = {"stored_fits": None, "stored_picks": None, "epochs_missing": 55 * 50}
    for path in (tmp_path / "camvid.yaml", ROOT / "experiments" / "camvid-mobilenet.yaml"):
        found = json.loads(launch_without_torch(tmp_path, "plan", str(path), "--json"))
        assert found.items() >= ({"experiment": "camvid-mobilenet"} | counts | unknown).items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["camvid.yaml"]


def test_counts_and_what_chains_share_are_those_by_hand() -> None:
    """Two strategies with two seeds, one chain that goes further, one of other networks, and full supervision."""
    grids = "{acquire.strategy: [margin, random], seed: [0, 1], budget: [6, 2, 4]}, {seed: [0], budget: [8]}"
    more = "{train.epochs: [3], seed: [0], budget: [4]}, {seed: [0], budget: [full]}"
    plan = tiny_plan(f"grid=[{grids}, {more}]")
    assert [chain.budgets for chain in plan.chains] == [(2, 4, 6, 8), *[(2, 4, 6)] * 3, (4,), ("full",)]
    assert [len(chain.fits) for chain in plan.chains] == [4, 3, 3, 3, 2, 1]
    assert [len(chain.picks) for chain in plan.chains] == [4, 3, 3, 3, 2, 0]  # the first pixels, and none at the end
    assert [chain.trial.num_stages for chain in plan.chains] == [4, 3, 3, 3, 2, 1]
    # Strategies share the first fit of a seed and its first pixels, which the other networks share too.
    assert (len(plan.trials), plan.num_fits) == (4 * 3 + 1 + 1 + 1, 16 - 2)
    assert plan.num_fits_unshared == 4 * (1 + 2 + 3) + 4 + 2 + 1
    assert plan.num_picks == 15 - 3
    assert [[one.shared_fits(two) for two in plan.chains] for one in plan.chains] == [
        *([4, 0, 1, 0, 0, 0], [0, 3, 0, 1, 0, 0], [1, 0, 3, 0, 0, 0]),
        *([0, 1, 0, 3, 0, 0], [0, 0, 0, 0, 2, 0], [0, 0, 0, 0, 0, 1]),
    ]
    assert [plan.stages_to_keep(chain) for chain in plan.chains] == [frozenset({0})] * 4 + [frozenset()] * 2


# What is stored


@pytest.fixture
def data(write_camvid: Callable[..., Path]) -> Path:
    return write_camvid(splits=("train", "test"))


@pytest.fixture
def execution(data: Path, tmp_path: Path) -> Execution:
    return execution_at(tmp_path, data)


def test_progress_follows_the_store_step_by_step(execution: Execution) -> None:
    plan = tiny_plan()
    chain = plan.chains[0]
    progress = progress_of(plan, execution)
    assert (progress.stored_fits, progress.stored_picks) == (0, 0)
    assert [stage.fit for stage in progress.stages[chain.id]] == [None, None, None]
    counts = []
    for count in range(1, 10):
        keys = do_steps(plan, chain, execution, count)
        progress = progress_of(plan, execution)
        row = progress.stages[chain.id]
        counts.append((progress.stored_fits, progress.stored_picks, sum(stage.evaluated for stage in row)))
        assert [stage.fit for stage in row if stage.fit_stored] == [keys[k] for k in keys if k.startswith("fit")]
        assert progress.done(chain) == (count == 9)
    # the initial pixels; fit, evaluation, pick; fit, evaluation, pick; fit, evaluation
    assert counts == [(0, 1, 0), (1, 1, 0), (1, 1, 1), (1, 2, 1), (2, 2, 1), (2, 2, 2), (2, 3, 2), (3, 3, 2), (3, 3, 3)]
    other = [(one.fit_stored, one.evaluated, one.pick_stored) for one in progress.stages[plan.chains[1].id]]
    assert other == [(True, True, False), (False, False, False), (False, False, False)]
    do_steps(plan, plan.chains[1], execution)
    progress = progress_of(plan, execution)
    assert (progress.stored_fits, progress.stored_picks) == (plan.num_fits, plan.num_picks) == (5, 5)
    assert all(progress.done(chain) for chain in plan.chains)
    full = tiny_plan("grid=[{budget: [full]}]")  # which needs no pixels
    do_steps(full, full.chains[0], execution)
    progress = progress_of(full, execution)
    assert (progress.done(full.chains[0]), progress.stored_fits, progress.stored_picks) == (True, 1, 0)


def test_without_data_the_record_tells_what_is_stored(data: Path, execution: Execution) -> None:
    plan = tiny_plan()
    do_steps(plan, plan.chains[0], execution, 5)
    with_data = progress_of(plan, execution)
    label = data / "camvid" / "trainannot" / "train_001.png"
    Image.fromarray((np.asarray(loaded(label)) + 1) % 12).save(label)
    assert progress_of(plan, execution).stored_fits == 0
    shutil.rmtree(data)
    without = progress_of(plan, execution)
    assert without.stages[plan.chains[0].id] == with_data.stages[plan.chains[0].id]
    assert (without.stored_fits, without.stored_picks) == (with_data.stored_fits, with_data.stored_picks) == (2, 2)
    assert not without.done(plan.chains[1])
    shutil.rmtree(execution.store)
    nothing = progress_of(plan, execution)
    assert (nothing.stored_fits, nothing.stored_picks) == (None, None)


@pytest.mark.parametrize(
    ("step", "left"),
    [("pick", (3, 2)), ("fit 1", (2, 3)), ("pick 0", (3, 2)), ("evaluation 2", (3, 3))],
)
def test_a_damaged_result_counts_as_absent(execution: Execution, step: str, left: tuple[int, int]) -> None:
    """Also the first pixels, for the record names what comes after them."""
    plan = tiny_plan()
    keys = do_steps(plan, plan.chains[0], execution)
    kind = step.split()[0]
    path = Path(execution.store) / kind / keys[step] / ("pixels.npz" if kind == "pick" else "result")
    path.write_bytes(path.read_bytes()[:-3])
    progress = progress_of(plan, execution)
    assert not progress.done(plan.chains[0])
    assert (progress.stored_fits, progress.stored_picks) == left


# What is checked before a start


def refused(execution: Execution, *overrides: str) -> str:
    with pytest.raises(DataError) as caught:
        check_plan(tiny_plan(*overrides), execution)
    return str(caught.value)


def test_a_budget_beyond_the_candidates_of_an_image_is_refused(data: Path, execution: Execution) -> None:
    label = np.full((8, 10), 11, dtype=np.uint8)
    label[2, 3:8] = 4
    Image.fromarray(label).save(data / "camvid" / "trainannot" / "train_001.png")
    told = (
        "train: image train_001.png has only 5 pixels that are not void, fewer than the budget of 6; lower the budget"
    )
    assert told in refused(execution)
    check_plan(tiny_plan("acquire.pixels_per_stage=3", "grid=[{budget: [5, full]}]"), execution)
    seeds = {inside: [] for inside in (True, False)}  # of which the subset of two images has this one, and not
    for seed in range(6):
        names = training_names(tuple(f"train_{index:03d}.png" for index in range(3)), 2, seed)
        seeds["train_001.png" in names].append(seed)
    subset = "dataset.images=2"
    check_plan(tiny_plan(subset, f"grid=[{{seed: {seeds[False]}, budget: [6]}}]"), execution)
    assert told in refused(execution, subset, f"grid=[{{seed: {seeds[True][:1]}, budget: [6]}}]")


def test_the_training_images_must_be_of_one_size_or_cropped(data: Path, execution: Execution) -> None:
    check_plan(tiny_plan("dataset.images=2"), execution)
    for folder in ("train", "trainannot"):
        path = data / "camvid" / folder / "train_002.png"
        loaded(path).resize((12, 8), Image.Resampling.NEAREST).save(path)
    native = ("dataset={name: camvid}", "grid=[{budget: [2, full]}]")
    assert "augment.crop_size: is required, because the training images differ in size" in refused(execution, *native)
    check_plan(tiny_plan(*native, "train.augment={crop_size: [8, 8]}"), execution)
    check_plan(tiny_plan(), execution)  # prepared to one size


# Whose name it is

GRID = "grid=[{{seed: {}, budget: {}}}]"


def test_a_name_may_be_used_again_for_the_same_or_an_extended_grid(tmp_path: Path) -> None:
    for grid, recorded in (
        ("grid=[{budget: [4, 2], seed: [1, 0]}]", 4),  # the same in another order
        (GRID.format([1], [4]), 4),  # smaller: the larger stays
        (GRID.format([0, 1], [2, 4, 6]), 6),  # larger: recorded
    ):
        store = Store(tmp_path / grid)
        claim_name(tiny_plan(GRID.format([0, 1], [2, 4])), store)
        plan = tiny_plan(grid, "title=another")
        claim_name(plan, store)
        record = store.read_record(f"{experiment_folder(plan.experiment)}/experiment.json")
        assert (len(record["trials"]), len(store.names("experiments"))) == (recorded, 1)
    assert parse_experiment(json.dumps(record["experiment"]), where="recorded") == plan.experiment


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "train.epochs=3",
            r"name: 'tiny' is taken by a different experiment .*--set name=\.\.\.\), or use another --store",
        ),
        (
            GRID.format([0], [2, 6]),
            r"name: 'tiny' was already run with a different grid; extend that grid.*--set name=\.\.\.",
        ),
    ],
)
def test_a_name_is_refused_to_another_experiment_with_the_way_out(tmp_path: Path, override: str, told: str) -> None:
    store = Store(tmp_path)
    plan = tiny_plan(GRID.format([0, 1], [2, 4]))
    claim_name(plan, store)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with pytest.raises(SpecError, match=told):
        claim_name(tiny_plan(GRID.format([0, 1], [2, 4]), override), store)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before
    claim_name(tiny_plan(override, "name=tiny-2"), store)  # the way out; a name that begins with the other
    assert len(store.names("experiments")) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match=r"--store .*file: cannot be used .*; give a writable folder"):
        claim_name(plan, Store(tmp_path / "file"))


def test_chains_that_differ_in_any_field_of_the_grid_have_labels_of_their_own() -> None:
    varied = "train.optimizer.lr: [0.1, 0.2], train.augment: [null, {}], acquire.strategy: [margin, random]"
    plan = tiny_plan(f"grid=[{{seed: [0], {varied}, budget: [2]}}]")
    assert len({chain.label for chain in plan.chains}) == len(plan.chains) == 8
    assert any("train.optimizer.lr=0.2" in chain.label for chain in plan.chains)


# The state of every stage: from results, live leases and failed attempts


@pytest.fixture
def plan() -> Plan:
    """Margin and random with three stages each; they share the first fit."""
    return tiny_plan()


FIRST_STORED = ("stored", "missing", "missing")


def stages(status: Status) -> list[tuple[str, ...]]:
    return [chain.stages for chain in status.chains]


def test_only_what_is_stored_and_measured_is_stored(plan: Plan, execution: Execution) -> None:
    assert stages(status_of(plan, execution)) == [("missing",) * 3] * 2
    assert not Path(execution.store).exists()
    key = do_steps(plan, plan.chains[0], execution, 2)["fit 0"]  # not measured yet
    assert stages(status_of(plan, execution)) == [("missing",) * 3] * 2
    lease = Path(execution.store) / "leases" / f"fit-{key}"
    lease.parent.mkdir()
    lease.write_text(ME)
    assert stages(status_of(plan, execution)) == [("running", "waiting", "waiting")] * 2
    os.utime(lease, (time.time() - 3600,) * 2)  # of a dead process
    assert stages(status_of(plan, execution)) == [("missing",) * 3] * 2
    do_steps(plan, plan.chains[0], execution, 6)
    assert stages(status_of(plan, execution)) == [("stored", "stored", "missing"), FIRST_STORED]


def test_a_live_lease_runs_and_what_comes_after_it_waits(plan: Plan, execution: Execution, tmp_path: Path) -> None:
    store, chain = Store(execution.store), plan.chains[0]
    keys = do_steps(plan, chain, execution_at(tmp_path / "all", execution.data_path))
    store.record_attempt(chain.id, "OSError: earlier")
    for done, step, expected in (
        (0, "pick", [("waiting",) * 3] * 2),  # the first pixels of both
        (1, "fit 0", [("running", "waiting", "waiting")] * 2),  # the shared fit
        (3, "pick 0", [("stored", "waiting", "waiting"), FIRST_STORED]),
        (4, "fit 1", [("stored", "running", "waiting"), FIRST_STORED]),
        (7, "fit 2", [("stored", "stored", "running"), FIRST_STORED]),
    ):
        do_steps(plan, chain, execution, done)
        with store.take(step.split()[0], keys[step]) or pytest.fail("it is free"):
            state = status_of(plan, execution)
        assert stages(state) == expected
        assert state.chains[0].error == ""  # it is being tried again
        assert stages(status_of(plan, execution))[0][done // 3] == "failed"


def test_what_is_waited_for_is_told_with_its_holder(plan: Plan, execution: Execution, tmp_path: Path) -> None:
    store, chain = Store(execution.store), plan.chains[0]
    key = do_steps(plan, chain, execution_at(tmp_path / "all", execution.data_path))["fit 1"]
    do_steps(plan, chain, execution, 4)

    def waits() -> list[str]:
        return [chain.waits_for for chain in status_of(plan, execution).chains]

    with store.take("run", "another experiment") or pytest.fail("it is free"):
        assert waits() == ["", ""]
    with store.take("run", f"{run_lease(plan.experiment)}1") or pytest.fail("it is free"):
        assert waits() == [f"free resources in the run on {ME}"] * 2
        assert stages(status_of(plan, execution)) == [("stored", "waiting", "waiting")] * 2
        with store.take("fit", key) or pytest.fail("it is free"):
            assert waits() == [f"stage 1, being trained by {ME}", f"free resources in the run on {ME}"]
            text = status_of(plan, execution).as_text()
            assert f"WAITING test_resnet margin seed 0: for stage 1, being trained by {ME}" in text.splitlines()


def test_the_stage_that_failed_is_told_with_the_last_line_of_the_last_attempt(plan: Plan, execution: Execution) -> None:
    margin, store = plan.chains[0], Store(execution.store)
    do_steps(plan, margin, execution, 6)
    store.record_attempt(margin.id, "Traceback\nKeyError: first")
    store.record_attempt(margin.id, "Traceback\n  deep inside\nOSError: the disk is full\n\n")
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
        "2 of 5 stages stored, 4 to train (1 of them again, for weights or measurements that only training provides)",
    ]
    do_steps(plan, margin, execution)  # a chain that ended well has no error whatever happened before
    state = status_of(plan, execution)
    assert (stages(state)[0], state.chains[0].error) == (("stored",) * 3, "")


def test_without_data_and_record_every_stage_is_missing_or_failed(plan: Plan, tmp_path: Path) -> None:
    execution = execution_at(tmp_path, tmp_path / "absent")
    Store(execution.store).record_attempt(plan.chains[1].id, "OSError: no data")
    assert stages(status_of(plan, execution)) == [("missing",) * 3, ("failed", "missing", "missing")]


def test_a_fit_for_which_one_of_two_chains_need_not_wait_can_be_trained(plan: Plan) -> None:
    first, second = plan.chains
    rows = {chain.id: [StageStatus(0, first.fits[0], None, must_wait=chain is first)] for chain in plan.chains}
    assert Progress(plan, rows).to_train == {first.fits[0]: (rows[second.id][0], second.trial)}
