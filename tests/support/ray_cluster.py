"""One Ray cluster for all tests of a process that do not need one of their own: they join it with ``--address``."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.waiting import wait_for

RAY = str(Path(sys.executable).with_name("ray"))
# What who joins the cluster needs in the environment.
RAY_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "of these tests alone",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextlib.contextmanager
def running_cluster(*options: str, **variables: str) -> Iterator[tuple[str, str]]:
    """The addresses of a cluster of two CPUs and of its job server (with ``--include-dashboard=true``)."""
    gcs, dashboard, agent, client = free_ports(4)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the paths of its sockets must be short
    environment = (
        os.environ | RAY_SETTINGS | variables | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    )
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={gcs}",
         f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
         f"--ray-client-server-port={client}", f"--temp-dir={folder}", *options],
        env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: socket.create_connection(("127.0.0.1", gcs)).close() or True)
        wait_for(lambda: list(Path(folder).glob("session_2*/sockets/raylet")))
        yield f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
    finally:
        process.terminate()  # it ends what it started
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)
