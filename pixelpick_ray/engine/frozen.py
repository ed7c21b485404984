"""Heads on cached features of a frozen backbone: their training vectors, and their model for a prepared split."""

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pixelpick_ray.data.cache import PreparedSplit
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.engine.batches import TrainingData
from pixelpick_ray.engine.features import Features
from pixelpick_ray.models.heads import LabelledVectors

LOSS_VECTORS = 4096  # labelled vectors used for the loss of a fitted head, at most


class FrozenModel(nn.Module):
    """A fitted head, features (n, D, h, w) to logits (n, C, h, w), with access to the features of prepared splits."""

    def __init__(self, head: nn.Module, features_of: Callable[[PreparedSplit], Features]) -> None:
        super().__init__()
        self.head, self.features_of = head, features_of

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.head(features))


def labelled_vectors(data: TrainingData, views: Sequence[Features], labels: LabelledPixels | None) -> LabelledVectors:
    """The training vectors of a head: features at the labelled pixels in each view, interpolated like logits.

    In full supervision (`labels` None), these are all feature cells that are nearest to some pixel with a class, with
    the numbers of these pixels per class.
    """
    one_by_one = [_of_all_pixels(data, one) if labels is None else _of_pixels(data, one, labels) for one in views]
    if len(one_by_one) == 1:
        return one_by_one[0]
    pairs = zip(*((one.vectors, one.counts, one.images) for one in one_by_one), strict=True)
    return LabelledVectors(*map(np.concatenate, pairs))


def _of_pixels(data: TrainingData, features: Features, labels: LabelledPixels) -> LabelledVectors:
    vectors, classes, images = list[Tensor](), list[np.ndarray](), list[np.ndarray]()
    for position in (int(position) for position in data.positions):
        at = labels.of_image(data.prepared.names[position])
        if at.stop == at.start:
            continue
        y, x = labels.y[at].astype(np.int64), labels.x[at].astype(np.int64)
        vectors.append(features.at(position, y, x, data.prepared.shape(position)))
        classes.append(labels.label[at].astype(np.int64))
        images.append(np.full(len(y), position))
    counts = np.eye(data.facts.num_classes, dtype=np.float32)[np.concatenate(classes)]
    return LabelledVectors(torch.cat(vectors).numpy(), counts, np.concatenate(images))


def _of_all_pixels(data: TrainingData, features: Features) -> LabelledVectors:
    classes = data.facts.num_classes
    counts = np.zeros((len(features.vectors), classes), dtype=np.float32)
    for position in (int(position) for position in data.positions):
        (height, width), (h, w) = data.prepared.shape(position), features.shape(position)
        rows, columns = (
            np.rint(np.arange(length) * ((coarse - 1) / max(1, length - 1))).astype(np.int64)
            for length, coarse in ((height, h), (width, w))
        )
        label = data.prepared.label(position).astype(np.int64)
        label = label[:, ::-1] if features.is_flipped else label
        place = (rows[:, None] * w + columns) * classes + label
        found = np.bincount(place[label < classes], minlength=h * w * classes)
        counts[features.offsets[position] : features.offsets[position + 1]] = found.reshape(-1, classes)
    images = np.repeat(np.arange(len(features.shapes)), features.shapes.prod(axis=1))
    whole = LabelledVectors(features.vectors, counts, images)
    used: npt.NDArray[np.bool_] = counts.sum(axis=1) > 0
    return whole if used.all() else whole.where(used)


@torch.inference_mode()
def loss_of(head: nn.Module, labelled: LabelledVectors) -> float:
    """Mean cross entropy of a fitted head at up to LOSS_VECTORS labelled vectors, evenly spaced."""
    step = -(-len(labelled.vectors) // LOSS_VECTORS)
    vectors = torch.from_numpy(np.array(labelled.vectors[::step])).float()
    counts = torch.from_numpy(np.array(labelled.counts[::step]))
    log_shares = head(vectors.T[None, :, :, None])[0, :, :, 0].T.log_softmax(dim=1)
    return float(-(log_shares * counts).sum() / counts.sum())
