"""Whatever ends the process that runs a command, and whenever: a status of 0 to 3, a line, and nothing left behind."""

import ast
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pixelpick_ray import supervisor
from pixelpick_ray.supervisor import FAILED, GOES_ON, STOPPED, why_unsupported
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[1]
START = """
import os, signal, subprocess, sys, time
from pixelpick_ray import supervisor
supervisor.REPEAT_SECONDS = 0.05
supervisor.GRACE_SECONDS = {grace_seconds}
supervisor.supervise()
print("ready", flush=True)
"""


def program(code: str) -> "subprocess.Popen[str]":
    """A program that has said that it is ready."""
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert read_line(process) == "ready"
    return process


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def start(code: str, grace_seconds: float = supervisor.GRACE_SECONDS) -> "subprocess.Popen[str]":
    """A supervised program."""
    return program(START.format(grace_seconds=grace_seconds) + code)


def state_of(pid: int) -> str:
    """The letter of a process's state; X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("supervisor.settle(2)", 2, ""),
        ("supervisor.settle(0); os.kill(os.getpid(), signal.SIGSEGV)", 0, ""),  # Ray's exit handlers may
        ("os.kill(os.getpid(), signal.SIGSEGV)", FAILED, "error: its process was killed by SIGSEGV; stored results"),
        ("os.kill(os.getpid(), signal.SIGKILL)", FAILED, "killed by SIGKILL (possibly out of memory); stored"),
        ("os._exit(77)", FAILED, "error: its process ended with status 77; stored results are kept; run the same"),
        ("supervisor.lose('the cluster was lost')", FAILED, "error: the cluster was lost; stored results are kept"),
        ("supervisor.end(3, 'enough')", STOPPED, "enough\n"),
    ],
)
def test_whatever_ends_a_command_it_has_a_status_of_0_to_3_and_says_why(code: str, status: int, told: str) -> None:
    process = start(code)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, told in error) == (status, True), error
    assert error.count("\n") == (1 if told else 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda one: one.name)
def test_a_signal_ends_it_with_3_even_where_a_library_takes_it_for_itself(number: signal.Signals) -> None:
    for code in ("time.sleep(60)", f"signal.signal({int(number)}, lambda *_: os._exit(15)); time.sleep(60)"):
        process = start(code)
        time.sleep(0.05)
        process.send_signal(number)
        process.send_signal(number)  # a group and its leader both get one
        _, error = process.communicate(timeout=20)
        assert (process.returncode, error) == (STOPPED, f"{GOES_ON}\n")


@pytest.mark.parametrize("signals", [1, 2])
def test_a_second_signal_or_half_a_minute_ends_a_process_that_does_not_hear_the_first(signals: int) -> None:
    grace = 0.4 if signals == 1 else supervisor.GRACE_SECONDS
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    process = start(deaf, grace_seconds=grace)
    assert read_line(process) == "deaf"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    if signals == 2:
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == STOPPED
    assert supervisor.GRACE_SECONDS < 30


def test_a_signal_that_is_ignored_as_with_nohup_stays_so() -> None:
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = program(f"{ignoring}\n{START.format(grace_seconds=60)}time.sleep(0.3); supervisor.settle(0)")
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=20) == 0


def test_ctrl_z_pauses_what_runs_and_fg_lets_it_go_on() -> None:
    process = start("print(os.getpid(), flush=True)\nwhile True: print(time.time(), flush=True); time.sleep(0.01)")
    pid = int(read_line(process))
    process.send_signal(signal.SIGTSTP)
    wait_for(lambda: state_of(pid) == state_of(process.pid) == "T", 10)
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: state_of(pid) != "T", 10)
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == STOPPED


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at the kernel's tables")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_nothing_is_left_of_what_a_command_has_started(number: signal.Signals, tmp_path: Path) -> None:
    code = f"""
folder = {str(tmp_path / "sockets")!r}
os.mkdir(folder)
supervisor.remove_at_end(folder)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
signal.signal(signal.SIGTERM, lambda *_: supervisor.end(3, ""))
print(os.getpid(), other.pid, flush=True)
time.sleep(60)
"""
    process = start(code)
    pids = [int(word) for word in read_line(process).split()]
    assert not any(state_of(pid) in "ZX" for pid in pids)
    process.send_signal(number)
    process.wait(timeout=20)
    wait_for(lambda: all(state_of(pid) in "ZX" for pid in pids), 10)
    assert (tmp_path / "sockets").exists() == (number == signal.SIGKILL)  # else the next run removes it


def test_the_command_line_is_heard_from_its_first_line_on() -> None:
    """A signal before the modules of the command are imported; they are as slow as they can be."""
    code = """
import builtins, runpy, sys, time
plain = builtins.__import__
def slow(name, *rest):
    if name == "pixelpick_ray.cli":
        print("ready", flush=True)
        time.sleep(60)
    return plain(name, *rest)
builtins.__import__ = slow
runpy.run_path("launch.py", run_name="__main__")
"""
    process = program(code)
    process.terminate()
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (STOPPED, f"{GOES_ON}\n")


def test_what_is_not_supported_is_named_in_one_line_and_an_old_python_comes_as_far_as_that() -> None:
    for version, platform, why in (
        ((3, 11), "linux", ""),
        ((3, 14), "darwin", ""),
        ((3, 10), "linux", "PixelPick-Ray needs Python 3.11 or newer; this is 3.10"),
        ((3, 12), "win32", "PixelPick-Ray runs on Linux and macOS; on Windows, run it in WSL"),
    ):
        assert why_unsupported(version, platform) == why
    for path in (ROOT / "launch.py", ROOT / "pixelpick_ray/__init__.py", Path(supervisor.__file__)):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
    command = [sys.executable, "-X", "importtime", "-c", "import pixelpick_ray.__main__"]
    imported = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"numpy", "pydantic", "typer", "torch", "ray"} & set(imported.stderr.split())
