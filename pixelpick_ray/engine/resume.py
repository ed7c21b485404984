"""A fit in training, as bytes: what another process needs to go on after an epoch as if nothing had happened.

No state of a random generator is among it: every epoch draws from streams of its own.
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
    """What a fit has measured so far: loss by epoch, confusion matrices by evaluation key and epoch, and its cost.

    ``made_by`` names the versions, ranks and device; only the same ones may go on, else a result would mix them.
    """

    made_by: dict[str, Any]
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    processes: int = 1
    confusions: dict[str, dict[int, Counts]] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return len(self.losses)


@dataclass(frozen=True)
class Unfinished:
    """A fit after one of its epochs: its measurements, and the tensors of its model and optimiser."""

    progress: FitProgress
    tensors: Mapping[str, Tensor]

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put model and optimiser into this state, memory formats included: another order could round differently."""
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
    """The bytes of a fit after an epoch: safetensors, so that reading them runs no code."""
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
    """What `pack` was given."""
    tensors = load(content)
    numbers = json.loads(tensors.pop(PROGRESS).numpy().tobytes())
    confusions: dict[str, dict[int, Counts]] = {}
    for name, value in _named(tensors, "confusion").items():
        key, _, epoch = name.partition(".")
        confusions.setdefault(key, {})[int(epoch)] = value.numpy().astype(np.int64)
    confusions = {key: dict(sorted(by_epoch.items())) for key, by_epoch in confusions.items()}
    return Unfinished(FitProgress(**numbers | {"confusions": confusions}), tensors)


def _named(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors of one kind, by the rest of their names."""
    prefix = f"{kind}."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
