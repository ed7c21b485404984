"""Paired tests of two strategies over the same seeds, and rank correlation.

`scipy.stats` takes a second to import, so it is imported only where it is used.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr  # type: ignore[import-untyped]

from pixelpick_ray.report.statistics import interval, mean, sample_std

FloatArray = npt.NDArray[np.float64]

NUM_RESAMPLES = 9_999
# With one pair's sign fixed, 14 pairs have 8,192 sign patterns, fewer than NUM_RESAMPLES.
_MOST_EXACT = 14
_SEED = 0
_BLOCK = 64  # tests at a time, for 5 MB of sums


@dataclass(frozen=True)
class Paired:
    """Differences first - second of `n` pairs: mean, its 95 % Student interval, and two-sided p values.

    Interval and p values are NaN for fewer than two pairs. If all differences are 0, every p value is 1.
    """

    mean: float
    low: float
    high: float
    n: int
    t_p: float
    flip_p: float
    wilcoxon_p: float


def compare_all(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[Paired, ...]:
    """Test first - second for each pair of lists, value by value; values paired with NaN are left out of `n`."""
    differences = [
        [one - two for one, two in zip(first, second, strict=True) if not math.isnan(one - two)]
        for first, second in pairs
    ]
    by_n: defaultdict[int, list[int]] = defaultdict(list)
    for index, found in enumerate(differences):
        by_n[len(found)].append(index)
    p_values: dict[int, tuple[float, float]] = {}
    for n, indices in by_n.items():
        if n > 1:
            rows = np.array([differences[index] for index in indices])
            both = zip(sign_flip_p(rows).tolist(), wilcoxon_p(rows).tolist(), strict=True)
            p_values |= zip(indices, both, strict=True)
    return tuple(_paired(found, *p_values.get(at, (math.nan, math.nan))) for at, found in enumerate(differences))


def _paired(differences: Sequence[float], flip_p: float, wilcoxon_p: float) -> Paired:
    low, high = interval(differences)
    return Paired(mean(differences), low, high, len(differences), _t_p(differences), flip_p, wilcoxon_p)


def _t_p(differences: Sequence[float]) -> float:
    """p value of Student's paired t test; 0 if all differences are equal but not 0."""
    if len(differences) < 2:
        return math.nan
    if not any(differences):
        return 1.0
    # scipy.stats takes a thousand times as long for the same test, and warns if variance is nearly zero.
    error = sample_std(differences) / math.sqrt(len(differences))
    return float(2 * stdtr(len(differences) - 1, -abs(mean(differences)) / error)) if error else 0.0


def sign_flip_p(differences: FloatArray) -> FloatArray:
    """Return p values (k,) of sign-flip permutation tests of the means of differences (k, n).

    Exact, over all sign patterns, for up to 14 pairs; otherwise over 9,999 random ones, the same in every call, and
    the observed one.
    """
    n = differences.shape[1]
    # Mathematically equal sums may differ in their last digits.
    limits = np.abs(differences.sum(axis=1)) - 1e-12 * np.abs(differences).sum(axis=1)
    signs, drawn = _signs(n), int(n > _MOST_EXACT)
    counts = [
        (np.abs(signs @ differences[start : start + _BLOCK].T) >= limits[start : start + _BLOCK]).sum(axis=0)
        for start in range(0, len(differences), _BLOCK)
    ]
    p_values: FloatArray = (drawn + np.concatenate(counts)) / (drawn + len(signs))
    return p_values


@lru_cache(maxsize=4)
def _signs(n: int) -> FloatArray:
    """Sign patterns (P, n), one of each opposite pair, which a two-sided test does not distinguish."""
    if n > _MOST_EXACT:
        return np.random.default_rng(_SEED).choice([-1.0, 1.0], (NUM_RESAMPLES, n))
    patterns = np.arange(2 ** (n - 1))[:, None] >> np.arange(n)
    return 1.0 - 2.0 * (patterns & 1).astype(np.float64)


def wilcoxon_p(differences: FloatArray) -> FloatArray:
    """Return p values (k,) of Wilcoxon's signed-rank tests of differences (k, n); zeros are not ranked.

    Exact for up to 14 pairs, even with ties; beyond that, scipy's test: exact for up to 50 pairs without ties or
    zeros, otherwise by the normal approximation.
    """
    from scipy import stats  # type: ignore[import-untyped]

    zeros = (differences == 0.0).sum(axis=1, keepdims=True)
    ranks = stats.rankdata(np.abs(differences), axis=1) - zeros
    n = differences.shape[1]
    if n <= _MOST_EXACT:
        # The signed-rank test is the sign-flip test of ranks; scipy's takes most of a second with ties.
        return sign_flip_p(np.sign(differences) * ranks)
    p_values = np.ones(len(differences))
    tied = (np.sort(ranks, axis=1) != np.arange(1, n + 1)).any(axis=1)
    # A tie in one list would make scipy treat all lists as tied.
    for alike in (tied & differences.any(axis=1), ~tied):
        if alike.any():
            p_values[alike] = stats.wilcoxon(differences[alike], axis=1).pvalue
    return p_values


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Kendall's tau-b of two lists of scores: 1 for the same order, -1 for the reverse, NaN if all are equal."""
    from scipy import stats

    return float(stats.kendalltau(first, second).statistic)
