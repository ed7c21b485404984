"""Training batches: images are loaded, augmented and normalised on the device; labelled pixels are coordinates."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pixelpick_ray.active.oracle import AnyOracle, ImagePixels, redrawn
from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.config.trial import ErringSpec, TrainSpec
from pixelpick_ray.data.augment import Geometry, augment, draw
from pixelpick_ray.data.cache import PreparedSplit
from pixelpick_ray.data.datasets import DatasetFacts
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.streams import stream
from pixelpick_ray.engine.images import SplitImages, moved
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.models.segmentation import FRAME_MULTIPLE
from pixelpick_ray.models.sparse import spread_points

IGNORED = -100  # torch's default ignore_index


@dataclass(frozen=True)
class TrainingData:
    """The training images of a trial: a prepared split and the positions (n,) used in it."""

    facts: DatasetFacts
    prepared: PreparedSplit
    positions: npt.NDArray[np.int64]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the training images, sorted."""
        return tuple(self.prepared.names[position] for position in self.positions)


@dataclass(frozen=True)
class FitJob:
    """Everything that a training run depends on; `labels` is None in full supervision, `oracle` redraws mistakes."""

    model: ModelSpec
    train: TrainSpec
    seed: int
    stage: int
    data: TrainingData
    labels: LabelledPixels | None
    data_path: Path
    oracle: AnyOracle | None = None

    @cached_property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of the training crops: the spec's, or the images' common size (DataError if they differ)."""
        if self.train.augment is not None and self.train.augment.crop_size is not None:
            return self.train.augment.crop_size
        shapes = np.unique(self.data.prepared.shapes[self.data.positions], axis=0)
        if len(shapes) > 1:
            raise DataError("train.augment.crop_size: is required, because the training images differ in size")
        return int(shapes[0, 0]), int(shapes[0, 1])

    @cached_property
    def most_labels(self) -> int:
        """Points per image in every batch: the largest number of labelled pixels, including copies, at least 1."""
        if self.labels is None:
            raise AssertionError("full supervision has label maps")
        sizes = (self.labels.of_image(name) for name in self.data.names)
        augment, most = self.train.augment, max([1, *(int(at.stop - at.start) for at in sizes)])
        return most if self.train.exact_labels or augment is None else most * math.ceil(augment.scale[1]) ** 2


@dataclass(frozen=True)
class Batch:
    """A rank's slice of a global batch: normalised, framed images (n, 3, H, W) and either points or label maps.

    ``points`` (n, P, 2) are (y, x) with ``labels`` (n, P), padded with unlabelled points whose label is IGNORED. In
    full supervision ``points`` is None and ``labels`` is (n, h, w), without the frame's margin.
    """

    images: Tensor
    points: Tensor | None
    labels: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """Images, labels and, if any, points."""
        return [self.images, self.labels, *([] if self.points is None else [self.points])]


def num_batches(num_images: int, batch_size: int) -> int:
    """Steps per epoch, without a last batch of one image (batch norm after pooling needs two).

    Raises SpecError for a batch size of 1, DataError for fewer than two images.
    """
    if batch_size == 1:
        raise SpecError("train.batch_size: 1 is too small; batch norm after pooling needs at least 2 images per batch")
    batches, rest = divmod(num_images, batch_size)
    batches += rest > 1
    if batches == 0:
        raise DataError(
            f"dataset.images: only {num_images} training image; batch norm needs at least 2; raise dataset.images, "
            "or add images"
        )
    return batches


def epoch_batches(job: FitJob, epoch: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the positions (b,) of an epoch's global batches, from one permutation by seed, stage and epoch."""
    order = stream(job.seed, "order", job.stage, epoch).permutation(job.data.positions)
    for index in range(num_batches(len(order), job.train.batch_size)):
        yield order[index * job.train.batch_size : (index + 1) * job.train.batch_size]


def rank_batches(job: FitJob, epoch: int, world: World) -> Iterator[Batch]:
    """Yield this rank's slices of an epoch's batches.

    On a GPU, a batch is prepared on a separate stream, concurrently with the preceding training step.
    """
    for positions in epoch_batches(job, epoch):
        mine = positions[world.slice_of(len(positions))]
        if world.device.type != "cuda":
            yield make_batch(job, mine, epoch, world.device)
            continue
        current, side = torch.cuda.current_stream(world.device), _side_stream(world.device)
        with torch.cuda.stream(side):
            batch = make_batch(job, mine, epoch, world.device)
        current.wait_stream(side)
        for tensor in batch.tensors:
            tensor.record_stream(current)
        yield batch


@lru_cache(maxsize=1)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def make_batch(job: FitJob, positions: npt.NDArray[np.int64], epoch: int, device: torch.device) -> Batch:
    """Load, augment and normalise images by position, with the labelled pixels inside the crops (`exact_labels`)."""
    spec, prepared, facts, crop = job.train.augment, job.data.prepared, job.data.facts, job.crop_size
    names = [prepared.names[position] for position in positions]
    draws = [draw(spec, stream(job.seed, "augment", job.stage, epoch, name)) for name in names]
    geometries = [Geometry.of(choice, prepared.shape(p), crop) for choice, p in zip(draws, positions, strict=True)]
    raw = SplitImages.on(prepared, device).images(positions.tolist(), crop)
    images = augment(raw.float().div_(255), draws, geometries, spec, _colours(facts, device).fill)
    points, labels = _supervision(job, positions, epoch, geometries)
    return Batch(network_input(images, facts), None if points is None else moved(points, device), moved(labels, device))


@dataclass(frozen=True)
class _Colours:
    """Mean and standard deviation (1, 3, 1, 1) and padding colour (3,) of a data set's images, on a device."""

    mean: Tensor
    std: Tensor
    fill: Tensor


@lru_cache(maxsize=8)
def _colours(facts: DatasetFacts, device: torch.device) -> _Colours:
    mean, std = (torch.tensor(values)[None, :, None, None].to(device) for values in (facts.mean, facts.std))
    return _Colours(mean, std, torch.floor(255 * torch.tensor(facts.mean)).to(device) / 255)


def normalised(images: Tensor, facts: DatasetFacts) -> Tensor:
    """Normalise images (N, 3, H, W) in 0..1: subtract the mean and divide by the standard deviation."""
    colours = _colours(facts, images.device)
    return (images - colours.mean).div_(colours.std)


def network_input(images: Tensor, facts: DatasetFacts) -> Tensor:
    """Normalise images (N, 3, H, W) and reflect-pad them right and bottom to their frame, in channels-last format.

    The frame's sides are the next multiples of FRAME_MULTIPLE: PixelPick pads VOC likewise; its other sizes fit.
    """
    framed = normalised(images, facts)
    bottom, right = (-side % FRAME_MULTIPLE for side in images.shape[2:])
    if bottom or right:
        framed = F.pad(framed, (0, right, 0, bottom), mode="reflect" if len(images) else "constant")
    # torch's own conversion to channels last takes four times as long
    return framed.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _supervision(
    job: FitJob, positions: npt.NDArray[np.int64], epoch: int, geometries: list[Geometry]
) -> tuple[Tensor | None, Tensor]:
    void, prepared = job.data.facts.void_index, job.data.prepared
    if job.labels is None:
        maps = [g.label_map(prepared.label(p), void) for g, p in zip(geometries, positions, strict=True)]
        stacked = torch.from_numpy(np.stack(maps)).long() if maps else torch.zeros(0, 1, 1, dtype=torch.long)
        return None, stacked.masked_fill_(stacked == void, IGNORED)
    points = np.tile(spread_points(job.most_labels, job.crop_size), (len(positions), 1, 1))
    labels = np.full((len(positions), job.most_labels), IGNORED, dtype=np.int64)
    for index, (position, geometry) in enumerate(zip(positions, geometries, strict=True)):
        at = job.labels.of_image(prepared.names[position])
        y, x, label = job.labels.y[at], job.labels.x[at], job.labels.label[at].astype(np.int64)
        if isinstance(job.oracle, ErringSpec) and job.oracle.redrawn:
            name = prepared.names[position]
            pixels = ImagePixels(name, prepared.shape(position), y, x, label, job.labels.stage[at])
            rng = stream(job.seed, "mistakes", job.stage, epoch, name)
            label = redrawn(job.oracle, pixels, job.data.facts.class_names, job.seed, rng)
        place: npt.NDArray[Any]
        if job.train.exact_labels:
            place, inside = geometry.points(y, x)
            place, label = place[inside], label[inside]
        else:
            place, label = geometry.resized_points(y, x, label)
        points[index, : len(place)], labels[index, : len(place)] = place, label
    return torch.from_numpy(points), torch.from_numpy(labels)
