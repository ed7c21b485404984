"""How far pixels lie from the borders of classes."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pixelpick_ray.data.dataset import UInt8Array


def border_distances(label: UInt8Array, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Euclidean distance in pixels from each pixel (flat index into the label map (H, W)) to the nearest border pixel.

    A border pixel has another label above, below, left or right of it, void included, so its own distance is 0.
    Infinite where the whole map has one label.
    """
    y, x = np.nonzero(border_mask(label))
    if not len(y):
        return np.full(len(indices), np.inf)
    at_y, at_x = np.divmod(indices, label.shape[1])
    squares = (y[None] - at_y[:, None]) ** 2 + (x[None] - at_x[:, None]) ** 2
    nearest: npt.NDArray[np.float64] = np.sqrt(squares.min(axis=1))
    return nearest


def border_mask(label: UInt8Array) -> npt.NDArray[np.bool_]:
    """(H, W): the pixels beside which another label begins."""
    mask = np.zeros(label.shape, dtype=bool)
    down, right = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
    mask[1:] |= down
    mask[:-1] |= down
    mask[:, 1:] |= right
    mask[:, :-1] |= right
    return mask


def mean_distance(distances: Sequence[npt.NDArray[np.float64]]) -> float | None:
    """Mean of the finite distances, the same for every order of them; None without any."""
    known = np.concatenate([np.zeros(0), *distances])
    known = known[np.isfinite(known)]
    return math.fsum(known) / len(known) if len(known) else None
