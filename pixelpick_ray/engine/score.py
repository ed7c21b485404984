"""Evaluating a split and picking pixels: batched inference."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pixelpick_ray.active.acquisition import MeanPrediction, entropy, needs_model, score_passes
from pixelpick_ray.active.metrics import Counts
from pixelpick_ray.active.oracle import answer
from pixelpick_ray.active.queries import query_statistics
from pixelpick_ray.active.selection import POOLS, candidate_mask, choose_initial, pool_size
from pixelpick_ray.data.borders import border_distances, mean_distance
from pixelpick_ray.data.cache import PreparedSplit
from pixelpick_ray.data.datasets import DatasetFacts
from pixelpick_ray.data.description import shown
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.streams import stream, stream_seed
from pixelpick_ray.engine.fit import TrainingData, autocast, network_input, set_precision, stack_images
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import RunError
from pixelpick_ray.models.segmentation import stochastic, upsample
from pixelpick_ray.spec.trial import AcquireSpec, ErringSpec, GroundTruthSpec

BATCH_PIXELS = {"cpu": 4 * 360 * 480, "cuda": 16 * 360 * 480}
LARGEST_BATCH = 16


@dataclass(frozen=True)
class Predicted:
    """Images of one size by their positions in the prepared split, and their full-size logits (n, C, H, W) a pass."""

    positions: list[int]
    passes: Iterator[Tensor]


@dataclass(frozen=True)
class Query:
    """New labelled pixels and statistics of them (`active.queries`)."""

    pixels: LabelledPixels
    statistics: dict[str, Any]


@torch.inference_mode()
def evaluate(
    model: nn.Module, prepared: PreparedSplit, facts: DatasetFacts, world: World
) -> tuple[Counts, dict[str, npt.NDArray[np.uint8]]]:
    """Confusion matrix (C, C) of a whole split, on every rank, and this rank's predictions of a few images (H, W)."""
    classes = facts.num_classes
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=world.device)
    kept = set(shown(range(len(prepared))))
    examples = {}
    for batch in predict(model, prepared, facts, range(len(prepared))[world.slice_of(len(prepared))], world):
        (logits,) = batch.passes
        predicted = logits.argmax(dim=1)
        truth = torch.from_numpy(np.stack([prepared.label(p) for p in batch.positions])).to(world.device, torch.int64)
        valid = truth < classes
        confusion += torch.bincount(truth[valid] * classes + predicted[valid], minlength=classes * classes)
        for index, position in enumerate(batch.positions):
            if position in kept:
                examples[prepared.names[position]] = predicted[index].to(torch.uint8).cpu().numpy()
    total = world.sum_(confusion).view(classes, classes)
    return total.cpu().numpy(), examples


def predict(
    model: nn.Module,
    prepared: PreparedSplit,
    facts: DatasetFacts,
    positions: Sequence[int],
    world: World,
    *,
    precision: str = "fp32",
    passes: Sequence[Callable[[int], torch.Generator]] | None = None,
) -> Iterator[Predicted]:
    """Full-size logits, batch after batch, images of one size together; call inside ``torch.inference_mode``.

    One pass with dropout off, or one for each of `passes`: functions from an image's position to the generator that
    its dropout draws from.
    """
    model.eval()
    set_precision(precision)
    ordered = sorted(positions, key=prepared.shape)  # stable: images of one size stay in order
    for (height, width), group in groupby(ordered, key=prepared.shape):
        members = list(group)
        size = max(1, min(LARGEST_BATCH, BATCH_PIXELS[world.device.type] // (height * width)))
        for batch in (members[start : start + size] for start in range(0, len(members), size)):
            raw = stack_images([prepared.image(position) for position in batch], (height, width))
            images = network_input(raw.to(world.device).float().div_(255), facts)
            generators = [[draw(position) for position in batch] for draw in passes] if passes else [None]
            yield Predicted(batch, _passes(model, images, (height, width), precision, generators))


def _passes(
    model: nn.Module,
    images: Tensor,
    size: tuple[int, int],
    precision: str,
    generators: Sequence[list[torch.Generator] | None],
) -> Iterator[Tensor]:
    frame = images.shape[2], images.shape[3]
    for one in generators:
        with stochastic(model, one) if one else nullcontext(), autocast(precision, images.device):
            coarse = model(images)
        yield upsample(coarse.float(), frame)[:, :, : size[0], : size[1]]


def pick_initial(data: TrainingData, num_pixels: int, oracle: GroundTruthSpec | ErringSpec, *, seed: int) -> Query:
    """The first pixels of every training image, uniform over those that are not void, with their labels."""
    picked = []
    for position, name in zip(data.positions, data.names, strict=True):
        label = data.prepared.label(int(position))
        candidates = candidate_mask(label, data.facts.void_index, np.zeros(0, dtype=np.int64))
        rng = stream(seed, "initial", name)
        picked.append(Picked(int(position), choose_initial(candidates, num_pixels, image=name, rng=rng), None))
    return _answered(picked, data, oracle, seed=seed, stage=0)


@dataclass(frozen=True)
class Picked:
    """Flat indices picked in an image, and the entropy of the prediction there where the network was asked."""

    position: int
    indices: npt.NDArray[np.int64]
    entropies: list[float] | None


@torch.inference_mode()
def pick(
    model: nn.Module | None,
    data: TrainingData,
    labels: LabelledPixels,
    acquire: AcquireSpec,
    oracle: GroundTruthSpec | ErringSpec,
    world: World,
    *,
    seed: int,
    stage: int,
) -> Query:
    """The next pixels of every training image, labelled; the whole result on the first rank.

    `model` may be None for a strategy that does not score with it. The pool of an image is its best-scored candidates,
    of which the picks are drawn by chance, or the other way round. Only their coordinates leave the device. RunError
    when a score is no number.
    """
    positions = [int(position) for position in data.positions]
    mine = positions[world.slice_of(len(positions))]
    scored = _scores(model, data, mine, acquire, world, seed=seed, stage=stage)
    picked = [_pick_in_image(one, data, labels, acquire, seed=seed, stage=stage) for one in scored]
    everyone = [item for part in world.gather(picked) for item in part]
    return _answered(everyone, data, oracle, seed=seed, stage=stage + 1)


@dataclass(frozen=True)
class _Scored:
    """(H, W) scores of an image, and its (C, H, W) logits of the mean prediction where the network was asked."""

    position: int
    scores: Tensor
    logits: Tensor | None


def _scores(
    model: nn.Module | None,
    data: TrainingData,
    positions: list[int],
    acquire: AcquireSpec,
    world: World,
    *,
    seed: int,
    stage: int,
) -> Iterator[_Scored]:
    names = data.prepared.names
    if model is None or not needs_model(acquire.strategy):
        for position in positions:
            rng = stream(seed, "random", stage, names[position])
            yield _Scored(position, torch.from_numpy(rng.random(data.prepared.shape(position), dtype=np.float32)), None)
        return

    def generator(number: int, position: int) -> torch.Generator:
        purpose = stream_seed(seed, "mc_dropout", stage, names[position], number)
        return torch.Generator(device=world.device).manual_seed(purpose)

    passes = [partial(generator, number) for number in range(acquire.stochastic.passes)] if acquire.stochastic else None
    for batch in predict(
        model, data.prepared, data.facts, positions, world, precision=acquire.precision, passes=passes
    ):
        mean = MeanPrediction(batch.passes)
        for position, *parts in zip(batch.positions, score_passes(acquire, mean), mean.logits(), strict=True):
            yield _Scored(position, *parts)


def _pick_in_image(
    scored: _Scored, data: TrainingData, labels: LabelledPixels, acquire: AcquireSpec, *, seed: int, stage: int
) -> Picked:
    position, scores = scored.position, scored.scores
    name, (height, width) = data.prepared.names[position], data.prepared.shape(position)
    at = labels.of_image(name)
    taken = labels.y[at].astype(np.int64) * width + labels.x[at]
    candidates = candidate_mask(data.prepared.label(position), data.facts.void_index, taken)
    if not bool(torch.isfinite(scores).all()):
        raise RunError(
            f"image {name}: the {acquire.strategy} score is not finite after stage {stage}; is the training stable?"
        )
    chosen = POOLS[acquire.pool](
        scores.flatten(),
        torch.from_numpy(candidates).to(scores.device),
        acquire.pixels_per_stage,
        pool=pool_size(height, width, acquire.pool_fraction, acquire.pixels_per_stage),
        image=name,
        rng=stream(seed, "pick", stage, name),
    )
    entropies = None
    if scored.logits is not None:
        entropies = entropy(scored.logits.flatten(1)[None, :, None, chosen]).flatten().tolist()
    return Picked(position, chosen.cpu().numpy(), entropies)


def _answered(
    picked: list[Picked], data: TrainingData, oracle: GroundTruthSpec | ErringSpec, *, seed: int, stage: int
) -> Query:
    """The oracle's answers of one stage; empty on ranks other than the first."""
    prepared, class_names = data.prepared, data.facts.class_names
    parts = [
        answer(
            oracle,
            prepared.label(one.position),
            one.indices,
            class_names=class_names,
            image=prepared.names[one.position],
            seed=seed,
            stage=stage,
        )
        for one in picked
    ]
    pixels = LabelledPixels.of(
        names=[name for part in parts for name in part.names_per_pixel()],
        y=np.concatenate([np.zeros(0, dtype=np.int32), *(part.y for part in parts)]),
        x=np.concatenate([np.zeros(0, dtype=np.int32), *(part.x for part in parts)]),
        label=np.concatenate([np.zeros(0, dtype=np.int32), *(part.label for part in parts)]),
        stage=stage,
    )
    asked = [value for one in picked if one.entropies is not None for value in one.entropies]
    distances = [border_distances(prepared.label(one.position), one.indices) for one in picked]
    statistics = query_statistics(
        pixels, num_classes=len(class_names), entropies=asked or None, border_distance=mean_distance(distances)
    )
    return Query(pixels, statistics)
