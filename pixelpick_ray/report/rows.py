"""Tidy rows from the store, one value per row; what is not stored is listed as missing, never dropped."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import EvaluateSpec, Trial
from pixelpick_ray.errors import StoreError
from pixelpick_ray.report.evaluations import MIOU, PIXEL_ACCURACY, Evaluation, Metric, read_evaluations
from pixelpick_ray.report.points import Point, merged, size_text, trials_by_point
from pixelpick_ray.store import Store
from pixelpick_ray.store.records import ChainRecord, DivergedRecord, StageRecord, read_chain
from pixelpick_ray.tasks import evaluation_size

FORMULA = {*"=+-@\t\r"}  # initial characters that make a spreadsheet evaluate a cell
LAST, BEST, BEST_ON = "last", "best", "best_on_"


@dataclass(frozen=True)
class Measurement:
    """A requested measurement of a trial; the `share` of labelled pixels is None if unknown.

    `split` is the experiment's name for an evaluated split. `checkpoint` is the rule that chooses a stage's epoch:
    `last`, `best` on that split (as in the published code), or `best_on_<name>`, the best on a held-out split.
    """

    point: Point
    split: str
    checkpoint: str
    size: str
    share: float | None


# Scripts rely on the order; new columns are appended.
CSV_COLUMNS = (
    *("experiment", "dataset", "architecture", "backbone", "strategy", "seed", "budget", "split", "checkpoint"),
    *("metric", "class_name", "value", "fit_key", "pretrained", "setting", "share", "evaluation_key"),
)


@dataclass(frozen=True)
class Reading:
    """The metrics of a stored confusion matrix: fractions, NaN for a class that does not occur.

    If `diverged` says how the training diverged, there is no evaluation, and the metrics are 0, the worst value.
    """

    asked: Measurement
    fit_key: str
    evaluation_key: str
    values: Mapping[Metric, float]
    diverged: str = ""


@dataclass(frozen=True)
class Missing:
    """A trial without a stored measurement on a split, and why."""

    point: Point
    split: str
    reason: str


@dataclass(frozen=True)
class Results:
    """Everything a report is made from.

    `trials` are the requested ones, in the order of the files; `evidence` holds, by evaluation key, what the results of
    a cell should have in common; `fits` holds provenance by fit key.
    """

    experiments: tuple[Experiment, ...]
    trials: Mapping[Point, Trial]
    measurements: tuple[Measurement, ...]
    readings: tuple[Reading, ...]
    missing: tuple[Missing, ...]
    evidence: dict[str, dict[str, str]]
    fits: dict[str, dict[str, Any]]

    @property
    def diverged(self) -> dict[Point, str]:
        """The trials whose training diverged, and how."""
        return {one.asked.point: one.diverged for one in self.readings if one.diverged}

    def evaluate(self, experiment: str) -> EvaluateSpec:
        """Return the evaluation settings of an experiment, by its name."""
        return next(one.evaluate for one in self.experiments if one.name == experiment)


def load_results(store: Store, experiments: Sequence[Experiment], *, processes: int = 1) -> Results:
    """Read the results of experiments. Use several `processes` only if nothing runs that forking breaks, such as Ray.

    Raises SpecError if different experiments share a name, StoreError for a record that contradicts its trial.
    """
    together = merged(experiments)
    asked = [one for experiment in together for one in _asked(store, experiment)]
    wanted = {key: one.class_names for one in asked for key in one.evaluation_keys.values()}
    stored, fits = read_evaluations(store, wanted, processes=processes)
    evidence = {key: dict(one.evidence) for key, one in stored.items() if isinstance(one, Evaluation)}
    return Results(
        experiments=together,
        trials={one.point: one.trial for one in asked},
        measurements=tuple(measurement for one in asked for measurement in one.measurements),
        readings=tuple(reading for one in asked for reading in _readings(one, stored)),
        missing=tuple(lost for one in asked for lost in _missing(store, one, stored)),
        evidence=evidence,
        fits=fits | {one.diverged.fit: {} for one in asked if one.diverged},
    )


@dataclass(frozen=True)
class _TrialResults:
    """A trial, its requested measurements, and the keys of its recorded evaluations by split."""

    point: Point
    trial: Trial
    measurements: tuple[Measurement, ...]
    evaluation_keys: Mapping[str, str]
    class_names: Sequence[str]
    diverged: DivergedRecord | None


def _asked(store: Store, experiment: Experiment) -> Iterator[_TrialResults]:
    read_record = cache(partial(read_chain, store, experiment))
    for point, trial in trials_by_point(experiment).items():
        record = read_record(trial.chain_id)
        stage = _recorded_stage(record, trial)
        measurements = tuple(_measurements(experiment.evaluate, trial, point, record))
        keys = {} if stage is None else {split: stage.evaluations.get(split) for split in experiment.evaluate.splits}
        known = {split: key for split, key in keys.items() if key}
        ended = record.diverged if record and record.diverged and record.diverged.stage < trial.num_stages else None
        yield _TrialResults(point, trial, measurements, known, record.class_names if record else (), ended)


def rows_csv(results: Results) -> str:
    """Write readings as CSV, one value per row: floats as their shortest exact text, NaN as an empty field.

    There may be a million rows, so only what changes between rows is formatted.
    """
    lines = [csv_text(CSV_COLUMNS, ())]
    metric_text = cache(_fields)
    for one in results.readings:
        point, asked = one.asked.point, one.asked
        where = point.experiment, point.dataset, point.architecture, point.backbone, point.strategy
        before = _fields((*where, point.seed, point.budget, asked.split, asked.checkpoint))
        behind = _fields((one.fit_key, point.pretrained, point.setting, asked.share, one.evaluation_key))
        lines += [
            f"{before},{metric_text(metric)},{'' if math.isnan(value) else repr(value)},{behind}\n"
            for metric, value in one.values.items()
        ]
    return "".join(lines)


def _fields(values: Sequence[Any]) -> str:
    """Fields of a line of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(map(_cell, values))
    return text.getvalue()


def csv_text(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Write CSV with Unix line ends; NaN and None become empty fields."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([None if value != value else _cell(value) for value in line] for line in lines)  # NaN
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A value safe for spreadsheets: text that looks like a formula is prefixed with an apostrophe."""
    if not isinstance(value, str) or value[:1] not in FORMULA:
        return value
    try:
        float(value)
        return value
    except ValueError:
        return f"'{value}"


def _measurements(
    evaluate: EvaluateSpec, trial: Trial, point: Point, record: ChainRecord | None
) -> Iterator[Measurement]:
    share = _share(trial, record)
    for split in evaluate.splits:
        size = size_text(evaluation_size(evaluate, trial, split), " pixels")
        for checkpoint in _checkpoints(evaluate, trial, split):
            yield Measurement(point, split, checkpoint, size, share)


def _checkpoints(evaluate: EvaluateSpec, trial: Trial, split: str) -> list[str]:
    # The best epoch is known only if every epoch was evaluated.
    if evaluate.when != "every_epoch" or trial.epochs == 1:
        return [LAST]
    held_out = evaluate.held_out if split == evaluate.report else ()
    return [LAST, BEST, *(BEST_ON + name for name in held_out)]


def _share(trial: Trial, record: ChainRecord | None) -> float | None:
    """Labelled pixels divided by the pixels of an average training image."""
    if trial.budget == "full":
        return 1.0
    if record is not None:
        return float(trial.budget / record.pixels_per_image)
    size = trial.dataset.size
    return trial.budget / (size[0] * size[1]) if size else None


def _missing(store: Store, one: _TrialResults, stored: Mapping[str, Evaluation | str]) -> Iterator[Missing]:
    """Splits on which a trial was not measured, and why."""
    if one.diverged:
        return
    for split in dict.fromkeys(measurement.split for measurement in one.measurements):
        key = one.evaluation_keys.get(split)
        found = _failure(store, one.trial) if key is None else stored[key]
        if isinstance(found, str):
            yield Missing(one.point, split, found)


def _failure(store: Store, trial: Trial) -> str:
    error = store.last_error(trial.chain_id)
    return f"failed: {error}" if error else "not run yet"


def _readings(one: _TrialResults, stored: Mapping[str, Evaluation | str]) -> Iterator[Reading]:
    if one.diverged:
        worst = {MIOU: 0.0, PIXEL_ACCURACY: 0.0}
        yield from (Reading(asked, one.diverged.fit, "", worst, one.diverged.message) for asked in one.measurements)
        return
    found = {split: stored[key] for split, key in one.evaluation_keys.items()}
    for asked in one.measurements:
        chooser = asked.checkpoint.removeprefix(BEST_ON) if asked.checkpoint.startswith(BEST_ON) else asked.split
        read, chosen = found.get(asked.split, ""), found.get(chooser, "")
        if not isinstance(read, str) and not isinstance(chosen, str):
            values = read.values(chosen.last_epoch if asked.checkpoint == LAST else chosen.best_epoch)
            if values is not None:
                yield Reading(asked, read.fit_key, read.key, values)


def _recorded_stage(record: ChainRecord | None, trial: Trial) -> StageRecord | None:
    stages = record.stages if record else ()
    if len(stages) < trial.num_stages:
        return None
    stage = stages[trial.num_stages - 1]
    if stage.budget != trial.budget:
        raise StoreError(
            f"the record of chain {trial.chain_id}: stage {trial.num_stages - 1} has budget {stage.budget}, but the "
            f"trial has {trial.budget}; remove the record and run again"
        )
    return stage
