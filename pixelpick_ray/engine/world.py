"""The ranks of a fit or a pick; the only module that imports torch.distributed.

A world of one rank needs no process group. With more, all ranks must call the same functions in the same order.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import psutil  # type: ignore[import-untyped]
import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """The ranks of one trial; this process is `rank` of `size` and computes on `device`."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank reads and writes the store."""
        return self.rank == 0

    def slice_of(self, count: int) -> slice:
        """This rank's contiguous share of `count` items; shares differ in size by at most one and may be empty."""
        share, extra = divmod(count, self.size)
        start = self.rank * share + min(self.rank, extra)
        return slice(start, start + share + (self.rank < extra))

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks in order, on the first rank; an empty list on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.gather_object(value, values if self.is_first else None)
        return values if self.is_first else []

    def broadcast(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def place(self, model: nn.Module) -> nn.Module:
        """Move the model to this rank's device, in channels-last memory format."""
        network: Any = model
        return cast(nn.Module, network.to(self.device, memory_format=torch.channels_last))

    def distribute(self, model: nn.Module, *, uses_all: bool = True) -> nn.Module:
        """Wrap the model so that gradients are averaged over ranks.

        A rank's loss must be its share of the global mean times the number of ranks. Pass `uses_all` false if some
        parameters may receive no gradient.
        """
        if self.size == 1:
            return model
        return DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=not uses_all)

    def share_batch_norm(self, model: nn.Module) -> nn.Module:
        """Replace batch norm by batch norm over the global batch, with the same parameters and names."""
        if self.size == 1:
            return model
        if self.device.type == "cuda":
            return cast(nn.Module, convert_sync_batchnorm(model))
        return _convert_batch_norm(model)


@contextlib.contextmanager
def join(
    *, rank: int, size: int, device: torch.device, address: str, timeout_seconds: float = 600.0
) -> Iterator[World]:
    """Join a world of `size` ranks that meet at `address` (host:port); leaving destroys the process group."""
    if size == 1:
        yield World(0, 1, device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    host, _, port = address.rpartition(":")
    with _on_interface(interface_to(host.strip("[]"))):
        if host == "127.0.0.1":
            group: dict[str, Any] = {"store": _store_on_loopback(int(port), rank, size, timeout)}
        else:
            group = {"init_method": f"tcp://{address}"}
        dist.init_process_group(backend, **group, rank=rank, world_size=size, timeout=timeout)
        try:
            yield World(rank, size, device)
        finally:
            dist.destroy_process_group()


def interface_to(host: str) -> str | None:
    """The network interface of this node that routes to a host; None if unknown.

    It follows from routes, not host names: ``/etc/hosts`` may map the node's own name to a loopback address, as written
    by Debian's installer.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    addresses = psutil.net_if_addrs().items()
    return next((name for name, of in addresses if any(one.address.partition("%")[0] == own for one in of)), None)


@contextlib.contextmanager
def _on_interface(name: str | None) -> Iterator[None]:
    """Make Gloo and NCCL use this interface unless the user chose one; Gloo would resolve the node's own name."""
    chosen = {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"} if name else {}
    added = {variable: value for variable, value in chosen.items() if value and variable not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for variable in added:
            del os.environ[variable]


def _store_on_loopback(port: int, rank: int, size: int, timeout: timedelta) -> Any:
    """The rendezvous store for ranks of one machine, listening on loopback only instead of all interfaces."""
    listening = socket.create_server(("127.0.0.1", port)).detach() if rank == 0 else None
    return dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", port, size, rank == 0, timeout, master_listen_fd=listening
    )


class _GlobalSum(torch.autograd.Function):
    """Differentiable sum over ranks: the gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _global_sum(tensor: Tensor) -> Tensor:
    return cast(Tensor, _GlobalSum.apply(tensor))  # type: ignore[no-untyped-call]


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the global batch for CPU tensors, which torch's SyncBatchNorm does not support.

    Computes the mean and then squared deviations, so it matches a single rank up to rounding. A rank's slice may be
    empty. The activation of timm's fused layers is kept.
    """

    def __init__(self, source: nn.BatchNorm2d) -> None:
        super().__init__(source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats)
        self.to(cast(Tensor, source.running_mean))
        self.load_state_dict(source.state_dict())
        self.drop = getattr(source, "drop", nn.Identity())
        self.act = getattr(source, "act", nn.Identity())

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return cast(Tensor, self.act(self.drop(super().forward(input))))
        local = torch.cat([input.sum(dim=(0, 2, 3)), input.new_tensor([input.numel() / input.shape[1]])])
        total = _global_sum(local)
        count = total[-1].detach()
        mean = total[:-1] / count
        deviation = input - mean[None, :, None, None]
        variance = _global_sum(deviation.square().sum(dim=(0, 2, 3))) / count
        self._update_running(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised = deviation * scale[None, :, None, None] + self.bias[None, :, None, None]
        return cast(Tensor, self.act(self.drop(normalised)))

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        running_mean, running_var = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        momentum = cast(float, self.momentum)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance, momentum)
        cast(Tensor, self.num_batches_tracked).add_(1)


def _convert_batch_norm(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.BatchNorm2d):
        return GlobalBatchNorm2d(module)
    for name, child in module.named_children():
        setattr(module, name, _convert_batch_norm(child))
    return module
