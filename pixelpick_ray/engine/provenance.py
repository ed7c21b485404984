"""Provenance of results: code, versions, host and duration; stored with them but in no key."""

import platform
import time
from typing import Any

import numpy as np
import torch

import pixelpick_ray
from pixelpick_ray.config.shipped import code_commit
from pixelpick_ray.engine.world import World


def provenance_of(world: World, start: float) -> dict[str, Any]:
    """The provenance of a result; `start` is the ``time.perf_counter()`` at which its computation began."""
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
