"""Where pretrained weights lie and which they are; reading them is the models' business."""

import hashlib
from pathlib import Path

from pixelpick_ray.config.trial import ModelSpec, escapes
from pixelpick_ray.data.dataset import check_inside
from pixelpick_ray.errors import DataError, SpecError


def weights_path(spec: ModelSpec, data_path: Path) -> Path | None:
    """Where the pretrained weights of a model lie or belong; None for ``pretrained: none``.

    SpecError as in `check_pretrained`; DataError for a link that leads out of the data folder.
    """
    if spec.pretrained == "none":
        return None
    check_pretrained(spec)
    if spec.pretrained.startswith("file:"):
        return check_inside(data_path / spec.pretrained.removeprefix("file:"), data_path)
    return check_inside(data_path / "weights" / f"{spec.backbone}.{spec.pretrained}.safetensors", data_path)


def check_pretrained(spec: ModelSpec) -> None:
    """SpecError for a file outside the data folder, and for weights that exist for another backbone only."""
    if spec.pretrained.startswith("file:") and escapes(spec.pretrained.removeprefix("file:")):
        raise SpecError(
            f"model.pretrained: {spec.pretrained!r} leaves the data folder; copy the file into it and give its path "
            "inside, e.g. file:weights/mine.safetensors"
        )
    if spec.pretrained == "moco_v2" and spec.backbone != "resnet50":
        raise SpecError(
            f"model.pretrained: moco_v2 weights exist for resnet50 only; {spec.backbone} needs others, or "
            "file:PATH for weights of your own"
        )


def weights_digest(spec: ModelSpec, data_path: Path) -> str | None:
    """SHA-256 of the pretrained weights file, part of the key of a fit; None for ``pretrained: none``."""
    path = weights_path(spec, data_path)
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"model.pretrained: no weights at {path} ({error.strerror}); put the file there, give the folder that "
            "holds weights/ with --data DIR, or set model.pretrained to none"
        ) from error
