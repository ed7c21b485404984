"""Segmentation networks: a backbone, a decoder, and logits at the decoder's stride. Dispatch by name is ``MODELS``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelpick_ray.data.streams import stream_seed
from pixelpick_ray.models.backbones import Pyramid, build_pyramid, he_initialise, load_pretrained
from pixelpick_ray.spec.experiment import ModelSpec


class SegmentationModel(Protocol):
    """What the engine needs: logits at a coarse stride, and which parameters are the backbone's.

    Full-size logits are the coarse ones interpolated bilinearly with aligned corners (`upsample`), so training can
    sample them at labelled pixels (`logits_at`) without ever making them.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images to coarse logits (N, C, h, w)."""


def conv_norm_act(inputs: int, outputs: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias that keeps the size, batch norm, ReLU."""
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(inputs, outputs, kernel_size, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2018, section 3.2): rates 6, 12, 18 at output stride 16."""

    def __init__(self, inputs: int, output_stride: int, dropout: float) -> None:
        super().__init__()
        rate = 96 // output_stride
        self.branches = nn.ModuleList(
            [conv_norm_act(inputs, 256, 1)] + [conv_norm_act(inputs, 256, 3, rate * step) for step in (1, 2, 3)]
        )
        self.pooled = conv_norm_act(inputs, 256, 1)
        self.project = conv_norm_act(5 * 256, 256, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        pooled = self.pooled(features.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *features.shape[2:])
        joined = torch.cat([branch(features) for branch in self.branches] + [pooled], dim=1)
        return cast(Tensor, self.dropout(self.project(joined)))


class DeepLabV3Plus(nn.Module):
    """DeepLabv3+ (Chen et al. 2018) as in PixelPick: 48 low-level channels at stride 4, a 304 -> 256 -> 256 decoder."""

    def __init__(self, pyramid: Pyramid, num_classes: int, spec: ModelSpec) -> None:
        super().__init__()
        self.backbone = pyramid.network
        self.low_level, self.high_level = pyramid.level_at(4), len(pyramid.strides) - 1
        after_aspp, in_decoder, before_classifier = spec.dropout
        self.aspp = AtrousPyramid(pyramid.channels[self.high_level], spec.output_stride, after_aspp)
        self.low = conv_norm_act(pyramid.channels[self.low_level], 48, 1)
        self.decoder = nn.Sequential(
            conv_norm_act(48 + 256, 256, 3),
            nn.Dropout(in_decoder),
            conv_norm_act(256, 256, 3),
            nn.Dropout(before_classifier),
        )
        self.classifier = nn.Conv2d(256, num_classes, 1)
        for part in (self.aspp, self.low, self.decoder, self.classifier):
            he_initialise(part)

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        low = self.low(features[self.low_level])
        high = upsample(self.aspp(features[self.high_level]), (low.shape[2], low.shape[3]))
        return cast(Tensor, self.classifier(self.decoder(torch.cat([high, low], dim=1))))


MODELS: dict[str, Callable[[Pyramid, int, ModelSpec], nn.Module]] = {"deeplabv3plus": DeepLabV3Plus}


def build_model(spec: ModelSpec, *, num_classes: int, data_path: Path, seed: int, stage: int) -> nn.Module:
    """A fresh network: pretrained backbone if the spec says so, every other weight from the seed and the stage."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, "initialise", stage))
        pyramid = build_pyramid(spec)
        load_pretrained(pyramid.network, spec, data_path)
        return MODELS[spec.architecture](pyramid, num_classes, spec)


def parameter_groups(model: nn.Module, *, lr: float, backbone_lr_factor: float) -> list[dict[str, Any]]:
    """Two optimiser groups, the backbone's with its own learning rate; ``base_lr`` is what schedules multiply."""
    backbone = [value for name, value in model.named_parameters() if name.startswith("backbone.")]
    rest = [value for name, value in model.named_parameters() if not name.startswith("backbone.")]
    rates = (lr * backbone_lr_factor, lr)
    return [{"params": group, "lr": rate, "base_lr": rate} for group, rate in zip((backbone, rest), rates, strict=True)]


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation with aligned corners to (height, width), as in the published decoder."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)


def logits_at(logits: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Full-size logits at points only: coarse (N, C, h, w), points (N, P, 2) (y, x) in a frame of `size` -> (N, P, C).

    Equal to ``upsample(logits, size)`` read at integer points; points between pixels are interpolated.
    """
    scale = points.new_tensor([2.0 / max(1, size[1] - 1), 2.0 / max(1, size[0] - 1)])
    grid = points.flip(-1) * scale - 1.0  # grid_sample wants (x, y) in -1..1
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    grid = grid.unsqueeze(2).to(logits.dtype)
    sampled = F.grid_sample(logits, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return sampled.squeeze(3).transpose(1, 2)
