"""Batched augmentation on the device, with labelled pixels as coordinates.

The order is that of PixelPick's code: one scale for both axes, padding right and bottom and crop, flip, colour jitter,
grayscale, blur. Scaling, padding, cropping and flipping are one weighted sum of source rows and one of source columns,
with antialiased triangle-filter weights (as in Pillow's and torchvision's antialiased bilinear resize). All random
numbers of a batch are sent to the device in one small tensor; everything large is computed there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, starmap
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pixelpick_ray.config.trial import AugmentSpec, BlurSpec, JitterSpec

L = TypeVar("L", np.uint8, np.int64)
JITTER_OPERATIONS = ("brightness", "contrast", "saturation", "hue")
CPU_IMAGES = 1  # processed at once: CPUs are fastest within their caches, GPUs on the whole batch in few kernels
NO_CHANGE = ("", 1.0)  # in place of an operation and its factor
NO_BLUR = 1e-3  # a standard deviation at which the kernel is an impulse
BLUR_REACH = 6  # standard deviations; weights beyond vanish in float32


@dataclass(frozen=True)
class Draw:
    """The random choices for one image; `top` and `left` are the crop's position as fractions of the available range.

    `jitter` lists (operation, factor) in order of application, each operation at most once.
    """

    scale: float = 1.0
    top: float = 0.0
    left: float = 0.0
    flip: bool = False
    jitter: tuple[tuple[str, float], ...] = ()
    grayscale: bool = False
    blur_sigma: float | None = None


def draw(spec: AugmentSpec | None, rng: np.random.Generator) -> Draw:
    """Draw the random choices for one image."""
    if spec is None:
        return Draw()
    scale = float(rng.uniform(*spec.scale))
    top, left, flip, gray, jitter_on, blur_on = (float(value) for value in rng.random(6))
    jitter = _draw_jitter(spec.jitter, rng) if spec.jitter and jitter_on < spec.jitter.probability else ()
    sigma = float(rng.uniform(*spec.blur.sigma)) if spec.blur and blur_on < spec.blur.probability else None
    return Draw(scale, top, left, flip < spec.hflip, jitter, gray < spec.grayscale, sigma)


def _draw_jitter(spec: JitterSpec, rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
    order = [JITTER_OPERATIONS[at] for at in rng.permutation(len(JITTER_OPERATIONS))]
    factors = {
        name: float(rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength))
        for name in JITTER_OPERATIONS[:3]
        if (strength := getattr(spec, name)) > 0
    }
    if spec.hue > 0:
        factors["hue"] = float(rng.uniform(-spec.hue, spec.hue))
    return tuple((name, factors[name]) for name in order if name in factors)


@dataclass(frozen=True)
class Geometry:
    """The mapping from a source image (height, width) to a crop: scaled size, offset and flip."""

    source: tuple[int, int]
    scaled: tuple[int, int]
    offset: tuple[int, int]
    crop: tuple[int, int]
    flip: bool

    @classmethod
    def of(cls, choice: Draw, source: tuple[int, int], crop: tuple[int, int]) -> "Geometry":
        """The geometry of a draw: sizes are floored, and the crop's offset is uniform over its possible pixels."""
        scaled = max(1, int(source[0] * choice.scale)), max(1, int(source[1] * choice.scale))
        room = max(0, scaled[0] - crop[0]), max(0, scaled[1] - crop[1])
        return cls(
            source, scaled, (int(choice.top * (room[0] + 1)), int(choice.left * (room[1] + 1))), crop, choice.flip
        )

    def points(
        self, y: npt.NDArray[np.int32], x: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Map source pixels (P,) to exact positions (y, x) in the crop, (P, 2), and a mask (P,) of those inside."""
        position = np.stack([y, x], axis=1) + 0.5
        position = position * self.scaled / self.source - 0.5 - self.offset
        within = (position >= -0.5) & (position < np.asarray(self.crop) - 0.5)
        inside = within[:, 0] & within[:, 1]
        if self.flip:
            position[:, 1] = self.crop[1] - 1 - position[:, 1]
        return np.clip(position, 0, np.asarray(self.crop) - 1), inside

    def resized_points(
        self, y: npt.NDArray[np.int32], x: npt.NDArray[np.int32], label: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Map labelled source pixels (K,) to crop pixels (y, x), (P, 2), and labels (P,), in row-major order.

        These are the pixels that nearest-neighbour resizing fills from them: none, one or several each.
        """
        number = np.zeros(self.source, dtype=np.int64)
        number[y, x] = np.arange(1, len(y) + 1)
        resized = self.label_map(number, 0)
        place = np.argwhere(resized)
        return place, label[resized[place[:, 0], place[:, 1]] - 1]

    def label_map(self, label: npt.NDArray[L], void_index: int) -> npt.NDArray[L]:
        """The label map in the crop: nearest neighbour at pixel centres, void in the padding."""
        rows, columns = (_nearest(*axis) for axis in zip(self.source, self.scaled, self.offset, self.crop, strict=True))
        cropped = np.full(self.crop, void_index, dtype=label.dtype)
        cropped[: len(rows), : len(columns)] = label[np.ix_(rows, columns)]
        return cropped[:, ::-1] if self.flip else cropped


def _nearest(source: int, scaled: int, offset: int, crop: int) -> npt.NDArray[np.int64]:
    target = np.arange(offset, min(offset + crop, scaled))
    return np.minimum(((target + 0.5) * source / scaled).astype(np.int64), source - 1)


def augment(
    images: Tensor, draws: Sequence[Draw], geometries: Sequence[Geometry], spec: AugmentSpec | None, fill: Tensor
) -> Tensor:
    """Augment (N, 3, H, W) floats in 0..1, smaller images padded right and bottom, to (N, 3, *crop size) in 0..1.

    `fill` (3,) is the colour outside the image. The result is on the images' device, without synchronising the host.
    """
    if not draws:
        return images.clone()
    axes, sigmas, steps = _numbers(draws, geometries, images.device)
    at_once = CPU_IMAGES if images.device.type == "cpu" else len(draws)
    result = images.new_empty(len(draws), 3, *geometries[0].crop)
    for first in range(0, len(draws), at_once):
        part = slice(first, first + at_once)
        changed = _place(images[part], axes[part], geometries[part], fill)
        changed = _change_colours(changed, steps[part], draws[part])
        if spec is not None and spec.blur is not None:
            changed = _blur(changed, sigmas[part], draws[part], spec.blur)
        result[part] = changed
    return result


def _numbers(
    draws: Sequence[Draw], geometries: Sequence[Geometry], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """On the device: `_axis` parameters (N, 2, 4) and blur deviations (N, 1), float64; colour steps (N, S, 5)."""
    numbers = np.asarray(
        [
            [*_axis(g, 0), *_axis(g, 1), choice.blur_sigma or NO_BLUR, *chain(*starmap(_colour_step, _slots(choice)))]
            for choice, g in zip(draws, geometries, strict=True)
        ]
    )
    there = torch.from_numpy(numbers)
    if device.type == "cuda":
        there = there.pin_memory()
    there = there.to(device, non_blocking=True)
    return there[:, :8].view(-1, 2, 4), there[:, 8:9], there[:, 9:].float().view(len(draws), -1, 5)


def _axis(geometry: Geometry, axis: int) -> tuple[float, ...]:
    """For one axis, in source pixels: centre of the first crop pixel, step, filter support, and the last pixel."""
    step = geometry.source[axis] / geometry.scaled[axis]
    flip = geometry.flip and axis == 1
    first = geometry.offset[axis] + (geometry.crop[axis] - 1 if flip else 0)
    return (first + 0.5) * step - 0.5, -step if flip else step, max(1.0, step), geometry.source[axis] - 1.0


def _place(images: Tensor, axes: Tensor, geometries: Sequence[Geometry], fill: Tensor) -> Tensor:
    """Apply the geometries to the images, with `fill` outside them."""
    if all(g.source == g.scaled == g.crop == images.shape[2:] and not g.flip for g in geometries):
        return images.clone(memory_format=torch.contiguous_format)
    height, width = geometries[0].crop
    widest = max(1.0, *(source / scaled for g in geometries for source, scaled in zip(g.source, g.scaled, strict=True)))
    index, weights, inside = _filter(axes, max(height, width), math.ceil(2 * widest))
    placed = _weighted_sums(images.permute(0, 2, 3, 1), index[:, 0, :height], weights[:, 0, :height])
    placed = _weighted_sums(placed.permute(0, 2, 3, 1), index[:, 1, :width], weights[:, 1, :width]).permute(0, 2, 3, 1)
    if any(scaled < side for g in geometries for scaled, side in zip(g.scaled, g.crop, strict=True)):
        outside = ~(inside[:, 1, None, :width, None] & inside[:, 0, None, None, :height])
        placed.addcmul_(fill[:, None, None], outside.to(fill.dtype).transpose(2, 3))
    return placed.clamp_(0.0, 1.0)


def _filter(axes: Tensor, length: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Source indices and weights (N, 2, length, taps) of the crop's pixels along both axes.

    Also a mask (N, 2, length) of those inside the image; outside, all weights are zero.
    """
    start, step, support, last = axes[..., None].unbind(2)
    centre = torch.addcmul(start, step, torch.arange(length, dtype=axes.dtype, device=axes.device))
    tap = (centre - support).floor_()[..., None] + torch.arange(1, taps + 1, device=axes.device)
    index = torch.minimum(tap.clamp(min=0), last[..., None])
    weights = (support[..., None] - (tap - centre[..., None]).abs_()).clamp_(min=0.0).mul_(index == tap)
    inside = centre < last + 0.5
    weights.mul_((inside / weights.sum(dim=3).clamp_(min=1e-12))[..., None])
    return index.long(), weights.float(), inside


def _weighted_sums(slices: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of slices along the second dimension: (n, L, a, b) with `index` (n, K, taps) to (n, K, a, b)."""
    number, length = slices.shape[:2]
    index = index + torch.arange(0, number * length, length, device=index.device)[:, None, None]
    # An embedding bag computes this sum in one kernel, with slices as the rows of its table.
    table = slices.reshape(number * length, -1)
    sums = F.embedding_bag(index.flatten(0, 1), table, per_sample_weights=weights.flatten(0, 1), mode="sum")
    return sums.view(number, -1, *slices.shape[2:])


def _slots(choice: Draw) -> list[tuple[str, float]]:
    """The colour changes in order, in eight slots; hue is always in the fourth, so that a batch shifts hues at once."""
    changes = [*choice.jitter, *[("saturation", 0.0)] * choice.grayscale]
    hue = next((at for at, (operation, _) in enumerate(changes) if operation == "hue"), None)
    before, after = ([], [NO_CHANGE, *changes]) if hue is None else (changes[:hue], changes[hue:])
    return before + [NO_CHANGE] * (3 - len(before)) + after + [NO_CHANGE] * (5 - len(after))


def _colour_step(operation: str, factor: float) -> tuple[float, ...]:
    """Weights of the image, its gray and its mean gray in the result; whether the hue shifts, and by how much."""
    if operation == "hue":
        return 1.0, 0.0, 0.0, 1.0, factor
    rest = 1.0 - factor
    return factor, rest * (operation == "saturation"), rest * (operation == "contrast"), 0.0, 0.0


def _change_colours(images: Tensor, steps: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Apply the draws' colour changes slot by slot; overwrites `images`."""
    for slot, changes in enumerate(zip(*map(_slots, draws), strict=True)):
        operations = {operation for operation, _ in changes}
        own, gray, mean, turns, turn = steps[:, slot, :, None, None, None].unbind(1)
        if not operations.isdisjoint({"contrast", "saturation"}):
            grays = _grays(images, gray, mean)
            images.mul_(own).add_(grays).clamp_(0.0, 1.0)
        elif "brightness" in operations:
            images.mul_(own).clamp_(0.0, 1.0)
        if "hue" in operations:
            turned = _turn_hue(images, turn)
            images = turned if operations == {"hue"} else torch.where(turns > 0, turned, images)
    return images


def _grays(images: Tensor, gray_share: Tensor, mean_share: Tensor) -> Tensor:
    """Weighted sum (n, 1, H, W) of the images' gray and its mean."""
    red, green, blue = images.chunk(3, dim=1)
    gray = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return torch.addcmul(mean_share * gray.mean(dim=(1, 2, 3), keepdim=True), gray, gray_share)


def _turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Shift the HSV hue by `turn` (n, 1, 1, 1) turns.

    Uses distances on the colour circle: a channel is maximal within a sixth of a turn of its pure colour, minimal
    beyond two sixths, and linear between.
    """
    red, green, blue = images.chunk(3, dim=1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    sixths = (green - red).add_(blue - low).div_(chroma.clamp(min=1e-12)).add_(1.0)  # from red, either way round
    hue = sixths.copysign_(green - blue).div_(6.0)
    distance = hue + (turn - torch.arange(3, device=images.device)[:, None, None] / 3.0)
    distance = (distance - distance.round()).abs_()
    return torch.addcmul(low, chroma, torch.rsub(distance, 2.0, alpha=6.0).clamp_(0.0, 1.0))


def _blur(images: Tensor, sigmas: Tensor, draws: Sequence[Draw], spec: BlurSpec) -> Tensor:
    """Gaussian blur with standard deviations (n, 1) in pixels; borders are reflected without repeating the edge."""
    widest = max(choice.blur_sigma or 0.0 for choice in draws)
    if widest == 0.0:
        return images
    kernel_size = int(spec.kernel_fraction * min(images.shape[2:]) // 2 * 2 + 1)
    reach = min(kernel_size // 2, math.ceil(BLUR_REACH * widest))
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigmas) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).float()[:, None]
    slices = images.permute(0, 3, 1, 2)
    for _ in range(2):  # columns, then rows
        length = slices.shape[1]
        index = (torch.arange(length, device=images.device)[:, None] + offsets).abs_()
        index = length - 1 - (length - 1 - index).abs_()
        slices = _weighted_sums(slices, index, kernel.expand(-1, length, -1)).permute(0, 3, 2, 1)
    return slices.permute(0, 2, 3, 1)
