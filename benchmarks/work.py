"""The timed work: a stage's training as the project runs it, and the same network alone on resident data."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import baseline
from benchmarks.timing import Action
from pixelpick_ray.config.experiment import Experiment, load_experiment
from pixelpick_ray.data import scenes
from pixelpick_ray.data.cache import PreparedSplit, default_cache_path, prepare
from pixelpick_ray.data.datasets import known_facts, open_dataset
from pixelpick_ray.engine.batches import IGNORED, FitJob, TrainingData, epoch_batches, make_batch, network_input
from pixelpick_ray.engine.score import pick, pick_initial
from pixelpick_ray.engine.step import TrainStep, autocast, build_optimizer, set_precision
from pixelpick_ray.engine.world import World
from pixelpick_ray.models.segmentation import build_model, upsample

ROOT = Path(__file__).resolve().parents[1]
DISTINCT_IMAGES = 16  # generated; a larger pool repeats them
LABELLED_PIXELS = 50  # per image: the middle of the published budgets


@dataclass(frozen=True)
class Setting:
    """An experiment's network and training, with overrides."""

    experiment: str
    overrides: tuple[str, ...] = ()

    def but(self, *overrides: str) -> "Setting":
        """The setting with additional overrides."""
        return Setting(self.experiment, self.overrides + overrides)

    def load(self, size: tuple[int, int] | None) -> Experiment:
        """Load the experiment without pretrained weights, which do not affect timing, optionally at another size."""
        changes = ["model.pretrained=none", *self.overrides]
        if size is not None:
            changes += [f"dataset.size={list(size)}", f"train.augment.crop_size={list(size)}"]
        return load_experiment(ROOT / "experiments" / f"{self.experiment}.yaml", changes)

    def label(self) -> str:
        """The network and the overrides."""
        model = self.load(None).model
        changes = (change.rpartition(".")[2].replace("=", " ") for change in self.overrides)
        return ", ".join([f"{model.architecture} {model.backbone}", *changes])


@dataclass(frozen=True)
class Work:
    """The first stage of an experiment, on one device."""

    experiment: Experiment
    job: FitJob
    world: World

    @property
    def device(self) -> torch.device:
        return self.world.device


def make_work(
    setting: Setting, size: tuple[int, int] | None, images: int, device: torch.device, data_path: Path | None = None
) -> Work:
    """Prepare the first stage of the first trial with `images` images, which are real ones if `data_path` is given."""
    experiment = setting.load(size)
    trial = experiment.trials()[0]
    if data_path is None:
        facts = known_facts(trial.dataset.name)
        if facts is None or trial.dataset.size is None:
            raise AssertionError("the benchmark's experiments have known facts and one size of images")
        prepared = synthetic_split(images, trial.dataset.size, facts.num_classes, facts.void_index)
    else:
        dataset = open_dataset(trial.dataset, data_path)
        facts = dataset.facts
        whole = prepare(dataset, facts.train_split, trial.dataset, default_cache_path(data_path))
        prepared = first_images(whole, images)
    data = TrainingData(facts, prepared, np.arange(len(prepared)))
    asked = pick_initial(data, LABELLED_PIXELS, seed=0)
    labels = asked.answered(asked.truth)
    if trial.train is None:
        raise AssertionError("the benchmark's experiments train their networks")
    job = FitJob(trial.model, trial.train, trial.seed, 0, data, labels, data_path or Path("no-data"))
    return Work(experiment, job, World(0, 1, device))


@lru_cache(maxsize=1)
def synthetic_split(images: int, size: tuple[int, int], num_classes: int, void: int) -> PreparedSplit:
    """Generated street scenes at a size (height, width), with added grain; images repeat under different names."""
    drawn = [enlarged(index, size, num_classes, void) for index in range(min(images, DISTINCT_IMAGES))]
    chosen = [drawn[index % len(drawn)] for index in range(images)]
    pixels = size[0] * size[1]
    return PreparedSplit(
        "train",
        tuple(f"image_{index:04d}.png" for index in range(images)),
        np.tile(np.asarray(size, dtype=np.int64), (images, 1)),
        np.arange(images + 1, dtype=np.int64) * pixels,
        np.asarray([int((label != void).sum()) for _, label in chosen], dtype=np.int64),
        f"synthetic {images}",
        np.concatenate([image.reshape(-1, 3) for image, _ in chosen]),
        np.concatenate([label.reshape(-1) for _, label in chosen]),
    )


def enlarged(
    index: int, size: tuple[int, int], num_classes: int, void: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A scene and its label map, resized to (height, width)."""
    image, label = scenes.scene("train", index)
    to = size[1], size[0]
    large = np.asarray(Image.fromarray(image).resize(to, Image.Resampling.BICUBIC)).astype(np.float32)
    grain = np.random.default_rng(index).normal(0, 4, large.shape)
    classes = np.asarray(Image.fromarray(label).resize(to, Image.Resampling.NEAREST))
    return np.clip(large + grain, 0, 255).astype(np.uint8), np.where(classes < num_classes, classes, void).astype("u1")


def first_images(prepared: PreparedSplit, count: int) -> PreparedSplit:
    """The first `count` images of a split, or all if it has fewer."""
    count = min(count, len(prepared))
    return replace(
        prepared,
        names=prepared.names[:count],
        shapes=prepared.shapes[:count],
        offsets=prepared.offsets[: count + 1],
        candidates=prepared.candidates[:count],
        fingerprint=f"{prepared.fingerprint} {count}",
    )


def fresh_model(work: Work) -> nn.Module:
    """The stage's network before training, on the device."""
    job, world = work.job, work.world
    model = build_model(
        job.model, num_classes=job.data.facts.num_classes, data_path=job.data_path, seed=job.seed, stage=job.stage
    )
    return world.share_batch_norm(world.place(model))


def bare_train_step(work: Work) -> Action:
    """The project's train step alone, on one resident batch."""
    job, world = work.job, work.world
    model = fresh_model(work).train()
    step = TrainStep(model, build_optimizer(job.train.optimizer, model), world, job.train)
    batch = make_batch(job, next(epoch_batches(job, 0)), 0, world.device)

    def train() -> None:
        set_precision(job.train.precision)
        step(batch)

    return train


def plain_train_step(work: Work) -> Action:
    """A train step of the baseline's network on the same resident batch: eager, fp32, NCHW, full-size logits."""
    job, facts = work.job, work.job.data.facts
    model = baseline.plain_network(job.model, facts.num_classes).to(work.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=job.train.optimizer.lr)
    batch = make_batch(job, next(epoch_batches(job, 0)), 0, work.device)
    images = batch.images.contiguous()
    target = label_maps(batch.points, batch.labels, (images.shape[2], images.shape[3]), facts.void_index)

    def step() -> None:
        set_precision("fp32")
        baseline.plain_step(model, optimizer, images, target, facts.void_index)

    return step


def label_maps(points: Tensor | None, labels: Tensor, size: tuple[int, int], void: int) -> Tensor:
    """Label maps (n, H, W), void except at labelled points (n, P, 2)."""
    if points is None:
        return labels.masked_fill(labels == IGNORED, void)
    maps = torch.full((len(labels), *size), void, device=labels.device)
    y, x = points.round().long().unbind(dim=2)
    which = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
    there = labels != IGNORED
    maps[which[there], y[there], x[there]] = labels[there]
    return maps


class Frozen:
    """The baseline's complete work on the first images of a stage, written as PNG files to a folder."""

    def __init__(self, work: Work, images: int, folder: Path) -> None:
        job, prepared = work.job, work.job.data.prepared
        if job.labels is None or job.train.augment is None:
            raise AssertionError("the baseline trains on augmented images with labelled pixels")
        self.work, self.facts = work, job.data.facts
        self.paths = [_write_pair(prepared, position, folder) for position in range(images)]
        self.taken = [np.zeros(prepared.shape(position), dtype=np.bool_) for position in range(images)]
        for name, mask in zip(prepared.names, self.taken, strict=False):
            at = job.labels.of_image(name)
            mask[job.labels.y[at], job.labels.x[at]] = True
        self.model = baseline.plain_network(job.model, self.facts.num_classes).to(work.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=job.train.optimizer.lr)
        # As in the original on a GPU; on a CPU they would only compete with the network.
        workers: dict[str, Any] = {"num_workers": 4, "persistent_workers": True} if work.device.type == "cuda" else {}
        dataset = baseline.LabelledImages(self.paths, self.taken, self.facts, job.train.augment)
        self.batches = DataLoader(dataset, job.train.batch_size, shuffle=True, drop_last=True, **workers)

    def train(self) -> None:
        """Train an epoch."""
        set_precision("fp32")
        self.model.train()
        baseline.train_epoch(self.model, self.optimizer, self.batches, self.facts, self.work.device)

    def query(self) -> None:
        """Query the next pixels of every image."""
        set_precision("fp32")
        self.model.eval()
        acquire = self.work.experiment.acquire
        for paths, taken in zip(self.paths, self.taken, strict=True):
            baseline.query_image(
                self.model,
                paths,
                taken,
                self.facts,
                self.work.device,
                pool_fraction=acquire.pool_fraction,
                num_pixels=acquire.pixels_per_stage,
            )

    def evaluate(self) -> None:
        """Evaluate every image."""
        set_precision("fp32")
        self.model.eval()
        for paths in self.paths:
            baseline.evaluate_image(self.model, paths, self.facts, self.work.device)


def _write_pair(prepared: PreparedSplit, position: int, folder: Path) -> tuple[Path, Path]:
    paths = folder / f"{position}_image.png", folder / f"{position}_label.png"
    for path, pixels in zip(paths, (prepared.image(position), prepared.label(position)), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def picking(work: Work, model: nn.Module) -> Action:
    """Scoring and picking over the whole pool, as in a stage."""
    job, acquire = work.job, work.experiment.acquire
    if job.labels is None:
        raise AssertionError("full supervision picks nothing")
    return partial(pick, model, job.data, job.labels, acquire, work.world, seed=0, stage=0)


def batch_size_of(model: nn.Module, action: Action) -> int:
    """The largest batch passed to a model while an action runs."""
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    action()
    hook.remove()
    return max(sizes)


def resident_pool(work: Work, batch_size: int) -> list[Tensor]:
    """All images of the split as network inputs, in batches, on the device."""
    prepared, pool = work.job.data.prepared, []
    for start in range(0, len(prepared), batch_size):
        positions = range(start, min(start + batch_size, len(prepared)))
        raw = torch.from_numpy(np.stack([prepared.image(position) for position in positions])).permute(0, 3, 1, 2)
        pool.append(network_input(raw.to(work.device).float().div_(255), work.job.data.facts))
    return pool


def bare_forward(work: Work, model: nn.Module, pool: list[Tensor]) -> Action:
    """Full-size logits of a resident pool, and nothing else."""
    precision = work.experiment.acquire.precision

    @torch.inference_mode()
    def forward() -> None:
        model.eval()
        set_precision(precision)
        for images in pool:
            with autocast(precision, work.device):
                coarse = model(images)
            upsample(coarse.float().contiguous(), (images.shape[2], images.shape[3]))

    return forward


def plain_forward(work: Work, pool: list[Tensor]) -> Action:
    """The same with the baseline's network: eager, fp32, NCHW."""
    model: Callable[[Tensor], Tensor]
    model = baseline.plain_network(work.job.model, work.job.data.facts.num_classes).to(work.device).eval()
    plain = [images.contiguous() for images in pool]

    @torch.inference_mode()
    def forward() -> None:
        set_precision("fp32")
        for images in plain:
            model(images)

    return forward
