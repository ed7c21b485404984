"""A cluster on this machine whose nodes can be lost and replaced, and the processes of a study."""

import contextlib
import os
import time
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import psutil

import pixelpick_ray.runner  # noqa: F401 (settings that Ray reads when it is imported, which is later)

MARK = "PIXELPICK_FAULTS"  # a variable in the environment of all processes of a study
SERVICES = ("gcs_server", "raylet", "monitor.py", "dashboard", "log_monitor")
SERVICES += ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
SIGTERM = "ray._private.utils.set_sigterm_handler"  # nodes would take the signal for themselves
QUICK = {"initial_delay_ms": 0, "period_ms": 1000, "failure_threshold": 5}  # to notice a loss
QUICK_TO_NOTICE = {f"health_check_{name}": value for name, value in QUICK.items()}


class Nodes:
    """A head node and a worker node with such resources; more workers may join. ``address`` is what a driver joins."""

    def __init__(self, mark: dict[str, str], head: dict[str, Any], worker: dict[str, int]) -> None:
        from ray.cluster_utils import Cluster

        from pixelpick_ray.runner.cluster import _read_again

        options = {"include_dashboard": False, "_system_config": QUICK_TO_NOTICE} | head
        with patch.dict(os.environ, mark), patch(SIGTERM):
            _read_again()  # that there is no token
            self._cluster = Cluster(initialize_head=True, head_node_args=options)
        self.address = str(self._cluster.address)
        self._mark, self._worker = mark, worker
        self._workers: list[Any] = []
        self.join_worker()

    @property
    def raylet(self) -> int:
        return int(self._workers[-1].all_processes["raylet"][0].process.pid)

    @property
    def worker_id(self) -> str:
        return str(self._workers[-1].node_id)

    def join_worker(self) -> None:
        with patch.dict(os.environ, self._mark), patch(SIGTERM):
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
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if one.environ().get(MARK) == mark and one.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                found.append(Process(one.pid, one.ppid(), " ".join(one.cmdline()).strip()))
    return found


def parent_of(pid: int) -> int:
    """The parent of a process; 0 when it is gone."""
    try:
        return psutil.Process(pid).ppid()
    except psutil.Error:
        return 0


def wait_until_gone(mark: str, *, services_too: bool, seconds: float = 30.0) -> list[Process]:
    """The processes of a study that are still alive after at most so long."""
    until = time.monotonic() + seconds
    while True:
        left = [one for one in processes(mark) if services_too or not one.is_service]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.2)
