"""What planning must know of timm's networks without importing it: a generated list, `networks.json`.

`python -m pixelpick_ray.models.network_list` writes the list anew from the installed timm; a test compares the two.
"""

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from pixelpick_ray.config.trial import ModelSpec
from pixelpick_ray.errors import SpecError

OUTPUT_STRIDES = (8, 16, 32)
Strides = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A network of timm: the strides of its feature levels by output stride (absent where it gives no such pyramid),
    and whether it is a ResNet, whose width may be changed.
    """

    strides: Mapping[int, Strides]
    is_resnet: bool


@dataclass(frozen=True)
class Head:
    """What a head needs of the strides of a pyramid, how that is said, and which networks have it. Raise `version` when
    the network that it makes of the same weights computes something else: its fits are then made again.
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


_ANY = Head(bool, "features", "mobilenetv2_100 or resnet50")  # what an external head needs


def head_version(name: str) -> int:
    """The version of a built-in head; of an external one its name says what code it is."""
    return HEADS[name].version if name in HEADS else 1


@cache
def networks() -> dict[str, Network]:
    """Every network of the timm that the list was made with, by name."""
    tree = json.loads((files("pixelpick_ray.config") / "networks.json").read_text(encoding="ascii"))
    resnets = set(tree["resnets"])
    return {
        name: Network(_parsed(pyramids), name in resnets)
        for pyramids, names in tree["pyramids"].items()
        for name in names
    }


def _parsed(pyramids: str) -> dict[int, Strides]:
    """Strides by output stride, of "16: 2 4 8 16 16, 32: 2 4 8 16 32"."""
    pairs = (part.split(": ") for part in pyramids.split(", ") if part)
    return {int(output_stride): tuple(map(int, strides.split())) for output_stride, strides in pairs}


def check_network(spec: ModelSpec) -> None:
    """SpecError for an unknown backbone, and for one that does not give what the head needs."""
    network, name = networks().get(spec.backbone), spec.backbone
    if network is None:
        near = difflib.get_close_matches(name, networks(), n=5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists the known ones"
        raise SpecError(f"model.backbone: timm has no network {name!r}; {hint}")
    need, strides = HEADS.get(spec.architecture, _ANY), network.strides.get(spec.output_stride)
    if strides is None:
        raise SpecError(
            f"model.backbone: {name} gives no feature pyramid at output stride {spec.output_stride}; "
            f"{_ways_out(network, need)}"
        )
    if not need.has(strides):
        raise SpecError(
            f"model.backbone: {spec.architecture} needs {need.text}; {name} has them at {list(strides)}; take "
            f"{need.advice}"
        )
    if spec.width is not None and int(64 * spec.width) < 2:
        raise SpecError(f"model.width: {spec.width} leaves {name} no channels; take a larger one")
    if spec.width is not None and not network.is_resnet:
        raise SpecError(
            f"model.width: only ResNets take a width, {name} does not; leave width out and take a backbone of the "
            f"width that you want, such as {', '.join(_of_other_widths(name))}"
        )


def _ways_out(network: Network, need: Head) -> str:
    """What to do where a network gives no pyramid at the output stride."""
    fine = [output_stride for output_stride, strides in network.strides.items() if need.has(strides)]
    if fine:
        return f"set model.output_stride to {' or '.join(map(str, fine))}"
    return f"take a convolutional one such as {need.advice}"


def _of_other_widths(name: str) -> list[str]:
    """The networks of a family whose names end with a width in percent."""

    def family(start: str) -> list[str]:
        return [one for one in networks() if one.startswith(f"{start}_") and one[len(start) + 1 :][:3].isdigit()]

    return family(name.rpartition("_")[0]) or family("mobilenetv2")
