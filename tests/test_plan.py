"""Plans: what is counted, shared, stored and refused, against counts made in other ways."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import parse_experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.data.cache import training_names
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.planning import claim_name, make_plan, progress_of
from pixelpick_ray.store import Store, experiment_folder
from tests.support.data_folders import loaded
from tests.support.launch import ROOT, launch_without_torch
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


# Counting by brute force: each step as the nested tuple of everything that it depends on.


def steps_of(trial: Trial) -> tuple[list[Any], list[Any]]:
    """Fits and picks of a trial in their order."""
    acquire = trial.acquire
    network = (trial.dataset.images, trial.model.backbone, trial.train.epochs, trial.seed)
    if trial.budget == "full":
        return [("fit", network, "every pixel")], []
    labels: tuple[Any, ...] = (("first", trial.dataset.images, trial.seed, acquire.initial_pixels),)
    fits, picks, labelled = [], [labels[0]], acquire.initial_pixels
    while True:
        fits.append(("fit", network, len(fits), labels))
        if labelled == trial.budget:
            return fits, picks
        picks.append(("pick", fits[-1], acquire.strategy, acquire.pixels_per_stage, acquire.pool_fraction))
        labels += (picks[-1],)
        labelled += acquire.pixels_per_stage


def all_but_the_budget(trial: Trial) -> tuple[Any, ...]:
    """What trials of one chain have in common."""
    science = (trial.dataset.images, trial.model.backbone, trial.train.epochs, trial.seed)
    acquire = trial.acquire
    how = (acquire.strategy, acquire.initial_pixels, acquire.pixels_per_stage, acquire.pool_fraction)
    return science if trial.budget == "full" else science + how


def some(*values: Any) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, unique=True)


@st.composite
def grids(draw: st.DrawFn) -> dict[str, list[Any]]:
    """A random grid whose budgets all its points can reach."""
    grid: dict[str, list[Any]] = {
        "acquire.initial_pixels": draw(some(5, 10)),
        "acquire.pixels_per_stage": draw(some(5, 10, 15)),
        "seed": draw(some(0, 1, 2)),
    }
    optional = {
        "acquire.strategy": some("margin", "random", "entropy"),
        "acquire.pool_fraction": some(0.0, 0.05),
        "model.backbone": some("resnet18", "resnet34"),
        "dataset.images": some(4, 8),
        "train.epochs": some(3, 4),
    }
    for path in draw(st.lists(st.sampled_from(sorted(optional)), unique=True, max_size=3)):
        grid[path] = draw(optional[path])
    pairs = [(first, step) for first in grid["acquire.initial_pixels"] for step in grid["acquire.pixels_per_stage"]]
    reached = [b for b in range(5, 50, 5) if all(b >= first and (b - first) % step == 0 for first, step in pairs)]
    grid["budget"] = draw(some(*reached, "full"))
    return grid


@given(st.lists(grids(), min_size=1, max_size=2))
def test_counts_and_what_chains_share_are_those_of_enumerating_every_step(grid: list[dict[str, list[Any]]]) -> None:
    plan = tiny_plan(f"grid={json.dumps(grid)}")
    steps = [steps_of(trial) for trial in plan.trials]
    assert len({json.dumps(trial.model_dump()) for trial in plan.trials}) == len(plan.trials)
    assert len(plan.chains) == len({all_but_the_budget(trial) for trial in plan.trials})
    assert plan.num_fits == len({fit for fits, _ in steps for fit in fits})
    assert plan.num_fits_unshared == sum(len(fits) for fits, _ in steps)
    assert plan.num_picks == len({pick for _, picks in steps for pick in picks})

    for chain in plan.chains:
        mine = [trial for trial in plan.trials if all_but_the_budget(trial) == all_but_the_budget(chain.trial)]
        mine = [trial for trial in mine if (trial.budget == "full") == (chain.trial.budget == "full")]
        assert set(chain.budgets) == {trial.budget for trial in mine}
        assert list(chain.budgets) == sorted(chain.budgets, key=lambda budget: 0 if budget == "full" else budget)
        assert chain.trial.num_stages == max(trial.num_stages for trial in mine)
    of_chain = {chain.id: steps_of(chain.trial) for chain in plan.chains}
    for chain in plan.chains:
        fits, picks = of_chain[chain.id]
        assert (len(chain.fits), len(chain.picks)) == (len(fits), len(picks))
        kept = set()
        for other in plan.chains:
            theirs = of_chain[other.id][0]
            common = sum(mine == their for mine, their in zip(fits, theirs, strict=False))
            assert chain.shared_fits(other) == common
            assert fits[:common] == theirs[:common]
            kept |= set(range(common)) if other is not chain else set()
        assert plan.stages_to_keep(chain) == kept


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
    plan = tiny_plan("grid=[{budget: [full]}]")  # which needs no pixels
    do_steps(plan, plan.chains[0], execution)
    progress = progress_of(plan, execution)
    assert (progress.done(plan.chains[0]), progress.stored_fits, progress.stored_picks) == (True, 1, 0)


def test_without_data_the_record_tells_what_is_stored(data: Path, execution: Execution) -> None:
    plan = tiny_plan()
    do_steps(plan, plan.chains[0], execution, 5)
    with_data = progress_of(plan, execution)
    shutil.rmtree(data)
    without = progress_of(plan, execution)
    assert without.stages[plan.chains[0].id] == with_data.stages[plan.chains[0].id]
    assert (without.stored_fits, without.stored_picks) == (with_data.stored_fits, with_data.stored_picks) == (2, 2)
    assert not without.done(plan.chains[1])
    shutil.rmtree(execution.store)
    nothing = progress_of(plan, execution)
    assert (nothing.stored_fits, nothing.stored_picks) == (None, None)


@pytest.mark.parametrize(
    ("step", "file", "left"),
    [
        ("pick", "pixels.npz", (3, 2)),  # the record names what comes after it
        ("fit 1", "result", (2, 3)),
        ("pick 0", "pixels.npz", (3, 2)),
        ("evaluation 2", "result", (3, 3)),
    ],
)
def test_a_damaged_result_counts_as_absent(execution: Execution, step: str, file: str, left: tuple[int, int]) -> None:
    plan = tiny_plan()
    keys = do_steps(plan, plan.chains[0], execution)
    assert progress_of(plan, execution).done(plan.chains[0])
    path = Path(execution.store) / step.split()[0] / keys[step] / file
    path.write_bytes(path.read_bytes()[:-3])
    progress = progress_of(plan, execution)
    assert not progress.done(plan.chains[0])
    assert (progress.stored_fits, progress.stored_picks) == left


def test_data_of_other_content_have_no_results_yet(data: Path, execution: Execution) -> None:
    plan = tiny_plan()
    do_steps(plan, plan.chains[0], execution)
    label = data / "camvid" / "trainannot" / "train_001.png"
    Image.fromarray((np.asarray(loaded(label)) + 1) % 12).save(label)
    assert progress_of(plan, execution).stored_fits == 0


# What is checked before a start


def refused(execution: Execution, told: str, *overrides: str) -> bool:
    with pytest.raises(DataError) as caught:
        check_plan(tiny_plan(*overrides), execution)
    return re.search(told, str(caught.value)) is not None


def test_a_budget_beyond_the_candidates_of_an_image_is_refused(data: Path, execution: Execution) -> None:
    label = np.full((8, 10), 11, dtype=np.uint8)
    label[2, 3:8] = 4
    Image.fromarray(label).save(data / "camvid" / "trainannot" / "train_001.png")
    told = r"train: image train_001\.png has 5 pixels that are not void, budget 6 needs as many; lower the budget"
    assert refused(execution, told)
    check_plan(tiny_plan("acquire.pixels_per_stage=3", "grid=[{budget: [5, full]}]"), execution)
    seeds = {inside: [] for inside in (True, False)}  # of which the subset of two images has this one, and not
    for seed in range(6):
        names = training_names(tuple(f"train_{index:03d}.png" for index in range(3)), 2, seed)
        seeds["train_001.png" in names].append(seed)
    subset = "dataset.images=2"
    check_plan(tiny_plan(subset, f"grid=[{{seed: {seeds[False]}, budget: [6]}}]"), execution)
    assert refused(execution, "train_001.png has 5 pixels", subset, f"grid=[{{seed: {seeds[True][:1]}, budget: [6]}}]")


def test_the_training_images_must_be_of_one_size_or_cropped(data: Path, execution: Execution) -> None:
    check_plan(tiny_plan("dataset.images=2"), execution)
    for folder in ("train", "trainannot"):
        path = data / "camvid" / folder / "train_002.png"
        loaded(path).resize((12, 8), Image.Resampling.NEAREST).save(path)
    native = ("dataset={name: camvid}", "grid=[{budget: [2, full]}]")
    assert refused(execution, r"augment\.crop_size: the training images differ in size; give the", *native)
    check_plan(tiny_plan(*native, "train.augment={crop_size: [8, 8]}"), execution)
    check_plan(tiny_plan(), execution)  # prepared to one size


# Whose name it is

GRID = "grid=[{{seed: {}, budget: {}}}]"


def test_a_name_may_be_used_again_for_the_same_or_an_extended_grid(tmp_path: Path) -> None:
    for grid, recorded in (
        (GRID.format([0, 1], [2, 4]), 4),  # equal
        ("grid=[{budget: [4, 2], seed: [1, 0]}]", 4),  # the same in another order
        (GRID.format([1], [4]), 4),  # smaller: the larger stays
        (GRID.format([0, 1], [2, 4, 6]), 6),  # larger: recorded
    ):
        store = Store(tmp_path / str(recorded))
        claim_name(tiny_plan(GRID.format([0, 1], [2, 4])), store)
        plan = tiny_plan(grid, "title=another")
        claim_name(plan, store)
        assert len(store.read_record(f"{experiment_folder(plan.experiment)}/experiment.json")["trials"]) == recorded
        assert len(store.names("experiments")) == 1


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.epochs=3", r"name: 'tiny' is already another experiment .*--set name=\.\.\.\), or use another --store"),
        (GRID.format([0], [2, 6]), r"name: 'tiny' was run with another grid.*extend the grid.*--set name=\.\.\."),
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
    claim_name(plan, store)
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match=r"--store .*file: cannot be used .*; give a folder you may write to"):
        claim_name(plan, Store(tmp_path / "file"))


def test_the_effective_experiment_is_recorded(tmp_path: Path) -> None:
    plan, store = tiny_plan("train.epochs=7"), Store(tmp_path)
    claim_name(plan, store)
    recorded = store.read_record(f"{experiment_folder(plan.experiment)}/experiment.json")
    again = parse_experiment(json.dumps(recorded["experiment"]), where="recorded")
    assert again == plan.experiment
    assert make_plan(again).chains == plan.chains


def test_chains_that_differ_in_any_field_of_the_grid_have_labels_of_their_own() -> None:
    varied = "train.optimizer.lr: [0.1, 0.2], train.augment: [null, {}], acquire.strategy: [margin, random]"
    plan = tiny_plan(f"grid=[{{seed: [0], {varied}, budget: [2]}}]")
    assert len({chain.label for chain in plan.chains}) == len(plan.chains) == 8
    assert any("train.optimizer.lr=0.2" in chain.label for chain in plan.chains)
