"""By-products of a run: printed lines, logs, TensorBoard files. Their failures are reported once and fail no run."""

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
    """Make both standard streams accept any character and report failures in one line."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")
    if sys.stdout is not None and not isinstance(sys.stdout, Output):
        sys.stdout = Output(sys.stdout)
    if sys.stderr is not None and not isinstance(sys.stderr, Output):
        sys.stderr = Output(sys.stderr, expendable=True)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: replaces unencodable characters by similar ones or escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    text = "".join(PLAIN.get(one, one.encode("ascii", "backslashreplace").decode("ascii")) for one in found)
    return text, error.end


class Output:
    """A text stream that raises RunError on failures such as a full disk; a closed pipe is no failure.

    If `expendable`, it reports the first failure on standard error instead, and discards further output.
    """

    def __init__(self, stream: Any, *, expendable: bool = False) -> None:
        within: TextIO = stream.within if isinstance(stream, Output) else stream
        self._stream = io.StringIO() if stream is None else within  # a process may lack a standard stream
        self._expendable, self._is_lost = expendable, False

    @property
    def within(self) -> TextIO:
        """The underlying stream."""
        stream: TextIO = self._stream
        return stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as far as possible. Raises RunError unless expendable."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush as far as possible. Raises RunError unless expendable."""
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
            if isinstance(error, BrokenPipeError):  # such as `head`, which has read enough
                return
            raise RunError(f"{what}; redirect it to a disk with free space") from error
        if self._stream not in (sys.stderr, getattr(sys.stderr, "within", None)):
            warn(f"{what}; the run continues; use `status` and `report` instead")


def _lead_nowhere(stream: Any) -> None:
    """Redirect a stream to /dev/null, so that buffered and further output is discarded without errors."""
    try:
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    except (OSError, ValueError):  # it is closed, or has no descriptor
        return


def warn(text: str) -> None:
    """Print a warning to standard error."""
    if sys.stderr is not None:
        print(f"warning: {text}", file=Output(sys.stderr, expendable=True), flush=True)


class ByProduct:
    """A listener that is switched off, with a warning, at its first failure."""

    def __init__(self, name: str, listen: Callable[[Event], None]) -> None:
        self._name, self._listen = name, listen
        self._has_failed = False

    def __call__(self, event: Event) -> None:
        """Pass on an event."""
        self.attempt(lambda: self._listen(event))

    def attempt(self, do: Callable[[], None]) -> None:
        """Call `do`, unless there was a failure before."""
        if self._has_failed:
            return
        try:
            do()
        except Exception as error:
            self._has_failed = True
            warn(f"{self._name}: cannot be written ({_why(error)}); the run continues without it")


def _why(error: Exception) -> str:
    """Text of an error: for system errors, the message with the path, if any."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
