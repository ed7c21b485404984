"""Tiny data and specs for tests of the engine: images of 32x48 or so, random labels with structure, no files."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pixelpick_ray.active.oracle import OracleRequest, answer
from pixelpick_ray.active.queries import Query, answered
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import Experiment, parse_experiment
from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.config.trial import AdamSpec, AugmentSpec, DatasetSpec, GroundTruthSpec, TrainSpec
from pixelpick_ray.data.cache import PreparedSplit
from pixelpick_ray.data.datasets import Dataset, DatasetFacts, UInt8Array
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.questions import Questions
from pixelpick_ray.engine.batches import FitJob, TrainingData
from pixelpick_ray.store import Store
from tests.support.experiments import experiment_text

CLASSES = 4
VOID = 255
FACTS = DatasetFacts(
    name="tiny",
    class_names=tuple("abcd"),
    void_index=VOID,
    mean=(0.4, 0.45, 0.5),
    std=(0.25, 0.25, 0.3),
    palette=((255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)),
    splits=("train", "val"),
)
COLOURS = np.asarray([[220, 40, 40], [40, 200, 60], [50, 60, 210], [200, 200, 60]])


def tiny_split(num_images: int = 7, shapes: tuple[tuple[int, int], ...] = ((32, 48),), seed: int = 0) -> PreparedSplit:
    """Images of coloured rectangles, noise on top, a void border line; the shapes take turns."""
    rng = np.random.default_rng(seed)
    images, labels, sizes = [], [], []
    for index in range(num_images):
        height, width = shapes[index % len(shapes)]
        label = np.full((height, width), rng.integers(CLASSES), dtype=np.uint8)
        for _ in range(4):
            top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
            label[top : top + rng.integers(6, 18), left : left + rng.integers(6, 24)] = rng.integers(CLASSES)
        image = np.clip(COLOURS[label] + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)
        label[0, :] = VOID
        images.append(image.reshape(-1, 3))
        labels.append(label.reshape(-1))
        sizes.append((height, width))
    shape_array = np.asarray(sizes, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(shape_array.prod(axis=1))]).astype(np.int64)
    flat = np.concatenate(labels)
    counts = np.asarray([(part != VOID).sum() for part in labels], dtype=np.int64)
    names = tuple(f"img_{index:02d}" for index in range(num_images))
    pixels = np.concatenate(images)
    fingerprint = hashlib.sha256(pixels.tobytes() + flat.tobytes()).hexdigest()
    return PreparedSplit("train", names, shape_array, offsets, counts, fingerprint, pixels, flat)


def tiny_data(num_images: int = 7, shapes: tuple[tuple[int, int], ...] = ((32, 48),), seed: int = 0) -> TrainingData:
    """All images of a `tiny_split` as training images."""
    return TrainingData(FACTS, tiny_split(num_images, shapes, seed), np.arange(num_images))


def label_some(data: TrainingData, counts: list[int], seed: int = 1) -> LabelledPixels:
    """`counts[i]` labelled pixels in image i, by chance, never void."""
    rng = np.random.default_rng(seed)
    names, ys, xs, labels = [], [], [], []
    for position, count in zip(data.positions, counts, strict=True):
        label = data.prepared.label(int(position))
        chosen = rng.choice(np.flatnonzero(label.reshape(-1) != VOID), count, replace=False)
        y, x = np.divmod(chosen, label.shape[1])
        names += [data.prepared.names[position]] * count
        ys.append(y), xs.append(x), labels.append(label[y, x])
    return LabelledPixels.of(
        names=names, y=np.concatenate(ys), x=np.concatenate(xs), label=np.concatenate(labels), stage=0
    )


AUGMENT = AugmentSpec(scale=(0.5, 2.0), hflip=0.5)


def tiny_job(
    data: TrainingData,
    labels: LabelledPixels | None,
    *,
    epochs: int = 2,
    batch_size: int = 4,
    dropout: tuple[float, float, float] = (0.0, 0.0, 0.0),
    augment: AugmentSpec | None = AUGMENT,
    backbone: str = "test_resnet",
    lr: float = 1e-3,
    seed: int = 3,
    stage: int = 0,
    model: ModelSpec | None = None,
    **train: object,
) -> FitJob:
    """A fit of seconds on one thread."""
    optimizer = AdamSpec(name="adam", lr=lr, backbone_lr_factor=1.0)
    fields = {"epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "augment": augment} | train
    model = model or ModelSpec(backbone=backbone, pretrained="none", dropout=dropout)
    return FitJob(model, TrainSpec(**fields), seed, stage, data, labels, Path("no-data"))


class TinyDataset(Dataset):
    """Splits of a few tiny images; put it into ``datasets.DATASETS`` under its name."""

    facts = FACTS
    sizes: ClassVar[dict[str, int]] = {"train": 5, "val": 3}

    def __init__(self, spec: DatasetSpec, data_path: Path) -> None:
        super().__init__(spec, data_path)
        self.splits = {split: tiny_split(size, seed=at) for at, (split, size) in enumerate(self.sizes.items())}

    def names(self, split: str) -> tuple[str, ...]:
        return self.splits[split].names

    def signature(self, split: str) -> list[list[str | int]]:
        return [["tiny", split, self.sizes[split]]]

    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        position = self.splits[split].index[name]
        return self.splits[split].image(position), self.splits[split].label(position)


@dataclass(frozen=True)
class Place(Execution):
    """Where a chain finds its inputs and leaves its results, with its store at hand."""

    @property
    def results(self) -> Store:
        return Store(self.store)


def place_at(store: Path, data: Path, cache: Path, **options: Any) -> Place:
    return Place(data, str(store), cache, runs_path=store.parent / "runs", **options)


TINY_EXPERIMENT = experiment_text(
    dataset="{name: tiny}",
    model="{backbone: test_resnet, pretrained: none, dropout: [0.0, 0.0, 0.2]}",
    train="""
  epochs: 3
  batch_size: 3
  optimizer: {name: adam, lr: 5e-3, backbone_lr_factor: 1.0}
  augment: {scale: [0.8, 1.25]}""",
    acquire="{strategy: margin, initial_pixels: 3, pixels_per_stage: 3}",
    evaluate="{splits: {val: {}}, report: val}",
    grid="""
  - {budget: [9]}""",
)


# Overrides that make two stages of one step each, and of less to compute.
SMALL = ("dataset={name: tiny, size: [16, 24], images: 2}", "train.batch_size=2")
TWO_STAGES = ("grid=[{budget: [3, 6]}]", "train.epochs=1", *SMALL)


def tiny_experiment(*overrides: str) -> Experiment:
    """Three stages of six steps each on the tiny data set."""
    return parse_experiment(TINY_EXPERIMENT, where="tiny.yaml", overrides=overrides)


def said(data: TrainingData, questions: Questions) -> Query:
    """The truth about the questions, and statistics of it."""
    labels = answer(GroundTruthSpec(), OracleRequest(questions, data.facts.class_names, seed=0))
    return answered(questions, labels, num_classes=data.facts.num_classes)
