"""From scores to pixels: pools, exclusion, budgets. Indices are flat positions y * W + x in one image.

Images of one size are chosen from together, on the device that holds their scores, which the host never waits for.
What is picked in an image depends on its own scores, candidates and seed only, and is the same on every device.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pixelpick_ray.errors import DataError

EXCLUDED = torch.iinfo(torch.int64).min  # the key of a pixel that may not be picked


def pool_size(height: int, width: int, fraction: float, num_pixels: int) -> int:
    """Pixels of the pool that the picks are drawn from: the fraction of the image, at least the picks themselves."""
    return max(int(height * width * fraction), num_pixels)


def candidate_masks(labels: Tensor, void_index: int, taken: Tensor) -> Tensor:
    """(n, H * W) True where a pixel of label maps (n, H, W) may be picked: neither void nor already labelled.

    `taken` are flat indices into all of `labels`.
    """
    free = (labels != void_index).flatten().index_fill_(0, taken, False)
    return free.view(len(labels), -1)


def choose_by_chance(
    candidates: npt.NDArray[np.bool_], num_pixels: int, *, image: str, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Flat indices of pixels chosen uniformly among the candidates (H * W,) of an image; DataError when too few."""
    require_candidates(int(candidates.sum()), num_pixels, image=image)
    return rng.choice(np.flatnonzero(candidates), num_pixels, replace=False)


def choose_from_pool(scores: Tensor, candidates: Tensor, seeds: Tensor, num_pixels: int, pool: int) -> Tensor:
    """(n, num_pixels) sorted indices drawn uniformly from the `pool` best candidates of each image.

    `scores` (n, H * W) are finite float32, `candidates` (n, H * W) boolean, `seeds` (n,) int64; every image must have
    `num_pixels` candidates (`require_candidates`), and fewer than `pool` are all in the pool. Equal scores at the edge
    of the pool are taken in the order of their index. With ``pool == num_pixels`` these are the best.
    """
    members = _largest(_by_score(scores, _all_pixels(scores)), candidates, pool)
    chance = random_priority(seeds[:, None], members)
    return _picked(members, chance, candidates, num_pixels)


def choose_best_of_chance(scores: Tensor, candidates: Tensor, seeds: Tensor, num_pixels: int, pool: int) -> Tensor:
    """(n, num_pixels) sorted indices of the best among `pool` candidates drawn uniformly: PixelPick's "reverse order".

    As `choose_from_pool` otherwise.
    """
    members = _largest(random_priority(seeds[:, None], _all_pixels(scores)), candidates, pool)
    best = _by_score(scores.gather(1, members), members)
    return _picked(members, best, candidates, num_pixels)


# How the pool of an image comes about.
POOLS: dict[str, Callable[[Tensor, Tensor, Tensor, int, int], Tensor]] = {
    "score": choose_from_pool,
    "chance": choose_best_of_chance,
}


def random_priority(seeds: Tensor, pixels: Tensor) -> Tensor:
    """Random int64 keys of pixels, different for different pixels of an image; `seeds` and `pixels` are broadcast.

    The key of pixel i is output i + 1 of SplitMix64 started at the seed, read as a signed number: a bijection of a
    counter (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"; multipliers of variant 13 of
    Stafford), so it can be computed for some pixels alone. A priority rather than positions in the pool: rounding that
    moves one pixel over the pool's edge moves one pick.
    """
    state = (pixels + 1) * _signed(0x9E3779B97F4A7C15) + seeds
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def _signed(constant: int) -> int:
    """A 64-bit constant as int64 holds it; products wrap either way."""
    return constant - 2**64


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift int64 to the right as if it had no sign."""
    return torch.bitwise_and(values >> bits, 2 ** (64 - bits) - 1)


def _all_pixels(scores: Tensor) -> Tensor:
    return torch.arange(scores.shape[1], device=scores.device)


def _by_score(scores: Tensor, pixels: Tensor) -> Tensor:
    """Different int64 keys in the order of float32 scores, of equal scores the lower index above.

    The bits of a float are in the order of the floats above zero, and reversed below.
    """
    bits = (scores + 0.0).view(torch.int32)  # -0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return ordered.long().mul_(2**32).sub_(pixels)


def _largest(keys: Tensor, candidates: Tensor, count: int) -> Tensor:
    """(n, count) places of the candidates with the largest keys; others only where there are fewer candidates."""
    ranked = keys.masked_fill(~candidates, EXCLUDED)
    return ranked.topk(min(count, keys.shape[1]), dim=1, sorted=False).indices


def _picked(members: Tensor, keys: Tensor, candidates: Tensor, num_pixels: int) -> Tensor:
    """The members with the largest keys, in the order of their index."""
    places = _largest(keys, candidates.gather(1, members), num_pixels)
    return members.gather(1, places).sort(dim=1).values


def require_candidates(available: int, wanted: int, *, image: str) -> None:
    """DataError when an image has fewer candidates than pixels are wanted."""
    if available < wanted:
        raise DataError(
            f"image {image}: {wanted} pixels wanted, only {available} are neither void nor already labelled; "
            "lower the budget or leave the image out"
        )
