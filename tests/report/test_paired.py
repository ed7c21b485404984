"""Paired tests against scipy, brute force and hands."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from pixelpick_ray.report.paired import FloatArray, Paired, compare_all, kendall_tau, sign_flip_p, wilcoxon_p

# Whole numbers below 6 give ties and zeros on purpose.
DIFFERENCES = st.lists(st.integers(-5, 5), min_size=2, max_size=8)


def compare(differences: list[float]) -> Paired:
    return compare_all([(differences, [0.0] * len(differences))])[0]


def p_values(paired: Paired) -> tuple[float, float, float]:
    return paired.t_p, paired.flip_p, paired.wilcoxon_p


def by_all_flips(values: FloatArray) -> float:
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=len(values))]
    return float(np.mean(np.array(sums) >= abs(values.sum()) - 1e-9))


def test_few_pairs_by_hand() -> None:
    # Mean 2, its standard error 1, t = 2; Student with one degree of freedom is Cauchy's distribution.
    found = compare([1.0, 3.0])
    assert (found.mean, found.n) == (2.0, 2)
    assert (found.low, found.high) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-4)
    assert p_values(found) == pytest.approx((1 - 2 * math.atan(2) / math.pi, 0.5, 0.5))
    # t = 2 sqrt(3), and Student with two degrees of freedom has 1 - t / sqrt(t**2 + 2) in both tails.
    found = compare([1.0, 2.0, 3.0])
    assert p_values(found) == pytest.approx((1 - math.sqrt(12 / 14), 0.25, 0.25))
    found = compare([0.01, 0.02, 0.011, 0.015, 0.03])
    assert (found.flip_p, found.wilcoxon_p) == (0.0625, 0.0625)
    assert p_values(compare([1.0, 1.0, -1.0]))[1:] == (1.0, 1.0)
    # Only the signs of 1 and 2 matter: two of four patterns reach a sum of 3.
    assert p_values(compare([0.0, 0.0, 1.0, 2.0]))[1:] == (0.5, 0.5)
    assert p_values(compare([0.5, 0.5, 0.5])) == (0.0, 0.25, 0.25)
    assert kendall_tau([1.0, 2.0, 3.0], [0.1, 0.3, 0.2]) == pytest.approx(1 / 3)  # two pairs agree, one does not
    assert kendall_tau([1.0, 2.0], [2.0, 1.0]) == -1.0
    assert math.isnan(kendall_tau([1.0, 2.0], [1.0, 1.0]))


def test_where_all_differences_are_zero_nothing_differs_and_fewer_than_two_allow_no_test() -> None:
    for n in (2, 5, 20):
        found = compare([0.0] * n)
        assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
        assert p_values(found) == (1.0, 1.0, 1.0)
    for values in ([], [0.5]):
        found = compare(values)
        assert found.n == len(values)
        assert all(math.isnan(value) for value in (found.low, found.high, *p_values(found)))


def test_a_pair_with_nan_is_left_out() -> None:
    nan = math.nan
    found = compare_all([([1.0, nan, 5.0, 4.0], [0.0, 1.0, 2.0, nan]), ([2.0, 4.0, 7.0], [1.0, 2.0, 4.0])])
    assert found == (compare([1.0, 3.0]), compare([1.0, 2.0, 3.0]))


@given(DIFFERENCES, st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_student_s_test_is_that_of_scipy(differences: list[int], other: list[float]) -> None:
    second = other[: len(differences)]
    first = [one + two for one, two in zip(differences, second, strict=True)]
    assume(len(set(differences)) > 1)
    expected = stats.ttest_rel(first, second)
    found = compare_all([(first, second)])[0]
    low, high = expected.confidence_interval(0.95)
    assert (found.t_p, found.low, found.high) == pytest.approx((expected.pvalue, low, high), abs=1e-9)


@given(DIFFERENCES)
def test_few_pairs_are_flipped_in_every_way(differences: list[int]) -> None:
    values = np.array(differences, dtype=float)
    assert sign_flip_p(values[None])[0] == pytest.approx(by_all_flips(values))
    ranks = np.zeros(len(values))
    ranks[values != 0] = stats.rankdata(np.abs(values[values != 0]))
    assert wilcoxon_p(values[None])[0] == pytest.approx(by_all_flips(np.sign(values) * ranks))


@pytest.mark.parametrize("n", [5, 9, 14, 15, 20, 60])
def test_without_ties_wilcoxon_s_test_is_that_of_scipy(n: int) -> None:
    rows = np.random.default_rng(n).normal(0.3, 1.0, (4, n))
    assert wilcoxon_p(rows) == pytest.approx([stats.wilcoxon(row).pvalue for row in rows])


def test_a_tie_in_one_list_changes_nothing_for_the_others() -> None:
    rows = np.random.default_rng(3).normal(0.3, 1.0, (4, 20))
    rows[1, :3] = 0.25, -0.25, 0.0
    rows[2] = 0.0
    expected = [stats.wilcoxon(row).pvalue for row in rows[[0, 1, 3]]]
    assert wilcoxon_p(rows) == pytest.approx([expected[0], expected[1], 1.0, expected[2]])


def test_pairs_are_flipped_as_scipy_permutes_them_many_at_random_but_always_alike() -> None:
    values = np.random.default_rng(7).normal(0.5, 1.0, 10)
    expected = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(values[None])[0] == pytest.approx(expected.pvalue)
    # Equal sizes make the test that of a coin: 13 of 18 heads.
    values = np.array([0.1] * 13 + [-0.1] * 5)
    first, second = sign_flip_p(np.stack([values, values]))
    assert first == second == sign_flip_p(values[None])[0]
    assert first == pytest.approx(stats.binomtest(13, 18).pvalue, abs=0.01)
    assert sign_flip_p(np.ones((1, 40)))[0] == pytest.approx(1e-4)


@given(DIFFERENCES)
def test_the_order_of_two_strategies_changes_only_the_sign(differences: list[int]) -> None:
    values = [float(value) for value in differences]
    one, other = compare(values), compare([-value for value in values])
    assert one.mean == -other.mean
    assert p_values(one) == pytest.approx(p_values(other))
