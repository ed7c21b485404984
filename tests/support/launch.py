"""The command line in this process, or in one that has neither torch nor ray: exit status and what is printed."""

import codecs
import io
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from pixelpick_ray.cli import main

ROOT = Path(__file__).resolve().parents[2]


Outcome = namedtuple("Outcome", "status out err")  # of a command


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


def overriding(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


# Runs launch.py in a Python where the heavy packages cannot be imported.
WITHOUT_TORCH = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "ray", "tensorboard"):
            raise ImportError(f"{name} is not to be imported here")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].removesuffix("launch.py"))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def launch_without_torch(place: Path, *arguments: str) -> str:
    """Standard output of a command that may import neither torch nor ray."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(ROOT / "launch.py"), *arguments],
        cwd=place,
        env={"XDG_CACHE_HOME": str(place / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def unprivileged() -> Iterator[None]:
    """This process, whose user may be root and read everything, is that of nobody for a while."""
    before = os.geteuid()
    for codec in ("ascii", "utf-8-sig"):
        codecs.lookup(codec)  # which nobody might not find any more
    os.seteuid(before or 65534)
    try:
        yield
    finally:
        os.seteuid(before)
