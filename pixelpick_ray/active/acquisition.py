"""Scores: how much a pixel is worth asking about. Dispatch by name is ``STRATEGIES``.

A score function takes logits (N, C, H, W) and returns (N, H, W), where **larger is always picked first**; a committee's
takes the logits of several stochastic passes one after another. All are finite for finite logits. A new score is one
function and one line in a dict, or an external function (`config/parts.py`). The formulas are those of PixelPick (Shin,
Xie, Albanie 2021, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from pixelpick_ray.config import parts
from pixelpick_ray.config.trial import AcquireSpec
from pixelpick_ray.errors import SpecError

if TYPE_CHECKING:  # so that planning, which only needs the names, does not import torch
    from torch import Tensor

    Score = Callable[[Tensor], Tensor]
    CommitteeScore = Callable[[Iterable[Tensor]], Tensor]


def margin(logits: Tensor) -> Tensor:
    """Minus the difference of the two largest class probabilities, in -1..0; of one class alone -1."""
    others = _below_best(logits)
    runner_up = others.amax(dim=1)
    return runner_up.expm1_().div_(others.exp_().sum(dim=1).add_(1.0))


def least_confidence(logits: Tensor) -> Tensor:
    """One minus the largest class probability, in 0..1."""
    rest = _below_best(logits).exp_().sum(dim=1)
    return rest / (rest + 1.0)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the class probabilities in nats, in 0..ln C."""
    others = _finite(_below_best(logits))
    powers = others.exp()
    rest = powers.sum(dim=1)
    return rest.log1p() - powers.mul_(others).sum(dim=1).div_(rest + 1.0)


def _below_best(logits: Tensor) -> Tensor:
    """How far each class is below the best one (N, C, H, W); the best itself, the first of equal ones, is at -inf.

    So with ``rest``, the sum of the exponentials, the best class has probability 1 / (1 + rest): no score has to tell a
    small rest from 1. No number where a largest logit is none or infinite.
    """
    best = logits.max(dim=1, keepdim=True)
    return (logits - best.values).scatter_(1, best.indices, best.values * 0.0 - float("inf"))


def bald(passes: Iterable[Tensor]) -> Tensor:
    """Mutual information of prediction and weights in nats, in 0..ln C up to rounding: the entropy of the mean
    prediction minus the mean entropy of the predictions (Houlsby et al. 2011, equation 2; Gal et al. 2017).
    """
    mean = MeanPrediction(passes)
    entropies = list(map(entropy, mean))
    return entropy(mean.logits()) - sum(entropies[1:], entropies[0]) / len(entropies)


def soft_vote(score: Score, passes: Iterable[Tensor]) -> Tensor:
    """The mean of the passes' scores: what the published code meant its option to do."""
    scores = [score(logits) for logits in passes]
    return sum(scores[1:], scores[0]) / len(scores)


def hard_vote(score: Score, passes: Iterable[Tensor]) -> Tensor:
    """The score of the shares of passes that vote for each class; of entropy, vote entropy (Dagan, Engelson 1995)."""
    votes: Tensor | None = None
    for logits in passes:
        best = logits.max(dim=1, keepdim=True)
        votes = logits.new_zeros(logits.shape) if votes is None else votes
        votes.scatter_add_(1, best.indices, best.values * 0.0 + 1.0)  # what is no number wins no vote silently
    if votes is None:
        raise AssertionError("no pass was made")
    return score(_finite(votes.log()))


class MeanPrediction:
    """Passes on logits one after another, and knows the mean of their class probabilities afterwards."""

    def __init__(self, passes: Iterable[Tensor]) -> None:
        self._passes = passes
        self._first: Tensor | None = None
        self._sum: Tensor | None = None
        self._count = 0

    def __iter__(self) -> Iterator[Tensor]:
        for logits in self._passes:
            if self._first is None:
                self._first = logits
            else:
                before = self._first.softmax(dim=1) if self._sum is None else self._sum
                self._sum = before.add_(logits.softmax(dim=1))
            self._count += 1
            yield logits

    def logits(self) -> Tensor:
        """(N, C, H, W) logits of the mean probabilities: of one pass its own, else their logarithms."""
        if self._first is None:
            raise AssertionError("no pass was made")
        return self._first if self._sum is None else _finite((self._sum / self._count).log())


def _finite(log_probabilities: Tensor) -> Tensor:
    """Not -inf, or 0 log 0 would be no number."""
    return log_probabilities.clamp(min=-1e4)


@dataclass(frozen=True)
class Strategy:
    """An acquisition function. `score` of a committee takes the logits of several passes, of others those of one; None
    draws pixels at random from the stream of their image, and the network is not asked. Raise `version` when its scores
    change: picks are then made again, those of other strategies stay.

    `bound` gives what no score can be above, of the smallest probability that the likeliest class can have and the
    number of classes: with it only pixels that may be picked are scored where a head is cheap.
    """

    score: Any
    is_committee: bool = False
    version: int = 1
    bound: Any = None


def _margin_bound(least: Tensor, classes: int) -> Tensor:
    return (1.0 - 2.0 * least).clamp_(max=0.0)


def _least_confidence_bound(least: Tensor, classes: int) -> Tensor:
    return 1.0 - least


def _entropy_bound(least: Tensor, classes: int) -> Tensor:
    """The entropy of the likeliest class at its smallest, and all others alike."""
    share = least.clamp(min=1.0 / classes, max=1.0)
    rest = 1.0 - share
    terms = [-part * part.clamp(min=1e-30).log() for part in (share, rest)]
    return terms[0] + terms[1] + rest * math.log(max(1, classes - 1))


STRATEGIES: dict[str, Strategy] = {
    "margin": Strategy(margin, bound=_margin_bound),
    "entropy": Strategy(entropy, bound=_entropy_bound),
    "least_confidence": Strategy(least_confidence, bound=_least_confidence_bound),
    "random": Strategy(None),
    "bald": Strategy(bald, is_committee=True),
}
VOTES: dict[str, Callable[[Score, Iterable[Tensor]], Tensor]] = {"soft": soft_vote, "hard": hard_vote}


def score_passes(acquire: AcquireSpec, passes: Iterable[Tensor]) -> Tensor:
    """(N, H, W) scores of a strategy that asks the network, from the logits of its passes (one unless stochastic)."""
    strategy = _strategy(acquire.strategy)
    if strategy.is_committee:
        return cast("Tensor", strategy.score(passes))
    if strategy.score is None:
        raise AssertionError(f"{acquire.strategy} scores nothing")
    return VOTES[acquire.stochastic.vote if acquire.stochastic else "soft"](strategy.score, passes)


def bounded_score(acquire: AcquireSpec) -> tuple[Score, Any] | None:
    """The score of one pass and what it cannot be above, where only the best-scored pixels matter; else None."""
    strategy = _strategy(acquire.strategy)
    if strategy.bound is None or acquire.stochastic is not None or acquire.pool != "score":
        return None
    return strategy.score, strategy.bound


def _strategy(name: str) -> Strategy:
    """The strategy of a name; an external one is a function, or a `Strategy`."""
    if name in STRATEGIES:
        return STRATEGIES[name]
    found = parts.load("strategy", name)
    if isinstance(found, Strategy):
        return found
    return Strategy(partial(_shaped, found, name))


def _shaped(score: Score, name: str, logits: Tensor) -> Tensor:
    """The scores of an external function. SpecError when they are not one number a pixel."""
    scores = score(logits)
    wanted = (logits.shape[0], *logits.shape[2:])
    shape = tuple(getattr(scores, "shape", ()))
    if shape != wanted or not scores.is_floating_point():
        got = f"{scores.dtype} {list(shape)}" if shape else type(scores).__name__
        raise SpecError(f"{name}: returned {got} for logits {list(logits.shape)}, expected floats {list(wanted)}")
    return scores


def check_strategy(acquire: AcquireSpec) -> None:
    """SpecError with the known strategies for an unknown one, and for one that does not go with the other fields."""
    name = acquire.strategy
    if name not in STRATEGIES:
        if parts.is_external("strategy", name):
            return
        known = ", ".join([*STRATEGIES, *parts.names("strategy")])
        raise SpecError(
            f"acquire.strategy: unknown strategy {name!r}; known: {known}, or your own by file:PATH.py:NAME"
        )
    committee = STRATEGIES[name].is_committee
    if committee and acquire.stochastic is None:
        raise SpecError(f"acquire.stochastic: {name} compares stochastic passes; add e.g. stochastic: {{passes: 20}}")
    if committee and acquire.stochastic is not None and acquire.stochastic.vote != "soft":
        raise SpecError(f"acquire.stochastic.vote: {name} does not vote; leave vote out")
    if acquire.stochastic is not None and not needs_model(name):
        raise SpecError(f"acquire.stochastic: {name} does not ask the network; leave stochastic out")


def needs_model(name: str) -> bool:
    """Whether a strategy scores with the network; an external one does."""
    return name not in STRATEGIES or STRATEGIES[name].score is not None


def strategy_version(name: str) -> int:
    """The version of a built-in strategy; of an external one its name says what code it is."""
    return STRATEGIES[name].version if name in STRATEGIES else 1
