"""What to do about a failure: decisions apart from actions."""

from pixelpick_ray.errors import PixelPickError


class Stopped(Exception):
    """Raised inside a chain to leave it cleanly; what is stored stays."""


def gives_up(error: BaseException) -> bool:
    """Whether trying again would fail the same way: a data or spec error, or too little memory.

    Anything else (a lost node, a killed process, a preemption, an error of a library) is worth a retry.
    """
    return isinstance(error, PixelPickError | MemoryError) or type(error).__name__ == "OutOfMemoryError"


def explain(error: BaseException) -> str:
    """One line for people: the message, with the kind of error where that says more, and what to do about memory."""
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    if isinstance(error, PixelPickError):
        return first
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return f"out of memory ({first}); lower train.batch_size or the sizes, or give the trial a whole GPU"
    return f"{type(error).__name__}: {first}"
