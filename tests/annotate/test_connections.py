"""Half-open connections cannot starve the page's server, and are dropped in time."""

import contextlib
import http.client
import logging
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pixelpick_ray.annotate import connections
from pixelpick_ray.annotate.connections import BoundedProtocol, most_connections


async def answer(request: Request) -> Response:
    return Response(str(len(await request.body())))


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server with few connections, which waits for half a second."""
    monkeypatch.setattr(connections, "MOST", 10)
    monkeypatch.setattr(connections, "ARRIVAL_SECONDS", 0.5)
    app = Starlette(routes=[Route("/", answer, methods=["GET", "POST"])])
    server = uvicorn.Server(uvicorn.Config(app, http=BoundedProtocol, lifespan="off", ws="none", log_level="error"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(20)


def asked(port: int) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request("POST", "/", b"abc")
        return connection.getresponse().status


def test_many_half_open_connections_starve_nobody_and_one_is_kept_between_requests(port: int) -> None:
    held = [half_open(port, HALVES[at % 3]) for at in range(60)]
    assert asked(port) == 200
    assert sum(map(is_dropped, held[:40])) == 40  # the oldest ones
    for one in held:
        one.close()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        for _ in range(3):
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"0"
            time.sleep(0.3)


def half_open(port: int, sent: bytes) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=5)
    made.sendall(sent)
    return made


def is_dropped(made: socket.socket) -> bool:
    made.settimeout(5)
    try:
        return made.recv(1) == b""
    except ConnectionResetError:
        return True


REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
HALVES = [b"", REQUEST[:8], REQUEST, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab"]


@pytest.mark.parametrize("sent", HALVES)
def test_a_request_that_does_not_arrive_is_dropped_in_time_however_it_dribbles(port: int, sent: bytes) -> None:
    made, begun = half_open(port, sent), time.monotonic()
    with contextlib.suppress(OSError):  # reset, or a broken pipe
        while sent and time.monotonic() - begun < 5:
            made.sendall(b"a")
            time.sleep(0.1)
    assert is_dropped(made)
    assert time.monotonic() - begun < 3
    assert asked(port) == 200


def test_no_more_connections_are_held_than_descriptors_allow_and_none_left_is_told_in_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 64))
    assert most_connections() == 32
    quiet, told = connections._Quiet(), "socket.accept() out of system resource"
    with caplog.at_level(logging.ERROR):
        for _ in range(99):
            quiet(None, {"message": told, "exception": OSError(24, "Too many")})  # type: ignore[arg-type]
    assert [record.getMessage() for record in caplog.records] == [f"{told}: [Errno 24] Too many"]
