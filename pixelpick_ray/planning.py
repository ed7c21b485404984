"""Plans: chains of trials, what they share, what is stored and what a run would train. Imports neither torch nor ray.

>>> plan = make_plan(load_experiment(path))
>>> progress = progress_of(plan, execution)
>>> progress.fits_to_train
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from typing import Any

from pixelpick_ray.checks import check_trial, splits_in_use
from pixelpick_ray.config import parts
from pixelpick_ray.config.canonical import brief, counted, digest
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.trial import Budget, DatasetSpec, SizeSpec, Trial
from pixelpick_ray.data.answers import Waiting
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.data.datasets import known_facts, open_dataset, training_split
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.weights import normalisation, weights_digest
from pixelpick_ray.errors import DataError, SpecError, StoreError
from pixelpick_ray.loop import walk
from pixelpick_ray.store import Store, paths
from pixelpick_ray.store.records import (
    ChainRecord,
    DataWarnings,
    ExperimentRecord,
    read_chain,
    read_diverged,
    write_source,
)
from pixelpick_ray.tasks import PIXELS, Ask, Evaluate, FirstPixels, Fit, Pick, Task

IN_LABEL = {"seed", "budget", "acquire.strategy", "model.backbone"}


@dataclass(frozen=True)
class Chain:
    """A trial together with all trials that are prefixes of it.

    ``fits`` and ``picks`` identify tasks by everything they depend on, as far as it is known without data; chains share
    tasks with equal identities. ``picks`` begins with the first pixels.
    """

    trial: Trial
    id: str
    budgets: tuple[Budget, ...]
    fits: tuple[str, ...]
    picks: tuple[str, ...]
    setting: str = ""

    @property
    def label(self) -> str:
        """Short name for display, made of what most grids vary."""
        kind = "full" if self.trial.is_fully_supervised else self.trial.acquire.strategy
        return f"{self.trial.model.backbone} {kind} seed {self.trial.seed}{self.setting}"

    def shared_fits(self, other: "Chain") -> int:
        """Number of fits the two chains share; these are always the first ones."""
        pairs = zip(self.fits, other.fits, strict=False)
        return next(
            (at for at, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(self.fits), len(other.fits))
        )


@dataclass(frozen=True)
class Plan:
    """The trials and chains of an experiment, before anything runs."""

    experiment: Experiment
    trials: tuple[Trial, ...]
    chains: tuple[Chain, ...]

    @property
    def num_fits(self) -> int:
        """Number of distinct fits over all chains."""
        return len({fit for chain in self.chains for fit in chain.fits})

    @property
    def num_fits_unshared(self) -> int:
        """Number of fits that the trials would train if each ran alone."""
        return sum(trial.num_stages for trial in self.trials)

    @property
    def num_picks(self) -> int:
        """Number of distinct picks over all chains, initial pixels included."""
        return len({pick for chain in self.chains for pick in chain.picks})

    @property
    def answers_per_image(self) -> int:
        """Pixels per image that people are asked to label; fewer if chains happen to ask for the same ones."""
        asked: dict[str, int] = {}
        for chain in self.chains:
            if chain.trial.asks_people:
                acquire = chain.trial.acquire
                asked |= dict.fromkeys(chain.picks, acquire.pixels_per_stage)
                asked[chain.picks[0]] = acquire.initial_pixels
        return sum(asked.values())

    @property
    def code(self) -> tuple[str, ...]:
        """External code that the trials use, one line per part."""
        found = dict.fromkeys(one for chain in self.chains for one in chain.trial.external_parts)
        return tuple(parts.described(kind, name) for kind, name in found)

    @property
    def sharing(self) -> str:
        """One sentence on how much work sharing saves."""
        saved = self.num_fits_unshared - self.num_fits
        return (
            f"{counted(len(self.trials), 'trial')} in {counted(len(self.chains), 'chain')}: "
            f"{counted(self.num_fits, 'stage')}; run one by one, the trials would train {self.num_fits_unshared}; "
            f"{saved} {'is' if saved == 1 else 'are'} shared"
        )

    def stages_to_keep(self, chain: Chain) -> frozenset[int]:
        """Return the stages whose weights another chain may need because it shares the fit but picks differently."""
        others = [other for other in self.chains if other.id != chain.id]
        return frozenset(
            stage
            for stage, fit in enumerate(chain.fits)
            if any(stage < len(other.fits) and other.fits[stage] == fit for other in others)
        )


def make_plan(experiment: Experiment, trials: Sequence[Trial] | None = None) -> Plan:
    """Merge trials, by default those of the grid, into chains.

    Needs no data. Raises SpecError for an unknown data set, split, strategy or network.
    """
    trials = tuple(experiment.trials() if trials is None else trials)
    for trial in trials:
        check_trial(experiment, trial)
    longest: dict[str, Trial] = {}
    budgets: dict[str, list[Budget]] = {}
    for trial in trials:
        key = trial.chain_id
        budgets.setdefault(key, []).append(trial.budget)
        if key not in longest or trial.num_stages > longest[key].num_stages:
            longest[key] = trial
    varied = sorted({path for grid in experiment.grid for path in grid} - IN_LABEL)
    chains = (
        _chain(experiment, t, sorted(budgets[key], key=_order), _setting(t, varied)) for key, t in longest.items()
    )
    return Plan(experiment, trials, tuple(chains))


def _order(budget: Budget) -> int:
    return 0 if budget == "full" else budget


def _chain(experiment: Experiment, trial: Trial, budgets: Sequence[Budget], setting: str) -> Chain:
    names, path = _Names(), trial.dataset.path or ""
    splits = {experiment.evaluate.split_of(name) for name in experiment.evaluate.splits}
    training = trial.dataset.split or ""
    normalise = normalisation(trial.model, known_facts(trial.dataset.name))
    unknown = Source(dict.fromkeys((*splits, training), path), training, None, normalise)
    walk(trial, unknown, experiment.evaluate, names)
    return Chain(trial, trial.chain_id, tuple(budgets), tuple(names.fits), tuple(names.picks), setting)


def _setting(trial: Trial, varied: list[str]) -> str:
    """Label suffix for less common grid fields, such as ", train.optimizer.lr=0.01"; absent options are left out."""
    tree = trial.as_input()
    given = ((path, value_at(tree, path)) for path in varied)
    return "".join(f", {path}={brief(json.dumps(value))}" for path, value in given if value is not None)


def value_at(tree: Any, path: str) -> Any:
    """Return the value at a dotted path, or None if there is none."""
    for name in path.split("."):
        tree = (tree or {}).get(name)
    return tree


@dataclass(frozen=True)
class _Expected:
    """Labels as far as they are known: their pixels, their digest, or just the picks that will provide them."""

    identity: str
    is_known: bool = False
    pixels: LabelledPixels | None = None

    def digest(self) -> str:
        """Return their identity."""
        return self.identity

    def add(self, new: "_Expected") -> "_Expected":
        """Return these labels joined with `new`; a known `new` without pixels already stands for all labels so far."""
        if self.pixels is not None and new.pixels is not None:
            together = self.pixels.add(new.pixels)
            return _Expected(together.digest(), True, together)
        return new if new.is_known else _Expected(digest([self.identity, new.identity]))


class _Names:
    """Visitor that identifies the tasks of a chain as far as possible without data."""

    def __init__(self) -> None:
        self.fits: list[str] = []
        self.picks: list[str] = []

    def pixels(self, task: FirstPixels | Pick) -> _Expected:
        """Return a placeholder for the labels."""
        self.picks.append(task.key)
        return _Expected(task.key)

    def make(self, task: Fit | Evaluate) -> None:
        """Note the key of a fit; evaluations follow from it."""
        if isinstance(task, Fit):
            self.fits.append(task.key)

    def stage_done(self, fit: Fit) -> None:
        """Do nothing."""

    def release(self, fit: Fit) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class StageStatus:
    """How much of one stage of a chain is stored.

    ``identity`` identifies its fit within the plan; ``fit`` is its key, None if not known yet. ``to_train``: a run
    would train it, perhaps again for weights or measurements that only training yields. ``must_wait``: people have to
    answer first. ``diverged``: how its training, or that of an earlier stage, diverged.
    """

    stage: int
    identity: str
    fit: str | None
    fit_stored: bool = False
    evaluated: bool = False
    pick: str | None = None
    pick_stored: bool = False
    to_train: bool = True
    must_wait: bool = False
    diverged: str = ""


@dataclass(frozen=True)
class Progress:
    """How much of a plan is stored; chains whose keys neither data nor a record gives are absent.

    ``recorded`` are the chains whose records and image descriptions are complete; ``damaged`` lists damaged records.
    ``known`` is False if no chain's keys are known.
    """

    plan: Plan
    stages: dict[str, list[StageStatus]] = field(default_factory=dict)
    initial: dict[str, tuple[str, bool]] = field(default_factory=dict)
    recorded: frozenset[str] = frozenset()
    damaged: tuple[str, ...] = ()
    known: bool = True

    def row(self, chain: Chain) -> list[StageStatus]:
        """Return the stages of a chain; if nothing is known about it, all are to be trained."""
        asks = chain.trial.asks_people
        return self.stages.get(chain.id) or [
            StageStatus(stage, identity, None, must_wait=asks) for stage, identity in enumerate(chain.fits)
        ]

    @property
    def stored_fits(self) -> int | None:
        """Number of distinct stored fits; None if unknown."""
        return len({s.fit for row in self.stages.values() for s in row if s.fit_stored}) if self.known else None

    @property
    def stored_picks(self) -> int | None:
        """Number of distinct stored picks, first pixels included; None if unknown."""
        picks = {s.pick for row in self.stages.values() for s in row if s.pick_stored}
        first = {key for key, stored in self.initial.values() if stored}
        return len(picks | first) if self.known else None

    @property
    def to_train(self) -> dict[str, tuple[StageStatus, Trial]]:
        """Distinct fits to train by identity, each with a stage that needs it and its trial."""
        found: dict[str, tuple[StageStatus, Trial]] = {}
        for chain in self.plan.chains:
            for stage in self.row(chain):
                before = found.get(stage.identity)
                if stage.to_train and (before is None or before[0].must_wait):
                    found[stage.identity] = stage, chain.trial
        return found

    def done(self, chain: Chain) -> bool:
        """Whether everything a chain asks for is stored, along with all that a report needs."""
        row, (_, first) = self.stages.get(chain.id, []), self.initial.get(chain.id, ("", True))
        picked = first and all(stage.pick_stored for stage in row if stage.pick)
        stored = all(s.diverged or (s.fit_stored and s.evaluated and not s.to_train) for s in row)
        return bool(row) and picked and stored and chain.id in self.recorded

    def diverged(self, chain: Chain) -> str:
        """How the training that ends the chain for good diverged; empty if none did."""
        return next((stage.diverged for stage in self.stages.get(chain.id, []) if stage.diverged), "")


def progress_of(plan: Plan, execution: Execution) -> Progress:
    """Look up every chain in the store as far as its keys are known. Raises DataError if data are present but wrong."""
    sources = Sources(plan.experiment, execution)
    store = sources.store
    described = cache(partial(store.intact, "split"))  # chains share image descriptions
    people = [chain.id for chain in plan.chains if chain.trial.asks_people]
    pending = Waiting(store, plan.experiment).look(people)
    stages, initial, recorded = {}, {}, set()
    for chain in plan.chains:
        source = sources.of(chain.trial)
        if source is None:
            continue
        record = read_chain(store, plan.experiment, chain.id)
        look = _Look(store, execution, record)
        walk(chain.trial, source, plan.experiment.evaluate, look)
        if chain.trial.asks_people:
            one = pending.get(chain.id)
            look.wait_for_people(has_answers=one is not None and one.asked > 0 and not one.missing)
        stages[chain.id] = look.stages
        if look.initial:
            initial[chain.id] = look.initial
        if record and _is_whole(record, look.stages, described):
            recorded.add(chain.id)
    return Progress(plan, stages, initial, frozenset(recorded), tuple(store.found_damaged), known=bool(stages))


def _is_whole(record: ChainRecord, stages: list[StageStatus], described: Callable[[str], bool]) -> bool:
    """Whether a chain's record names the fit of every stage and the descriptions it names are stored."""
    stages = [stage for stage in stages if not stage.diverged]
    named = [stage.fit for stage in record.stages]
    found = record.descriptions
    keys = [found.training, *found.evaluated.values()] if found else []
    return named[: len(stages)] == [stage.fit for stage in stages] and all(described(key) for key in keys)


class Sources:
    """Fingerprints of a trial's data and weights, from the data folder or else as recorded in the store."""

    def __init__(self, experiment: Experiment, execution: Execution) -> None:
        self._experiment, self._execution = experiment, execution
        self.store = Store(execution.store)
        self._fingerprint = lru_cache(self._prepared_fingerprint)

    def of(self, trial: Trial) -> Source | None:
        """Return the source of a trial; None if the data are absent and nothing was recorded."""
        try:
            weights = weights_digest(trial.model, self._execution.data_path)
            dataset = open_dataset(trial.dataset, self._execution.data_path)
            training = training_split(dataset, trial.dataset)
            dataset.names(training)
        except DataError:
            record = read_chain(self.store, self._experiment, trial.chain_id)
            known = record is not None and record.source.training_split in record.source.fingerprints
            return self._with_every_split(record.source) if record is not None and known else None
        used = splits_in_use(self._experiment, trial, training)
        prints = {split: self._fingerprint(trial.dataset, split, size) for split, size in used}
        return Source(prints, training, weights, normalisation(trial.model, dataset.facts))

    def _prepared_fingerprint(self, spec: DatasetSpec, split: str, size: SizeSpec) -> str:
        dataset = open_dataset(spec, self._execution.data_path)
        return prepare(dataset, split, size, self._execution.cache_path).fingerprint

    def _with_every_split(self, recorded: Source) -> Source:
        """The recorded source, with an empty fingerprint for splits not evaluated then, which have nothing stored."""
        splits = map(self._experiment.evaluate.split_of, self._experiment.evaluate.splits)
        return replace(recorded, fingerprints=dict.fromkeys(splits, "") | recorded.fingerprints)


class _Look:
    """Visitor that checks what is stored; it changes nothing and counts damaged results as absent.

    Lost picks will be remade identically, so later stages remain those that the chain's record names.
    """

    def __init__(self, store: Store, execution: Execution, record: ChainRecord | None) -> None:
        self._store, self._execution, self._record = store, execution, record
        self.stages: list[StageStatus] = []
        self.initial: tuple[str, bool] | None = None
        self._diverged = ""  # message of this or an earlier stage
        self._is_lost = False  # whether the labels of a pick can no longer be read
        self._missing: list[Task[Any]] = []  # what this stage still lacks, besides its fit
        self._pick: tuple[str, bool] | None = None

    def pixels(self, task: FirstPixels | Pick) -> _Expected:
        """Return the stored pixels, or else what will identify all labels so far."""
        if isinstance(task, Pick) and not _is_known(task.fit):
            return _Expected(task.key)
        new = self._stored_pixels(task)
        if isinstance(task, FirstPixels):
            self.initial = task.key, new is not None
        else:
            self._pick = task.key, new is not None
            asked = task.trial.asks_people and self._store.intact(Ask.kind, Ask(task).key)
            self._missing += [] if new is not None or asked else [task]
        if new is not None and not self._is_lost:
            return _Expected(new.digest(), True, new)
        self._is_lost = True
        labels = self._recorded_labels(task)
        return _Expected(task.key) if labels is None else _Expected(labels, True)

    def _stored_pixels(self, task: FirstPixels | Pick) -> LabelledPixels | None:
        files = self._store.files(task.kind, task.key, [PIXELS]) if self._store.intact(task.kind, task.key) else None
        return LabelledPixels.read(io.BytesIO(files[PIXELS])) if files else None

    def _recorded_labels(self, task: FirstPixels | Pick) -> str | None:
        """Digest of the labels that the stage after a pick was trained on, according to the record and its fit."""
        record = self._record
        if record is None or len(record.stages) <= task.stage or record.picks[task.stage] != task.key:
            return None
        files = self._store.files(Fit.kind, record.stages[task.stage].fit, [paths.INPUT])
        return None if files is None else str(json.loads(files[paths.INPUT])["labels"])

    def make(self, task: Fit | Evaluate) -> None:
        """Check whether an evaluation is stored."""
        if isinstance(task, Fit):
            self._missing, self._pick = [], None
        elif not (_is_known(task.fit) and self._store.intact(task.kind, task.key)):
            self._missing.append(task)

    def stage_done(self, fit: Fit) -> None:
        """Do nothing: `release` follows, after the stage's pick."""

    def release(self, fit: Fit) -> None:
        """Determine whether the stage is stored and whether it has to be trained."""
        if not _is_known(fit) or self._diverged:
            to_train = not self._diverged
            self.stages.append(StageStatus(fit.stage, fit.key, None, to_train=to_train, diverged=self._diverged))
            return
        stored, missing = self._store.intact(fit.kind, fit.key), [task for task in self._missing if task.model_of]
        if not stored and (record := read_diverged(self._store, fit.key)) is not None:
            self._diverged = record.message
            self.stages.append(StageStatus(fit.stage, fit.key, fit.key, to_train=False, diverged=record.message))
            return
        needs_weights = bool(missing) or self._execution.keeps_weights(fit.trial, fit.stage)
        to_train = (
            not stored
            or any(not task.weights_help for task in missing)
            or (needs_weights and self._store.weights(fit.key) is None)
        )
        evaluated = not any(isinstance(task, Evaluate) for task in self._missing)
        pick, pick_stored = self._pick or (None, False)
        if stored and pick and not pick_stored and (record := read_diverged(self._store, fit.key)) is not None:
            self._diverged, pick, to_train = record.message, None, False  # its model can pick nothing
        self.stages.append(
            StageStatus(fit.stage, fit.key, fit.key, stored, evaluated, pick, pick_stored, to_train=to_train)
        )

    def wait_for_people(self, *, has_answers: bool) -> None:
        """Mark the stages that cannot be trained until people answer; `has_answers` exempts the next stage."""
        unknown = [at for at, stage in enumerate(self.stages) if stage.fit is None and not stage.diverged]
        for at in unknown[int(has_answers) :]:
            self.stages[at] = replace(self.stages[at], must_wait=True)


def _is_known(fit: Fit) -> bool:
    """Whether a fit's key is final: the one under which a run would store it."""
    return not isinstance(fit.labels, _Expected) or fit.labels.is_known


def _keep_sources(plan: Plan, store: Store) -> None:
    """Store the source of external parts along with the results."""
    names = {name for chain in plan.chains for _, name in chain.trial.external_parts}
    for code in {code.digest: code for code in map(parts.code_of, sorted(names)) if code}.values():
        write_source(store, code)


def keep_warnings(experiment: Experiment, store: Store, warnings: Sequence[str]) -> None:
    """Store warnings about the data, replacing those of an earlier run."""
    path = paths.data_warnings(paths.experiment_folder(experiment))
    before = store.find_record(path, DataWarnings)
    if tuple(warnings) != (before.warnings if before else ()):
        store.write_record(path, DataWarnings(warnings=tuple(warnings)).model_dump(mode="json"))


def claim_name(plan: Plan, store: Store) -> None:
    """Record the experiment under its name. Raises SpecError if the name is taken or the store is not writable.

    Experiments with the same name must be equal, or one must extend the other's grid, so that reports never mix two.
    """
    experiment = plan.experiment
    mine = paths.experiment_folder(experiment)
    for other in store.names(paths.EXPERIMENTS):
        folder = paths.result(paths.EXPERIMENTS, other)
        same_name = other.rpartition("-")[0] == experiment.name and folder != mine
        if same_name and store.find_record(paths.experiment_record(folder), ExperimentRecord) is not None:
            raise SpecError(
                f"name: {experiment.name!r} is taken by a different experiment in {store.address} ({other}); rename "
                "this one (name: in the file, or --set name=...), or use another --store"
            )
    ids = sorted(digest(trial.as_named()) for trial in plan.trials)
    before = store.find_record(paths.experiment_record(mine), ExperimentRecord)
    if before is not None and set(before.trials) > set(ids):
        _keep_sources(plan, store)
        return
    if before is not None and not set(before.trials) <= set(ids):
        raise SpecError(
            f"name: {experiment.name!r} was already run with a different grid; extend that grid "
            "instead of replacing its values, or rename this experiment (--set name=...)"
        )
    record = ExperimentRecord(experiment=experiment.model_dump(mode="json", exclude_none=True), trials=tuple(ids))
    try:
        _keep_sources(plan, store)
        store.write_record(paths.experiment_record(mine), record.model_dump(mode="json"))
    except StoreError as error:
        raise SpecError(f"--store {store.address}: cannot be used ({error}); give a writable folder") from error
