"""Timing of alternating actions, and ratios of their times."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

Action = Callable[[], object]


def synchronise(device: torch.device) -> None:
    """Wait until a device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Action, device: torch.device) -> float:
    """Seconds of one call, including the work it queues on the device."""
    synchronise(device)
    start = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - start


def take_turns(actions: Mapping[str, Action], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each action in each round, alternating A B A B ...; an extra first round warms up."""
    turns = [{name: seconds_of(action, device) for name, action in actions.items()} for _ in range(rounds + 1)]
    return {name: [turn[name] for turn in turns[1:]] for name in actions}


def compare(these: list[float], with_those: list[float]) -> dict[str, Any]:
    """Ratios round by round: their median as ``value``, smallest and largest as ``spread``."""
    ratios = [this / that for this, that in zip(these, with_those, strict=True)]
    return summarise(ratios)


def summarise(values: list[float]) -> dict[str, Any]:
    """Median as ``value``, smallest and largest as ``spread``, to four significant digits."""
    return {"value": short(median(values)), "spread": [short(min(values)), short(max(values))]}


def milliseconds(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each list of seconds, in milliseconds."""
    return {name: short(1000 * median(values)) for name, values in seconds.items()}


def short(value: float) -> float:
    """A number rounded to four significant digits."""
    return float(f"{value:.4g}")
