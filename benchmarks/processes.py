"""Running functions in fresh processes, one or several at once."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

SPAWN = multiprocessing.get_context("spawn")
WAIT_SECONDS = 300.0  # timeout of the barrier, so that a failed process stops all
T = TypeVar("T")

_barrier: Any = None


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a new process; return its result or raise its error."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        return pool.submit(function, *arguments).result()


def together(function: Callable[..., T], processes: int, *arguments: Any) -> list[T]:
    """Run ``function(rank, barrier, *arguments)`` in several new processes at once; return results by rank."""
    barrier = SPAWN.Barrier(processes, timeout=WAIT_SECONDS)
    with ProcessPoolExecutor(processes, mp_context=SPAWN, initializer=_remember, initargs=(barrier,)) as pool:
        calls = [pool.submit(_call, function, rank, arguments) for rank in range(processes)]
        return [call.result() for call in calls]


def _remember(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _call(function: Callable[..., T], rank: int, arguments: tuple[Any, ...]) -> T:
    return function(rank, _barrier, *arguments)
