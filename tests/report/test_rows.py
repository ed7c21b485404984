"""Rows hold what is stored, name what is not, and never mix settings."""

import io
import math
import shutil
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from pixelpick_ray.config.trial import Trial
from pixelpick_ray.errors import SpecError, StoreError
from pixelpick_ray.report import evaluations
from pixelpick_ray.report.cells import Cell, areas, build_cells, reported
from pixelpick_ray.report.evaluations import Evaluation, read_arrays, read_evaluations
from pixelpick_ray.report.rows import csv_text, rows_csv
from tests.support.study import Matrix, Measure, Study, chain_path, csv_lines, experiment, matrix


def test_metrics_are_those_calculated_by_hand_and_the_csv_has_every_digit(study: Study) -> None:
    results = study.filled(lambda trial: [[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    first = results.readings[0]
    classes = {("iou", "sky"): 6 / 9, ("iou", "road"): 1 / 4, ("iou", "car"): math.nan}
    means = {("miou", ""): (6 / 9 + 1 / 4) / 2, ("pixel_accuracy", ""): 0.7}
    assert first.values == pytest.approx(classes | means, nan_ok=True)
    assert first.asked.share == 10 / 172800
    lines = csv_lines(rows_csv(results))
    trial, measured = "experiment,dataset,architecture,backbone,strategy,seed,budget", "split,checkpoint,metric"
    assert ",".join(lines[0]).startswith(f"{trial},{measured},class_name,value,fit_key,")
    values = [value for one in results.readings for value in one.values.values()]
    assert [line["value"] for line in lines] == ["" if math.isnan(value) else repr(value) for value in values]


def test_trials_without_results_are_listed_and_those_whose_chain_failed_say_why(study: Study) -> None:
    empty = study.results(experiment())
    assert (empty.readings, len(empty.missing)) == ((), 6)
    study.fill(experiment(), lambda trial: None if trial.seed == 0 or trial.seed * trial.budget > 10 else matrix(50))
    chains = {trial.seed: trial.chain_id for trial in experiment().trials()}
    for seed, text in ((0, "RunError: no memory\n"), (1, "Traceback (most recent call last):\nDataError: damaged\n")):
        folder = study.store.path / "attempts" / chains[seed]
        folder.mkdir(parents=True)
        (folder / "1700000000000000000.txt").write_text(text)
    results = study.results(experiment())
    failed, other = "failed: RunError: no memory", "failed: DataError: damaged"
    reasons = [(0, 10, failed), (0, 20, failed), (1, 20, other), (2, 10, "not run yet"), (2, 20, "not run yet")]
    found = [(one.point.seed, one.point.budget, one.split, one.reason) for one in results.missing]
    assert found == [(seed, budget, "test", reason) for seed, budget, reason in reasons]


def test_what_is_damaged_under_a_wrong_key_or_contradicts_its_trial_is_missing_or_refused(study: Study) -> None:
    results = study.filled(lambda trial: matrix(10 + trial.seed))
    shutil.rmtree(study.store.path / "fit")  # which leaves the numbers
    without = study.results(experiment())
    assert not without.missing
    assert {one["device"] for one in without.evidence.values()} == {"unknown"}
    damaged, wrong, other = (one.evaluation_key for one in results.readings if one.asked.point.budget == 10)
    path = study.store.folder("evaluation", damaged) / "confusion.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    shutil.rmtree(study.store.folder("evaluation", wrong))
    shutil.copytree(study.store.folder("evaluation", other), study.store.folder("evaluation", wrong))
    reasons = [one.reason for one in study.results(experiment()).missing]
    assert reasons == [f"evaluation {key[:16]} is missing or damaged" for key in (damaged, wrong)]
    path = chain_path(experiment(), experiment().trials()[0])
    record = study.store.read_record(path)
    record["stages"][0]["budget"] = 15
    study.store.write_record(path, record)
    with pytest.raises(StoreError, match="stage 0 has budget 15, but the trial has 10; remove the record"):
        study.results(experiment())


TWO, SIZES = "test: {}, val: {}", "val: {}, small: {split: val, scale: 0.5}, test: {}"
UP = (40, 80, 60)  # IoU in percent by epoch, twice the mIoU


@pytest.mark.parametrize(
    ("splits", "percents", "found"),
    [
        ("test: {}", {"test": UP}, {"test last": 30, "test best": 40}),
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
    mious = {f"{one.asked.split} {one.asked.checkpoint}": 100 * one.values["miou", ""] for one in results.readings}
    assert mious == pytest.approx(found)
    assert {one.split for one in results.missing} == ({"val"} if splits == TWO and "val" not in percents else set())


def test_every_trial_counts_once_whatever_is_asked_for_twice(study: Study) -> None:
    varied = "acquire.strategy: [margin, random], acquire.pool_fraction: [0.1]"
    results = study.filled(lambda trial: matrix(40), f"grid=[{{{varied}, seed: [0], budget: [10, full]}}]")
    (full,) = [one.asked for one in results.readings if one.asked.point.budget == "full"]
    assert (full.point.strategy, full.point.setting, full.share) == ("", "", 1.0)
    assert len(results.trials) == 3
    longer = experiment("grid=[{acquire.strategy: [margin], seed: [0, 1, 2, 3], budget: [10, 20]}]")
    assert len(study.results(experiment(), longer).trials) == 8
    with pytest.raises(SpecError, match="'study' is shared by experiments that differ in more than their grids"):
        study.results(experiment(), experiment("train.epochs=5"))
    with pytest.raises(SpecError, match="no experiment given"):
        study.results()


SETTINGS = {
    "acquire.pool_fraction: [0.1, 0]": ["acquire.pool_fraction=0.1", "acquire.pool_fraction=0.0"],
    "dataset.images: [5, null]": ["dataset.images=5", "dataset.images=none"],
    "model.backbone: [a, b], model.pretrained: [none, x]": [""] * 4,
    "model: [{backbone: a, output_stride: 8}]": ["model.output_stride=8"],
    "train.schedule: [{name: constant}, {name: poly, power: 0.5}]": [
        *("train.schedule.name=constant", "train.schedule.name=poly, train.schedule.power=0.5")
    ],
    "train.augment: [null, {hflip: 0.1}]": ["train.augment=none", "train.augment.hflip=0.1"],
    # A setting of one grid is told of the others too.
    "train.optimizer.lr: [0.1], budget: [10]}, {seed: [0]": ["train.optimizer.lr=0.1", "train.optimizer.lr=0.001"],
}


@pytest.mark.parametrize("varied", SETTINGS)
def test_settings_tell_apart_what_a_grid_varies(study: Study, varied: str) -> None:
    results = study.results(experiment(f"grid=[{{{varied}, budget: [10]}}]"))
    assert [point.setting for point in results.trials] == SETTINGS[varied]


# Cells: grouped by everything but the seed, counted against what was asked for


def shown(study: Study, measure: Measure, *overrides: str) -> tuple[Cell, ...]:
    results = study.filled(measure, *overrides)
    return reported(results, build_cells(results))


@pytest.mark.always("a table of mean and standard deviation by hand")
def test_mean_and_sample_standard_deviation_over_seeds(study: Study) -> None:
    # mIoU 0.20, 0.25, 0.30
    first, second = shown(study, lambda trial: matrix(40 + 10 * trial.seed))
    assert (first.budget, second.budget) == (10, 20)
    assert (first.summary.mean, first.summary.std) == (pytest.approx(0.25), pytest.approx(0.05))
    assert (first.summary.n, first.expected, first.seeds, len(set(first.fit_keys))) == (3, 3, (0, 1, 2), 3)
    assert first.share == pytest.approx(10 / 172800)


def test_missing_seeds_are_counted_not_averaged_away_and_an_area_takes_only_seeds_with_every_budget(
    study: Study,
) -> None:
    def measure(trial: Trial) -> Matrix | None:
        return None if (trial.seed, trial.budget) == (2, 20) else matrix(20 + 20 * trial.seed + trial.budget)

    # mIoU 0.15 to 0.20 for seed 0 and 0.25 to 0.30 for seed 1.
    cells = shown(study, measure)
    assert [(len(cell.values), cell.expected) for cell in cells] == [(3, 3), (2, 3)]
    (area,) = areas(cells)
    assert (area.summary.n, area.expected, area.budgets) == (2, 3, (10, 20))
    assert area.summary.mean == pytest.approx((0.175 + 0.275) / 2)
    (cell,) = shown(study, lambda trial: None, "name=never", "grid=[{seed: [0], budget: [20]}]")
    assert (cell.values, cell.expected, cell.share) == ((), 1, pytest.approx(20 / 172800))
    lacking = "name=lacking", "train.epochs=3", "grid=[{seed: [0, 1], budget: [10]}]"
    cells = build_cells(study.filled(lambda trial: [[5 + 5 * trial.seed, 5 - 5 * trial.seed], [0, 0]], *lacking))
    (road,) = [cell for cell in cells if cell.class_name == "road"]  # which occurs for seed 0 alone
    assert (road.summary.n, len(road.values), road.expected, road.summary.mean) == (1, 2, 2, 0.0)


def test_what_is_one_fit_for_all_seeds_counts_once(study: Study) -> None:
    """Nothing of it is drawn at random: n is 1, and there is no deviation."""
    results = study.filled(lambda trial: matrix(50), "grid=[{seed: [0, 1, 2], budget: [full, 10]}]")
    keys = {one.fit_key: "one" for one in results.readings if one.asked.point.budget == "full"}
    shared = tuple(replace(one, fit_key=keys.get(one.fit_key, one.fit_key)) for one in results.readings)
    ten, full = reported(results, build_cells(replace(results, readings=shared)))
    assert (ten.summary.n, ten.expected, ten.seeds) == (3, 3, (0, 1, 2))
    assert (full.summary.n, full.expected, full.seeds, full.fit_keys) == (1, 1, (0,), ("one",))
    assert math.isnan(full.summary.std)


def test_budgets_ascend_as_numbers_full_supervision_is_last_and_settings_are_never_averaged(study: Study) -> None:
    grid = "grid=[{acquire.strategy: [random, margin], seed: [0], budget: [full, 100, 20]}]"
    found = [(cell.line.strategy, cell.budget) for cell in shown(study, lambda trial: matrix(50), grid)]
    assert found == [("random", 20), ("random", 100), ("margin", 20), ("margin", 100), ("", "full")]
    grid = "grid=[{train.optimizer.lr: [0.1, 0.2], seed: [0, 1], budget: [10]}]"
    cells = shown(study, lambda trial: matrix(40 if trial.train.optimizer.lr == 0.1 else 80), "name=rates", grid)
    assert [(cell.line.setting, cell.summary.mean, cell.expected) for cell in cells] == [
        (f"train.optimizer.lr={lr}", pytest.approx(mean), 2) for lr, mean in ((0.1, 0.2), (0.2, 0.4))
    ]


def test_two_experiments_stand_side_by_side_each_with_the_last_epoch_on_its_reported_split(study: Study) -> None:
    splits = "{test: {scale: 0.5}, val: {}, train: {long_side: 90}, native: {split: val, scale: 1.0}}"
    evaluate = f"evaluate={{splits: {splits}, report: val, when: every_epoch}}"
    pretrained = experiment("name=other", "model.pretrained=imagenet", evaluate)
    study.fill(experiment(), lambda trial: matrix(50))
    study.fill(pretrained, lambda trial: [matrix(90), matrix(80)])
    results = study.results(pretrained, experiment())
    cells = reported(results, build_cells(results))
    assert [(cell.line.experiment, cell.line.pretrained, cell.split, cell.budget) for cell in cells] == [
        *(("other", "imagenet", "val", budget) for budget in (10, 20)),
        *(("study", "none", "test", budget) for budget in (10, 20)),
    ]
    assert (cells[0].summary.mean, cells[2].summary.mean) == (pytest.approx(0.4), pytest.approx(0.25))
    sizes = {one.asked.split: one.asked.size for one in results.readings if one.asked.point.experiment == "other"}
    told = {"test": "scale 0.5", "val": "360 x 480 pixels", "train": "long side 90 pixels", "native": "native size"}
    assert sizes == told


# Reading evaluations: arrays as numpy reads them, and the same from one process and from several

ARRAYS = {
    "counts": np.arange(24, dtype=np.int64).reshape(2, 3, 4),
    "columns_first": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "other_byte_order": np.array([1.5, -2.0], dtype=">f4"),
    **{"empty": np.zeros((0, 3)), "one_number": np.array(7), "names": np.array(["a", "bcd"])},
    "fields": np.zeros(2, dtype=[("y", "<i4"), ("x", "<i4")]),
}


def test_arrays_are_those_that_numpy_reads() -> None:
    def npz(**arrays: Any) -> bytes:
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()

    content = npz(**ARRAYS)
    found = read_arrays(content)
    with np.load(io.BytesIO(content), allow_pickle=False) as expected:
        assert list(found) == expected.files
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array, strict=True)
    with pytest.raises(ValueError, match="an array of objects"):
        read_arrays(npz(values=np.array([{}], dtype=object)))


def plain(found: dict[str, Evaluation | str]) -> dict[str, Any]:
    return {
        key: one if isinstance(one, str) else {name: np.asarray(value).tolist() for name, value in asdict(one).items()}
        for key, one in found.items()
    }


def test_several_processes_read_what_one_reads(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = "evaluate={splits: {test: {}, val: {}}, report: test, when: every_epoch}"
    results = study.filled(lambda trial: [matrix(40 + trial.seed), matrix(60)], splits, code="abc")
    keys = [reading.evaluation_key for reading in results.readings]
    (study.store.folder("evaluation", keys[0]) / "confusion.npz").write_bytes(b"damaged")
    wanted = dict.fromkeys([*keys, "0" * 64], ("sky", "road"))
    alone, fits = read_evaluations(study.store, wanted, processes=1)
    monkeypatch.setattr(evaluations, "READ_ALONE", 2)
    together, same_fits = read_evaluations(study.store, wanted, processes=2)
    assert list(plain(together).items()) == list(plain(alone).items())
    assert same_fits == fits != {}
    absent = {f"evaluation {key[:16]} is missing or damaged" for key in (keys[0], "0" * 64)}
    assert {one for one in alone.values() if isinstance(one, str)} == absent


@pytest.mark.parametrize(
    ("value", "told"),
    [(text, f"'{text}") for text in ("=1+1", "@sum", "+a", "-leaf", "\tx")]
    + [(one, str(one)) for one in ("a=b", "-1.5", "+3", "-inf", -1.5)],
)
def test_a_spreadsheet_takes_no_text_of_a_table_for_a_formula(value: Any, told: str) -> None:
    assert csv_text(("a", "b"), [(value, None)]) == f"a,b\n{told},\n"
