"""Dropout that can be enabled for a single pass, with a separate generator for each image."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Dropout of single values, or of whole channels (``of="channels"``), in training and inside `stochastic`."""

    def __init__(self, rate: float, *, of: str = "values") -> None:
        super().__init__()
        self.rate, self.of = rate, of
        self.generators: list[torch.Generator] | None = None

    def forward(self, features: Tensor) -> Tensor:
        if self.generators is not None and self.rate > 0:
            return features * torch.stack([self._mask(features[0], generator) for generator in self.generators])
        if self.of == "channels":
            return F.dropout2d(features, self.rate, self.training)
        if not self.training or self.rate == 0:
            return features
        return torch.native_dropout(features, self.rate, True)[0]  # on a CPU, F.dropout saves its mask as floats

    def _mask(self, features: Tensor, generator: torch.Generator) -> Tensor:
        shape = (len(features), 1, 1) if self.of == "channels" else features.shape
        kept = torch.rand(shape, generator=generator, device=features.device) >= self.rate
        return kept.to(features.dtype) / (1.0 - self.rate) if self.rate < 1 else kept.to(features.dtype)


@contextlib.contextmanager
def stochastic(model: nn.Module, generators: list[torch.Generator]) -> Iterator[None]:
    """Enable dropout, and nothing else, within the context; each image of a batch draws from its own generator."""
    layers = [layer for layer in model.modules() if isinstance(layer, Dropout)]
    for layer in layers:
        layer.generators = generators
    try:
        yield
    finally:
        for layer in layers:
            layer.generators = None
