"""Scores: how much a pixel is worth asking about. Dispatch by name is ``SCORES``.

A score function takes logits (N, C, H, W) and returns (N, H, W), where **larger is always picked first**. All are
finite for
finite logits. The formulas are those of PixelPick (Shin, Xie, Albanie 2021, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pixelpick_ray.errors import SpecError

if TYPE_CHECKING:  # so that planning, which only needs the names, does not import torch
    from torch import Tensor

    Score = Callable[[Tensor], Tensor]


def margin(logits: Tensor) -> Tensor:
    """Minus the difference of the two largest class probabilities, in -1..0."""
    best = logits.softmax(dim=1).topk(2, dim=1).values
    return best[:, 1] - best[:, 0]


def least_confidence(logits: Tensor) -> Tensor:
    """One minus the largest class probability, in 0..1."""
    return 1.0 - logits.softmax(dim=1).amax(dim=1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the class probabilities in nats, in 0..ln C; from log-probabilities, so that 0 log 0 is 0."""
    log_probabilities = logits.log_softmax(dim=1).clamp(min=-1e4)  # not -inf, or 0 log 0 would be no number
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)


# None: pixels by chance, drawn from the stream of their image; the network is not asked.
SCORES: dict[str, Score | None] = {
    "margin": margin,
    "entropy": entropy,
    "least_confidence": least_confidence,
    "random": None,
}


def check_strategy(name: str) -> None:
    """SpecError with the known strategies for an unknown one."""
    if name not in SCORES:
        raise SpecError(f"acquire.strategy: unknown strategy {name!r}; known: {', '.join(SCORES)}")


def needs_model(name: str) -> bool:
    """Whether a strategy scores with the network."""
    return SCORES[name] is not None
