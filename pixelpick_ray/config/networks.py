"""Properties of timm's networks for planning without importing timm: a generated list, `networks.json`.

`python -m pixelpick_ray.models.network_list` regenerates it from the installed timm; a test compares the two.
"""

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from pixelpick_ray.config.model import PIXEL_HEADS, ModelSpec, NormaliseSpec
from pixelpick_ray.errors import SpecError

OUTPUT_STRIDES = (8, 16, 32)
PYRAMID_STRIDE = 8  # default feature_stride of pyramids
IMAGENET = NormaliseSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
Strides = tuple[int, ...]


@dataclass(frozen=True)
class Maps:
    """The feature maps of a network without an output stride, such as a ViT.

    `is_dynamic`: position embeddings adapt to the image size only with timm's ``dynamic_img_size``.
    """

    strides: Strides
    is_channels_last: bool
    is_dynamic: bool


@dataclass(frozen=True)
class Network:
    """A timm network: strides of its feature levels by supported output stride, and channels of its levels or maps.

    `maps` is set if it has no output stride and takes images of any size. Only ResNets support ``width``.
    """

    strides: Mapping[int, Strides]
    maps: Maps | None
    channels: tuple[int, ...]
    is_resnet: bool

    def strides_of(self, spec: ModelSpec) -> Strides:
        """The strides of the levels or maps that a model uses; it must have passed `check_network`."""
        return self.strides.get(spec.output_stride) or (self.maps.strides if self.maps else ())


@dataclass(frozen=True)
class Head:
    """A head's requirement on pyramid strides, its text in messages, and networks that meet it.

    Increment `version` when the head computes something else from the same weights: its fits are then recomputed.
    """

    has: Callable[[Strides], bool]
    text: str
    advice: str
    version: int = 1


HEADS = {
    "deeplabv3plus": Head(lambda strides: 4 in strides, "features at stride 4", "mobilenetv2_100 or resnet50"),
    "fpn": Head(
        lambda strides: strides[-4:] == (4, 8, 8, 8),
        "features at strides 4, 8, 8, 8",
        "resnet18, resnet34, resnet50 or resnet101",
    ),
}


_ANY = Head(bool, "features", "mobilenetv2_100 or resnet50")  # requirement of pixel heads and external heads
HEADS |= dict.fromkeys(PIXEL_HEADS, _ANY) | {"mlp": replace(_ANY, version=3)}


def head_version(name: str) -> int:
    """The version of a built-in head; 1 for an external one, whose resolved name identifies its code."""
    return HEADS[name].version if name in HEADS else 1


@cache
def _listed() -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((files("pixelpick_ray.config") / "networks.json").read_text(encoding="ascii"))
    return tree


@cache
def networks() -> dict[str, Network]:
    """Every network in the list, by timm name."""
    tree = _listed()
    resnets = set(tree["resnets"])
    maps = {name: _parsed_maps(text) for text, names in tree["maps"].items() for name in names}
    channels = {name: tuple(map(int, text.split())) for text, names in tree["channels"].items() for name in names}
    return {
        name: Network(_parsed(pyramids), maps.get(name), channels[name], name in resnets)
        for pyramids, names in tree["pyramids"].items()
        for name in names
    }


@cache
def _normalisations() -> dict[str, NormaliseSpec]:
    """Normalisation by network, or by network and tag, where it differs from ImageNet's."""
    return {name: _parsed_values(text) for text, names in _listed()["normalise"].items() for name in names}


def weights_normalisation(spec: ModelSpec) -> NormaliseSpec | None:
    """The mean and standard deviation that a model's pretrained weights were trained with; None without weights."""
    if spec.pretrained == "none":
        return None
    known = _normalisations()
    usual = known.get(spec.backbone, IMAGENET)
    return IMAGENET if spec.pretrained == "moco_v2" else known.get(f"{spec.backbone}.{spec.pretrained}", usual)


def _parsed_values(text: str) -> NormaliseSpec:
    """Parse mean and standard deviation: "0.5 0.5 0.5, 0.5 0.5 0.5"."""
    mean, std = ([float(value) for value in part.split()] for part in text.split(", "))
    return NormaliseSpec(mean=tuple(mean), std=tuple(std))  # type: ignore[arg-type]


def _parsed_maps(text: str) -> Maps:
    """Parse maps: "NHWC dynamic 4 8 16 32"."""
    order, *rest = text.split()
    strides = tuple(int(word) for word in rest if word != "dynamic")
    return Maps(strides, order == "NHWC", "dynamic" in rest)


def _parsed(pyramids: str) -> dict[int, Strides]:
    """Parse strides by output stride: "16: 2 4 8 16 16, 32: 2 4 8 16 32"."""
    pairs = (part.split(": ") for part in pyramids.split(", ") if part)
    return {int(output_stride): tuple(map(int, strides.split())) for output_stride, strides in pairs}


def check_network(spec: ModelSpec) -> None:
    """Raise SpecError for an unknown backbone, or one that does not meet the head's requirements."""
    network, name = networks().get(spec.backbone), spec.backbone
    if network is None:
        near = difflib.get_close_matches(name, networks(), n=5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists the known ones"
        raise SpecError(f"model.backbone: timm has no network {name!r}; {hint}")
    need, strides = HEADS.get(spec.architecture, _ANY), network.strides.get(spec.output_stride)
    if strides is None and network.maps is not None and spec.head is not None:
        _check_maps(spec, network.maps)
        return
    if strides is None and not network.strides and spec.head is not None:
        raise SpecError(
            f"model.backbone: {name} supports a single image size only; use another one, such as "
            "vit_small_patch14_dinov2 or mobilenetv2_100"
        )
    if strides is None:
        raise SpecError(
            f"model.backbone: {name} has no feature pyramid at output stride {spec.output_stride}; "
            f"{_ways_out(network, need)}"
        )
    if not need.has(strides):
        raise SpecError(
            f"model.backbone: {spec.architecture} needs {need.text}, but {name} has strides {list(strides)}; use "
            f"{need.advice}"
        )
    if spec.head is not None:
        chosen_layers(spec, strides)
    if spec.width is not None and int(64 * spec.width) < 2:
        raise SpecError(f"model.width: {spec.width} leaves some layers of {name} without channels; use a larger one")
    if spec.width is not None and not network.is_resnet:
        raise SpecError(
            f"model.width: only ResNets support it, not {name}; leave it out, and use a backbone of the desired "
            f"width, such as {', '.join(_of_other_widths(name))}"
        )


def _check_maps(spec: ModelSpec, maps: Maps) -> None:
    """Raise SpecError for options that a network without an output stride does not support."""
    chosen_layers(spec, maps.strides)
    for field, value in (("output_stride", spec.output_stride != 32), ("width", spec.width is not None)):
        if value:
            raise SpecError(f"model.{field}: {spec.backbone} does not support it; leave it out")


def chosen_layers(spec: ModelSpec, strides: Strides) -> tuple[int, ...]:
    """Ascending indices of the layers that a pixel head uses, of a network with these strides.

    The default is all of a pyramid, else the last map. Raises SpecError for missing or repeated layers.
    """
    is_pyramid = len(set(strides)) > 1
    if spec.layers is None:
        return tuple(range(len(strides))) if is_pyramid else (len(strides) - 1,)
    found = []
    for layer in spec.layers:
        matching = [index for index, stride in enumerate(strides) if is_pyramid and stride == layer]
        if -len(strides) <= layer < 0:
            matching = [len(strides) + layer]
        if not matching:
            known = f", or strides {', '.join(map(str, dict.fromkeys(strides)))}" if is_pyramid else ""
            raise SpecError(
                f"model.layers: {spec.backbone} has no layer {layer}; it has -1 to -{len(strides)}, counted from the "
                f"last{known}"
            )
        found += matching
    if len(set(found)) < len(found):
        raise SpecError(f"model.layers: {list(spec.layers)} names a layer of {spec.backbone} twice; name each once")
    return tuple(sorted(found))


def feature_stride(spec: ModelSpec, strides: Strides) -> int:
    """The stride of a pixel head's features, from a backbone with these strides."""
    return spec.feature_stride or (PYRAMID_STRIDE if len(set(strides)) > 1 else strides[0])


def feature_grid(spec: ModelSpec, stride: int, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the features of an image of (height, width): sides / stride, rounded, at least 2."""
    height, width = (max(2, round(side * (spec.input_scale or 1.0) / stride)) for side in size)
    return height, width


def features_bytes(spec: ModelSpec, sizes: Iterable[tuple[int, int]]) -> int:
    """Total bytes of the float16 features of images with these (height, width)."""
    network = networks()[spec.backbone]
    strides = network.strides_of(spec)
    channels = sum(network.channels[layer] for layer in chosen_layers(spec, strides))
    stride = feature_stride(spec, strides)
    return sum(2 * channels * math.prod(feature_grid(spec, stride, size)) for size in sizes)


def _ways_out(network: Network, need: Head) -> str:
    """Advice for a network without a pyramid at the output stride."""
    fine = [output_stride for output_stride, strides in network.strides.items() if need.has(strides)]
    if fine:
        return f"set model.output_stride to {' or '.join(map(str, fine))}"
    if network.maps is not None:
        return f"use a head on frozen features ({', '.join(PIXEL_HEADS)}), or a convolutional one such as {need.advice}"
    return f"use a convolutional one such as {need.advice}"


def _of_other_widths(name: str) -> list[str]:
    """Networks of the same family, else MobileNetV2s, whose names end in a width in percent."""

    def family(start: str) -> list[str]:
        return [one for one in networks() if one.startswith(f"{start}_") and one[len(start) + 1 :][:3].isdigit()]

    return family(name.rpartition("_")[0]) or family("mobilenetv2")
