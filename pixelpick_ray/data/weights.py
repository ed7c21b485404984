"""Location, identity and normalisation of pretrained weights; `models` reads them."""

import hashlib
from dataclasses import replace
from pathlib import Path

from pixelpick_ray.config.model import ModelSpec, NormaliseSpec
from pixelpick_ray.config.networks import weights_normalisation
from pixelpick_ray.config.trial import escapes
from pixelpick_ray.data.dataset import DatasetFacts, check_inside
from pixelpick_ray.errors import DataError, SpecError


def weights_path(spec: ModelSpec, data_path: Path) -> Path | None:
    """The path of a model's pretrained weights, present or not; None for ``pretrained: none``.

    Raises SpecError as `check_pretrained` does, and DataError for a link that leads out of the data folder.
    """
    if spec.pretrained == "none":
        return None
    check_pretrained(spec)
    if spec.pretrained.startswith("file:"):
        return check_inside(data_path / spec.pretrained.removeprefix("file:"), data_path)
    return check_inside(data_path / "weights" / f"{spec.backbone}.{spec.pretrained}.safetensors", data_path)


def check_pretrained(spec: ModelSpec) -> None:
    """Raise SpecError for a file outside the data folder, and for weights of a different backbone."""
    if spec.pretrained.startswith("file:") and escapes(spec.pretrained.removeprefix("file:")):
        raise SpecError(
            f"model.pretrained: {spec.pretrained!r} is outside the data folder; copy the file into it and give its "
            "relative path, e.g. file:weights/mine.safetensors"
        )
    if spec.pretrained == "moco_v2" and spec.backbone != "resnet50":
        raise SpecError(
            "model.pretrained: moco_v2 weights are available for resnet50 only; use other weights for "
            f"{spec.backbone}, or file:PATH for your own"
        )


def normalisation(spec: ModelSpec, facts: DatasetFacts | None) -> NormaliseSpec | None:
    """The mean and standard deviation that a model's images are normalised with; None if equal to the data set's.

    If `facts` are not known yet, only ``normalise: dataset`` counts as equal.
    """
    wanted = spec.normalised_by
    own = weights_normalisation(spec) if wanted == "weights" else None
    found = wanted if isinstance(wanted, NormaliseSpec) else own
    is_own = found is not None and facts is not None and (found.mean, found.std) == (facts.mean, facts.std)
    return None if is_own else found


def normalised_facts(facts: DatasetFacts, spec: ModelSpec) -> DatasetFacts:
    """The facts of a data set, with the mean and standard deviation that the model uses."""
    found = normalisation(spec, facts)
    return facts if found is None else replace(facts, mean=found.mean, std=found.std)


def weights_digest(spec: ModelSpec, data_path: Path) -> str | None:
    """SHA-256 of the pretrained weights file, for keys; None for ``pretrained: none``. DataError if unreadable."""
    path = weights_path(spec, data_path)
    if path is None:
        return None
    try:
        if path.exists() and not path.is_file():
            raise OSError(None, "it is a folder, a pipe or a device")
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"model.pretrained: no weights at {path} ({error.strerror}); put the file there, give the folder that "
            "holds weights/ with --data DIR, or set model.pretrained to none"
        ) from error
