"""Functions in fresh processes, alone or several at once."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

SPAWN = multiprocessing.get_context("spawn")
WAIT_SECONDS = 300.0  # for each other, so that one that fails stops all
T = TypeVar("T")

_barrier: Any = None


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """The function's result from a new process; its error is raised here."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        return pool.submit(function, *arguments).result()


def together(function: Callable[..., T], processes: int, *arguments: Any) -> list[T]:
    """What the function returns in so many new processes at once, each called with its rank and a common barrier."""
    barrier = SPAWN.Barrier(processes, timeout=WAIT_SECONDS)
    with ProcessPoolExecutor(processes, mp_context=SPAWN, initializer=_remember, initargs=(barrier,)) as pool:
        calls = [pool.submit(_call, function, rank, arguments) for rank in range(processes)]
        return [call.result() for call in calls]


def _remember(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _call(function: Callable[..., T], rank: int, arguments: tuple[Any, ...]) -> T:
    return function(rank, _barrier, *arguments)
