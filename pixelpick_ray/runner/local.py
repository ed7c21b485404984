"""The runner's contract in this process, one chain after another: for debugging, and where there is no Ray."""

import traceback
from collections.abc import Callable

import torch

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.engine.host import prepare_process
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import SpecError
from pixelpick_ray.loop import run_chain
from pixelpick_ray.plan import Chain, Plan
from pixelpick_ray.runner.failures import Stopped, explain
from pixelpick_ray.runner.people import People
from pixelpick_ray.steps import Event, Workplace
from pixelpick_ray.store import Store


def run(
    plan: Plan,
    chains: list[Chain],
    execution: Execution,
    on_event: Callable[[Event], None],
    stop: Callable[[], bool],
    people: People,
) -> dict[str, str]:
    """Run chains here; returns the error of each chain that failed. Stops between epochs when `stop` says so.

    Chains that `people` have to answer for come again when they have.
    """
    check_local(execution)
    prepare_process(execution.cpus_per_rank)
    errors: dict[str, str] = {}
    asking: set[str] = set()
    left = chains
    while left and not stop():
        _run_once(plan, left, execution, _Relay(on_event, stop, asking), errors)
        left = people.answered([chain for chain in chains if chain.id in asking])
    return errors


class _Relay:
    """Passes events on, notes which chains ask people, and leaves a chain at a stop."""

    def __init__(self, on_event: Callable[[Event], None], stop: Callable[[], bool], asking: set[str]) -> None:
        self.pass_on, self.asking, self._stop = on_event, asking, stop

    def __call__(self, event: Event) -> None:
        self.pass_on(event)
        self.asking.discard(event.chain)
        if event.kind == "waits":
            self.asking.add(event.chain)
        trained = event.kind == "epoch" and event.values["epoch"] == event.values["epochs"]
        if self._stop() and not trained:  # a finished training is published before the chain is left
            raise Stopped


def _run_once(plan: Plan, chains: list[Chain], execution: Execution, relay: _Relay, errors: dict[str, str]) -> None:
    """Run chains one after another as far as they go; adds to the errors of those that failed."""
    device = choose_device(execution.device)
    for chain in chains:
        try:
            place = workplace(plan.experiment, execution, plan.stages_to_keep(chain))
            run_chain(plan.experiment, chain.trial, place, World(0, 1, device), relay)
        except Stopped:
            return
        except Exception as error:  # one chain that fails must not stop the others
            errors[chain.id] = explain(error)
            relay.asking.discard(chain.id)
            Store(execution.store).record_attempt(chain.id, traceback.format_exc())
            relay.pass_on(Event("failed", chain.id, 0, values={"message": errors[chain.id]}))


def check_local(execution: Execution) -> torch.device:
    """The device of the only rank. SpecError when more ranks, or a device that is not here, are asked for."""
    if execution.ranks > 1:
        raise SpecError("--local runs one rank; leave out --ranks, or leave out --local")
    return choose_device(execution.device)


def workplace(experiment: Experiment, execution: Execution, keep_stages: frozenset[int]) -> Workplace:
    """Where a chain of an experiment finds its inputs and leaves its results."""
    return Workplace(
        Store(execution.store),
        execution.data_path,
        execution.cache_path,
        execution.keep_weights,
        keep_stages,
        execution.checkpoint_seconds,
        execution.runs_path / experiment.name / "steps",
    )


def choose_device(wanted: str) -> torch.device:
    """The device of this process. SpecError when cuda is asked for and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SpecError("--device cuda: torch sees no GPU here; use --device cpu, or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
