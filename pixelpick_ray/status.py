"""How far an experiment is: stored, running, waiting, missing and failed stages. Imports neither torch nor ray."""

from dataclasses import dataclass
from typing import Any

from pixelpick_ray.plan import Chain, Plan, Progress, StageStatus, progress_of
from pixelpick_ray.spec.execution import Execution
from pixelpick_ray.store import Store

STATES = ("stored", "running", "waiting", "missing", "failed")


@dataclass(frozen=True)
class ChainStatus:
    """A chain's stages by state, in order, and its last error line ("" when nothing failed since)."""

    label: str
    id: str
    stages: tuple[str, ...]
    error: str


@dataclass(frozen=True)
class Status:
    """The state of every stage of an experiment."""

    experiment: str
    chains: tuple[ChainStatus, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        counts = {state: sum(chain.stages.count(state) for chain in self.chains) for state in STATES}
        rows = [{"label": c.label, "id": c.id, "stages": list(c.stages), "error": c.error} for c in self.chains]
        return {"experiment": self.experiment, "stages": counts, "chains": rows}

    def as_text(self) -> str:
        """One line a chain, then the sums."""
        width = max(len(chain.label) for chain in self.chains)
        lines = [f"{chain.label:<{width}}  {_counted(chain.stages)}" for chain in self.chains]
        lines += [f"FAILED {chain.label}: {chain.error}" for chain in self.chains if chain.error]
        counts = self.as_dict()["stages"]
        return "\n".join([*lines, ", ".join(f"{count} {state}" for state, count in counts.items() if count)])


def status_of(plan: Plan, execution: Execution) -> Status:
    """The state of every stage, from the store alone where the data are absent.

    A stage runs when its fit is leased, by whichever chain; it waits when an earlier fit or pick of its chain is; it
    failed when the chain's last attempt left an error; else it is missing.
    """
    progress = progress_of(plan, execution)
    leased = set(Store(execution.store).leased())
    return Status(
        plan.experiment.name, tuple(_chain_status(chain, progress, leased, execution) for chain in plan.chains)
    )


def _chain_status(chain: Chain, progress: Progress, leased: set[str], execution: Execution) -> ChainStatus:
    row = progress.stages.get(chain.id) or [StageStatus(stage, None) for stage in range(len(chain.fits))]
    error = "" if progress.done(chain) else Store(execution.store).last_error(chain.id)
    states: list[str] = []
    busy = f"pick-{progress.initial.get(chain.id, ('', False))[0]}" in leased
    for stage in row:
        running = f"fit-{stage.fit}" in leased
        if stage.fit_stored and stage.evaluated:
            states.append("stored")
        elif running:
            states.append("running")
        elif busy:
            states.append("waiting")
        else:
            states.append("failed" if error and "failed" not in states else "missing")
        busy = busy or running or f"pick-{stage.pick}" in leased
    return ChainStatus(chain.label, chain.id, tuple(states), "" if busy else error)


def _counted(states: tuple[str, ...]) -> str:
    return ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
