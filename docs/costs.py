"""What the experiments cost: stages, floating-point operations by counting, and hours at an assumed rate.

Nothing is run and no image is read: the networks are counted on torch's meta device, a multiplication and an addition
as two operations, convolutions and matrix products only.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from pixelpick_ray.active.acquisition import needs_model
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.model import FEATURE_FIELDS, ModelSpec
from pixelpick_ray.config.networks import chosen_layers, feature_grid, feature_stride, networks
from pixelpick_ray.config.trial import SizeSpec, Trial
from pixelpick_ray.data.scenes import SPLIT_SIZES
from pixelpick_ray.models.extractor import build_extractor
from pixelpick_ray.models.segmentation import FRAME_MULTIPLE, build_model
from pixelpick_ray.planning import make_plan
from pixelpick_ray.tasks import evaluation_size

FLOPS_PER_SECOND = 10e12  # sustained; about half of what an A100 can do in fp32 without tensor cores

# Images by split, and (height, width) of a usual image at native size; of the user's own, what one might have.
NUM_IMAGES = {
    "scenes": SPLIT_SIZES,
    "camvid": {"train": 367, "val": 101, "test": 233},
    "cityscapes": {"train": 2975, "val": 500},
    "voc": {"train": 1464, "val": 1449},
    "folder": {"train": 400, "val": 100},
}
NATIVE = {
    "scenes": (96, 128),
    "camvid": (360, 480),
    "cityscapes": (1024, 2048),
    "voc": (375, 500),
    "folder": (360, 480),
}


@dataclass(frozen=True)
class Cost:
    """Distinct trainings, what the trials would train one by one, and operations in all."""

    fits: int
    fits_unshared: int
    flops: float

    @property
    def hours(self) -> float:
        """Of one GPU at `FLOPS_PER_SECOND`, with nothing but the network's arithmetic."""
        return self.flops / FLOPS_PER_SECOND / 3600


def cost_of(experiment: Experiment) -> Cost:
    """The cost of an experiment of which nothing is stored."""
    plan = make_plan(experiment)
    flops = sum(features_flops(experiment, trial) for trial in _frozen(experiment))
    seen: set[str] = set()
    for chain in plan.chains:
        for stage, fit in enumerate(chain.fits):
            if fit not in seen:
                flops += fit_flops(experiment, chain.trial)
            picked = chain.picks[stage + 1] if stage + 1 < len(chain.picks) else fit
            if picked not in seen | {fit}:
                flops += pick_flops(chain.trial)
            seen |= {fit, picked}
    return Cost(plan.num_fits, plan.num_fits_unshared, flops)


def _frozen(experiment: Experiment) -> list[Trial]:
    """A trial of each frozen backbone whose features are kept."""
    trials = [trial for trial in experiment.trials() if trial.model.head is not None]
    return list({trial.model.model_dump_json(include=FEATURE_FIELDS): trial for trial in trials}.values())


def features_flops(experiment: Experiment, trial: Trial) -> float:
    """The features of all images, once."""
    evaluate = experiment.evaluate
    sizes = [(num_training_images(trial), prepared(trial, trial.dataset))]
    for name in evaluate.splits:
        images = NUM_IMAGES[trial.dataset.name][evaluate.split_of(name)]
        sizes.append((images, prepared(trial, evaluation_size(evaluate, trial, name))))
    return sum(images * extractor_flops(trial.model, size) for images, size in sizes)


@cache
def extractor_flops(model: ModelSpec, size: tuple[int, int]) -> float:
    """Operations of the frozen backbone on one image."""
    with torch.device("meta"):
        extractor = build_extractor(model.model_copy(update={"pretrained": "none"}), data_path=Path(), seed=0)
        images = torch.empty(1, 3, *size)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        extractor(images)
    return float(counter.get_total_flops())


def head_flops(model: ModelSpec, size: tuple[int, int]) -> float:
    """Operations of a head on the features of one image, by the sizes of its layers; of 11 classes."""
    network = networks()[model.backbone]
    strides = network.strides_of(model)
    widths = [sum(network.channels[layer] for layer in chosen_layers(model, strides))]
    widths += [*getattr(model.head, "hidden", ()), 11]
    places = math.prod(feature_grid(model, feature_stride(model, strides), size))
    return 2.0 * places * sum(one * other for one, other in itertools.pairwise(widths))


def fit_flops(experiment: Experiment, trial: Trial) -> float:
    """Training and evaluations of one stage; fitting a head to labelled pixels is next to nothing."""
    train, evaluate = trial.training, experiment.evaluate
    if train is None:
        sizes = [
            (NUM_IMAGES[trial.dataset.name][evaluate.split_of(name)], evaluation_size(evaluate, trial, name))
            for name in evaluate.splits
        ]
        return sum(images * head_flops(trial.model, prepared(trial, size)) for images, size in sizes)
    crop = train.augment.crop_size if train.augment else None
    step = image_flops(trial.model, frame(crop or prepared(trial, trial.dataset)), training=True)
    flops = train.epochs * num_training_images(trial) * step
    times = train.epochs if evaluate.when == "every_epoch" else 1
    for name in evaluate.splits:
        size = frame(prepared(trial, evaluation_size(evaluate, trial, name)))
        images = NUM_IMAGES[trial.dataset.name][evaluate.split_of(name)]
        flops += times * images * image_flops(trial.model, size, training=False)
    return flops


def pick_flops(trial: Trial) -> float:
    """Scoring the training images after one stage."""
    if not needs_model(trial.acquire.strategy):
        return 0.0
    passes = trial.acquire.stochastic.passes if trial.acquire.stochastic else 1
    if trial.model.head is not None:
        return passes * num_training_images(trial) * head_flops(trial.model, prepared(trial, trial.dataset))
    size = frame(prepared(trial, trial.dataset))
    return passes * num_training_images(trial) * image_flops(trial.model, size, training=False)


def num_training_images(trial: Trial) -> int:
    """Training images of a trial."""
    return trial.dataset.images or NUM_IMAGES[trial.dataset.name][trial.dataset.split or "train"]


def prepared(trial: Trial, size: SizeSpec) -> tuple[int, int]:
    """(height, width) of a usual image of the trial's data set at a prepared size."""
    return size.prepared_size(*NATIVE[trial.dataset.name])


def frame(size: tuple[int, int]) -> tuple[int, int]:
    """The size that the network sees."""
    return -(-size[0] // FRAME_MULTIPLE) * FRAME_MULTIPLE, -(-size[1] // FRAME_MULTIPLE) * FRAME_MULTIPLE


@cache
def image_flops(model: ModelSpec, size: tuple[int, int], *, training: bool) -> float:
    """Operations of one image: forward, and backward when training."""
    with torch.device("meta"):
        network = build_model(
            model.model_copy(update={"pretrained": "none"}), num_classes=11, data_path=Path(), seed=0, stage=0
        )
        images = torch.empty(2, 3, *size)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        logits = network.train(training)(images)
        if training:
            logits.sum().backward()
    return counter.get_total_flops() / len(images)
