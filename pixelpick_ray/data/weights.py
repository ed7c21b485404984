"""Where pretrained weights lie and which they are; reading them is the models' business."""

import hashlib
from pathlib import Path

from pixelpick_ray.errors import DataError
from pixelpick_ray.spec.experiment import ModelSpec


def weights_path(spec: ModelSpec, data_path: Path) -> Path | None:
    """Where the pretrained weights of a model lie or belong; None for ``pretrained: none``."""
    if spec.pretrained == "none":
        return None
    if spec.pretrained.startswith("file:"):
        return data_path / spec.pretrained.removeprefix("file:")
    return data_path / "weights" / f"{spec.backbone}.{spec.pretrained}.safetensors"


def weights_digest(spec: ModelSpec, data_path: Path) -> str | None:
    """SHA-256 of the pretrained weights file, part of the key of a fit; None for ``pretrained: none``."""
    path = weights_path(spec, data_path)
    if path is None:
        return None
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(
            f"model.pretrained: no weights at {path} ({error.strerror}); put the file there, give the folder that "
            "holds weights/ with --data DIR, or set model.pretrained to none"
        ) from error
