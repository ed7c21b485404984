"""Feature extraction from a backbone: selected layers, resampled to one stride and concatenated."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.config.networks import chosen_layers, feature_grid, feature_stride
from pixelpick_ray.data.streams import stream_seed
from pixelpick_ray.models.backbones import Pyramid, build_pyramid, load_pretrained


class FeatureExtractor(nn.Module):
    """Maps normalised images (N, 3, H, W) to features (N, D, h, w).

    Images are resized bilinearly to the multiple of the features' stride nearest to their size times the spec's
    ``input_scale``. Finer layers are average-pooled to that stride, coarser ones interpolated bilinearly. Increment
    `FEATURES_VERSION` (`config/keys.py`) when the same weights give different features.
    """

    def __init__(self, spec: ModelSpec, pyramid: Pyramid) -> None:
        super().__init__()
        self.network, self._spec = pyramid.network, spec
        self._layers, self._stride = chosen_layers(spec, pyramid.strides), feature_stride(spec, pyramid.strides)
        self.channels = sum(pyramid.channels[layer] for layer in self._layers)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the features of an image of `size` (height, width)."""
        return feature_grid(self._spec, self._stride, size)

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
    """Build a spec's extractor in evaluation mode; a backbone without pretrained weights is random, by seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, "initialise", 0))
        pyramid = build_pyramid(spec)
        load_pretrained(pyramid.network, spec, data_path)
    return FeatureExtractor(spec, pyramid).eval().requires_grad_(False)
