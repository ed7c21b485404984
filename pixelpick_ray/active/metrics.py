"""Metrics derived from confusion matrices: (C, C) integer counts, rows truth, columns prediction, void pixels left
out.
"""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def iou(confusion: Counts) -> Floats:
    """Intersection over union of each class (..., C); NaN for a class in neither truth nor prediction, 0 if only
    predicted.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(axis=-1) + confusion.sum(axis=-2) - hits
    values: Floats = np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)
    return values


def miou(confusion: Counts) -> float:
    """Mean IoU over the classes that occur; NaN when none does."""
    values = iou(confusion)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def pixel_accuracy(confusion: Counts) -> float:
    """Share of the pixels that are predicted rightly; NaN without pixels."""
    total = int(confusion.sum())
    return float(np.trace(confusion)) / total if total else float("nan")
