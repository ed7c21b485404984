"""Scores: equal to their formulas in double precision, finite, larger where the network is less sure."""

import math
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from pixelpick_ray.active.acquisition import STRATEGIES, bald, needs_model, score_passes
from pixelpick_ray.config.trial import AcquireSpec

pytestmark = pytest.mark.long

SCORED = {name: one.score for name, one in STRATEGIES.items() if not one.is_committee and one.score is not None}
every_score = pytest.mark.parametrize("name", SCORED)


def score_of(name: str, logits: Tensor) -> npt.NDArray[np.float64]:
    return np.asarray(SCORED[name](logits), dtype=np.float64)


def by_formula(name: str, logits: Tensor) -> npt.NDArray[np.float64]:
    """The published formulas (protocol, section 4) in double precision, pixel by pixel; margin with its sign turned."""
    array = logits.double().numpy()
    scores = np.zeros((array.shape[0], *array.shape[2:]))
    for index in np.ndindex(scores.shape):
        pixel = array[(index[0], slice(None), *index[1:])]
        powers = [math.exp(value - max(pixel)) for value in pixel]
        probabilities = sorted((power / math.fsum(powers) for power in powers), reverse=True)
        scores[index] = {
            "margin": probabilities[1] - probabilities[0],
            "least_confidence": 1 - probabilities[0],
            "entropy": -math.fsum(p * math.log(p) for p in probabilities if p > 0),
        }[name]
    return scores


EXTREMES = [
    *([0.0, 0.0, 0.0], [1e4, 1e4, 1e4], [-80.0, -80.0, -80.0]),  # equal
    *([1e4, -1e4, 0.0], [80.0, -80.0, 0.0], [3e38, -3e38, 0.0]),  # one wins
    *([1e4, 1e4, -1e4], [80.0, 80.0, -80.0], [0.0, -104.0, 0.0]),  # two win
    *([1e4, 1e4 - 1, 0.0], [0.0, 1e-3, -1e-3], [20.0, 3.0, -90.0]),  # close
]


@every_score
def test_extreme_logits_have_the_score_of_the_formula(name: str) -> None:
    logits = torch.tensor(EXTREMES).T.reshape(1, 3, 12, 1)
    scores = score_of(name, logits)
    assert np.isfinite(scores).all()
    assert np.abs(scores - by_formula(name, logits)).max() < 1e-6
    for spec in (spec_of(name), spec_of(name, vote="hard"), spec_of("bald")):
        assert score_passes(spec, [logits, logits.flip(1), -logits]).isfinite().all()
    alone = score_of(name, torch.tensor([-7.0, 0.0, 1e4]).reshape(1, 1, 1, 3))  # a single class is sure
    assert (alone == (-1.0 if name == "margin" else 0.0)).all()


@every_score
def test_scores_have_the_precision_of_their_numbers(name: str) -> None:
    """Against double precision: to 4e-7 of a probability, to 1e-6 nats, and a tiny score to 1e-5 of itself."""
    for scale, classes in product((0.01, 1.0, 5.0, 30.0, 1e4), (2, 11, 21)):
        logits = torch.randn(2, classes, 50, 50, generator=torch.Generator().manual_seed(classes)) * scale
        exact, found = score_of(name, logits.double()), score_of(name, logits)
        assert np.abs(found - exact).max() < {"margin": 4e-7, "least_confidence": 4e-7, "entropy": 1e-6}[name]
        normal = np.abs(exact) > 1e-30
        assert np.abs(found / np.where(normal, exact, 1.0) - 1)[normal].max() < 1e-5
        by_hand = by_formula(name, logits[:1, :, :3, :3].double())
        assert np.abs(exact[:1, :3, :3] - by_hand).max() < 1e-12


@every_score
def test_what_is_no_number_never_gets_a_score(name: str) -> None:
    """And no score changes the logits."""
    for wrong, vote in product((math.nan, math.inf), ("soft", "hard")):
        logits = torch.zeros(1, 3, 1, 4)
        logits[0, 1, 0, 2] = wrong
        before = logits.clone()
        scores = score_passes(spec_of(name, vote=vote), [torch.zeros(1, 3, 1, 4), logits])
        assert torch.isfinite(scores).flatten().tolist() == [True, True, False, True]
        torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)


def test_the_host_reads_nothing_back_from_the_device() -> None:
    """Tensors on the meta device have no values, so whoever asks for one fails."""
    passes = [torch.zeros(2, 4, 6, 5, device="meta")] * 3
    ways = [spec_of(name, vote=vote) for name in SCORED for vote in ("soft", "hard")]
    for spec in (*ways, spec_of("bald")):
        assert score_passes(spec, iter(passes)).shape == (2, 6, 5)


@pytest.mark.gpu
@every_score
def test_a_gpu_gives_the_same_scores(name: str) -> None:
    logits = torch.randn(4, 11, 40, 50, generator=torch.Generator().manual_seed(0)) * 5
    assert np.abs(SCORED[name](logits.cuda()).cpu().numpy() - score_of(name, logits)).max() < 1e-6


def passes_by_hand() -> tuple[list[Tensor], npt.NDArray[np.float64]]:
    """Three passes over two pixels, and their probabilities (pass, pixel, class)."""
    probabilities = np.array(
        [[[0.8, 0.1, 0.1], [0.6, 0.3, 0.1]], [[0.1, 0.8, 0.1], [0.5, 0.4, 0.1]], [[0.2, 0.1, 0.7], [0.7, 0.2, 0.1]]]
    )
    return [torch.from_numpy(np.log(one).T.copy()).reshape(1, 3, 1, 2) for one in probabilities], probabilities


def nats(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return -np.sum(probabilities * np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0), -1)


def spec_of(strategy: str, **stochastic: object) -> AcquireSpec:
    return AcquireSpec(strategy=strategy, stochastic=stochastic)


def test_bald_is_the_entropy_of_the_mean_minus_the_mean_entropy() -> None:
    passes, probabilities = passes_by_hand()
    found = score_passes(spec_of("bald"), iter(passes)).flatten().numpy()
    assert found == pytest.approx(nats(probabilities.mean(axis=0)) - nats(probabilities).mean(axis=0), abs=1e-12)
    assert found[0] > 0.4 > 0.05 > found[1] > 0  # the passes quarrel over the first pixel
    logits = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(0)) * 6
    assert bald([logits] * 4).abs().max() < 1e-5  # they all agree


@every_score
def test_a_soft_vote_is_the_mean_of_the_scores_and_a_hard_one_scores_the_shares_of_the_votes(name: str) -> None:
    """The passes vote a, b, c for the first pixel and a, a, a for the second."""
    passes, _ = passes_by_hand()
    mean = np.mean([by_formula(name, logits) for logits in passes], axis=0)
    assert np.abs(score_passes(spec_of(name), iter(passes)).numpy() - mean).max() < 1e-12
    shares = {"margin": [0.0, -1.0], "least_confidence": [2 / 3, 0.0], "entropy": [math.log(3), 0.0]}
    found = score_passes(spec_of(name, vote="hard"), iter(passes)).flatten().tolist()
    assert found == pytest.approx(shares[name], abs=1e-12)


def test_strategies_are_the_published_ones_and_bald() -> None:
    assert sorted(STRATEGIES) == ["bald", "entropy", "least_confidence", "margin", "random"]
    assert [name for name in STRATEGIES if not needs_model(name)] == ["random"]
