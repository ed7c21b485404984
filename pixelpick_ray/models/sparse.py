"""A decoder of two 3x3 convolutions at points only, from patches of its input.

Bilinear logits at a point are those of the 2x2 positions around it; they need 4x4 positions of the first convolution's
output, and these 6x6 of its input. All shapes follow from the number of points, and nothing waits for the device.

With batch norm in evaluation and without dropout, values and gradients are those of the dense decoder. In training they
are not: batch norm takes its statistics from the patches, where a position counts once for every patch that has it and
none beyond the borders does, and dropout draws anew for every patch.
"""

import math
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelpick_ray.models.convolution import without_autocast


class SampledAxis(NamedTuple):
    """Where M patches lie along one axis of a map, (M, *) positions; all but `at` are whole numbers.

    `at` (1) is the point, between the two `corners`. `around` (4) is what the second convolution reads, also beyond the
    borders; `window` (4, or the whole map) lies within them, holds all of `around` that does, and is where the first
    convolution is computed; `inputs` (one more on either side) is what that reads.
    """

    at: Tensor
    corners: Tensor
    around: Tensor
    window: Tensor
    inputs: Tensor


def spread_points(count: int, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(count, 2) points (y, x) spread evenly over a frame of `size`, whatever their number.

    They fill up the points of images that have fewer than others, and have no label: so batch norm sees equally many
    patches of every image. An additive recurrence (Roberts 2018, "The unreasonable effectiveness of quasirandom
    sequences") in steps of 1/r and 1/r^2, where r^3 = r + 1.
    """
    root = 1.324717957244746
    fractions = (0.5 + np.arange(count)[:, None] / np.array([root, root**2])) % 1.0
    points: npt.NDArray[np.float64] = fractions * (np.array(size) - 1)
    return points.astype(np.float32)


def decode_at(
    points: Tensor, frame: tuple[int, int], *, high: Tensor, low: Tensor, decoder: nn.Sequential, classifier: nn.Module
) -> Tensor:
    """Logits (n, P, C) at points (n, P, 2) (y, x) of a frame (H, W), in float32 at least; P is 1 or more.

    `decoder` is convolution, dropout, convolution, dropout over `high`, interpolated to the size of `low`, and `low`.
    """
    number, size = points.shape[1], (low.shape[2], low.shape[3])
    rows, columns = (_axis(points[..., axis].flatten(), frame[axis], size[axis]) for axis in (0, 1))
    first, drop, second, drop_last = decoder
    joined = torch.cat([_interpolated(high, number, rows, columns, size), _cut(low, number, rows, columns)], dim=1)
    inner = drop(_without_padding(first, joined))
    inner = _resample(inner, _weights(rows.around, rows.window), _weights(columns.around, columns.window))
    corners = classifier(drop_last(_without_padding(second, inner)))
    logits = _resample(corners, _weights(rows.at, rows.corners), _weights(columns.at, columns.corners))
    return logits.reshape(-1, number, logits.shape[1])


def _axis(points: Tensor, frame: int, length: int) -> SampledAxis:
    """From coordinates (M,) in a frame of so many pixels whose first and last are those of the map."""
    steps = torch.arange(6, device=points.device, dtype=points.dtype)
    at = (points * ((length - 1) / max(1, frame - 1))).clamp(0, length - 1).unsqueeze(1)
    first = at.floor().clamp(max=max(0, length - 2))
    size = min(4, length)
    start = (first - 1).clamp(0, length - size)
    return SampledAxis(
        at, first + steps[:2], first + steps[:4] - 1, start + steps[:size], start + steps[: size + 2] - 1
    )


def _without_padding(block: nn.Module, patches: Tensor) -> Tensor:
    """Convolution, norm and activation where the whole kernel lies in the patch."""
    conv, norm, activation = cast(nn.Sequential, block)
    return cast(Tensor, activation(norm(F.conv2d(patches, cast(Tensor, conv.weight)))))


def _cut(features: Tensor, number: int, rows: SampledAxis, columns: SampledAxis) -> Tensor:
    """(M, C, I, J) features at the inputs of the first convolution, zero beyond the borders."""
    inside = [_inside(axis.inputs, length) for axis, length in zip((rows, columns), features.shape[2:], strict=True)]
    mask = (inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1)
    return _gather(features, number, rows.inputs, columns.inputs) * mask.to(features.dtype)


def _interpolated(high: Tensor, number: int, rows: SampledAxis, columns: SampledAxis, size: tuple[int, int]) -> Tensor:
    """(M, C, I, J) as `_cut` from `high` after bilinear interpolation with aligned corners to `size`."""
    near, weights = [], []
    for axis, length, coarse in zip((rows, columns), size, high.shape[2:], strict=True):
        step = (coarse - 1) / max(1, length - 1)
        at = axis.inputs * step
        reach = min(coarse, math.ceil((axis.inputs.shape[1] - 1) * step) + 2)
        first = at[:, :1].floor().clamp(0, coarse - reach)
        near.append(first + torch.arange(reach, device=at.device, dtype=at.dtype))
        weights.append(_weights(at, near[-1]) * _inside(axis.inputs, length).unsqueeze(2))
    return _resample(_gather(high, number, near[0], near[1]), weights[0], weights[1])


def _inside(positions: Tensor, length: int) -> Tensor:
    return (positions >= 0) & (positions < length)


def _weights(at: Tensor, known: Tensor) -> Tensor:
    """(M, I, K) bilinear weights of neighbouring known positions (M, K) at positions (M, I); 0 without a neighbour."""
    return (1 - (at.unsqueeze(2) - known.unsqueeze(1)).abs()).clamp(min=0)


def _gather(features: Tensor, number: int, rows: Tensor, columns: Tensor) -> Tensor:
    """(M, C, I, J) features (n, C, h, w) at rows (M, I) and columns (M, J), clamped; `number` patches an image."""
    channels, height, width = features.shape[1:]
    image = torch.arange(len(rows), device=rows.device).div(number, rounding_mode="floor")
    row = image.unsqueeze(1) * height + rows.long().clamp(0, height - 1)
    index = row.unsqueeze(2) * width + columns.long().clamp(0, width - 1).unsqueeze(1)
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    return table.index_select(0, index.flatten()).view(*index.shape, channels).permute(0, 3, 1, 2)


def _resample(patches: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(M, C, I, J) weighted sums of patches (M, C, K, L), in float32 at least; weights (M, I, K) and (M, J, L)."""
    dtype = torch.promote_types(patches.dtype, torch.float32)
    weights = rows[:, :, None, :, None] * columns[:, None, :, None, :]
    with without_autocast(patches.device):
        values = patches.permute(0, 2, 3, 1).flatten(1, 2).to(dtype)
        summed = torch.bmm(weights.flatten(3, 4).flatten(1, 2).to(dtype), values)
    return summed.view(*weights.shape[:3], patches.shape[1]).permute(0, 3, 1, 2)
