"""Numbers that were calculated by hand or stand in printed tables."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from pixelpick_ray.active.metrics import area_under_curve
from pixelpick_ray.report.paired import FloatArray, Paired, compare_all, kendall_tau, sign_flip_p, wilcoxon_p
from pixelpick_ray.report.statistics import (
    cohen_kappa,
    holm,
    mean,
    student_quantile,
    summarise,
    welch_interval,
    wilson_interval,
)

VALUES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


def test_summaries_divide_by_n_minus_one_and_leave_out_nan() -> None:
    summary = summarise([0.20, math.nan, 0.25, 0.30])
    half = 4.3027 * 0.05 / math.sqrt(3)  # from a printed table
    found = (summary.mean, summary.std, summary.n, summary.low, summary.high)
    assert found == pytest.approx((0.25, 0.05, 3, 0.25 - half, 0.25 + half), abs=1e-5)
    summary = summarise([0.5])
    assert (summary.mean, summary.n) == (0.5, 1)
    assert all(math.isnan(value) for value in (summary.std, summary.low, summary.high, mean([])))


@given(st.floats(0.01, 0.999), st.floats(0.2, 100_000))
def test_quantiles_are_those_of_scipy(confidence: float, degrees: float) -> None:
    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert student_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-9)
    for outside in ((0.0, 3), (1.0, 3), (0.95, 0), (0.95, math.nan)):
        with pytest.raises(ValueError, match="need 0 < confidence < 1"):
            student_quantile(*outside)


def test_welch_s_interval_where_a_sample_does_not_vary_or_has_one_run() -> None:
    half = 2.776 * 0.5 / math.sqrt(5)  # degrees 4 are of the sample that varies
    assert welch_interval(0.5, 0.5, 5, 0.1, 0.0, 3) == pytest.approx((0.4, 0.4 - half, 0.4 + half), abs=1e-3)
    assert welch_interval(0.75, 0.0, 2, 0.5, 0.0, 5) == (0.25, 0.25, 0.25)
    for n1, n2 in ((1, 5), (5, 1), (0, 0)):
        difference, *ends = welch_interval(0.75, 0.1, n1, 0.5, 0.1, n2)
        assert (difference, *map(math.isnan, ends)) == (0.25, True, True)


@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy's own remark on samples that hardly vary
@given(VALUES, VALUES, st.floats(0.5, 0.99))
def test_welch_is_that_of_scipy(first: list[float], second: list[float], confidence: float) -> None:
    one, two = summarise(first), summarise(second)
    assume(max(one.std, two.std) > 1e-6)
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(confidence)
    found = welch_interval(one.mean, one.std, one.n, two.mean, two.std, two.n, confidence)
    assert found == pytest.approx((one.mean - two.mean, expected.low, expected.high), abs=1e-9)


def test_the_area_is_the_mean_height() -> None:
    assert area_under_curve([10, 20, 40], [0.2, 0.4, 0.6]) == pytest.approx((10 * 0.3 + 20 * 0.5) / 30)
    assert area_under_curve([10], [0.7]) == 0.7
    for budgets, values in (([20, 10], [1, 2]), ([10, 10], [1, 2]), ([], [])):
        with pytest.raises(ValueError, match="must be non-empty and ascending"):
            area_under_curve(budgets, values)


@given(st.integers(1, 10_000), st.data())
def test_wilson_s_interval_is_that_of_scipy(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert all(map(math.isnan, wilson_interval(0, 0)))  # a share of nothing


def test_kappa_is_agreement_beyond_chance() -> None:
    # Both yes, yes and no, no and yes, both no; agreement 60 of 100; by chance 0.6 x 0.7 + 0.4 x 0.3 = 0.54.
    for counts, kappa in {(45, 15, 25, 15): 0.06 / 0.46, (30, 0, 0, 20): 1.0, (0, 25, 25, 0): -1.0}.items():
        pairs = [pair for pair, count in zip(itertools.product("yn", "yn"), counts, strict=True) for _ in range(count)]
        assert cohen_kappa(pairs) == pytest.approx(kappa, abs=1e-12)
    # Agreement 3 of 6; by chance (2 x 3 + 3 x 1 + 1 x 2) of 36.
    pairs = [("a", "a"), ("a", "c"), ("b", "b"), ("b", "a"), ("b", "a"), ("c", "c")]
    assert cohen_kappa(pairs) == pytest.approx((1 / 2 - 11 / 36) / (1 - 11 / 36))
    assert math.isnan(cohen_kappa([]))
    assert math.isnan(cohen_kappa([("a", "a")] * 5))  # chance agrees fully


def test_holm_multiplies_by_the_tests_that_are_left_and_never_falls() -> None:
    # By rank: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert (holm([0.5, 0.9]), holm([])) == ((1.0, 1.0), ())
    first, second, third = holm([0.02, math.nan, 0.03])
    assert (first, third) == pytest.approx((0.04, 0.04))
    assert math.isnan(second)


# Paired tests against scipy, brute force and hands

# Whole numbers below 6 give ties and zeros on purpose.
DIFFERENCES = st.lists(st.integers(-5, 5), min_size=2, max_size=8)


def compare(differences: list[float]) -> Paired:
    return compare_all([(differences, [0.0] * len(differences))])[0]


def p_values(paired: Paired) -> tuple[float, float, float]:
    return paired.t_p, paired.flip_p, paired.wilcoxon_p


@given(DIFFERENCES)
def test_few_pairs_are_flipped_in_every_way(differences: list[int]) -> None:
    def by_all_flips(values: FloatArray) -> float:
        sums = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=len(values))]
        return float(np.mean(np.array(sums) >= abs(values.sum()) - 1e-9))

    values = np.array(differences, dtype=float)
    assert sign_flip_p(values[None])[0] == pytest.approx(by_all_flips(values))
    ranks = np.zeros(len(values))
    ranks[values != 0] = stats.rankdata(np.abs(values[values != 0]))
    assert wilcoxon_p(values[None])[0] == pytest.approx(by_all_flips(np.sign(values) * ranks))


def test_few_pairs_by_hand() -> None:
    # Mean 2, its standard error 1, t = 2; Student with one degree of freedom is Cauchy's distribution.
    found = compare([1.0, 3.0])
    assert (found.mean, found.n) == (2.0, 2)
    assert (found.low, found.high) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-4)
    assert p_values(found) == pytest.approx((1 - 2 * math.atan(2) / math.pi, 0.5, 0.5))
    # t = 2 sqrt(3), and Student with two degrees of freedom has 1 - t / sqrt(t**2 + 2) in both tails.
    found = compare([1.0, 2.0, 3.0])
    assert p_values(found) == pytest.approx((1 - math.sqrt(12 / 14), 0.25, 0.25))
    # Only the signs of 1 and 2 matter: two of four patterns reach a sum of 3.
    assert p_values(compare([0.0, 0.0, 1.0, 2.0]))[1:] == (0.5, 0.5)
    assert p_values(compare([0.5, 0.5, 0.5])) == (0.0, 0.25, 0.25)
    assert kendall_tau([1.0, 2.0, 3.0], [0.1, 0.3, 0.2]) == pytest.approx(1 / 3)  # two pairs agree, one does not
    assert kendall_tau([1.0, 2.0], [2.0, 1.0]) == -1.0
    assert math.isnan(kendall_tau([1.0, 2.0], [1.0, 1.0]))


def test_where_all_differences_are_zero_nothing_differs_and_fewer_than_two_allow_no_test() -> None:
    for n in (2, 5, 20):
        found = compare([0.0] * n)
        assert (found.mean, found.low, found.high, *p_values(found)) == (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    for values in ([], [0.5]):
        found = compare(values)
        assert found.n == len(values)
        assert all(math.isnan(value) for value in (found.low, found.high, *p_values(found)))
    nan = math.nan  # pairs with it are left out
    found = compare_all([([1.0, nan, 5.0, 4.0], [0.0, 1.0, 2.0, nan]), ([2.0, 4.0, 7.0], [1.0, 2.0, 4.0])])
    assert found == (compare([1.0, 3.0]), compare([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("n", [9, 14, 15, 20])
def test_without_ties_wilcoxon_s_test_is_that_of_scipy_and_a_tie_changes_nothing_for_others(n: int) -> None:
    rows = np.random.default_rng(n).normal(0.3, 1.0, (4, n))
    expected = [stats.wilcoxon(row).pvalue for row in rows]
    assert wilcoxon_p(rows) == pytest.approx(expected)
    if n == 20:
        rows[1, :3] = 0.25, -0.25, 0.0
        rows[2] = 0.0
        assert wilcoxon_p(rows) == pytest.approx([expected[0], stats.wilcoxon(rows[1]).pvalue, 1.0, expected[3]])


def test_many_pairs_are_flipped_at_random_but_always_alike() -> None:
    # Equal sizes make the test that of a coin: 13 of 18 heads.
    values = np.array([0.1] * 13 + [-0.1] * 5)
    alone, *together = *sign_flip_p(values[None]), *sign_flip_p(np.tile(values, (100, 1)))  # more than a block
    assert together == [alone] * 100
    assert alone == pytest.approx(stats.binomtest(13, 18).pvalue, abs=0.01)
    assert sign_flip_p(np.ones((1, 40)))[0] == pytest.approx(1e-4)
