"""One run of an experiment: check everything, run what is missing, print the table, and conclude with a status."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pixelpick_ray import supervisor
from pixelpick_ray.checks import check_data
from pixelpick_ray.config.canonical import counted
from pixelpick_ray.config.command import typed
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.data.answers import Pending
from pixelpick_ray.data.datasets import open_dataset
from pixelpick_ray.errors import RunError, SpecError, naming
from pixelpick_ray.estimate import features_line, stages_line, summarise
from pixelpick_ray.events import Event
from pixelpick_ray.planning import Chain, Plan, Progress, claim_name, keep_warnings, make_plan, progress_of
from pixelpick_ray.runner.byproducts import ByProduct, warn
from pixelpick_ray.runner.people import People
from pixelpick_ray.search.design import Search, check_splits
from pixelpick_ray.search.found import copy_found, write_found
from pixelpick_ray.search.journal import Journal
from pixelpick_ray.search.overview import best_text, diverged_lines, fits_of, plan_text, state_line
from pixelpick_ray.store import Store, absolute_path, run_lease
from pixelpick_ray.supervisor import FAILED, GOES_ON, OK, STOPPED

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    `status` is 0 if everything is stored, 1 if something failed, and 3 if it was stopped or waits for people. `missing`
    gives the reasons by label of chain or sample; `trained` counts the stages trained in this run.
    """

    status: int
    missing: dict[str, str]
    trained: int


def begin(
    planned: Plan,
    search: Search | None,
    execution: Execution,
    console: Console,
    stop: "StopRequest",
    *,
    source: Path,
    local: bool,
    annotate: str,
    listeners: Sequence[Listener] = (),
) -> Outcome:
    """Check everything, claim the experiment's name in the store, and run what is missing.

    `source` is the experiment file, `annotate` the command that opens the annotation page. Raises SpecError or
    DataError before anything starts.
    """
    if local:
        from pixelpick_ray.runner.local import check_local

        if search is not None:
            raise SpecError("--local: a search runs on Ray Tune; leave out --local")
        check_local(execution)
    execution = _named(execution, planned.experiment if search is None else search.experiment)
    listening = stop.listening() if threading.current_thread() is threading.main_thread() else nullcontext()
    with listening:
        with naming(source.name):
            if search is not None:
                whole = search.experiment.dataset.model_copy(update={"held_out": None})
                check_splits(search, open_dataset(whole, execution.data_path).facts)
            warnings = prepare(planned, execution, console)
            if search is not None:
                search.check_images(execution.data_path)
        for line in warnings:
            console.print(f"warning: {line}", soft_wrap=True, markup=False)
        store = Store(execution.store)
        store.drop_dead_leases()
        claimed = planned if search is None else make_plan(search.experiment)
        claim_name(claimed, store)
        keep_warnings(claimed.experiment, store, warnings)
        if search is None:
            return run(planned, execution, console, stop, local=local, annotate=annotate, listeners=listeners)
        return run_search(search, execution, console, stop, source, listeners)


def prepare(planned: Plan, execution: Execution, console: Console) -> list[str]:
    """Download what is absent, check all that trials read, and build each network once; return data warnings.

    Networks are first built without weights, so that a wrong name is found before downloads. Raises SpecError or
    DataError.
    """
    from pixelpick_ray.models.backbones import fetch_weights
    from pixelpick_ray.models.segmentation import check_model

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done)

        models = {json.dumps(trial.model.as_input()): trial for trial in planned.trials}
        for trial in models.values():
            unloaded = trial.model.model_copy(update={"pretrained": "none"})
            check_model(unloaded, num_classes=2, data_path=execution.data_path, seed=0)
        for spec in {json.dumps(trial.dataset.as_input()): trial.dataset for trial in planned.trials}.values():
            open_dataset(spec, execution.data_path).fetch(partial(show, f"fetching {spec.name} (bytes)"))
        for trial in models.values():
            fetch_weights(trial.model, execution.data_path)
        warnings = check_data(planned.experiment, [chain.trial for chain in planned.chains], execution, show)
    for trial in models.values():
        num_classes = open_dataset(trial.dataset, execution.data_path).facts.num_classes
        check_model(trial.model, num_classes=num_classes, data_path=execution.data_path, seed=trial.seed)
    return warnings


def run(
    planned: Plan,
    execution: Execution,
    console: Console,
    stop: "StopRequest",
    *,
    local: bool,
    annotate: str,
    listeners: Sequence[Listener] = (),
) -> Outcome:
    """Run what is missing, print the result table, and return how the run ended; `listeners` get every event.

    Chains that wait for people, who answer with the command `annotate`, are left or, with ``execution.wait``, continued
    once people have answered.
    """
    store, execution = Store(execution.store), _named(execution, planned.experiment)
    damaged_before = set(store.damaged())
    progress = progress_of(planned, execution)
    chains = [chain for chain in planned.chains if not progress.done(chain)]
    errors: dict[str, str] = {}
    trained = 0
    people = People(planned, execution, annotate, partial(console.print, soft_wrap=True, markup=False), stop)
    if chains and not stop():
        summary = summarise(planned, progress, execution)
        console.print(f"{planned.sharing}; {stages_line(summary)}", soft_wrap=True)
        if line := features_line(summary["features_bytes"], execution):
            console.print(line, soft_wrap=True)
        with _announced(execution, store):
            errors, trained = _run_chains(
                planned, chains, execution, console, stop, people, local=local, listeners=listeners
            )
        progress = progress_of(planned, execution)
    missing = [chain for chain in planned.chains if not progress.done(chain)]
    if not missing:
        _drop_weights(planned, progress, execution)
    _print_result(planned, execution, console)
    for chain in planned.chains:
        if why := progress.diverged(chain):
            console.print(f"DIVERGED {chain.label}: {why}", soft_wrap=True, markup=False)
    for line in sorted(set(store.damaged()) - damaged_before):
        console.print(f"DAMAGED {line}", soft_wrap=True, markup=False)
    console.print(f"{planned.sharing}; trained now: {trained}", soft_wrap=True)
    asking = people.pending([chain for chain in missing if chain.id not in errors])
    if any(one.missing for one in asking.values()) and not stop.asked:
        console.print(people.request(asking), soft_wrap=True, markup=False)
        _tell_job(people.request(asking))
    status, whys = _conclude(missing, errors, asking, stop, console)
    return Outcome(status, whys, trained)


def run_search(
    search: Search,
    execution: Execution,
    console: Console,
    stop: "StopRequest",
    source: Path,
    listeners: Sequence[Listener] = (),
) -> Outcome:
    """Run what a search still lacks, print its best samples, write the experiment it found, and return how it ended.

    `source` is the search's file; `listeners` get every event. Raises RunError if another process is running the
    search, because only one may write its journal.
    """
    store, execution = Store(execution.store), _named(execution, search.experiment)
    damaged_before = set(store.damaged())
    with _alone(search, store):
        journal = Journal(store, search)
        errors: dict[str, str] = {}
        trained = 0
        if not journal.is_complete(search.spec.size) and not stop():
            console.print(plan_text(search, journal), soft_wrap=True)
            with _announced(execution, store):
                errors, trained = _run_samples(search, journal, execution, console, stop, listeners)
        is_settled = journal.is_settled(search.spec.size)
        if is_settled:
            _drop_search_weights(journal, execution)
        best = journal.best()
        for line in sorted(set(store.damaged()) - damaged_before):
            console.print(f"DAMAGED {line}", soft_wrap=True, markup=False)
        for line in diverged_lines(journal):
            console.print(line, soft_wrap=True, markup=False)
        if best is not None:
            console.print(best_text(search, journal), soft_wrap=True, markup=False)
        console.print(f"{state_line(search, journal)}; trained now: {trained}", soft_wrap=True)
        if is_settled and best is not None:
            kept = write_found(search, journal, best, source, store)
            console.print(f"found: {kept}", soft_wrap=True, markup=False)
            path, problem = copy_found(search, journal, best, source)
            reported = search.experiment.evaluate.report
            console.print(
                f"{problem}; run `report` where the folder is writable, or copy the file from the store"
                if problem
                else f"a copy, to run on {reported}: {typed()} run {_shown(path)}",
                soft_wrap=True,
                markup=False,
            )
    return Outcome(_conclude_search(journal.is_complete(search.spec.size), errors, stop, console), errors, trained)


def _alone(search: Search, store: Store) -> AbstractContextManager[Any]:
    lease = store.take("search", search.experiment.identity())
    if lease is None:
        holder = store.leased().get(f"search-{search.experiment.identity()}", "another process")
        raise RunError(
            f"{search.experiment.name}: {holder} is already running this search; wait for it to finish, or stop it"
        )
    return lease


def _run_samples(
    search: Search,
    journal: Journal,
    execution: Execution,
    console: Console,
    stop: "StopRequest",
    listeners: Sequence[Listener],
) -> tuple[dict[str, str], int]:
    from pixelpick_ray.runner.search import run as run_samples
    from pixelpick_ray.runner.search_progress import SearchProgress

    with SearchProgress(search, journal, console) as live, _cluster(execution), stop.awaited():
        errors = run_samples(search, journal, execution, _all_of(live, listeners), stop)
    return errors, live.num_trained


def _drop_search_weights(journal: Journal, execution: Execution) -> None:
    """Drop weights and saved progress of trainings, which nothing needs after the last sample."""
    store = Store(execution.store)
    for key in {key for sample in journal.samples for key in fits_of(sample)}:
        store.drop_unfinished(key)
        if execution.keep_weights == "needed":
            store.drop_weights(key, execution.run)


def _conclude_search(is_complete: bool, errors: dict[str, str], stop: "StopRequest", console: Console) -> int:
    for name, why in errors.items():
        console.print(f"MISSING {name}: {why}", soft_wrap=True, markup=False)
    if is_complete:
        return OK
    if stop.asked and not errors:
        console.print(GOES_ON)
        return STOPPED
    return FAILED


def _named(execution: Execution, experiment: Experiment) -> Execution:
    """The execution with a name for its run, also used for its lease; several runs of an experiment may be alive."""
    return replace(execution, run=execution.run or f"{run_lease(experiment)}{time.time_ns()}")


def _announced(execution: Execution, store: Store) -> AbstractContextManager[Any]:
    """Lease that shows that this run is alive."""
    return store.take("run", execution.run) or nullcontext()


def _run_chains(
    planned: Plan,
    chains: list[Chain],
    execution: Execution,
    console: Console,
    stop: "StopRequest",
    people: People,
    *,
    local: bool,
    listeners: Sequence[Listener],
) -> tuple[dict[str, str], int]:
    from pixelpick_ray.runner.progress import ChainProgress
    from pixelpick_ray.runner.tensorboard import TensorBoard

    if local:
        from pixelpick_ray.runner.local import run as run_chains
    else:
        from pixelpick_ray.runner.tune import run as run_chains
    board = ByProduct("TensorBoard files", TensorBoard(planned, execution))
    live = ChainProgress(planned, chains, console, [board, *listeners])
    with live, nullcontext() if local else _cluster(execution), stop.awaited():
        errors = run_chains(planned, chains, execution, live, stop, people)
    console.print(f"TensorBoard: tensorboard --logdir {_shown(execution.runs_path)}", markup=False, soft_wrap=True)
    return errors, live.num_trained


@contextmanager
def _cluster(execution: Execution) -> Iterator[None]:
    """Join the Ray cluster of a run, after checking that all its nodes see the store."""
    from pixelpick_ray.runner.cluster import joined
    from pixelpick_ray.runner.survey import check_store

    with joined(execution):
        check_store(execution)
        yield


def _conclude(
    missing: list[Chain],
    errors: dict[str, str],
    asking: dict[str, Pending],
    stop: "StopRequest",
    console: Console,
) -> tuple[int, dict[str, str]]:
    """Exit status, and why each chain is missing."""
    whys = {chain: _why(one) for chain, one in asking.items()} | errors
    early = "stopped early" if stop.asked else "not finished"
    by_label = {chain.label: whys.get(chain.id, early) for chain in missing}
    for label, why in by_label.items():
        console.print(f"MISSING {label}: {why}", soft_wrap=True, markup=False)
    if not missing:
        return OK, by_label
    if not errors and asking and all(chain.id in asking for chain in missing):
        return STOPPED, by_label
    if stop.asked and not any(chain.id in errors for chain in missing):
        console.print(GOES_ON)
        return STOPPED, by_label
    return FAILED, by_label


def _all_of(first: Listener, others: Sequence[Listener]) -> Listener:
    """Listener that passes events on to all."""

    def hear(event: Event) -> None:
        for listener in (first, *others):
            listener(event)

    return hear


def _tell_job(request: str) -> None:
    """Tell a batch job (cluster/slurm) that it need not run again before people have answered."""
    folder = os.environ.get("PIXELPICK_JOB")
    if folder is not None and os.path.isdir(folder):
        try:
            Path(folder, "people").write_text(f"{request}\n", encoding="utf-8")
        except OSError as error:
            warn(f"{error}; the batch job may be requeued before people have answered")


def _why(pending: Pending) -> str:
    if pending.missing:
        return f"waiting for {pending.missing} of {counted(pending.asked, 'answer')}"
    return "people have just answered; run the same command again to continue"


def _print_result(planned: Plan, execution: Execution, console: Console) -> None:
    from pixelpick_ray.report.rows import load_results
    from pixelpick_ray.report.tables import terminal_table

    results = load_results(Store(execution.store), [planned.experiment])
    console.print(terminal_table(results), markup=False, soft_wrap=True)


def _drop_weights(planned: Plan, progress: Progress, execution: Execution) -> None:
    """Drop the weights that this run kept for its other chains, after the last chain."""
    store = Store(execution.store)
    for chain in planned.chains:
        for stage in progress.row(chain):
            if stage.fit and not execution.keeps_weights(chain.trial, stage.stage):
                store.drop_weights(stage.fit, execution.run)


class StopRequest:
    """Request to stop, after a time limit or on SIGINT, SIGTERM or SIGHUP.

    While chains run, a signal only sets the request, so that the runner can end them; otherwise it ends the process.
    """

    def __init__(self, limit_seconds: float | None) -> None:
        self._deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
        self._signalled: float | None = None
        self._is_awaited = False

    @property
    def asked(self) -> bool:
        """Whether a stop was requested."""
        return self._signalled is not None or (self._deadline is not None and time.monotonic() > self._deadline)

    def __call__(self) -> bool:
        return self.asked

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Mark a block of code that checks for the request."""
        self._is_awaited = True
        try:
            yield
        finally:
            self._is_awaited = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Treat signals as the request during the block; a second one, a moment later, ends the process at once."""
        before = {number: signal.getsignal(number) for number in supervisor.heeded()}
        for number in before:
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signalled is not None:
            if time.monotonic() - self._signalled > supervisor.REPEAT_SECONDS:
                os._exit(STOPPED)
            return
        self._signalled = time.monotonic()
        if not self._is_awaited and supervisor.is_supervised():
            supervisor.end(STOPPED, GOES_ON)  # reliable, whereas C++ code that calls Python may swallow an exception
        supervisor.tell("stopping; interrupt again to stop at once" if self._is_awaited else GOES_ON)
        if not self._is_awaited:
            sys.exit(STOPPED)


def _shown(path: Path) -> str:
    """Shortest text of a path, relative to the working directory."""
    try:
        here = absolute_path(Path())
        return str(path.relative_to(here) if path.is_relative_to(here) else path)
    except OSError:  # the working directory was removed meanwhile
        return str(path)
