"""Where, with what and how long a result was made; stored beside it, part of no key."""

import os
import platform
import subprocess
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pixelpick_ray
from pixelpick_ray.engine.world import World


def provenance_of(world: World, start: float) -> dict[str, Any]:
    """Where, with what and how long a result was made; `start` is of ``time.perf_counter``."""
    cuda = world.device.type == "cuda"
    return {
        "code": code_commit(),
        "version": pixelpick_ray.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(world.device) if cuda else "cpu",
        "host": platform.node(),
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - start, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@lru_cache(maxsize=1)
def code_commit() -> str:
    """Commit of this package's code, with "+" when files were changed; "unknown" outside a checkout of it."""
    folder = Path(__file__).resolve().parents[1]
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")  # else of a project that an environment lies in
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", str(folder))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, env=os.environ
    )
    return done.stdout.strip()
