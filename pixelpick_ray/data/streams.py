"""Random generators seeded by purpose, so that nothing depends on rank, worker, batch or order of execution."""

import hashlib

import numpy as np

from pixelpick_ray.config.canonical import canonical_json


def stream_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed derived from seed and purpose, for generators other than NumPy's."""
    text = canonical_json([seed, *purpose])
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "little") >> 1


def stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """An independent generator for each purpose, e.g. ``stream(seed, "augment", stage, epoch, image_name)``."""
    return np.random.Generator(np.random.PCG64(stream_seed(seed, *purpose)))
