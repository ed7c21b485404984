"""Process-wide settings for training."""

import ctypes

import torch

# Parameters of glibc's mallopt (man 3 mallopt).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def prepare_process(threads: int) -> None:
    """Set the number of threads, and make glibc keep freed memory: a CPU step frees and reallocates a gigabyte.

    By default glibc returns large blocks to the system, which then clears every page again, taking up to a fifth of a
    step's time. Other C libraries are left unchanged.
    """
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 64 * 2**20)
