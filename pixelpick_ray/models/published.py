"""Reading the PixelPick authors' checkpoints (``best_miou_model.pt``), and their networks.

Their FPN equals ours under different names. Their DeepLabv3+ has its own MobileNetV2, which differs from timm's: blocks
pad their input instead of the depthwise convolution's, and at output stride 16 only the last block is dilated.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.errors import DataError
from pixelpick_ray.models.backbones import Pyramid, build_pyramid
from pixelpick_ray.models.segmentation import FPN, DeepLabV3Plus
from pixelpick_ray.models.tensors import check_classes, check_tensors, read_tensors

# Expansion, channels, blocks, stride of the first block, dilation (Sandler et al. 2018, table 2, at output stride 16).
STAGES = (
    (1, 16, 1, 1, 1),
    (6, 24, 2, 2, 1),
    (6, 32, 3, 2, 1),
    (6, 64, 4, 2, 1),
    (6, 96, 3, 1, 1),
    (6, 160, 3, 1, 1),
    (6, 320, 1, 1, 2),
)
LOW_LEVEL = 3  # the last module at stride 4

# ResNets by the number of blocks in their third stage and whether these are bottlenecks.
RESNETS = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101"}


def read_checkpoint(path: Path, num_classes: int) -> nn.Module:
    """Load the network of an authors' checkpoint; its logits are at stride 4 (DeepLabv3+) or full size (FPN).

    Raises DataError for any other file, a different number of classes, or inconsistent copies of tensors.
    """
    tensors = read_tensors(path)
    if "seg_head.classifier.weight" in tensors:
        check_classes(tensors, "seg_head.classifier.weight", num_classes, path=path)
        return _load(_deeplab(num_classes), _without_copies(tensors, path), _deeplab_names(), path)
    if "decoder.lat_layer_0.weight" in tensors:
        check_classes(tensors, "decoder.classifier.weight", num_classes, path=path)
        return _load(_fpn(tensors, num_classes, path), tensors, _fpn_names(), path)
    raise DataError(
        f"{path}: is not a PixelPick checkpoint (DeepLabv3+ MobileNetV2 or FPN ResNet): its first tensor is "
        f"{next(iter(tensors))!r}; give a best_miou_model.pt, or the weights.safetensors of a stored fit"
    )


def _load(model: nn.Module, tensors: dict[str, Tensor], names: list[tuple[str, str]], path: Path) -> nn.Module:
    """Load tensors by the authors' names; `names` are (our prefix, their prefix), of which the first match applies."""

    def theirs(name: str) -> str:
        return next((new + name.removeprefix(own) for own, new in names if name.startswith(own)), name)

    state = model.state_dict()
    check_tensors(tensors, {theirs(name): value for name, value in state.items()}, path=path, of="PixelPick's network")
    model.load_state_dict({name: tensors[theirs(name)] for name in state})
    return model


class PaddedBlock(nn.Module):
    """Inverted residual block whose input is zero-padded before the expansion instead of after it."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.padding, self.residual = dilation, stride == 1 and inputs == outputs
        hidden = inputs * expansion
        expand = [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()] if expansion > 1 else []
        depthwise = nn.Conv2d(hidden, hidden, 3, stride, dilation=dilation, groups=hidden, bias=False)
        project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.conv = nn.Sequential(
            *expand, depthwise, nn.BatchNorm2d(hidden), nn.ReLU6(), project, nn.BatchNorm2d(outputs)
        )

    def forward(self, features: Tensor) -> Tensor:
        changed: Tensor = self.conv(F.pad(features, (self.padding,) * 4))
        return features + changed if self.residual else changed


class PaddedMobileNetV2(nn.Module):
    """The authors' MobileNetV2 without its last convolution: features at strides 4 (24 channels) and 16 (320)."""

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        modules: list[nn.Module] = [stem]
        inputs = 32
        for expansion, channels, blocks, stride, dilation in STAGES:
            for block in range(blocks):
                modules.append(PaddedBlock(inputs, channels, expansion, 1 if block else stride, dilation))
                inputs = channels
        self.features = nn.Sequential(*modules)

    def forward(self, images: Tensor) -> list[Tensor]:
        low = self.features[: LOW_LEVEL + 1](images)
        return [low, self.features[LOW_LEVEL + 1 :](low)]


def _deeplab(num_classes: int) -> nn.Module:
    spec = ModelSpec(backbone="mobilenetv2_100", pretrained="none")
    return DeepLabV3Plus(Pyramid(PaddedMobileNetV2(), (24, 320), (4, 16)), num_classes, spec)


def _without_copies(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors without the duplicates of the backbone's; DataError if these differ."""
    unique = dict(tensors)
    for name, value in tensors.items():
        for copy in ("backbone.low_level_features.", "backbone.high_level_features."):
            original = name.replace(copy, "backbone.features.", 1)
            if name.startswith(copy) and original in tensors:
                if not torch.equal(tensors[original], value):
                    raise DataError(
                        f"{path}: {name} and {original} should be identical copies but differ; download or copy "
                        "the file again"
                    )
                del unique[name]
    return unique


def _deeplab_names() -> list[tuple[str, str]]:
    branches = [
        (f"aspp.branches.{index}.{own}.", f"aspp.aspp{index + 1}.{new}.")
        for index in range(4)
        for own, new in ((0, "atrous_conv"), (1, "bn"))
    ]
    return [
        *branches,
        ("aspp.pooled.0.", "aspp.global_avg_pool.1."),
        ("aspp.pooled.1.", "aspp.global_avg_pool.2."),
        ("aspp.project.0.", "aspp.conv1."),
        ("aspp.project.1.", "aspp.bn1."),
        ("low.", "low_level_conv."),
        ("decoder.0.", "seg_head.segment_head."),
        ("decoder.2.0.", "seg_head.segment_head.4."),
        ("decoder.2.1.", "seg_head.segment_head.5."),
        ("classifier.", "seg_head.classifier."),
    ]


def _fpn(tensors: dict[str, Tensor], num_classes: int, path: Path) -> nn.Module:
    blocks = {name.split(".")[3] for name in tensors if name.startswith("encoder.base.layer3.")}
    kind = len(blocks), "encoder.base.layer1.0.conv3.weight" in tensors
    if kind not in RESNETS:
        raise DataError(
            f"{path}: its encoder has {kind[0]} blocks in stage 3, unlike {', '.join(RESNETS.values())}; give a "
            "checkpoint of one of these"
        )
    spec = ModelSpec(architecture="fpn", backbone=RESNETS[kind], pretrained="none")
    return FPN(build_pyramid(spec), num_classes, spec)


def _fpn_names() -> list[tuple[str, str]]:
    """Pairs of prefixes; the authors count levels from the deepest."""
    laterals = [(f"laterals.{level}.", f"decoder.lat_layer_{3 - level}.") for level in range(4)]
    branches = [
        (f"branches.{level}.{2 * step}.", f"decoder.upsample_blocks_{3 - level}.{step}.block.")
        for level in range(4)
        for step in range(3)
    ]
    return [
        ("backbone.layer", "encoder.base.layer"),
        ("backbone.", "encoder.base.prefix."),
        *laterals,
        *branches,
        ("classifier.", "decoder.classifier."),
    ]
