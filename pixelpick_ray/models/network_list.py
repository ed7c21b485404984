"""Generate the list of timm's networks that planning uses: ``python -m pixelpick_ray.models.network_list``."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch

import pixelpick_ray.config.networks
from pixelpick_ray.config.networks import OUTPUT_STRIDES

PATH = Path(pixelpick_ray.config.networks.__file__).with_name("networks.json")
TRIED_SIZES = ((224, 448), (448, 672))  # multiples of all common patch and window sizes; no network's native size
# Options to try for maps; the first adapts position embeddings to the image size.
OPTIONS: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {})
IMAGENET = "0.485 0.456 0.406, 0.229 0.224 0.225"


def pyramids_of(name: str) -> str:
    """Strides of a network's features by output stride, in the list's format: "16: 2 4 8 16 16, 32: 2 4 8 16 32"."""
    found = []
    for output_stride in OUTPUT_STRIDES:
        try:
            with torch.device("meta"):
                network = timm.create_model(name, pretrained=False, features_only=True, output_stride=output_stride)
        except Exception:  # networks reject unsupported options with any kind of error
            continue
        found.append(f"{output_stride}: {' '.join(map(str, network.feature_info.reduction()))}")
    return ", ".join(found)


def maps_of(name: str) -> str:
    """Dimension order and strides of the maps of a network without output stride, e.g. "NHWC dynamic 4 8 16 32".

    "dynamic" means that it needs ``dynamic_img_size``. Empty if it supports a single image size only, or if its maps'
    sizes differ from its declared strides.
    """
    for options in OPTIONS:
        try:
            with torch.device("meta"), torch.no_grad():
                network = timm.create_model(name, pretrained=False, features_only=True, **options).eval()
                orders = {_order(network, size) for size in TRIED_SIZES}
        except Exception:  # as above
            continue
        if len(orders) == 1 and "" not in orders:
            strides = map(str, network.feature_info.reduction())
            return " ".join([*orders, *(["dynamic"] if options else []), *strides])
    return ""


def _order(network: Any, size: tuple[int, int]) -> str:
    """The dimension order shared by all maps of an image of `size` (height, width); empty if there is none."""
    info = network.feature_info
    orders = {"NCHW", "NHWC"}
    for found, channels, stride in zip(
        network(torch.empty(1, 3, *size)), info.channels(), info.reduction(), strict=True
    ):
        grid = size[0] // stride, size[1] // stride
        shape = tuple(found.shape[1:])
        orders &= {order for order, fits in (("NCHW", (channels, *grid)), ("NHWC", (*grid, channels))) if shape == fits}
    return min(orders, default="")


def channels_of(name: str) -> str:
    """Channels of a network's features, in the list's format: "16 24 40 112 320"; empty if it has none."""
    try:
        with torch.device("meta"):
            info = timm.create_model(name, pretrained=False, features_only=True).feature_info
    except Exception:  # as above
        return ""
    return " ".join(map(str, info.channels()))


def normalisation_of(name: str) -> str:
    """Mean and standard deviation that a network's weights were trained with: "0.5 0.5 0.5, 0.5 0.5 0.5"."""
    cfg = timm.get_pretrained_cfg(name)
    return IMAGENET if cfg is None else ", ".join(" ".join(map(str, values)) for values in (cfg.mean, cfg.std))


def list_networks(names: Iterable[str]) -> dict[str, Any]:
    """The content of the list for these networks, grouped by equal properties.

    Tagged weights are listed if their normalisation differs from that of the network's default weights.
    """
    pyramids: dict[str, list[str]] = {}
    maps: dict[str, list[str]] = {}
    channels: dict[str, list[str]] = {}
    normalise: dict[str, list[str]] = {}
    for name in sorted(names):
        found = pyramids_of(name)
        pyramids.setdefault(found, []).append(name)
        if not found and (own := maps_of(name)):
            maps.setdefault(own, []).append(name)
        channels.setdefault(channels_of(name), []).append(name)
        usual = normalisation_of(name)
        tagged = {tag: normalisation_of(tag) for tag in timm.list_pretrained(f"{name}.*")}
        for weights, values in {name: usual, **{tag: text for tag, text in tagged.items() if text != usual}}.items():
            if values != IMAGENET or weights != name:
                normalise.setdefault(values, []).append(weights)
    return {
        "timm": timm.__version__,
        "pyramids": dict(sorted(pyramids.items())),
        "maps": dict(sorted(maps.items())),
        "channels": dict(sorted(channels.items())),
        "normalise": dict(sorted(normalise.items())),
        "resnets": sorted(timm.list_models(module="resnet")),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    PATH.write_text(json.dumps(list_networks(timm.list_models()), indent=1) + "\n", encoding="ascii")
