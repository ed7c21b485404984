"""Checks of experiments and their data before anything starts. Imports neither torch nor ray."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixelpick_ray.active.acquisition import STRATEGIES, check_strategy
from pixelpick_ray.active.oracle import ORACLES, check_oracle
from pixelpick_ray.config.annotate import class_keys
from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.networks import HEADS, check_network
from pixelpick_ray.config.trial import HumanSpec, SizeSpec, Trial
from pixelpick_ray.data.cache import PreparedSplit, prepare, training_names
from pixelpick_ray.data.datasets import DATASETS, Dataset, DatasetFacts, known_facts, open_dataset, training_split
from pixelpick_ray.data.findings import DataFinding, find, prepared_facts
from pixelpick_ray.data.held_out import facts_with_held_out
from pixelpick_ray.data.weights import check_pretrained, weights_digest
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.tasks import evaluation_size

BUILT_IN: dict[str, Mapping[str, Any]] = {
    "strategy": STRATEGIES,
    "head": HEADS,
    "oracle": ORACLES,
    "dataset": DATASETS,
}
ReportDecoding = Callable[[str, int, int], None]  # title, images done, images in total


def check_trial(experiment: Experiment, trial: Trial) -> None:
    """Raise SpecError for an unknown data set, split, strategy or network, or an untrainable one; needs no data."""
    for kind, name in trial.external_parts:
        if name.partition("@")[0] in BUILT_IN[kind]:
            raise SpecError(
                f"{kind} {name.partition('@')[0]!r}: both a built-in {kind} and {name} have this name; rename yours"
            )
    facts = known_facts(trial.dataset.name)
    check_strategy(trial.acquire)
    check_network(trial.model)
    check_pretrained(trial.model)
    if facts is not None:  # else it is described next to its files, and checked when they are read
        check_facts(experiment, trial, facts_with_held_out(facts, trial.dataset))
    if trial.training is not None and trial.training.batch_size == 1:
        raise SpecError("train.batch_size: 1 is too small; batch norm after pooling needs at least 2 images per batch")


def check_facts(experiment: Experiment, trial: Trial, facts: DatasetFacts) -> None:
    """Raise SpecError for a split, path or class that a trial's data set does not have."""
    evaluate = experiment.evaluate
    wanted = [("dataset.split", trial.dataset.split or facts.train_split)]
    wanted += [("evaluate.splits", evaluate.split_of(name)) for name in evaluate.splits]
    for where, split in wanted:
        if split not in facts.splits:
            raise SpecError(f"{where}: {facts.name} has no split {split!r}; it has {', '.join(facts.splits)}")
    if trial.dataset.path is not None and trial.dataset.name != "folder":
        raise SpecError(
            f"dataset.path: does not apply to {facts.name}, which is found by name in the data folder; leave it out"
        )
    check_oracle(trial.oracle, facts.class_names)
    if isinstance(trial.oracle, HumanSpec):
        class_keys(facts.class_names, experiment.annotation.keys)


def check_labels(experiment: Experiment, trials: Iterable[Trial], data_path: Path) -> None:
    """Raise DataError if a data set lacks labels that a trial needs; data sets that are absent are skipped."""
    for trial in {digest(_reads(trial)): trial for trial in trials}.values():
        try:
            dataset = open_dataset(trial.dataset, data_path)
            dataset.names(training_split(dataset, trial.dataset))
        except DataError:
            continue  # absent: a run downloads it, or reports which files it needs
        check_facts(experiment, trial, dataset.facts)
        _check_labels(experiment, trial, dataset)


def _reads(trial: Trial) -> list[Any]:
    """Fields of a trial that determine which labels it needs."""
    return [trial.dataset.as_input(), trial.oracle.as_input(), trial.is_fully_supervised]


def splits_in_use(experiment: Experiment, trial: Trial, training: str) -> list[tuple[str, SizeSpec]]:
    """Return the splits that a trial reads, each with its size, the training split first."""
    evaluate = experiment.evaluate
    evaluated = [(evaluate.split_of(name), evaluation_size(evaluate, trial, name)) for name in evaluate.splits]
    return [(training, trial.dataset), *evaluated]


def check_data(
    experiment: Experiment, trials: Sequence[Trial], execution: Execution, report: ReportDecoding | None = None
) -> list[str]:
    """Prepare and check everything that the trials read; return warnings about what is probably wrong.

    Decodes and checks every image of every split once. Raises SpecError or DataError for what is certainly wrong:
    for example, missing pretrained weights, or a training image with fewer candidate pixels than the largest budget.
    """
    listen = report or (lambda what, done, total: None)
    checked: set[str] = set()
    for trial in trials:
        dataset = open_dataset(trial.dataset, execution.data_path)
        check_facts(experiment, trial, dataset.facts)
        _check_labels(experiment, trial, dataset)
        weights_digest(trial.model, execution.data_path)
        training, *evaluated = splits_in_use(experiment, trial, training_split(dataset, trial.dataset))
        for split, size in (training, *evaluated):
            key = digest([trial.dataset.as_input(), split, size.as_input()])
            if key not in checked:
                checked.add(key)
                title = f"{trial.dataset.name} {split}"
                run = execution.run or None
                prepare(dataset, split, size, execution.cache_path, partial(listen, title), run=run)
        _check_training(trial, prepare(dataset, *training, execution.cache_path))
    return data_warnings(experiment, trials, execution)


def data_warnings(experiment: Experiment, trials: Iterable[Trial], execution: Execution) -> list[str]:
    """Return what is probably wrong with the data that are present. Raises DataError for what is certainly wrong."""
    found: dict[str, DataFinding] = {}
    fields = {"name", "path", "split", "held_out"}
    for trial in {str(trial.dataset.model_dump(include=fields)): trial for trial in trials}.values():
        title = trial.dataset.path or trial.dataset.name
        try:
            dataset = open_dataset(trial.dataset, execution.data_path)
            training = training_split(dataset, trial.dataset)
            dataset.names(training)
        except DataError:
            if (execution.data_path / title).exists():
                raise
            continue  # absent: plans can be made without data
        splits = [
            prepared_facts(
                prepare(dataset, split, size, execution.cache_path),
                execution.cache_path,
                has_labels=dataset.has_labels(split),
                left_out=dataset.left_out(split),
            )
            for split, size in dict(reversed(splits_in_use(experiment, trial, training))).items()
        ]
        found |= {one.text: one for one in find(title, dataset.facts, splits[::-1])}
    if wrong := [one.text for one in found.values() if one.is_error]:
        raise DataError("\n".join(wrong))
    return list(found)


def _check_labels(experiment: Experiment, trial: Trial, dataset: Dataset) -> None:
    """Raise DataError if the data set lacks labels that the trial needs."""
    evaluate, training = experiment.evaluate, training_split(dataset, trial.dataset)
    for name in evaluate.splits:
        if not dataset.has_labels(evaluate.split_of(name)):
            raise DataError(
                f"evaluate.splits: split {evaluate.split_of(name)!r} of {dataset.facts.name} has no label maps, so "
                "nothing can be measured on it; evaluate on a split that has some"
            )
    if not trial.asks_people and not dataset.has_labels(training):
        wants = (
            "full supervision needs" if trial.is_fully_supervised else f"the oracle {trial.oracle.name} answers from"
        )
        raise DataError(
            f"{dataset.facts.name} {training}: has no label maps, but {wants} them; add them, or have people answer "
            "with oracle: {name: human} and numeric budgets"
        )


def _check_training(trial: Trial, prepared: PreparedSplit) -> None:
    title = f"{trial.dataset.name} {prepared.split}"
    names = training_names(prepared.names, trial.dataset.images, trial.seed)
    if trial.training is not None and len(names) < 2:
        raise DataError(
            f"dataset.images: only {len(names)} training image; batch norm needs at least 2; raise dataset.images, "
            "or add images"
        )
    positions = np.asarray([prepared.index[name] for name in names])
    augment = trial.training.augment if trial.training else None
    crop_size = augment.crop_size if augment else None
    if trial.training is not None and crop_size is None and len(np.unique(prepared.shapes[positions], axis=0)) > 1:
        raise DataError("train.augment.crop_size: is required, because the training images differ in size")
    if trial.budget == "full":
        return
    worst = positions[int(np.argmin(prepared.candidates[positions]))]
    available = int(prepared.candidates[worst])
    if available < trial.budget:
        raise DataError(
            f"{title}: image {prepared.names[worst]} has only {available} pixels that are not void, fewer than the "
            f"budget of {trial.budget}; lower the budget, raise dataset.size, or remove the image"
        )
