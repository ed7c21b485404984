"""Argmax and highest scores of logits interpolated to full size, without interpolating all of them.

Interpolation is bilinear with aligned corners (`models.segmentation.upsample`). Four neighbours in the coarse grid
enclose a cell of full-size pixels, whose logits are convex combinations of those at its corners. So a class that is
largest at all corners is largest everywhere in the cell, and its probability is at least the smallest of the corners',
because log-softmax is concave. In a segmentation, the corners of most cells agree; only the others are interpolated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

CELLS_AT_ONCE = 1024
ROUNDING = 1e-4  # by how much rounding may push a score above its bound
# The first round scores this many times the wanted pixels, and all cells whose corners differ, which have no bound.
FIRST_SHARE = 4.0


@dataclass(frozen=True)
class _Axis:
    """One axis: first full-size position of each cell (cells + 1,), and cell and weight (length,) of each position."""

    first: Tensor
    cell: Tensor
    weight: Tensor

    @classmethod
    def of(cls, coarse: int, length: int) -> "_Axis":
        exact = torch.arange(length, dtype=torch.float64) * ((coarse - 1) / max(1, length - 1))
        cell = exact.floor().clamp_(max=coarse - 2).long()
        first = torch.searchsorted(cell, torch.arange(coarse))
        return cls(first, cell, (exact - cell).float())

    @property
    def longest(self) -> int:
        return int(self.first.diff().max())


@dataclass(frozen=True)
class Cells:
    """The cells of a coarse grid (h, w), both at least 2, in a full size (H, W)."""

    size: tuple[int, int]
    rows: _Axis
    columns: _Axis

    @staticmethod
    @lru_cache(maxsize=16)
    def of(grid: tuple[int, int], size: tuple[int, int]) -> "Cells":
        """The cells of a grid and a full size, cached."""
        return Cells(size, _Axis.of(grid[0], size[0]), _Axis.of(grid[1], size[1]))

    @property
    def pixels(self) -> Tensor:
        """Number of pixels in each cell (h - 1, w - 1)."""
        return self.rows.first.diff()[:, None] * self.columns.first.diff()[None]

    def put(self, values: Tensor, logits: Tensor, cells: Tensor, value: Callable[[Tensor], Tensor]) -> None:
        """Set `values` (H * W,) at the pixels of `cells` (k,), flat indices into (h - 1, w - 1).

        `value` maps full-size logits (C, p), interpolated from one image's coarse `logits` (C, h, w), to (p,).
        """
        flat, width = logits.flatten(1), logits.shape[2]
        for some in torch.split(cells, CELLS_AT_ONCE):
            row, column = some // (width - 1), some % (width - 1)
            y, in_rows, down = _members(self.rows, row)
            x, in_columns, across = _members(self.columns, column)
            corner = row * width + column
            left = torch.lerp(flat[:, corner, None], flat[:, corner + width, None], down)
            right = torch.lerp(flat[:, corner + 1, None], flat[:, corner + width + 1, None], down)
            block = torch.lerp(left[..., None], right[..., None], across[:, None])
            inside = (in_rows[:, :, None] & in_columns[:, None]).flatten()
            places = (y[:, :, None] * self.size[1] + x[:, None]).flatten()
            values[places[inside]] = value(block.flatten(1))[inside]


def _members(axis: _Axis, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions in cells, a mask of valid ones, and their weights; all (k, m)."""
    positions = axis.first[cells][:, None] + torch.arange(axis.longest)
    inside = positions < axis.first[cells + 1][:, None]
    positions = positions.clamp_(max=len(axis.cell) - 1)
    return positions, inside, axis.weight[positions]


def _agreeing(best: Tensor) -> Tensor:
    """Mask (..., h - 1, w - 1) of cells whose four corners in `best` (..., h, w) are equal."""
    across = best[..., 1:] == best[..., :-1]
    down = best[..., 1:, :] == best[..., :-1, :]
    return across[..., 1:, :] & across[..., :-1, :] & down[..., :-1]


def argmax_of_upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Argmax (N, H, W) int64 over classes at full `size` (H, W), from coarse logits (N, C, h, w)."""
    cells = Cells.of((logits.shape[2], logits.shape[3]), size)
    coarse = logits.max(dim=1).indices
    agreeing = _agreeing(coarse)
    best = coarse[:, cells.rows.cell[:, None], cells.columns.cell[None]]
    for image, one in enumerate(logits):
        others = (~agreeing[image]).flatten().nonzero()[:, 0]
        cells.put(best[image].view(-1), one, others, lambda block: block.max(dim=0).indices)
    return best


def highest_of_upsampled(
    logits: Tensor,
    size: tuple[int, int],
    candidates: Tensor,
    count: int,
    score: Callable[[Tensor], Tensor],
    bound: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """Scores (H * W,) from one image's coarse logits (C, h, w), exact for the `count` highest among `candidates`.

    Other pixels, usually most, may be -inf. `candidates` (H * W,) is boolean; `score` takes logits (1, C, p, 1);
    `bound` is as in `Strategy`.
    """
    cells = Cells.of((logits.shape[1], logits.shape[2]), size)
    shares = logits.softmax(dim=0)
    best, share = logits.max(dim=0).indices, shares.amax(dim=0)
    least = torch.minimum(share[1:], share[:-1])
    least = torch.where(_agreeing(best), torch.minimum(least[:, 1:], least[:, :-1]), 0.0).flatten()
    limits = bound(least, len(logits))
    order = limits.argsort(descending=True)
    pixels = cells.pixels.flatten()[order].cumsum(0)
    scores = torch.full((size[0] * size[1],), -torch.inf)
    done = 0
    upto = max(int(torch.searchsorted(pixels, int(FIRST_SHARE * count))) + 1, int((least == 0).sum()))
    while True:
        cells.put(scores, logits, order[done:upto], lambda block: score(block[None, :, :, None])[0, :, 0])
        done = min(upto, len(order))
        if done == len(order):
            return scores
        known = scores.masked_fill(~candidates, -torch.inf)
        lowest = known.topk(min(count, len(known)), sorted=False).values.min()
        upto = int((limits[order] >= lowest - ROUNDING).sum())
        if upto <= done:
            return scores
