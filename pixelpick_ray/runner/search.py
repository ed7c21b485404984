"""Hyperparameter search on Ray Tune, with one Tune trial per sample, driven by the journal.

Proposals of searchers and decisions of schedulers are in the journal before they take effect. Resuming a search
replays the journal to new ones: samples are issued in the same order and report what is known of them at once.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.trial import Trial as TrialSpec
from pixelpick_ray.events import ChainDone, ChainFailed, Diverged, Event, LevelReached, SampleStopped, encode
from pixelpick_ray.runner.ranks import ranks_of
from pixelpick_ray.runner.searchers import RESOURCE, SCORE, Proposer, make_proposer, make_scheduler
from pixelpick_ray.runner.tune import Relay, attempt, placement_here, places_here, run_trials
from pixelpick_ray.search.design import Search
from pixelpick_ray.search.journal import OWN, Journal, LevelReport, Sample
from pixelpick_ray.search.sample import RunTrial, run_sample
from pixelpick_ray.store import Store

WORST = 0.0  # the score of a diverged sample


def index_of(name: str) -> int:
    """Return the number of a sample from its label."""
    return int(name.rpartition(" ")[2])


def run(
    search: Search,
    journal: Journal,
    execution: Execution,
    on_event: Callable[[Event], None],
    stop: Callable[[], bool],
) -> dict[str, str]:
    """Run what a search still lacks on the joined cluster; return the error of each failed sample by label.

    Raises SpecError if the cluster can never hold one trial, RunError if the cluster is lost, StoreError if the journal
    cannot be written.
    """

    def hear(event: Event) -> None:
        if isinstance(event, ChainFailed) and event.final:
            journal.fail(index_of(event.chain), event.message)
        elif isinstance(event, Diverged) and not journal.samples[index_of(event.chain)].diverged:
            journal.diverge(index_of(event.chain), event.message)
        on_event(event)

    resources = placement_here(execution)
    relay = Relay(hear, execution.max_failures, Store(execution.store), prefix=f"{search.experiment.name} ")
    while not stop():
        relay.begin()
        samples = max(search.spec.size, len(journal.samples))
        proposals = Proposals(search, journal, samples, partial(_room, execution))
        decisions = Decisions(search, journal, on_event)
        trainable = tune.with_parameters(_trial, search=search, execution=execution)
        try:
            run_trials(trainable, resources, proposals, samples, relay, stop, scheduler=decisions)
        except Exception:
            if journal.trouble is not None:  # Tune wraps it in its own error
                raise journal.trouble from None
            raise
        if not relay.lost:
            break
    return relay.errors


def _room(execution: Execution) -> int:
    """How many samples may be issued at the same time: those that can run, and one in reserve.

    Any more would be proposed without knowing the outcome of those running.
    """
    room = places_here(execution) + 1
    return min(room, execution.max_concurrent or room)


class Proposals(Searcher):
    """Issues `samples`, first those of the journal, then new ones, at most `room()` at the same time."""

    def __init__(self, search: Search, journal: Journal, samples: int, room: Callable[[], int]) -> None:
        super().__init__(metric=None, mode=None)
        self._search, self._journal, self._samples, self._room = search, journal, samples, room
        self._known = len(journal.samples)
        self._proposer: Proposer = make_proposer(search, [sample.values for sample in journal.samples])
        self._issued: dict[str, int] = {}
        self._live: set[str] = set()

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        index = len(self._issued)
        if index >= self._samples:
            return str(Searcher.FINISHED)
        if len(self._live) >= self._room():
            return None
        values = self._proposer.propose(trial_id, index)
        if values is None:
            return None
        sample = self._journal.samples[index] if index < self._known else self._issue(index, values)
        self._issued[trial_id] = index
        self._live.add(trial_id)
        return {"name": sample.label, "sample": index, "values": dict(sample.values), **told(sample, heard=0)}

    def _issue(self, index: int, values: Mapping[str, Any]) -> Sample:
        own = index == 0 and values == self._search.own_values and self._search.spec.searcher != "grid"
        return self._journal.issue(values, OWN if own else self._search.spec.searcher)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "report" in result:
            self._proposer.learn(trial_id, result["level"], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._live.discard(trial_id)
        sample = self._journal.samples[self._issued[trial_id]]
        if sample.diverged:
            self._proposer.conclude(trial_id, WORST, {SCORE: WORST, "training_iteration": len(sample.reports)})
            return
        score = sample.reports[-1].score if self._journal.is_finished(sample) else None
        last = sample.reports[-1] if sample.reports and (score is not None or sample.stopped) else None
        told_last = {} if last is None else {SCORE: last.score, "training_iteration": len(sample.reports) - 1}
        self._proposer.conclude(trial_id, score, told_last)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the journal is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class Decisions(TrialScheduler):
    """A scheduler whose reports and stops are in the journal before they take effect.

    Decisions in the journal are final, even if a scheduler that gets reports in another order would decide otherwise.
    """

    def __init__(self, search: Search, journal: Journal, on_event: Callable[[Event], None]) -> None:
        self._search, self._journal, self._on_event = search, journal, on_event
        self._inner = make_scheduler(search)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._inner.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._inner.on_trial_error(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing: all reports are known, and the last result is not a report."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._inner.on_trial_remove(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "report" not in result or result["level"] < trial.config["heard"]:
            return str(TrialScheduler.CONTINUE)
        level, sample = result["level"], self._journal.samples[trial.config["sample"]]
        is_new = level == len(sample.reports)
        if is_new:
            sample = self._journal.report(sample.index, LevelReport.of(json.loads(result["report"])))
        self._on_event(_heard(self._search, sample, level, computed=is_new))
        trial.config.update(told(sample, heard=level + 1))
        decision = str(self._inner.on_trial_result(tune_controller, trial, result))
        is_last_word = level + 1 == len(sample.reports)
        if not is_last_word or self._journal.is_finished(sample):
            return str(TrialScheduler.CONTINUE)
        if sample.stopped:
            return str(TrialScheduler.STOP)
        if decision == TrialScheduler.CONTINUE or sample.is_own:  # the baseline of the others
            return str(TrialScheduler.CONTINUE)
        self._record_stop(sample)
        return str(TrialScheduler.STOP)

    def _record_stop(self, sample: Sample) -> None:
        level, mine = self._search.levels[len(sample.reports) - 1], sample.reports[-1].score
        there = [
            one.reports[len(sample.reports) - 1].score
            for one in self._journal.samples
            if len(one.reports) >= len(sample.reports)
        ]
        rank = 1 + sum(score > mine for score in there)
        why = f"{self._search.spec.scheduler}: rank {rank} of the {len(there)} samples that had reached {level.label}"
        self._journal.stop(sample.index, why)
        self._on_event(SampleStopped(sample.label, why))

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        return self._inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        return str(self._inner.debug_string())

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as in Relay


def _heard(search: Search, sample: Sample, level: int, *, computed: bool) -> Event:
    report = sample.reports[level]
    return LevelReached(sample.label, search.levels[level].label, report.score, report.seconds, computed)


def told(sample: Sample, heard: int) -> dict[str, Any]:
    """Return a trial's settings from its sample: the reports, and how many the scheduler has received in this run."""
    reports = [asdict(report) for report in sample.reports]
    return {"reports": reports, "heard": heard, "diverged": sample.diverged}


def _trial(config: dict[str, Any], search: Search, execution: Execution) -> None:
    """Run one sample, in the process of its Tune trial."""
    name, reports = config["name"], [LevelReport.of(tree) for tree in config["reports"]]

    def send(event: Event) -> None:
        tune.report({"event": encode(replace(event, chain=name))})

    def work() -> None:
        for position, report in enumerate(reports[config["heard"] :], start=config["heard"]):
            _tell(search, position, report)
        if config["diverged"]:
            send(Diverged(name, 0, config["diverged"]))
            return
        if len(reports) < len(search.levels):
            with ranks_of(search.judged, execution) as run_trial:
                run, on_report = _overheard(run_trial, send), partial(_tell, search)
                if not run_sample(search, config["values"], reports, run=run, on_report=on_report):
                    return
        send(ChainDone(name))

    attempt(work, config, f"{search.experiment.name} {name}", execution, send)


def _overheard(run_trial: RunTrial, send: Callable[[Event], None]) -> RunTrial:
    """Wrap `run_trial` so that `send` gets every event first."""

    def run(trial: TrialSpec, keep_stages: frozenset[int], on_event: Callable[[Event], None]) -> None:
        def hear(event: Event) -> None:
            send(event)
            on_event(event)

        run_trial(trial, keep_stages, hear)

    return run


def _tell(search: Search, position: int, report: LevelReport) -> None:
    """Report the measurements of a level to the scheduler; does not return if that ends the trial."""
    resource = search.levels[position].resource
    tune.report({"report": json.dumps(asdict(report)), "level": position, RESOURCE: resource, SCORE: report.score})
