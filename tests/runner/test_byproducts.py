"""By-products cannot fail a run: standard output, logs and TensorBoard files that cannot be written."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pixelpick_ray.events import ChainDone, Event
from pixelpick_ray.runner.byproducts import ByProduct, Output
from pixelpick_ray.runner.tensorboard import TensorBoard
from tests.support.chain_events import epoch_done
from tests.support.launch import ROOT
from tests.support.stores import execution_at, tiny_plan


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_an_expendable_output_tells_its_first_failure_and_then_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(Full(), expendable=True)
    for _ in range(3):
        print("a line", file=output, flush=True)
    told = capsys.readouterr().err
    assert told.startswith("warning: standard output: cannot be written (No space left on device)")
    assert (told.count("\n"), "the run continues" in told) == (1, True)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "runs/a"), KeyError("chain"), MemoryError()])
def test_a_listener_that_fails_once_hears_no_more(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[Event] = []

    def listen(event: Event) -> None:
        heard.append(event)
        if len(heard) > 1:
            raise error

    listener = ByProduct("TensorBoard files", listen)
    for _ in range(4):
        listener(ChainDone("a"))
    assert len(heard) == 2
    assert capsys.readouterr().err.count("warning: TensorBoard files: cannot be written (") == 1


def test_tensorboard_needs_neither_threads_nor_open_files_and_its_failure_is_a_warning(
    write_camvid: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, execution = tiny_plan(), execution_at(tmp_path, write_camvid(splits=("train", "test")))
    before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    boards = [
        ByProduct("TensorBoard files", TensorBoard(plan, replace(execution, runs_path=runs_path)))
        for runs_path in (execution.runs_path, Path("/dev/null/runs"))
    ]
    for board in boards:
        for chain in plan.chains:
            board(epoch_done(chain.id, 0, 1))
    assert (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) == before
    assert len(list(execution.runs_path.rglob("events.out.*"))) == len(plan.chains)
    assert capsys.readouterr().err.count("/dev/null/runs") == 1


def test_a_full_disk_behind_standard_output_ends_a_command_with_a_line_and_status_1() -> None:
    with open("/dev/full", "w") as file:
        done = subprocess.run(
            [sys.executable, "launch.py", "--version"], stdout=file, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output: cannot be written (No space left on device); redirect it")
    assert done.stderr.count("\n") == 1


def test_a_character_that_an_output_does_not_have_is_written_in_others() -> None:
    """By print, and by rich."""
    code = r"""
import sys
from rich.console import Console
from pixelpick_ray.runner.byproducts import Output, print_safely
print_safely()
print('50.8 ± 0.2 … 象 \udcff')
Console(file=Output(sys.stdout, expendable=True), highlight=False).print("50.8 ± 0.2")
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.stdout, done.stderr) == ("50.8 +- 0.2 ... \\u8c61 \\udcff\n50.8 +- 0.2\n", "")
