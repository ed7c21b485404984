"""Evaluating a checkpoint outside of an experiment: the weights of a stored fit, or a file of the paper's authors."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.config.trial import DatasetSpec
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.data.datasets import open_dataset
from pixelpick_ray.engine.score import evaluate
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.models.published import read_checkpoint
from pixelpick_ray.models.segmentation import MODELS, build_model
from pixelpick_ray.models.tensors import check_classes, check_tensors, read_tensors
from pixelpick_ray.store import Store
from pixelpick_ray.store.records import read_source

SUFFIX = ".safetensors"


def evaluate_checkpoint(
    path: Path, dataset: DatasetSpec, split: str, *, data_path: Path, cache_path: Path, device: torch.device
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Class names and confusion matrix (C, C), rows are the truth, of a split at the size of `dataset`.

    `path` is the weights.safetensors of a stored fit or an authors' checkpoint. SpecError for an unknown split,
    DataError for a file that is neither or has other classes than the data set.
    """
    opened = open_dataset(dataset, data_path)
    facts = opened.facts
    if split not in facts.splits:
        raise SpecError(f"split: {facts.name} has no {split!r}; it has {', '.join(facts.splits)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the weights.safetensors of a stored fit or a published .pt file")
    read = _read_fit if path.suffix == SUFFIX else read_checkpoint
    world = World(0, 1, device)
    model = world.place(read(path, facts.num_classes))
    confusion, _ = evaluate(model, prepare(opened, split, dataset, cache_path), facts, world)
    return facts.class_names, confusion


def _read_fit(path: Path, num_classes: int) -> nn.Module:
    """The network of a stored fit: ``input.json`` beside the weights says which it is."""
    spec = _stored_spec(path.with_name("input.json"))
    tensors = read_tensors(path)
    if spec.architecture in MODELS:
        check_classes(tensors, "classifier.weight", num_classes, path=path)
    else:
        read_source(Store(path.parents[2]), spec.architecture)
    model = build_model(spec, num_classes=num_classes, data_path=path.parent, seed=0, stage=0)
    check_tensors(tensors, model.state_dict(), path=path, of=f"{spec.architecture} {spec.backbone}")
    model.load_state_dict(tensors)
    return model


def _stored_spec(path: Path) -> ModelSpec:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))["model"]
        fields = {name: value for name, value in fields.items() if name not in ("weights_digest", "version")}
        return ModelSpec.model_validate_json(json.dumps(fields | {"pretrained": "none"}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: does not say which network the weights beside it are of ({error}); give weights that lie in "
            "their folder of a store, fit/<key>/weights.safetensors"
        ) from error
