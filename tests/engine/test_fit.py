"""Training a stage: the loss, the schedules, the batches, one rank against two."""

from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pixelpick_ray.config.model import MlpSpec, ModelSpec
from pixelpick_ray.config.trial import (
    AcquireSpec,
    AdamSpec,
    AugmentSpec,
    BlurSpec,
    ConstantSpec,
    ErringSpec,
    GroundTruthSpec,
    JitterSpec,
    MultistepSpec,
    PolySpec,
    SgdSpec,
)
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.engine.batches import IGNORED, FitJob, epoch_batches, make_batch, network_input, num_batches
from pixelpick_ray.engine.fit import Epoch, fit, lr_factor
from pixelpick_ray.engine.score import evaluate
from pixelpick_ray.engine.step import build_optimizer, loss_sum
from pixelpick_ray.errors import DataError, RunError, SpecError
from pixelpick_ray.models.segmentation import build_model, upsample
from tests.support.ranks import ALONE, Ranks, step_gradients, whole_stage_in_double
from tests.support.tiny_data import CLASSES, FACTS, VOID, label_some, tiny_data, tiny_job

pytestmark = pytest.mark.training

SGD = SgdSpec(name="sgd", lr=0.02, backbone_lr_factor=0.5, weight_decay=1e-4)
EVERYTHING = AugmentSpec(hflip=0.5, jitter=JitterSpec(), grayscale=0.2, blur=BlurSpec())
UNEQUAL = [6, 0, 3, 10, 1, 8, 5]
CPU = torch.device("cpu")


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float, atol: float) -> None:
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


def train(job: FitJob) -> tuple[list[float], nn.Module]:
    losses: list[float] = []
    model = fit(job, ALONE, lambda epoch: losses.append(epoch.loss))
    return losses, model


def fresh(job: FitJob) -> nn.Module:
    return build_model(job.model, num_classes=CLASSES, data_path=job.data_path, seed=job.seed, stage=job.stage)


@pytest.mark.parametrize(("decoder", "lr"), [("dense", 3e-3), ("sparse", 5e-3)])
def test_a_few_images_are_learnt(decoder: str, lr: float) -> None:
    """From every pixel, or from 60 of each image with the sparse decoder."""
    data = tiny_data(4)
    labels = None if decoder == "dense" else label_some(data, [60] * 4)
    job = tiny_job(data, labels, epochs=20, augment=None, dropout=(0.5, 0.5, 0.2), lr=lr, decoder=decoder)
    losses, model = train(job)
    confusion, _ = evaluate(model, data.prepared, FACTS, ALONE)
    assert losses[-1] < 0.35 * losses[0]
    assert np.trace(confusion) / confusion.sum() > 0.8


def test_the_same_seed_gives_the_same_bytes_whatever_is_measured_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """And whatever is labelled in other images; another seed or stage does not. Evaluating leaves the precision."""
    data = tiny_data(6)
    labels = label_some(data, [5] * 6)
    more = labels.add(LabelledPixels.of(names=["elsewhere"], y=[3], x=[3], label=[1], stage=0))
    cases = {"one": {}, "seed": {"seed": 4}, "stage": {"stage": 1}}
    options = {"epochs": 3, "dropout": (0.5, 0.5, 0.2), "precision": "tf32"}
    jobs = {name: tiny_job(data, labels, **options, **case) for name, case in cases.items()}
    losses, model = train(jobs["one"])
    measured, modes, precise = list[float](), list[bool](), list[bool]()

    def spy(*arguments: object) -> object:
        precise.append(not torch.backends.cudnn.allow_tf32)
        return make_batch(*arguments)

    def measure(epoch: Epoch) -> None:
        measured.append(epoch.loss)
        torch.rand(17)
        evaluate(epoch.model, data.prepared, FACTS, ALONE)
        modes.append(epoch.model.training)

    monkeypatch.setattr("pixelpick_ray.engine.batches.make_batch", spy)
    again = fit(tiny_job(data, more, **options), ALONE, measure)
    assert measured == losses
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    assert modes == [False] * 3  # so each next epoch had to turn training mode on again
    assert not again.training
    assert precise == [False] * 6  # two batches an epoch
    for other in ("seed", "stage"):
        assert train(jobs[other])[0] != losses


def by_hand(model: nn.Module, job: FitJob, positions: list[int]) -> torch.Tensor:
    """The mean cross entropy over the labelled pixels of a batch, from full-size logits and dense maps."""
    prepared, labels = job.data.prepared, job.labels
    images = torch.stack([torch.from_numpy(prepared.image(p).copy()).permute(2, 0, 1) for p in positions])
    truth = torch.full((len(positions), 32, 48), IGNORED)
    for index, position in enumerate(positions):
        at = labels.of_image(prepared.names[position])
        truth[index, labels.y[at], labels.x[at]] = torch.from_numpy(labels.label[at]).long()
    logits = F.interpolate(model(network_input(images / 255, FACTS)), (32, 48), mode="bilinear", align_corners=True)
    return F.cross_entropy(logits, truth, ignore_index=IGNORED)


@pytest.mark.parametrize("sizes", [[3, 1], [4, 0]], ids=str)
def test_the_loss_is_the_mean_over_the_labelled_pixels_of_the_global_batch(ranks: Ranks, sizes: list[int]) -> None:
    data = tiny_data(7)
    job = tiny_job(data, label_some(data, UNEQUAL), augment=None)
    positions = [3, 1, 4, 5]
    model = fresh(job).train()
    expected = by_hand(model, job, positions)
    expected.backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    results = [step_gradients(ALONE, job, positions, [4]), *ranks.run(step_gradients, job, positions, sizes)]
    for total, found in results:
        assert total[1].item() == sum(UNEQUAL[position] for position in positions)
        assert (total[0] / total[1]).item() == pytest.approx(expected.item(), rel=1e-5)
        assert_close(found, gradients, rtol=1e-3, atol=2e-5)
    nothing = tiny_job(data, label_some(data, [0, 0, 0, 0, 5, 0, 0]))
    positions = [0, 1, 2, 3]
    results = [step_gradients(ALONE, nothing, positions, [4]), *ranks.run(step_gradients, nothing, positions, sizes)]
    for total, found in results:
        assert total.tolist() == [0.0, 0.0]
        assert all(not gradient.any() for gradient in found.values())


def test_full_supervision_leaves_void_and_padding_out() -> None:
    data = tiny_data(4)
    job = tiny_job(data, None, augment=None)
    batch = make_batch(job, np.asarray([0, 2]), 0, CPU)
    truth = torch.from_numpy(np.stack([data.prepared.label(0), data.prepared.label(2)])).long()
    assert torch.equal(batch.labels == IGNORED, truth == VOID)
    logits = torch.randn(2, CLASSES, 4, 6, generator=torch.Generator().manual_seed(0))
    full = upsample(logits, (32, 48)).permute(0, 2, 3, 1)
    expected = -full.log_softmax(-1)[truth != VOID].gather(1, truth[truth != VOID][:, None]).sum()
    assert loss_sum(logits, batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("lr", "epochs", "batch_size", "told"),
    [
        (1e30, 3, 2, r"stage 0, epoch \d of 3: the loss is "),
        (1e39, 1, 4, "stage 0, epoch 1 of 1: weights are not finite"),
    ],
)
def test_a_training_that_diverges_stops_with_the_epoch_and_a_remedy(
    lr: float, epochs: int, batch_size: int, told: str
) -> None:
    with pytest.raises(RunError, match=f"{told}.*lower train.optimizer.lr"):
        train(tiny_job(tiny_data(4), None, epochs=epochs, batch_size=batch_size, optimizer=SgdSpec(name="sgd", lr=lr)))


PERCEPTRON = {"architecture": "mlp", "head": MlpSpec(hidden=(8,), dropout=0.0), "pretrained": "none"}
DECAYING = AdamSpec(name="adam", lr=1e-3, layer_decay=0.5)


@pytest.mark.parametrize(
    ("options", "full"),
    [
        ({"augment": EVERYTHING}, False),
        ({"augment": EVERYTHING, "decoder": "sparse"}, False),
        ({"optimizer": SGD}, True),
        ({"model": ModelSpec(backbone="test_resnet", **PERCEPTRON), "optimizer": DECAYING}, False),
        ({"model": ModelSpec(backbone="test_vit", **PERCEPTRON), "optimizer": DECAYING}, False),
    ],
    ids=["dense", "sparse", "every pixel", "perceptron", "perceptron on a ViT"],
)
def test_two_ranks_train_measure_and_pick_what_one_rank_does(ranks: Ranks, options: dict[str, Any], full: bool) -> None:
    """The last batch holds three images, one image no label; in float64, where rounding does not grow to a mistake."""
    data = tiny_data(7)
    labels = label_some(data, UNEQUAL)
    job = tiny_job(data, None if full else labels, **options)
    acquire = AcquireSpec(strategy="margin", pixels_per_stage=6, pool_fraction=0.05)
    alone = whole_stage_in_double(ALONE, job, labels, acquire)
    first, second = ranks.run(whole_stage_in_double, job, labels, acquire)
    for part in (first, second):
        np.testing.assert_allclose(part.losses, alone.losses, rtol=1e-6)
        assert_close(part.state, alone.state, rtol=1e-5, atol=1e-6)
        assert np.array_equal(part.confusion, alone.confusion)
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())
    assert first.digest == alone.digest
    assert len(alone.picks["y"]) == 7 * 6
    assert len(second.picks["y"]) == 0  # the first rank has the whole


def test_the_last_batch_is_left_out_only_when_it_would_hold_one_image() -> None:
    cases = {(8, 4): 2, (7, 4): 2, (6, 4): 2, (5, 4): 1, (367, 4): 92, (2, 10): 1, (3, 2): 1}
    assert {case: num_batches(*case) for case in cases} == cases
    with pytest.raises(DataError, match=r"dataset.images: only 1 .*at least 2"):
        num_batches(1, 4)
    with pytest.raises(SpecError, match=r"train.batch_size: 1 .*at least 2 images"):
        num_batches(8, 1)


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own() -> None:
    data = tiny_data(7)
    job = tiny_job(data, label_some(data, [2] * 7))
    first, second = ([batch.tolist() for batch in epoch_batches(job, epoch)] for epoch in (0, 1))
    assert [len(batch) for batch in first] == [4, 3]
    assert sorted(chain.from_iterable(first)) == sorted(chain.from_iterable(second)) == list(range(7))
    assert first != second
    assert first == [batch.tolist() for batch in epoch_batches(job, 0)]


@pytest.mark.parametrize("crop", [(32, 48), (24, 40)], ids=str)
def test_every_label_inside_the_crop_is_there_once_and_at_its_class(crop: tuple[int, int]) -> None:
    """At scale 1 points lie on pixels, so the augmented label map says which labels must be there."""
    augment = EVERYTHING.model_copy(update={"scale": (1.0, 1.0), "crop_size": crop})
    data = tiny_data(6, shapes=((32, 48), (40, 50)))
    everything = label_some(data, [int(count) for count in data.prepared.candidates])
    points_job, maps_job = tiny_job(data, everything, augment=augment), tiny_job(data, None, augment=augment)
    for epoch in range(3):
        positions = np.arange(6)
        points, maps = (make_batch(job, positions, epoch, CPU) for job in (points_job, maps_job))
        assert torch.equal(points.images, maps.images)
        for index in range(6):
            there = points.labels[index] != IGNORED
            places = points.points[index][there]
            assert torch.equal(places, places.round())
            rebuilt = torch.full(crop, IGNORED)
            y, x = places.long().unbind(1)
            rebuilt[y, x] = points.labels[index][there]
            assert len({tuple(place) for place in places.tolist()}) == len(places) == int((rebuilt != IGNORED).sum())
            assert torch.equal(rebuilt, maps.labels[index])
    for job in (points_job, maps_job):
        nothing = make_batch(job, np.zeros(0, dtype=np.int64), 0, CPU)  # of a rank without images
        assert nothing.images.shape == (0, 3, *crop)
        assert nothing.labels.numel() == 0
    with pytest.raises(DataError, match=r"train.augment.crop_size: is required, because .* differ in size"):
        make_batch(tiny_job(data, None), positions, 0, CPU)


def test_resized_labels_are_copied_by_enlarging_and_lost_by_shrinking() -> None:
    data = tiny_data(6)
    labels = label_some(data, [6] * 6)
    maps = make_batch(tiny_job(data, None, augment=EVERYTHING), np.arange(6), 0, CPU).labels
    job = tiny_job(data, labels, augment=EVERYTHING, exact_labels=False)
    batch = make_batch(job, np.arange(6), 0, CPU)
    assert batch.labels.shape == (6, 6 * 4)  # as many copies as there can be at scale 2
    counts = (batch.labels != IGNORED).sum(dim=1)
    assert counts.min() < 6 < counts.max()
    for index in range(6):
        there = batch.labels[index] != IGNORED
        y, x = batch.points[index][there].long().unbind(1)
        assert torch.equal(batch.points[index][there], torch.stack([y, x], dim=1).float())
        assert torch.equal(maps[index][y, x], batch.labels[index][there])  # each says what is there


def test_redrawn_mistakes_are_drawn_anew_each_epoch_in_the_pixels_that_were_asked_for() -> None:
    data = tiny_data(4)
    labels = label_some(data, [60] * 4)
    labels = replace(labels, stage=(np.arange(len(labels)) % 2).astype(np.int32))
    oracle = ErringSpec(name="erring", rate=1.0, redrawn=True, **{"from": "queries"})
    job = replace(tiny_job(data, labels, augment=None), oracle=oracle)
    first, second = (make_batch(job, np.arange(4), epoch, CPU).labels.numpy() for epoch in range(2))
    truth = make_batch(replace(job, oracle=GroundTruthSpec()), np.arange(4), 0, CPU).labels.numpy()
    asked = (labels.stage == 1).reshape(4, 60)
    assert ((first != truth) == asked).all()
    assert ((second != truth) == asked).all()
    assert (first != second).any()


def test_schedules_have_the_published_learning_rates() -> None:
    """protocol.md section 2: epochs 1-21 at the base rate, 22-41 at a tenth, 42-50 at a hundredth; 92 steps each."""
    schedule = MultistepSpec(name="multistep", milestones=(21, 41))
    factors = [lr_factor(schedule, iteration, 92, 50) for iteration in range(50 * 92)]
    assert factors == pytest.approx([1.0] * (21 * 92) + [0.1] * (20 * 92) + [0.01] * (9 * 92))
    assert {lr_factor(ConstantSpec(), iteration, 3, 4) for iteration in range(12)} == {1.0}
    total = 50 * 744
    for iteration in (0, 1, 743, 744, total // 2, total - 1):
        factor = lr_factor(PolySpec(name="poly"), iteration, 744, 50)
        assert factor == pytest.approx((1 - iteration / total) ** 0.9, rel=1e-12)


def test_the_rates_of_training_are_base_rates_times_the_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, ...]] = []
    original = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *arguments: object) -> object:
        seen.append(tuple(float(group["lr"]) for group in self.param_groups))
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    data = tiny_data(6)
    optimizer = SgdSpec(name="sgd", lr=0.01, backbone_lr_factor=0.1)
    schedule = MultistepSpec(name="multistep", milestones=(1,))
    train(tiny_job(data, label_some(data, [3] * 6), optimizer=optimizer, schedule=schedule))
    assert seen == [pytest.approx(rates) for rates in [(0.001, 0.01)] * 2 + [(0.0001, 0.001)] * 2]


ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 2e-4, "amsgrad": False}
MOMENTUM = {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": False, "dampening": 0}


@pytest.mark.parametrize(
    ("spec", "kind", "options"),
    [
        (AdamSpec(name="adam", lr=5e-4, backbone_lr_factor=0.1, weight_decay=2e-4), torch.optim.Adam, ADAM),
        (SgdSpec(name="sgd", lr=0.01, backbone_lr_factor=0.1, weight_decay=5e-4), torch.optim.SGD, MOMENTUM),
    ],
    ids=["adam", "sgd"],
)
def test_the_optimiser_holds_every_parameter_once_with_the_published_options(
    spec: AdamSpec | SgdSpec, kind: type, options: dict[str, Any]
) -> None:
    model = fresh(tiny_job(tiny_data(2), None, backbone="mobilenetv2_100"))
    optimizer = build_optimizer(spec, model)
    assert type(optimizer) is kind
    backbone, rest = optimizer.param_groups
    for group in (backbone, rest):
        assert {name: group[name] for name in options} == options
    assert [backbone["lr"], rest["lr"]] == pytest.approx([0.1 * spec.lr, spec.lr])
    held = [id(value) for group in (backbone, rest) for value in group["params"]]
    assert sorted(held) == sorted(id(value) for value in model.parameters())
    assert {id(value) for value in backbone["params"]} == {id(value) for value in model.backbone.parameters()}
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {(layer.momentum, layer.eps) for layer in norms} == {(0.1, 1e-5)}  # these have the defaults
