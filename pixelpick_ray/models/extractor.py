"""Feature maps of a frozen backbone: some of its layers, brought to one stride and joined."""

from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.config.networks import chosen_layers
from pixelpick_ray.data.streams import stream_seed
from pixelpick_ray.models.backbones import build_pyramid, load_pretrained
from pixelpick_ray.models.segmentation import build_model

PYRAMID_STRIDE = 8  # that the levels of a pyramid are brought to unless the spec says otherwise


class FeatureExtractor(nn.Module):
    """Normalised images (N, 3, H, W) to features (N, D, h, w).

    Images are resized bilinearly to the multiple of the features' stride that is nearest to `scale` times their size.
    Finer layers are averaged down to that stride, coarser ones interpolated bilinearly. Raise `version` when
    the same weights give other features.
    """

    version: ClassVar[int] = 1

    def __init__(self, network: nn.Module, channels: int, layers: tuple[int, ...], stride: int, scale: float) -> None:
        super().__init__()
        self.network, self.channels = network, channels
        self._layers, self._stride, self._scale = layers, stride, scale

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the features of an image of (height, width)."""
        height, width = (max(2, round(side * self._scale / self._stride)) for side in size)
        return height, width

    def forward(self, images: Tensor) -> Tensor:
        grid = self.grid((images.shape[2], images.shape[3]))
        size = grid[0] * self._stride, grid[1] * self._stride
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        levels = self.network(images)
        return torch.cat([_brought(levels[layer], grid) for layer in self._layers], dim=1)


def _brought(level: Tensor, grid: tuple[int, int]) -> Tensor:
    if level.shape[2:] == grid:
        return level
    if level.shape[2] >= grid[0] and level.shape[3] >= grid[1]:
        return F.adaptive_avg_pool2d(level, grid)
    return F.interpolate(level, grid, mode="bilinear", align_corners=False)


def build_extractor(spec: ModelSpec, *, data_path: Path, seed: int) -> FeatureExtractor:
    """The extractor of a spec, in evaluation mode; a backbone without weights is a random one of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, "initialise", 0))
        pyramid = build_pyramid(spec)
        load_pretrained(pyramid.network, spec, data_path)
    layers = chosen_layers(spec, pyramid.strides)
    stride = spec.feature_stride or (PYRAMID_STRIDE if len(set(pyramid.strides)) > 1 else pyramid.strides[0])
    channels = sum(pyramid.channels[layer] for layer in layers)
    extractor = FeatureExtractor(pyramid.network, channels, layers, stride, spec.input_scale or 1.0)
    return extractor.eval().requires_grad_(False)


def check_model(spec: ModelSpec, *, num_classes: int, data_path: Path, seed: int) -> None:
    """Build what trials of a spec use, once. SpecError or DataError when it cannot be."""
    if spec.head is None:
        build_model(spec, num_classes=num_classes, data_path=data_path, seed=seed, stage=0)
    else:
        build_extractor(spec, data_path=data_path, seed=seed)
