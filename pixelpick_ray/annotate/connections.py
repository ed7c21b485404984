"""Limits on the page server's connections and on how slowly requests may arrive, so that nobody can block it."""

import asyncio
import logging
import resource
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

ARRIVAL_SECONDS = 20.0  # from the first byte of a request, or its connection's start, to its last byte
MOST = 128
TELL_SECONDS = 60.0


def most_connections() -> int:
    """Return the maximum number of connections: at most half of this process's file descriptors."""
    return min(MOST, max(8, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 that drops requests that arrive too slowly and, with too many connections, the oldest idle one."""

    _arrival: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, and drop another one if there are too many."""
        self.began = time.monotonic()
        self.loop.set_exception_handler(_Quiet.of(self.loop))
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > most_connections():
            idle = [one for one in self.connections if isinstance(one, BoundedProtocol) and not one._has_request()]
            min(idle or [self], key=lambda one: one.began).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Process received bytes."""
        if self._arrival is None:
            self._await_request()
        super().data_received(data)
        if self._has_request() and not self.cycle.more_body:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after the other side has left or was dropped."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        self._arrival = self.loop.call_later(ARRIVAL_SECONDS, lambda: self.transport.abort())

    def _stop_waiting(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None


class _Quiet:
    """Exception handler that logs errors outside requests, such as a lack of descriptors, in one line, rate-limited."""

    def __init__(self) -> None:
        self._told = 0.0

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> "_Quiet":
        """Return the handler of a loop, or a new one."""
        known = loop.get_exception_handler()
        return known if isinstance(known, _Quiet) else cls()

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if time.monotonic() - self._told > TELL_SECONDS:
            self._told = time.monotonic()
            logging.getLogger("uvicorn.error").error("%s: %s", context.get("message"), context.get("exception"))
