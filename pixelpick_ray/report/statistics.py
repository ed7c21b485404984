"""Means, spreads and intervals over seeds: pure functions of a few numbers."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and interval of the mean over `n` values; NaN where n is too small for one."""

    mean: float
    std: float
    n: int
    low: float
    high: float


def summarise(values: Sequence[float]) -> Summary:
    """Summary of the values that are there; a NaN (a class that does not occur) is left out and lowers `n`."""
    known = [value for value in values if not math.isnan(value)]
    low, high = interval(known)
    return Summary(mean(known), sample_std(known), len(known), low, high)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, the same for every order of the values; NaN of none."""
    return math.fsum(values) / len(values) if values else math.nan


def sample_std(values: Sequence[float]) -> float:
    """Standard deviation with n-1 in the denominator; NaN of fewer than two values."""
    if len(values) < 2:
        return math.nan
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's interval of the mean at this confidence; NaN of fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    half = student_quantile(confidence, len(values) - 1) * sample_std(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def student_quantile(confidence: float, degrees: int) -> float:
    """The t for which Student's distribution holds `confidence` between -t and t; ValueError outside of (0, 1)."""
    if not 0.0 < confidence < 1.0 or degrees < 1:
        raise ValueError(f"confidence {confidence}, degrees {degrees}: need 0 < confidence < 1 and degrees >= 1")
    # In the angle atan(t / sqrt(degrees)) the search has finite bounds whatever the confidence.
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_mass(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _student_mass(angle: float, degrees: int) -> float:
    """Mass between -t and t, at the angle of t: a finite sum for whole degrees.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 (odd) and 26.7.4 (even).
    """
    odd = degrees % 2
    cosine = math.cos(angle)
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def area_under_curve(budgets: Sequence[float], values: Sequence[float]) -> float:
    """Area under straight lines through the points, divided by the width: the mean height, in the unit of `values`.

    One point gives its own height. ValueError when the budgets do not ascend or the lengths differ.
    """
    points = list(zip(budgets, values, strict=True))
    if not points or any(right[0] <= left[0] for left, right in itertools.pairwise(points)):
        raise ValueError(f"budgets {list(budgets)}: at least one is needed and they must ascend")
    if len(points) == 1:
        return points[0][1]
    pieces = [(x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points)]
    return math.fsum(pieces) / (points[-1][0] - points[0][0])
