"""From an experiment to its search: the split that is judged, the levels, the score, what can be checked beforehand."""

import re
from contextlib import nullcontext
from typing import Any

import pytest

from pixelpick_ray.config.trial import EvaluatedSpec
from pixelpick_ray.data.datasets import DatasetFacts, known_facts
from pixelpick_ray.errors import SpecError
from pixelpick_ray.planning import splits_in_use
from pixelpick_ray.search.design import Level, check_splits
from tests.support.searches import BY_EPOCH, LR_ALONE, OTHER, OWN, TEXT, search_of

VOC = "dataset={name: voc, long_side: 400}"
SCENES = "dataset={name: scenes, size: [48, 64]}"
FOLDER = "dataset={name: folder, path: leaves}"
VAL = "evaluate={splits: {val: {}}, report: val}"
TEST = "evaluate={splits: {test: {}}, report: test}"
WEIGHT_DECAY = "train.optimizer.weight_decay"
HELD_OUT = "evaluate={splits: {held_out: {}}, report: held_out}"


@pytest.mark.parametrize(
    ("overrides", "split", "held_out"),
    [
        ([], "val", None),  # CamVid reports test
        ([VOC, VAL], "held_out", 0.2),
        ([SCENES, "evaluate={splits: {final: {split: val}}, report: final}"], "held_out", 0.2),
        ([SCENES, TEST, "dataset.split=val"], "held_out", 0.2),
        ([FOLDER, VAL, "search.split=dev"], "dev", None),
        ([FOLDER, VAL, "search.held_out=0.3"], "held_out", 0.3),
        (["dataset.held_out=0.25", "search.split=val"], "val", 0.25),
        ([FOLDER, VAL, "dataset.held_out=0.25"], "held_out", 0.25),
        ([SCENES, HELD_OUT, "dataset.held_out=0.25"], "val", 0.25),  # held out to be reported
    ],
)
def test_samples_are_judged_on_a_split_of_their_own(overrides: list[str], split: str, held_out: float | None) -> None:
    search = search_of(*overrides)
    assert (search.split, search.judged.dataset.held_out) == (split, held_out)
    assert search.judged.evaluate.split_of(search.judged.evaluate.report) == split
    trial = search.judged.trials()[0]
    training, *evaluated = splits_in_use(search.judged, trial, trial.dataset.split or "train")
    assert [name for name, _ in evaluated] == [split]
    asked = search.experiment.evaluate
    assert split not in (training[0], asked.split_of(asked.report))


def test_samples_are_judged_at_the_size_of_the_report_and_when_it_is_evaluated() -> None:
    alias = search_of("evaluate={splits: {small: {split: test, scale: 0.5}}, report: small}")
    assert alias.judged.evaluate.splits == {"val": EvaluatedSpec(scale=0.5)}
    several = "evaluate={splits: {test: {size: [180, 240]}, val: {size: [90, 120]}, half: {split: test}}, report: test}"
    search = search_of(several, "evaluate.when=every_epoch", "dataset.images=20", "oracle={name: erring, rate: 0.1}")
    assert search.judged.evaluate.splits == {"val": EvaluatedSpec(size=(180, 240))}
    assert search.judged.evaluate.when == "every_epoch"
    assert search.ends_plan.experiment.evaluate == search.judged.evaluate
    changed = search.judged.model_dump(exclude={"search", "evaluate"})
    assert changed == search.experiment.model_dump(exclude={"search", "evaluate"})
    assert search.judged.search is None
    search = search_of("search.held_out=0.3")
    trial = search.trial(OTHER, seed=7, budget=20)
    assert (trial.train.optimizer.lr, trial.acquire.strategy, trial.seed, trial.budget) == (0.0025, "random", 7, 20)
    assert trial.dataset.held_out == 0.3
    assert search.trial({}, seed=0, budget=10) == search.judged.trials()[0]


@pytest.mark.parametrize(
    ("overrides", "splits", "told"),
    [
        (["search.split=dev"], "train val dev", None),
        (["dataset.held_out=0.3"], "train val", None),
        (["search.split=held_out"], "train val held_out", None),
        (["search.split=dev"], "train val", "search.split: folder has no split 'dev'; it has train, val; use one"),
        (["search.split=dev"], "train dev", "evaluate.splits: folder has no split 'val'; it has train, dev"),
        (["search.split=train"], "train val", "search.split: train is the training split; use one that is neither"),
        (["search.split=dev", "dataset.split=dev"], "train val dev", "search.split: dev is the training split"),
        (["dataset.split=fit", "search.split=train"], "train val", "dataset.split: folder has no split 'fit'"),
        (["search.held_out=0.3"], "train val held_out", "search.held_out: folder already has a split 'held_out'; use"),
    ],
)
def test_splits_of_ones_own_images_are_checked_once_known(overrides: list[str], splits: str, told: str | None) -> None:
    search, camvid = search_of(FOLDER, VAL, *overrides), known_facts("camvid")
    palette = ((0, 0, 0), (1, 1, 1))
    facts = DatasetFacts("folder", ("a", "b"), 255, camvid.mean, camvid.std, palette, tuple(splits.split()))
    with nullcontext() if told is None else pytest.raises(SpecError, match=f"^{re.escape(told or '')}"):
        check_splits(search, facts)


@pytest.mark.parametrize(
    ("overrides", "levels", "told"),
    [
        (["grid=[{seed: [0], budget: [40, 20, 40]}]"], [(20, None, 1), (40, None, 2)], "mIoU at 40 px"),
        (["search.metric={name: area, budget: 20}"], [(10, None, 1), (20, None, 2)], "area under the budget curve to"),
        (["search.metric={budget: 10}"], [(10, None, 1)], "mIoU at 10 px"),
        (["grid=[{seed: [0], budget: [full]}]"], [("full", None, 1)], "mIoU at full supervision"),
        ([*BY_EPOCH], [(10, 2, 1), (10, 4, 2), (10, None, 4), (20, None, 8), (40, None, 16)], "mIoU at 40 px"),
        # An epoch is of the first stage, which the budgets of the grid need not have.
        ([*BY_EPOCH, "grid=[{seed: [0], budget: [20]}]"], [(10, 2, 1), (10, 4, 2), (20, None, 8)], "mIoU at 20 px"),
        ([*BY_EPOCH, "grid=[{seed: [0], budget: [full]}]"], [("full", 2, 1), ("full", 4, 2), ("full", None, 4)], "mI"),
    ],
)
def test_samples_are_judged_at_levels_whose_resource_grows(overrides: Any, levels: list[Any], told: str) -> None:
    search = search_of(LR_ALONE, *overrides)
    assert [(level.budget, level.epoch) for level in search.levels] == [level[:2] for level in levels]
    assert [level.resource for level in search.levels] == pytest.approx([level[2] for level in levels], rel=1e-12)
    assert search.metric_text.startswith(told)
    assert search.num_stages == (1 if levels[-1][0] == "full" else levels[-1][0] // 10)


def test_levels_have_labels_and_seeds_are_those_of_the_grid_each_once() -> None:
    levels = (Level(20, None, 2.0), Level(10, 4, 1.0), Level("full", None, 1.0), Level("full", 3, 1.0))
    labels = ["20 px", "10 px, epoch 4", "full supervision", "full supervision, epoch 3"]
    assert [level.label for level in levels] == labels
    assert search_of("grid=[{seed: [3, 0, 3], budget: [10]}]").seeds == (3, 0)
    # Configurations that pick otherwise may share their first training.
    parts = "search.space={acquire: {choice: [{strategy: margin}, {strategy: random}]}}"
    assert [search_of(space).shares_stages for space in (parts, LR_ALONE)] == [True, False]


@pytest.mark.parametrize(
    ("overrides", "mious", "scores"),
    [
        ([], [0.3, 0.5, 0.45], [0.3, 0.5, 0.45]),
        # 10 wide at 0.4 on average, 20 wide at 0.6: (4 + 12) / 30
        (["search.metric={name: area}"], [0.3, 0.5, 0.7], [0.3, 0.4, 16 / 30]),
        # Epochs are no part of the area.
        (["search.metric={name: area}", *BY_EPOCH, LR_ALONE], [0.1, 0.2, 0.3, 0.5, 0.7], [0.1, 0.2, 0.3, 0.4, 16 / 30]),
    ],
)
def test_the_score_is_of_the_last_level_or_the_area_so_far(overrides: list[str], mious: Any, scores: Any) -> None:
    search = search_of(*overrides)
    found = [search.score(mious[: reached + 1]) for reached in range(len(mious))]
    assert found == pytest.approx(scores, rel=1e-15)


POLY = {"name": "poly", "power": 0.9}


@pytest.mark.parametrize(
    ("space", "train", "values"),
    [
        ("train.optimizer.lr: {uniform: [1e-3, 1e-2]}", "", {"train.optimizer.lr": 0.001}),
        ("train.optimizer.lr: {uniform: [2e-3, 1e-2]}", "", None),
        ("train.batch_size: {randint: [2, 8]}, acquire.strategy: {choice: [random]}", "", None),
        ("acquire.stochastic: {choice: [{passes: 2}, null]}", "", {"acquire.stochastic": None}),
        ("dataset.size: {choice: [[90, 120], [360, 480]]}", "", {"dataset.size": [360, 480]}),
        # As written in the space: a searcher knows the values of a choice by their text.
        (f"{WEIGHT_DECAY}: {{choice: [0.1, 0]}}", "", {WEIGHT_DECAY: 0}),
        ("train.schedule: {choice: [{name: poly}]}", "schedule: {name: poly}", {"train.schedule": {"name": "poly"}}),
        ("train.schedule: {choice: [{name: poly, power: 0.9}]}", "schedule: {name: poly}", {"train.schedule": POLY}),
    ],
)
def test_values_of_the_file_are_known_where_the_space_has_them_all(space: str, train: str, values: Any) -> None:
    text = TEXT.replace("lr: 1e-3}", f"lr: 1e-3}}, {train}")
    assert repr(search_of(f"search.space={{{space}}}", text=text).own_values) == repr(values)


def test_the_plan_of_what_can_be_checked_has_every_value_of_the_space_for_every_seed() -> None:
    search = search_of("search.metric={budget: 20}", "grid=[{seed: [0, 5], budget: [10, 20, 40]}]")
    found = [(trial.seed, trial.train.optimizer.lr, trial.acquire.strategy) for trial in search.ends_plan.trials]
    own, others = (1e-3, "margin"), [(1e-4, "margin"), (1e-2, "margin")]
    values = [own, *others, *((1e-3, name) for name in ("margin", "random", "entropy"))]
    assert found == [(seed, *each) for seed in (0, 5) for each in values]
    assert {trial.budget for trial in search.ends_plan.trials} == {20}


def test_a_value_that_no_trial_can_have_is_told_with_its_place() -> None:
    told = "unknown strategy 'best'; known: margin, entropy, least_confidence, random, bald; for your own, use"
    with pytest.raises(SpecError) as caught:
        _ = search_of("search.space={acquire.strategy: {choice: [margin, least_confidence, best]}}").ends_plan
    assert str(caught.value) == f"search.space.acquire.strategy: {told} file:PATH.py:NAME (value 3 of choice)"
    text = TEXT.replace("strategy: margin", "strategy: best")  # which is not blamed on the space
    with pytest.raises(SpecError, match=r"^acquire\.strategy: unknown strategy 'best'"):
        _ = search_of(LR_ALONE, text=text).ends_plan


def test_a_configuration_is_checked_as_a_trial_at_every_budget() -> None:
    search = search_of()
    search.check(OTHER)
    with pytest.raises(SpecError, match=r"^acquire\.strategy: unknown strategy 'best'"):
        search.check(OWN | {"acquire.strategy": "best"})
    steps = "search.space={acquire.pixels_per_stage: {choice: [5]}, acquire.initial_pixels: {choice: [5, 10]}}"
    to_twenty, text = "search.metric={budget: 20}", TEXT.replace("pixels_per_stage: 10", "pixels_per_stage: 5")
    search = search_of(steps, to_twenty, text=text)
    search.check({"acquire.pixels_per_stage": 5, "acquire.initial_pixels": 5})
    with pytest.raises(SpecError, match="no stage has exactly 10: they start at 5"):
        search.check({"acquire.pixels_per_stage": 10, "acquire.initial_pixels": 5})
    longer = search_of(steps, "grid=[{seed: [0], budget: [10, 20, 25]}]", to_twenty, text=text)
    with pytest.raises(SpecError, match="no stage has exactly 25"):  # which lies behind the last level
        longer.check({"acquire.pixels_per_stage": 10})
