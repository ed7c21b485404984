"""Rows hold what is stored, name what is not, and never mix settings."""

import csv
import io
import math
import shutil
from typing import NamedTuple

import pytest

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import Budget, Trial
from pixelpick_ray.errors import SpecError, StoreError
from pixelpick_ray.report.rows import CSV_COLUMNS, Results, load_results, rows_csv
from pixelpick_ray.store import experiment_folder
from tests.support.study import Study, experiment, matrix

THREE = [[6, 2, 0], [1, 1, 0], [0, 0, 0]]


class Row(NamedTuple):
    strategy: str
    setting: str
    seed: int
    budget: Budget
    split: str
    checkpoint: str
    metric: str
    class_name: str
    value: float
    share: float | None
    evaluation_key: str


def rows_of(results: Results) -> tuple[Row, ...]:
    """One value a row."""
    rows = []
    for one in results.readings:
        point, asked = one.asked.point, one.asked
        trial = point.strategy, point.setting, point.seed, point.budget, asked.split, asked.checkpoint
        rows += [Row(*trial, *metric, value, asked.share, one.evaluation_key) for metric, value in one.values.items()]
    return tuple(rows)


def by_metric(results: Results, seed: int, budget: int | str) -> dict[str, Row]:
    rows = [row for row in rows_of(results) if (row.seed, row.budget) == (seed, budget)]
    return {row.class_name or row.metric: row for row in rows}


def test_metrics_are_those_calculated_by_hand(study: Study) -> None:
    study.fill(experiment(), lambda trial: THREE)
    rows = by_metric(load_results(study.store, [experiment()]), 0, 10)
    assert rows["sky"].value == pytest.approx(6 / 9)
    assert rows["road"].value == pytest.approx(1 / 4)
    assert rows["miou"].value == pytest.approx((6 / 9 + 1 / 4) / 2)
    assert rows["pixel_accuracy"].value == pytest.approx(0.7)
    assert rows["miou"].share == 10 / 172800


def test_a_class_that_does_not_occur_is_an_empty_field(study: Study) -> None:
    study.fill(experiment(), lambda trial: THREE)
    results = load_results(study.store, [experiment()])
    assert math.isnan(by_metric(results, 0, 10)["car"].value)
    lines = [line for line in csv.DictReader(io.StringIO(rows_csv(results))) if line["class_name"] == "car"]
    assert len(lines) == 6
    assert {line["value"] for line in lines} == {""}


def test_the_csv_begins_with_the_promised_columns(study: Study) -> None:
    trial, measured = "experiment,dataset,architecture,backbone,strategy,seed,budget", "split,checkpoint,metric"
    header = rows_csv(load_results(study.store, [experiment()]))
    assert header.startswith(f"{trial},{measured},class_name,value,fit_key,")


def test_csv_values_are_exact(study: Study) -> None:
    study.fill(experiment(), lambda trial: THREE)
    results = load_results(study.store, [experiment()])
    lines = list(csv.DictReader(io.StringIO(rows_csv(results))))
    assert tuple(lines[0]) == CSV_COLUMNS
    for line, row in zip(lines, rows_of(results), strict=True):
        assert line["value"] == "" if math.isnan(row.value) else float(line["value"]) == row.value


def test_trials_without_results_are_listed(study: Study) -> None:
    study.fill(experiment(), lambda trial: None if (trial.seed, trial.budget) == (1, 20) else matrix(50))
    results = load_results(study.store, [experiment()])
    assert len(results.trials) == 6
    assert [(one.point.seed, one.point.budget, one.split, one.reason) for one in results.missing] == [
        (1, 20, "test", "not run yet")
    ]
    assert not by_metric(results, 1, 20)


def test_a_trial_whose_chain_failed_says_why_and_a_stored_one_is_not_affected(study: Study) -> None:
    spec = experiment()
    study.fill(spec, lambda trial: None if (trial.seed, trial.budget) in ((1, 20), (2, 20)) else matrix(50))
    folder = study.store.path / "attempts" / next(trial for trial in spec.trials() if trial.seed == 1).chain_id
    folder.mkdir(parents=True)
    (folder / "1700000000000000000.txt").write_text("Traceback (most recent call last):\nDataError: a.png is damaged\n")
    results = load_results(study.store, [spec])
    assert [(one.point.seed, one.point.budget, one.reason) for one in results.missing] == [
        (1, 20, "failed: DataError: a.png is damaged"),
        (2, 20, "not run yet"),
    ]
    assert by_metric(results, 1, 10)["miou"].value == 0.25


def test_a_chain_that_failed_before_its_first_stage_is_told_too(study: Study) -> None:
    folder = study.store.path / "attempts" / experiment().trials()[0].chain_id
    folder.mkdir(parents=True)
    (folder / "1700000000000000000.txt").write_text("RunError: no memory\n")
    reasons = {(one.point.seed, one.reason) for one in load_results(study.store, [experiment()]).missing}
    assert reasons == {(0, "failed: RunError: no memory"), (1, "not run yet"), (2, "not run yet")}


def test_an_empty_store_has_every_trial_missing(study: Study) -> None:
    results = load_results(study.store, [experiment()])
    assert (results.readings, len(results.missing)) == ((), 6)


def test_a_damaged_evaluation_is_missing_and_stays_where_it_is(study: Study) -> None:
    study.fill(experiment(), lambda trial: matrix(10 + trial.seed))
    key = by_metric(load_results(study.store, [experiment()]), 0, 10)["miou"].evaluation_key
    path = study.store.folder("evaluation", key) / "confusion.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    results = load_results(study.store, [experiment()])
    assert [one.reason for one in results.missing] == [f"evaluation {key[:16]} is absent or damaged"]
    assert path.exists()


def test_an_evaluation_under_a_wrong_key_is_missing(study: Study) -> None:
    study.fill(experiment(), lambda trial: matrix(10))
    first, second = (by_metric(load_results(study.store, [experiment()]), seed, 10)["miou"] for seed in (0, 1))
    shutil.rmtree(study.store.folder("evaluation", first.evaluation_key))
    source, target = (study.store.folder("evaluation", row.evaluation_key) for row in (second, first))
    shutil.copytree(source, target)
    assert len(load_results(study.store, [experiment()]).missing) == 1


def test_a_removed_fit_leaves_the_numbers(study: Study) -> None:
    study.fill(experiment(), lambda trial: matrix(10))
    shutil.rmtree(study.store.path / "fit")
    results = load_results(study.store, [experiment()])
    assert not results.missing
    assert {one["device"] for one in results.evidence.values()} == {"unknown"}


def test_a_record_that_contradicts_its_trial_is_refused(study: Study) -> None:
    study.fill(experiment(), lambda trial: matrix(10))
    path = f"{experiment_folder(experiment())}/chains/{experiment().trials()[0].chain_id}.json"
    record = study.store.read_record(path)
    record["stages"][0]["budget"] = 15
    study.store.write_record(path, record)
    with pytest.raises(StoreError, match="stage 0 has budget 15, the trial 10; remove it and run again"):
        load_results(study.store, [experiment()])


def test_the_best_epoch_is_named_where_every_epoch_was_evaluated(study: Study) -> None:
    spec = experiment("evaluate.when=every_epoch", "train.epochs=3")
    study.fill(spec, lambda trial: [matrix(40), matrix(80), matrix(60)])
    rows = [row for row in rows_of(load_results(study.store, [spec])) if (row.seed, row.budget) == (0, 10)]
    rows = [row for row in rows if row.metric == "miou"]
    assert {row.checkpoint: row.value for row in rows} == {"last": pytest.approx(0.3), "best": pytest.approx(0.4)}


def test_the_last_epoch_alone_has_no_best(study: Study) -> None:
    study.fill(experiment(), lambda trial: matrix(40))
    assert {row.checkpoint for row in rows_of(load_results(study.store, [experiment()]))} == {"last"}


def by_rule(study: Study, spec: Experiment) -> dict[tuple[str, str], float]:
    """mIoU of seed 0 by split and rule."""
    rows = [row for row in rows_of(load_results(study.store, [spec])) if (row.seed, row.metric) == (0, "miou")]
    return {(row.split, row.checkpoint): row.value for row in rows}


TWO_SPLITS = (
    "train.epochs=3",
    "evaluate={splits: {test: {}, val: {}}, report: test, when: every_epoch}",
    "grid=[{seed: [0], budget: [10]}]",
)


def test_the_epoch_can_be_chosen_on_a_held_out_split(study: Study) -> None:
    spec = experiment(*TWO_SPLITS)
    tests, vals = [matrix(40), matrix(80), matrix(60)], [matrix(10), matrix(20), matrix(30)]
    study.fill(spec, lambda trial: {"test": tests, "val": vals})
    assert by_rule(study, spec) == {
        ("test", "last"): pytest.approx(0.3),
        ("test", "best"): pytest.approx(0.4),
        ("test", "best_on_val"): pytest.approx(0.3),
        ("val", "last"): pytest.approx(0.15),
        ("val", "best"): pytest.approx(0.15),
    }


def test_of_equal_epochs_on_the_held_out_split_the_first_is_read(study: Study) -> None:
    spec = experiment(*TWO_SPLITS)
    tests, vals = [matrix(80), matrix(60), matrix(40)], [matrix(10), matrix(30), matrix(30)]
    study.fill(spec, lambda trial: {"test": tests, "val": vals})
    assert by_rule(study, spec)["test", "best_on_val"] == pytest.approx(0.3)


def test_the_same_split_at_another_size_holds_nothing_out(study: Study) -> None:
    splits = "{splits: {val: {}, small: {split: val, scale: 0.5}, test: {}}, report: val, when: every_epoch}"
    spec = experiment(*TWO_SPLITS, f"evaluate={splits}")
    study.fill(spec, lambda trial: [matrix(40), matrix(80), matrix(60)])
    assert {rule for split, rule in by_rule(study, spec) if split == "val"} == {"last", "best", "best_on_test"}
    assert {rule for split, rule in by_rule(study, spec) if split == "small"} == {"last", "best"}


def test_without_the_held_out_split_its_rule_alone_is_missing(study: Study) -> None:
    spec = experiment(*TWO_SPLITS)
    study.fill(spec, lambda trial: {"test": [matrix(40), matrix(80), matrix(60)]})
    assert set(by_rule(study, spec)) == {("test", "last"), ("test", "best")}
    assert [one.split for one in load_results(study.store, [spec]).missing] == ["val"]


def test_trials_are_found_by_their_names(study: Study) -> None:
    results = load_results(study.store, [experiment()])
    for point, trial in results.trials.items():
        assert (point.seed, point.budget, point.strategy) == (trial.seed, trial.budget, trial.acquire.strategy)


def test_full_supervision_is_one_trial_whatever_the_strategy(study: Study) -> None:
    varied = "acquire.strategy: [margin, random], acquire.pool_fraction: [0.1]"
    spec = experiment(f"grid=[{{{varied}, seed: [0], budget: [10, full]}}]")
    study.fill(spec, lambda trial: matrix(40))
    results = load_results(study.store, [spec])
    full = [row for row in rows_of(results) if row.budget == "full" and row.metric == "miou"]
    assert [(row.strategy, row.setting, row.share) for row in full] == [("", "", 1.0)]
    assert len(results.trials) == 3


@pytest.mark.parametrize(
    ("grid", "settings"),
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
    ],
)
def test_settings_tell_apart_what_a_grid_varies(study: Study, grid: str, settings: list[str]) -> None:
    spec = experiment(f"grid=[{grid}]")
    assert [point.setting for point in load_results(study.store, [spec]).trials] == settings


def test_a_setting_of_one_grid_is_told_of_the_others_too(study: Study) -> None:
    spec = experiment("grid=[{train.optimizer.lr: [0.1], budget: [10]}, {budget: [10]}]")
    points = load_results(study.store, [spec]).trials
    assert [point.setting for point in points] == ["train.optimizer.lr=0.1", "train.optimizer.lr=0.001"]


def test_an_experiment_and_its_extension_count_every_trial_once(study: Study) -> None:
    longer = experiment("grid=[{acquire.strategy: [margin], seed: [0, 1, 2, 3], budget: [10, 20]}]")
    assert len(load_results(study.store, [experiment(), longer]).trials) == 8
    assert len(load_results(study.store, [experiment(), experiment()]).trials) == 6


def test_different_experiments_of_one_name_are_refused(study: Study) -> None:
    with pytest.raises(SpecError, match="'study' is given to experiments that differ in more than their grids"):
        load_results(study.store, [experiment(), experiment("train.epochs=5")])


def test_no_experiment_is_refused(study: Study) -> None:
    with pytest.raises(SpecError, match="no experiment given"):
        load_results(study.store, [])


def test_evaluation_sizes_are_told(study: Study) -> None:
    spec = experiment(
        "evaluate.splits={test: {scale: 0.5}, val: {}, train: {long_side: 90}, native: {split: val, scale: 1.0}}"
    )
    sizes = {one.split: one.size for one in load_results(study.store, [spec]).measurements}
    assert sizes == {
        "test": "scale 0.5",
        "val": "360 x 480 pixels",
        "train": "long side 90 pixels",
        "native": "native size",
    }


def test_every_split_has_its_rows(study: Study) -> None:
    spec = experiment("evaluate.splits={test: {}, val: {}}")

    def measure(trial: Trial) -> list[list[int]]:
        return [[5 + trial.seed, 5], [1, 9]]

    study.fill(spec, measure)
    assert {row.split for row in rows_of(load_results(study.store, [spec]))} == {"test", "val"}
