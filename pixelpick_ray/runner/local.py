"""Runner without Ray: chains one after another in this process, for debugging or where Ray is not available."""

import contextlib
import traceback
from collections.abc import Callable

import torch

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.engine.host import prepare_process
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import SpecError, StoreError
from pixelpick_ray.events import AnswersAwaited, ChainFailed, EpochDone, Event
from pixelpick_ray.planning import Chain, Plan
from pixelpick_ray.runner.failures import Stopped, explain
from pixelpick_ray.runner.people import People
from pixelpick_ray.running import run_chain
from pixelpick_ray.store import Store


def run(
    plan: Plan,
    chains: list[Chain],
    execution: Execution,
    on_event: Callable[[Event], None],
    stop: Callable[[], bool],
    people: People,
) -> dict[str, str]:
    """Run chains in this process; return the error of each chain that failed. Stops between epochs if `stop()`.

    Chains that wait for `people` run again once these have answered. Raises SpecError as `check_local` does.
    """
    check_local(execution)
    prepare_process(execution.cpus_per_rank)
    errors: dict[str, str] = {}
    asking: set[str] = set()
    left = chains
    while left and not stop():
        _run_once(plan, left, execution, _Listener(on_event, stop, asking), errors)
        left = people.answered([chain for chain in chains if chain.id in asking])
    return errors


class _Listener:
    """Passes on events, notes which chains ask people, and leaves a chain when stopping."""

    def __init__(self, on_event: Callable[[Event], None], stop: Callable[[], bool], asking: set[str]) -> None:
        self.pass_on, self.asking, self._stop = on_event, asking, stop

    def __call__(self, event: Event) -> None:
        self.pass_on(event)
        self.asking.discard(event.chain)
        if isinstance(event, AnswersAwaited):
            self.asking.add(event.chain)
        trained = isinstance(event, EpochDone) and event.epoch == event.epochs
        if self._stop() and not trained:  # a finished training is published before leaving the chain
            raise Stopped


def _run_once(
    plan: Plan, chains: list[Chain], execution: Execution, listener: _Listener, errors: dict[str, str]
) -> None:
    """Run chains one after another as far as possible; add to `errors` those of failed chains."""
    device = choose_device(execution.device)
    for chain in chains:
        try:
            world, kept = World(0, 1, device), plan.stages_to_keep(chain)
            run_chain(plan.experiment, chain.trial, execution, world, listener, keep_stages=kept)
        except Stopped:
            return
        except Exception as error:  # a failed chain must not stop the others
            errors[chain.id] = explain(error)
            listener.asking.discard(chain.id)
            with contextlib.suppress(StoreError):  # the store may be what failed
                Store(execution.store).record_attempt(chain.id, f"{traceback.format_exc()}\n{errors[chain.id]}\n")
            listener.pass_on(ChainFailed(chain.id, errors[chain.id], final=True))


def check_local(execution: Execution) -> torch.device:
    """Return the device of the only rank. Raises SpecError for several ranks or an unavailable device."""
    if execution.ranks > 1:
        raise SpecError("--local runs a single rank; leave out --ranks or --local")
    return choose_device(execution.device)


def choose_device(wanted: str) -> torch.device:
    """Return the device of this process. Raises SpecError if cuda is wanted but not available."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SpecError("--device cuda: torch sees no GPU here; use --device cpu, or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
