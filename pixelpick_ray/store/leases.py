"""Leases: who is computing a result. A lease expires if it is not refreshed or its holder is known to be dead."""

import contextlib
import os
import secrets
import socket
import threading
from types import TracebackType

from pixelpick_ray.errors import StoreError
from pixelpick_ray.store.backend import Storage, is_gone, process_stamp

LEASE_SECONDS = 60.0


class Lease:
    """The right to compute a result, held until the end of the ``with`` block and refreshed by a thread.

    A process that is suspended for longer than LEASE_SECONDS may lose it: the result is then computed twice, and the
    first to publish wins.
    """

    def __init__(self, storage: Storage, path: str, content: bytes) -> None:
        self._storage, self._path, self._content = storage, path, content
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 6):
            with contextlib.suppress(StoreError):  # the store may be unreachable for a moment
                self._storage.refresh(self._path, self._content)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(StoreError):  # the lease will expire; this must not hide the block's error
            self._storage.remove(self._path, self._content)


def take(storage: Storage, path: str) -> Lease | None:
    """Take the lease at a path; return None while it has another live holder, even a thread of this process."""
    content = f"{socket.gethostname()} pid {os.getpid()}\n{process_stamp()} {secrets.token_hex(8)}".encode()
    for _ in range(2):
        if storage.create(path, content):
            return Lease(storage, path, content)
        found = storage.read(path)
        if found is not None and holder(storage, path):
            return None
        if found is not None:
            storage.remove(path, found)
    return None


def holder(storage: Storage, path: str) -> str:
    """Return who holds a live lease, as "HOST pid N"; empty if nobody does."""
    age, content = storage.age_seconds(path), storage.read(path)
    if age is None or content is None:
        return ""
    who, _, stamp = content.decode("utf-8", "replace").partition("\n")
    if age >= LEASE_SECONDS or is_gone(stamp.partition(" ")[0]):
        return ""
    return who or "a process that has just taken it"
