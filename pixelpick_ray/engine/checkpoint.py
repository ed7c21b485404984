"""Evaluating a checkpoint outside of an experiment: the weights of a stored fit, or a file of the paper's authors."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.config.trial import DatasetSpec
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.data.datasets import DatasetFacts, open_dataset
from pixelpick_ray.data.weights import normalised_facts, weights_digest
from pixelpick_ray.engine.features import prepare_features
from pixelpick_ray.engine.frozen import FrozenModel
from pixelpick_ray.engine.score import evaluate
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.models.extractor import build_extractor
from pixelpick_ray.models.heads import head_of
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
    world = World(0, 1, device)
    if path.suffix == SUFFIX:
        spec, weights, seed = _stored_spec(path.with_name("input.json"))
        facts = normalised_facts(facts, spec)
        if spec.fitted_head is not None:
            model = _read_head(path, spec, weights, seed, facts, world, data_path, cache_path)
        else:
            model = _read_fit(path, spec, facts.num_classes)
    else:
        model = read_checkpoint(path, facts.num_classes)
    confusion, _ = evaluate(world.place(model), prepare(opened, split, dataset, cache_path), facts, world)
    return facts.class_names, confusion


def _read_head(
    path: Path,
    spec: ModelSpec,
    weights: str | None,
    seed: int,
    facts: DatasetFacts,
    world: World,
    data_path: Path,
    cache_path: Path,
) -> nn.Module:
    """The head of a stored fit, on features of the backbone that it was fitted to. DataError when that has other
    weights now.
    """
    if weights_digest(spec, data_path) != weights:
        raise DataError(
            f"{path}: was fitted to features of a {spec.backbone} with other weights than those of {data_path}; give "
            "the folder that has them with --data DIR"
        )
    tensors = {name.removeprefix("head."): tensor for name, tensor in read_tensors(path).items()}
    features = partial(
        prepare_features, spec=spec, facts=facts, world=world, data_path=data_path, cache_path=cache_path, seed=seed
    )
    head = head_of(spec.fitted_head, tensors)
    found = head(torch.zeros(1, build_extractor(spec, data_path=data_path, seed=seed).channels, 2, 2)).shape[1]
    if found != facts.num_classes:
        raise DataError(f"{path}: tells {found} classes apart, {facts.name} has {facts.num_classes}")
    return FrozenModel(head, features)


def _read_fit(path: Path, spec: ModelSpec, num_classes: int) -> nn.Module:
    """The network of a stored fit."""
    spec = spec.model_copy(update={"pretrained": "none"})
    tensors = read_tensors(path)
    if spec.architecture in MODELS:
        check_classes(tensors, "classifier.weight", num_classes, path=path)
    else:
        read_source(Store(path.parents[2]), spec.architecture)
    model = build_model(spec, num_classes=num_classes, data_path=path.parent, seed=0, stage=0)
    check_tensors(tensors, model.state_dict(), path=path, of=f"{spec.architecture} {spec.backbone}")
    model.load_state_dict(tensors)
    return model


def _stored_spec(path: Path) -> tuple[ModelSpec, str | None, int]:
    """Which network a fit is of, from ``input.json`` beside its weights; the digest of its pretrained weights; its
    seed, 0 where it does not matter.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        fields = {name: value for name, value in stored["model"].items() if name not in ("weights_digest", "version")}
        spec = ModelSpec.model_validate_json(json.dumps(fields))
        return spec, stored["model"]["weights_digest"], int(stored.get("seed", 0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: does not say which network the weights beside it are of ({error}); give weights that lie in "
            "their folder of a store, fit/<key>/weights.safetensors"
        ) from error
