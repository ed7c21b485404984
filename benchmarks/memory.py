"""Peak memory of training and picking on the CPU, each measured in its own process."""

from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.work import Setting, fresh_model, make_work, picking
from pixelpick_ray.engine.fit import fit
from pixelpick_ray.engine.host import prepare_process

CPU = torch.device("cpu")


def peak_bytes() -> int:
    """Peak memory of this process alone (ru_maxrss would start from the parent's)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def training_peak(setting: Setting, size: tuple[int, int] | None, threads: int) -> int:
    """Peak bytes after training for two steps on the CPU."""
    prepare_process(threads)
    work = make_work(setting, size, 8, CPU)
    job = replace(work.job, train=work.job.train.model_copy(update={"epochs": 1}))
    fit(job, work.world, lambda epoch: None)
    return peak_bytes()


def picking_peak(setting: Setting, size: tuple[int, int] | None, threads: int, images: int) -> int:
    """Peak bytes after picking from a pool of `images` images on the CPU, minus the images themselves."""
    prepare_process(threads)
    work = make_work(setting, size, images, CPU)
    picking(work, fresh_model(work))()
    return peak_bytes() - work.job.data.prepared.images.nbytes - work.job.data.prepared.labels.nbytes
