"""Memory sharing: a prepared split is in memory once, however many processes read it. Does not import torch."""

import tempfile
from pathlib import Path
from threading import Barrier

from benchmarks.processes import together
from pixelpick_ray.config.trial import DatasetSpec
from pixelpick_ray.data.cache import PreparedSplit, prepare
from pixelpick_ray.data.datasets import open_dataset

SCENES = DatasetSpec(name="scenes", size=(96, 128))


def mapped_copies(processes: int) -> float:
    """Number of copies of a prepared split in memory after several processes have read all of it (1: shared)."""
    with tempfile.TemporaryDirectory() as cache:
        size = _prepared(Path(cache)).images.nbytes
        return sum(together(mapped_share, processes, Path(cache))) / size


def _prepared(cache: Path) -> PreparedSplit:
    return prepare(open_dataset(SCENES, cache), "val", SCENES, cache)


def mapped_share(rank: int, barrier: Barrier, cache: Path) -> int:
    """This process's proportional share of the mapped images in bytes, once every process has read them."""
    images = _prepared(cache).images
    images.sum()
    barrier.wait()
    share, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith("images.bin")
        share += 1024 * int(line.split()[1]) if inside and line.startswith("Pss:") else 0
    barrier.wait()  # no process exits before all have measured
    return share
