"""Checkpoints of unfinished fits, as bytes, from which another process can resume after an epoch.

They contain no random generator state, since every epoch draws from its own streams.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from pixelpick_ray.active.metrics import Counts

PROGRESS = "progress"


@dataclass
class FitProgress:
    """Measurements of a fit so far: losses by epoch, confusion matrices by evaluation key and epoch, and its cost.

    ``made_by`` records versions, ranks and device; only identical ones may resume, so that results do not mix them.
    """

    made_by: dict[str, Any]
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    processes: int = 1
    confusions: dict[str, dict[int, Counts]] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.losses)


@dataclass(frozen=True)
class Unfinished:
    """A fit after one of its epochs: its measurements, and the tensors of its model and optimiser."""

    progress: FitProgress
    tensors: Mapping[str, Tensor]

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Restore model and optimiser, including memory formats, which could change rounding."""
        model.load_state_dict(_named(self.tensors, "model"))
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _named(self.tensors, "optimizer").items():
            index, _, key = name.partition(".")
            like = parameters[int(index)]
            state.setdefault(int(index), {})[key] = (
                torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value
            )
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def pack(progress: FitProgress, model: nn.Module, optimizer: torch.optim.Optimizer) -> bytes:
    """Serialise a fit after an epoch as safetensors, which can be read without running code."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items() if value is not None}
    tensors |= {
        f"confusion.{key}.{epoch}": torch.from_numpy(matrix)
        for key, by_epoch in progress.confusions.items()
        for epoch, matrix in by_epoch.items()
    }
    numbers = asdict(progress) | {"confusions": None}
    tensors[PROGRESS] = torch.frombuffer(bytearray(json.dumps(numbers).encode()), dtype=torch.uint8)
    return bytes(save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}))


def unpack(content: bytes) -> Unfinished:
    """Deserialise the result of `pack`."""
    tensors = load(content)
    numbers = json.loads(tensors.pop(PROGRESS).numpy().tobytes())
    confusions: dict[str, dict[int, Counts]] = {}
    for name, value in _named(tensors, "confusion").items():
        key, _, epoch = name.partition(".")
        confusions.setdefault(key, {})[int(epoch)] = value.numpy().astype(np.int64)
    confusions = {key: dict(sorted(by_epoch.items())) for key, by_epoch in confusions.items()}
    return Unfinished(FitProgress(**numbers | {"confusions": confusions}), tensors)


def _named(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors of one kind, by name without its prefix."""
    prefix = f"{kind}."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
