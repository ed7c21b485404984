"""Running a chain on its ranks: in this process, or as one actor per rank in the trial's placement group.

The actors form a torch.distributed group; the trial's process only watches them, so a rank that fails, dies or hangs
ends the group within a bounded time.
"""

import contextlib
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ray
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.context import Context
from pixelpick_ray.engine.host import prepare_process
from pixelpick_ray.engine.world import World, join
from pixelpick_ray.events import Event
from pixelpick_ray.runner.cluster import is_draining
from pixelpick_ray.runner.failures import explain, gives_up
from pixelpick_ray.runner.local import choose_device
from pixelpick_ray.running import run_chain
from pixelpick_ray.search.sample import RunTrial
from pixelpick_ray.store import Store

CAUSE_SECONDS = 2.0  # delay of ranks that lost their group, so that the cause is reported first
LAST_WORDS_SECONDS = 5.0  # how long a rank may take to report its stack


class RankLost(Exception):
    """A rank failed in a way worth a retry."""


@contextlib.contextmanager
def ranks_of(experiment: Experiment, execution: Execution) -> Iterator[RunTrial]:
    """Yield a function that runs trials, with all trials that are prefixes of them, on the ranks of a Tune trial.

    Its arguments are the trial, the stages that keep their weights, and the listener for events.
    """
    if execution.ranks == 1:
        yield partial(_run_rank, experiment, execution, World(0, 1, choose_device(execution.device)))
        return
    group = get_current_placement_group()
    actors = [
        _Rank.options(  # type: ignore[attr-defined]
            **_share(group.bundle_specs[1 + rank]),
            max_concurrency=3,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=1 + rank),
        ).remote(experiment, execution, rank)
        for rank in range(execution.ranks)
    ]
    try:
        yield partial(_run_ranks, actors, execution)
    finally:
        for actor in actors:
            ray.kill(actor)


def _run_rank(
    experiment: Experiment,
    execution: Execution,
    world: World,
    trial: Trial,
    keep_stages: frozenset[int],
    on_event: Callable[[Event], None],
) -> None:
    """Run a chain as one of its ranks."""
    prepare_process(execution.cpus_per_rank)
    run_chain(experiment, trial, execution, world, on_event, keep_stages=keep_stages, is_leaving=is_draining)


def _run_ranks(
    actors: list[Any],
    execution: Execution,
    trial: Trial,
    keep_stages: frozenset[int],
    on_event: Callable[[Event], None],
) -> None:
    """Run a chain on all ranks, watching them until all are done or one fails."""
    try:
        ray.get([actor.prepare.remote(trial) for actor in actors])
        address = ray.get(actors[0].meeting_point.remote())
        runs = [actor.run.remote(trial, keep_stages, address) for actor in actors]
        _watch(actors, runs, execution, trial.chain_id, on_event)
    except ray.exceptions.RayActorError as error:
        raise RankLost(f"a rank's process was lost: {error}") from error


def _watch(
    actors: list[Any], runs: list[Any], execution: Execution, chain: str, on_event: Callable[[Event], None]
) -> None:
    """Pass on the first rank's events until all ranks are done; raise the error of the first that fails."""
    asked, news = time.monotonic(), actors[0].events.remote()
    pending = list(runs)
    while pending:
        done, _ = ray.wait([*pending, news], timeout=1.0)
        for reference in done:
            value = ray.get(reference)
            if reference is news:
                for event in value:
                    on_event(event)
                asked, news = time.monotonic(), actors[0].events.remote()
                continue
            pending.remove(reference)
            if value is not None:
                _hear_others(actors, runs.index(reference), Store(execution.store), chain)
                raise value
        if time.monotonic() - asked > execution.rank_timeout_seconds:
            raise RankLost("rank 0 has not responded within --rank-timeout")
    for event in (*ray.get(news), *ray.get(actors[0].events.remote())):
        on_event(event)


def _hear_others(actors: list[Any], but: int, store: Store, chain: str) -> None:
    """Record the stacks of the other ranks when one has failed, because a rank that hangs leaves no traceback."""
    others = {rank: actor.where.remote() for rank, actor in enumerate(actors) if rank != but}
    heard, _ = ray.wait(list(others.values()), num_returns=len(others), timeout=LAST_WORDS_SECONDS)
    for rank, reference in others.items():
        try:
            text = (
                ray.get(reference)
                if reference in heard
                else "does not respond: its process is stopped, or its node was lost"
            )
        except ray.exceptions.RayActorError as error:
            text = f"its process was lost: {error}"
        if text:
            store.record_attempt(chain, f"rank {rank}, while rank {but} failed\n{text}")


def free_address() -> str:
    """Find a free port on this node, as host:port."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"


def _share(bundle: dict[str, float]) -> dict[str, float]:
    return {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0.0)}


@ray.remote
class _Rank:
    """One rank of a chain; `run`, `events` and `where` may be called concurrently."""

    def __init__(self, experiment: Experiment, execution: Execution, rank: int) -> None:
        self._experiment, self._execution, self._rank = experiment, execution, rank
        self._events: list[Event] = []
        self._thread: int | None = None
        self._has_ended = False

    def prepare(self, trial: Trial) -> None:
        """Decode and describe images and compute frozen features, which may exceed the ranks' timeout as a group."""
        self._has_ended = False
        alone = World(
            self._rank, 1, choose_device("cpu" if trial.model.fitted_head is None else self._execution.device)
        )
        context = Context(self._experiment, trial, self._execution, alone, self._events.append)
        context.describe_splits()
        _ = context.source
        context.prepare_features()

    def meeting_point(self) -> str:
        """Return the address for the rendezvous of the ranks."""
        return free_address()

    def run(self, trial: Trial, keep_stages: frozenset[int], address: str) -> Exception | None:
        """Run the chain; record the traceback of an error and return the error instead of raising it."""
        execution, self._thread = self._execution, threading.get_ident()
        group = {"rank": self._rank, "size": execution.ranks, "address": address}
        try:
            device = choose_device(execution.device)
            with join(**group, device=device, timeout_seconds=execution.rank_timeout_seconds) as world:  # type: ignore[arg-type]
                _run_rank(self._experiment, execution, world, trial, keep_stages, self._events.append)
        except Exception as error:
            time.sleep(CAUSE_SECONDS if _is_consequence(error) else 0.0)
            text = f"rank {self._rank}\n{traceback.format_exc()}"
            Store(execution.store).record_attempt(trial.chain_id, text)
            return error if gives_up(error) else RankLost(f"rank {self._rank}: {explain(error)}")
        finally:
            self._thread, self._has_ended = None, True
        return None

    def events(self) -> list[Event]:
        """Return the events since the last call, waiting up to a second for the first."""
        until = time.monotonic() + 1.0
        while not (self._events or self._has_ended) and time.monotonic() < until:
            time.sleep(0.02)
        taken, self._events[:] = list(self._events), []
        return taken

    def where(self) -> str:
        """Return the current stack of `run`; empty if it has ended."""
        frame = sys._current_frames().get(self._thread or 0)
        return "".join(traceback.format_stack(frame)) if frame else ""


def _is_consequence(error: Exception) -> bool:
    """Whether a rank failed because another left the group."""
    return type(error).__name__.startswith("Dist") or "Connection" in str(error)
