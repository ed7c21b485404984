"""Overview of a search: its size, its progress, and the best samples so far."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixelpick_ray.config.search import value_text
from pixelpick_ray.search.design import Search
from pixelpick_ray.search.journal import Journal, Sample
from pixelpick_ray.store import Store, run_lease

SHOWN = 5  # best samples to print
STATES = ("finished", "stopped", "running", "waiting", "missing", "failed", "diverged")


def plan_figures(search: Search, journal: Journal) -> dict[str, Any]:
    """Return what `plan --json` prints for a search: the usual figures, without early stopping, and some of its own."""
    size, seeds, stages = search.spec.size, len(search.seeds), search.num_stages
    budgets = [level.budget for level in search.levels if level.epoch is None]
    alone = sum(search.trial({}, seed=search.seeds[0], budget=budget).num_stages for budget in budgets)
    ends = [level.epoch is None for level in search.levels]
    trained = {fit for one in journal.samples for fit in fits_of(one) if ends[len(one.reports) - 1]}
    return {
        "experiment": search.experiment.name,
        "trials": size * seeds * len(budgets),
        "chains": size * seeds,
        "fits": size * seeds * stages,
        "fits_unshared": size * seeds * alone,
        "picks": 0 if budgets == ["full"] else size * seeds * stages,
        "stored_fits": len(trained),
        "stored_picks": None,
        "samples": size,
        "levels": [level.label for level in search.levels],
        "split": search.split,
        "metric": search.metric_text,
        "searcher": search.spec.searcher,
        "scheduler": search.spec.scheduler,
        "space": {path: domain.in_words() for path, domain in search.spec.space.items()},
        "samples_by_state": counts(search, journal),
    }


def plan_text(search: Search, journal: Journal) -> str:
    """Return what `plan` prints for a search."""
    spec, figures = search.spec, plan_figures(search, journal)
    return "\n".join(
        [
            *(f"{path}: {domain.in_words()}" for path, domain in spec.space.items()),
            f"{spec.size} samples by {spec.searcher}{_first(search)}; seeds {', '.join(map(str, search.seeds))}",
            f"judged by {search.metric_text} on {search.split}, which is not reported",
            f"scheduler {spec.scheduler} after {', '.join(level.label for level in search.levels)}",
            f"{figures['fits']} stages to train if no sample is stopped early; {figures['stored_fits']} are stored",
            state_line(search, journal),
        ]
    )


def _first(search: Search) -> str:
    """Say what the first sample is."""
    if search.spec.searcher == "grid":
        return ""
    is_own = search.own_values is not None
    return ", first the file's own values" if is_own else "; the file's own values are not all in the space"


def fits_of(sample: Sample) -> tuple[str, ...]:
    """Return the keys of a sample's trainings up to its last report."""
    return tuple(key for keys in sample.reports[-1].fits.values() for key in keys) if sample.reports else ()


def state_of(journal: Journal, sample: Sample, *, alive: bool) -> str:
    """Return the state of a sample (see STATES); unless over, it is running if a run is alive."""
    if journal.is_finished(sample):
        return "finished"
    if sample.stopped:
        return "stopped"
    if sample.diverged:
        return "diverged"
    return "running" if alive else "failed" if sample.error else "missing"


def counts(search: Search, journal: Journal, *, alive: bool = False) -> dict[str, int]:
    """Count samples by state; those not yet issued are waiting if a run is alive, else missing."""
    states = [state_of(journal, sample, alive=alive) for sample in journal.samples]
    states += ["waiting" if alive else "missing"] * (search.spec.size - len(states))
    return {state: states.count(state) for state in STATES}


def state_line(search: Search, journal: Journal, *, alive: bool = False) -> str:
    """Return the numbers of samples by state as one line."""
    found = ", ".join(f"{number} {state}" for state, number in counts(search, journal, alive=alive).items() if number)
    return f"samples: {found}"


def values_text(values: Mapping[str, Any]) -> str:
    """Return a configuration as one line, with paths shortened to their last name if unambiguous."""
    last = [path.rpartition(".")[2] for path in values]
    names = [name if last.count(name) == 1 else path for name, path in zip(last, values, strict=True)]
    return ", ".join(f"{name}={value_text(value)}" for name, value in zip(names, values.values(), strict=True))


def best_text(search: Search, journal: Journal) -> str:
    """List the best finished samples, and always the file's own configuration if it is finished."""
    finished = [sample for sample in journal.samples if journal.is_finished(sample)]
    ranked = sorted(finished, key=lambda sample: (-sample.reports[-1].score, sample.index))
    shown = [(rank, one) for rank, one in enumerate(ranked, start=1) if rank <= SHOWN or one.is_own]
    lines = [
        f"{rank:>3}. {100 * one.reports[-1].score:5.1f} %  {one.label}{' (the file)' if one.is_own else ''}: "
        f"{values_text(one.values)}"
        for rank, one in shown
    ]
    return "\n".join([f"{search.metric_text} on {search.split}, mean of seeds {list(search.seeds)}", *lines])


def diverged_lines(journal: Journal) -> list[str]:
    """List the samples whose training diverged, and how."""
    return [
        f"DIVERGED {one.label} ({values_text(one.values)}): {one.diverged}" for one in journal.samples if one.diverged
    ]


@dataclass(frozen=True)
class SearchStatus:
    """The state of every sample of a search."""

    search: Search
    journal: Journal
    alive: bool
    damaged: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the status as JSON-ready values."""
        best = self.journal.best()
        return {
            "experiment": self.search.experiment.name,
            "samples": counts(self.search, self.journal, alive=self.alive),
            "rows": [self._row(sample) for sample in self.journal.samples],
            "best": None if best is None else best.index,
            "damaged": list(self.damaged),
        }

    def _row(self, sample: Sample) -> dict[str, Any]:
        return {
            "sample": sample.index,
            "origin": sample.origin,
            "values": dict(sample.values),
            "state": state_of(self.journal, sample, alive=self.alive),
            "scores": [report.score for report in sample.reports],
            "stopped": sample.stopped,
            "error": sample.error,
            "diverged": sample.diverged,
        }

    def as_text(self) -> str:
        """Return one line per sample, then the best ones and the totals."""
        lines = [self._line(sample) for sample in self.journal.samples]
        lines += [f"FAILED {one.label}: {one.error}" for one in self.journal.samples if one.error]
        lines += diverged_lines(self.journal)
        lines += [f"DAMAGED {line}" for line in self.damaged]
        lines += [best_text(self.search, self.journal)] if self.journal.best() else []
        return "\n".join([*lines, state_line(self.search, self.journal, alive=self.alive)])

    def _line(self, sample: Sample) -> str:
        scores = "  ".join(f"{100 * report.score:.1f}" for report in sample.reports)
        state = state_of(self.journal, sample, alive=self.alive)
        why = f" by {sample.stopped}" if sample.stopped else ""
        return f"{sample.label}: {scores or '-'} ({values_text(sample.values)}) {state}{why}"


def search_status(search: Search, store: Store) -> SearchStatus:
    """Determine the state of every sample, from the store alone."""
    prefix = f"run-{run_lease(search.experiment)}"
    alive = any(name.startswith(prefix) for name in store.leased())
    return SearchStatus(search, Journal(store, search), alive, tuple(store.damaged()))
