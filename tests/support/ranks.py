"""Two processes that stay alive for all tests, and the functions that they run together over gloo."""

import contextlib
import multiprocessing
import socket
import traceback
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import AcquireSpec
from pixelpick_ray.data import datasets
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.engine.batches import FitJob, TrainingData, make_batch, network_input
from pixelpick_ray.engine.fit import fit
from pixelpick_ray.engine.score import evaluate, pick
from pixelpick_ray.engine.step import build_optimizer, train_step
from pixelpick_ray.engine.world import World, join
from pixelpick_ray.errors import DivergedError
from pixelpick_ray.events import Event
from pixelpick_ray.models.segmentation import build_model
from pixelpick_ray.running import run_chain
from tests.support.tiny_data import CLASSES, Place, TinyDataset, said

ALONE = World(0, 1, torch.device("cpu"))
ANSWER_SECONDS = 120


class Ranks:
    """Processes that run one function each call, as the ranks of a World."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.size = size
        pairs = [context.Pipe() for _ in range(size)]
        self.pipes = [mine for mine, _ in pairs]
        self.processes = [
            context.Process(target=_serve, args=(rank, size, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The result of ``function(world, *arguments)`` on every rank, in their order."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        for pipe in self.pipes:
            pipe.send((function, arguments, address))
        answers = []
        for rank, pipe in enumerate(self.pipes):
            assert pipe.poll(ANSWER_SECONDS), f"rank {rank} gave no answer"
            answers.append(pipe.recv())
        problems = [text for fine, text in answers if not fine]
        assert not problems, "\n".join(problems)
        return [value for _, value in answers]

    def stop(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(timeout=10)
            process.terminate()


def _serve(rank: int, size: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            function, arguments, address = pipe.recv()
        except EOFError:
            return
        try:
            device = torch.device("cpu")
            with join(rank=rank, size=size, device=device, address=address, timeout_seconds=60) as world:
                pipe.send((True, function(world, *arguments)))
        except Exception:
            pipe.send((False, f"rank {rank}:\n{traceback.format_exc()}"))


def collectives(world: World) -> dict[str, Any]:
    """What each rank sees of a sum, a gather and a broadcast."""
    mine = torch.tensor([world.rank + 1, 10 * (world.rank + 1)])
    returned = world.sum_(mine)
    return {
        "sum": mine.tolist(),
        "in_place": returned is mine,
        "gather": world.gather({"rank": world.rank}),
        "broadcast": world.broadcast(f"from {world.rank}" if world.is_first else None),
    }


def normalise_slice(world: World, layer: nn.Module, batch: Tensor, weight: Tensor, sizes: list[int]) -> SimpleNamespace:
    """What a batch norm does to a rank's slice of a batch: forward, backward of a weighted sum of squares, then forward
    in eval mode; `sizes` are the ranks' slices.
    """
    start = sum(sizes[: world.rank])
    mine = slice(start, start + sizes[world.rank])
    layer = world.share_batch_norm(layer)
    layer.train()
    inputs = batch[mine].clone().requires_grad_()
    output = layer(inputs)
    (output.square() * weight[mine]).sum().backward()
    layer.eval()
    with torch.no_grad():
        in_eval = layer(batch[mine])
    gradients = {"input": inputs.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}
    return SimpleNamespace(
        output=output.detach(),
        **{f"{name}_gradient": gradient for name, gradient in gradients.items()},
        **{name: getattr(layer, name) for name in ("running_mean", "running_var", "num_batches_tracked")},
        in_eval=in_eval,
    )


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Networks and images in float64: what differs then differs by more than rounding."""

    def build(*arguments: Any, **options: Any) -> nn.Module:
        return build_model(*arguments, **options).double()

    def images(*arguments: Any) -> Tensor:
        return network_input(*arguments).double()

    engine = "pixelpick_ray.engine"
    with patch(f"{engine}.fit.build_model", build), patch(f"{engine}.batches.network_input", images):
        with patch(f"{engine}.score.network_input", images):
            yield


def whole_stage_in_double(world: World, job: FitJob, labels: LabelledPixels, acquire: AcquireSpec) -> SimpleNamespace:
    """Training, evaluation and choice of pixels that have no label."""
    losses: list[float] = []
    with double_precision():
        model = fit(job, world, lambda epoch: losses.append(epoch.loss))
        confusion, _ = evaluate(model, job.data.prepared, job.data.facts, world)
        asked = pick(model, job.data, labels, acquire, world, seed=job.seed, stage=job.stage)
    chosen = said(job.data, asked).pixels
    picks = {"image": chosen.image, "y": chosen.y, "x": chosen.x, "label": chosen.label}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return SimpleNamespace(losses=losses, state=state, confusion=confusion, picks=picks, digest=chosen.digest())


def step_gradients(
    world: World, job: FitJob, positions: list[int], sizes: list[int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and count summed over ranks, and the gradients of one train step on slices of the given `sizes`."""
    model = build_model(job.model, num_classes=CLASSES, data_path=job.data_path, seed=job.seed, stage=job.stage)
    model = world.share_batch_norm(world.place(model))
    model.train()
    start = sum(sizes[: world.rank])
    mine = np.asarray(positions[start : start + sizes[world.rank]], dtype=np.int64)
    batch = make_batch(job, mine, 0, world.device)
    optimizer = build_optimizer(job.train.optimizer, model)
    total = world.sum_(train_step(world.distribute(model), optimizer, batch, world, job.train))
    return total, {name: value.grad.clone() for name, value in model.named_parameters()}


def pick_untrained(
    world: World, job: FitJob, data: TrainingData, acquire: AcquireSpec, is_broken: bool = False
) -> tuple[str, dict[str, Any]]:
    """Digest and statistics of the picks of an untrained network on the first rank, or what goes wrong when the last
    rank has no numbers.
    """
    model = build_model(job.model, num_classes=CLASSES, data_path=job.data_path, seed=job.seed, stage=job.stage)
    if is_broken and world.rank == world.size - 1:
        next(model.parameters()).data.fill_(torch.nan)
    try:
        query = said(data, pick(model, data, job.labels, acquire, world, seed=job.seed, stage=0))
    except DivergedError as error:
        return str(error), {}
    return query.pixels.digest(), query.statistics


def chain(world: World, experiment: Experiment, place: Place) -> list[Event]:
    """Run the experiment's last trial on the tiny data set, and its events on this rank."""
    events: list[Event] = []
    with patch.dict(datasets.DATASETS, {"tiny": TinyDataset}):
        run_chain(experiment, experiment.trials()[-1], place, world, events.append)
    return events


def chain_in_double(world: World, experiment: Experiment, place: Place) -> list[Event]:
    with double_precision():
        return chain(world, experiment, place)
