"""Metrics from confusion matrices (C, C) of pixel counts, rows truth, columns prediction; area under a curve."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def iou(confusion: Counts) -> Floats:
    """Intersection over union of each class (..., C), from (..., C, C): NaN if absent from truth and prediction."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(axis=-1) + confusion.sum(axis=-2) - hits
    values: Floats = np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)
    return values


def miou(confusion: Counts) -> float:
    """Mean IoU over the classes in truth or prediction; NaN without any."""
    return float(mean_iou(iou(confusion)))


def mean_iou(values: Floats) -> Floats:
    """Mean (...) of IoUs (..., C) over the classes whose IoU is not NaN; NaN without any."""
    occurs = np.isfinite(values)
    number = occurs.sum(axis=-1)
    total = np.where(occurs, values, 0.0).sum(axis=-1)
    means: Floats = np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)
    return means


def pixel_accuracy(confusion: Counts) -> Floats:
    """Fraction (...) of correctly predicted pixels, from (..., C, C); NaN without pixels."""
    hits, total = np.trace(confusion, axis1=-2, axis2=-1), confusion.sum(axis=(-2, -1))
    shares: Floats = np.divide(hits, total, out=np.full(np.shape(total), np.nan), where=total > 0)
    return shares


def area_under_curve(budgets: Sequence[float], values: Sequence[float]) -> float:
    """Normalised area under the curve by the trapezoidal rule: the mean value, in the unit of `values`.

    A single point gives its own value. Raises ValueError if budgets do not ascend or lengths differ.
    """
    points = list(zip(budgets, values, strict=True))
    if not points or any(right[0] <= left[0] for left, right in itertools.pairwise(points)):
        raise ValueError(f"budgets {list(budgets)}: must be non-empty and ascending")
    if len(points) == 1:
        return points[0][1]
    pieces = [(x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points)]
    return math.fsum(pieces) / (points[-1][0] - points[0][0])
