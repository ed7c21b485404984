"""From the store to tidy rows: one value a row; what is not stored is listed as missing, never dropped."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pixelpick_ray.active.metrics import Counts, iou, miou, mious, pixel_accuracy
from pixelpick_ray.errors import StoreError
from pixelpick_ray.report.points import Budget, Point, merged, size_text, trials_by_point
from pixelpick_ray.spec.experiment import Experiment
from pixelpick_ray.spec.keys import chain_id, evaluation_size
from pixelpick_ray.spec.trial import EvaluateSpec, Trial
from pixelpick_ray.store import Store, experiment_folder

LAST, BEST, BEST_ON = "last", "best", "best_on_"


@dataclass(frozen=True)
class Measurement:
    """What an experiment asks to be measured of a trial. `share` of labelled pixels is None where nothing tells it.

    `split` is the name that the experiment evaluates a split under. `checkpoint` chooses the epoch of a stage: `last`,
    `best` on that split (what the published code keeps), or `best_on_<name>`, the best on a split that is held out.
    """

    point: Point
    split: str
    checkpoint: str
    size: str
    share: float | None


class Row(NamedTuple):
    """One value as a fraction, NaN for a class that does not occur; `class_name` is empty unless the metric is iou."""

    experiment: str
    dataset: str
    architecture: str
    backbone: str
    strategy: str
    seed: int
    budget: Budget
    split: str
    checkpoint: str
    metric: str
    class_name: str
    value: float
    fit_key: str
    pretrained: str
    setting: str
    share: float
    evaluation_key: str


CSV_COLUMNS = Row._fields  # the order is promised to scripts; what comes later is appended

# A metric and, where it is of one class, the class.
Metric = tuple[str, str]
MIOU, PIXEL_ACCURACY = ("miou", ""), ("pixel_accuracy", "")


@dataclass(frozen=True)
class Reading:
    """A stored confusion matrix as its metrics: fractions, NaN for a class that does not occur."""

    asked: Measurement
    fit_key: str
    evaluation_key: str
    values: Mapping[Metric, float]


@dataclass(frozen=True)
class Missing:
    """A trial without a stored measurement on a split, and why."""

    point: Point
    split: str
    reason: str


@dataclass(frozen=True)
class Results:
    """All that a report is made from.

    `trials` are those asked for, in the order of the files; `evidence` has, by evaluation key, what the results of a
    cell should have in common; `fits` has the provenance by fit key.
    """

    experiments: tuple[Experiment, ...]
    trials: Mapping[Point, Trial]
    measurements: tuple[Measurement, ...]
    readings: tuple[Reading, ...]
    missing: tuple[Missing, ...]
    evidence: dict[str, dict[str, str]]
    fits: dict[str, dict[str, Any]]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The readings, one value a row."""
        return tuple(_rows(self))

    def evaluate(self, experiment: str) -> EvaluateSpec:
        """What an experiment evaluates, by its name."""
        return next(one.evaluate for one in self.experiments if one.name == experiment)


def load_results(store: Store, experiments: Sequence[Experiment]) -> Results:
    """Read what the experiments ask for.

    SpecError when different experiments have one name, StoreError for a record that contradicts its trial.
    """
    together = merged(experiments)
    trials: dict[Point, Trial] = {}
    measurements: list[Measurement] = []
    readings: list[Reading] = []
    missing: list[Missing] = []
    evidence: dict[str, dict[str, str]] = {}
    fits: dict[str, _Fit] = {}
    for experiment in together:
        for point, trial in trials_by_point(experiment).items():
            record = read_chain(store, experiment, trial)
            asked = list(_measurements(experiment.evaluate, trial, point, record))
            found, lost = _read(store, trial, record, asked)
            trials[point] = trial
            measurements += asked
            readings += _readings(asked, found, record)
            missing += lost
            for evaluation in found.values():
                if evaluation.key not in evidence:
                    fit = fits.setdefault(evaluation.fit_key, _fit(store, evaluation.fit_key))
                    evidence[evaluation.key] = _evidence(evaluation, fit)
    made = {key: fit.provenance for key, fit in fits.items()}
    return Results(together, trials, tuple(measurements), tuple(readings), tuple(missing), evidence, made)


def read_chain(store: Store, experiment: Experiment, trial: Trial) -> Any:
    """The record of the chain that a trial is a prefix of; None when it never ran."""
    return store.read_record(f"{experiment_folder(experiment)}/chains/{chain_id(trial)}.json")


def rows_csv(results: Results) -> str:
    """The rows as CSV; floats in their shortest exact text, NaN as an empty field."""
    return csv_text(CSV_COLUMNS, _rows(results))


def _rows(results: Results) -> Iterator[Row]:
    for one in results.readings:
        point, split, checkpoint = one.asked.point, one.asked.split, one.asked.checkpoint
        where = point.experiment, point.dataset, point.architecture, point.backbone, point.strategy
        place = *where, point.seed, point.budget, split, checkpoint
        if one.asked.share is None:
            raise AssertionError("a recorded trial knows its pixels")
        behind = one.fit_key, point.pretrained, point.setting, one.asked.share, one.evaluation_key
        for (metric, class_name), value in one.values.items():
            yield Row(*place, metric, class_name, value, *behind)


def csv_text(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """CSV with Unix line ends; NaN and None are empty fields."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    # Only NaN differs from itself; there may be a million lines.
    writer.writerows(["" if value is None or value != value else value for value in line] for line in lines)
    return text.getvalue()


def _measurements(evaluate: EvaluateSpec, trial: Trial, point: Point, record: Any) -> Iterator[Measurement]:
    share = _share(trial, record)
    for split in evaluate.splits:
        size = size_text(evaluation_size(evaluate, trial, split), " pixels")
        for checkpoint in _checkpoints(evaluate, trial, split):
            yield Measurement(point, split, checkpoint, size, share)


def _checkpoints(evaluate: EvaluateSpec, trial: Trial, split: str) -> list[str]:
    # An evaluation after every epoch is what allows the best one to be named.
    if evaluate.when != "every_epoch" or trial.train.epochs == 1:
        return [LAST]
    held_out = evaluate.held_out if split == evaluate.report else ()
    return [LAST, BEST, *(BEST_ON + name for name in held_out)]


def _share(trial: Trial, record: Any) -> float | None:
    """Labelled pixels over pixels of an average training image."""
    if trial.budget == "full":
        return 1.0
    if record is not None:
        return float(trial.budget / record["pixels_per_image"])
    size = trial.dataset.size
    return trial.budget / (size[0] * size[1]) if size else None


@dataclass(frozen=True)
class _Evaluation:
    """Confusion matrices (E, C, C) of a fit on one split, after each of the `epochs` (E,), which ascend; its input."""

    key: str
    inputs: dict[str, Any]
    epochs: npt.NDArray[np.int64]
    confusion: Counts

    @property
    def fit_key(self) -> str:
        return str(self.inputs["fit"])

    @cached_property
    def best_epoch(self) -> int:
        """The epoch with the highest mIoU, the first of equals."""
        values = mious(self.confusion)
        return int(self.epochs[np.argmax(np.where(np.isnan(values), -1.0, values))])


def _read(
    store: Store, trial: Trial, record: Any, asked: Sequence[Measurement]
) -> tuple[dict[str, _Evaluation], list[Missing]]:
    """The evaluations of a trial by split, and its splits without one."""
    stage = _recorded_stage(record, trial)
    found: dict[str, _Evaluation] = {}
    missing = []
    for split in dict.fromkeys(one.split for one in asked):
        evaluation = _evaluation(store, stage, split, record) or _failure(store, trial)
        if isinstance(evaluation, str):
            missing.append(Missing(asked[0].point, split, evaluation))
        else:
            found[split] = evaluation
    return found, missing


def _failure(store: Store, trial: Trial) -> str:
    """Why a trial was not measured."""
    error = store.last_error(chain_id(trial))
    return f"failed: {error}" if error else "not run yet"


def _evaluation(store: Store, stage: dict[str, Any] | None, split: str, record: Any) -> _Evaluation | str | None:
    """A stored evaluation, None when there never was one, or why it cannot be read."""
    key = stage["evaluations"].get(split) if stage else None
    if key is None:
        return None
    files = store.files("evaluation", key, ["confusion.npz"])
    if files is None:
        return f"evaluation {key[:16]} is absent or damaged"
    with np.load(io.BytesIO(files["confusion.npz"]), allow_pickle=False) as file:
        epochs, confusion = file["epochs"], file["confusion"]
    classes = len(record["class_names"])
    if confusion.shape != (len(epochs), classes, classes) or not len(epochs):
        raise StoreError(
            f"{store.folder('evaluation', key)}: confusion {confusion.shape} does not fit {classes} classes; "
            "remove it, run again"
        )
    return _Evaluation(key, json.loads(files["input.json"]), epochs, confusion)


def _readings(asked: Sequence[Measurement], found: Mapping[str, _Evaluation], record: Any) -> Iterator[Reading]:
    for one in asked:
        matrix = _chosen(one, found)
        if matrix is not None:
            evaluation = found[one.split]
            yield Reading(one, evaluation.fit_key, evaluation.key, _metrics(matrix, record["class_names"]))


def _chosen(one: Measurement, found: Mapping[str, _Evaluation]) -> Counts | None:
    """The confusion on a split after the epoch that the rule chooses; None when a split that it needs is missing."""
    chooser = one.checkpoint.removeprefix(BEST_ON) if one.checkpoint.startswith(BEST_ON) else one.split
    if one.split not in found or chooser not in found:
        return None
    read, chosen = found[one.split], found[chooser]
    epoch = int(chosen.epochs.max()) if one.checkpoint == LAST else chosen.best_epoch
    matrices: list[Counts] = list(read.confusion[read.epochs == epoch])
    return matrices[0] if matrices else None


def _metrics(confusion: Counts, class_names: Sequence[str]) -> dict[Metric, float]:
    values = {MIOU: miou(confusion), PIXEL_ACCURACY: pixel_accuracy(confusion)}
    return values | {("iou", name): value for name, value in zip(class_names, iou(confusion).tolist(), strict=True)}


def _recorded_stage(record: Any, trial: Trial) -> dict[str, Any] | None:
    stages = record["stages"] if record else []
    if len(stages) < trial.num_stages:
        return None
    stage: dict[str, Any] = stages[trial.num_stages - 1]
    if stage["budget"] != trial.budget:
        raise StoreError(
            f"chains/{chain_id(trial)}.json: stage {trial.num_stages - 1} has budget {stage['budget']}, "
            f"the trial {trial.budget}; remove the file and run again"
        )
    return stage


@dataclass(frozen=True)
class _Fit:
    """Input and provenance of a fit, empty when it was removed: the numbers remain valid."""

    inputs: dict[str, Any]
    provenance: dict[str, Any]


def _fit(store: Store, key: str) -> _Fit:
    files = store.files("fit", key, ["provenance.json"])
    return _Fit(*(json.loads(files[name]) if files else {} for name in ("input.json", "provenance.json")))


def _evidence(evaluation: _Evaluation, fit: _Fit) -> dict[str, str]:
    """What the results of one cell should have in common, beside what their trials say."""
    facts = {
        "device": fit.provenance.get("device"),
        "torch": fit.provenance.get("torch"),
        "package version": fit.provenance.get("version"),
        "training data": fit.inputs.get("data", {}).get("fingerprint"),
        "evaluation data": evaluation.inputs["data"]["fingerprint"],
        "pretrained weights": fit.inputs.get("model", {}).get("weights_digest", "unknown"),
        "version of fit": fit.inputs.get("version"),
        "version of evaluation": evaluation.inputs["version"],
    }
    return {name: "unknown" if value is None else str(value) for name, value in facts.items()}
