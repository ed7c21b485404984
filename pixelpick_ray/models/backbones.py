"""timm feature pyramids at a given output stride; pretrained weights and their identity."""

import difflib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pixelpick_ray.data.weights import weights_path
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.spec.experiment import ModelSpec


@dataclass(frozen=True)
class Pyramid:
    """A backbone; its forward gives one (N, channels[i], H/strides[i], W/strides[i]) tensor a level."""

    network: nn.Module
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def level_at(self, stride: int) -> int:
        """The deepest level of this stride. SpecError when there is none."""
        levels = [level for level, value in enumerate(self.strides) if value == stride]
        if not levels:
            raise SpecError(
                f"model.backbone: it has no features at stride {stride}, only at {sorted(set(self.strides))}"
            )
        return levels[-1]


def build_pyramid(spec: ModelSpec) -> Pyramid:
    """A randomly initialised feature pyramid. SpecError for an unknown backbone or an impossible output stride."""
    if spec.backbone not in timm.list_models():
        near = difflib.get_close_matches(spec.backbone, timm.list_models(), n=5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists the known ones"
        raise SpecError(f"model.backbone: timm has no network {spec.backbone!r}; {hint}")
    try:
        network: Any = timm.create_model(
            spec.backbone, pretrained=False, features_only=True, output_stride=spec.output_stride
        )
    except (TypeError, RuntimeError, NotImplementedError, AssertionError, ValueError) as error:
        raise SpecError(
            f"model.backbone: {spec.backbone} gives no feature pyramid at output stride {spec.output_stride} "
            f"({type(error).__name__}: {error}); take a convolutional one such as mobilenetv2_100 or resnet50"
        ) from error
    info = network.feature_info
    return Pyramid(cast(nn.Module, network), tuple(info.channels()), tuple(info.reduction()))


def fetch_weights(spec: ModelSpec, data_path: Path) -> None:
    """Download the weights from timm's source if they are absent. DataError says where to put them by hand."""
    path = weights_path(spec, data_path)
    if path is None or path.is_file():
        return
    remedy = f"put the file there, or set model.pretrained to none, imagenet, a timm tag or file:PATH (in {data_path})"
    if spec.pretrained.startswith("file:") or spec.pretrained == "moco_v2":
        raise DataError(f"model.pretrained: no weights at {path}; {remedy}")
    tag = "" if spec.pretrained == "imagenet" else f".{spec.pretrained}"
    try:
        network = timm.create_model(spec.backbone + tag, pretrained=True, num_classes=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    except Exception as error:  # the hub client raises many kinds; all mean that the weights cannot be had
        raise DataError(f"model.pretrained: no weights at {path} and none downloaded ({error}); {remedy}") from error


def load_pretrained(network: nn.Module, spec: ModelSpec, data_path: Path) -> None:
    """Load the pretrained weights into a pyramid; keys beyond it (classifier, last convolution) are left out.

    DataError when a tensor that the pyramid needs is missing or has another shape.
    """
    path = weights_path(spec, data_path)
    if path is None:
        return
    try:
        state = {_flat(key): value for key, value in load_file(path).items()}
    except Exception as error:  # safetensors raises its own error type and OSError
        raise DataError(f"{path}: is not a readable safetensors file ({error}); copy it again") from error
    wanted = network.state_dict()
    missing = [key for key in wanted if _flat(key) not in state and not key.endswith("num_batches_tracked")]
    if missing:
        raise DataError(
            f"{path}: has no tensor {missing[0]!r} ({len(missing)} missing); are these weights of {spec.backbone}?"
        )
    found = {key: state.get(_flat(key), value) for key, value in wanted.items()}
    for key, value in wanted.items():
        if found[key].shape != value.shape:
            raise DataError(f"{path}: {key} is {tuple(found[key].shape)}, {spec.backbone} needs {tuple(value.shape)}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.load_state_dict(found)


def _flat(key: str) -> str:
    """A tensor's name as timm's pyramids and whole networks share it: some pyramids join the first parts by "_"."""
    return key.replace(".", "_")


def he_initialise(module: nn.Module) -> None:
    """He normal (fan in) for convolutions, 1 and 0 for batch norm: the published initialisation of new layers."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(cast(torch.Tensor, layer.weight))
            nn.init.zeros_(cast(torch.Tensor, layer.bias))
