"""The page's server, on a thread of this process or as a process of its own that may be killed."""

import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import uvicorn

from pixelpick_ray.annotate.desk import Desk
from pixelpick_ray.annotate.server import make_app
from pixelpick_ray.store import Store

TOKEN, ONCE = "a-secret-token", "for-one-visit"
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Site:
    """A server that runs on a thread of this process."""

    port: int
    store: Store

    def call(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            chunked = body is not None and not isinstance(body, bytes)
            with suppress(BrokenPipeError, ConnectionResetError):  # it has refused before all was sent
                connection.request(method, path, body, headers or {}, encode_chunked=chunked)
            response = connection.getresponse()
            return response.status, response.read(), response.headers
        finally:
            connection.close()

    def post(self, path: str, value: Any) -> tuple[int, Any]:
        status, content, _ = self.call("POST", f"/{TOKEN}/{path}", json.dumps(value).encode(), JSON)
        return status, json.loads(content)


@contextmanager
def running(desk: Desk, store: Store) -> Iterator[Site]:
    app = make_app(desk, TOKEN, once=ONCE)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Site(listener.getsockname()[1], store)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
        desk.close()


SERVE = """
import sys
from pathlib import Path
from pixelpick_ray.annotate.desk import Desk
from pixelpick_ray.annotate.server import serve
from pixelpick_ray.store import Store
from tests.support.questions import plan_of
serve(Desk(plan_of(), Store(sys.argv[1]), Path("nowhere")), host="127.0.0.1", ports=[0],
      on_ready=lambda address, once: print(address, flush=True))
print("closed", flush=True)
"""


@contextmanager
def serving(store: Store) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves the usual plan, with the address of its page; killed at the end if it still runs."""
    command = [sys.executable, "-c", SERVE, store.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()
