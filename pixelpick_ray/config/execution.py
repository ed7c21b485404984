"""What changes only where and how fast, never what: not part of any key."""

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
    """Where and how fast chains run. `gpus_per_rank` None means 1 where there are GPUs, else 0.

    `run` is the name of the run's lease, which weights that it needs only for itself are marked with; `max_failures` is
    how often in a row a chain may be lost without getting further; `checkpoint_seconds` how old the saved state of a
    fit in training may become, its last epoch apart; `rank_timeout_seconds` how long ranks wait for one that hangs;
    `cache_limit` how many bytes the features of frozen backbones may take in the cache; `wait` says to wait for people
    who have to answer.
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
        """Whether the weights of a stage are asked for: by `keep_weights`, or, of the last stage, by default where
        people answered.
        """
        is_last = stage + 1 == trial.num_stages
        return self.keep_weights == "all" or (is_last and (self.keep_weights == "last" or trial.asks_people))

    def gpus_of_rank(self, *, are_there: bool) -> float:
        """GPUs that each rank takes, given whether the nodes have any."""
        if self.gpus_per_rank is None:
            return 1.0 if are_there and self.device != "cpu" else 0.0
        return self.gpus_per_rank

    def check(self, batch_sizes: set[int]) -> None:
        """SpecError for options that no run can have."""
        for name, value in (("--ranks", self.ranks), ("--cpus-per-rank", self.cpus_per_rank)):
            if value < 1:
                raise SpecError(f"{name}: {value} given, at least 1 is needed")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise SpecError(f"--max-concurrent: {self.max_concurrent} given, at least 1 is needed")
        smallest = min(batch_sizes, default=self.ranks)
        if self.ranks > smallest:
            fits = ", ".join(str(n) for n in range(1, smallest + 1))
            raise SpecError(
                f"--ranks: {self.ranks} ranks cannot share train.batch_size {smallest} (global, over all ranks); "
                f"ranks that fit: {fits}; or raise train.batch_size"
            )
        if self.gpus_per_rank is not None and self.gpus_per_rank < 0:
            raise SpecError(f"--gpus-per-rank: {self.gpus_per_rank} given, 0 or more is needed")
        if self.ranks > 1 and self.gpus_per_rank is not None and self.gpus_per_rank % 1:
            raise SpecError(
                f"--gpus-per-rank: {self.gpus_per_rank} with {self.ranks} ranks: NCCL refuses two ranks on one GPU; "
                "use 1"
            )
        if self.device == "cpu" and self.gpus_per_rank:
            raise SpecError("--device cpu contradicts --gpus-per-rank; leave one out")


def local_cpus() -> int:
    """CPUs that this process may use: those of its affinity, or of its container's quota where that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, int(min(allowed, cpu_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))))


def cpu_quota(membership: Path, root: Path) -> float:
    """CPUs that the control groups of a process give it, of either version; infinite without a limit.

    `membership` is its ``/proc/PID/cgroup``, and `root` where groups are mounted. A group has its parents' limits, too.
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
    """CPUs that one control group gives."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join((folder / name).read_text(encoding="ascii") for name in files).split()
            return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    return math.inf
