"""Rows hold what is stored, name what is not, and never mix settings."""

import math
import shutil
from collections import namedtuple
from typing import Any

import pytest

from pixelpick_ray.config.trial import Budget
from pixelpick_ray.errors import SpecError, StoreError
from pixelpick_ray.report.rows import CSV_COLUMNS, Results, rows_csv
from tests.support.study import Study, chain_path, csv_lines, experiment, matrix

THREE = [[6, 2, 0], [1, 1, 0], [0, 0, 0]]


Row = namedtuple("Row", "strategy setting seed budget split checkpoint metric class_name value share evaluation_key")


def rows_of(results: Results) -> tuple[Row, ...]:
    """One value a row."""
    rows = []
    for one in results.readings:
        point, asked = one.asked.point, one.asked
        trial = point.strategy, point.setting, point.seed, point.budget, asked.split, asked.checkpoint
        rows += [Row(*trial, *metric, value, asked.share, one.evaluation_key) for metric, value in one.values.items()]
    return tuple(rows)


def by_metric(results: Results, seed: int = 0, budget: int | str = 10) -> dict[str, Row]:
    rows = [row for row in rows_of(results) if (row.seed, row.budget) == (seed, budget)]
    return {row.class_name or row.metric: row for row in rows}


def told_missing(results: Results) -> list[tuple[int, Budget, str, str]]:
    return [(one.point.seed, one.point.budget, one.split, one.reason) for one in results.missing]


def test_metrics_are_those_calculated_by_hand_and_the_csv_has_every_digit(study: Study) -> None:
    results = study.filled(lambda trial: THREE)
    rows = by_metric(results)
    found = [rows[name].value for name in ("sky", "road", "miou", "pixel_accuracy")]
    assert found == pytest.approx([6 / 9, 1 / 4, (6 / 9 + 1 / 4) / 2, 0.7])
    assert rows["miou"].share == 10 / 172800
    assert math.isnan(rows["car"].value)
    lines = csv_lines(rows_csv(results))
    trial, measured = "experiment,dataset,architecture,backbone,strategy,seed,budget", "split,checkpoint,metric"
    assert ",".join(CSV_COLUMNS).startswith(f"{trial},{measured},class_name,value,fit_key,")
    assert tuple(lines[0]) == CSV_COLUMNS
    assert [line["value"] for line in lines if line["class_name"] == "car"] == [""] * 6
    for line, row in zip(lines, rows_of(results), strict=True):
        assert line["value"] == "" if math.isnan(row.value) else float(line["value"]) == row.value


def test_trials_without_results_are_listed(study: Study) -> None:
    empty = study.results(experiment())
    assert (empty.readings, len(empty.missing)) == ((), 6)
    results = study.filled(lambda trial: None if (trial.seed, trial.budget) == (1, 20) else matrix(50))
    assert len(results.trials) == 6
    for point, trial in results.trials.items():
        assert (point.seed, point.budget, point.strategy) == (trial.seed, trial.budget, trial.acquire.strategy)
    assert told_missing(results) == [(1, 20, "test", "not run yet")]
    assert not by_metric(results, 1, 20)


def test_a_trial_whose_chain_failed_says_why_and_a_stored_one_is_not_affected(study: Study) -> None:
    study.fill(experiment(), lambda trial: None if trial.seed == 0 or trial.seed * trial.budget > 10 else matrix(50))
    chains = {trial.seed: trial.chain_id for trial in experiment().trials()}
    for seed, text in ((0, "RunError: no memory\n"), (1, "Traceback (most recent call last):\nDataError: damaged\n")):
        folder = study.store.path / "attempts" / chains[seed]
        folder.mkdir(parents=True)
        (folder / "1700000000000000000.txt").write_text(text)
    results = study.results(experiment())
    failed, other = "failed: RunError: no memory", "failed: DataError: damaged"
    reasons = [(0, 10, failed), (0, 20, failed), (1, 20, other), (2, 10, "not run yet"), (2, 20, "not run yet")]
    assert told_missing(results) == [(seed, budget, "test", reason) for seed, budget, reason in reasons]
    assert by_metric(results, 1)["miou"].value == 0.25


def test_an_evaluation_that_is_damaged_or_under_a_wrong_key_is_missing_and_stays_where_it_is(study: Study) -> None:
    results = study.filled(lambda trial: matrix(10 + trial.seed))
    damaged, wrong, other = (by_metric(results, seed)["miou"].evaluation_key for seed in (0, 1, 2))
    path = study.store.folder("evaluation", damaged) / "confusion.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    shutil.rmtree(study.store.folder("evaluation", wrong))
    shutil.copytree(study.store.folder("evaluation", other), study.store.folder("evaluation", wrong))
    reasons = [one.reason for one in study.results(experiment()).missing]
    assert reasons == [f"evaluation {key[:16]} is absent or damaged" for key in (damaged, wrong)]
    assert path.exists()


def test_a_removed_fit_leaves_the_numbers_and_a_record_that_contradicts_its_trial_is_refused(study: Study) -> None:
    study.filled(lambda trial: matrix(10))
    shutil.rmtree(study.store.path / "fit")
    results = study.results(experiment())
    assert not results.missing
    assert {one["device"] for one in results.evidence.values()} == {"unknown"}
    path = chain_path(experiment(), experiment().trials()[0])
    record = study.store.read_record(path)
    record["stages"][0]["budget"] = 15
    study.store.write_record(path, record)
    with pytest.raises(StoreError, match="stage 0 has budget 15, the trial 10; remove it and run again"):
        study.results(experiment())


TWO, SIZES = "test: {}, val: {}", "val: {}, small: {split: val, scale: 0.5}, test: {}"
UP = (40, 80, 60)  # IoU in percent by epoch, twice the mIoU


@pytest.mark.parametrize(
    ("splits", "percents", "found"),
    [
        ("test: {}", {"test": UP}, {"test last": 30, "test best": 40}),
        (
            TWO,
            {"test": UP, "val": (10, 20, 30)},
            {"test last": 30, "test best": 40, "test best_on_val": 30, "val last": 15, "val best": 15},
        ),
        (  # of equal epochs on the held-out split the first is read
            TWO,
            {"test": (80, 60, 40), "val": (10, 30, 30)},
            {"test last": 20, "test best": 40, "test best_on_val": 30, "val last": 15, "val best": 15},
        ),
        (TWO, {"test": UP}, {"test last": 30, "test best": 40}),  # without the held-out split its rule is missing
        (  # the same split at another size holds nothing out
            SIZES,
            {"val": UP, "small": UP, "test": UP},
            {"val last": 30, "val best": 40, "val best_on_test": 40}
            | {f"{split} {rule}": value for split in ("small", "test") for rule, value in (("last", 30), ("best", 40))},
        ),
    ],
)
def test_epochs_are_chosen_by_every_rule(study: Study, splits: str, percents: Any, found: dict[str, float]) -> None:
    evaluate = f"evaluate={{splits: {{{splits}}}, report: {splits[: splits.index(':')]}, when: every_epoch}}"
    measured = {split: [matrix(percent) for percent in by_epoch] for split, by_epoch in percents.items()}
    results = study.filled(lambda trial: measured, "train.epochs=3", evaluate, "grid=[{seed: [0], budget: [10]}]")
    rows = [row for row in rows_of(results) if row.metric == "miou"]
    assert {f"{row.split} {row.checkpoint}": 100 * row.value for row in rows} == pytest.approx(found)
    assert {one.split for one in results.missing} == ({"val"} if splits == TWO and "val" not in percents else set())


def test_the_last_epoch_alone_has_no_best(study: Study) -> None:
    assert {row.checkpoint for row in rows_of(study.filled(lambda trial: matrix(40)))} == {"last"}


def test_every_trial_counts_once_whatever_is_asked_for_twice(study: Study) -> None:
    varied = "acquire.strategy: [margin, random], acquire.pool_fraction: [0.1]"
    results = study.filled(lambda trial: matrix(40), f"grid=[{{{varied}, seed: [0], budget: [10, full]}}]")
    full = [row for row in rows_of(results) if row.budget == "full" and row.metric == "miou"]
    assert [(row.strategy, row.setting, row.share) for row in full] == [("", "", 1.0)]
    assert len(results.trials) == 3
    longer = experiment("grid=[{acquire.strategy: [margin], seed: [0, 1, 2, 3], budget: [10, 20]}]")
    assert len(study.results(experiment(), longer).trials) == 8
    assert len(study.results(experiment(), experiment()).trials) == 6
    with pytest.raises(SpecError, match="'study' is given to experiments that differ in more than their grids"):
        study.results(experiment(), experiment("train.epochs=5"))
    with pytest.raises(SpecError, match="no experiment given"):
        study.results()


@pytest.mark.parametrize(
    ("grids", "settings"),
    [
        ("{acquire.pool_fraction: [0.1, 0], budget: [10]}", ["acquire.pool_fraction=0.1", "acquire.pool_fraction=0.0"]),
        ("{dataset.images: [5, null], budget: [10]}", ["dataset.images=5", "dataset.images=none"]),
        ("{model.backbone: [a, b], model.pretrained: [none, x], budget: [10]}", [""] * 4),
        ("{model: [{backbone: a, output_stride: 8}], budget: [10]}", ["model.output_stride=8"]),
        (
            "{train.schedule: [{name: constant}, {name: poly, power: 0.5}], budget: [10]}",
            ["train.schedule.name=constant", "train.schedule.name=poly, train.schedule.power=0.5"],
        ),
        ("{train.augment: [null, {hflip: 0.1}], budget: [10]}", ["train.augment=none", "train.augment.hflip=0.1"]),
        (  # a setting of one grid is told of the others too
            "{train.optimizer.lr: [0.1], budget: [10]}, {budget: [10]}",
            ["train.optimizer.lr=0.1", "train.optimizer.lr=0.001"],
        ),
    ],
)
def test_settings_tell_apart_what_a_grid_varies(study: Study, grids: str, settings: list[str]) -> None:
    assert [point.setting for point in study.results(experiment(f"grid=[{grids}]")).trials] == settings


def test_every_split_has_its_rows_and_its_size(study: Study) -> None:
    splits = "{test: {scale: 0.5}, val: {}, train: {long_side: 90}, native: {split: val, scale: 1.0}}"
    results = study.filled(lambda trial: [[5 + trial.seed, 5], [1, 9]], f"evaluate.splits={splits}")
    assert {row.split for row in rows_of(results)} == {"test", "val", "train", "native"}
    sizes = {"test": "scale 0.5", "val": "360 x 480 pixels", "train": "long side 90 pixels", "native": "native size"}
    assert {one.split: one.size for one in results.measurements} == sizes
