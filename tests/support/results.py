"""One small result in a store, and threads that act on it at once."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.store import Store
from pixelpick_ray.store.backend import PARTIAL

T = TypeVar("T")
INPUTS: dict[str, Any] = {"step": "fit", "seed": 0}
OTHER: dict[str, Any] = {**INPUTS, "seed": 1}
KEY = digest(INPUTS)
ME = f"{socket.gethostname()} pid {os.getpid()}"


def fill(folder: Path, content: str = "one") -> None:
    """The payload: two files, one in a folder."""
    (folder / "inner").mkdir()
    (folder / "payload.txt").write_text(content)
    (folder / "inner" / "more.txt").write_text(content * 2)


def publish(store: Store, content: str = "one", inputs: dict[str, Any] = INPUTS) -> Path:
    return store.publish("fit", inputs, lambda folder: fill(folder, content), {"seconds": 1.0})


def puts(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def at_once(number: int, act: Callable[[int], T]) -> list[T]:
    """What so many threads find that do something at the same time, each with its number."""
    barrier, found = threading.Barrier(number), []

    def turn(mine: int) -> None:
        barrier.wait(10)
        found.append(act(mine))

    threads = [threading.Thread(target=turn, args=(mine,)) for mine in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == number
    return found


def left(store: Store) -> list[str]:
    """Unfinished files and folders anywhere in the store."""
    return [str(path) for path in store.path.rglob(f"{PARTIAL}*")]
