"""A prepared split as tensors: resident on a GPU if it fits, else copied batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pixelpick_ray.data.cache import PreparedSplit

DEVICE_SHARE = 0.25  # fraction of a GPU's free memory that one split may take
DEVICE_SPLITS = 4  # resident at once: usually all that a trial trains on and evaluates

_resident: dict[tuple[str, bytes, torch.device], tuple[Tensor, Tensor] | None] = {}


@dataclass(frozen=True)
class SplitImages:
    """Images and label maps of a prepared split, by position, on one device."""

    prepared: PreparedSplit
    device: torch.device
    resident: tuple[Tensor, Tensor] | None

    @classmethod
    def on(cls, prepared: PreparedSplit, device: torch.device) -> "SplitImages":
        """The split on a device; a GPU gets all of it once per process, if it fits in DEVICE_SHARE of free memory."""
        return cls(prepared, device, _made_resident(prepared, device) if device.type == "cuda" else None)

    def images(self, positions: Sequence[int], smallest: tuple[int, int] = (0, 0)) -> Tensor:
        """Images (n, 3, H, W) uint8, channels last, smaller ones zero-padded right and bottom; n may be 0.

        H and W are the largest height and width; without images they are `smallest`.
        """
        shapes = [self.prepared.shape(position) for position in positions]
        height, width = (max([size[axis] for size in shapes], default=smallest[axis]) for axis in (0, 1))
        if self.resident is None:
            return moved(stack_images([self.prepared.image(p) for p in positions], (height, width)), self.device)
        flat = self.resident[0]
        if positions and all(shape == (height, width) for shape in shapes):
            stacked = self._whole(flat, positions, height * width).view(len(positions), height, width, 3)
        else:
            stacked = flat.new_zeros(len(positions), height, width, 3)
            for index, (position, (h, w)) in enumerate(zip(positions, shapes, strict=True)):
                stacked[index, :h, :w] = self._whole(flat, [position], h * w).view(h, w, 3)
        return stacked.permute(0, 3, 1, 2)

    def labels(self, positions: Sequence[int]) -> Tensor:
        """Label maps (n, H, W) uint8 of images of equal size."""
        height, width = self.prepared.shape(positions[0])
        if self.resident is None:
            return moved(torch.from_numpy(np.stack([self.prepared.label(p) for p in positions])), self.device)
        return self._whole(self.resident[1], positions, height * width).view(len(positions), height, width)

    def _whole(self, flat: Tensor, positions: Sequence[int], pixels: int) -> Tensor:
        starts = [int(self.prepared.offsets[position]) for position in positions]
        return torch.stack([flat[start : start + pixels] for start in starts])


def stack_images(images: Sequence[npt.NDArray[np.uint8]], size: tuple[int, int]) -> Tensor:
    """Stack images (h, w, 3) to (N, 3, *size) uint8, channels last, zero-padded right and bottom; N may be 0."""
    stacked = np.zeros((len(images), *size, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        stacked[index, : image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a host tensor to the device; the copy to a GPU is asynchronous."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _made_resident(prepared: PreparedSplit, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Flat images (pixels, 3) and labels (pixels,) on the device, kept for later calls; None if they do not fit."""
    key = prepared.fingerprint, prepared.shapes.tobytes(), device
    if key not in _resident:
        while len(_resident) >= DEVICE_SPLITS:
            del _resident[next(iter(_resident))]  # the oldest
        free, _ = torch.cuda.mem_get_info(device)
        fits = prepared.images.nbytes + prepared.labels.nbytes <= DEVICE_SHARE * free
        prepared.verify()
        _resident[key] = (_on_device(prepared.images, device), _on_device(prepared.labels, device)) if fits else None
    return _resident[key]


def _on_device(array: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(array)).to(device)
