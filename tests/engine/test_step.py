"""The training step on a GPU: what is recorded trains as what is launched kernel by kernel."""

import numpy as np
import pytest
import torch

from pixelpick_ray.config.trial import AdamSpec, AugmentSpec, BlurSpec, JitterSpec, PolySpec, SgdSpec
from pixelpick_ray.engine import step as steps
from pixelpick_ray.engine.batches import FitJob, rank_batches
from pixelpick_ray.engine.fit import fit
from pixelpick_ray.engine.step import TrainStep, build_optimizer
from pixelpick_ray.engine.world import World
from pixelpick_ray.models.segmentation import build_model
from tests.support.tiny_data import CLASSES, label_some, tiny_data, tiny_job

pytestmark = pytest.mark.gpu
EVERYTHING = AugmentSpec(hflip=0.5, jitter=JitterSpec(), grayscale=0.2, blur=BlurSpec())
GPU = World(0, 1, torch.device("cuda"))


def job_of(*, full: bool = False, **options: object) -> FitJob:
    """Six epochs of two batches, the second smaller, the learning rate another in each step."""
    data = tiny_data(7)
    labels = None if full else label_some(data, [6, 0, 3, 10, 1, 8, 5])
    schedule = {"schedule": PolySpec(name="poly"), "optimizer": SgdSpec(name="sgd", lr=0.01, weight_decay=1e-4)}
    return tiny_job(data, labels, epochs=6, augment=EVERYTHING, **(schedule | options))


def losses_of(job: FitJob) -> list[float]:
    losses: list[float] = []
    fit(job, GPU, lambda epoch: losses.append(epoch.loss))
    return losses


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"full": True},
        {"decoder": "sparse"},
        {"precision": "bf16"},
        {"optimizer": AdamSpec(name="adam", lr=1e-3), "dropout": (0.0, 0.0, 0.0)},  # which counts its steps
    ],
    ids=["pixels", "every pixel", "sparse", "bf16", "adam"],
)
def test_recorded_steps_train_as_launched_ones(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(**({"dropout": (0.5, 0.5, 0.2)} | options))
    recorded = losses_of(job)
    monkeypatch.setattr(steps, "_is_recorded", lambda world: False)
    launched = losses_of(job)
    np.testing.assert_allclose(recorded, launched, rtol=0.02)
    assert len(set(np.round(launched, 4))) > 1


def test_neither_batches_nor_steps_wait_for_the_gpu() -> None:
    job = job_of()
    device = GPU.device
    model = build_model(job.model, num_classes=CLASSES, data_path=job.data_path, seed=0, stage=0).to(device).train()
    step = TrainStep(model, build_optimizer(job.train.optimizer, model), GPU, job.train)
    for epoch in range(2):  # the first time constants are made
        for batch in rank_batches(job, epoch, GPU):
            step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for epoch in range(2, 4):
            for batch in rank_batches(job, epoch, GPU):
                step.set_lr(0.5)
                step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(step.total).all()
