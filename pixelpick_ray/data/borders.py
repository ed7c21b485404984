"""How far pixels lie from the borders of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pixelpick_ray.data.dataset import UInt8Array

if TYPE_CHECKING:  # a report, which needs no distance, does not import torch
    from torch import Tensor

CHUNK = 2**25  # distances held at once


def border_distances(label: UInt8Array, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """As `distances_to_borders`, of pixels (k,) of one label map (H, W)."""
    import torch

    labels = torch.from_numpy(np.array(label)[None])
    found: npt.NDArray[np.float64] = distances_to_borders(labels, torch.from_numpy(indices)[None])[0].numpy()
    return found


def distances_to_borders(labels: Tensor, indices: Tensor) -> Tensor:
    """Euclidean distance in pixels from each pixel to the nearest border pixel of its image: (n, k) float64.

    `labels` are maps (n, H, W), `indices` (n, k) flat positions in them. A border pixel has another label above, below,
    left or right of it, void included, so its own distance is 0. Infinite where the whole map has one label.
    """
    import torch

    inland = torch.zeros(labels.shape, device=labels.device).masked_fill_(~border_masks(labels), math.inf)
    rows, columns = (torch.arange(side, dtype=torch.float32, device=labels.device) for side in labels.shape[1:])
    nearest = []
    for part in torch.split(indices, max(1, CHUNK // labels.numel()), dim=1):
        at_y, at_x = part // len(columns), part % len(columns)
        across = (columns - at_x[..., None]).abs_()
        in_row = (inland[:, None] + across[:, :, None]).amin(dim=3).double()
        squares = in_row.square_() + (rows - at_y[..., None]).double().square_()
        nearest.append(squares.amin(dim=2).sqrt_())
    return torch.cat(nearest, dim=1)


def border_masks(labels: Tensor) -> Tensor:
    """(n, H, W): the pixels beside which another label begins."""
    masks = labels.new_zeros(labels.shape).bool()
    down, right = labels[:, 1:] != labels[:, :-1], labels[:, :, 1:] != labels[:, :, :-1]
    masks[:, 1:].logical_or_(down)
    masks[:, :-1].logical_or_(down)
    masks[:, :, 1:].logical_or_(right)
    masks[:, :, :-1].logical_or_(right)
    return masks


def mean_distance(distances: Sequence[npt.NDArray[np.float64]]) -> float | None:
    """Mean of the finite distances, the same for every order of them; None without any."""
    known = np.concatenate([np.zeros(0), *distances])
    known = known[np.isfinite(known)]
    return math.fsum(known) / len(known) if len(known) else None
