"""Metrics against torchmetrics."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from pixelpick_ray.active.metrics import iou, mean_iou, miou, pixel_accuracy

pytestmark = pytest.mark.long

CLASSES = 5
VOID = 255
PAIRS = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 4, VOID]), st.integers(0, 4)), min_size=1, max_size=40).filter(
    lambda pairs: any(truth != VOID for truth, _ in pairs)
)


@given(pairs=PAIRS)
def test_metrics_are_those_of_torchmetrics(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = torch.tensor(pairs).T
    arguments = predicted, truth
    counts = MulticlassConfusionMatrix(num_classes=CLASSES, ignore_index=VOID)(*arguments).numpy()
    occurs = counts.sum(axis=0) + counts.sum(axis=1) > 0
    each = MulticlassJaccardIndex(num_classes=CLASSES, ignore_index=VOID, average="none")(*arguments).numpy()
    assert (np.isfinite(iou(counts)) == occurs).all()
    assert np.abs(iou(counts)[occurs] - each[occurs]).max() < 1e-6
    macro = MulticlassJaccardIndex(num_classes=CLASSES, ignore_index=VOID, average="macro")(*arguments)
    assert abs(miou(counts) - float(macro)) < 1e-6  # absent classes are left out there as well
    micro = MulticlassAccuracy(num_classes=CLASSES, ignore_index=VOID, average="micro")(*arguments)
    assert abs(pixel_accuracy(counts) - float(micro)) < 1e-6


def test_an_absent_class_is_left_out_and_an_only_predicted_one_is_zero() -> None:
    counts = np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(iou(counts), [0.75, 0.0, math.nan])
    assert (miou(counts), pixel_accuracy(counts)) == (0.375, 0.75)
    nothing = np.zeros((3, 3), dtype=np.int64)
    assert np.isnan([miou(nothing), pixel_accuracy(nothing), *iou(nothing)]).all()


def test_many_matrices_have_the_means_over_their_own_classes() -> None:
    # IoU 3/4 and 1/2; 0, only predicted, and 3/4; no pixel at all; and one class that is right everywhere.
    counts = np.array([[[6, 2], [0, 2]], [[0, 0], [2, 6]], [[0, 0], [0, 0]], [[0, 0], [0, 9]]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = mean_iou(iou(counts))
        assert mean_iou(iou(counts.reshape(2, 2, 2, 2))).tolist()[0] == [0.625, 0.375]
        assert (iou(counts)[1] == iou(counts[1])).all()
    np.testing.assert_array_equal(found, [0.625, 0.375, np.nan, 1.0])


def test_large_counts_stay_exact() -> None:
    pixels = 3 * 10**12  # a large split, far over what single precision counts
    counts = np.array([[pixels, 1], [1, pixels]])
    assert iou(counts)[0] == pixels / (pixels + 2)
    assert pixel_accuracy(counts) == pixels / (pixels + 1)
