"""Batched augmentation on the device; labelled pixels travel as coordinates.

The order is the original's: one scale for both axes, pad right and bottom and crop, flip, colour jitter, grayscale,
blur.
Scaling, padding, cropping and flipping are one pair of matrix products an image with antialiased triangle-filter
weights (the
definition of Pillow's and torchvision's antialiased bilinear resize).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as colour

from pixelpick_ray.spec.trial import AugmentSpec, BlurSpec, JitterSpec

JITTER_OPERATIONS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class Draw:
    """The random choices for one image: `top` and `left` in 0..1 of the room that the crop has."""

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

    def label_map(self, label: npt.NDArray[np.uint8], void_index: int) -> npt.NDArray[np.uint8]:
        """The label map in the crop: nearest at pixel centres, void in the padding."""
        rows, columns = (_nearest(*axis) for axis in zip(self.source, self.scaled, self.offset, self.crop, strict=True))
        cropped = np.full(self.crop, void_index, dtype=np.uint8)
        cropped[: len(rows), : len(columns)] = label[np.ix_(rows, columns)]
        return cropped[:, ::-1] if self.flip else cropped


def _nearest(source: int, scaled: int, offset: int, crop: int) -> npt.NDArray[np.int64]:
    target = np.arange(offset, min(offset + crop, scaled))
    return np.minimum(((target + 0.5) * source / scaled).astype(np.int64), source - 1)


def augment(
    images: Tensor, draws: Sequence[Draw], geometries: Sequence[Geometry], spec: AugmentSpec | None, fill: Tensor
) -> Tensor:
    """(N, 3, H, W) floats in 0..1, smaller images padded right and bottom, to (N, 3, crop height, crop width) in 0..1.

    `fill` (3,) is the colour outside the image.
    """
    images = _place(images, geometries, fill)
    for index, choice in enumerate(draws):
        image = images[index]
        for operation, factor in choice.jitter:
            image = getattr(colour, f"adjust_{operation}")(image, factor)
        if choice.grayscale:
            image = colour.rgb_to_grayscale(image, num_output_channels=3)
        images[index] = image
    if spec is not None and spec.blur is not None:
        images = _blur(images, draws, spec.blur)
    return images


def _place(images: Tensor, geometries: Sequence[Geometry], fill: Tensor) -> Tensor:
    if all(g.source == g.scaled == g.crop == images.shape[2:] and not g.flip for g in geometries):
        return images.clone()
    rows = torch.stack([_resize_weights(g, 0, images.shape[2]) for g in geometries]).to(images.device)
    columns = torch.stack([_resize_weights(g, 1, images.shape[3]) for g in geometries]).to(images.device)
    placed = rows.unsqueeze(1) @ images @ columns.unsqueeze(1).transpose(2, 3)
    covered = rows.sum(dim=2)[:, None, :, None] * columns.sum(dim=2)[:, None, None, :]
    return (placed + fill[None, :, None, None] * (1.0 - covered)).clamp_(0.0, 1.0)


def _resize_weights(geometry: Geometry, axis: int, padded: int) -> Tensor:
    """(crop, padded) weights of source pixels for the crop's pixels along one axis; rows in the padding are zero."""
    source, scaled, crop = geometry.source[axis], geometry.scaled[axis], geometry.crop[axis]
    target = torch.arange(crop, dtype=torch.float64) + geometry.offset[axis]
    support = max(1.0, source / scaled)
    distance = torch.arange(source, dtype=torch.float64)[None, :] - ((target + 0.5) * source / scaled - 0.5)[:, None]
    weights = (1.0 - distance.abs() / support).clamp_(min=0.0)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_(min=1e-12)
    weights[target >= scaled] = 0.0
    if axis == 1 and geometry.flip:
        weights = weights.flip(0)
    return torch.nn.functional.pad(weights, (0, padded - source)).float()


def _blur(images: Tensor, draws: Sequence[Draw], spec: BlurSpec) -> Tensor:
    blurred = [index for index, choice in enumerate(draws) if choice.blur_sigma is not None]
    if not blurred:
        return images
    height, width = images.shape[2:]
    kernel_size = int(spec.kernel_fraction * min(height, width) // 2 * 2 + 1)
    sigmas = [draws[index].blur_sigma or 0.0 for index in blurred]
    rows = torch.stack([blur_weights(height, sigma, kernel_size) for sigma in sigmas]).to(images.device)
    columns = torch.stack([blur_weights(width, sigma, kernel_size) for sigma in sigmas]).to(images.device)
    images[blurred] = rows.unsqueeze(1) @ images[blurred] @ columns.unsqueeze(1).transpose(2, 3)
    return images


def blur_weights(length: int, sigma: float, kernel_size: int) -> Tensor:
    """(length, length) matrix of a Gaussian blur along one axis, borders mirrored without repeating the edge
    (reflect 101).
    """
    reach = min(kernel_size // 2, length - 1)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    kernel = (kernel / kernel.sum()).float()
    source = torch.arange(length)[:, None] + offsets[None, :]
    source = source.abs()
    source = torch.where(source >= length, 2 * (length - 1) - source, source)
    return torch.zeros(length, length).scatter_add_(1, source, kernel.expand(length, -1))
