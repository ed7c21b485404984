"""Sparse evaluation of a decoder with two 3x3 convolutions, at points only, from patches of its input.

Bilinear logits at a point depend on the 2x2 positions around it, these on 4x4 positions of the first convolution's
output, and those on 6x6 of its input. All shapes follow from the number of points, without device synchronisation.

With batch norm in evaluation mode and without dropout, values and gradients equal the dense decoder's. In training they
differ: batch norm takes its statistics from the patches, where a position counts once per patch that contains it and
positions beyond the borders do not count, and dropout is drawn separately for each patch.
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
    """Positions (M, *) of M patches along one axis of a map; all but `at` are whole numbers.

    `at` (1) is the point, between the two `corners`. `around` (4) is read by the second convolution and may extend
    beyond the borders; the first convolution is computed in `window` (4, or the whole map), which lies within them and
    covers the inner part of `around`, and reads `inputs` (one more on each side).
    """

    at: Tensor
    corners: Tensor
    around: Tensor
    window: Tensor
    inputs: Tensor


def spread_points(count: int, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Points (count, 2), (y, x), spread evenly over a frame of `size` (height, width) for any count.

    They pad images with fewer labelled points, so that batch norm sees equally many patches of every image. An additive
    recurrence (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences") with steps 1/r and 1/r^2, where
    r^3 = r + 1.
    """
    root = 1.324717957244746
    fractions = (0.5 + np.arange(count)[:, None] / np.array([root, root**2])) % 1.0
    points: npt.NDArray[np.float64] = fractions * (np.array(size) - 1)
    return points.astype(np.float32)


def decode_at(
    points: Tensor, frame: tuple[int, int], *, high: Tensor, low: Tensor, decoder: nn.Sequential, classifier: nn.Module
) -> Tensor:
    """Logits (n, P, C) at points (n, P, 2), (y, x) in a frame (H, W), in float32 or wider; P is at least 1.

    `decoder` is convolution, dropout, convolution, dropout, on `high` interpolated to the size of `low`, and `low`,
    concatenated.
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
    """Patch positions for coordinates (M,) in `frame` pixels, whose first and last are those of a map of `length`."""
    steps = torch.arange(6, device=points.device, dtype=points.dtype)
    at = (points * ((length - 1) / max(1, frame - 1))).clamp(0, length - 1).unsqueeze(1)
    first = at.floor().clamp(max=max(0, length - 2))
    size = min(4, length)
    start = (first - 1).clamp(0, length - size)
    return SampledAxis(
        at, first + steps[:2], first + steps[:4] - 1, start + steps[:size], start + steps[: size + 2] - 1
    )


def _without_padding(block: nn.Module, patches: Tensor) -> Tensor:
    """Apply convolution, norm and activation where the kernel lies entirely within the patch."""
    conv, norm, activation = cast(nn.Sequential, block)
    return cast(Tensor, activation(norm(F.conv2d(patches, cast(Tensor, conv.weight)))))


def _cut(features: Tensor, number: int, rows: SampledAxis, columns: SampledAxis) -> Tensor:
    """Features (M, C, I, J) at the inputs of the first convolution, zero beyond the borders."""
    inside = [_inside(axis.inputs, length) for axis, length in zip((rows, columns), features.shape[2:], strict=True)]
    mask = (inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1)
    return _gather(features, number, rows.inputs, columns.inputs) * mask.to(features.dtype)


def _interpolated(high: Tensor, number: int, rows: SampledAxis, columns: SampledAxis, size: tuple[int, int]) -> Tensor:
    """Like `_cut`, from `high` after bilinear interpolation to `size` with aligned corners."""
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
    """Bilinear weights (M, I, K) of known positions (M, K) at positions (M, I); 0 beyond a distance of 1."""
    return (1 - (at.unsqueeze(2) - known.unsqueeze(1)).abs()).clamp(min=0)


def _gather(features: Tensor, number: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Gather (M, C, I, J) from (n, C, h, w) at rows (M, I) and columns (M, J), clamped; `number` patches per image."""
    channels, height, width = features.shape[1:]
    image = torch.arange(len(rows), device=rows.device).div(number, rounding_mode="floor")
    row = image.unsqueeze(1) * height + rows.long().clamp(0, height - 1)
    index = row.unsqueeze(2) * width + columns.long().clamp(0, width - 1).unsqueeze(1)
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    return table.index_select(0, index.flatten()).view(*index.shape, channels).permute(0, 3, 1, 2)


def _resample(patches: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Weighted sums (M, C, I, J) of patches (M, C, K, L), in float32 or wider; weights (M, I, K) and (M, J, L)."""
    dtype = torch.promote_types(patches.dtype, torch.float32)
    weights = rows[:, :, None, :, None] * columns[:, None, :, None, :]
    with without_autocast(patches.device):
        values = patches.permute(0, 2, 3, 1).flatten(1, 2).to(dtype)
        summed = torch.bmm(weights.flatten(3, 4).flatten(1, 2).to(dtype), values)
    return summed.view(*weights.shape[:3], patches.shape[1]).permute(0, 3, 1, 2)
