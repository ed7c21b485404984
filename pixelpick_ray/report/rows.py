"""From the store to tidy rows: one value a row; what is not stored is listed as missing, never dropped."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelpick_ray.active.metrics import Counts, iou, miou, pixel_accuracy
from pixelpick_ray.errors import StoreError
from pixelpick_ray.report.points import Budget, Point, merged, size_text, trials_by_point
from pixelpick_ray.spec.experiment import Experiment
from pixelpick_ray.spec.keys import chain_id, evaluation_size
from pixelpick_ray.spec.trial import EvaluateSpec, Trial
from pixelpick_ray.store import Store, experiment_folder

LAST, BEST, BEST_ON = "last", "best", "best_on_"

# The order is promised to scripts; what comes later is appended after them.
CSV_COLUMNS = (
    *("experiment", "dataset", "architecture", "backbone", "strategy", "seed", "budget", "split", "checkpoint"),
    *("metric", "class_name", "value", "fit_key", "pretrained", "setting", "share", "evaluation_key"),
)


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


@dataclass(frozen=True)
class Row:
    """One value as a fraction, NaN for a class that does not occur; `class_name` is empty unless the metric is iou."""

    experiment: str
    dataset: str
    architecture: str
    backbone: str
    pretrained: str
    strategy: str
    setting: str
    seed: int
    budget: Budget
    split: str
    checkpoint: str
    metric: str
    class_name: str
    value: float
    share: float
    fit_key: str
    evaluation_key: str


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
    rows: tuple[Row, ...]
    missing: tuple[Missing, ...]
    evidence: dict[str, dict[str, str]]
    fits: dict[str, dict[str, Any]]

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
    rows: list[Row] = []
    missing: list[Missing] = []
    for experiment in together:
        for point, trial in trials_by_point(experiment).items():
            record = read_chain(store, experiment, trial)
            asked = list(_measurements(experiment.evaluate, trial, point, record))
            found, lost = _read(store, trial, record, asked)
            trials[point] = trial
            measurements += asked
            rows += found
            missing += lost
    evidence = {key: _evidence(store, key) for key in sorted({row.evaluation_key for row in rows})}
    fits = {key: _json(store, "fit", key, "provenance.json") for key in sorted({row.fit_key for row in rows})}
    return Results(together, trials, tuple(measurements), tuple(rows), tuple(missing), evidence, fits)


def read_chain(store: Store, experiment: Experiment, trial: Trial) -> Any:
    """The record of the chain that a trial is a prefix of; None when it never ran."""
    return store.read_record(f"{experiment_folder(experiment)}/chains/{chain_id(trial)}.json")


def rows_csv(results: Results) -> str:
    """The rows as CSV; floats in their shortest exact text, NaN as an empty field."""
    return csv_text(CSV_COLUMNS, [[getattr(row, column) for column in CSV_COLUMNS] for row in results.rows])


def csv_text(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """CSV with Unix line ends; NaN and None are empty fields."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if _is_empty(value) else value for value in line] for line in lines])
    return text.getvalue()


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


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
    """Confusion matrices (E, C, C) of a stage on one split, after each of the `epochs` (E,), which ascend."""

    key: str
    epochs: npt.NDArray[np.int64]
    confusion: Counts

    @property
    def best_epoch(self) -> int:
        """The epoch with the highest mIoU, the first of equals."""
        values = [miou(matrix) for matrix in self.confusion]
        at = max(range(len(values)), key=lambda index: -1.0 if math.isnan(values[index]) else values[index])
        return int(self.epochs[at])


def _read(store: Store, trial: Trial, record: Any, asked: Sequence[Measurement]) -> tuple[list[Row], list[Missing]]:
    """The rows of a trial, and its splits without a stored evaluation."""
    stage = _recorded_stage(record, trial)
    found: dict[str, _Evaluation] = {}
    missing = []
    for split in dict.fromkeys(one.split for one in asked):
        evaluation = _evaluation(store, stage, split, record)
        if isinstance(evaluation, str):
            missing.append(Missing(asked[0].point, split, evaluation))
        else:
            found[split] = evaluation
    rows = []
    for one in asked:
        matrix = _chosen(one, found)
        if stage is not None and matrix is not None:
            rows += _rows(one, matrix, record["class_names"], stage["fit"], found[one.split].key)
    return rows, missing


def _evaluation(store: Store, stage: dict[str, Any] | None, split: str, record: Any) -> _Evaluation | str:
    """A stored evaluation, or why there is none."""
    key = stage["evaluations"].get(split) if stage else None
    if key is None:
        return "not run yet"
    folder = store.result("evaluation", key)
    if folder is None:
        return f"evaluation {key[:16]} is absent or damaged"
    with np.load(folder / "confusion.npz", allow_pickle=False) as file:
        epochs, confusion = file["epochs"], file["confusion"]
    classes = len(record["class_names"])
    if confusion.shape != (len(epochs), classes, classes) or not len(epochs):
        raise StoreError(f"{folder}: confusion {confusion.shape} does not fit {classes} classes; remove it, run again")
    return _Evaluation(key, epochs, confusion)


def _chosen(one: Measurement, found: Mapping[str, _Evaluation]) -> Counts | None:
    """The confusion on a split after the epoch that the rule chooses; None when a split that it needs is missing."""
    chooser = one.checkpoint.removeprefix(BEST_ON) if one.checkpoint.startswith(BEST_ON) else one.split
    if one.split not in found or chooser not in found:
        return None
    read, chosen = found[one.split], found[chooser]
    epoch = int(chosen.epochs.max()) if one.checkpoint == LAST else chosen.best_epoch
    matrices: list[Counts] = list(read.confusion[read.epochs == epoch])
    return matrices[0] if matrices else None


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


def _rows(one: Measurement, confusion: Counts, names: list[str], fit_key: str, evaluation_key: str) -> list[Row]:
    values = [("miou", "", miou(confusion)), ("pixel_accuracy", "", pixel_accuracy(confusion))]
    values += [("iou", name, float(value)) for name, value in zip(names, iou(confusion), strict=True)]
    if one.share is None:
        raise AssertionError("a recorded trial knows its pixels")
    return [
        Row(
            **vars(one.point),
            split=one.split,
            checkpoint=one.checkpoint,
            metric=metric,
            class_name=name,
            value=value,
            share=one.share,
            fit_key=fit_key,
            evaluation_key=evaluation_key,
        )
        for metric, name, value in values
    ]


def _evidence(store: Store, evaluation_key: str) -> dict[str, str]:
    """What the results of one cell should have in common, beside what their trials say."""
    inputs = _json(store, "evaluation", evaluation_key, "input.json")
    fit = _json(store, "fit", inputs["fit"], "input.json")
    made = _json(store, "fit", inputs["fit"], "provenance.json")
    facts = {
        "device": made.get("device"),
        "torch": made.get("torch"),
        "package version": made.get("version"),
        "training data": fit.get("data", {}).get("fingerprint"),
        "evaluation data": inputs["data"]["fingerprint"],
        "pretrained weights": fit.get("model", {}).get("weights_digest", "unknown"),
        "version of fit": fit.get("version"),
        "version of evaluation": inputs["version"],
    }
    return {name: "unknown" if value is None else str(value) for name, value in facts.items()}


def _json(store: Store, kind: str, key: str, name: str) -> dict[str, Any]:
    """A JSON file of an intact result, empty when there is none: numbers remain valid when a fit was removed."""
    folder = store.result(kind, key)
    if folder is None:
        return {}
    value: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return value
