"""The runner's contract in this process, one chain after another: for debugging, and where there is no Ray."""

import traceback
from collections.abc import Callable

import torch

from pixelpick_ray.engine.host import prepare_process
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import SpecError
from pixelpick_ray.loop import run_chain
from pixelpick_ray.plan import Chain, Plan
from pixelpick_ray.runner.failures import Stopped, explain
from pixelpick_ray.runner.people import People
from pixelpick_ray.spec.execution import Execution
from pixelpick_ray.spec.experiment import Experiment
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
    left = chains
    while left and not stop():
        asking = _run_once(plan, left, execution, on_event, stop, errors)
        left = people.answered(asking)
    return errors


def _run_once(
    plan: Plan,
    chains: list[Chain],
    execution: Execution,
    on_event: Callable[[Event], None],
    stop: Callable[[], bool],
    errors: dict[str, str],
) -> list[Chain]:
    """Run chains one after another; returns those that wait for people, and adds to the errors of those that failed."""
    device, asking = check_local(execution), set[str]()

    def relay(event: Event) -> None:
        on_event(event)
        if event.kind == "waits":
            asking.add(event.chain)
        trained = event.kind == "epoch" and event.values["epoch"] == event.values["epochs"]
        if stop() and not trained:  # a finished training is published before the chain is left
            raise Stopped

    for chain in chains:
        try:
            place = workplace(plan.experiment, execution, plan.stages_to_keep(chain))
            run_chain(plan.experiment, chain.trial, place, World(0, 1, device), relay)
        except Stopped:
            break
        except Exception as error:  # one chain that fails must not stop the others
            errors[chain.id] = explain(error)
            Store(execution.store).record_attempt(chain.id, traceback.format_exc())
            on_event(Event("failed", chain.id, 0, values={"message": errors[chain.id]}))
    return [chain for chain in chains if chain.id in asking]


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
