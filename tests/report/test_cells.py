"""Cells: grouped by everything but the seed, counted against what was asked for."""

import math
from dataclasses import replace

import pytest

from pixelpick_ray.config.trial import Trial
from pixelpick_ray.report.cells import Cell, areas, build_cells, reported
from tests.support.study import Matrix, Measure, Study, experiment, matrix

BOTH_SEEDS = "grid=[{seed: [0, 1], budget: [10]}]"


def shown(study: Study, measure: Measure, *overrides: str) -> tuple[Cell, ...]:
    results = study.filled(measure, *overrides)
    return reported(results, build_cells(results))


@pytest.mark.always("a table of mean and standard deviation by hand")
def test_mean_and_sample_standard_deviation_over_seeds(study: Study) -> None:
    # mIoU 0.20, 0.25, 0.30
    first, second = shown(study, lambda trial: matrix(40 + 10 * trial.seed))
    assert (first.budget, second.budget) == (10, 20)
    assert (first.summary.mean, first.summary.std) == (pytest.approx(0.25), pytest.approx(0.05))
    assert (first.summary.n, first.expected, first.seeds) == (3, 3, (0, 1, 2))
    assert first.share == pytest.approx(10 / 172800)
    assert len(set(first.fit_keys)) == 3


def test_missing_seeds_are_counted_not_averaged_away(study: Study) -> None:
    lost = {(1, 10), (0, 20), (1, 20), (2, 20)}
    cells = shown(study, lambda trial: None if (trial.seed, trial.budget) in lost else matrix(50))
    assert [(len(cell.values), cell.expected) for cell in cells] == [(2, 3), (0, 3)]
    assert math.isnan(cells[1].summary.mean)
    assert cells[1].share == pytest.approx(20 / 172800)


def test_what_is_one_fit_for_all_seeds_counts_once(study: Study) -> None:
    """Nothing of it is drawn at random: n is 1, and there is no deviation."""
    results = study.filled(lambda trial: matrix(50), "grid=[{seed: [0, 1, 2], budget: [full, 10]}]")
    keys = {one.fit_key: "one" for one in results.readings if one.asked.point.budget == "full"}
    shared = tuple(replace(one, fit_key=keys.get(one.fit_key, one.fit_key)) for one in results.readings)
    ten, full = reported(results, build_cells(replace(results, readings=shared)))
    assert (ten.summary.n, ten.expected, ten.seeds) == (3, 3, (0, 1, 2))
    assert (full.summary.n, full.expected, full.seeds, full.fit_keys) == (1, 1, (0,), ("one",))
    assert math.isnan(full.summary.std)


def test_budgets_ascend_as_numbers_and_full_supervision_is_last(study: Study) -> None:
    grid = "grid=[{acquire.strategy: [random, margin], seed: [0], budget: [full, 100, 20]}]"
    found = [(cell.line.strategy, cell.budget) for cell in shown(study, lambda trial: matrix(50), grid)]
    assert found == [("random", 20), ("random", 100), ("margin", 20), ("margin", 100), ("", "full")]


def test_settings_are_never_averaged(study: Study) -> None:
    grid = "grid=[{train.optimizer.lr: [0.1, 0.2], seed: [0, 1], budget: [10]}]"
    cells = shown(study, lambda trial: matrix(40 if trial.train.optimizer.lr == 0.1 else 80), grid)
    assert [(cell.line.setting, cell.summary.mean, cell.expected) for cell in cells] == [
        (f"train.optimizer.lr={lr}", pytest.approx(mean), 2) for lr, mean in ((0.1, 0.2), (0.2, 0.4))
    ]


def test_a_class_that_some_seeds_lack_is_averaged_over_the_others(study: Study) -> None:
    measured = {0: [[10, 0], [0, 0]], 1: [[5, 5], [0, 0]]}
    cells = build_cells(study.filled(lambda trial: measured[trial.seed], BOTH_SEEDS))
    (road,) = [cell for cell in cells if cell.class_name == "road"]
    assert (road.summary.n, len(road.values), road.expected, road.summary.mean) == (1, 2, 2, 0.0)


def test_cells_that_mix_devices_say_so(study: Study) -> None:
    study.filled(lambda trial: matrix(50) if trial.seed else None, BOTH_SEEDS, device="gpu")
    results = study.filled(lambda trial: None if trial.seed else matrix(50), BOTH_SEEDS, device="cpu")
    assert {cell.mixed for cell in build_cells(results)} == {("device",)}


def test_the_reporting_split_and_the_last_epoch_are_shown(study: Study) -> None:
    evaluate = "evaluate={splits: {test: {}, val: {}}, report: val, when: every_epoch}"
    results = study.filled(lambda trial: [matrix(80), matrix(60)], evaluate)
    cells = build_cells(results)
    rules = {(split, rule) for split in ("test", "val") for rule in ("last", "best")}
    assert {(cell.split, cell.checkpoint) for cell in cells} == rules | {("val", "best_on_test")}
    found = {(cell.split, cell.checkpoint, cell.summary.mean) for cell in reported(results, cells)}
    assert found == {("val", "last", 0.3)}


def test_the_area_takes_only_seeds_with_every_budget(study: Study) -> None:
    def measure(trial: Trial) -> Matrix | None:
        return None if (trial.seed, trial.budget) == (2, 20) else matrix(20 + 20 * trial.seed + trial.budget)

    # mIoU 0.15 to 0.20 for seed 0 and 0.25 to 0.30 for seed 1.
    (area,) = areas(shown(study, measure))
    assert (area.summary.n, area.expected, area.budgets) == (2, 3, (10, 20))
    assert area.summary.mean == pytest.approx((0.175 + 0.275) / 2)


def test_two_experiments_stand_side_by_side(study: Study) -> None:
    pretrained = experiment("name=other", "model.pretrained=imagenet", "evaluate={splits: {val: {}}, report: val}")
    study.fill(experiment(), lambda trial: matrix(50))
    study.fill(pretrained, lambda trial: matrix(80))
    results = study.results(pretrained, experiment())
    cells = reported(results, build_cells(results))
    assert [(cell.line.experiment, cell.line.pretrained, cell.split, cell.budget) for cell in cells] == [
        *(("other", "imagenet", "val", budget) for budget in (10, 20)),
        *(("study", "none", "test", budget) for budget in (10, 20)),
    ]
    assert (cells[0].summary.mean, cells[2].summary.mean) == (pytest.approx(0.4), pytest.approx(0.25))
