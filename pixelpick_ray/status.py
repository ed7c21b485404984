"""Progress of an experiment: the state of each stage (see STATES). Imports neither torch nor ray."""

from dataclasses import asdict, dataclass
from typing import Any

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.data.answers import Pending, Waiting
from pixelpick_ray.estimate import stages_line, summarise
from pixelpick_ray.planning import Chain, Plan, Progress, progress_of
from pixelpick_ray.store import Store, run_lease

STATES = ("stored", "running", "waiting", "missing", "failed", "diverged")


@dataclass(frozen=True)
class ChainStatus:
    """The states of a chain's stages, in order, its last error line, and what it waits for ("" for nothing)."""

    label: str
    id: str
    stages: tuple[str, ...]
    error: str
    waits_for: str = ""
    missing_answers: int = 0
    diverged: str = ""


@dataclass(frozen=True)
class Status:
    """The state of every stage of an experiment; `stages` counts distinct ones by state, `line` is as in `plan`."""

    experiment: str
    chains: tuple[ChainStatus, ...]
    stages: dict[str, int]
    line: str
    damaged: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the status as JSON-ready values."""
        rows = [asdict(chain) | {"stages": list(chain.stages)} for chain in self.chains]
        return {"experiment": self.experiment, "stages": self.stages, "chains": rows, "damaged": list(self.damaged)}

    @property
    def asks_people(self) -> bool:
        """Whether a chain is waiting for people to answer."""
        return any(chain.missing_answers for chain in self.chains)

    def as_text(self) -> str:
        """Return one line per chain, then the totals."""
        width = max(len(chain.label) for chain in self.chains)
        lines = [f"{chain.label:<{width}}  {_counted(chain.stages)}" for chain in self.chains]
        lines += [f"WAITING {chain.label}: for {chain.waits_for}" for chain in self.chains if chain.waits_for]
        lines += [f"FAILED {chain.label}: {chain.error}" for chain in self.chains if chain.error]
        lines += [f"DIVERGED {chain.label}: {chain.diverged}" for chain in self.chains if chain.diverged]
        lines += [f"DAMAGED {line}" for line in self.damaged]
        counts = ", ".join(f"{count} {state}" for state, count in self.stages.items() if count)
        return "\n".join([*lines, counts, self.line])


def status_of(plan: Plan, execution: Execution) -> Status:
    """Determine the state of every stage, from the store alone if the data are absent.

    A stage is running if its fit is leased, by whichever chain. It is waiting if an earlier fit or pick of its chain is
    leased, if people have to answer, or if a live run has yet to reach its chain. It has failed if the chain's last
    attempt left an error. Otherwise it is missing.
    """
    store = Store(execution.store)
    progress, leased = progress_of(plan, execution), store.leased()
    prefix = run_lease(plan.experiment)
    run = next((holder for name, holder in leased.items() if name.startswith(f"run-{prefix}")), "")
    pending = Waiting(store, plan.experiment).look(chain.id for chain in plan.chains if not progress.done(chain))
    chains = tuple(_chain_status(chain, progress, leased, run, pending.get(chain.id), store) for chain in plan.chains)
    line = stages_line(summarise(plan, progress, execution))
    damaged = tuple(dict.fromkeys((*store.damaged(), *progress.damaged)))
    return Status(plan.experiment.name, chains, _count(plan, progress, chains), line, damaged)


def _count(plan: Plan, progress: Progress, chains: tuple[ChainStatus, ...]) -> dict[str, int]:
    """Count distinct stages by state; a shared stage has the first state in `order` that it has in any chain."""
    order = ("stored", "diverged", "running", "failed", "waiting", "missing")
    found: dict[str, str] = {}
    for chain, status in zip(plan.chains, chains, strict=True):
        for stage, state in zip(progress.row(chain), status.stages, strict=True):
            found[stage.identity] = min(found.get(stage.identity, state), state, key=order.index)
    states = list(found.values())
    return {state: states.count(state) for state in STATES}


def _chain_status(
    chain: Chain, progress: Progress, leased: dict[str, str], run: str, pending: Pending | None, store: Store
) -> ChainStatus:
    row = progress.row(chain)
    error = "" if progress.done(chain) else store.last_error(chain.id)
    states: list[str] = []
    first = leased.get(f"pick-{progress.initial.get(chain.id, ('', False))[0]}", "")
    waits_for = f"its first pixels, being picked by {first}" if first else ""
    for stage in row:
        trains, picks = leased.get(f"fit-{stage.fit}", ""), leased.get(f"pick-{stage.pick}", "")
        if stage.fit_stored and stage.evaluated:
            states.append("stored")
        elif stage.diverged:
            states.append("diverged")
        elif trains:
            states.append("running")
        elif waits_for:
            states.append("waiting")
        else:
            states.append("failed" if error and "failed" not in states else "missing")
        if trains or picks:
            training = f"stage {stage.stage}, being trained by {trains}"
            waits_for = training if trains else f"the pick being made by {picks}"
    if pending and pending.missing and not waits_for:
        states, error = ["waiting" if state in ("missing", "failed") else state for state in states], ""
        waits_for = f"{pending.missing} of {pending.asked} answers"
    elif run and not waits_for:  # any error is from an earlier run, or the chain will be retried
        states = ["waiting" if state in ("missing", "failed") else state for state in states]
        waits_for = f"free resources in the run on {run}"
    waits_for, error = waits_for if "waiting" in states else "", "" if waits_for else error
    return ChainStatus(
        *(chain.label, chain.id, tuple(states), error, waits_for),
        missing_answers=pending.missing if pending else 0,
        diverged=progress.diverged(chain),
    )


def _counted(states: tuple[str, ...]) -> str:
    return ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
