"""Small networks for the tests of models, and what networks predict, by hand."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.data.dataset import DatasetFacts
from pixelpick_ray.models.segmentation import build_model

NOWHERE = Path("no-data")


def spec(backbone: str = "mobilenetv2_035", **fields: object) -> ModelSpec:
    """A network without pretrained weights unless they are given."""
    return ModelSpec(**({"backbone": backbone, "pretrained": "none"} | fields))


def model_of(
    model: ModelSpec, num_classes: int = 11, seed: int = 0, stage: int = 0, data_path: Path = NOWHERE
) -> nn.Module:
    return build_model(model, num_classes=num_classes, data_path=data_path, seed=seed, stage=stage)


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


def predicted_by_hand(model: nn.Module, image: npt.NDArray[np.uint8], facts: DatasetFacts) -> npt.NDArray[np.int64]:
    """The classes (H, W) of one image (H, W, 3), mirrored up to multiples of 8, from logits of full size."""
    height, width = image.shape[:2]
    values = (image / 255 - np.asarray(facts.mean)) / np.asarray(facts.std)
    padded = np.pad(values, [(0, -height % 8), (0, -width % 8), (0, 0)], mode="reflect")
    with torch.inference_mode():
        logits = model(torch.from_numpy(padded).float().permute(2, 0, 1)[None])
        full = F.interpolate(logits, size=padded.shape[:2], mode="bilinear", align_corners=True)
    return full[0].argmax(dim=0)[:height, :width].numpy()


def confusion_by_hand(pairs: Iterable[tuple[Any, Any]], facts: DatasetFacts) -> npt.NDArray[np.int64]:
    """The matrix of pairs of label maps and predictions."""
    confusion = np.zeros((facts.num_classes, facts.num_classes), dtype=np.int64)
    for truth, predicted in pairs:
        np.add.at(confusion, (truth[truth != facts.void_index], predicted[truth != facts.void_index]), 1)
    return confusion
