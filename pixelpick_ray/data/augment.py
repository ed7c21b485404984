"""Batched augmentation on the device; labelled pixels travel as coordinates.

The order is the original's: one scale for both axes, pad right and bottom and crop, flip, colour jitter, grayscale,
blur. Scaling, padding, cropping and flipping are one weighted sum of source rows and one of source columns, with
antialiased triangle-filter weights (the definition of Pillow's and torchvision's antialiased bilinear resize).
All random numbers of a batch travel to the device in one small tensor; whatever is large is computed there.
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
CPU_IMAGES = 1  # at once: a CPU is fast on what its cache holds, a GPU on the whole batch in few kernels
NO_CHANGE = ("", 1.0)  # in place of an operation and its factor
NO_BLUR = 1e-3  # a deviation so small that the kernel is 1 in its middle and 0 beside it
BLUR_REACH = 6  # deviations; what lies beyond is lost in float32


@dataclass(frozen=True)
class Draw:
    """The random choices for one image: `top` and `left` in 0..1 of the room that the crop has.

    `jitter` is operations, each once at most, and their factors, in their order.
    """

    scale: float = 1.0
    top: float = 0.0
    left: float = 0.0
    flip: bool = False
    jitter: tuple[tuple[str, float], ...] = ()
    grayscale: bool = False
    blur_sigma: float | None = None


def draw(spec: AugmentSpec | None, rng: np.random.Generator) -> Draw:
    """The choices for one image."""
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
    """Where a source image (height, width) lands in a crop: scaled size, offset and flip."""

    source: tuple[int, int]
    scaled: tuple[int, int]
    offset: tuple[int, int]
    crop: tuple[int, int]
    flip: bool

    @classmethod
    def of(cls, choice: Draw, source: tuple[int, int], crop: tuple[int, int]) -> "Geometry":
        """The geometry of a draw: sizes are floored, the crop's place is uniform over the pixels of its room."""
        scaled = max(1, int(source[0] * choice.scale)), max(1, int(source[1] * choice.scale))
        room = max(0, scaled[0] - crop[0]), max(0, scaled[1] - crop[1])
        return cls(
            source, scaled, (int(choice.top * (room[0] + 1)), int(choice.left * (room[1] + 1))), crop, choice.flip
        )

    def points(
        self, y: npt.NDArray[np.int32], x: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Source pixels to (P, 2) positions (y, x) in the crop, between pixels as a rule, and which of them are
        inside.
        """
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
        """Source pixels and labels to (P, 2) pixels (y, x) of the crop and theirs, in reading order: those for which
        nearest resizing takes one of these source pixels. None, one or several for each.
        """
        number = np.zeros(self.source, dtype=np.int64)
        number[y, x] = np.arange(1, len(y) + 1)
        resized = self.label_map(number, 0)
        place = np.argwhere(resized)
        return place, label[resized[place[:, 0], place[:, 1]] - 1]

    def label_map(self, label: npt.NDArray[L], void_index: int) -> npt.NDArray[L]:
        """The label map in the crop: nearest at pixel centres, void in the padding."""
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
    """(N, 3, H, W) floats in 0..1, smaller images padded right and bottom, to (N, 3, crop height, crop width) in 0..1.

    `fill` (3,) is the colour outside the image. The result is on the images' device; the host does not wait for it.
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
    """What the device needs: `_axis` numbers (N, 2, 4) and blur deviations (N, 1), float64; colour steps (N, S, 5)."""
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
    """Of one axis, in source pixels: the first crop pixel's centre, the step to the next, the filter's support and the
    last pixel.
    """
    step = geometry.source[axis] / geometry.scaled[axis]
    flip = geometry.flip and axis == 1
    first = geometry.offset[axis] + (geometry.crop[axis] - 1 if flip else 0)
    return (first + 0.5) * step - 0.5, -step if flip else step, max(1.0, step), geometry.source[axis] - 1.0


def _place(images: Tensor, axes: Tensor, geometries: Sequence[Geometry], fill: Tensor) -> Tensor:
    """Images as the geometries say, with `fill` where they do not reach."""
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
    """Source pixels and their weights (N, 2, length, taps) for the crop's pixels along both axes.

    And which of these are in the image (N, 2, length); outside all weights are zero.
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
    """(n, L, a, b) to (n, K, a, b): weighted sums of slices along the second dimension, by (n, K, taps)."""
    number, length = slices.shape[:2]
    index = index + torch.arange(0, number * length, length, device=index.device)[:, None, None]
    # An embedding bag is this very sum in one kernel, each slice being a row of its table.
    table = slices.reshape(number * length, -1)
    sums = F.embedding_bag(index.flatten(0, 1), table, per_sample_weights=weights.flatten(0, 1), mode="sum")
    return sums.view(number, -1, *slices.shape[2:])


def _slots(choice: Draw) -> list[tuple[str, float]]:
    """The colour changes in order, spread over eight slots. All hues are in the fourth: a batch turns them at once."""
    changes = [*choice.jitter, *[("saturation", 0.0)] * choice.grayscale]
    hue = next((at for at, (operation, _) in enumerate(changes) if operation == "hue"), None)
    before, after = ([], [NO_CHANGE, *changes]) if hue is None else (changes[:hue], changes[hue:])
    return before + [NO_CHANGE] * (3 - len(before)) + after + [NO_CHANGE] * (5 - len(after))


def _colour_step(operation: str, factor: float) -> tuple[float, ...]:
    """Shares of the image, of its gray and of its mean gray in the result; whether the hue turns and how far."""
    if operation == "hue":
        return 1.0, 0.0, 0.0, 1.0, factor
    rest = 1.0 - factor
    return factor, rest * (operation == "saturation"), rest * (operation == "contrast"), 0.0, 0.0


def _change_colours(images: Tensor, steps: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The draws' changes, slot by slot; writes to `images`."""
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
    """(n, 1, H, W): a share of the images' gray and one of its mean."""
    red, green, blue = images.chunk(3, dim=1)
    gray = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return torch.addcmul(mean_share * gray.mean(dim=(1, 2, 3), keepdim=True), gray, gray_share)


def _turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Hue in HSV moved by `turn` (n, 1, 1, 1) rounds.

    Written with the distance on the colour circle: a channel is highest within a sixth of a round from its own pure
    colour, lowest beyond two sixths, linear between.
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
    """Gaussian blur with deviations (n, 1) in pixels; borders mirrored without repeating the edge (reflect 101)."""
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
