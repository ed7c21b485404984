"""Evaluating and picking: confusion matrices against brute force, and the contract of every strategy."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixelpick_ray.active.acquisition import STRATEGIES, needs_model
from pixelpick_ray.config.trial import AcquireSpec
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.streams import stream_seed
from pixelpick_ray.engine import score
from pixelpick_ray.engine.batches import TrainingData, network_input
from pixelpick_ray.engine.score import confusion_counts, evaluate, pick, pick_initial, predict
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import DataError, RunError
from pixelpick_ray.models.dropout import stochastic
from pixelpick_ray.models.segmentation import build_model, upsample
from tests.support.networks import confusion_by_hand, predicted_by_hand
from tests.support.ranks import ALONE, Ranks, pick_untrained
from tests.support.tiny_data import CLASSES, FACTS, VOID, label_some, said, tiny_data, tiny_job

pytestmark = pytest.mark.training

MIXED = ((32, 48), (40, 40))
ODD = ((30, 45), (33, 40), (30, 45))  # sides that are no multiples of 8: framed, and cut back


@cache
def _untrained() -> nn.Module:
    job = tiny_job(tiny_data(2), None, dropout=(0.5, 0.5, 0.2))
    return build_model(job.model, num_classes=CLASSES, data_path=job.data_path, seed=job.seed, stage=job.stage)


def some_model() -> nn.Module:
    """An untrained network for the tiny data, a new one each time."""
    return copy.deepcopy(_untrained())


@pytest.mark.parametrize(("shapes", "batches"), [(((32, 48),), [[*range(7)]]), (ODD, [[0, 2, 3, 5, 6], [1, 4]])])
def test_the_confusion_matrix_equals_counting_pixel_by_pixel(shapes: Any, batches: list[list[int]]) -> None:
    """In a batch a size, whether the network was in training mode or not, and it is left as it was."""
    data, model = tiny_data(7, shapes=shapes), some_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    confusion, examples = evaluate(model, data.prepared, FACTS, ALONE)
    assert np.array_equal(evaluate(model.train(), data.prepared, FACTS, ALONE)[0], confusion)  # dropout is off
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    predicted = [predicted_by_hand(model.eval(), data.prepared.image(at), FACTS) for at in range(7)]
    expected = confusion_by_hand(zip(map(data.prepared.label, range(7)), predicted, strict=True), FACTS)
    assert confusion.dtype == np.int64
    assert np.abs(confusion - expected).sum() <= 4  # batches of another size may round a tie otherwise
    assert confusion.sum() == expected.sum() == data.prepared.candidates.sum()
    with torch.inference_mode():
        assert [batch.positions for batch in predict(model, data.prepared, FACTS, range(7), ALONE)] == batches
    assert 1 <= len(examples) <= 4
    for name, picture in examples.items():
        assert np.mean(picture != predicted[data.prepared.index[name]]) < 0.001


def some_predictions(classes: int) -> tuple[Tensor, Tensor]:
    """Labels (3, 40, 50), some of them void or beyond the classes, and predictions."""
    rng = np.random.default_rng(classes)
    truth = rng.integers(0, classes + 2, (3, 40, 50))
    truth = np.where(truth < classes, truth, np.where(rng.random(truth.shape) < 0.5, VOID, classes)).astype(np.uint8)
    return torch.from_numpy(truth), torch.from_numpy(rng.integers(0, classes, truth.shape))


@pytest.mark.parametrize("classes", [1, 11, 254])
def test_counts_are_those_of_numpy(classes: int) -> None:
    truth, predicted = some_predictions(classes)
    expected = np.zeros((classes, classes), dtype=np.int64)
    counted = truth.numpy() < classes
    np.add.at(expected, (truth.numpy()[counted], predicted.numpy()[counted]), 1)
    found = confusion_counts(truth, predicted, classes)
    assert found.dtype == torch.int64
    assert np.array_equal(found.numpy(), expected)


SCORES = {name: one.score for name, one in STRATEGIES.items() if not one.is_committee}
# Every way to choose pixels: each strategy, the pool by score or by chance, one pass or a committee of passes.
WAYS: dict[str, dict[str, object]] = {
    **{name: {"strategy": name} for name in SCORES},
    **{f"{name} of chance": {"strategy": name, "pool": "chance"} for name in ("margin", "random")},
    **{
        f"entropy by {vote} vote": {"strategy": "entropy", "stochastic": {"passes": 3, "vote": vote}}
        for vote in ("soft", "hard")
    },
    "bald of chance": {"strategy": "bald", "stochastic": {"passes": 3}, "pool": "chance"},
    "bald": {"strategy": "bald", "stochastic": {"passes": 3}},
}


def acquire(way: str, **fields: object) -> AcquireSpec:
    return AcquireSpec(**({"pixels_per_stage": 6, "pool_fraction": 0.1} | WAYS[way] | fields))


def picked(
    data: TrainingData, labels: LabelledPixels, spec: AcquireSpec, *, stage: int = 0, seed: int = 0
) -> LabelledPixels:
    model = some_model() if needs_model(spec.strategy) else None
    return said(data, pick(model, data, labels, spec, ALONE, seed=seed, stage=stage)).pixels


@pytest.mark.parametrize("strategy", sorted(WAYS))
class TestEveryStrategy:
    """The contract of a strategy."""

    def test_gives_the_exact_number_of_new_true_labels_for_each_image(self, strategy: str) -> None:
        data = tiny_data(3, shapes=MIXED)
        last = int(data.prepared.candidates[2]) - 6  # so the third image gives up its last candidates
        labels = label_some(data, [10, 0, last])
        new = picked(data, labels, acquire(strategy), stage=2)
        assert new.names == data.names
        assert np.bincount(new.image).tolist() == [6] * 3
        assert set(new.stage) == {3}
        for name, y, x, label in zip(new.names_per_pixel(), new.y, new.x, new.label, strict=True):
            assert label == data.prepared.label(data.prepared.index[name])[y, x] != VOID
        labels = labels.add(new)  # which refuses a pixel that is there already
        with pytest.raises(DataError, match=r"image img_02: 6 pixels requested, but only 0 .*; lower the b"):
            picked(data, labels, acquire(strategy))

    def test_picks_depend_on_seed_and_image_alone(self, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither on the other images, nor on their order, nor on the batch size."""
        data, spec = tiny_data(5, shapes=MIXED), acquire(strategy)
        labels = label_some(data, [4] * 5)
        mixed, fewer = (TrainingData(FACTS, data.prepared, np.asarray(at)) for at in ([3, 0, 4, 2, 1], [1, 3]))
        usual = picked(data, labels, spec)
        assert picked(mixed, labels, spec).digest() == usual.digest()
        assert picked(data, labels, spec, seed=1).digest() != usual.digest()
        some = picked(fewer, labels, spec)
        for name, column in product(fewer.names, ("y", "x", "label")):
            of_all = getattr(usual, column)[usual.of_image(name)]
            assert np.array_equal(of_all, getattr(some, column)[some.of_image(name)])
        for size in (1, 2):
            monkeypatch.setattr(score, "LARGEST_BATCH", size)
            assert picked(data, labels, spec).digest() == usual.digest()

    @pytest.mark.parametrize("images", [5, 1], ids=["five images", "a rank without image"])
    def test_two_ranks_pick_what_one_picks(self, strategy: str, images: int, ranks: Ranks) -> None:
        data = tiny_data(images)
        job = tiny_job(data, label_some(data, [4] * images), dropout=(0.5, 0.5, 0.2))
        alone = pick_untrained(ALONE, job, data, acquire(strategy))
        assert ranks.run(pick_untrained, job, data, acquire(strategy))[0] == alone

    def test_a_network_that_gives_no_numbers_is_an_error(self, strategy: str) -> None:
        data, model, spec = tiny_data(2), some_model(), acquire(strategy)
        labels = label_some(data, [4, 4])
        model.classifier.bias.data[1] = torch.nan
        if not needs_model(spec.strategy):  # chance does not ask the network
            assert len(pick(None, data, labels, spec, ALONE, seed=0, stage=0)) == 12
        else:
            with pytest.raises(RunError, match=f"stage 0, image img_00: the {spec.strategy} score is not finite"):
                pick(model, data, labels, spec, ALONE, seed=0, stage=0)


def test_all_ranks_end_when_one_has_a_score_that_is_no_number(ranks: Ranks) -> None:
    data = tiny_data(5)
    job = tiny_job(data, label_some(data, [4] * 5))
    told = "stage 0, image img_03: the margin score is not finite; lower train.optimizer.lr"
    assert ranks.run(pick_untrained, job, data, acquire("margin"), True) == [(told, {})] * 2


class Fixed(nn.Module):
    """A network that gives logits (N, C, H, W) of its own, in the order of the images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.next = logits, 0

    def forward(self, images: Tensor) -> Tensor:
        start, self.next = self.next, self.next + len(images)
        return self.logits[start : self.next]


@pytest.mark.parametrize("strategy", [*filter(needs_model, SCORES)])
def test_picks_come_from_the_best_scored_candidates(strategy: str) -> None:
    """Against sorting all pixels of an image by score: the pool is int(h w fraction) pixels, all of them free."""
    data = tiny_data(3)
    labels = label_some(data, [50, 50, 50])
    logits = torch.randn(3, CLASSES, 32, 48, generator=torch.Generator().manual_seed(2))
    scores = SCORES[strategy](logits).numpy()
    for fraction, pool in ((0.1, 153), (0.0, 6)):
        spec = acquire(strategy, pool_fraction=fraction)
        new = said(data, pick(Fixed(logits), data, labels, spec, ALONE, seed=0, stage=0)).pixels
        for position, name in enumerate(data.names):
            free = data.prepared.label(position) != VOID
            at, mine = labels.of_image(name), new.of_image(name)
            free[labels.y[at], labels.x[at]] = False
            best = set(np.argsort(-np.where(free, scores[position], -np.inf).ravel(), kind="stable")[:pool])
            chosen = set(new.y[mine] * 48 + new.x[mine])
            assert chosen <= best
            assert chosen == best or pool != 6


def test_first_pixels_are_uniform_over_pixels_that_are_not_void() -> None:
    data = tiny_data(4, shapes=MIXED)
    first, again, other = (said(data, pick_initial(data, 500, seed=seed)).pixels for seed in (0, 0, 1))
    assert np.bincount(first.image).tolist() == [500] * 4
    assert set(first.stage) == {0}
    assert len({*zip(first.image, first.y, first.x, strict=True)}) == len(first)
    for name, y, x, label in zip(first.names_per_pixel(), first.y, first.x, first.label, strict=True):
        assert label == data.prepared.label(data.prepared.index[name])[y, x] != VOID
    assert np.mean([first.x < 22, other.x < 22]) == pytest.approx(0.5, abs=0.03)  # columns 0-21 of 48 and of 40
    assert again.digest() == first.digest() != other.digest()
    with pytest.raises(DataError, match="image img_00: 1489 pixels requested, but only 1488 are neither void"):
        pick_initial(tiny_data(1), 1489, seed=0)


@pytest.mark.parametrize("way", ["entropy", "entropy by soft vote", "bald"])
def test_the_entropy_of_what_was_asked_is_that_of_the_prediction_there(way: str) -> None:
    """Against log-probabilities in double precision at the picked pixels; of a committee, of its mean prediction."""
    data = tiny_data(3)
    model = some_model()
    query = said(data, pick(model, data, label_some(data, [4] * 3), acquire(way), ALONE, seed=0, stage=0))
    spec = acquire(way).stochastic
    probabilities = []
    for number in range(spec.passes if spec else 1):
        draws = [torch.Generator().manual_seed(stream_seed(0, "mc_dropout", 0, name, number)) for name in data.names]
        with torch.no_grad(), stochastic(model.eval(), draws) if spec else nullcontext():
            images = torch.from_numpy(np.stack([data.prepared.image(p) for p in range(3)])).permute(0, 3, 1, 2) / 255
            logits = upsample(model(network_input(images, FACTS)), (32, 48))
        probabilities.append(logits.double().softmax(dim=1).numpy())
    mean = np.mean(probabilities, axis=0)
    entropies = -(mean * np.log(mean)).sum(axis=1)
    pixels = query.pixels
    expected = np.mean([entropies[image, y, x] for image, y, x in zip(pixels.image, pixels.y, pixels.x, strict=True)])
    assert query.statistics["entropy"] == pytest.approx(expected, rel=1e-5)
    assert query.statistics["class_counts"] == np.bincount(pixels.label, minlength=CLASSES).tolist()
    assert sum(query.statistics["class_counts"]) == query.statistics["pixels"] == 18


GPU = World(0, 1, torch.device("cuda"))


@pytest.mark.gpu
def test_a_gpu_counts_exactly() -> None:
    for classes in (1, 2, 11, 150, 254):
        truth, predicted = some_predictions(classes)
        found = confusion_counts(truth.cuda(), predicted.cuda(), classes)
        assert torch.equal(found.cpu(), confusion_counts(truth, predicted, classes))


@pytest.mark.gpu
@pytest.mark.parametrize("way", [way for way, spec in WAYS.items() if "stochastic" not in spec])
def test_a_gpu_picks_what_a_cpu_picks_from_the_same_logits(way: str) -> None:
    data = tiny_data(5)
    labels = label_some(data, [10, 0, 3, 700, 1])
    logits = torch.randn(5, CLASSES, 32, 48, generator=torch.Generator().manual_seed(3)) * 3
    alone, there = (
        said(data, pick(Fixed(logits.to(world.device)), data, labels, acquire(way), world, seed=0, stage=0))
        for world in (ALONE, GPU)
    )
    assert there.pixels.digest() == alone.pixels.digest()
    assert there.statistics == pytest.approx(alone.statistics, rel=1e-5)


def waits(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> int:
    """How often the host copies from the GPU; whatever else makes it wait, and what does so before, is an error."""
    copies, copied = [0], Tensor.cpu

    def copy(tensor: Tensor) -> Tensor:
        copies[0] += 1
        torch.cuda.set_sync_debug_mode("default")
        return copied(tensor)

    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "cpu", copy)
        torch.cuda.set_sync_debug_mode("error")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return copies[0]


@pytest.mark.gpu
@pytest.mark.parametrize("way", [None, *(way for way, spec in WAYS.items() if spec["strategy"] != "random")])
def test_the_host_never_waits_for_a_gpu_before_the_last_batch(way: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(6, shapes=MIXED)
    labels = label_some(data, [4] * 6)
    model = some_model().to(GPU.device)

    def work() -> None:
        if way is None:
            evaluate(model, data.prepared, FACTS, GPU)
        else:
            pick(model, data, labels, acquire(way), GPU, seed=0, stage=0)

    work()  # what is made once may wait
    copies = set()
    for size in (1, 3):
        monkeypatch.setattr(score, "LARGEST_BATCH", size)
        copies.add(waits(monkeypatch, work))
    assert len(copies) == 1
    assert copies.pop() <= 5
