"""From the store to tidy rows: one value a row; what is not stored is listed as missing, never dropped."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pixelpick_ray.active.metrics import Counts, iou, miou, pixel_accuracy
from pixelpick_ray.errors import SpecError, StoreError
from pixelpick_ray.spec.canonical import canonical_json
from pixelpick_ray.spec.experiment import Experiment, Trial
from pixelpick_ray.spec.keys import chain_id, evaluation_size
from pixelpick_ray.store import Store, experiment_folder

Budget = int | Literal["full"]

# The order is promised to scripts; what comes later is appended after them.
CSV_COLUMNS = (
    *(
        "experiment",
        "dataset",
        "architecture",
        "backbone",
        "strategy",
        "seed",
        "budget",
        "split",
        "checkpoint",
        "metric",
    ),
    *("class_name", "value", "fit_key", "pretrained", "setting", "share", "evaluation_key"),
)

# Grid paths with a column of their own; every other path that a grid varies goes into the column `setting`.
_COLUMN_PATHS = frozenset(
    ("seed", "budget", "dataset.name", "model.architecture", "model.backbone", "model.pretrained", "acquire.strategy")
)


@dataclass(frozen=True)
class Point:
    """A trial as a report names it; `strategy` is empty for full supervision, which picks nothing."""

    experiment: str
    dataset: str
    architecture: str
    backbone: str
    pretrained: str
    strategy: str
    setting: str
    seed: int
    budget: Budget


@dataclass(frozen=True)
class Measurement:
    """What an experiment asks to be measured of a trial. `share` of labelled pixels is None where nothing tells it."""

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

    `evidence` has, by evaluation key, what the results of a cell should have in common; `fits` has the provenance by
    fit key.
    """

    experiments: tuple[Experiment, ...]
    measurements: tuple[Measurement, ...]
    rows: tuple[Row, ...]
    missing: tuple[Missing, ...]
    evidence: dict[str, dict[str, str]]
    fits: dict[str, dict[str, Any]]

    @property
    def points(self) -> tuple[Point, ...]:
        """The distinct trials asked for, in the order of the files."""
        return tuple(dict.fromkeys(measurement.point for measurement in self.measurements))


def load_results(store: Store, experiments: Sequence[Experiment]) -> Results:
    """Read what the experiments ask for.

    SpecError when different experiments have one name, StoreError for a record that contradicts its trial.
    """
    if not experiments:
        raise SpecError("report: no experiment given; name at least one experiment file")
    merged = _merged(experiments)
    measurements: list[Measurement] = []
    rows: list[Row] = []
    missing: list[Missing] = []
    for experiment in merged:
        for trial, point in _points(experiment):
            record = store.read_record(f"{experiment_folder(experiment)}/chains/{chain_id(trial)}.json")
            asked = list(_measurements(experiment, trial, point, record))
            measurements += asked
            for split in experiment.evaluate.splits:
                found = _read(store, trial, record, [one for one in asked if one.split == split])
                rows += [] if isinstance(found, Missing) else found
                missing += [found] if isinstance(found, Missing) else []
    evidence = {key: _evidence(store, key) for key in sorted({row.evaluation_key for row in rows})}
    fits = {key: _json(store, "fit", key, "provenance.json") for key in sorted({row.fit_key for row in rows})}
    return Results(merged, tuple(measurements), tuple(rows), tuple(missing), evidence, fits)


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


def _merged(experiments: Sequence[Experiment]) -> tuple[Experiment, ...]:
    """Experiments that differ only in their grids as one, so that no trial is counted twice."""
    by_name: dict[str, Experiment] = {}
    for experiment in experiments:
        known = by_name.setdefault(experiment.name, experiment)
        if known.identity() != experiment.identity():
            raise SpecError(
                f"name: {experiment.name!r} is given to experiments that differ in more than their grids; "
                "rename one, or report them apart"
            )
        if known is not experiment:
            grids = known.grid + tuple(grid for grid in experiment.grid if grid not in known.grid)
            by_name[experiment.name] = known.model_copy(update={"grid": grids})
    return tuple(by_name.values())


def _points(experiment: Experiment) -> list[tuple[Trial, Point]]:
    """Distinct trials with their names; full supervision under several strategies is one trial."""
    paths = _setting_paths(experiment)
    distinct = {(chain_id(trial), trial.budget): trial for trial in reversed(experiment.trials())}
    return [(trial, _point(experiment, trial, paths)) for trial in reversed(distinct.values())]


def _point(experiment: Experiment, trial: Trial, paths: list[str]) -> Point:
    return Point(
        experiment=experiment.name,
        dataset=trial.dataset.name,
        architecture=trial.model.architecture,
        backbone=trial.model.backbone,
        pretrained=trial.model.pretrained,
        strategy="" if trial.budget == "full" else trial.acquire.strategy,
        setting=_setting(trial, paths),
        seed=trial.seed,
        budget=trial.budget,
    )


def _setting_paths(experiment: Experiment) -> list[str]:
    """Innermost paths that some grid sets and that have no column, sorted."""
    given = ((path, value) for grid in experiment.grid for path, values in grid.items() for value in values)
    return sorted({leaf for path, value in given for leaf in _leaves(path, value)} - _COLUMN_PATHS)


def _leaves(path: str, value: Any) -> Iterator[str]:
    if not isinstance(value, dict) or not value:
        yield path
        return
    for key, inner in value.items():
        yield from _leaves(f"{path}.{key}", inner)


def _setting(trial: Trial, paths: list[str]) -> str:
    """For example "acquire.pool_fraction=0.1"; how pixels are picked means nothing to full supervision."""
    tree = trial.model_dump(mode="json")
    if trial.budget == "full":
        del tree["acquire"]
    parts = []
    for path in paths:
        known, value = _lookup(tree, path)
        finer = isinstance(value, dict) and any(other.startswith(f"{path}.") for other in paths)
        if known and not finer:
            parts.append(f"{path}={_value_text(value)}")
    return ", ".join(parts)


def _lookup(tree: Any, path: str) -> tuple[bool, Any]:
    for part in path.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False, None
        tree = tree[part]
    return True, tree


def _value_text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else canonical_json(value)


def _measurements(experiment: Experiment, trial: Trial, point: Point, record: Any) -> Iterator[Measurement]:
    # An evaluation after every epoch is what allows the best one to be named.
    every_epoch = experiment.evaluate.when == "every_epoch" and trial.train.epochs > 1
    share = _share(trial, record)
    for split in experiment.evaluate.splits:
        size = _size_text(experiment, trial, split)
        for checkpoint in ("last", "best") if every_epoch else ("last",):
            yield Measurement(point, split, checkpoint, size, share)


def _share(trial: Trial, record: Any) -> float | None:
    """Labelled pixels over pixels of an average training image."""
    if trial.budget == "full":
        return 1.0
    if record is not None:
        return float(trial.budget / record["pixels_per_image"])
    size = trial.dataset.size
    return trial.budget / (size[0] * size[1]) if size else None


def _size_text(experiment: Experiment, trial: Trial, split: str) -> str:
    size = evaluation_size(experiment.evaluate, trial, split)
    if size.size is not None:
        return f"{size.size[0]} x {size.size[1]} pixels"
    if size.scale is not None:
        return f"scale {size.scale:g}"
    return "native size" if size.long_side is None else f"long side {size.long_side} pixels"


def _read(store: Store, trial: Trial, record: Any, asked: list[Measurement]) -> list[Row] | Missing:
    """The rows of a trial on one split, for each of its checkpoints."""
    point, split = asked[0].point, asked[0].split
    stage = _recorded_stage(record, trial)
    key = stage["evaluations"].get(split) if stage else None
    if stage is None or key is None:
        return Missing(point, split, "not run yet")
    folder = store.result("evaluation", key)
    if folder is None:
        return Missing(point, split, f"evaluation {key[:16]} is absent or damaged")
    with np.load(folder / "confusion.npz") as file:
        epochs, confusion = file["epochs"], file["confusion"]
    names = record["class_names"]
    if confusion.shape != (len(epochs), len(names), len(names)) or not len(epochs):
        raise StoreError(
            f"{folder}: confusion {confusion.shape} does not fit {len(names)} classes; remove it and run again"
        )
    rows = []
    for one in asked:
        index = int(np.argmax(epochs)) if one.checkpoint == "last" else _best(confusion)
        rows += _rows(one, confusion[index], names, stage["fit"], key)
    return rows


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


def _best(confusion: Counts) -> int:
    """Index of the epoch with the highest mIoU, the first of equals."""
    values = [miou(matrix) for matrix in confusion]
    return max(range(len(values)), key=lambda index: -1.0 if math.isnan(values[index]) else values[index])


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
