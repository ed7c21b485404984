"""From scores to pixels: pools, exclusion, budgets. Indices are flat positions y * W + x in one image."""

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

    `scores` and `candidates` are (H * W,) on one device, and so is the result. Equal scores at the edge of the pool
    are taken in
    the order of their index, so the pool does not depend on how a device sorts. With ``pool == num_pixels`` these
    are the best.
    """
    available = int(candidates.sum())
    require_candidates(available, num_pixels, image=image)
    pool = min(pool, available)
    masked = scores.masked_fill(~candidates, -torch.inf)
    threshold = masked.topk(pool, sorted=False).values.amin()
    above = torch.nonzero(masked > threshold).squeeze(1)
    ties = torch.nonzero(masked == threshold).squeeze(1)[: pool - len(above)]
    members = torch.cat([above, ties])
    # A priority a pixel rather than positions in the pool: rounding that moves one pixel over the pool's edge
    # moves one pick
    priority = torch.from_numpy(rng.random(len(scores))).to(members.device)
    return members[priority[members].topk(num_pixels, sorted=False).indices].sort().values


def require_candidates(available: int, wanted: int, *, image: str) -> None:
    """DataError when an image has fewer candidates than pixels are wanted."""
    if available < wanted:
        raise DataError(
            f"image {image}: {wanted} pixels wanted, only {available} are neither void nor already labelled; "
            "lower the budget or leave the image out"
        )
