"""Training one stage: labels to weights."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelpick_ray.data.augment import Geometry, augment, draw
from pixelpick_ray.data.cache import PreparedSplit
from pixelpick_ray.data.datasets import DatasetFacts
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.streams import stream, stream_seed
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import DataError, RunError, SpecError
from pixelpick_ray.models.segmentation import FRAME_MULTIPLE, build_model, logits_at, parameter_groups, upsample
from pixelpick_ray.spec.trial import AdamSpec, ConstantSpec, ModelSpec, MultistepSpec, PolySpec, SgdSpec, TrainSpec

IGNORED = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True)
class TrainingData:
    """The training images of a trial: a prepared split and the positions used in it."""

    facts: DatasetFacts
    prepared: PreparedSplit
    positions: npt.NDArray[np.int64]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the training images, sorted."""
        return tuple(self.prepared.names[position] for position in self.positions)


@dataclass(frozen=True)
class FitJob:
    """Everything that one training depends on. `labels` None: every pixel is labelled (full supervision)."""

    model: ModelSpec
    train: TrainSpec
    seed: int
    stage: int
    data: TrainingData
    labels: LabelledPixels | None
    data_path: Path


@dataclass(frozen=True)
class Epoch:
    """A finished epoch: 1-based number, mean loss over the supervised pixels, and the model as it is now."""

    number: int
    loss: float
    model: nn.Module


@dataclass(frozen=True)
class Batch:
    """A rank's slice of a global batch: normalised images (n, 3, H, W) in their frame and either points or a label map.

    ``points`` (n, P, 2) are (y, x) with ``labels`` (n, P), filled up with IGNORED; for full supervision ``points`` is
    None and ``labels`` is (n, h, w), without the frame's margin.
    """

    images: Tensor
    points: Tensor | None
    labels: Tensor


def fit(job: FitJob, world: World, on_epoch: Callable[[Epoch], None]) -> nn.Module:
    """Train a fresh model for one stage and return it; `on_epoch` is called on every rank after each epoch.

    The loss is the cross entropy, averaged over the labelled pixels of the global batch; zero for a batch with none.
    RunError when the loss is no number.
    """
    model = build_model(
        job.model,
        num_classes=job.data.facts.num_classes,
        data_path=job.data_path,
        seed=job.seed,
        stage=job.stage,
    )
    model = world.share_batch_norm(world.place(model))
    replicated = world.distribute(model)
    optimizer = build_optimizer(job.train.optimizer, model)
    batches = num_batches(len(job.data.positions), job.train.batch_size)
    for epoch in range(job.train.epochs):
        model.train()
        set_precision(job.train.precision)  # every epoch: an evaluation in between has a precision of its own
        torch.manual_seed(stream_seed(job.seed, "dropout", job.stage, epoch, world.rank))
        total = torch.zeros(2, dtype=torch.float64, device=world.device)
        for index, positions in enumerate(epoch_batches(job, epoch)):
            factor = lr_factor(job.train.schedule, epoch * batches + index, batches, job.train.epochs)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            batch = make_batch(job, positions[world.slice_of(len(positions))], epoch, world.device)
            total += train_step(replicated, optimizer, batch, world, job.train.precision)
        loss_sum, count = world.sum_(total).tolist()
        if not np.isfinite(loss_sum):
            raise RunError(f"stage {job.stage}, epoch {epoch + 1}: the loss is {loss_sum}; lower train.optimizer.lr")
        on_epoch(Epoch(epoch + 1, loss_sum / max(count, 1.0), model))
    return model


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, world: World, precision: str
) -> Tensor:
    """One step on this rank's slice; returns (loss sum, labelled pixels) of the slice, float64, on the device."""
    count = (batch.labels != IGNORED).sum().to(torch.float64)
    everywhere = world.sum_(count.clone()).clamp(min=1.0)
    optimizer.zero_grad(set_to_none=True)
    with autocast(precision, world.device):
        logits = model(batch.images)
    loss = loss_sum(logits, batch)
    share = (loss * (world.size / everywhere)).to(loss.dtype)  # DDP averages gradients: times the number of ranks
    share.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return torch.stack([loss.detach().to(torch.float64), count])


def loss_sum(logits: Tensor, batch: Batch) -> Tensor:
    """Summed cross entropy of coarse logits (n, C, h, w) at the labelled pixels, all in full supervision."""
    if batch.labels.numel() == 0:
        return logits.sum() * 0.0
    frame = batch.images.shape[2], batch.images.shape[3]
    if batch.points is None:
        height, width = batch.labels.shape[1:]
        full = upsample(logits.float(), frame)[:, :, :height, :width]
        return F.cross_entropy(full, batch.labels, ignore_index=IGNORED, reduction="sum")
    sampled = logits_at(logits, batch.points, frame)
    return F.cross_entropy(sampled.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")


def num_batches(num_images: int, batch_size: int) -> int:
    """Steps an epoch: the last batch is left out when it would hold one image (batch norm after pooling needs two)."""
    if batch_size == 1:
        raise SpecError("train.batch_size: 1 is too small, batch norm after pooling needs two images; take 2 or more")
    batches, rest = divmod(num_images, batch_size)
    batches += rest > 1
    if batches == 0:
        raise DataError(f"dataset.images: {num_images} training image is too few; at least 2 are needed")
    return batches


def epoch_batches(job: FitJob, epoch: int) -> Iterator[npt.NDArray[np.int64]]:
    """Positions of the global batches of an epoch: one permutation by the seed, stage and epoch, cut in order."""
    order = stream(job.seed, "order", job.stage, epoch).permutation(job.data.positions)
    for index in range(num_batches(len(order), job.train.batch_size)):
        yield order[index * job.train.batch_size : (index + 1) * job.train.batch_size]


def make_batch(job: FitJob, positions: npt.NDArray[np.int64], epoch: int, device: torch.device) -> Batch:
    """Load, augment and normalise images by position; every labelled pixel inside the crop is there exactly once."""
    spec, prepared, facts = job.train.augment, job.data.prepared, job.data.facts
    names = [prepared.names[position] for position in positions]
    draws = [draw(spec, stream(job.seed, "augment", job.stage, epoch, name)) for name in names]
    crop = crop_size(job)
    geometries = [Geometry.of(choice, prepared.shape(p), crop) for choice, p in zip(draws, positions, strict=True)]
    raw = stack_images([prepared.image(position) for position in positions], crop).to(device)
    fill = torch.floor(255 * torch.tensor(facts.mean)).to(device) / 255
    images = augment(raw.float().div_(255), draws, geometries, spec, fill)
    points, labels = _supervision(job, positions, geometries)
    moved = None if points is None else points.to(device)
    return Batch(network_input(images, facts), moved, labels.to(device))


def crop_size(job: FitJob) -> tuple[int, int]:
    """Height and width of the training crops: the spec's, or the size that all images share."""
    if job.train.augment is not None and job.train.augment.crop_size is not None:
        return job.train.augment.crop_size
    shapes = np.unique(job.data.prepared.shapes[job.data.positions], axis=0)
    if len(shapes) > 1:
        raise DataError("train.augment.crop_size: the training images differ in size; give the size of the crops")
    return int(shapes[0, 0]), int(shapes[0, 1])


def stack_images(images: list[npt.NDArray[np.uint8]], fallback: tuple[int, int]) -> Tensor:
    """(N, 3, H, W) uint8 in channels-last order, smaller images padded right and bottom; N may be 0."""
    height, width = (max((image.shape[axis] for image in images), default=fallback[axis]) for axis in (0, 1))
    stacked = np.zeros((len(images), height, width, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        stacked[index, : image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def network_input(images: Tensor, facts: DatasetFacts) -> Tensor:
    """Subtract the data set's mean and divide by its deviation; mirror right and bottom up to the frame; channels last.

    The frame is the next size whose sides the network can halve: PixelPick pads VOC so, its other sizes fit as they
    are.
    """
    mean = images.new_tensor(facts.mean)[None, :, None, None]
    std = images.new_tensor(facts.std)[None, :, None, None]
    normalised = (images - mean) / std
    bottom, right = (-side % FRAME_MULTIPLE for side in images.shape[2:])
    if bottom or right:
        normalised = F.pad(normalised, (0, right, 0, bottom), mode="reflect" if len(images) else "constant")
    return normalised.contiguous(memory_format=torch.channels_last)


def _supervision(
    job: FitJob, positions: npt.NDArray[np.int64], geometries: list[Geometry]
) -> tuple[Tensor | None, Tensor]:
    void, prepared = job.data.facts.void_index, job.data.prepared
    if job.labels is None:
        maps = [g.label_map(prepared.label(p), void) for g, p in zip(geometries, positions, strict=True)]
        stacked = torch.from_numpy(np.stack(maps)).long() if maps else torch.zeros(0, 1, 1, dtype=torch.long)
        return None, stacked.masked_fill_(stacked == void, IGNORED)
    inside = [_points(job.labels, prepared.names[p], g) for g, p in zip(geometries, positions, strict=True)]
    longest = max((len(labels) for _, labels in inside), default=0)
    points = torch.zeros(len(inside), longest, 2)
    labels = torch.full((len(inside), longest), IGNORED)
    for index, (place, classes) in enumerate(inside):
        points[index, : len(classes)] = torch.from_numpy(place)
        labels[index, : len(classes)] = torch.from_numpy(classes)
    return points, labels


def _points(
    labels: LabelledPixels, name: str, geometry: Geometry
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    at = labels.of_image(name)
    place, inside = geometry.points(labels.y[at], labels.x[at])
    return place[inside], labels.label[at][inside].astype(np.int64)


def build_optimizer(spec: AdamSpec | SgdSpec, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser with the backbone in a group of its own; weight decay is L2 on all parameters."""
    groups = parameter_groups(model, lr=spec.lr, backbone_lr_factor=spec.backbone_lr_factor)
    if isinstance(spec, AdamSpec):
        return torch.optim.Adam(groups, weight_decay=spec.weight_decay)
    return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)


def lr_factor(schedule: ConstantSpec | MultistepSpec | PolySpec, iteration: int, per_epoch: int, epochs: int) -> float:
    """What the base learning rates are multiplied by at a 0-based iteration of the stage."""
    if isinstance(schedule, MultistepSpec):
        reached = sum(iteration // per_epoch >= milestone for milestone in schedule.milestones)
        return float(schedule.gamma**reached)
    if isinstance(schedule, PolySpec):
        return float((1 - iteration / (per_epoch * epochs)) ** schedule.power)
    return 1.0


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context of the network's forward pass: bfloat16 where asked for."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def set_precision(precision: str) -> None:
    """Allow TensorFloat-32 only where asked for; torch allows it in convolutions by default."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
