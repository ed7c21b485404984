"""Segmentation networks by name in ``MODELS``: a backbone, a decoder, and logits at the decoder's stride."""

import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelpick_ray.config import parts
from pixelpick_ray.config.model import MlpSpec, ModelSpec
from pixelpick_ray.data.streams import stream_seed
from pixelpick_ray.errors import SpecError
from pixelpick_ray.models.backbones import Pyramid, build_pyramid, he_initialise, load_pretrained
from pixelpick_ray.models.convolution import Conv3x3, conv3x3, without_autocast
from pixelpick_ray.models.dropout import Dropout
from pixelpick_ray.models.extractor import FeatureExtractor, build_extractor
from pixelpick_ray.models.heads import perceptron
from pixelpick_ray.models.sparse import decode_at

FRAME_MULTIPLE = 8  # the published networks halve images three times before dilating


class SegmentationModel(Protocol):
    """The interface that the engine needs; the backbone's parameters are named ``backbone.*``.

    Logits may have any stride. Full-size logits are interpolated bilinearly with aligned corners (`upsample`), so that
    training can sample them at labelled pixels (`logits_at`) without computing all. The sides of images are multiples
    of `FRAME_MULTIPLE`. Dropout layers must be `Dropout`, so that `stochastic` can enable them.
    """

    def __call__(self, images: Tensor, points: Tensor | None = None) -> Tensor:
        """Map normalised images (N, 3, H, W) to logits (N, C, h, w), h <= H and w <= W.

        With points (N, P, 2), (y, x) in the images, return logits (N, P, C) at these only; needed for networks with
        ``train.decoder: sparse``. All points must lie in their image, since batch norm includes every one.
        """


def conv_norm_act(inputs: int, outputs: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    """Size-preserving convolution without bias, batch norm, ReLU."""
    padding = dilation * (kernel_size // 2)
    if (kernel_size, dilation) == (3, 1):
        conv: nn.Conv2d = Conv3x3(inputs, outputs)
    else:
        conv = nn.Conv2d(inputs, outputs, kernel_size, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2018, section 3.2) with rates 6, 12, 18 at output stride 16."""

    def __init__(self, inputs: int, output_stride: int, dropout: float) -> None:
        super().__init__()
        rate = 96 // output_stride
        self.branches = nn.ModuleList(
            [conv_norm_act(inputs, 256, 1)] + [conv_norm_act(inputs, 256, 3, rate * step) for step in (1, 2, 3)]
        )
        self.pooled = conv_norm_act(inputs, 256, 1)
        self.project = conv_norm_act(5 * 256, 256, 1)
        self.dropout = Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, inputs, h, w) to (N, 256, h, w)."""
        pooled = self.pooled(features.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *features.shape[2:])
        joined = torch.cat([branch(features) for branch in self.branches] + [pooled], dim=1)
        return cast(Tensor, self.dropout(self.project(joined)))


class DeepLabV3Plus(nn.Module):
    """DeepLabv3+ (Chen et al. 2018) as in PixelPick: 48 low-level channels at stride 4, decoder 304 -> 256 -> 256."""

    def __init__(self, pyramid: Pyramid, num_classes: int, spec: ModelSpec) -> None:
        super().__init__()
        self.backbone = pyramid.network
        self.low_level, self.high_level = pyramid.level_at(4), len(pyramid.strides) - 1
        self.drop_features = Dropout(spec.feature_dropout, of="channels")
        after_aspp, in_decoder, before_classifier = spec.dropout
        self.aspp = AtrousPyramid(pyramid.channels[self.high_level], spec.output_stride, after_aspp)
        self.low = conv_norm_act(pyramid.channels[self.low_level], 48, 1)
        self.decoder = nn.Sequential(
            conv_norm_act(48 + 256, 256, 3),
            Dropout(in_decoder),
            conv_norm_act(256, 256, 3),
            Dropout(before_classifier),
        )
        self.classifier = nn.Conv2d(256, num_classes, 1)
        for part in (self.aspp, self.low, self.decoder, self.classifier):
            he_initialise(part)

    def forward(self, images: Tensor, points: Tensor | None = None) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, C, H/4, W/4), or (N, P, C) at points (N, P, 2)."""
        features = self.backbone(images)
        low = self.low(self.drop_features(features[self.low_level]))
        high = self.aspp(self.drop_features(features[self.high_level]))
        if points is not None:
            frame = images.shape[2], images.shape[3]
            return decode_at(points, frame, high=high, low=low, decoder=self.decoder, classifier=self.classifier)
        (conv, norm, activation), drop, second, drop_last = cast(Any, self.decoder)
        decoded = drop(activation(norm(conv_of_upsampled(conv, high, low))))
        return cast(Tensor, self.classifier(drop_last(second(decoded))))


class FPN(nn.Module):
    """Semantic FPN (Kirillov et al. 2019, section 3) as in PixelPick: four levels, group norm, full-size logits.

    The original upsamples every level to full size, then sums and classifies. Here they are summed and classified
    before the last doubling, which is equivalent, as interpolation commutes with sums and 1x1 convolutions, and avoids
    4 x 128 channels at full size.
    """

    def __init__(self, pyramid: Pyramid, num_classes: int, spec: ModelSpec) -> None:
        super().__init__()
        self.backbone = pyramid.network
        self.drop_features = Dropout(spec.feature_dropout, of="channels")
        self.laterals = nn.ModuleList([nn.Conv2d(channels, 256, 1) for channels in pyramid.channels[-4:]])
        self.branches = nn.ModuleList([doubling_blocks(steps) for steps in (2, 3, 3, 3)])
        self.classifier = nn.Conv2d(128, num_classes, 1)
        for part in (self.laterals, self.branches, self.classifier):
            he_initialise(part)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, C, H, W)."""
        features = self.backbone(images)[-4:]
        levels = [lateral(self.drop_features(level)) for lateral, level in zip(self.laterals, features, strict=True)]
        for upper in (2, 1, 0):  # top-down
            size = levels[upper].shape[2:]
            levels[upper] = levels[upper] + F.interpolate(levels[upper + 1], size, mode="bilinear", align_corners=False)
        halves = [branch(level) for branch, level in zip(self.branches, levels, strict=True)]
        logits = self.classifier(halves[3] + halves[2] + halves[1] + halves[0])
        return F.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)


def doubling_blocks(steps: int) -> nn.Sequential:
    """Blocks of 3x3 convolution, group norm and ReLU, from 256 to 128 channels, with 2x upsampling in between."""
    blocks: list[nn.Module] = []
    for step in range(steps):
        if step:
            blocks.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        conv = nn.Conv2d(128 if step else 256, 128, 3, padding=1)
        blocks.append(nn.Sequential(conv, nn.GroupNorm(32, 128), nn.ReLU()))
    return nn.Sequential(*blocks)


def conv_of_upsampled(conv: nn.Conv2d, high: Tensor, low: Tensor) -> Tensor:
    """Apply a 3x3 convolution without bias to `high` (N, C, h, w), interpolated to the size of `low`, and `low`.

    Interpolation with aligned corners is linear and the same for all channels, so each tap of the kernel is applied at
    the size of `high`, and its result is interpolated: the same values at an eighth of the cost for the pyramid's 256
    channels. `high` itself is never interpolated.
    """
    channels, (height, width) = high.shape[1], low.shape[2:]
    outputs = conv.out_channels
    over_high, over_low = conv.weight[:, :channels], conv.weight[:, channels:]
    taps = F.conv2d(high, over_high.permute(2, 3, 0, 1).reshape(9 * outputs, channels, 1, 1))
    number, _, coarse_height, coarse_width = taps.shape
    with without_autocast(taps.device):
        parts = taps.to(torch.promote_types(taps.dtype, torch.float32)).permute(0, 2, 3, 1)
        rows, columns = _tap_weights(height, coarse_height, parts), _tap_weights(width, coarse_width, parts)
        parts = parts.reshape(number, coarse_height, coarse_width, 3, 3 * outputs).transpose(2, 3).transpose(1, 2)
        parts = rows @ parts.reshape(number, 3 * coarse_height, coarse_width * 3 * outputs)
        parts = parts.view(number, height, coarse_width, 3, outputs).transpose(2, 3)
        parts = columns @ parts.reshape(number * height, 3 * coarse_width, outputs)
    upsampled = parts.view(number, height, width, outputs).permute(0, 3, 1, 2)
    return conv3x3(low, over_low) + upsampled.to(taps.dtype)


def _tap_weights(length: int, coarse: int, like: Tensor) -> Tensor:
    """Weights (length, 3 * coarse) of coarse positions at the positions that each of three taps reads; 0 outside."""
    tap, position, known = (torch.arange(n, device=like.device, dtype=torch.float64) for n in (3, length, coarse))
    read = position[:, None] + tap - 1
    step = (coarse - 1) / max(1, length - 1)
    weights = (1 - (read[:, :, None] * step - known).abs()).clamp_(min=0)
    return weights.mul_(((read >= 0) & (read < length))[:, :, None]).flatten(1).to(like.dtype)


class FeatureHead(nn.Module):
    """A backbone with an external head, built by ``head(channels, strides, num_classes, spec)``.

    The head is a module that maps a list of levels (N, channels[i], H/strides[i], W/strides[i]) to logits (N, C, h, w)
    at any stride. Raises SpecError if it is no module.
    """

    def __init__(self, pyramid: Pyramid, num_classes: int, spec: ModelSpec) -> None:
        super().__init__()
        self.backbone = pyramid.network
        self.drop_features = Dropout(spec.feature_dropout, of="channels")
        self.head = parts.load("head", spec.architecture)(pyramid.channels, pyramid.strides, num_classes, spec)
        if not isinstance(self.head, nn.Module):
            raise SpecError(
                f"model.architecture: {spec.architecture} returned {self.head!r}; expected a torch.nn.Module"
            )
        self._num_classes, self._name = num_classes, spec.architecture

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, C, h, w). Raises SpecError if the head returns another shape."""
        logits = self.head([self.drop_features(level) for level in self.backbone(images)])
        shape = tuple(getattr(logits, "shape", ()))
        if len(shape) != 4 or shape[:2] != (len(images), self._num_classes):
            wanted = [len(images), self._num_classes, "h", "w"]
            raise SpecError(f"{self._name}: returned logits of shape {list(shape)}; expected {wanted}")
        return cast(Tensor, logits)


class PixelNetwork(nn.Module):
    """A trainable backbone with a pixel head: batch norm of its features, then a linear layer or a perceptron."""

    def __init__(self, pyramid: Pyramid, num_classes: int, spec: ModelSpec) -> None:
        super().__init__()
        self.backbone = FeatureExtractor(spec, pyramid)
        hidden, dropout = (spec.head.hidden, spec.head.dropout) if isinstance(spec.head, MlpSpec) else ((), 0.0)
        channels = self.backbone.channels
        self.norm, self.drop_features = nn.BatchNorm2d(channels), Dropout(spec.feature_dropout, of="channels")
        self.layers = perceptron(channels, hidden, num_classes, dropout)
        he_initialise(self.layers)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, C, h, w) at the stride of the features."""
        return cast(Tensor, self.layers(self.drop_features(self.norm(self.backbone(images)))))


MODELS: dict[str, Callable[[Pyramid, int, ModelSpec], nn.Module]] = {
    "deeplabv3plus": DeepLabV3Plus,
    "fpn": FPN,
    "linear": PixelNetwork,
    "mlp": PixelNetwork,
}


def build_model(spec: ModelSpec, *, num_classes: int, data_path: Path, seed: int, stage: int) -> nn.Module:
    """Build a new network with a pretrained backbone, if specified, and other weights initialised by seed and stage."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, "initialise", stage))
        pyramid = build_pyramid(spec)
        load_pretrained(pyramid.network, spec, data_path)
        return MODELS.get(spec.architecture, FeatureHead)(pyramid, num_classes, spec)


def check_model(spec: ModelSpec, *, num_classes: int, data_path: Path, seed: int) -> None:
    """Try to build the network or extractor of a spec. Raises SpecError or DataError if that fails."""
    if spec.fitted_head is None:
        build_model(spec, num_classes=num_classes, data_path=data_path, seed=seed, stage=0)
    else:
        build_extractor(spec, data_path=data_path, seed=seed)


def parameter_groups(
    model: nn.Module, *, lr: float, backbone_lr_factor: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Optimiser parameter groups: the backbone, or with `layer_decay` each of its layers from the first, then the rest.

    Schedules multiply ``base_lr``.
    """
    backbone = [(name, value) for name, value in model.named_parameters() if name.startswith("backbone.")]
    rest = [value for name, value in model.named_parameters() if not name.startswith("backbone.")]
    by_layer = groupby(backbone, lambda named: "" if layer_decay is None else _layer_of(named[0]))
    layers = [[value for _, value in layer] for _, layer in by_layer]
    rates = [lr * backbone_lr_factor * (layer_decay or 1.0) ** above for above in reversed(range(len(layers)))]
    pairs = zip((*layers, rest), (*rates, lr), strict=True)
    return [{"params": group, "lr": rate, "base_lr": rate} for group, rate in pairs]


def _layer_of(name: str) -> str:
    """The layer of a backbone parameter: its name up to the first numeric part (a block), else ""."""
    found = re.match(r"(.*?\.\d+)\.", name)
    return found[1] if found else ""


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate logits bilinearly with aligned corners to `size` (height, width), as in the published decoder."""
    if logits.shape[2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)


def logits_at(logits: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Full-size logits (N, P, C) at points (N, P, 2), (y, x) in a frame of `size`, from coarse logits (N, C, h, w).

    Equal to ``upsample(logits, size)`` at integer points; points between pixels are interpolated.
    """
    x, y = (points[..., axis] * (2.0 / max(1, size[axis] - 1)) - 1.0 for axis in (1, 0))
    grid = torch.stack([x, y], dim=-1)  # grid_sample expects (x, y) in -1..1
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    grid = grid.unsqueeze(2).to(logits.dtype)
    sampled = F.grid_sample(logits, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return sampled.squeeze(3).transpose(1, 2)
