"""Options that affect where and how fast experiments run, never their results; in no key."""

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pixelpick_ray.config.trial import Trial
from pixelpick_ray.errors import SpecError

KeepWeights = Literal["needed", "last", "all"]


@dataclass(frozen=True)
class Execution:
    """Where and how fast chains run.

    `gpus_per_rank` None means 1 if there are GPUs, else 0. `run` names the run's lease, which marks weights that only
    this run needs. `max_failures` limits consecutive losses of a chain without progress; `checkpoint_seconds`, the age
    of a training checkpoint, except in the last epoch; `rank_timeout_seconds`, how long ranks wait for a hanging one;
    `cache_limit`, the bytes of cached frozen features. With `wait`, runs wait for people's answers.
    """

    data_path: Path
    store: str
    cache_path: Path
    runs_path: Path = Path("runs")
    ranks: int = 1
    cpus_per_rank: int = 1
    gpus_per_rank: float | None = None
    device: Literal["auto", "cuda", "cpu"] = "auto"
    max_concurrent: int | None = None
    max_failures: int = 3
    address: str | None = None
    time_limit_seconds: float | None = None
    keep_weights: KeepWeights = "needed"
    checkpoint_seconds: float = 300.0
    rank_timeout_seconds: float = 600.0
    cache_limit: int | None = None
    wait: bool = False
    run: str = ""

    def keeps_weights(self, trial: Trial, stage: int) -> bool:
        """Whether to keep a stage's weights: per `keep_weights`; the last stage's also if people answered."""
        is_last = stage + 1 == trial.num_stages
        return self.keep_weights == "all" or (is_last and (self.keep_weights == "last" or trial.asks_people))

    def gpus_of_rank(self, *, are_there: bool) -> float:
        """Number of GPUs per rank, given whether the nodes have any."""
        if self.gpus_per_rank is None:
            return 1.0 if are_there and self.device != "cpu" else 0.0
        return self.gpus_per_rank

    def check(self, batch_sizes: set[int]) -> None:
        """Raise SpecError for options that no run can have; `batch_sizes` are those of its trials."""
        for name, value in (("--ranks", self.ranks), ("--cpus-per-rank", self.cpus_per_rank)):
            if value < 1:
                raise SpecError(f"{name}: must be at least 1; got {value}")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise SpecError(f"--max-concurrent: must be at least 1; got {self.max_concurrent}")
        smallest = min(batch_sizes, default=self.ranks)
        if self.ranks > smallest:
            raise SpecError(
                f"--ranks: {self.ranks} ranks cannot split train.batch_size {smallest} (the total over all ranks); "
                f"use at most {smallest}, or raise train.batch_size"
            )
        if self.gpus_per_rank is not None and self.gpus_per_rank < 0:
            raise SpecError(f"--gpus-per-rank: must be 0 or more; got {self.gpus_per_rank}")
        if self.ranks > 1 and self.gpus_per_rank is not None and self.gpus_per_rank % 1:
            raise SpecError(
                f"--gpus-per-rank: {self.gpus_per_rank} with {self.ranks} ranks: NCCL does not support two "
                "ranks on one GPU; use 1"
            )
        if self.device == "cpu" and self.gpus_per_rank:
            raise SpecError("--gpus-per-rank: cannot be combined with --device cpu; leave one out")


def local_cpus() -> int:
    """Number of CPUs available to this process: the smaller of its affinity and its container's quota, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, int(min(allowed, cpu_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))))


def cpu_quota(membership: Path, root: Path) -> float:
    """CPU quota of a process from its control groups (v1 or v2) and their parents; infinite if unlimited.

    `membership` is its ``/proc/PID/cgroup``; `root` is where control groups are mounted.
    """
    quotas = [math.inf]
    with contextlib.suppress(OSError):
        for line in membership.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            base = root / controllers if controllers else root
            for folder in (base / path.lstrip("/"), *(base / path.lstrip("/")).parents):
                quotas.append(_quota_of(folder))
                if folder == base:
                    break
    return min(quotas)


def _quota_of(folder: Path) -> float:
    """CPU quota of one control group's folder."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join((folder / name).read_text(encoding="ascii") for name in files).split()
            return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    return math.inf
