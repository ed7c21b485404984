"""Supervision: the process a user starts runs the command in a child, and always exits with a status of 0 to 3.

C++ code in Ray or torch may abort its process, and the system may kill it. This module needs nothing but the standard
library, so that signals are handled from the very start.
"""

from __future__ import annotations  # an older Python must get far enough to report that it is too old

import contextlib
import os
import shutil
import signal
import threading
import time
from typing import Any, NoReturn

OK, FAILED, WRONG, STOPPED = 0, 1, 2, 3  # exit status
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if os.name == "posix" else ()
GRACE_SECONDS = 25.0  # batch systems and containers kill about 30 s after asking to stop
REPEAT_SECONDS = 1.0  # the same signal often arrives twice: for the process and for its group
GOES_ON = "stopped; run the same command again to continue"
_to_supervisor: int | None = None  # write end of a pipe; set in the child


def why_unsupported(version: tuple[int, ...], platform: str) -> str:
    """Return one line on why the program cannot run here; empty if it can."""
    if platform in ("win32", "cygwin"):
        return "PixelPick-Ray runs on Linux and macOS; on Windows, run it in WSL"
    if version < (3, 11):
        return f"PixelPick-Ray needs Python 3.11 or newer; this is {version[0]}.{version[1]}"
    return ""


def supervise() -> None:
    """Fork, and continue in the child; the calling process waits for it and exits with its status.

    The child leads its own session, so Ctrl+C or closing the terminal reaches only the supervisor, which passes the
    signal on, and not Ray's processes. If the supervisor is killed, the child and all its processes end too.
    """
    global _to_supervisor
    while os.open(os.devnull, os.O_RDWR) <= 2:  # no pipe may take the descriptor of a closed standard stream
        pass
    heard = heeded()
    signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    is_alive, held = os.pipe()
    told, _to_supervisor = os.pipe()
    child = os.fork()
    if child:
        os.close(is_alive)
        os.close(_to_supervisor)
        _Supervisor(child, told, heard).wait()
    os.close(held)
    os.close(told)
    os.setsid()
    threading.Thread(target=_end_with, args=(is_alive,), daemon=True).start()
    for number in heard:
        signal.signal(number, lambda *_: end(STOPPED, GOES_ON))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)


def heeded() -> list[signal.Signals]:
    """Return the signals that request a stop, except ignored ones, as under nohup."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def tell(message: str) -> None:
    """Write a line to standard error; safe in signal handlers and threads, unlike a stream that may be in use."""
    with contextlib.suppress(OSError):
        os.write(2, f"{message}\n".encode())


def is_supervised() -> bool:
    """Whether this process is a supervised child, which may be ended as a whole."""
    return _to_supervisor is not None


def end(status: int, message: str) -> NoReturn:
    """Exit at once, from any thread, with one line on standard error."""
    tell(message)
    settle(status)
    os._exit(status)


def lose(why: str) -> NoReturn:
    """Exit at once, from any thread, as failed, or as stopped if a stop was requested, which may be the cause."""
    _tell(f"!{why}\n")
    os._exit(FAILED)


def ending(code: int) -> str:
    """Describe how a process ended, given its return code as `subprocess` has it."""
    if code >= 0:
        return f"ended with status {code}"
    memory = " (possibly out of memory)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{memory}"


def settle(status: int) -> None:
    """Tell the supervisor which exit status to use, however this process ends from now on."""
    _tell(f"{status}\n")


def remove_at_end(folder: str) -> None:
    """Have the supervisor remove a folder after this process, however it ends."""
    _tell(f"{folder}\n")


def _tell(line: str) -> None:
    if _to_supervisor is not None:
        with contextlib.suppress(OSError):
            os.write(_to_supervisor, line.encode())


def _end_with(pipe: int) -> None:
    os.read(pipe, 1)  # returns when the supervisor is gone
    os.killpg(0, signal.SIGKILL)


class _Supervisor:
    """The parent: passes the first signal on; kills the child at a second one, or after GRACE_SECONDS."""

    def __init__(self, child: int, told: int, heard: list[signal.Signals]) -> None:
        self._child, self._told = child, told
        self._asked: float | None = None
        for number in heard:
            signal.signal(number, self._pass_on)
        signal.signal(signal.SIGTSTP, self._pause)
        signal.signal(signal.SIGALRM, lambda *_: self._kill())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)

    def _pass_on(self, number: int, frame: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._asked is None:
                self._asked = time.monotonic()
                signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
                os.kill(self._child, number)
            elif time.monotonic() - self._asked > REPEAT_SECONDS:
                self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child, signal.SIGKILL)

    def _pause(self, number: int, frame: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child, signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)  # until the shell continues it
            os.killpg(self._child, signal.SIGCONT)

    def wait(self) -> NoReturn:
        """Wait for the child and exit with its status."""
        _, how = os.waitpid(self._child, 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child, signal.SIGKILL)  # leftover processes
        lines = self._heard()
        for folder in lines:
            if folder.startswith("/"):
                shutil.rmtree(folder, ignore_errors=True)
        statuses = [int(line) for line in lines if line.isdecimal()]
        if not statuses:
            why = next((line[1:] for line in lines if line.startswith("!")), "")
            statuses = [self._explain(why or f"its process {ending(os.waitstatus_to_exitcode(how))}")]
        os._exit(statuses[-1])

    def _heard(self) -> list[str]:
        """Read the lines that the child has written to the pipe."""
        os.set_blocking(self._told, False)
        content = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._told, 65536):
                content += piece
        return content.decode("utf-8", "replace").splitlines()

    def _explain(self, why: str) -> int:
        """Print why the child did not exit by itself, and return the exit status."""
        if self._asked is not None:
            tell(GOES_ON)
            return STOPPED
        tell(f"error: {why}; stored results are kept; run the same command again to continue")
        return FAILED
