"""Throughput of several concurrent trainings on one device, each in its own process."""

from collections.abc import Sequence
from dataclasses import replace
from threading import Barrier
from time import perf_counter

import torch

from benchmarks.processes import together
from benchmarks.timing import synchronise
from benchmarks.work import Setting, make_work
from pixelpick_ray.engine.fit import Epoch, fit
from pixelpick_ray.engine.host import prepare_process


def images_per_second(
    counts: Sequence[int], setting: Setting, size: tuple[int, int] | None, images: int, device: torch.device
) -> dict[int, float]:
    """Total images per second by number of concurrent processes, each training an epoch, all starting together."""
    seconds = together(epochs_together, max(counts), tuple(counts), setting, size, images, device)
    return {count: sum(images / one[count] for one in seconds if count in one) for count in counts}


def epochs_together(
    rank: int,
    barrier: Barrier,
    counts: tuple[int, ...],
    setting: Setting,
    size: tuple[int, int] | None,
    images: int,
    device: torch.device,
) -> dict[int, float]:
    """Seconds of this process's epoch, by number of concurrent processes, for the counts it takes part in."""
    prepare_process(1)
    work = make_work(setting, size, images, device)
    mine = [count for count in counts if rank < count]
    waiting, seconds = iter(counts), dict[int, float]()
    start, training = 0.0, 0

    def on_epoch(epoch: Epoch) -> None:
        nonlocal start, training
        synchronise(device)
        if training:
            seconds[training] = perf_counter() - start
            barrier.wait()
        for count in waiting:
            barrier.wait()
            if count in mine:
                start, training = perf_counter(), count
                return
            barrier.wait()

    train = work.job.train.model_copy(update={"epochs": 1 + len(mine)})
    fit(replace(work.job, train=train), work.world, on_epoch)
    return seconds
