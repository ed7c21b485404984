"""Small networks for the tests of models."""

from pathlib import Path

import torch
from torch import nn

from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.models.segmentation import build_model

NOWHERE = Path("no-data")


def spec(backbone: str = "mobilenetv2_035", **fields: object) -> ModelSpec:
    """A network without pretrained weights unless they are given."""
    return ModelSpec(**({"backbone": backbone, "pretrained": "none"} | fields))


def model_of(
    model: ModelSpec, num_classes: int = 11, seed: int = 0, stage: int = 0, data_path: Path = NOWHERE
) -> nn.Module:
    return build_model(model, num_classes=num_classes, data_path=data_path, seed=seed, stage=stage)


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def same_state(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def randomise_norms(module: nn.Module, seed: int = 0) -> nn.Module:
    """Norms as after a training: a scale, a shift and statistics of their own in every channel."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith(("running_var", "running_mean")) or (value.ndim == 1 and value.is_floating_point()):
            draw = torch.rand(value.shape, generator=generator, dtype=value.dtype)
            value.copy_(0.75 + 0.5 * draw if name.endswith(("weight", "running_var")) else 0.4 * draw - 0.2)
    return module
