"""Acquisition scores, by name in ``STRATEGIES``.

A score function maps logits (N, C, H, W) to scores (N, H, W), where **larger is always picked first**; a committee's
takes an iterable of the logits of several stochastic passes. Scores are finite for finite logits. A new score is one
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

if TYPE_CHECKING:  # planning only needs the names and must not import torch
    from torch import Tensor

    Score = Callable[[Tensor], Tensor]
    CommitteeScore = Callable[[Iterable[Tensor]], Tensor]


def margin(logits: Tensor) -> Tensor:
    """Negative difference of the two largest class probabilities, in -1..0; -1 for a single class."""
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
    """Logits (N, C, H, W) minus the largest; the best class itself, the first if tied, is set to -inf.

    With ``rest``, the sum of their exponentials, the best class has probability 1 / (1 + rest), which avoids cancelling
    a small rest against 1. The result is NaN where the largest logit is NaN or infinite.
    """
    best = logits.max(dim=1, keepdim=True)
    return (logits - best.values).scatter_(1, best.indices, best.values * 0.0 - float("inf"))


def bald(passes: Iterable[Tensor]) -> Tensor:
    """Mutual information of prediction and weights in nats, in 0..ln C up to rounding.

    Entropy of the mean prediction minus mean entropy (Houlsby et al. 2011, equation 2; Gal et al. 2017).
    """
    mean = MeanPrediction(passes)
    entropies = list(map(entropy, mean))
    return entropy(mean.logits()) - sum(entropies[1:], entropies[0]) / len(entropies)


def soft_vote(score: Score, passes: Iterable[Tensor]) -> Tensor:
    """Mean of the passes' scores, as intended by the option in PixelPick's code."""
    scores = [score(logits) for logits in passes]
    return sum(scores[1:], scores[0]) / len(scores)


def hard_vote(score: Score, passes: Iterable[Tensor]) -> Tensor:
    """Score of the fractions of passes that predict each class; with entropy, vote entropy (Dagan, Engelson 1995)."""
    votes: Tensor | None = None
    for logits in passes:
        best = logits.max(dim=1, keepdim=True)
        votes = logits.new_zeros(logits.shape) if votes is None else votes
        votes.scatter_add_(1, best.indices, best.values * 0.0 + 1.0)  # propagates NaN
    if votes is None:
        raise AssertionError("no pass was made")
    return score(_finite(votes.log()))


class MeanPrediction:
    """Iterates over the logits of passes and accumulates the mean of their class probabilities."""

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
        """Logits (N, C, H, W) of the mean probabilities: their logarithms, or the pass's own logits if there is one."""
        if self._first is None:
            raise AssertionError("no pass was made")
        return self._first if self._sum is None else _finite((self._sum / self._count).log())


def _finite(log_probabilities: Tensor) -> Tensor:
    """Clamp -inf, so that 0 log 0 is not NaN."""
    return log_probabilities.clamp(min=-1e4)


@dataclass(frozen=True)
class Strategy:
    """An acquisition strategy.

    `score` takes the logits of one pass, or of several for a committee; None picks pixels at random, without a network.
    `bound` maps a lower bound on the largest class probability, and the number of classes, to an upper bound on the
    score, so that with a cheap head only pixels that may be picked are scored. Increment `version` when scores change:
    its picks, and no others, are then recomputed.
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
    """Entropy with the largest class probability at its lower bound and all others equal."""
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
    """Scores (N, H, W) of a strategy that uses the network, from the logits of its passes (one unless stochastic)."""
    strategy = _strategy(acquire.strategy)
    if strategy.is_committee:
        return cast("Tensor", strategy.score(passes))
    if strategy.score is None:
        raise AssertionError(f"{acquire.strategy} scores nothing")
    return VOTES[acquire.stochastic.vote if acquire.stochastic else "soft"](strategy.score, passes)


def bounded_score(acquire: AcquireSpec) -> tuple[Score, Any] | None:
    """A strategy's score and its bound if there is one pass and only the best-scoring pixels matter, else None."""
    strategy = _strategy(acquire.strategy)
    if strategy.bound is None or acquire.stochastic is not None or acquire.pool != "score":
        return None
    return strategy.score, strategy.bound


def _strategy(name: str) -> Strategy:
    """The strategy of this name; an external one may be a function or a `Strategy`."""
    if name in STRATEGIES:
        return STRATEGIES[name]
    found = parts.load("strategy", name)
    if isinstance(found, Strategy):
        return found
    return Strategy(partial(_shaped, found, name))


def _shaped(score: Score, name: str, logits: Tensor) -> Tensor:
    """Scores of an external function. Raises SpecError unless they are floats (N, H, W)."""
    scores = score(logits)
    wanted = (logits.shape[0], *logits.shape[2:])
    shape = tuple(getattr(scores, "shape", ()))
    if shape != wanted or not scores.is_floating_point():
        got = f"{scores.dtype} {list(shape)}" if shape else type(scores).__name__
        raise SpecError(
            f"{name}: returned {got} for logits {list(logits.shape)}; expected floats of shape {list(wanted)}"
        )
    return scores


def check_strategy(acquire: AcquireSpec) -> None:
    """Raise SpecError for an unknown strategy, listing known ones, and for one that conflicts with other fields."""
    name = acquire.strategy
    if name not in STRATEGIES:
        if parts.is_external("strategy", name):
            return
        known = ", ".join([*STRATEGIES, *parts.names("strategy")])
        raise SpecError(
            f"acquire.strategy: unknown strategy {name!r}; known: {known}; for your own, use file:PATH.py:NAME"
        )
    committee = STRATEGIES[name].is_committee
    if committee and acquire.stochastic is None:
        raise SpecError(f"acquire.stochastic: {name} needs stochastic passes; add e.g. stochastic: {{passes: 20}}")
    if committee and acquire.stochastic is not None and acquire.stochastic.vote != "soft":
        raise SpecError(f"acquire.stochastic.vote: does not apply to {name}; leave it out")
    if acquire.stochastic is not None and not needs_model(name):
        raise SpecError(f"acquire.stochastic: does not apply to {name}, which does not use the network; leave it out")


def needs_model(name: str) -> bool:
    """Whether a strategy uses the network; external ones do."""
    return name not in STRATEGIES or STRATEGIES[name].score is not None


def strategy_version(name: str) -> int:
    """The version of a built-in strategy; 1 for an external one, whose resolved name identifies its code."""
    return STRATEGIES[name].version if name in STRATEGIES else 1
