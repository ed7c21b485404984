"""A cluster on this machine whose nodes can be lost and replaced, and the processes of a study."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pixelpick_ray.runner  # noqa: F401 (settings that Ray reads when it is imported, which is later)

MARK = "PIXELPICK_FAULTS"  # a variable in the environment of all processes of a study
SERVICES = ("gcs_server", "raylet", "monitor.py", "dashboard", "log_monitor")
SERVICES += ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
QUICK = {"initial_delay_ms": 0, "period_ms": 1000, "failure_threshold": 5}  # to notice a loss
QUICK_TO_NOTICE = {f"health_check_{name}": value for name, value in QUICK.items()}


class Nodes:
    """A head node and a worker node with such resources; more workers may join. ``address`` is what a driver joins."""

    def __init__(self, mark: dict[str, str], head: dict[str, int], worker: dict[str, int]) -> None:
        from ray.cluster_utils import Cluster

        options = head | {
            "include_dashboard": False,
            "_system_config": QUICK_TO_NOTICE,
        }
        with patch.dict(os.environ, mark):
            self._cluster = Cluster(initialize_head=True, head_node_args=options)
        self._mark, self._worker = mark, worker
        self._workers: list[Any] = []
        self.join_worker()

    @property
    def address(self) -> str:
        """HOST:PORT of the cluster."""
        return str(self._cluster.address)

    @property
    def raylet(self) -> int:
        return int(self._workers[-1].all_processes["raylet"][0].process.pid)

    def join_worker(self) -> None:
        with patch.dict(os.environ, self._mark):
            self._workers.append(self._cluster.add_node(**self._worker))

    def lose_worker(self) -> None:
        self._cluster.remove_node(self._workers.pop(), allow_graceful=False)

    def placement_groups(self) -> list[str]:
        states = [str(group["state"]) for group in self._cluster.global_state.placement_group_table().values()]
        return [state for state in states if state != "REMOVED"]

    def stop(self) -> None:
        self._cluster.shutdown()


@dataclass(frozen=True)
class Process:
    """A process of a study that is alive."""

    pid: int
    parent: int
    title: str

    @property
    def is_trial(self) -> bool:
        return self.title.startswith("ray::ImplicitFunc")

    @property
    def is_rank(self) -> bool:
        return self.title.startswith("ray::_Rank")

    @property
    def is_service(self) -> bool:
        return any(name in self.title for name in SERVICES)


def processes(mark: str) -> list[Process]:
    found = (_process(entry.name, mark) for entry in os.scandir("/proc") if entry.name.isdigit())
    return [process for process in found if process is not None]


def parent_of(pid: int) -> int:
    """The parent of a process; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _process(number: str, mark: str) -> Process | None:
    try:
        environment = Path(f"/proc/{number}/environ").read_bytes()
        if f"{MARK}={mark}".encode() not in environment.split(b"\0"):
            return None
        title = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        state, parent = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return Process(int(number), int(parent), title) if state not in "ZX" else None


def wait_until_gone(mark: str, *, services_too: bool, seconds: float = 30.0) -> list[Process]:
    """The processes of a study that are still alive after at most so long."""
    until = time.monotonic() + seconds
    while True:
        left = [one for one in processes(mark) if services_too or not one.is_service]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.2)
