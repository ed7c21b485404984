"""Seconds of actions that take turns, and ratios of them."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

Action = Callable[[], object]


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Action, device: torch.device) -> float:
    """Seconds of one call on a device, all that it started there included."""
    synchronise(device)
    start = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - start


def take_turns(actions: Mapping[str, Action], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each action in each round, A B A B ...; one more round before these warms up and does not count."""
    turns = [{name: seconds_of(action, device) for name, action in actions.items()} for _ in range(rounds + 1)]
    return {name: [turn[name] for turn in turns[1:]] for name in actions}


def compare(these: list[float], with_those: list[float]) -> dict[str, Any]:
    """The median of the ratios round by round as ``value``, the smallest and the largest as ``spread``."""
    ratios = [this / that for this, that in zip(these, with_those, strict=True)]
    return summarise(ratios)


def summarise(values: list[float]) -> dict[str, Any]:
    """Median as ``value``, smallest and largest as ``spread``, to four digits."""
    return {"value": short(median(values)), "spread": [short(min(values)), short(max(values))]}


def milliseconds(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each list in milliseconds."""
    return {name: short(1000 * median(values)) for name, values in seconds.items()}


def short(value: float) -> float:
    """A number to four digits."""
    return float(f"{value:.4g}")
