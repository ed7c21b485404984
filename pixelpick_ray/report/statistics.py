"""Means, deviations, intervals and corrections over seeds: pure functions of a few numbers."""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from scipy.special import ndtri, stdtrit  # type: ignore[import-untyped]  # scipy.stats would take a second to import

CONFIDENCE = 0.95
ALPHA = 0.05  # p values below it are significant


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and 95 % interval of the mean over `n` values; NaN if n is too small."""

    mean: float
    std: float
    n: int
    low: float
    high: float


def summarise(values: Sequence[float]) -> Summary:
    """Summarise values; NaN (a class that does not occur) is left out and not counted in `n`."""
    known = [value for value in values if not math.isnan(value)]
    low, high = interval(known)
    return Summary(mean(known), sample_std(known), len(known), low, high)


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean, independent of the order of values; NaN if there are none."""
    return math.fsum(values) / len(values) if values else math.nan


def sample_std(values: Sequence[float]) -> float:
    """Return the standard deviation with n - 1 in the denominator; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Student's confidence interval of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    half = student_quantile(confidence, len(values) - 1) * sample_std(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def student_quantile(confidence: float, degrees: float) -> float:
    """Return the t such that Student's distribution has probability `confidence` between -t and t.

    `degrees` of freedom may be fractional. Raises ValueError unless 0 < confidence < 1 and degrees > 0.
    """
    if not 0.0 < confidence < 1.0 or not degrees > 0.0:
        raise ValueError(f"confidence {confidence}, degrees {degrees}: need 0 < confidence < 1 and degrees > 0")
    return float(stdtrit(degrees, (1 + confidence) / 2))


def welch_interval(
    mean1: float, std1: float, n1: int, mean2: float, std2: float, n2: int, confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Return mean1 - mean2 and its Welch interval, given sample standard deviations, which may differ.

    Degrees of freedom are Satterthwaite's (1946; Welch 1947). The interval is NaN if either n is below 2, and has zero
    width if neither sample varies.
    """
    difference = mean1 - mean2
    if n1 < 2 or n2 < 2:
        return difference, math.nan, math.nan
    error1, error2 = std1 / math.sqrt(n1), std2 / math.sqrt(n2)
    error = math.hypot(error1, error2)
    if error == 0.0:
        return difference, difference, difference
    # Normalised, the squares neither overflow nor underflow.
    share1, share2 = (error1 / error) ** 2, (error2 / error) ** 2
    degrees = 1 / (share1**2 / (n1 - 1) + share2**2 / (n2 - 1))
    half = student_quantile(confidence, degrees) * error
    return difference, difference - half, difference + half


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of the proportion `successes` / `n`; NaN if n is 0."""
    if not n:
        return math.nan, math.nan
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    centre = (successes + z2 / 2) / (n + z2)
    half = math.sqrt(z2 * (successes * (n - successes) / n + z2 / 4)) / (n + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def cohen_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float:
    """Return Cohen's kappa (1960) of pairs of ratings: their agreement beyond chance, at most 1.

    NaN if there are no pairs, or if both raters always gave the same single rating.
    """
    n, agreed = len(pairs), sum(one == other for one, other in pairs)
    ones, others = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    by_chance = sum(count * others[said] for said, count in ones.items())
    return (n * agreed - by_chance) / (n * n - by_chance) if n * n > by_chance else math.nan


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return p values adjusted by Holm's step-down procedure (1979), in the given order.

    NaN, for a test that was not possible, stays NaN and does not count as a member of the family.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return tuple(adjusted)


def smallest_sign_flip_p(n: int) -> float:
    """Return the lowest possible p value of a two-sided sign-flip test of `n` pairs: 2 / 2**n."""
    return min(1.0, 2.0 ** (1 - n))


def pairs_needed(comparisons: int = 1, alpha: float = ALPHA) -> int:
    """Return the smallest number of pairs with which a two-sided sign-flip test can go below `alpha`.

    With several comparisons, the smallest of their p values has to do so after Holm's correction.
    """
    return next(n for n in itertools.count(1) if comparisons * smallest_sign_flip_p(n) < alpha)
