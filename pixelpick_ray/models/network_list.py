"""Write what planning knows of timm's networks: ``python -m pixelpick_ray.models.network_list``."""

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
TRIED_SIZES = ((224, 448), (448, 672))  # multiples of all usual patches and windows; no network's own size
# That maps are tried with: the first makes position embeddings follow the image.
OPTIONS: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {})
IMAGENET = "0.485 0.456 0.406, 0.229 0.224 0.225"


def pyramids_of(name: str) -> str:
    """The strides of a network's features by output stride, as in the list: "16: 2 4 8 16 16, 32: 2 4 8 16 32"."""
    found = []
    for output_stride in OUTPUT_STRIDES:
        try:
            with torch.device("meta"):
                network = timm.create_model(name, pretrained=False, features_only=True, output_stride=output_stride)
        except Exception:  # networks refuse what they cannot do with errors of any kind
            continue
        found.append(f"{output_stride}: {' '.join(map(str, network.feature_info.reduction()))}")
    return ", ".join(found)


def maps_of(name: str) -> str:
    """The strides of the maps of a network that has no output stride, and their order of dimensions: "NCHW 16 16 16";
    "NHWC dynamic 4 8 16 32" where position embeddings are told to follow the image. Empty where it takes images of one
    size only, or gives maps of other sizes than it says.
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
    """The order of dimensions that all maps of an image of a size have; empty where they have none in common."""
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
    """The channels of a network's features, as in the list: "16 24 40 112 320"; empty where it gives none."""
    try:
        with torch.device("meta"):
            info = timm.create_model(name, pretrained=False, features_only=True).feature_info
    except Exception:  # as above
        return ""
    return " ".join(map(str, info.channels()))


def normalisation_of(name: str) -> str:
    """The mean and deviation that a network's weights were made with: "0.5 0.5 0.5, 0.5 0.5 0.5"."""
    cfg = timm.get_pretrained_cfg(name)
    return IMAGENET if cfg is None else ", ".join(" ".join(map(str, values)) for values in (cfg.mean, cfg.std))


def list_networks(names: Iterable[str]) -> dict[str, Any]:
    """What planning knows of the networks of these names, networks that give the same features together; of weights
    with a tag, where they are normalised otherwise than the network's first ones.
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
