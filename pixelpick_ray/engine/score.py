"""Batched inference: evaluating a split and picking pixels."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pixelpick_ray.active.acquisition import MeanPrediction, bounded_score, entropy, needs_model, score_passes
from pixelpick_ray.active.metrics import Counts
from pixelpick_ray.active.selection import POOLS, candidate_masks, choose_by_chance, pool_size, require_candidates
from pixelpick_ray.config.trial import AcquireSpec
from pixelpick_ray.data.borders import border_distances
from pixelpick_ray.data.cache import PreparedSplit
from pixelpick_ray.data.datasets import DatasetFacts
from pixelpick_ray.data.description import shown
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.questions import UNSAID, Questions
from pixelpick_ray.data.streams import stream, stream_seed
from pixelpick_ray.engine.batches import TrainingData, network_input
from pixelpick_ray.engine.frozen import FrozenModel
from pixelpick_ray.engine.images import SplitImages, moved
from pixelpick_ray.engine.step import autocast, set_precision
from pixelpick_ray.engine.upsampled import argmax_of_upsampled, highest_of_upsampled
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import DivergedError
from pixelpick_ray.models.dropout import stochastic
from pixelpick_ray.models.segmentation import logits_at, upsample

BATCH_PIXELS = {"cpu": 360 * 480, "cuda": 16 * 360 * 480}  # on a CPU one image, to stay within its caches
LARGEST_BATCH = 16
HOST = torch.device("cpu")


@dataclass(frozen=True)
class Predicted:
    """Images of one `size`, by position in the prepared split, and their `coarse` logits (n, C, h, w) for each pass.

    Full-size logits are these interpolated to `frame` and cropped to `size`, both (height, width).
    """

    positions: list[int]
    size: tuple[int, int]
    frame: tuple[int, int]
    coarse: Iterator[Tensor]

    @property
    def passes(self) -> Iterator[Tensor]:
        """The full-size logits (n, C, H, W) of each pass."""
        for coarse in self.coarse:
            yield upsample(coarse, self.frame)[:, :, : self.size[0], : self.size[1]]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    prepared: PreparedSplit,
    facts: DatasetFacts,
    world: World,
    numbers: Sequence[int] | None = None,
) -> tuple[Counts, dict[str, npt.NDArray[np.uint8]]]:
    """Confusion matrix (C, C) of a whole split, on every rank, and this rank's predictions (H, W) of a few images.

    Everything stays on the device until the end. `numbers` maps the model's classes to the data set's if they differ.
    """
    renumbered = None if numbers is None else torch.tensor(numbers, device=world.device)
    classes, images = facts.num_classes, SplitImages.on(prepared, world.device)
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=world.device)
    kept = set(shown(range(len(prepared))))
    examples = {}
    for batch in predict(model, prepared, facts, range(len(prepared))[world.slice_of(len(prepared))], world):
        if _by_cells(model, world):
            predicted = argmax_of_upsampled(next(batch.coarse), batch.size)
        else:
            predicted = next(batch.passes).max(dim=1).indices  # twice as fast as argmax on a CPU
        if renumbered is not None:
            predicted = renumbered[predicted.long()]
        confusion += confusion_counts(images.labels(batch.positions), predicted, classes)
        for index in (index for index, position in enumerate(batch.positions) if position in kept):
            examples[prepared.names[batch.positions[index]]] = predicted[index].to(torch.uint8)
    pictures = {name: picture.cpu().numpy() for name, picture in examples.items()}
    return world.sum_(confusion).cpu().numpy(), pictures


def _by_cells(model: nn.Module, world: World) -> bool:
    """Whether to avoid interpolating all logits (`upsampled`): worthwhile for cheap heads, but not on a GPU."""
    return isinstance(model, FrozenModel) and world.device.type == "cpu"


def confusion_counts(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts (C, C) int64 of pixels by label and prediction; labels of `classes` and above are void, not counted."""
    void = classes * classes
    cells = truth.int().mul_(classes).add_(predicted).masked_fill_(truth >= classes, void).flatten()
    if cells.device.type == "cuda":  # bincount would synchronise; histc counts integers exactly
        counts = torch.histc(cells, bins=void + 1, min=0, max=void + 1)
    else:
        counts = torch.bincount(cells, minlength=void + 1)
    return counts[:void].view(classes, classes).long()


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
    """Yield predictions in batches of images of equal size; call inside ``torch.inference_mode``.

    One pass without dropout, or one for each of `passes`, which map an image's position to its dropout generator.
    """
    model.eval()
    set_precision(precision)
    split = SplitImages.on(prepared, world.device)
    ordered = sorted(positions, key=prepared.shape)  # stable: keeps the order of images of equal size
    for (height, width), group in groupby(ordered, key=prepared.shape):
        members = list(group)
        size = max(1, min(LARGEST_BATCH, BATCH_PIXELS[world.device.type] // (height * width)))
        for batch in (members[start : start + size] for start in range(0, len(members), size)):
            if isinstance(model, FrozenModel):
                inputs, frame = model.features_of(prepared).maps(batch, world.device), (height, width)
            else:
                inputs = network_input(split.images(batch).float().div_(255), facts)
                frame = inputs.shape[2], inputs.shape[3]
            generators = [[draw(position) for position in batch] for draw in passes] if passes else [None]
            yield Predicted(batch, (height, width), frame, _coarse(model, inputs, precision, generators))


def _coarse(
    model: nn.Module, inputs: Tensor, precision: str, generators: Sequence[list[torch.Generator] | None]
) -> Iterator[Tensor]:
    for one in generators:
        with stochastic(model, one) if one else nullcontext(), autocast(precision, inputs.device):
            coarse = model(inputs)
        yield coarse.float().contiguous()  # channels first, as scores process full-size planes


@dataclass(frozen=True)
class PickedInImage:
    """Flat indices (k,) picked in an image, with entropies (k,) in nats and predicted classes (k,) if it was scored.

    `is_finite` is false if a score of the image is NaN or infinite.
    """

    position: int
    is_finite: bool
    indices: npt.NDArray[np.int64]
    entropies: npt.NDArray[np.float32] | None = None
    predicted: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Again:
    """A request to replace pixels that got no class: its number, and the pixels wanted by image name."""

    number: int
    wanted: Mapping[str, int]


def pick_initial(data: TrainingData, num_pixels: int, *, seed: int) -> Questions:
    """Pick the initial pixels of every training image, uniformly among those that are not void."""
    nothing = LabelledPixels.of(names=[], y=[], x=[], label=[], stage=[])
    groups = [(num_pixels, [int(position) for position in data.positions])]
    return _questions(_by_chance(data, nothing, groups, (seed, "initial")), data, stage=0)


def replace_initial(data: TrainingData, labels: LabelledPixels, again: Again, *, seed: int) -> Questions:
    """Pick replacements for initial pixels that got no class; `labels` are those so far."""
    groups = _groups(data, labels, again.wanted)
    return _questions(_by_chance(data, labels, groups, (seed, "initial", "again", again.number)), data, stage=0)


def _by_chance(
    data: TrainingData, labels: LabelledPixels, groups: Iterable[tuple[int, Sequence[int]]], purpose: tuple[Any, ...]
) -> list[PickedInImage]:
    """Draw pixels uniformly from those neither void nor labelled; `groups` are (count, positions of images)."""
    seed, *words = purpose
    names = data.prepared.names
    return [
        _pick_by_chance(data, position, _taken(data, labels, position), count, stream(seed, *words, names[position]))
        for count, positions in groups
        for position in positions
    ]


def _pick_by_chance(
    data: TrainingData, position: int, taken: npt.NDArray[np.int64], num_pixels: int, rng: np.random.Generator
) -> PickedInImage:
    labels = SplitImages.on(data.prepared, HOST).labels([position])
    candidates = candidate_masks(labels, data.facts.void_index, torch.from_numpy(taken))[0].numpy()
    chosen = choose_by_chance(candidates, num_pixels, image=data.prepared.names[position], rng=rng)
    return PickedInImage(position, True, chosen)


def _groups(data: TrainingData, labels: LabelledPixels, wanted: Mapping[str, int]) -> list[tuple[int, list[int]]]:
    """Positions of images grouped by the number of pixels to pick there.

    For images with pixels that people gave no class, the number is limited to the remaining candidates. Raises
    DataError if any other image has too few.
    """
    found: dict[int, list[int]] = {}
    for name, count in wanted.items():
        position = data.prepared.index[name]
        at = labels.of_image(name)
        left = int(data.prepared.candidates[position]) - int(at.stop - at.start)
        if (labels.label[at] < 0).any():
            count = min(count, left)
        require_candidates(left, count, image=name)
        if count:
            found.setdefault(count, []).append(position)
    return sorted(found.items())


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
    again: Again | None = None,
) -> Questions:
    """Pick the next pixels of every training image, or replacements (`again`); the first rank gets the whole result.

    `model` may be None for a strategy that does not use it. Pools are as in `AcquireSpec`. Only data on the picks leave
    the device, after the last batch. Images with pixels that people gave no class may yield fewer picks; DataError if
    any other image has too few candidates. DivergedError, on every rank, names the first image with a non-finite score.
    """
    names = data.prepared.names
    wanted = again.wanted if again else {names[int(at)]: acquire.pixels_per_stage for at in data.positions}
    groups = _groups(data, labels, wanted)
    mine = [(count, members[world.slice_of(len(members))]) for count, members in groups]
    if model is None or not needs_model(acquire.strategy):
        words = ("pick", stage) if again is None else ("pick", stage, "again", again.number)
        picked = _by_chance(data, labels, mine, (seed, *words))
    else:
        picked = [
            one
            for count, members in mine
            for one in _Asking(data, labels, _with_count(acquire, count), world, seed, stage).best(model, members)
        ]
    everyone = [item for part in world.gather(picked) for item in part]
    failed = world.broadcast(min((one.position for one in everyone if not one.is_finite), default=None))
    if failed is not None:
        raise DivergedError(
            f"stage {stage}, image {names[failed]}: the {acquire.strategy} score is not finite; lower "
            "train.optimizer.lr"
        )
    return _questions(everyone, data, stage=stage + 1)


def _with_count(acquire: AcquireSpec, count: int) -> AcquireSpec:
    return acquire.model_copy(update={"pixels_per_stage": count})


def _taken(data: TrainingData, labels: LabelledPixels, position: int) -> npt.NDArray[np.int64]:
    """Flat indices (k,) of an image's labelled pixels."""
    at = labels.of_image(data.prepared.names[position])
    return labels.y[at].astype(np.int64) * data.prepared.shape(position)[1] + labels.x[at]


@dataclass(frozen=True)
class _Asking:
    """Picking by a network's scores in one stage; `labels` are the existing ones."""

    data: TrainingData
    labels: LabelledPixels
    acquire: AcquireSpec
    world: World
    seed: int
    stage: int

    def best(self, model: nn.Module, positions: list[int]) -> list[PickedInImage]:
        """The picks in the images at these positions, image by image."""
        prepared, facts, acquire = self.data.prepared, self.data.facts, self.acquire
        passes = range(acquire.stochastic.passes if acquire.stochastic else 0)
        draws = [partial(self._generator, number) for number in passes]
        images = SplitImages.on(prepared, self.world.device)
        done, chosen = list[int](), list[tuple[Tensor, ...]]()
        for batch in predict(model, prepared, facts, positions, self.world, precision=acquire.precision, passes=draws):
            done += batch.positions
            chosen.append(self._choose(model, batch, images.labels(batch.positions)))
        if not done:
            return []
        finite, *columns = (torch.cat(column).cpu().numpy() for column in zip(*chosen, strict=True))
        return [PickedInImage(*parts) for parts in zip(done, finite.tolist(), *columns, strict=True)]

    def _generator(self, number: int, position: int) -> torch.Generator:
        purpose = stream_seed(self.seed, "mc_dropout", self.stage, self.data.prepared.names[position], number)
        return torch.Generator(device=self.world.device).manual_seed(purpose)

    def _choose(self, model: nn.Module, batch: Predicted, truth: Tensor) -> tuple[Tensor, ...]:
        """On the device: whether all scores are finite (n,), and indices, entropies and classes (n, k).

        `truth` are the label maps (n, H, W).
        """
        (height, width), count = truth.shape[1:], self.acquire.pixels_per_stage
        pool = pool_size(height, width, self.acquire.pool_fraction, count)
        candidates, seeds = self._candidates(batch.positions, truth), self._seeds(batch.positions)
        bounded = bounded_score(self.acquire)
        if bounded is not None and _by_cells(model, self.world):
            coarse = next(batch.coarse)
            finite = coarse.flatten(1).isfinite().all(dim=1)
            scores = torch.stack(
                [
                    highest_of_upsampled(one, batch.size, wanted, max(pool, count), *bounded)
                    for one, wanted in zip(coarse, candidates, strict=True)
                ]
            )
            indices = POOLS[self.acquire.pool](scores, candidates, seeds, count, pool)
            points = torch.stack([indices // width, indices % width], dim=2)
            there = logits_at(coarse, points, batch.size)
        else:
            mean = MeanPrediction(batch.passes)
            scores = score_passes(self.acquire, mean).flatten(1)
            finite = scores.sum(dim=1, dtype=torch.float64).isfinite()  # finite float32 cannot overflow there
            indices = POOLS[self.acquire.pool](scores, candidates, seeds, count, pool)
            there = _logits_of(mean.logits(), indices)
        return finite, indices, *predictions_at(there)

    def _candidates(self, positions: list[int], truth: Tensor) -> Tensor:
        pixels = truth[0].numel()
        taken = [_taken(self.data, self.labels, p) + index * pixels for index, p in enumerate(positions)]
        there = moved(torch.from_numpy(np.concatenate(taken)), self.world.device)
        return candidate_masks(truth, self.data.facts.void_index, there)

    def _seeds(self, positions: list[int]) -> Tensor:
        names = (self.data.prepared.names[position] for position in positions)
        seeds = [stream_seed(self.seed, "pick", self.stage, name) for name in names]
        return moved(torch.tensor(seeds), self.world.device)


def _logits_of(logits: Tensor, indices: Tensor) -> Tensor:
    """Logits (n, k, C) at flat indices (n, k), from full-size logits (n, C, H, W)."""
    image = torch.arange(len(indices), device=indices.device)[:, None]
    return logits[image, :, indices // logits.shape[3], indices % logits.shape[3]]


def predictions_at(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Entropies in nats and predicted classes, both (n, k), of logits (n, k, C)."""
    entropies = entropy(logits.flatten(0, 1)[:, :, None, None]).view(logits.shape[:2])
    return entropies, logits.max(dim=2).indices


def _questions(picked: list[PickedInImage], data: TrainingData, *, stage: int) -> Questions:
    """Convert the picks of all ranks to questions; empty except on the first rank."""
    prepared, facts = data.prepared, data.facts
    maps = [prepared.label(one.position) for one in picked]
    counts = [len(one.indices) for one in picked]
    places = [np.divmod(one.indices, label.shape[1]) for one, label in zip(picked, maps, strict=True)]
    truths = [label.reshape(-1)[one.indices].astype(np.int64) for one, label in zip(picked, maps, strict=True)]
    none = np.zeros(0, dtype=np.int64)
    truth = np.concatenate([none, *truths])
    return Questions.of(
        names=np.repeat([prepared.names[one.position] for one in picked], counts).tolist(),
        shapes=np.repeat(prepared.shapes[[one.position for one in picked]], counts, axis=0).tolist(),
        y=np.concatenate([none, *(y for y, _ in places)]),
        x=np.concatenate([none, *(x for _, x in places)]),
        truth=np.where(truth < facts.num_classes, truth, UNSAID),
        predicted=_column([one.predicted for one in picked], counts, -1),
        entropy=_column([one.entropies for one in picked], counts, np.nan),
        distance=np.concatenate(
            [none, *(border_distances(label, one.indices) for one, label in zip(picked, maps, strict=True))]
        ),
        stage=stage,
    )


def _column(values: Sequence[npt.NDArray[Any] | None], counts: Sequence[int], absent: float) -> npt.NDArray[Any]:
    """Concatenate values of all picks, with `absent` for images that were not scored."""
    parts = [np.full(count, absent) if value is None else value for value, count in zip(values, counts, strict=True)]
    return np.concatenate([np.zeros(0, dtype=np.int32), *parts])
