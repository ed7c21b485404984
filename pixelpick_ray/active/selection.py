"""From scores to pixels: pools, exclusion, budgets. Indices are flat positions y * W + x in one image."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pixelpick_ray.errors import DataError


def pool_size(height: int, width: int, fraction: float, num_pixels: int) -> int:
    """Pixels of the pool that the picks are drawn from: the fraction of the image, at least the picks themselves."""
    return max(int(height * width * fraction), num_pixels)


def candidate_mask(
    label: npt.NDArray[np.uint8], void_index: int, taken: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """(H * W,) True where a pixel may be picked: neither void nor already labelled (`taken` are flat indices)."""
    mask: npt.NDArray[np.bool_] = label.reshape(-1) != void_index
    mask[taken] = False
    return mask


def choose_initial(
    candidates: npt.NDArray[np.bool_], num_pixels: int, *, image: str, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Flat indices of pixels chosen uniformly among the candidates of an image."""
    require_candidates(int(candidates.sum()), num_pixels, image=image)
    return rng.choice(np.flatnonzero(candidates), num_pixels, replace=False)


def choose_from_pool(
    scores: Tensor, candidates: Tensor, num_pixels: int, *, pool: int, image: str, rng: np.random.Generator
) -> Tensor:
    """Flat indices of `num_pixels` drawn uniformly from the `pool` best candidates of one image.

    `scores` and `candidates` are (H * W,) on one device, and so is the result, sorted. Equal scores at the edge of the
    pool are taken in the order of their index, so the pool does not depend on how a device sorts. With
    ``pool == num_pixels`` these are the best.
    """
    members, priority = _pool_of(scores, scores, candidates, num_pixels, pool=pool, image=image, rng=rng)
    return members[_largest(priority[members], num_pixels)]


def choose_best_of_chance(
    scores: Tensor, candidates: Tensor, num_pixels: int, *, pool: int, image: str, rng: np.random.Generator
) -> Tensor:
    """Flat indices of the best `num_pixels` among `pool` candidates drawn uniformly: PixelPick's "reverse order".

    As `choose_from_pool` otherwise.
    """
    members, _ = _pool_of(None, scores, candidates, num_pixels, pool=pool, image=image, rng=rng)
    return members[_largest(scores[members], num_pixels)]


# How the pool of an image comes about.
POOLS: dict[str, Callable[..., Tensor]] = {"score": choose_from_pool, "chance": choose_best_of_chance}


def _pool_of(
    by: Tensor | None,
    scores: Tensor,
    candidates: Tensor,
    num_pixels: int,
    *,
    pool: int,
    image: str,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """The candidates largest in `by` (None: in priority), and a random priority a pixel.

    A priority rather than positions in the pool: rounding that moves one pixel over the pool's edge moves one pick.
    """
    available = int(candidates.sum())
    require_candidates(available, num_pixels, image=image)
    priority = torch.from_numpy(rng.random(len(scores))).to(scores.device)
    ranked = (priority if by is None else by).masked_fill(~candidates, -torch.inf)
    return _largest(ranked, min(pool, available)), priority


def _largest(values: Tensor, count: int) -> Tensor:
    """Sorted indices of the `count` largest values, equal ones in the order of their index."""
    threshold = values.topk(count, sorted=False).values.amin()
    above = torch.nonzero(values > threshold).squeeze(1)
    ties = torch.nonzero(values == threshold).squeeze(1)[: count - len(above)]
    return torch.cat([above, ties]).sort().values


def require_candidates(available: int, wanted: int, *, image: str) -> None:
    """DataError when an image has fewer candidates than pixels are wanted."""
    if available < wanted:
        raise DataError(
            f"image {image}: {wanted} pixels wanted, only {available} are neither void nor already labelled; "
            "lower the budget or leave the image out"
        )
