"""Decisions on failures: whether to retry, and how to explain them."""

import re

from pixelpick_ray.errors import PixelPickError, StoreError

LOST = "its process or node was lost"


class Stopped(Exception):
    """Raised inside a chain to leave it cleanly; stored results remain."""


def gives_up(error: BaseException) -> bool:
    """Whether a retry would fail the same way: after a data, spec or numerical error, or for lack of memory.

    Anything else (a lost node, a killed process, preemption, an unreachable store, a library error) is worth a retry.
    """
    ours = isinstance(error, PixelPickError) and not isinstance(error, StoreError)
    return ours or _is_out_of_memory(error)


def explain(error: BaseException) -> str:
    """Explain an error in one line: its place, its message, its type unless it is ours, and advice on memory."""
    text = str(error).strip().splitlines()
    first, where = text[0] if text else "", getattr(error, "where", "")
    if isinstance(error, PixelPickError):
        what = first
    elif _is_out_of_memory(error):
        what = f"out of memory ({first}); lower train.batch_size or the sizes, or give the trial a whole GPU"
    else:
        what = f"{type(error).__name__}: {first}"
    return what if not where or what.startswith("stage ") else f"{where}: {what}"


def explain_loss(text: str) -> str:
    """Explain a lost process in one line, given Ray's message."""
    if "running low on memory" in text or "memory monitor" in text.lower():
        sizes = re.search(r"([\d.]+)\s*GB used / ([\d.]+)\s*GB", text)
        used = f", {sizes[1]} of {sizes[2]} GB were in use" if sizes else ""
        return (
            f"Ray's memory monitor ended its process, because the node was low on memory{used}; lower "
            "--max-concurrent, train.batch_size or the sizes, or run fewer other programs there"
        )
    has_cause = "creation task" in text or "Traceback" in text  # what Ray shows of a process that could not begin
    raised = re.findall(r"^\s*((?:\w+\.)*\w*(?:Error|Exception): .*)$", text, re.M) if has_cause else []
    return f"{LOST} ({raised[-1].strip()})" if raised else LOST


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether it is an out-of-memory error of Python, torch or Ray; torch on a CPU has no class for it."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "DefaultCPUAllocator: can't allocate memory" in str(error)
