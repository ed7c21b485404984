"""Reading and checking tensor files."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pixelpick_ray.errors import DataError

# Prefixes from training wrappers; the first that occurs is removed.
_PREFIXES = ("module.encoder_q.", "module.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a safetensors or torch file, or the only .pt or .pth in a .zip, without running code.

    A nested dictionary ``state_dict`` or ``model`` is unwrapped. A prefix ``module.encoder_q.`` (MoCo's query encoder)
    or ``module.`` is removed, and names without it are dropped. Raises DataError if the file is missing or unreadable.
    """
    try:
        content = _read(path)
    except DataError:
        raise
    except Exception as error:  # torch, zipfile, pickle and safetensors have their own errors
        raise DataError(
            f"{path}: cannot be read as a file of tensors ({_first_line(error)}); copy it again, or save its tensors "
            "alone as .safetensors or with torch.save(network.state_dict(), ...)"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = {str(name): value for name, value in _items(content) if isinstance(value, Tensor)}
    if not tensors:
        raise DataError(f"{path}: contains no named tensors; give a file of a network's state_dict")
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return tensors


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    file: Path | io.BytesIO = path
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if name.endswith((".pt", ".pth")) and "__MACOSX" not in name]
            if len(inside) > 1:
                raise DataError(
                    f"{path}: contains several checkpoints ({', '.join(inside)}); unpack it, and give one of them"
                )
            if inside:  # else it is a torch file, which is an archive too
                file = io.BytesIO(archive.read(inside[0]))
    return torch.load(file, map_location="cpu", weights_only=True)


def _items(content: Any) -> list[tuple[Any, Any]]:
    return list(content.items()) if isinstance(content, Mapping) else []


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def check_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, path: Path, of: str) -> None:
    """Raise DataError for missing or unexpected tensors, or wrong shapes; `of` names the network in messages."""
    for what, names in (("has no tensor", wanted.keys() - found), ("has an unexpected tensor", found.keys() - wanted)):
        if names:
            first = next(name for name in (*wanted, *found) if name in names)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise DataError(f"{path}: {what} {first!r}{more}; give weights of {of}")
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            raise DataError(
                f"{path}: {name} has shape {tuple(found[name].shape)}, but {of} needs {tuple(value.shape)}; give "
                "weights of this network"
            )


def check_classes(tensors: Mapping[str, Tensor], classifier: str, num_classes: int, *, path: Path) -> None:
    """Raise DataError if a tensor named `classifier` exists and has a different number of classes."""
    found = tensors[classifier].shape[0] if classifier in tensors and tensors[classifier].ndim else num_classes
    if found != num_classes:
        raise DataError(
            f"{path}: was trained with {found} classes, but the data set has {num_classes}; give the data set that "
            "it was trained on"
        )
