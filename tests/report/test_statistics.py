"""Numbers that were calculated by hand or stand in printed tables."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from pixelpick_ray.active.metrics import area_under_curve
from pixelpick_ray.report.statistics import (
    cohen_kappa,
    holm,
    interval,
    mean,
    pairs_needed,
    sample_std,
    smallest_sign_flip_p,
    student_quantile,
    summarise,
    welch_interval,
    wilson_interval,
)

VALUES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


def test_the_standard_deviation_divides_by_n_minus_one() -> None:
    assert sample_std([0.20, 0.25, 0.30]) == pytest.approx(0.05)
    assert sample_std([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    summary = summarise([0.5])
    assert (summary.mean, summary.n) == (0.5, 1)
    assert all(math.isnan(value) for value in (summary.std, summary.low, summary.high))
    assert math.isnan(mean([]))
    assert summarise([0.2, math.nan, 0.4]).n == 2
    assert summarise([0.2, math.nan, 0.4]).mean == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("confidence", "degrees", "quantile"),
    [(0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 3, 3.182), (0.95, 4, 2.776), (0.95, 29, 2.045), (0.99, 5, 4.032)],
)
def test_quantiles_are_those_of_the_printed_table(confidence: float, degrees: int, quantile: float) -> None:
    assert student_quantile(confidence, degrees) == pytest.approx(quantile, abs=5e-4)


def test_quantiles_outside_of_the_range_are_refused() -> None:
    for confidence, degrees in ((0.0, 3), (1.0, 3), (0.95, 0), (0.95, math.nan)):
        with pytest.raises(ValueError, match="need 0 < confidence < 1"):
            student_quantile(confidence, degrees)


def test_the_interval_is_that_of_student() -> None:
    half = 4.3027 * 0.05 / math.sqrt(3)
    assert interval([0.20, 0.25, 0.30]) == pytest.approx((0.25 - half, 0.25 + half), abs=1e-5)
    assert student_quantile(0.95, 100_000) == pytest.approx(1.95996, abs=1e-4)


@given(st.floats(0.01, 0.999), st.floats(0.2, 1000))
def test_quantiles_of_fractional_degrees_are_those_of_scipy(confidence: float, degrees: float) -> None:
    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert student_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-9)


def test_welch_s_interval_by_hand() -> None:
    # Degrees 2 (n - 1) = 8, printed quantile 2.306; the error is 0.6 sqrt(2 / 5).
    half = 2.306 * 0.6 * math.sqrt(2 / 5)
    assert welch_interval(51.0, 0.6, 5, 50.8, 0.6, 5) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-3)
    half = 2.776 * 0.5 / math.sqrt(5)  # degrees 4 are of the sample that varies
    assert welch_interval(0.5, 0.5, 5, 0.1, 0.0, 3) == pytest.approx((0.4, 0.4 - half, 0.4 + half), abs=1e-3)
    assert welch_interval(0.75, 0.0, 2, 0.5, 0.0, 5) == (0.25, 0.25, 0.25)


@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy's own remark on samples that hardly vary
@given(VALUES, VALUES, st.floats(0.5, 0.99))
def test_welch_is_that_of_scipy(first: list[float], second: list[float], confidence: float) -> None:
    one, two = summarise(first), summarise(second)
    assume(max(one.std, two.std) > 1e-6)
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(confidence)
    found = welch_interval(one.mean, one.std, one.n, two.mean, two.std, two.n, confidence)
    assert found == pytest.approx((one.mean - two.mean, expected.low, expected.high), abs=1e-9)


def test_one_run_has_a_difference_without_an_interval() -> None:
    for n1, n2 in ((1, 5), (5, 1), (0, 0)):
        difference, *ends = welch_interval(0.75, 0.1, n1, 0.5, 0.1, n2)
        assert difference == 0.25
        assert [math.isnan(end) for end in ends] == [True, True]


@given(VALUES)
def test_the_order_of_seeds_changes_nothing(values: list[float]) -> None:
    assert summarise(values) == summarise(values[::-1])


def test_the_area_is_the_mean_height() -> None:
    assert area_under_curve([10, 20, 40], [0.2, 0.4, 0.6]) == pytest.approx((10 * 0.3 + 20 * 0.5) / 30)
    assert area_under_curve([10], [0.7]) == 0.7
    for budgets, values in (([20, 10], [1, 2]), ([10, 10], [1, 2]), ([], [])):
        with pytest.raises(ValueError, match="must ascend"):
            area_under_curve(budgets, values)


@given(VALUES, st.floats(0, 1))
def test_a_flat_curve_has_its_height_as_area(values: list[float], height: float) -> None:
    assert area_under_curve(range(len(values)), [height] * len(values)) == pytest.approx(height)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_s_interval_is_that_of_newcombe_s_table(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3."""
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert all(map(math.isnan, wilson_interval(0, 0)))  # a share of nothing


@given(st.integers(1, 10_000), st.data())
def test_wilson_s_interval_is_that_of_scipy(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(
    ("both_yes", "yes_no", "no_yes", "both_no", "kappa"),
    [
        # Agreement 35 of 50; by chance 0.5 x 0.6 + 0.5 x 0.4 = 0.5.
        (20, 5, 10, 15, 0.4),
        # 60 of 100; 0.6 x 0.7 + 0.4 x 0.3 = 0.54. And 60 of 100; 0.6 x 0.3 + 0.4 x 0.7 = 0.46.
        (45, 15, 25, 15, 0.06 / 0.46),
        (25, 35, 5, 35, 0.14 / 0.54),
        (30, 0, 0, 20, 1.0),
        (0, 25, 25, 0, -1.0),
        (4, 6, 4, 6, 0.0),
    ],
)
def test_kappa_is_agreement_beyond_chance(both_yes: int, yes_no: int, no_yes: int, both_no: int, kappa: float) -> None:
    counts = {("y", "y"): both_yes, ("y", "n"): yes_no, ("n", "y"): no_yes, ("n", "n"): both_no}
    pairs = [pair for pair, count in counts.items() for _ in range(count)]
    assert cohen_kappa(pairs) == pytest.approx(kappa, abs=1e-12)
    assert cohen_kappa([(other, one) for one, other in pairs]) == cohen_kappa(pairs)


def test_kappa_takes_any_number_of_categories_but_one() -> None:
    # Agreement 3 of 6; by chance (2 x 3 + 3 x 1 + 1 x 2) of 36.
    pairs = [("a", "a"), ("a", "c"), ("b", "b"), ("b", "a"), ("b", "a"), ("c", "c")]
    assert cohen_kappa(pairs) == pytest.approx((1 / 2 - 11 / 36) / (1 - 11 / 36))
    assert math.isnan(cohen_kappa([]))
    assert math.isnan(cohen_kappa([("a", "a")] * 5))  # chance agrees fully


def test_holm_multiplies_by_the_tests_that_are_left_and_never_falls() -> None:
    # By rank: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.5, 0.9]) == (1.0, 1.0)
    assert holm([0.03]) == (0.03,)
    assert holm([]) == ()
    first, second, third = holm([0.02, math.nan, 0.03])
    assert (first, third) == pytest.approx((0.04, 0.04))
    assert math.isnan(second)


def test_few_pairs_keep_a_sign_flip_test_from_small_p_values() -> None:
    for n, p in ((0, 1.0), (1, 1.0), (2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125)):
        assert smallest_sign_flip_p(n) == p
    assert pairs_needed() == 6
    assert pairs_needed(3) == 7  # 3 x 2 / 2**7 = 0.047
    assert pairs_needed(45) == 11  # 45 x 2 / 2**11 = 0.044
    assert pairs_needed(alpha=0.01) == 8
    assert pairs_needed(alpha=0.0625) == 6  # five reach 0.0625 but are not below it
