"""Evaluating a split and picking pixels: batched inference."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pixelpick_ray.active.acquisition import SCORES
from pixelpick_ray.active.metrics import Counts
from pixelpick_ray.active.oracle import ground_truth
from pixelpick_ray.active.selection import candidate_mask, choose_from_pool, choose_initial, pool_size
from pixelpick_ray.data.cache import PreparedSplit
from pixelpick_ray.data.datasets import DatasetFacts
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.streams import stream
from pixelpick_ray.engine.fit import TrainingData, autocast, normalise, set_precision, stack_images
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import RunError
from pixelpick_ray.models.segmentation import upsample
from pixelpick_ray.spec.experiment import AcquireSpec

BATCH_SIZE = {"cpu": 4, "cuda": 16}


@dataclass(frozen=True)
class Predicted:
    """Full-size logits (n, C, H, W) of images of one size, by their positions in the prepared split."""

    positions: list[int]
    logits: Tensor


@torch.inference_mode()
def evaluate(
    model: nn.Module, prepared: PreparedSplit, facts: DatasetFacts, world: World
) -> tuple[Counts, dict[str, npt.NDArray[np.uint8]]]:
    """Confusion matrix (C, C) of a whole split, on every rank, and this rank's predictions of a few images (H, W)."""
    classes = facts.num_classes
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=world.device)
    shown = set(np.linspace(0, len(prepared) - 1, num=min(4, len(prepared)), dtype=int).tolist())
    examples = {}
    for batch in predict(model, prepared, facts, range(len(prepared))[world.slice_of(len(prepared))], world):
        predicted = batch.logits.argmax(dim=1)
        truth = torch.from_numpy(np.stack([prepared.label(p) for p in batch.positions])).to(world.device, torch.int64)
        valid = truth < classes
        confusion += torch.bincount(truth[valid] * classes + predicted[valid], minlength=classes * classes)
        for index, position in enumerate(batch.positions):
            if position in shown:
                examples[prepared.names[position]] = predicted[index].to(torch.uint8).cpu().numpy()
    total = world.sum_(confusion).view(classes, classes)
    return total.cpu().numpy(), examples


def predict(
    model: nn.Module,
    prepared: PreparedSplit,
    facts: DatasetFacts,
    positions: range | list[int],
    world: World,
    precision: str = "fp32",
) -> Iterator[Predicted]:
    """Full-size logits in batches of neighbouring images of one size; call inside ``torch.inference_mode``."""
    model.eval()
    set_precision(precision)
    for _, group in groupby(positions, key=prepared.shape):
        members = list(group)
        for start in range(0, len(members), BATCH_SIZE[world.device.type]):
            batch = members[start : start + BATCH_SIZE[world.device.type]]
            height, width = prepared.shape(batch[0])
            raw = stack_images([prepared.image(position) for position in batch], (height, width))
            images = normalise(raw.to(world.device).float().div_(255), facts)
            with autocast(precision, world.device):
                coarse = model(images)
            yield Predicted(batch, upsample(coarse.float(), (height, width)))


def pick_initial(data: TrainingData, num_pixels: int, *, seed: int) -> LabelledPixels:
    """The first pixels of every training image, uniform over those that are not void, with their labels."""
    picked = []
    for position, name in zip(data.positions, data.names, strict=True):
        label = data.prepared.label(int(position))
        candidates = candidate_mask(label, data.facts.void_index, np.zeros(0, dtype=np.int64))
        rng = stream(seed, "initial", name)
        picked.append((label, choose_initial(candidates, num_pixels, image=name, rng=rng), name))
    return _labelled(picked, stage=0)


@torch.inference_mode()
def pick(
    model: nn.Module | None,
    data: TrainingData,
    labels: LabelledPixels,
    acquire: AcquireSpec,
    world: World,
    *,
    seed: int,
    stage: int,
) -> LabelledPixels:
    """The next pixels of every training image, labelled; the whole result on the first rank.

    `model` may be None for a strategy that does not score with it. The pool of an image is its best-scored candidates;
    the picks are drawn uniformly from it. Only their coordinates leave the device. RunError when a score is no number.
    """
    positions = [int(position) for position in data.positions]
    mine = positions[world.slice_of(len(positions))]
    picked = []
    for position, scores in _scores(model, data, mine, acquire, world, seed=seed, stage=stage):
        picked.append(_pick_in_image(position, scores, data, labels, acquire, seed=seed, stage=stage))
    everyone = [item for part in world.gather(picked) for item in part]
    return _labelled(
        [(data.prepared.label(p), chosen, data.prepared.names[p]) for p, chosen in everyone], stage=stage + 1
    )


def _scores(
    model: nn.Module | None,
    data: TrainingData,
    positions: list[int],
    acquire: AcquireSpec,
    world: World,
    *,
    seed: int,
    stage: int,
) -> Iterator[tuple[int, Tensor]]:
    """Position and (H, W) scores of each image."""
    score = SCORES[acquire.strategy]
    if score is None or model is None:
        for position in positions:
            rng = stream(seed, "random", stage, data.prepared.names[position])
            yield position, torch.from_numpy(rng.random(data.prepared.shape(position), dtype=np.float32))
        return
    for batch in predict(model, data.prepared, data.facts, positions, world, acquire.precision):
        for position, scores in zip(batch.positions, score(batch.logits), strict=True):
            yield position, scores


def _pick_in_image(
    position: int,
    scores: Tensor,
    data: TrainingData,
    labels: LabelledPixels,
    acquire: AcquireSpec,
    *,
    seed: int,
    stage: int,
) -> tuple[int, npt.NDArray[np.int64]]:
    name, (height, width) = data.prepared.names[position], data.prepared.shape(position)
    at = labels.of_image(name)
    taken = labels.y[at].astype(np.int64) * width + labels.x[at]
    candidates = candidate_mask(data.prepared.label(position), data.facts.void_index, taken)
    if not bool(torch.isfinite(scores).all()):
        raise RunError(
            f"image {name}: the {acquire.strategy} score is not finite after stage {stage}; is the training stable?"
        )
    chosen = choose_from_pool(
        scores.flatten(),
        torch.from_numpy(candidates).to(scores.device),
        acquire.pixels_per_stage,
        pool=pool_size(height, width, acquire.pool_fraction, acquire.pixels_per_stage),
        image=name,
        rng=stream(seed, "pick", stage, name),
    )
    return position, chosen.cpu().numpy()


def _labelled(picked: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], str]], *, stage: int) -> LabelledPixels:
    parts = [ground_truth(label, indices, image=name, stage=stage) for label, indices, name in picked]
    if not parts:  # ranks other than the first
        return LabelledPixels.of(names=[], y=[], x=[], label=[], stage=stage)
    return LabelledPixels.of(
        names=np.concatenate([part.names_per_pixel() for part in parts]),
        y=np.concatenate([part.y for part in parts]),
        x=np.concatenate([part.x for part in parts]),
        label=np.concatenate([part.label for part in parts]),
        stage=stage,
    )
