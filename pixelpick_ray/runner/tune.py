"""Running chains on Ray Tune, one trial each: placement, retries and order.

A trial holds its resources in one placement group. A single rank runs in the trial's own process, several are actors
in the bundles of its group (`ranks.py`). A chain whose process or node is lost is retried from the store, as long as it
makes progress every few attempts.
"""

import contextlib
import re
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from pixelpick_ray.config.canonical import counted
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.errors import RunError, SpecError, StoreError
from pixelpick_ray.events import (
    AnswersAwaited,
    ChainFailed,
    Event,
    FitResumed,
    FitTrained,
    PixelsPicked,
    StageDone,
    decode,
    encode,
)
from pixelpick_ray.planning import Chain, Plan
from pixelpick_ray.runner.cluster import private_folder
from pixelpick_ray.runner.doctor import STORE_CURE
from pixelpick_ray.runner.failures import LOST, explain, explain_loss, gives_up
from pixelpick_ray.runner.inspection import VISIBLE_SECONDS
from pixelpick_ray.runner.people import People
from pixelpick_ray.runner.ranks import ranks_of
from pixelpick_ray.store import Store

COORDINATOR_CPUS = 0.01  # taken from the first rank's share, so that N ranks of one CPU fit on N CPUs


@dataclass(frozen=True)
class Job:
    """What every trial of a grid gets."""

    plan: Plan
    chains: list[Chain]
    execution: Execution


def run(
    plan: Plan,
    chains: list[Chain],
    execution: Execution,
    on_event: Callable[[Event], None],
    stop: Callable[[], bool],
    people: People,
) -> dict[str, str]:
    """Run chains as Tune trials on the joined cluster; return the error of each chain that failed.

    Ends early if `stop()`. A chain that waits for `people` has no trial meanwhile and holds no resources. Raises
    SpecError if the cluster can never hold one trial, RunError if the cluster is lost.
    """
    resources = placement_here(execution)
    relay, left = Relay(on_event, execution.max_failures, Store(execution.store)), chains
    asks = any(chain.trial.asks_people for chain in chains)
    while left and not stop():
        trainable = tune.with_parameters(_trial, job=Job(plan, chains, execution))
        relay.begin()
        order, most = ChainOrder(chains, left, relay, people), execution.max_concurrent
        run_trials(trainable, resources, order, sys.maxsize, relay, stop, max_concurrent=most, reuse_actors=not asks)
        lost = [chain for chain in chains if chain.id in relay.lost]
        left = lost or people.answered([chain for chain in chains if chain.id in relay.asking])
    return relay.errors


def run_trials(
    trainable: Any,
    resources: tune.PlacementGroupFactory,
    searcher: Searcher,
    num_samples: int,
    relay: "Relay",
    stop: Callable[[], bool],
    *,
    max_concurrent: int | None = None,
    scheduler: TrialScheduler | None = None,
    reuse_actors: bool = True,
) -> None:
    """Run one Tune experiment in a temporary folder, since the store is the only state.

    Actors that are reused for the next trial keep their placement group too. Raises RunError if the cluster is lost.
    """
    with private_folder() as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space={},
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=num_samples,
                max_concurrent_trials=max_concurrent,
                reuse_actors=reuse_actors,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=-1),  # the relay counts failures
                callbacks=[relay],
                stop=_StopWhen(stop, relay),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise RunError(
                f"the Ray cluster was lost ({explain(error)}); run the same command again to continue"
            ) from error


def places_here(execution: Execution) -> int:
    """Return how many trials the joined cluster can hold at the same time."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return _room(_share_of_rank(execution, nodes), nodes) // execution.ranks


def placement_here(execution: Execution) -> tune.PlacementGroupFactory:
    """Return the placement group of one trial on the joined cluster. Raises SpecError if it can never hold one."""
    return placement(execution, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def placement(execution: Execution, nodes: list[dict[str, float]]) -> tune.PlacementGroupFactory:
    """Return the placement group of one trial, given each node's resources.

    Raises SpecError, with all sizes, if these nodes can never hold it: every rank must fit on a single node.
    """
    rank = _share_of_rank(execution, nodes)
    if execution.device == "cuda" and "GPU" not in rank:
        raise SpecError("--device cuda: the cluster has no GPU; use --device cpu or auto, or join one with --address")
    room = _room(rank, nodes)
    if room < execution.ranks:
        raise SpecError(
            f"a trial of {counted(execution.ranks, 'rank')} needs {_amounts(rank)} per rank, each on a single node; "
            f"the cluster has room for {counted(room, 'rank')}: {'; '.join(_amounts(node) for node in nodes)}; lower "
            "--ranks, --cpus-per-rank or --gpus-per-rank"
        )
    if execution.ranks == 1:
        return tune.PlacementGroupFactory([rank])
    first = rank | {"CPU": rank["CPU"] - COORDINATOR_CPUS}
    others = [rank] * (execution.ranks - 1)
    return tune.PlacementGroupFactory([{"CPU": COORDINATOR_CPUS}, first, *others], strategy="PACK")


def _share_of_rank(execution: Execution, nodes: list[dict[str, float]]) -> dict[str, float]:
    gpus = execution.gpus_of_rank(are_there=any(node.get("GPU", 0) for node in nodes))
    return {"CPU": float(execution.cpus_per_rank)} | ({"GPU": gpus} if gpus else {})


def _room(rank: dict[str, float], nodes: list[dict[str, float]]) -> int:
    """Number of ranks that fit on the nodes."""
    return sum(min(int(node.get(kind, 0.0) / amount) for kind, amount in rank.items()) for node in nodes)


def _amounts(resources: dict[str, float]) -> str:
    """Resources as text, e.g. "4 CPUs and 1 GPU"."""
    return " and ".join(counted(resources[kind], kind) for kind in ("CPU", "GPU") if kind in resources)


class ChainOrder(Searcher):
    """Starts a chain only when every fit that it shares with a running chain is stored.

    Waiting holds no resources, since Tune asks again about once a second. A chain that waited for people is started
    again once they have answered, as long as others run.
    """

    def __init__(self, chains: list[Chain], first: list[Chain], relay: "Relay", people: People) -> None:
        """Order the chains `first`, and later those that the relay reports as waiting for people."""
        super().__init__(metric=None, mode=None)
        self._chains = chains
        self._relay, self._people = relay, people
        self._index = {chain.id: index for index, chain in enumerate(chains)}
        self._waiting = [self._index[chain.id] for chain in first]
        self._running: dict[str, int] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        asking = self._asking()
        answered = self._people.answered_now(asking)
        self._waiting += [self._index[chain.id] for chain in answered]
        if not self._waiting and not (asking and self._running):
            return str(Searcher.FINISHED)
        for index in self._waiting:
            if all(self._may_start(index, other) for other in self._running.values()):
                self._waiting.remove(index)
                self._running[trial_id] = index
                self._relay.asking.discard(self._chains[index].id)
                return {"chain": index, "name": self._chains[index].id}
        return None

    def _asking(self) -> list[Chain]:
        """Chains that ended with questions for people and are neither queued nor running."""
        if not self._relay.asking:
            return []
        taken = {*self._waiting, *self._running.values()}
        return [one for at, one in enumerate(self._chains) if one.id in self._relay.asking and at not in taken]

    def _may_start(self, index: int, other: int) -> bool:
        shared = self._chains[index].shared_fits(self._chains[other])
        return self._relay.stages_done.get(self._chains[other].id, 0) >= shared

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._running.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the store is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class Relay(tune.Callback):
    """Passes on the events of trials; tracks which stages are done, what failed, and what to retry.

    Events carry the name of their trial, which is in its settings; in a grid, it is the chain's. A trial may be lost
    `max_failures` times in a row; progress by a stage, a pick or a saved epoch resets the count.
    """

    def __init__(self, on_event: Callable[[Event], None], max_failures: int, store: Store, prefix: str = "") -> None:
        """Check that results in events are in the `store`; record failed attempts there by `prefix` and trial name."""
        self._prefix = prefix
        self._on_event, self._max_failures, self._store = on_event, max_failures, store
        self._losses: Counter[str] = Counter()
        self._resumed: dict[str, tuple[int, int]] = {}
        self._last_message: dict[str, str] = {}
        self.asking: set[str] = set()
        self.stages_done: dict[str, int] = {}
        self.errors: dict[str, str] = {}
        self.lost: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles a run's settings to restore them, which we never do; listeners belong to this process

    def begin(self) -> None:
        """Begin a round of trials, none of them lost yet."""
        self.lost = []

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "event" not in result:
            return
        event = decode(result["event"])
        if event.chain in self.errors:
            return
        if missing := self._missing(event):
            event = ChainFailed(event.chain, f"{missing}; {STORE_CURE}", final=True)
        if self._gets_further(event):
            self._losses[event.chain] = 0
        self.asking.discard(event.chain)
        match event:
            case AnswersAwaited():
                self.asking.add(event.chain)
            case StageDone():
                self.stages_done[event.chain] = event.stage + 1
            case ChainFailed():
                self._last_message[event.chain] = event.message
                if event.final:
                    self.errors[event.chain] = event.message
        self._on_event(event)

    def _missing(self, event: Event) -> str:
        """What a trial reports as stored but this process does not find; empty if nothing."""
        match event:
            case FitTrained() | StageDone():
                kind, key = "fit", event.fit
            case PixelsPicked():
                kind, key = "pick", event.pick
            case _:
                return ""
        until = time.monotonic() + VISIBLE_SECONDS
        try:
            while not self._store.has(kind, key):
                if time.monotonic() > until:
                    return f"a node reports {kind} {key[:12]} as stored, but the driver does not see it in the store"
                time.sleep(0.1)
        except StoreError:  # unreachable for a moment; missing results will be noticed in the end
            return ""
        return ""

    def _gets_further(self, event: Event) -> bool:
        """Whether an event reports progress: something newly stored that no retry has to repeat."""
        if not isinstance(event, FitResumed):
            return isinstance(event, FitTrained) or (isinstance(event, PixelsPicked) and event.computed)
        reached = event.stage, event.epoch
        before = self._resumed.get(event.chain, (-1, -1))
        self._resumed[event.chain] = max(reached, before)
        return reached > before

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Handle a trial whose process or node was lost, which Tune restarts; after too many losses it gives up.

        If no process can start even for giving up, Tune calls `on_trial_error` next.
        """
        name = trial.config["name"]
        if not self._may_try_again(trial, name):
            trial.config["give_up"], trial.max_failures = self.errors[name], 0

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Handle a trial that was lost before it began, which Tune does not retry, but the next round does."""
        name = trial.config["name"]
        self.asking.discard(name)
        if self._may_try_again(trial, name):
            self.lost.append(name)
        else:
            self._on_event(ChainFailed(name, self.errors[name], final=True))

    def _may_try_again(self, trial: Any, name: str) -> bool:
        """Whether a failed trial is worth another attempt; report and record a lost process, which could not do so."""
        if loss := _loss_of(trial):
            self._last_message[name] = explain_loss(loss)
            self._store.record_attempt(self._prefix + name, f"{loss}\n{self._last_message[name]}")
        self._losses[name] += 1
        if self._losses[name] <= self._max_failures:
            if loss:
                self._on_event(ChainFailed(name, self._last_message[name], final=False))
            return True
        message = self._last_message.get(name, LOST)
        self.errors[name] = f"{message} ({self._losses[name]} attempts without progress)"
        return False


def _loss_of(trial: Any) -> str:
    """Return Ray's message if a trial's process was lost when it last failed; empty if the trial raised an exception.

    Reads what Tune leaves in its staging folder; `get_pickled_error` looks in the trial's storage, where it may not
    have been copied yet, and knows nothing of the memory monitor.
    """
    if not trial.error_file or not Path(trial.error_file).exists():
        return ""
    told = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
    last = re.split(r"^Failure # \d+ \(occurred at .*\)$", told, flags=re.MULTILINE)[-1].strip()
    pickled = trial.pickled_error_file
    raised = cloudpickle.loads(Path(pickled).read_bytes()) if pickled and Path(pickled).exists() else None
    return "" if isinstance(raised, ray.exceptions.RayTaskError) and str(raised).strip() == last else last


class _StopWhen(tune.Stopper):
    """Ends the whole run if `stop()`, and any trial that has failed for good."""

    def __init__(self, stop: Callable[[], bool], relay: Relay) -> None:
        self._stop, self._relay = stop, relay

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return "event" in result and decode(result["event"]).chain in self._relay.errors

    def stop_all(self) -> bool:
        return self._stop()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as in Relay


def _trial(config: dict[str, Any], job: Job) -> None:
    """Run one chain, in the process of its Tune trial."""
    chain, plan = job.chains[config["chain"]], job.plan

    def work() -> None:
        with ranks_of(plan.experiment, job.execution) as run_trial:
            run_trial(chain.trial, plan.stages_to_keep(chain), _report)

    attempt(work, config, chain.id, job.execution, _report)


def attempt(
    work: Callable[[], None],
    config: dict[str, Any],
    record: str,
    execution: Execution,
    report: Callable[[Event], None],
) -> None:
    """Do a trial's work; report errors, record them under `record`, and raise those worth a retry."""
    if "give_up" in config:
        report(ChainFailed(config["name"], config["give_up"], final=True))
        return
    try:
        check_sees_run(execution)
        work()
    except Exception as error:
        with contextlib.suppress(StoreError):  # the store may be what failed
            Store(execution.store).record_attempt(record, f"{traceback.format_exc()}\n{explain(error)}\n")
        report(ChainFailed(config["name"], explain(error), final=gives_up(error)))
        if not gives_up(error):
            raise


def check_sees_run(execution: Execution) -> None:
    """Raise SpecError if the store on this node is not the driver's, which would contain the lease of its run."""
    until = time.monotonic() + VISIBLE_SECONDS
    store = Store(execution.store)
    while execution.run and not store.has_lease("run", execution.run):
        if time.monotonic() > until:
            raise SpecError(
                f"--store: {store.address} on node {socket.gethostname()} is a different store from the driver's; "
                f"{STORE_CURE}"
            )
        time.sleep(0.2)


def _report(event: Event) -> None:
    tune.report({"event": encode(event)})
