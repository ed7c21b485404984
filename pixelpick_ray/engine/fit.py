"""Training of one stage."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pixelpick_ray.config.trial import ConstantSpec, MultistepSpec, PolySpec
from pixelpick_ray.data.streams import stream_seed
from pixelpick_ray.engine.batches import FitJob, num_batches, rank_batches
from pixelpick_ray.engine.resume import Unfinished
from pixelpick_ray.engine.step import TrainStep, build_optimizer, set_precision
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import DivergedError
from pixelpick_ray.models.segmentation import FeatureHead, build_model


@dataclass(frozen=True)
class Epoch:
    """A finished epoch: 1-based number, mean loss over the labelled pixels, current model and optimiser."""

    number: int
    loss: float
    model: nn.Module
    optimizer: torch.optim.Optimizer


def fit(
    job: FitJob, world: World, on_epoch: Callable[[Epoch], None], unfinished: Unfinished | None = None
) -> nn.Module:
    """Train a model for one stage and return it; `on_epoch` is called on every rank after each epoch.

    An unfinished fit, equal on all ranks, is resumed after its last epoch. The loss is the cross entropy averaged over
    the labelled pixels of the global batch, or zero without any. Raises DivergedError if the loss or a final weight is
    not finite.
    """
    model = build_model(
        job.model,
        num_classes=job.data.facts.num_classes,
        data_path=job.data_path,
        seed=job.seed,
        stage=job.stage,
    )
    backbone: Any = model.backbone if job.model.frozen else None
    if backbone is not None:
        backbone.requires_grad_(False)
    model = world.share_batch_norm(world.place(model))
    optimizer = build_optimizer(job.train.optimizer, model)
    if unfinished is not None:
        unfinished.restore(model, optimizer)
    step = TrainStep(world.distribute(model, uses_all=not isinstance(model, FeatureHead)), optimizer, world, job.train)
    batches = num_batches(len(job.data.positions), job.train.batch_size)
    for epoch in range(unfinished.progress.epoch if unfinished else 0, job.train.epochs):
        model.train()
        if backbone is not None:
            backbone.eval()  # freezes batch norm too
        set_precision(job.train.precision)  # every epoch, as evaluations in between change it
        torch.manual_seed(stream_seed(job.seed, "dropout", job.stage, epoch, world.rank))
        step.total.zero_()
        for index, batch in enumerate(rank_batches(job, epoch, world)):
            step.set_lr(lr_factor(job.train.schedule, epoch * batches + index, batches, job.train.epochs))
            step(batch)
        loss_sum, count = world.sum_(step.total).tolist()
        at = f"stage {job.stage}, epoch {epoch + 1} of {job.train.epochs}"
        if not np.isfinite(loss_sum):
            raise DivergedError(f"{at}: the loss is {loss_sum}; lower train.optimizer.lr")
        if epoch + 1 == job.train.epochs and not _is_finite(model, world):
            raise DivergedError(f"{at}: weights are not finite after the last step; lower train.optimizer.lr")
        on_epoch(Epoch(epoch + 1, loss_sum / max(count, 1.0), model, optimizer))
    model.zero_grad(set_to_none=True)  # gradients would keep the memory of captured steps alive
    return model


def _is_finite(model: nn.Module, world: World) -> bool:
    """Whether all parameters and buffers are finite on every rank."""
    floating = (value for value in model.state_dict().values() if value.is_floating_point())
    wrong = torch.stack([(~value.isfinite()).any() for value in floating]).any()
    return not world.sum_(wrong.to(torch.float64))


def lr_factor(schedule: ConstantSpec | MultistepSpec | PolySpec, iteration: int, per_epoch: int, epochs: int) -> float:
    """The factor on the base learning rates at a 0-based iteration of the stage."""
    if isinstance(schedule, MultistepSpec):
        reached = sum(iteration // per_epoch >= milestone for milestone in schedule.milestones)
        return float(schedule.gamma**reached)
    if isinstance(schedule, PolySpec):
        return float((1 - iteration / (per_epoch * epochs)) ** schedule.power)
    return 1.0
