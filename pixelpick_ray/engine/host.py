"""Settings of a process that trains."""

import ctypes

import torch

# Parameters of glibc's mallopt (man 3 mallopt).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def prepare_process(threads: int) -> None:
    """Compute on `threads` threads, and keep freed memory: a CPU step frees and asks for a gigabyte anew.

    glibc gives large blocks back to the system, which then has to clear every page again, in up to a fifth of a step's
    time. Other C libraries are left as they are.
    """
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 64 * 2**20)
