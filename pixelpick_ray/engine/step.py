"""A training step: forward, loss, backward, optimiser. On one GPU it is captured as a CUDA graph and replayed."""

import contextlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelpick_ray.config.trial import AdamSpec, SgdSpec, TrainSpec
from pixelpick_ray.engine.batches import IGNORED, Batch
from pixelpick_ray.engine.world import World
from pixelpick_ray.models.segmentation import logits_at, parameter_groups, upsample

EAGER_STEPS = 3  # of each shape before capture, in which libraries select their kernels
STEPS_AHEAD = 4  # limit on queued steps: their prepared batches occupy GPU memory


class TrainStep:
    """Training steps on this rank; `total` (2,) float64 on the device accumulates loss and labelled pixels.

    A single rank on a GPU captures the step for each batch shape as a CUDA graph, because launching its kernels one by
    one takes longer than running them; learning rates and batches are then read from fixed memory.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World, train: TrainSpec) -> None:
        self.total = total = torch.zeros(2, dtype=torch.float64, device=world.device)
        self._optimizer, self._lr_factor = optimizer, 1.0

        def launch(batch: Batch) -> None:
            total.add_(train_step(model, optimizer, batch, world, train))

        self._step = _Recorder(world.device, launch) if _is_recorded(world) else launch

    def __call__(self, batch: Batch) -> None:
        """Train on a rank's slice of one global batch."""
        self._step(batch)

    def set_lr(self, factor: float) -> None:
        """Set the learning rate of every group to its base times `factor`."""
        if factor != self._lr_factor:
            for group in self._optimizer.param_groups:
                group["lr"].fill_(group["base_lr"] * factor)
            self._lr_factor = factor


def _is_recorded(world: World) -> bool:
    return world.device.type == "cuda" and world.size == 1


@dataclass(frozen=True)
class _Recording:
    """A captured step and the batch in fixed memory that it reads."""

    graph: torch.cuda.CUDAGraph
    batch: Batch

    def __call__(self, batch: Batch) -> None:
        for fixed, new in zip(self.batch.tensors, batch.tensors, strict=True):
            fixed.copy_(new, non_blocking=True)
        self.graph.replay()


class _Recorder:
    """Calls a function of a batch on its own stream; after EAGER_STEPS calls with a shape, replays its capture."""

    def __init__(self, device: torch.device, function: Callable[[Batch], None]) -> None:
        self._function = function
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._eager_calls: Counter[Any] = Counter()
        self._recordings: dict[Any, _Recording] = {}
        self._issued: deque[torch.cuda.Event] = deque()

    def __call__(self, batch: Batch) -> None:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._call(batch)
        current.wait_stream(self._stream)
        self._stay_near(current)

    def _call(self, batch: Batch) -> None:
        shape = tuple(tensor.shape for tensor in batch.tensors)
        if shape not in self._recordings and self._eager_calls[shape] < EAGER_STEPS:
            self._eager_calls[shape] += 1
            self._function(batch)
            return
        if shape not in self._recordings:
            self._recordings[shape] = self._record(batch)
        self._recordings[shape](batch)

    def _record(self, batch: Batch) -> _Recording:
        images, labels, *points = (tensor.clone() for tensor in batch.tensors)
        fixed = Batch(images, points[0] if points else None, labels)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._recordings.values())).graph.pool() if self._recordings else None
        with torch.cuda.graph(graph, pool=pool, stream=self._stream):
            self._function(fixed)
        return _Recording(graph, fixed)

    def _stay_near(self, current: torch.cuda.Stream) -> None:
        self._issued.append(current.record_event())
        if len(self._issued) > STEPS_AHEAD:
            self._issued.popleft().synchronize()


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, world: World, train: TrainSpec
) -> Tensor:
    """Train on this rank's slice of a batch; return its (loss sum, labelled pixels) (2,), float64 on the device."""
    count = (batch.labels != IGNORED).sum().to(torch.float64)
    everywhere = world.sum_(count.clone()).clamp(min=1.0)
    optimizer.zero_grad(set_to_none=True)
    inputs = (batch.images, batch.points) if train.decoder == "sparse" else (batch.images,)
    with autocast(train.precision, world.device):
        logits = model(*inputs)
    loss = loss_sum(logits, batch)
    share = (loss * (world.size / everywhere)).to(loss.dtype)  # DDP averages gradients over ranks
    share.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return torch.stack([loss.detach().to(torch.float64), count])


def loss_sum(logits: Tensor, batch: Batch) -> Tensor:
    """Cross entropy summed over the labelled pixels, or all pixels in full supervision.

    `logits` are coarse (n, C, h, w), or at the batch's points (n, P, C).
    """
    if batch.labels.numel() == 0:
        return logits.sum() * 0.0
    frame = batch.images.shape[2], batch.images.shape[3]
    if batch.points is None:
        height, width = batch.labels.shape[1:]
        full = upsample(logits.float(), frame)[:, :, :height, :width]
        return F.cross_entropy(full, batch.labels, ignore_index=IGNORED, reduction="sum")
    sampled = logits if logits.dim() == 3 else logits_at(logits, batch.points, frame)
    return F.cross_entropy(sampled.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")


def build_optimizer(spec: AdamSpec | SgdSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser, with separate parameter groups for the backbone and L2 weight decay on all parameters.

    Learning rates are tensors on the parameters' device, so that a captured step sees changes.
    """
    groups = parameter_groups(
        model, lr=spec.lr, backbone_lr_factor=spec.backbone_lr_factor, layer_decay=spec.layer_decay
    )
    device = groups[-1]["params"][0].device
    for group in groups:
        group["lr"] = torch.tensor(group["base_lr"], device=device)
    on_gpu = device.type == "cuda"
    if isinstance(spec, AdamSpec):
        return torch.optim.Adam(groups, weight_decay=spec.weight_decay, fused=on_gpu, capturable=on_gpu)
    return torch.optim.SGD(groups, weight_decay=spec.weight_decay, momentum=spec.momentum, fused=on_gpu)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The autocast context of the forward pass: bfloat16 for ``bf16``."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def set_precision(precision: str) -> None:
    """Allow TensorFloat-32 only for ``tf32``; by default torch allows it in convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
