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


def list_networks(names: Iterable[str]) -> dict[str, Any]:
    """What planning knows of the networks of these names, networks that give the same features together."""
    pyramids: dict[str, list[str]] = {}
    for name in sorted(names):
        pyramids.setdefault(pyramids_of(name), []).append(name)
    resnets = timm.list_models(module="resnet")
    return {"timm": timm.__version__, "pyramids": dict(sorted(pyramids.items())), "resnets": sorted(resnets)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    PATH.write_text(json.dumps(list_networks(timm.list_models()), indent=1) + "\n", encoding="ascii")
