"""What a run leaves beside its results: printed lines, logs, TensorBoard files. None of them can fail it: the first
failure is told once, then there is silence.
"""

import codecs
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from pixelpick_ray.errors import RunError
from pixelpick_ray.events import Event

PLAIN = {"±": "+-", "×": "x", "·": "*", "…": "...", "–": "-", "—": "-", "−": "-", "≤": "<=", "≥": ">=", "→": "->"}


def print_safely() -> None:
    """Let both standard streams take every character, and every failure of theirs be told in a line."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")
    if sys.stdout is not None and not isinstance(sys.stdout, Output):
        sys.stdout = Output(sys.stdout)
    if sys.stderr is not None and not isinstance(sys.stderr, Output):
        sys.stderr = Output(sys.stderr, expendable=True)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What is written for characters that an encoding does not have: similar ones, or their numbers."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    text = "".join(PLAIN.get(one, one.encode("ascii", "backslashreplace").decode("ascii")) for one in found)
    return text, error.end


class Output:
    """A text stream whose failures, as of a full disk, are a RunError; a reader may leave.

    One that is `expendable` tells the first failure on standard error, and loses what comes after it.
    """

    def __init__(self, stream: Any, *, expendable: bool = False) -> None:
        within: TextIO = stream.within if isinstance(stream, Output) else stream
        self._stream = io.StringIO() if stream is None else within  # a process may have been started without it
        self._expendable, self._is_lost = expendable, False

    @property
    def within(self) -> TextIO:
        """The stream itself."""
        stream: TextIO = self._stream
        return stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as far as that is possible."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush as far as that is possible."""
        self._attempt(self._stream.flush)

    def _attempt(self, do: Callable[[], object]) -> None:
        try:
            if not self._is_lost:
                do()
        except (OSError, ValueError) as error:
            self._is_lost = self._expendable
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        _lead_nowhere(self._stream)
        what = f"standard output: cannot be written ({_why(error)})"
        if not self._expendable:
            if isinstance(error, BrokenPipeError):  # such as `head`, which has seen enough
                return
            raise RunError(f"{what}; give it a file on a disk with room") from error
        if self._stream not in (sys.stderr, getattr(sys.stderr, "within", None)):
            warn(f"{what}; the run goes on, and `status` and `report` tell what this would have")


def _lead_nowhere(stream: Any) -> None:
    """Let what is still in the buffers of a stream, and all that is written to it, be lost without an error."""
    try:
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    except (OSError, ValueError):  # it is closed, or has no number
        return


def warn(text: str) -> None:
    """Say on standard error what is no reason to stop."""
    if sys.stderr is not None:
        print(f"warning: {text}", file=Output(sys.stderr, expendable=True), flush=True)


class ByProduct:
    """A listener whose first failure is told, and is its end."""

    def __init__(self, name: str, listen: Callable[[Event], None]) -> None:
        self._name, self._listen = name, listen
        self._has_failed = False

    def __call__(self, event: Event) -> None:
        """Pass an event on."""
        self.attempt(lambda: self._listen(event))

    def attempt(self, do: Callable[[], None]) -> None:
        """Do it, unless something has failed before."""
        if self._has_failed:
            return
        try:
            do()
        except Exception as error:
            self._has_failed = True
            warn(f"{self._name}: cannot be written ({_why(error)}); the run goes on without")


def _why(error: Exception) -> str:
    """An error of the system in its words, with the path if there is one; else as it is."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
