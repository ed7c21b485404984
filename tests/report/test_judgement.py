"""Strategies against each other: which pairs meet, over which seeds, and what is said of them."""

import math
import time

import numpy as np
import pytest
from scipy import stats

from pixelpick_ray.report.cells import build_cells
from pixelpick_ray.report.judgement import (
    CSV_COLUMNS,
    Contest,
    Match,
    best_and_ties,
    judge,
    p_text,
    pair_table,
    pairs_csv,
    stability_table,
    win_matrix,
)
from tests.support.contest import contests, line, make_cell, make_cells
from tests.support.study import Study, column, csv_lines, matrix

# margin - random is 2, 3, 4 (p = 0.035), margin - entropy 1, 3, 5 (p = 0.122), entropy - random 1, 0, -1 (p = 1).
THREE = {"random": {20: [50, 51, 52]}, "margin": {20: [52, 54, 56]}, "entropy": {20: [51, 51, 51]}}
FIRST = {strategy: {10: [40.0, 41.0, 42.0]} for strategy in THREE}
BOTH = {strategy: FIRST[strategy] | THREE[strategy] for strategy in THREE}


def found(contest: Contest, *budgets: int) -> dict[tuple[str, str], Match]:
    return {(one.first.strategy, one.second.strategy): one for one in contest.matches if one.budgets == budgets}


def test_every_pair_meets_at_each_budget_and_by_area() -> None:
    (contest,) = contests(*make_cells(BOTH))
    assert {one.budgets for one in contest.matches} == {(10,), (20,), (10, 20)}
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


def test_pairs_are_compared_over_the_seeds_that_both_have() -> None:
    percent = {"random": {10: [40, 41, 42], 20: [50, math.nan, 52]}, "margin": {10: [40, 41, None], 20: [51, 52, 54]}}
    (contest,) = contests(*make_cells(percent))
    seeds = {one.budgets: (one.seeds, one.tests.n) for one in contest.matches}
    assert seeds == {(10,): ((0, 1), 2), (20,): ((0, 2), 2), (10, 20): ((0,), 1)}
    assert found(contest, 10, 20)["random", "margin"].verdict == "too few seeds"


def test_the_same_networks_are_not_tested_but_equal_values_of_others_are() -> None:
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
    assert {one.budgets for one in contest.matches} == {(10,), (20,), (10, 20)}
    grid = "grid=[{acquire.strategy: [random, margin], seed: [0, 1], budget: [10, 20, full]}]"
    results = study.filled(lambda t: matrix(80 if t.acquire.strategy == "margin" else 60 + t.seed), grid)
    (contest,) = judge(results, build_cells(results))
    assert [one.strategy for one in contest.lines] == ["random", "margin"]
    assert found(contest, 20)["random", "margin"].tests.mean == pytest.approx(-0.0975)


def test_the_pair_table_shows_area_and_largest_budget() -> None:
    table = pair_table(contests(*make_cells({name: BOTH[name] for name in ("margin", "random")}, same=[10])))
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
    assert "Holm's correction is over all pairs of one setting by one measure" in table.caption
    told = "At 10 pixels per image, strategies with the same networks for every seed are not compared."
    assert (table.notes, len(table.alignment)) == ((told,), len(table.header))
    table = pair_table(contests(*make_cells({"margin": {20: [52]}, "random": {20: [50]}})))
    assert table.rows[0][4:] == ("mIoU at 20", "+2.0", "-", "1", "-", "-", "-", "-", "too few seeds")
    assert "area" not in table.caption
    table = pair_table(contests(*make_cells(THREE, setting="a=1"), *make_cells(THREE, setting="a=2")))
    assert column(table, "setting") == ["a=1"] * 3 + ["a=2"] * 3
    texts = {0.0004: "< 0.001", 0.0006: "0.001", 0.0351: "0.035", 1.0: "1.000", math.nan: "-"}
    assert {p: p_text(p) for p in texts} == texts


def test_without_two_strategies_there_are_no_tables() -> None:
    for percent in ({}, {"margin": {20: [1, 2]}}, {"margin": {20: [None]}, "random": {20: [None]}}):
        judged = contests(*make_cells(percent))
        assert (pair_table(judged), win_matrix(judged), stability_table(judged)) == (None, None, None)
        assert best_and_ties(judged) == frozenset()


def test_the_csv_has_every_comparison() -> None:
    rows = csv_lines(pairs_csv(contests(*make_cells(BOTH, same=[10]))))
    assert tuple(rows[0]) == CSV_COLUMNS
    measures = [(row["measure"], row["budgets"]) for row in rows[::3]]
    assert measures == [("area", "10 20"), ("miou", "10"), ("miou", "20")]
    start, last = rows[3], rows[6]
    assert (start["verdict"], start["p_t_holm"], start["family"]) == ("same networks", "", "0")
    names = ("first", "second", "seeds", "n", "split", "checkpoint", "family", "verdict")
    texts = ["random", "margin", "0 1 2", "3", "test", "last", "3", "not told apart"]
    assert [last[name] for name in names] == texts
    numbers = [float(last[name]) for name in ("difference", "p_t", "p_t_holm", "p_sign_flip", "p_wilcoxon")]
    assert numbers == pytest.approx([-0.03, 0.0351, 0.1052, 0.25, 0.25], abs=1e-4)


def test_wins_are_counted_over_settings_and_budgets() -> None:
    won, drawn = [55.0, 56.1, 57.0], [51.0, 50.0, 52.0]
    one = {"random": {10: FIRST["random"][10], 20: [50, 51, 52], 30: [51, 51, 51]}}
    one["margin"] = {10: FIRST["random"][10], 20: won, 30: drawn}
    other = {"margin": {20: [50, 51, 52]}, "random": {20: won}, "entropy": {20: [None, None, 50]}}
    table = win_matrix(contests(*make_cells(one, same=[10], setting="a=1"), *make_cells(other, setting="a=2")))
    assert table.header == ("strategy", "random", "margin", "entropy", "wins")
    # Budget 10 is of the same networks, and entropy has a single seed.
    rows = (("random", "-", "1/3", "-", "1/3"), ("margin", "1/3", "-", "-", "1/3"), ("entropy", "-", "-", "-", "-"))
    assert table.rows == rows
    table = win_matrix(contests(*make_cells({"random": {20: [50, 51, 52]}, "margin": {20: [55, 56.1, 57]}})))
    assert table.rows == (("margin", "-", "1/1", "1/1"), ("random", "0/1", "-", "0/1"))


def test_leaving_a_seed_out_may_change_the_ranking() -> None:
    # Means 53, 52, 50.7. Without seed 2 margin has 50, entropy 52, random 50.5: two of three pairs turn.
    percent = {"random": {20: [50, 51, 51]}, "margin": {20: [50, 50, 59]}, "entropy": {20: [52, 52, 52]}}
    table = stability_table(contests(*make_cells(percent)))
    assert table.rows[0][2:] == ("mIoU at 20", "margin > entropy > random", "3", "2/3", "-0.33")
    percent = {"random": {10: [40, 41, 42], 20: [50, 51, 52]}, "margin": {10: [40, 41, 42], 20: [55, 56, 57]}}
    table = stability_table(contests(*make_cells(percent, same=[10])))
    assert table.rows[0][2:] == ("area, 10 to 20", "margin > random", "3", "3/3", "1.00")
    table = stability_table(contests(*make_cells(FIRST)))
    assert table.rows[0][3:] == ("random = margin = entropy", "3", "3/3", "-")
    assert stability_table(contests(*make_cells({"random": {20: [1, 2]}, "margin": {20: [3, 5]}}))) is None


def test_the_best_mean_and_what_is_not_told_apart_from_it_are_bold() -> None:
    strong = best_and_ties(contests(*make_cells(THREE)))
    assert strong == {(line("margin"), 20), (line("entropy"), 20)}
    percent = {"random": {20: [50]}, "margin": {20: [52]}, "entropy": {20: [52]}}
    assert best_and_ties(contests(*make_cells(percent))) == {(line("margin"), 20), (line("entropy"), 20)}
    strong = best_and_ties(contests(*make_cells(FIRST, same=[10])))
    assert {place.strategy for place, _ in strong} == set(FIRST)
    percent = {"random": {10: [1, 2, 3], 20: [5, 6, 7]}, "margin": {10: [11, 12, 13.1]}}
    assert best_and_ties(contests(*make_cells(percent))) == {(line("margin"), 10)}


def test_many_strategies_budgets_and_seeds_take_little_time() -> None:
    random = np.random.default_rng(0)
    places = [(f"s{number}", budget) for number in range(10) for budget in range(10, 101, 10)]
    cells = [make_cell(line(name), budget, list(random.normal(50, 1, 100)), name) for name, budget in places]
    contests(*make_cells(THREE))  # scipy.stats is imported
    start = time.process_time()
    judged = contests(*cells)
    pair_table(judged), pairs_csv(judged), win_matrix(judged), stability_table(judged), best_and_ties(judged)
    assert time.process_time() - start < 5  # about half a second; the limit is for busy machines
    assert len(judged[0].matches) == 11 * 45
