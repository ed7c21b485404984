"""Evaluation of a checkpoint outside an experiment: weights of a stored fit, or a file from the paper's authors."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pixelpick_ray.config.model import ModelSpec, NormaliseSpec
from pixelpick_ray.config.trial import DatasetSpec
from pixelpick_ray.config.yaml_text import file_bytes, read_json
from pixelpick_ray.data.cache import PreparedSplit, prepare
from pixelpick_ray.data.datasets import DatasetFacts, known_facts, open_dataset
from pixelpick_ray.data.weights import weights_digest
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
from pixelpick_ray.store.paths import INPUT, PROVENANCE
from pixelpick_ray.store.records import read_source

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class _Stored:
    """Metadata of a stored fit: network, digest of pretrained weights, seed (0 if irrelevant), classes, normalisation.

    The last two are None if unknown.
    """

    spec: ModelSpec
    weights: str | None
    seed: int
    classes: tuple[str, ...] | None
    normalise: NormaliseSpec | None


def evaluate_checkpoint(
    path: Path,
    dataset: DatasetSpec,
    split: str,
    *,
    data_path: Path,
    cache_path: Path,
    device: torch.device,
    renamed: Mapping[str, str] = MappingProxyType({}),
    note: Callable[[str], None] = lambda line: None,
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Evaluate a checkpoint on a split at the size of `dataset`; return class names and confusion matrix (C, C).

    `path` is the weights.safetensors of a stored fit or an authors' checkpoint. Images are normalised as in training.
    Classes are matched by name, after `renamed` is applied. `note` receives assumptions and evaluation conditions as
    text. Raises SpecError for an unknown split or class, DataError for an invalid file or classes that do not match.
    """
    opened = open_dataset(dataset, data_path)
    facts = opened.facts
    if split not in facts.splits:
        raise SpecError(f"split: {facts.name} has no {split!r}; it has {', '.join(facts.splits)}")
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; give the weights.safetensors of a stored fit or a published .pt or .zip file"
        )
    world = World(0, 1, device)
    stored = _stored(path) if path.suffix == SUFFIX else None
    if stored and stored.normalise:
        facts = replace(facts, mean=stored.normalise.mean, std=stored.normalise.std)
    elif stored:
        note(f"{path}: does not record its normalisation; assuming the mean and standard deviation of {facts.name}")
    numbers = _renumbered(path, stored.classes if stored else None, facts, renamed, note)
    if stored is None:
        model = read_checkpoint(path, len(numbers))
    elif stored.spec.fitted_head is not None:
        model = _read_head(path, stored, len(numbers), facts, world, data_path, cache_path)
    else:
        model = _read_fit(path, stored.spec, len(numbers))
    split_images = prepare(opened, split, dataset, cache_path)
    same = numbers == list(range(facts.num_classes))
    confusion, _ = evaluate(world.place(model), split_images, facts, world, None if same else numbers)
    note(_how(split_images, facts))
    return facts.class_names, confusion


def _how(images: PreparedSplit, facts: DatasetFacts) -> str:
    """Text on the evaluation: image sizes, normalisation and metric."""
    sizes = sorted({(height, width) for height, width in images.shapes.tolist()})
    ends = [f"{height} x {width}" for height, width in (sizes[0], sizes[-1])]
    size = ends[0] if len(sizes) == 1 else f"{len(sizes)} sizes from {ends[0]} to {ends[1]}"
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (facts.mean, facts.std))
    return (
        f"{len(images.names)} images of {facts.name} {images.split} at {size} pixels, normalised with mean {mean} "
        f"and standard deviation {std}. A single confusion matrix over all pixels that are not void; mIoU is over "
        "the classes that occur in labels or predictions."
    )


def _renumbered(
    path: Path,
    classes: Sequence[str] | None,
    facts: DatasetFacts,
    renamed: Mapping[str, str],
    note: Callable[[str], None],
) -> list[int]:
    """The data set's index of each class of the weights. Raises SpecError or DataError if they cannot be matched."""
    wanted = facts.class_names
    if classes is None:
        note(f"{path}: does not record class names; assuming those of {facts.name}, in order")
        classes = wanted
    for name, known in [(old, classes) for old in renamed] + [(new, wanted) for new in renamed.values()]:
        if name not in known:
            whose = "the weights" if known is classes else facts.name
            raise SpecError(f"--map: {whose} have no class {name!r}; choose one of {', '.join(known)}")
    found = [renamed.get(name, name) for name in classes]
    strange = [name for name in found if name not in wanted]
    unsaid = [name for name in wanted if name not in found]
    if strange or (unsaid and not renamed):
        raise DataError(
            f"{path}: has the classes {', '.join(classes)}, but {facts.name} has {', '.join(wanted)}; give the data "
            "set that it was trained on, or match classes with --map, e.g. --map "
            f"{(strange or list(classes))[0]}={(unsaid or list(wanted))[0]}"
        )
    if unsaid:
        note(f"{path}: has no class for {', '.join(unsaid)}, which are never predicted")
    if not renamed and list(classes) != list(wanted):
        note(f"{path}: has the classes of {facts.name} in a different order; they are matched by name")
    return [wanted.index(name) for name in found]


def _read_head(
    path: Path,
    stored: _Stored,
    num_classes: int,
    facts: DatasetFacts,
    world: World,
    data_path: Path,
    cache_path: Path,
) -> nn.Module:
    """The head of a stored fit, on features of its backbone. Raises DataError if the backbone's weights differ."""
    spec, seed = stored.spec, stored.seed
    if weights_digest(spec, data_path) != stored.weights:
        raise DataError(
            f"{path}: was fitted to features of a {spec.backbone} with different weights than those in {data_path}; "
            "give the folder that has the right ones with --data DIR"
        )
    tensors = {name.removeprefix("head."): tensor for name, tensor in read_tensors(path).items()}
    features = partial(
        prepare_features, spec=spec, facts=facts, world=world, data_path=data_path, cache_path=cache_path, seed=seed
    )
    head = head_of(spec.fitted_head, tensors)
    found = head(torch.zeros(1, build_extractor(spec, data_path=data_path, seed=seed).channels, 2, 2)).shape[1]
    if found != num_classes:
        raise DataError(
            f"{path}: has {found} classes, but {facts.name} has {num_classes}; give the data set that it was trained on"
        )
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


def _stored(path: Path) -> _Stored:
    """Read ``input.json`` and ``provenance.json`` next to a fit's weights; older fits fall back to known data sets."""
    try:
        stored = read_json(file_bytes(path.with_name(INPUT)))
        fields = {name: value for name, value in stored["model"].items() if name not in ("weights_digest", "version")}
        spec = ModelSpec.model_validate_json(json.dumps(fields))
        own = _own_facts(path, str(stored["data"]["name"]))
        classes, normalise = own if own else (None, None)
        if isinstance(spec.normalise, NormaliseSpec):
            normalise = spec.normalise
        return _Stored(spec, stored["model"]["weights_digest"], int(stored.get("seed", 0)), classes, normalise)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path.with_name(INPUT)}: does not describe the network of the weights next to it ({error}); give "
            "weights in their folder of a store, fit/<key>/weights.safetensors"
        ) from error


def _own_facts(path: Path, dataset: str) -> tuple[tuple[str, ...], NormaliseSpec] | None:
    """Class names and normalisation that a fit was trained with; None if unknown."""
    provenance = path.with_name(PROVENANCE)
    told = read_json(file_bytes(provenance)) if provenance.is_file() else {}
    if "classes" in told:
        return tuple(map(str, told["classes"])), NormaliseSpec.model_validate_json(json.dumps(told["normalise"]))
    with contextlib.suppress(SpecError):
        facts = known_facts(dataset)
        return None if facts is None else (facts.class_names, NormaliseSpec(mean=facts.mean, std=facts.std))
    return None
