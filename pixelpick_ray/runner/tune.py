"""Ray Tune: placement, ranks, retries, order. A Tune trial is a chain and owns its resources in one placement group.

One rank runs in the trial's own process; more are actors in the bundles of the trial's group (`ranks.py`). A chain
whose process or node is lost is tried again from the store, as long as it gets further every few tries.
"""

import contextlib
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import RunError, SpecError, StoreError
from pixelpick_ray.plan import Chain, Plan
from pixelpick_ray.runner.cluster import joined
from pixelpick_ray.runner.failures import explain, gives_up
from pixelpick_ray.runner.local import choose_device
from pixelpick_ray.runner.ranks import Job, run_rank, run_ranks
from pixelpick_ray.spec.execution import Execution
from pixelpick_ray.steps import Event
from pixelpick_ray.store import Store

COORDINATOR_CPUS = 0.01  # taken from the first rank's share, so that N ranks of one CPU fit on N CPUs


def run(
    plan: Plan,
    chains: list[Chain],
    execution: Execution,
    on_event: Callable[[Event], None],
    stop: Callable[[], bool],
) -> dict[str, str]:
    """Run chains as Tune trials; returns the error of each chain that failed. Ends early when `stop` says so.

    SpecError when the cluster can never hold one trial. RunError when the cluster is lost.
    """
    with joined(execution):
        resources = placement(execution, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        relay = _Relay(on_event, execution.max_failures)
        left = chains
        while left and not stop():
            relay.begin(left)
            try:
                _run_trials(Job(plan, left, execution), resources, relay, stop)
            except (ray.exceptions.RayError, ConnectionError) as error:
                raise RunError(f"the Ray cluster was lost ({explain(error)}); the same command goes on") from error
            left = relay.lost
        return relay.errors


def _run_trials(job: Job, resources: Any, relay: "_Relay", stop: Callable[[], bool]) -> None:
    """One Tune experiment; its folder is of no use afterwards, since the store is the only state."""
    with tempfile.TemporaryDirectory(prefix="pixelpick-tune-", ignore_cleanup_errors=True) as folder:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, job=job), resources),
            param_space={},
            tune_config=tune.TuneConfig(
                search_alg=ChainOrder(job.chains, relay),
                num_samples=len(job.chains),
                max_concurrent_trials=job.execution.max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=-1),  # the relay counts
                callbacks=[relay],
                stop=_StopWhen(stop),
                verbose=0,
            ),
        ).fit()


def placement(execution: Execution, nodes: list[dict[str, float]]) -> tune.PlacementGroupFactory:
    """The placement group of one trial, given each node's resources.

    SpecError with the sizes at hand when these nodes can never hold it: every rank must fit on one of them.
    """
    gpus = execution.gpus_of_rank(are_there=any(node.get("GPU", 0) for node in nodes))
    if execution.device == "cuda" and not gpus:
        raise SpecError("--device cuda: the cluster has no GPU; use --device cpu or auto, or join one with --address")
    rank = {"CPU": float(execution.cpus_per_rank)} | ({"GPU": gpus} if gpus else {})
    room = sum(min(int(node.get(kind, 0.0) / amount) for kind, amount in rank.items()) for node in nodes)
    if room < execution.ranks:
        raise SpecError(
            f"a trial of {_counted(execution.ranks, 'rank')} needs {_amounts(rank)} for each rank, on one node each; "
            f"the cluster has room for {room}: {'; '.join(_amounts(node) for node in nodes)}; lower --ranks, "
            "--cpus-per-rank or --gpus-per-rank"
        )
    if execution.ranks == 1:
        return tune.PlacementGroupFactory([rank])
    first = rank | {"CPU": rank["CPU"] - COORDINATOR_CPUS}
    others = [rank] * (execution.ranks - 1)
    return tune.PlacementGroupFactory([{"CPU": COORDINATOR_CPUS}, first, *others], strategy="PACK")


def _counted(number: float, noun: str) -> str:
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"


def _amounts(resources: dict[str, float]) -> str:
    """Processors as text: "4 CPUs and 1 GPU"."""
    return " and ".join(_counted(resources[kind], kind) for kind in ("CPU", "GPU") if kind in resources)


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
    """Passes the events of trials on; knows which stages are done, which chains failed, and which to try again.

    A chain may be lost `max_failures` times in a row; getting further, by a stage, a pick or a saved epoch, forgives.
    """

    def __init__(self, on_event: Callable[[Event], None], max_failures: int) -> None:
        self._on_event, self._max_failures = on_event, max_failures
        self._chains: list[Chain] = []
        self._losses: Counter[str] = Counter()
        self._resumed: dict[str, tuple[int, int]] = {}
        self._last_message: dict[str, str] = {}
        self.stages_done: dict[str, int] = {}
        self.errors: dict[str, str] = {}
        self.lost: list[Chain] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles a run's settings to restore them; we never do, and listeners belong to this process

    def begin(self, chains: list[Chain]) -> None:
        """Begin a round of these chains."""
        self._chains, self.lost = chains, []

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "event" not in result:
            return
        event = Event(**result["event"])
        if self._gets_further(event):
            self._losses[event.chain] = 0
        if event.kind == "stage":
            self.stages_done[event.chain] = event.stage + 1
        if event.kind == "failed":
            self._last_message[event.chain] = event.values["message"]
            if event.values["final"]:
                self.errors[event.chain] = event.values["message"]
        self._on_event(event)

    def _gets_further(self, event: Event) -> bool:
        """Whether an event says that something is stored that was not, which no retry has to repeat."""
        if event.kind != "resume":
            return event.kind in ("stage", "pick") and event.computed
        reached = event.stage, event.values["epoch"]
        before = self._resumed.get(event.chain, (-1, -1))
        self._resumed[event.chain] = max(reached, before)
        return reached > before

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process or node was lost and Tune starts it again; one time too many makes it give up."""
        chain = self._chains[trial.config["chain"]]
        if not self._may_try_again(chain):
            trial.config["give_up"] = self.errors[chain.id]

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial was lost before it began, which Tune does not try again; the next round does."""
        chain = self._chains[trial.config["chain"]]
        if self._may_try_again(chain):
            self.lost.append(chain)
        else:
            self._on_event(_failed(chain, self.errors[chain.id], final=True))

    def _may_try_again(self, chain: Chain) -> bool:
        self._losses[chain.id] += 1
        if self._losses[chain.id] <= self._max_failures:
            return True
        message = self._last_message.get(chain.id, "its process or node was lost")
        self.errors[chain.id] = f"{message} (tried {self._losses[chain.id]} times without getting further)"
        return False


def _failed(chain: Chain, message: str, *, final: bool) -> Event:
    return Event("failed", chain.id, 0, values={"message": message, "final": final})


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
    if "give_up" in config:
        _report(_failed(chain, config["give_up"], final=True))
        return
    try:
        if job.execution.ranks == 1:
            run_rank(job, chain, World(0, 1, choose_device(job.execution.device)), _report)
        else:
            run_ranks(job, chain, _report)
    except Exception as error:
        with contextlib.suppress(StoreError):  # it may be what failed
            Store(job.execution.store).record_attempt(chain.id, traceback.format_exc())
        _report(_failed(chain, explain(error), final=gives_up(error)))
        if not gives_up(error):
            raise
        return
    _report(Event("done", chain.id, len(chain.fits) - 1))


def _report(event: Event) -> None:
    tune.report({"event": asdict(event)})
