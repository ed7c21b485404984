"""Trials to chains: what is shared, what is stored, what is missing, whether it can run. Imports neither torch nor
ray.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np

from pixelpick_ray.active.acquisition import check_strategy
from pixelpick_ray.active.oracle import check_oracle
from pixelpick_ray.config.annotate import class_keys
from pixelpick_ray.config.canonical import brief, digest
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.keys import (
    Source,
    evaluation_input,
    evaluation_size,
    fit_input,
    initial_input,
    pick_input,
)
from pixelpick_ray.config.trial import DatasetSpec, HumanSpec, SizeSpec, Trial
from pixelpick_ray.data.cache import PreparedSplit, prepare, training_names
from pixelpick_ray.data.datasets import Dataset, DatasetFacts, known_facts, open_dataset, training_split
from pixelpick_ray.data.held_out import facts_with_held_out
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.weights import weights_digest
from pixelpick_ray.errors import DataError, SpecError, StoreError
from pixelpick_ray.store import Store, experiment_folder

IN_LABEL = {"seed", "budget", "acquire.strategy", "model.backbone"}
Report = Callable[[str, int, int], None]  # what, done, in all


@dataclass(frozen=True)
class Chain:
    """A trial with all the trials that are prefixes of it.

    ``fits`` and ``picks`` identify the steps by everything that they depend on, so two chains share exactly the
    steps whose
    identities are equal; ``picks`` begins with the initial pixels.
    """

    trial: Trial
    id: str
    budgets: tuple[int | str, ...]
    fits: tuple[str, ...]
    picks: tuple[str, ...]
    setting: str = ""

    @property
    def label(self) -> str:
        """A short name for people: what varies within most grids."""
        kind = "full" if self.trial.budget == "full" else self.trial.acquire.strategy
        return f"{self.trial.model.backbone} {kind} seed {self.trial.seed}{self.setting}"

    def shared_fits(self, other: "Chain") -> int:
        """How many fits the two have in common; they are the first ones."""
        pairs = zip(self.fits, other.fits, strict=False)
        return next(
            (at for at, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(self.fits), len(other.fits))
        )


@dataclass(frozen=True)
class Plan:
    """What an experiment asks for, before anything runs."""

    experiment: Experiment
    trials: tuple[Trial, ...]
    chains: tuple[Chain, ...]

    @property
    def num_fits(self) -> int:
        """Distinct fits of all chains."""
        return len({fit for chain in self.chains for fit in chain.fits})

    @property
    def num_fits_unshared(self) -> int:
        """What the trials would train if each ran alone."""
        return sum(trial.num_stages for trial in self.trials)

    @property
    def num_picks(self) -> int:
        """Distinct picks of all chains, the initial pixels included."""
        return len({pick for chain in self.chains for pick in chain.picks})

    @property
    def answers_per_image(self) -> int:
        """Pixels of each image that people are asked for; fewer where chains happen to ask for the same ones."""
        asked: dict[str, int] = {}
        for chain in self.chains:
            if isinstance(chain.trial.oracle, HumanSpec) and chain.picks:
                acquire = chain.trial.acquire
                asked |= dict.fromkeys(chain.picks, acquire.pixels_per_stage)
                asked[chain.picks[0]] = acquire.initial_pixels
        return sum(asked.values())

    @property
    def sharing(self) -> str:
        """What sharing saves, as a sentence."""
        saved = self.num_fits_unshared - self.num_fits
        return (
            f"{len(self.trials)} trials in {len(self.chains)} chains: {self.num_fits} stages to train, "
            f"where the trials one by one would train {self.num_fits_unshared}; {saved} are shared"
        )

    def stages_to_keep(self, chain: Chain) -> frozenset[int]:
        """Stages whose weights another chain may still need: it shares the fit and picks otherwise."""
        others = [other for other in self.chains if other.id != chain.id]
        return frozenset(
            stage
            for stage, fit in enumerate(chain.fits)
            if any(stage < len(other.fits) and other.fits[stage] == fit for other in others)
        )


def make_plan(experiment: Experiment, trials: Sequence[Trial] | None = None) -> Plan:
    """Merge trials, those of the grid unless given, into chains.

    SpecError for an unknown data set, split or strategy; needs no data.
    """
    trials = tuple(experiment.trials() if trials is None else trials)
    for trial in trials:
        check_trial(experiment, trial)
    longest: dict[str, Trial] = {}
    budgets: dict[str, list[int | str]] = {}
    for trial in trials:
        key = trial.chain_id
        budgets.setdefault(key, []).append(trial.budget)
        if key not in longest or trial.num_stages > longest[key].num_stages:
            longest[key] = trial
    paths = sorted({path for grid in experiment.grid for path in grid} - IN_LABEL)
    chains = (replace(_chain(t, key, budgets[key]), setting=_setting(t, paths)) for key, t in longest.items())
    return Plan(experiment, trials, tuple(chains))


def _setting(trial: Trial, paths: list[str]) -> str:
    """What the grid varies beside the usual, for a label: ", train.optimizer.lr=0.01"; absent options are left out."""
    tree = trial.as_input()
    given = ((path, value_at(tree, path)) for path in paths)
    return "".join(f", {path}={brief(json.dumps(value))}" for path, value in given if value is not None)


def value_at(tree: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for name in path.split("."):
        tree = (tree or {}).get(name)
    return tree


def check_trial(experiment: Experiment, trial: Trial) -> None:
    """SpecError for an unknown data set, split or strategy, and for what cannot be trained; needs no data."""
    facts = known_facts(trial.dataset.name)
    check_strategy(trial.acquire)
    if facts is not None:  # else it is described beside its files, and checked where these are read
        check_facts(experiment, trial, facts_with_held_out(facts, trial.dataset))
    if trial.train.batch_size == 1:
        raise SpecError("train.batch_size: 1 is too small, batch norm after pooling needs two images; take 2 or more")


def check_facts(experiment: Experiment, trial: Trial, facts: DatasetFacts) -> None:
    """SpecError for a split, a path or a class that the data set of a trial does not have."""
    evaluate = experiment.evaluate
    wanted = [("dataset.split", trial.dataset.split or facts.train_split)]
    wanted += [("evaluate.splits", evaluate.split_of(name)) for name in evaluate.splits]
    for where, split in wanted:
        if split not in facts.splits:
            raise SpecError(f"{where}: {facts.name} has no split {split!r}; it has {', '.join(facts.splits)}")
    if trial.dataset.path is not None and trial.dataset.name != "folder":
        raise SpecError(f"dataset.path: {facts.name} lies in the data folder under its own name; leave path out")
    check_oracle(trial.oracle, facts.class_names)
    if isinstance(trial.oracle, HumanSpec):
        class_keys(facts.class_names, experiment.annotation.keys)


def _chain(trial: Trial, key: str, budgets: list[int | str]) -> Chain:
    dataset, oracle = trial.dataset.as_input(), trial.oracle.as_input()
    network = [dataset, trial.model.as_input(), trial.training.as_input(), trial.seed]
    if trial.budget == "full":
        return Chain(trial, key, ("full",), (digest([network, "full"]),), ())
    acquire = trial.acquire.as_input()
    initial = acquire.pop("initial_pixels")
    first = [oracle, initial]
    fits = [digest([network, first])] + [digest([network, first, acquire, s]) for s in range(1, trial.num_stages)]
    picks = [digest([dataset, first, trial.seed])] + [digest([fit, acquire]) for fit in fits[:-1]]
    return Chain(trial, key, tuple(sorted(budgets, key=int)), tuple(fits), tuple(picks))


@dataclass(frozen=True)
class StageStatus:
    """How far one stage of a chain is stored; ``fit`` is None where its key is not known yet."""

    stage: int
    fit: str | None
    fit_stored: bool = False
    evaluated: bool = False
    pick: str | None = None
    pick_stored: bool = False


@dataclass(frozen=True)
class Progress:
    """What is stored of a plan; chains are absent where neither data nor a record gives their keys.

    ``recorded`` are the chains with all that a report needs beside the results. ``known`` is False where no chain's
    keys are.
    """

    stages: dict[str, list[StageStatus]] = field(default_factory=dict)
    initial: dict[str, tuple[str, bool]] = field(default_factory=dict)
    recorded: frozenset[str] = frozenset()
    known: bool = True

    @property
    def stored_fits(self) -> int | None:
        """Distinct fits that are stored."""
        return len({s.fit for row in self.stages.values() for s in row if s.fit_stored}) if self.known else None

    @property
    def stored_picks(self) -> int | None:
        """Distinct picks that are stored, the initial pixels included."""
        picks = {s.pick for row in self.stages.values() for s in row if s.pick_stored}
        initial = {key for key, stored in self.initial.values() if stored}
        return len(picks | initial) if self.known else None

    def done(self, chain: Chain) -> bool:
        """Whether every fit and evaluation of a chain is stored, and all that a report needs beside them."""
        row = self.stages.get(chain.id, [])
        stored = len(row) == len(chain.fits) and all(s.fit_stored and s.evaluated for s in row)
        return stored and chain.id in self.recorded


def progress_of(plan: Plan, execution: Execution) -> Progress:
    """Walk every chain through the store as far as its keys are known. DataError when present data are wrong."""
    store = Store(execution.store)
    sources = Sources(plan.experiment, execution)
    described = cache(partial(store.intact, "split"))  # chains share the descriptions of their images
    stages, initial, recorded = {}, {}, set()
    for chain in plan.chains:
        source = sources.of(chain.trial)
        if source is None:
            continue
        walk = _Walk(plan.experiment, chain, source, store)
        stages[chain.id] = list(walk.stages())
        if walk.initial:
            initial[chain.id] = walk.initial
        record = store.read_record(f"{experiment_folder(plan.experiment)}/chains/{chain.id}.json")
        if record and _is_whole(record, stages[chain.id], described):
            recorded.add(chain.id)
    return Progress(stages, initial, frozenset(recorded), known=bool(stages))


def _is_whole(record: dict[str, Any], stages: list[StageStatus], described: Callable[[str], bool]) -> bool:
    """Whether a chain's record names the fit of every stage, and the descriptions of images that it names are there."""
    named = [stage["fit"] for stage in record.get("stages", [])]
    descriptions = record.get("descriptions", {})
    keys = [descriptions.get("training"), *descriptions.get("evaluated", {}).values()]
    return named[: len(stages)] == [stage.fit for stage in stages] and all(described(key) for key in keys if key)


class Sources:
    """Fingerprints of the data and the weights of a trial: from the data folder, else as recorded in the store."""

    def __init__(self, experiment: Experiment, execution: Execution) -> None:
        self._experiment, self._execution = experiment, execution
        self._store = Store(execution.store)
        self._fingerprint = lru_cache(self._prepared_fingerprint)

    def of(self, trial: Trial) -> Source | None:
        """The source of a trial; None when the data are absent and nothing was recorded."""
        try:
            weights = weights_digest(trial.model, self._execution.data_path)
            dataset = open_dataset(trial.dataset, self._execution.data_path)
            training = training_split(dataset, trial.dataset)
            dataset.names(training)
        except DataError:
            return self._recorded(trial)
        used = splits_in_use(self._experiment, trial, training)
        return Source({split: self._fingerprint(trial.dataset, split, size) for split, size in used}, training, weights)

    def _prepared_fingerprint(self, spec: DatasetSpec, split: str, size: SizeSpec) -> str:
        dataset = open_dataset(spec, self._execution.data_path)
        return prepare(dataset, split, size, self._execution.cache_path).fingerprint

    def _recorded(self, trial: Trial) -> Source | None:
        record = self._store.read_record(f"{experiment_folder(self._experiment)}/chains/{trial.chain_id}.json")
        return Source(**record["source"]) if record and "source" in record else None


def splits_in_use(experiment: Experiment, trial: Trial, training: str) -> list[tuple[str, SizeSpec]]:
    """Splits of the data set that a trial reads, each with its size; the training split first."""
    evaluate = experiment.evaluate
    evaluated = [(evaluate.split_of(name), evaluation_size(evaluate, trial, name)) for name in evaluate.splits]
    return [(training, trial.dataset), *evaluated]


class _Walk:
    """The steps of one chain as far as the store knows their keys; a damaged result is none."""

    def __init__(self, experiment: Experiment, chain: Chain, source: Source, store: Store) -> None:
        self._experiment, self._chain, self._source, self._store = experiment, chain, source, store
        self.initial: tuple[str, bool] | None = None

    def stages(self) -> Iterator[StageStatus]:
        trial, store = self._chain.trial, self._store
        labels: LabelledPixels | None = None
        if trial.budget != "full":
            key = digest(initial_input(trial, self._source))
            labels = self._pixels(key)
            self.initial = (key, labels is not None)
        for stage in range(len(self._chain.fits)):
            if labels is None and trial.budget != "full":
                yield StageStatus(stage, None)
                continue
            labels_digest = "full" if labels is None else labels.digest()
            fit = digest(fit_input(trial, self._source, stage=stage, labels_digest=labels_digest))
            pick = digest(pick_input(trial, fit_key=fit, stage=stage)) if stage + 1 < len(self._chain.fits) else None
            new = self._pixels(pick) if pick else None
            yield StageStatus(stage, fit, store.intact("fit", fit), self._evaluated(fit), pick, new is not None)
            labels = labels.add(new) if labels is not None and new is not None else None

    def _pixels(self, key: str) -> LabelledPixels | None:
        files = self._store.files("pick", key, ["pixels.npz"]) if self._store.intact("pick", key) else None
        return LabelledPixels.read(io.BytesIO(files["pixels.npz"])) if files else None

    def _evaluated(self, fit: str) -> bool:
        spec, trial = self._experiment.evaluate, self._chain.trial
        inputs = [evaluation_input(spec, trial, self._source, split=split, fit_key=fit) for split in spec.splits]
        return all(self._store.intact("evaluation", digest(item)) for item in inputs)


def check_data(plan: Plan, execution: Execution, report: Report | None = None) -> None:
    """Prepare and check everything that the trials read; DataError or SpecError before anything starts.

    Every image of every split is decoded and checked once; every training image must have as many candidates as the
    largest budget; the pretrained weights must be there.
    """
    told = report or (lambda what, done, total: None)
    checked: set[str] = set()
    for chain in plan.chains:
        trial = chain.trial
        dataset = open_dataset(trial.dataset, execution.data_path)
        check_facts(plan.experiment, trial, dataset.facts)
        _check_labels(plan.experiment, trial, dataset)
        weights_digest(trial.model, execution.data_path)
        training, *evaluated = splits_in_use(plan.experiment, trial, training_split(dataset, trial.dataset))
        for split, size in (training, *evaluated):
            key = digest([trial.dataset.as_input(), split, size.as_input()])
            if key not in checked:
                checked.add(key)
                title = f"{trial.dataset.name} {split}"
                prepare(dataset, split, size, execution.cache_path, partial(told, title))
        _check_training(trial, prepare(dataset, *training, execution.cache_path))


def _check_labels(experiment: Experiment, trial: Trial, dataset: Dataset) -> None:
    """DataError where labels are needed that the data set does not have."""
    evaluate, training = experiment.evaluate, training_split(dataset, trial.dataset)
    for name in evaluate.splits:
        if not dataset.has_labels(evaluate.split_of(name)):
            raise DataError(
                f"evaluate.splits: split {evaluate.split_of(name)!r} of {dataset.facts.name} has no label maps, "
                "nothing can be measured on it; evaluate on a split that has some"
            )
    by_people = isinstance(trial.oracle, HumanSpec) and trial.budget != "full"
    if not by_people and not dataset.has_labels(training):
        wants = "full supervision needs" if trial.budget == "full" else f"the oracle {trial.oracle.name} answers from"
        raise DataError(
            f"{dataset.facts.name} {training}: has no label maps, and {wants} them; add them, or let people answer "
            "with oracle: {name: human} and budgets in numbers"
        )


def _check_training(trial: Trial, prepared: PreparedSplit) -> None:
    title = f"{trial.dataset.name} {prepared.split}"
    names = training_names(prepared.names, trial.dataset.images, trial.seed)
    if len(names) < 2:
        raise DataError(
            f"dataset.images: {len(names)} training image; batch norm needs at least 2; ask for more, or add some"
        )
    positions = np.asarray([prepared.index[name] for name in names])
    crop_size = trial.train.augment.crop_size if trial.train.augment else None
    if crop_size is None and len(np.unique(prepared.shapes[positions], axis=0)) > 1:
        raise DataError("train.augment.crop_size: the training images differ in size; give the size of the crops")
    if trial.budget == "full":
        return
    worst = positions[int(np.argmin(prepared.candidates[positions]))]
    available = int(prepared.candidates[worst])
    if available < trial.budget:
        raise DataError(
            f"{title}: image {prepared.names[worst]} has {available} pixels that are not void, budget {trial.budget} "
            "needs as many; lower the budget, raise dataset.size, or remove the image"
        )


def claim_name(plan: Plan, store: Store) -> None:
    """Record the experiment under its name. SpecError when the name belongs to another one, or nothing can be written.

    Experiments of one name must be equal or one must extend the other's grid, so that a report never mixes two.
    """
    experiment = plan.experiment
    mine = experiment_folder(experiment)
    for other in store.names("experiments"):
        same_name = other.rpartition("-")[0] == experiment.name and f"experiments/{other}" != mine
        if same_name and store.read_record(f"experiments/{other}/experiment.json") is not None:
            raise SpecError(
                f"name: {experiment.name!r} is already another experiment in {store.address} ({other}); give this "
                "one a name of its own (name: in the file, or --set name=...), or use another --store"
            )
    ids = sorted(digest(trial.as_input()) for trial in plan.trials)
    before = store.read_record(f"{mine}/experiment.json")
    if before is not None and set(before["trials"]) > set(ids):
        return
    if before is not None and not set(before["trials"]) <= set(ids):
        raise SpecError(
            f"name: {experiment.name!r} was run with another grid, and neither contains the other; extend the grid "
            "instead of replacing it, or give this one a name of its own (--set name=...)"
        )
    value = {"experiment": experiment.model_dump(mode="json", exclude_none=True), "trials": ids}
    try:
        store.write_record(f"{mine}/experiment.json", value)
    except StoreError as error:
        raise SpecError(f"--store {store.address}: cannot be used ({error}); give a folder you may write to") from error
