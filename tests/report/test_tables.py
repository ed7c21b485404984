"""What a reader sees: texts of numbers, formats, captions."""

import math
from dataclasses import replace
from typing import Any

import pytest

from pixelpick_ray.config.trial import Trial
from pixelpick_ray.report.cells import Line, build_cells, full_line
from pixelpick_ray.report.formats import to_text
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.rows import Results
from pixelpick_ray.report.tables import (
    area_table,
    cells_csv,
    class_tables,
    line_labels,
    missing_table,
    protocol_table,
    result_table,
    share_text,
    terminal_table,
)
from tests.support.study import Matrix, Study, column, csv_lines, experiment, matrix

ONE = "grid=[{seed: [0], budget: [10]}]"
BOTH = "acquire.strategy: [margin, random]"


def most(trial: Trial) -> Matrix | None:
    """mIoU 0.20, 0.25, 0.30 of seeds 0, 1, 2, without seed 1 at 20 pixels."""
    return None if (trial.seed, trial.budget) == (1, 20) else matrix(40 + 10 * trial.seed)


def half(trial: Trial) -> Matrix:
    return matrix(50)


def shown(results: Results) -> Table:
    return result_table(results, build_cells(results))


def by_class(results: Results) -> Table:
    (table,) = class_tables(results, build_cells(results))
    return table


def labels(results: Results) -> list[str]:
    return list(line_labels([cell.line for cell in build_cells(results)]).values())


def test_every_kind_of_table_says_where_at_which_sizes_and_after_which_epoch(study: Study) -> None:
    results = study.filled(most, "evaluate={splits: {test: {size: [90, 120]}}, report: test}")
    tables = shown(results), area_table(results, build_cells(results)), by_class(results)
    for table in tables:
        assert (
            "on camvid test (90 x 120 pixels). Training at 360 x 480 pixels; weights after the last epoch of a stage; "
            "mean ± sample standard deviation (n-1) over 3 seeds."
        ) in table.caption
    other = experiment("name=other", "evaluate={splits: {val: {}}, report: val}")
    caption = shown(study.results(experiment(), other)).caption
    assert "camvid test (360 x 480 pixels) for study; camvid val (360 x 480 pixels) for other" in caption


def test_one_seed_has_no_deviation_and_none_is_missing(study: Study) -> None:
    table = shown(study.filled(most, ONE))
    assert column(table, "mIoU (%)") == ["20.0"]
    assert table.caption.endswith("; values of one seed.")
    results = study.results(experiment("name=never-run", "grid=[{seed: [0, 1, 2, 3, 4], budget: [10]}]"))
    assert column(shown(results), "mIoU (%)") == ["missing 0/5"]
    assert class_tables(results, build_cells(results)) == ()


def test_shares_read_as_in_the_paper(study: Study) -> None:
    cell = build_cells(study.results(experiment()))[0]
    shares = (20 / 172800, 40 / 172800, 100 / 172800, 0.00977, 0.0000049, 0.01302, 0.2, 1.0, None)
    texts = ["0.012", "0.023", "0.058", "0.977", "0.00049", "1.30", "20.0", "100", "-"]
    assert [share_text(replace(cell, share=share)) for share in shares] == texts


def test_mixed_cells_are_noted(study: Study) -> None:
    grid = "grid=[{seed: [0, 1], budget: [10]}]"
    study.filled(lambda trial: None if trial.seed else matrix(50), grid, torch="2.0")
    made = study.filled(lambda trial: matrix(50) if trial.seed else None, grid, torch="2.1")
    assert shown(made).notes == ("Mixed within a cell: margin at 10 of study (torch).",)


def test_the_terminal_gets_the_default_table(study: Study) -> None:
    results = study.filled(most)
    assert terminal_table(results) == to_text(shown(results))
    assert "25.0 ± 5.0" in terminal_table(results)


def test_a_class_that_never_occurs_is_a_dash_and_without_random_there_is_no_comparison(study: Study) -> None:
    table = by_class(study.filled(lambda trial: [[1, 1, 0], [1, 1, 0], [0, 0, 0]], ONE))
    assert table.rows[2] == ("car", "-")
    assert table.header == ("class", "margin, 10")


# mIoU is half of the first class's; seeds that one of the strategies lacks do not count.
@pytest.mark.parametrize(
    ("percents", "points"),
    [
        ({("margin", 0): 60, ("margin", 1): 90, ("random", 0): 50, ("random", 2): 10}, ["+10.0", "+0.0", "+5.0"]),
        ({("margin", 0): 50, ("random", 1): 50}, ["-", "-", "-"]),
    ],
)
def test_a_class_is_compared_over_the_seeds_that_both_have(study: Study, percents: Any, points: list[str]) -> None:
    cell = {key: matrix(percent) for key, percent in percents.items()}
    grid = f"grid=[{{{BOTH}, seed: [0, 1, 2], budget: [10]}}]"
    results = study.filled(lambda trial: cell.get((trial.acquire.strategy, trial.seed)), grid)
    assert column(by_class(results), "vs random") == points


def test_random_is_compared_at_the_same_budget(study: Study) -> None:
    margin = "{acquire.strategy: [margin], seed: [0], budget: [10]}"
    random = "{acquire.strategy: [random], seed: [0], budget: [10, 20]}"
    percents = {("margin", 10): 30, ("random", 10): 40, ("random", 20): 80}
    measured = {place: matrix(percent) for place, percent in percents.items()}
    results = study.filled(lambda trial: measured[trial.acquire.strategy, trial.budget], f"grid=[{margin}, {random}]")
    table = by_class(results)
    assert table.header == ("class", "margin, 10", "vs random", "random, 20")
    assert column(table, "vs random") == ["-10.0", "+0.0", "-5.0"]


def test_areas_and_missing_trials_have_tables_of_their_own(study: Study) -> None:
    results = study.filled(most)
    cells = build_cells(results)
    area, missing = area_table(results, cells), missing_table(results, cells)
    found = [column(area, name) for name in ("area (%)", "n", "budgets")]
    assert found == [["25.0 ± 7.1"], ["2/3"], ["10 to 20"]]
    assert missing.rows == (("deeplabv3plus small", "none", "margin", "20", "test", "1", "not run yet"),)
    long = replace(results.missing[0], reason=f"failed: {'out of memory, ' * 20}\nsee the log")
    (reason,) = column(missing_table(replace(results, missing=(long,)), cells), "why")
    assert reason.startswith("failed: out of memory")
    assert len(reason) <= 93
    assert "\n" not in reason
    results = study.filled(most, "grid=[{seed: [0, 1], budget: [10]}]")
    assert area_table(results, build_cells(results)) is None
    assert missing_table(results, build_cells(results)) is None


def test_full_supervision_is_what_other_means_are_a_share_of(study: Study) -> None:
    grid = "grid=[{acquire.pool_fraction: [0.5, 1.0], seed: [0], budget: [10]}, {seed: [0], budget: [full]}]"
    percents = {0.5: 20, 1.0: 50}
    table = shown(study.filled(lambda t: matrix(80 if t.budget == "full" else percents[t.acquire.pool_fraction]), grid))
    assert column(table, "setting") == ["acquire.pool_fraction=0.5", "acquire.pool_fraction=1.0", ""]
    assert column(table, "of full (%)") == ["25.0", "62.5", "100.0"]


def test_without_full_supervision_of_the_same_training_there_is_no_share_of_it(study: Study) -> None:
    grids = "{model.pretrained: [none], train.batch_size: [2, 4], seed: [0], budget: [10]}"
    results = study.filled(half, f"grid=[{grids}, {{train.batch_size: [4], seed: [0], budget: [full]}}]")
    assert column(shown(results), "of full (%)") == ["-", "100.0", "100.0"]


def test_full_supervision_without_a_value_or_alone_gets_no_column(study: Study) -> None:
    grid = "grid=[{seed: [0], budget: [10, full]}]"
    results = study.filled(lambda trial: None if trial.budget == "full" else matrix(50), grid)
    assert "of full (%)" not in shown(results).header
    alone = shown(study.filled(most, "name=alone", "grid=[{seed: [0, 1], budget: [full]}]"))
    assert "of full (%)" not in alone.header
    assert column(alone, "mIoU (%)") == ["22.5 ± 3.5"]


def test_a_line_is_held_to_the_one_full_supervision_whose_settings_it_has() -> None:
    line = Line("e", "d", "a", "b", "none", "margin", "acquire.pool_fraction=1.0, train.epochs=2")
    plain, same = replace(line, strategy="", setting=""), replace(line, strategy="", setting="train.epochs=2")
    other, stranger = replace(same, setting="train.epochs=3"), replace(same, backbone="c")
    assert full_line(line, [line, same, same, other, stranger]) == same
    assert full_line(line, [line, other, stranger]) is None
    assert full_line(line, [plain, same]) is None


EVERY_EPOCH = "evaluate={splits: {test: {}, val: {}}, report: test, when: every_epoch}"
TWO_RULES = ("train.epochs=3", "grid=[{seed: [0, 1], budget: [10]}]", EVERY_EPOCH)
EPOCHS = [matrix(40), matrix(80), matrix(60)]


def test_rules_that_choose_an_epoch_stand_side_by_side(study: Study) -> None:
    measured = {0: {"test": EPOCHS, "val": EPOCHS[::-1]}, 1: {"test": EPOCHS}}
    results = study.filled(lambda trial: measured[trial.seed], *TWO_RULES)
    table = protocol_table(results, build_cells(results))
    assert table.header[-4:] == ("pixels per image", "last", "best on test", "best on val")
    assert [row[-4:] for row in table.rows] == [("10", "30.0 ± 0.0", "40.0 ± 0.0", "40.0 (1/2)")]
    assert "camvid test (360 x 480 pixels)" in table.caption
    assert "flatters" in table.caption


def test_sizes_of_one_split_stand_side_by_side_and_one_needs_no_table(study: Study) -> None:
    splits = "{val: {size: [720, 960]}, val_small: {split: val, size: [90, 120]}, test: {}}"
    measured = {"val": matrix(60), "val_small": matrix(40), "test": matrix(20)}
    results = study.filled(lambda trial: measured, f"evaluate={{splits: {splits}, report: val}}")
    table = protocol_table(results, build_cells(results))
    assert table.header[-2:] == ("val (720 x 960 pixels), last", "val_small (90 x 120 pixels), last")
    assert [row[-3:] for row in table.rows] == [(budget, "30.0 ± 0.0", "20.0 ± 0.0") for budget in ("10", "20")]
    assert "best" not in table.caption
    results = study.filled(most, "evaluate={splits: {test: {}, val: {}}, report: test}")
    assert protocol_table(results, build_cells(results)) is None


def test_the_csv_has_fractions_counts_and_keys_by_every_rule(study: Study) -> None:
    lines = csv_lines(cells_csv(build_cells(study.filled(most))))
    metrics = ("miou", "pixel_accuracy")
    assert [(line["budget"], line["metric"]) for line in lines] == [(b, m) for b in ("10", "20") for m in metrics]
    assert float(lines[0]["mean"]) == pytest.approx(0.25)
    assert float(lines[0]["std"]) == pytest.approx(0.05)
    assert float(lines[0]["high"]) == pytest.approx(0.25 + 4.3027 * 0.05 / math.sqrt(3), abs=1e-5)
    assert (lines[2]["n"], lines[2]["expected"], lines[2]["seeds"]) == ("2", "3", "0 2")
    assert [len(key) for key in lines[2]["fit_keys"].split()] == [64, 64]
    results = study.filled(lambda trial: EPOCHS, *TWO_RULES)
    wanted = {("test", "last"), ("test", "best"), ("test", "best_on_val"), ("val", "last"), ("val", "best")}
    lines = csv_lines(cells_csv(build_cells(results)))
    assert {(line["split"], line["checkpoint"]) for line in lines} == wanted


def test_labels_name_only_what_differs_and_stay_distinct_when_they_are_cut(study: Study) -> None:
    scratch, other = experiment(), experiment("name=other", "model.pretrained=imagenet")
    assert labels(study.results(scratch, other)) == ["pretrained none, margin", "pretrained imagenet, margin"]
    twin = experiment("name=twin", "train.epochs=9")
    assert labels(study.results(scratch, twin)) == ["study, margin", "twin, margin"]
    rates = [{name: {"b": rate} for name in "acdefghijklmnopq"} for rate in (0.125, 0.25)]
    oracles = "[" + ", ".join(f"{{name: erring, confusion: {confusion}}}" for confusion in rates) + "]"
    long = labels(study.results(experiment(f"grid=[{{oracle: {oracles}, seed: [0], budget: [10]}}]")))
    assert len(set(long)) == 2
    assert all(len(label) <= 100 for label in long)
