"""The command line in this process: its exit status and what it printed."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pixelpick_ray.cli import main


@dataclass(frozen=True)
class Outcome:
    """Exit status, standard output and standard error of a command."""

    status: int
    out: str
    err: str


def launch(place: Path, *arguments: str) -> Outcome:
    """Run ``launch.py ARGUMENTS`` in a folder, which also holds the user's cache."""
    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["launch.py", *arguments])
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        for variable in ("PIXELPICK_DATA", "PIXELPICK_STORE"):
            patch.delenv(variable, raising=False)
        patch.chdir(place)
        try:
            with pytest.raises(SystemExit) as exit_:
                main()
        finally:
            torch.set_num_threads(threads)
    code = exit_.value.code
    return Outcome(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())
