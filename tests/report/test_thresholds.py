"""The budget at which 95 % of full supervision is reached, against numbers worked out by hand and by scipy."""

import math
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from pixelpick_ray.config.trial import Budget, Trial
from pixelpick_ray.report.cells import Cell, Line, build_cells
from pixelpick_ray.report.statistics import summarise
from pixelpick_ray.report.thresholds import (
    Threshold,
    estimate_text,
    first_crossing,
    interval_text,
    threshold_table,
    thresholds,
)
from tests.support.contest import make_cell
from tests.support.study import Matrix, Study, exact, experiment

INF = math.inf
MARGIN, FULL = (Line("study", "camvid", "deeplabv3plus", "small", "none", name, "") for name in ("margin", ""))


def cell(line: Line, budget: Budget, by_seed: dict[int, float], expected: int = 3) -> Cell:
    seeds, values = tuple(by_seed), tuple(by_seed.values())
    whole = make_cell(line, budget, [0] * expected, "")
    return replace(whole, seeds=seeds, values=values, summary=summarise(values), fit_keys=("",) * len(seeds))


def one(*cells: Cell) -> Threshold:
    (found,) = thresholds(cells)
    return found


def test_a_crossing_lies_on_the_straight_line_between_two_budgets() -> None:
    assert first_crossing([10, 20, 40], [-3, -1, 4]) == 24
    assert first_crossing([10, 20, 40], [-1, 1, -1]) == 15  # the first one counts
    assert first_crossing([10, 20], [-1, 0]) == 20
    assert first_crossing([10, 20], [0, 1]) == 10
    assert first_crossing([10, 20], [1, -1]) == -INF
    assert first_crossing([10, 20], [-2, -1]) == INF
    assert math.isnan(first_crossing([10, 20], [math.nan, 1]))


def check_interval(found: Threshold, first: Any, second: Any) -> None:
    """Between 20 and 40 pixels, from the tests of the differences to the level there."""
    first, second = (each.confidence_interval(0.95) for each in (first, second))
    assert found.low == pytest.approx(20 + 20 * first.high / (first.high - second.high))
    assert found.high == pytest.approx(20 + 20 * first.low / (first.low - second.low))
    assert 20 < found.low < found.estimate < found.high < 40


def test_seeds_that_are_shared_are_paired_others_are_compared_as_two_samples() -> None:
    low, high = {0: 0.50, 1: 0.53, 2: 0.56}, {2: 0.64, 0: 0.60, 1: 0.61}
    full = {1: 0.61, 2: 0.62, 0: 0.57}
    found = one(cell(MARGIN, 20, low), cell(MARGIN, 40, high), cell(FULL, "full", full))
    assert (found.full, found.level) == (pytest.approx(0.6), pytest.approx(0.57))
    # From 0.53 up to 37/60 the level 0.57 is 6/13 of the way.
    assert found.estimate == pytest.approx(20 + 20 * 6 / 13)
    differences = [[values[seed] - 0.95 * full[seed] for seed in range(3)] for values in (low, high)]
    check_interval(found, *(stats.ttest_1samp(each, 0.0) for each in differences))
    curve = {20: [0.50, 0.505, 0.51], 40: [0.61, 0.62, 0.63, 0.66]}
    cells = [cell(MARGIN, budget, dict(enumerate(values))) for budget, values in curve.items()]
    found = one(*cells, cell(FULL, "full", dict(enumerate([0.60, 0.61, 0.605], start=5))))
    scaled = [0.95 * value for value in (0.60, 0.61, 0.605)]
    check_interval(found, *(stats.ttest_ind(values, scaled, equal_var=False) for values in curve.values()))


def test_the_interval_shrinks_to_the_estimate_where_every_seed_says_the_same_and_one_has_none() -> None:
    def flat(*seeds: int) -> Threshold:
        heights = ((MARGIN, 10, 0.5), (MARGIN, 20, 0.9), (FULL, "full", 0.8))
        return one(*(cell(line, budget, dict.fromkeys(seeds, value)) for line, budget, value in heights))

    found = flat(0, 1, 2)
    assert (found.low, found.estimate, found.high) == pytest.approx((16.5, 16.5, 16.5))
    assert interval_text(found) == estimate_text(found) == "16"
    found = flat(0)
    assert (found.low, found.estimate, found.high) == pytest.approx((math.nan, 16.5, math.nan), nan_ok=True)
    assert (interval_text(found), found.n, found.expected) == ("-", 1, 3)


def test_lines_without_a_counterpart_with_values_have_no_threshold() -> None:
    other = Line("study", "camvid", "fpn", "small", "none", "margin", "")
    full = cell(FULL, "full", {0: 0.8})
    assert thresholds([cell(other, 10, {0: 0.5}), full]) == ()
    assert thresholds([cell(MARGIN, 10, {}), full]) == ()
    assert thresholds([cell(MARGIN, 10, {0: 0.5}), cell(FULL, "full", {})]) == ()


def test_texts() -> None:
    for ends, texts in {
        (45.6, 31.4, INF): ("46", "31 to beyond 100"),
        (-INF, -INF, -INF): ("below 10", "below 10"),
        (-INF, -INF, 12.0): ("below 10", "below 10 to 12"),
        (INF, 88.0, INF): ("not reached by 100", "88 to beyond 100"),
        (INF, INF, INF): ("not reached by 100", "beyond 100"),
        (2.04, 1.0, 9.5): ("2", "1 to 9.5"),
        (45.6, math.nan, math.nan): ("46", "-"),
    }.items():
        found = Threshold(MARGIN, 0.6, 0.57, (10, 100), *ends, 5, 5)
        assert (estimate_text(found), interval_text(found)) == texts


def test_the_table_has_a_row_a_line_and_counts_the_fewest_seeds(study: Study) -> None:
    heights = {("margin", 10): 400, ("margin", 20): 600, ("random", 10): 300, ("random", 20): 500}

    def measure(trial: Trial) -> Matrix | None:
        place = trial.acquire.strategy, trial.budget
        return None if (*place, trial.seed) == ("margin", 20, 2) else exact(heights.get(place, 600))

    asked = "{acquire.strategy: [margin, random], seed: [0, 1, 2], budget: [10, 20]}"
    results = study.filled(measure, f"grid=[{asked}, {{seed: [0, 1], budget: [full]}}]")
    table = threshold_table(results, build_cells(results))
    assert table.header == (
        *("model", "pretrained", "strategy", "full (%)", "95 % of it (%)", "pixels per image", "95 % interval", "n"),
    )
    # 0.57 lies 17/20 of the way from 0.4 to 0.6; the other curve ends at 0.5.
    assert [row[2:] for row in table.rows] == [
        ("margin", "60.0", "57.0", "18", "18", "2/3"),
        ("random", "60.0", "57.0", "not reached by 20", "beyond 20", "3"),
    ]
    without = study.results(experiment())  # full supervision
    assert without.readings
    assert threshold_table(without, build_cells(without)) is None
