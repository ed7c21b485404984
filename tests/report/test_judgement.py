"""Strategies against each other: which pairs meet, over which seeds, and what is said of them."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from pixelpick_ray.config.trial import Budget, Trial
from pixelpick_ray.report import judgement
from pixelpick_ray.report.cells import Cell, Line, build_cells
from pixelpick_ray.report.rows import Results
from pixelpick_ray.report.statistics import summarise
from pixelpick_ray.report.thresholds import (
    Threshold,
    estimate_text,
    first_crossing,
    interval_text,
    threshold_table,
    thresholds,
)
from pixelpick_ray.report.verdicts import verdicts
from tests.support.study import Matrix, Study, column, csv_lines, exact, experiment, matrix

# margin - random is 2, 3, 4 (p = 0.035), margin - entropy 1, 3, 5 (p = 0.122), entropy - random 1, 0, -1 (p = 1).
THREE = {"random": {20: [50, 51, 52]}, "margin": {20: [52, 54, 56]}, "entropy": {20: [51, 51, 51]}}
FIRST = {strategy: {10: [40.0, 41.0, 42.0]} for strategy in THREE}
BOTH = {strategy: FIRST[strategy] | THREE[strategy] for strategy in THREE}


def line(strategy: str, setting: str = "") -> Line:
    return Line("study", "camvid", "deeplabv3plus", "small", "none", strategy, setting)


def cell(line: Line, budget: Budget, by_seed: Mapping[int, float], expected: int = 3, network: str = "") -> Cell:
    """A cell of the default table, written by hand."""
    size = {"size": "360 x 480 pixels", "share": math.nan, "expected": expected, "mixed": ()}
    seeds, values = tuple(by_seed), tuple(by_seed.values())
    keys = tuple(f"{network} {budget} {seed}" for seed in seeds)
    shown = {"split": "test", "checkpoint": "last", "metric": "miou", "class_name": "", "summary": summarise(values)}
    return Cell(line, budget, seeds=seeds, values=values, fit_keys=keys, **size, **shown)


def make_cells(percent: Any, *, same: Collection[int] = (), setting: str = "") -> tuple[Cell, ...]:
    """Cells of mIoU in percent by strategy, budget and seed; None is a missing seed, and at the budgets `same` all
    strategies share networks.
    """
    return tuple(
        cell(
            line(strategy, setting),
            budget,
            {seed: value / 100 for seed, value in enumerate(values) if value is not None},
            len(values),
            "shared" if budget in same else strategy,
        )
        for strategy, by_budget in percent.items()
        for budget, values in by_budget.items()
    )


def contests(*cells: Cell) -> tuple[judgement.Contest, ...]:
    return judgement.judge(Results((experiment(),), {}, (), (), (), {}, {}), cells)


def found(contest: judgement.Contest, *budgets: int) -> dict[tuple[str, str], judgement.Match]:
    return {(one.first.strategy, one.second.strategy): one for one in contest.matches if one.budgets == budgets}


def test_every_pair_meets_at_each_budget_and_by_area_and_is_a_line() -> None:
    (contest,) = contests(*make_cells(BOTH))
    assert list(found(contest, 20)) == [("random", "margin"), ("random", "entropy"), ("margin", "entropy")]
    match = found(contest, 20)["random", "margin"]
    assert match.tests.mean == pytest.approx(-0.03)
    assert match.tests.t_p == pytest.approx(stats.ttest_rel([50, 51, 52], [52, 54, 56]).pvalue)
    # Both areas begin at the same height, so half of the difference is left.
    assert found(contest, 10, 20)["random", "margin"].tests.mean == pytest.approx(-0.015)
    assert (match.family, match.verdict) == (3, "not told apart")
    assert match.adjusted == pytest.approx(3 * match.tests.t_p)
    (alone,) = contests(*make_cells({name: THREE[name] for name in ("random", "margin")}))
    assert [(one.family, one.verdict) for one in alone.matches] == [(1, "worse")]
    cells = make_cells({"random": {20: [1, 2]}}, setting="a=1") + make_cells({"margin": {20: [1, 2]}}, setting="a=2")
    assert contests(*cells) == ()
    rows = csv_lines(judgement.pairs_csv(contests(*make_cells(BOTH, same=[10]))))
    assert [(row["measure"], row["budgets"]) for row in rows[::3]] == [
        ("area", "10 20"),
        ("miou", "10"),
        ("miou", "20"),
    ]
    start, last = rows[3], rows[6]
    assert (start["verdict"], start["p_t_holm"], start["family"]) == ("same networks", "", "0")
    names = ("first", "second", "seeds", "n", "split", "checkpoint", "family", "verdict")
    texts = ["random", "margin", "0 1 2", "3", "test", "last", "3", "not told apart"]
    assert [last[name] for name in names] == texts
    numbers = [float(last[name]) for name in ("difference", "p_t", "p_t_holm", "p_sign_flip", "p_wilcoxon")]
    assert numbers == pytest.approx([-0.03, 0.0351, 0.1052, 0.25, 0.25], abs=1e-4)


def test_pairs_are_compared_over_the_seeds_that_both_have_but_not_of_the_same_networks() -> None:
    percent = {"random": {10: [40, 41, 42], 20: [50, math.nan, 52]}, "margin": {10: [40, 41, None], 20: [51, 52, 54]}}
    (contest,) = contests(*make_cells(percent))
    seeds = {one.budgets: (one.seeds, one.tests.n) for one in contest.matches}
    assert seeds == {(10,): ((0, 1), 2), (20,): ((0, 2), 2), (10, 20): ((0,), 1)}
    assert found(contest, 10, 20)["random", "margin"].verdict == "too few seeds"
    (contest,) = contests(*make_cells(BOTH, same=[10]))
    for match in found(contest, 10).values():
        assert (match.verdict, match.family, math.isnan(match.adjusted)) == ("same networks", 0, True)
    assert found(contest, 10, 20)["random", "margin"].verdict == "not told apart"
    (contest,) = contests(*make_cells(FIRST))
    assert [(one.tests.t_p, one.verdict) for one in contest.matches] == [(1.0, "not told apart")] * 3


def test_the_area_is_over_the_budgets_of_all_strategies_and_full_supervision_does_not_compete(study: Study) -> None:
    percent = {"random": dict.fromkeys((10, 20, 30), (1, 2)), "margin": {10: [1, 2], 20: [2, 3]}}
    (contest,) = contests(*make_cells(percent | {"entropy": dict.fromkeys((10, 20), (None, None))}))
    assert contest.budgets == (10, 20)
    assert {one.strategy for one in contest.scores} == {"random", "margin"}
    grid = "grid=[{acquire.strategy: [random, margin], seed: [0, 1], budget: [10, 20, full]}]"
    results = study.filled(lambda t: matrix(80 if t.acquire.strategy == "margin" else 60 + t.seed), grid)
    (contest,) = judgement.judge(results, build_cells(results))
    assert [one.strategy for one in contest.lines] == ["random", "margin"]
    assert found(contest, 20)["random", "margin"].tests.mean == pytest.approx(-0.0975)


def test_the_pair_table_shows_area_and_largest_budget() -> None:
    table = judgement.pair_table(contests(*make_cells({name: BOTH[name] for name in ("margin", "random")}, same=[10])))
    assert table.header[2:] == (
        *("first", "second", "measure", "difference", "95 % interval", "n"),
        *("p (t)", "p (sign flips)", "p (Wilcoxon)", "p (t, Holm)", "the first is"),
    )
    # 4.303 / sqrt(3) = 2.48 points around 3, and half of both by area.
    rest = ("3", "0.035", "0.250", "0.250", "0.035", "better")
    assert [row[2:] for row in table.rows] == [
        ("margin", "random", "area, 10 to 20", "+1.5", "+0.3 to +2.7", *rest),
        ("margin", "random", "mIoU at 20", "+3.0", "+0.5 to +5.5", *rest),
    ]
    assert "Holm's correction covers all pairs of one setting by one measure" in table.caption
    told = "At 10 pixels per image, strategies with the same networks for every seed are not compared."
    assert (table.notes, len(table.alignment)) == ((told,), len(table.header))
    table = judgement.pair_table(contests(*make_cells({"margin": {20: [52]}, "random": {20: [50]}})))
    assert table.rows[0][4:] == ("mIoU at 20", "+2.0", "-", "1", "-", "-", "-", "-", "too few seeds")
    assert "area" not in table.caption
    texts = {0.0004: "< 0.001", 0.0006: "0.001", 0.0351: "0.035", 1.0: "1.000", math.nan: "-"}
    assert {p: judgement.p_text(p) for p in texts} == texts


def test_wins_are_counted_over_settings_and_budgets() -> None:
    won, drawn = [55.0, 56.1, 57.0], [51.0, 50.0, 52.0]
    one = {"random": {10: FIRST["random"][10], 20: [50, 51, 52], 30: [51, 51, 51]}}
    one["margin"] = {10: FIRST["random"][10], 20: won, 30: drawn}
    other = {"margin": {20: [50, 51, 52]}, "random": {20: won}, "entropy": {20: [None, None, 50]}}
    cells = make_cells(one, same=[10], setting="a=1") + make_cells(other, setting="a=2")
    assert set(column(judgement.pair_table(contests(*cells)), "setting")) == {"a=1", "a=2"}
    table = judgement.win_matrix(contests(*cells))
    assert table.header == ("strategy", "random", "margin", "entropy", "wins")
    # Budget 10 is of the same networks, and entropy has a single seed.
    rows = (("random", "-", "1/3", "-", "1/3"), ("margin", "1/3", "-", "-", "1/3"), ("entropy", "-", "-", "-", "-"))
    assert table.rows == rows
    table = judgement.win_matrix(contests(*make_cells({"random": {20: [50, 51, 52]}, "margin": {20: [55, 56.1, 57]}})))
    assert table.rows == (("margin", "-", "1/1", "1/1"), ("random", "0/1", "-", "0/1"))


def test_leaving_a_seed_out_may_change_the_ranking() -> None:
    # Means 53, 52, 50.7. Without seed 2 margin has 50, entropy 52, random 50.5: two of three pairs turn.
    percent = {"random": {20: [50, 51, 51]}, "margin": {20: [50, 50, 59]}, "entropy": {20: [52, 52, 52]}}
    table = judgement.stability_table(contests(*make_cells(percent)))
    assert table.rows[0][2:] == ("mIoU at 20", "margin > entropy > random", "3", "2/3", "-0.33")
    percent = {"random": {10: [40, 41, 42], 20: [50, 51, 52]}, "margin": {10: [40, 41, 42], 20: [55, 56, 57]}}
    table = judgement.stability_table(contests(*make_cells(percent, same=[10])))
    assert table.rows[0][2:] == ("area, 10 to 20", "margin > random", "3", "3/3", "1.00")
    table = judgement.stability_table(contests(*make_cells(FIRST)))
    assert table.rows[0][3:] == ("random = margin = entropy", "3", "3/3", "-")
    assert judgement.stability_table(contests(*make_cells({"random": {20: [1, 2]}, "margin": {20: [3, 5]}}))) is None


def test_the_best_mean_and_what_is_not_told_apart_from_it_are_bold() -> None:
    strong = judgement.best_and_ties(contests(*make_cells(THREE)))
    assert strong == {(line("margin"), 20), (line("entropy"), 20)}
    percent = {"random": {20: [50]}, "margin": {20: [52]}, "entropy": {20: [52]}}
    assert judgement.best_and_ties(contests(*make_cells(percent))) == {(line("margin"), 20), (line("entropy"), 20)}
    strong = judgement.best_and_ties(contests(*make_cells(FIRST, same=[10])))
    assert {place.strategy for place, _ in strong} == set(FIRST)
    percent = {"random": {10: [1, 2, 3], 20: [5, 6, 7]}, "margin": {10: [11, 12, 13.1]}}
    assert judgement.best_and_ties(contests(*make_cells(percent))) == {(line("margin"), 10)}
    for percent in ({}, {"margin": {20: [1, 2]}}, {"margin": {20: [None]}, "random": {20: [None]}}):
        judged = contests(*make_cells(percent))  # without two strategies there are no tables
        tables = judgement.pair_table, judgement.win_matrix, judgement.stability_table, judgement.best_and_ties
        assert [table(judged) or None for table in tables] == [None] * 4


RANDOM = [50.0, 51.0, 50.5, 51.5, 52.0, 50.0]
SAME = "At 10 pixels per image, strategies with the same networks for every seed are not compared."


def paragraphs(*cells: Cell) -> tuple[str, ...]:
    return verdicts(contests(*cells)).sentences


def above_random(*points: float | None, setting: str = "") -> tuple[Cell, ...]:
    """Margin so many points above random at 20 pixels, one number a seed; both start from the same networks."""
    start = RANDOM[: len(points)]
    margin = [None if point is None else chance + point for chance, point in zip(start, points, strict=True)]
    percent = {"random": {10: start, 20: start}, "margin": {10: start, 20: margin}}
    return make_cells(percent, same=[10], setting=setting)


def test_few_seeds_hardly_tell_anything_five_can_not_reach_five_percent_by_signs_and_six_can() -> None:
    assert paragraphs(*above_random(2)) == (
        "By the area under the budget curve (10 to 20 pixels per image), margin is first with 51.0 % and random behind "
        "it with 50.0 %. On the one seed that both have, margin is 1.0 points above random; one seed allows no test. "
        f"{SAME}",
        "With one seed no test is possible; a two-sided sign-flip test below p = 0.05 needs 6 seeds.",
    )
    # The area takes half of the differences: 1 with a standard error of 0.5, t = 2, 12.706 standard errors.
    assert (
        "Over the 2 seeds that both have, margin is 1.0 points above random (95 % interval -5.4 to +7.4); the paired t "
        "test does not tell them apart (p = 0.295)."
    ) in paragraphs(*above_random(1, 3))[0]
    first, limits = paragraphs(*above_random(1, 2, 3, 4, 5))
    # 1.5 with a standard error of sqrt(2.5 / 5) / 2 = 0.354: t = 4.243, and 2.776 of them are 0.98.
    assert "(95 % interval +0.5 to +2.5); the paired t test tells them apart (p = 0.013)" in first
    assert limits == (
        "With 5 paired seeds a two-sided sign-flip test cannot go below 2/2^5 = 0.0625, whatever the results are, nor "
        "can Wilcoxon's: p < 0.05 needs 6 seeds. The t test can go lower because it assumes normally "
        "distributed differences, which so few seeds cannot show."
    )
    six = paragraphs(*above_random(1, 2, 3, 4, 5, 6))[1]
    assert six == "With 6 paired seeds a two-sided sign-flip test can reach p < 0.05."


def test_three_strategies_have_three_pairs_to_correct_for() -> None:
    def three(n: int) -> tuple[str, ...]:
        """Of margin about one point above random, entropy about as good as random."""
        start = [50.0 + seed for seed in range(n)]
        margin = [value + 1 + seed % 2 / 10 for seed, value in enumerate(start)]
        entropy = [value - 0.4 + 0.8 * (seed % 2) for seed, value in enumerate(start)]
        return paragraphs(*make_cells({"random": {20: start}, "margin": {20: margin}, "entropy": {20: entropy}}))

    assert three(6) == (
        "By mIoU at 20 pixels per image, margin is first with 53.5 % and random second with 52.5 %. Over the 6 seeds "
        "that both have, margin is 1.1 points above random (95 % interval +1.0 to +1.1); the paired t test tells them "
        "apart (p < 0.001 after Holm's correction). Of 3 pairs of strategies, 2 are told apart after Holm's "
        "correction.",
        "With 6 paired seeds a two-sided sign-flip test can go down to 2/2^6 = 0.03125: enough for p < 0.05 in one "
        "pair, but not after Holm's correction over 3 pairs, which needs 7 seeds.",
    )
    correction = "7 after Holm's correction over 3 pairs."
    assert three(1)[-1].endswith(f"needs 6 seeds for one pair, {correction}")
    assert f"p < 0.05 needs 6 seeds for one pair, {correction} The t test" in three(5)[-1]
    assert "can reach p < 0.05, also after Holm's correction over 3 pairs." in three(7)[-1]
    percent = {"a": {20: [1, 2, 3]}, "b": {20: [1.1, 1.9, 3]}, "c": {20: [4, 3, 2]}}
    assert "Of 3 pairs of strategies, none is told apart after Holm's" in paragraphs(*make_cells(percent))[0]


def test_missing_seeds_are_named() -> None:
    first, limits = paragraphs(*above_random(1, 2, None, 3, 5))
    assert "Over the 4 seeds that both have, margin is 1.4 points above random" in first
    assert "Seeds are missing at some budget: margin has 4 of 5; pairs are compared over the seeds that" in first
    assert "With 4 paired seeds" in limits
    cells = make_cells({"a": {20: [1, 2, 3]}, "b": {20: [2, 3, 5]}, "c": {20: [None, 9, 9]}})
    assert paragraphs(*cells)[-1].startswith("With at most 3 paired seeds a two-sided")
    first, _ = paragraphs(*make_cells({"random": {20: [50, 51, None]}, "margin": {20: [49, 48, 60]}}))
    assert "first with 52.3 % and random behind it with 50.5 %." in first
    assert "margin is 2.0 points below random" in first
    first, limits = paragraphs(*make_cells({"random": {20: [50, None]}, "margin": {20: [None, 52]}}))
    assert "They have no seed in common, so they cannot be compared." in first
    assert limits.startswith("With no seed in common no test is possible;")


def test_another_order_at_the_largest_budget_equal_strategies_and_small_differences_are_said() -> None:
    first = paragraphs(*make_cells({"random": {20: [1, 2, 3]}, "margin": {20: [1, 2, 3]}}))[0]
    assert "random and margin are first with 2.0 % each. Over the 3 seeds" in first
    assert "random is level with margin (95 % interval +0.0 to +0.0)" in first
    first = paragraphs(*make_cells({"random": {20: [50, 51]}, "margin": {20: [50.01, 51.02]}}))[0]
    assert "margin is less than 0.1 points above random" in first
    (first,) = paragraphs(*make_cells({"random": {10: [1, 2]}, "margin": {10: [1, 2]}}, same=[10]))
    assert first.startswith("There is no budget at which all strategies have results from networks of their own")

    def at(margin: Sequence[float], entropy: Sequence[float]) -> str:
        start: dict[int, Sequence[float | None]] = {10: [40, 41], 20: [60, 61]}
        percent = {"margin": start | {30: margin}, "entropy": {10: [40, 41], 20: [50, 51], 30: entropy}}
        return paragraphs(*make_cells(percent | {"random": {10: [30, 31], 20: [40, 41], 30: [61, 62]}}))[0]

    other = "The order is different at the largest budget: at 30, entropy is first with 63.5 %."
    assert other in at([62, 63], [63, 64])
    behind = "At the largest budget, 30, margin is first too, but the order behind it differs."
    assert behind in at([62, 63], [59, 60])
    assert "largest budget" not in at([64, 65], [63, 64])


def test_settings_have_a_paragraph_each_and_strategies_without_results_are_said_so() -> None:
    found = paragraphs(*above_random(1, 2, 3, setting="a=1"), *above_random(3, 2, 1, setting="a=2"))
    assert [text.split(".")[0] for text in found[:2]] == ["Setting a=1", "Setting a=2"]
    assert len(found) == 3  # they share their limits
    assert verdicts(contests(*make_cells({"margin": {20: [1, 2]}}))) is verdicts(()) is None
    for none in ([], [None, None]):
        (first,) = paragraphs(*make_cells({"random": {20: [1, 2]}, "margin": {20: none}}))
        assert first.startswith("Fewer than two strategies have results, so nothing can be compared.")


# The budget at which 95 % of full supervision is reached, against numbers worked out by hand and by scipy

MARGIN, FULL, INF = line("margin"), line(""), math.inf


def test_a_crossing_lies_on_the_straight_line_between_two_budgets() -> None:
    assert first_crossing([10, 20, 40], [-3, -1, 4]) == 24
    assert first_crossing([10, 20, 40], [-1, 1, -1]) == 15  # the first one counts
    ends = [first_crossing([10, 20], heights) for heights in ([-1, 0], [0, 1], [1, -1], [-2, -1], [math.nan, 1])]
    assert ends == pytest.approx([20, 10, -INF, INF, math.nan], nan_ok=True)
    for crossings, texts in {
        (45.6, 31.4, INF): ("46", "31 to beyond 100"),
        (-INF, -INF, -INF): ("below 10", "below 10"),
        (INF, 88.0, INF): ("not reached by 100", "88 to beyond 100"),
        (2.04, 1.0, 9.5): ("2", "1 to 9.5"),
        (45.6, math.nan, math.nan): ("46", "-"),
    }.items():
        found = Threshold(MARGIN, 0.6, 0.57, (10, 100), *crossings, 5, 5)
        assert (estimate_text(found), interval_text(found)) == texts


def check_interval(found: Threshold, first: Any, second: Any) -> None:
    """Between 20 and 40 pixels, from the tests of the differences to the level there."""
    first, second = (each.confidence_interval(0.95) for each in (first, second))
    assert found.low == pytest.approx(20 + 20 * first.high / (first.high - second.high))
    assert found.high == pytest.approx(20 + 20 * first.low / (first.low - second.low))
    assert 20 < found.low < found.estimate < found.high < 40


def test_seeds_that_are_shared_are_paired_others_are_compared_as_two_samples() -> None:
    low, high = {0: 0.50, 1: 0.53, 2: 0.56}, {2: 0.64, 0: 0.60, 1: 0.61}
    full = {1: 0.61, 2: 0.62, 0: 0.57}
    (found,) = thresholds([cell(MARGIN, 20, low), cell(MARGIN, 40, high), cell(FULL, "full", full)])
    assert (found.full, found.level) == (pytest.approx(0.6), pytest.approx(0.57))
    # From 0.53 up to 37/60 the level 0.57 is 6/13 of the way.
    assert found.estimate == pytest.approx(20 + 20 * 6 / 13)
    differences = [[values[seed] - 0.95 * full[seed] for seed in range(3)] for values in (low, high)]
    check_interval(found, *(stats.ttest_1samp(each, 0.0) for each in differences))
    curve = {20: [0.50, 0.505, 0.51], 40: [0.61, 0.62, 0.63, 0.66]}
    cells = [cell(MARGIN, budget, dict(enumerate(values))) for budget, values in curve.items()]
    (found,) = thresholds([*cells, cell(FULL, "full", dict(enumerate([0.60, 0.61, 0.605], start=5)))])
    scaled = [0.95 * value for value in (0.60, 0.61, 0.605)]
    check_interval(found, *(stats.ttest_ind(values, scaled, equal_var=False) for values in curve.values()))


def test_one_seed_has_no_interval_and_a_line_without_a_counterpart_with_values_no_threshold() -> None:
    full = cell(FULL, "full", {0: 0.8})
    (found,) = thresholds([cell(MARGIN, 10, {0: 0.5}), cell(MARGIN, 20, {0: 0.9}), full])
    assert (found.low, found.estimate, found.high) == pytest.approx((math.nan, 16.5, math.nan), nan_ok=True)
    assert (interval_text(found), found.n, found.expected) == ("-", 1, 3)
    assert thresholds([cell(replace(MARGIN, architecture="fpn"), 10, {0: 0.5}), full]) == ()
    assert thresholds([cell(MARGIN, 10, {}), full]) == ()
    assert thresholds([cell(MARGIN, 10, {0: 0.5}), cell(FULL, "full", {})]) == ()


def test_the_table_has_a_row_a_line_and_counts_the_fewest_seeds(study: Study) -> None:
    heights = {("margin", 10): 400, ("margin", 20): 600, ("random", 10): 300, ("random", 20): 500}

    def measure(trial: Trial) -> Matrix | None:
        place = trial.acquire.strategy, trial.budget
        return None if (*place, trial.seed) == ("margin", 20, 2) else exact(heights.get(place, 600))

    asked = "{acquire.strategy: [margin, random], seed: [0, 1, 2], budget: [10, 20]}"
    results = study.filled(measure, f"grid=[{asked}, {{seed: [0, 1], budget: [full]}}]")
    table = threshold_table(results, build_cells(results))
    assert table.header[3:] == ("full (%)", "95 % of it (%)", "pixels per image", "95 % interval", "n")
    # 0.57 lies 17/20 of the way from 0.4 to 0.6; the other curve ends at 0.5.
    assert [row[2:] for row in table.rows] == [
        ("margin", "60.0", "57.0", "18", "18", "2/3"),
        ("random", "60.0", "57.0", "not reached by 20", "beyond 20", "3"),
    ]
    without = study.results(experiment())  # full supervision
    assert threshold_table(without, build_cells(without)) is None
