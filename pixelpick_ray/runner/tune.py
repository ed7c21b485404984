"""Ray Tune: placement, ranks, retries, order. A Tune trial is a chain and owns its resources in one placement group.

One rank runs in the trial's own process. More ranks are Ray actors in the bundles of the trial's group and form a
torch.distributed group; the trial's process only watches them, so a rank that fails or dies ends its group at once.
"""

import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pixelpick_ray.engine.host import prepare_process
from pixelpick_ray.engine.world import World, join
from pixelpick_ray.errors import SpecError
from pixelpick_ray.loop import Event, run_chain
from pixelpick_ray.plan import Chain, Plan
from pixelpick_ray.runner.cluster import joined
from pixelpick_ray.runner.failures import explain, gives_up
from pixelpick_ray.runner.local import choose_device, workplace
from pixelpick_ray.spec.execution import Execution
from pixelpick_ray.store import Store

COORDINATOR_CPUS = 0.01  # taken from the first rank's share, so that N ranks of one CPU fit on N CPUs


@dataclass(frozen=True)
class Job:
    """What every trial of a run is given."""

    plan: Plan
    chains: list[Chain]
    execution: Execution


def run(
    plan: Plan,
    chains: list[Chain],
    execution: Execution,
    on_event: Callable[[Event], None],
    stop: Callable[[], bool],
) -> dict[str, str]:
    """Run chains as Tune trials; returns the error of each chain that failed. Ends early when `stop` says so.

    SpecError when no node or not even the whole cluster can ever hold one trial.
    """
    with joined(execution):
        resources = placement(execution, ray.cluster_resources())
        callback = _Relay(on_event, chains)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, job=Job(plan, chains, execution)), resources),
            param_space={},
            tune_config=tune.TuneConfig(
                search_alg=ChainOrder(chains, callback),
                num_samples=len(chains),
                max_concurrent_trials=execution.max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str((execution.runs_path / plan.experiment.name).resolve()),
                failure_config=tune.FailureConfig(max_failures=execution.max_failures),
                callbacks=[callback],
                stop=_StopWhen(stop),
                verbose=0,
            ),
        )
        tuner.fit()
        return callback.errors


def placement(execution: Execution, cluster: dict[str, float]) -> tune.PlacementGroupFactory:
    """The placement group of one trial. SpecError with the sizes at hand when the cluster can never hold it."""
    gpus = execution.gpus_per_rank
    if gpus is None:
        gpus = 1.0 if cluster.get("GPU", 0) and execution.device != "cpu" else 0.0
    if execution.device == "cuda" and not gpus:
        raise SpecError("--device cuda: the cluster has no GPU; use --device cpu or auto, or join one with --address")
    wanted = {"CPU": float(execution.cpus_per_rank * execution.ranks), "GPU": gpus * execution.ranks}
    for kind, amount in wanted.items():
        if amount > cluster.get(kind, 0.0):
            raise SpecError(
                f"a trial of {execution.ranks} ranks needs {amount:g} {kind}s, the cluster has "
                f"{cluster.get(kind, 0.0):g}; lower --ranks, --cpus-per-rank or --gpus-per-rank"
            )
    rank = {"CPU": float(execution.cpus_per_rank)} | ({"GPU": gpus} if gpus else {})
    if execution.ranks == 1:
        return tune.PlacementGroupFactory([rank])
    first = rank | {"CPU": rank["CPU"] - COORDINATOR_CPUS}
    others = [rank] * (execution.ranks - 1)
    return tune.PlacementGroupFactory([{"CPU": COORDINATOR_CPUS}, first, *others], strategy="PACK")


class ChainOrder(Searcher):
    """Hands out a chain only when every fit that it shares with a chain handed out before is stored.

    Waiting holds no resources: Tune asks again about once a second.
    """

    def __init__(self, chains: list[Chain], relay: "_Relay") -> None:
        super().__init__(metric=None, mode=None)
        self._chains = chains
        self._relay = relay
        self._waiting = list(range(len(chains)))
        self._running: dict[str, int] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self._waiting:
            return str(Searcher.FINISHED)
        for index in self._waiting:
            if all(self._may_start(index, other) for other in self._running.values()):
                self._waiting.remove(index)
                self._running[trial_id] = index
                return {"chain": index}
        return None

    def _may_start(self, index: int, other: int) -> bool:
        shared = self._chains[index].shared_fits(self._chains[other])
        return self._relay.stages_done.get(self._chains[other].id, 0) >= shared

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._running.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the store is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class _Relay(tune.Callback):
    """Passes the events of trials on, and knows which stages and chains are done or failed."""

    def __init__(self, on_event: Callable[[Event], None], chains: list[Chain]) -> None:
        self._on_event = on_event
        self._chains = chains
        self.stages_done: dict[str, int] = {}
        self.errors: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles a run's settings to restore them; we never do, and listeners belong to this process

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "event" not in result:
            return
        event = Event(**result["event"])
        if event.kind == "stage":
            self.stages_done[event.chain] = event.stage + 1
        if event.kind == "failed":
            self.errors[event.chain] = event.values["message"]
        if event.kind == "done":
            self.errors.pop(event.chain, None)
        self._on_event(event)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        chain = self._chains[trial.config["chain"]]
        if chain.id not in self.errors:
            self.errors[chain.id] = "its process or node was lost, and every retry too"
        self._on_event(Event("failed", chain.id, 0, values={"message": self.errors[chain.id]}))


class _StopWhen(tune.Stopper):
    """Ends the whole run when a function says so."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stop()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as in _Relay


def _trial(config: dict[str, Any], job: Job) -> None:
    """One chain, in the process of its Tune trial."""
    chain = job.chains[config["chain"]]
    try:
        if job.execution.ranks == 1:
            _run_rank(job, chain, World(0, 1, choose_device(job.execution.device)), _report)
        else:
            _run_ranks(job, chain)
    except Exception as error:
        Store(job.execution.store).record_attempt(chain.id, traceback.format_exc())
        _report(Event("failed", chain.id, 0, values={"message": explain(error), "final": gives_up(error)}))
        if not gives_up(error):
            raise
        return
    _report(Event("done", chain.id, len(chain.fits) - 1))


def _report(event: Event) -> None:
    tune.report({"event": asdict(event)})


def _run_rank(job: Job, chain: Chain, world: World, on_event: Callable[[Event], None]) -> None:
    prepare_process(job.execution.cpus_per_rank)
    run_chain(job.plan.experiment, chain.trial, workplace(job.plan, chain, job.execution), world, on_event)


def _run_ranks(job: Job, chain: Chain) -> None:
    """Start one actor a rank in the trial's placement group and watch them until all are done or one fails."""
    execution = job.execution
    group = get_current_placement_group()
    actors = [
        _Rank.options(  # type: ignore[attr-defined]
            **_share(group.bundle_specs[1 + rank]),
            max_concurrency=2,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=1 + rank),
        ).remote(job, chain, rank)
        for rank in range(execution.ranks)
    ]
    try:
        address = ray.get(actors[0].meeting_point.remote())
        pending = [actor.run.remote(address) for actor in actors]
        while pending:
            done, pending = ray.wait(pending, timeout=0.2)
            for event in ray.get(actors[0].events.remote()):
                _report(event)
            for reference in done:
                if problem := ray.get(reference):
                    raise problem
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(f"a rank's process was lost: {error}") from error
    finally:
        for actor in actors:
            ray.kill(actor)


def _share(bundle: dict[str, float]) -> dict[str, float]:
    return {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0.0)}


@ray.remote
class _Rank:
    """One rank of a chain. `run` and `events` may be called at the same time."""

    def __init__(self, job: Job, chain: Chain, rank: int) -> None:
        self._job, self._chain, self._rank = job, chain, rank
        self._events: list[Event] = []

    def meeting_point(self) -> str:
        """A free port on this rank's node, as host:port."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def run(self, address: str) -> Exception | None:
        """Take part in the chain; returns the error, with the traceback as its note, instead of raising it."""
        try:
            device = choose_device(self._job.execution.device)
            with join(rank=self._rank, size=self._job.execution.ranks, device=device, address=address) as world:
                _run_rank(self._job, self._chain, world, self._events.append)
        except Exception as error:
            time.sleep(2.0 if _is_consequence(error) else 0.0)  # let the rank that caused it speak first
            Store(self._job.execution.store).record_attempt(
                self._chain.id, f"rank {self._rank}\n{traceback.format_exc()}"
            )
            return error if gives_up(error) else RunnerLost(f"rank {self._rank}: {explain(error)}")
        return None

    def events(self) -> list[Event]:
        """The events since the last call."""
        taken, self._events[:] = list(self._events), []
        return taken


class RunnerLost(Exception):
    """A rank failed in a way that is worth a retry."""


def _is_consequence(error: Exception) -> bool:
    """Whether a rank failed because another left the group."""
    return type(error).__name__.startswith("Dist") or "Connection" in str(error)
