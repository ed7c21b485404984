"""Selection of pixels by score: pools, exclusion, budgets. Indices are flat positions y * W + x in an image.

Images of equal size are processed together on the device of their scores, without synchronising the host. The picks of
an image depend only on its own scores, candidates and seed, and are the same on every device.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pixelpick_ray.errors import DataError

EXCLUDED = torch.iinfo(torch.int64).min  # key of a pixel that must not be picked


def pool_size(height: int, width: int, fraction: float, num_pixels: int) -> int:
    """Number of pixels in the pool: this fraction of the image, but at least `num_pixels`."""
    return max(int(height * width * fraction), num_pixels)


def candidate_masks(labels: Tensor, void_index: int, taken: Tensor) -> Tensor:
    """Mask (n, H * W) of pixels in label maps (n, H, W) that may be picked: neither void nor already labelled.

    `taken` are flat indices of labelled pixels into all of `labels`.
    """
    free = (labels != void_index).flatten().index_fill_(0, taken, False)
    return free.view(len(labels), -1)


def choose_by_chance(
    candidates: npt.NDArray[np.bool_], num_pixels: int, *, image: str, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw flat indices (num_pixels,) uniformly from an image's candidates (H * W,). DataError if they are too few."""
    require_candidates(int(candidates.sum()), num_pixels, image=image)
    return rng.choice(np.flatnonzero(candidates), num_pixels, replace=False)


def choose_from_pool(scores: Tensor, candidates: Tensor, seeds: Tensor, num_pixels: int, pool: int) -> Tensor:
    """Draw sorted indices (n, num_pixels) uniformly from the `pool` best candidates of each image.

    `scores` (n, H * W) are finite float32, `candidates` (n, H * W) boolean, `seeds` (n,) int64; every image must have
    `num_pixels` candidates (`require_candidates`), and fewer than `pool` are all in the pool. Ties at the edge of the
    pool are broken by index. With ``pool == num_pixels``, these are the best candidates.
    """
    members = _largest(_by_score(scores, _all_pixels(scores)), candidates, pool)
    chance = random_priority(seeds[:, None], members)
    return _picked(members, chance, candidates, num_pixels)


def choose_best_of_chance(scores: Tensor, candidates: Tensor, seeds: Tensor, num_pixels: int, pool: int) -> Tensor:
    """Sorted indices (n, num_pixels) of the best among `pool` uniformly drawn candidates: PixelPick's "reverse order".

    Otherwise like `choose_from_pool`.
    """
    members = _largest(random_priority(seeds[:, None], _all_pixels(scores)), candidates, pool)
    best = _by_score(scores.gather(1, members), members)
    return _picked(members, best, candidates, num_pixels)


# By ``acquire.pool``.
POOLS: dict[str, Callable[[Tensor, Tensor, Tensor, int, int], Tensor]] = {
    "score": choose_from_pool,
    "chance": choose_best_of_chance,
}


def random_priority(seeds: Tensor, pixels: Tensor) -> Tensor:
    """Random int64 keys, distinct within an image; `seeds` and `pixels` are broadcast.

    The key of pixel i is output i + 1 of SplitMix64 seeded with the image's seed, read as a signed number: a bijection
    of a counter (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"; multipliers of Stafford's
    variant 13), which can be computed for any subset of pixels. With priorities instead of positions in the pool,
    rounding that moves one pixel across the pool's edge changes at most one pick.
    """
    state = (pixels + 1) * _signed(0x9E3779B97F4A7C15) + seeds
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def _signed(constant: int) -> int:
    """A 64-bit constant as a signed int64; products wrap the same way."""
    return constant - 2**64


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return torch.bitwise_and(values >> bits, 2 ** (64 - bits) - 1)


def _all_pixels(scores: Tensor) -> Tensor:
    return torch.arange(scores.shape[1], device=scores.device)


def _by_score(scores: Tensor, pixels: Tensor) -> Tensor:
    """Distinct int64 keys in the order of float32 scores; ties rank the lower index higher.

    Reinterpreted as integers, floats keep their order above zero and reverse it below.
    """
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return ordered.long().mul_(2**32).sub_(pixels)


def _largest(keys: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Positions (n, count) of the candidates with the largest keys; others only if there are too few candidates."""
    ranked = keys.masked_fill(~candidates, EXCLUDED)
    return ranked.topk(min(count, keys.shape[1]), dim=1, sorted=False).indices


def _picked(members: Tensor, keys: Tensor, candidates: Tensor, num_pixels: int) -> Tensor:
    """The members with the largest keys, sorted by index."""
    places = _largest(keys, candidates.gather(1, members), num_pixels)
    return members.gather(1, places).sort(dim=1).values


def require_candidates(available: int, wanted: int, *, image: str) -> None:
    """Raise DataError if an image has fewer candidates than pixels to pick."""
    if available < wanted:
        raise DataError(
            f"image {image}: {wanted} pixels requested, but only {available} are neither void nor labelled; lower "
            "the budget, or remove the image"
        )
