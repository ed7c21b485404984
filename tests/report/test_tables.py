"""What a reader sees: texts of numbers, formats, captions."""

import csv
import io
import math
from dataclasses import replace

import pytest

from pixelpick_ray.report.cells import Line, build_cells, full_line
from pixelpick_ray.report.formats import to_text
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.rows import Results, load_results
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
from tests.support.study import Study, experiment, matrix


def filled(study: Study, *overrides: str) -> Results:
    """Seeds 0, 1, 2 with mIoU 0.20, 0.25, 0.30, without seed 1 at 20."""
    spec = experiment(*overrides)
    study.fill(spec, lambda trial: None if (trial.seed, trial.budget) == (1, 20) else matrix(40 + 10 * trial.seed))
    return load_results(study.store, [spec])


def column(table: Table, name: str) -> list[str]:
    return [row[table.header.index(name)] for row in table.rows]


def test_the_default_table_is_in_percent_with_share_and_count(study: Study) -> None:
    results = filled(study, "grid=[{seed: [0, 1, 2], budget: [10, 20, full]}, {seed: [0], budget: [30]}]")
    table = result_table(results, build_cells(results))
    assert column(table, "mIoU (%)") == ["25.0 ± 5.0", "25.0 ± 7.1", "20.0", "25.0 ± 5.0"]
    assert column(table, "n") == ["3", "2/3", "1", "3"]
    assert column(table, "share (%)") == ["0.0058", "0.012", "0.017", "100"]
    assert column(table, "pixels per image") == ["10", "20", "30", "all"]
    assert column(table, "strategy") == ["margin", "margin", "margin", "full supervision"]
    assert "Missing: 1 of 10 trials." in table.notes


def test_the_caption_says_split_size_checkpoint_and_seeds(study: Study) -> None:
    results = filled(study)
    caption = result_table(results, build_cells(results)).caption
    assert "camvid test (360 x 480 pixels)" in caption
    assert "last epoch" in caption
    assert "sample standard deviation (n-1) over 3 seeds" in caption


def test_every_kind_of_table_says_where_at_which_sizes_and_after_which_epoch(study: Study) -> None:
    results = filled(study, "evaluate={splits: {test: {size: [90, 120]}}, report: test}")
    cells = build_cells(results)
    tables = (result_table(results, cells), area_table(results, cells), *class_tables(results, cells))
    assert len(tables) == 3
    for table in tables:
        assert table is not None
        assert (
            "on camvid test (90 x 120 pixels). Training at 360 x 480 pixels; weights after the last epoch of a stage; "
            "mean ± sample standard deviation (n-1) over 3 seeds."
        ) in table.caption


def test_one_seed_has_no_deviation_and_the_caption_says_so(study: Study) -> None:
    results = filled(study, "grid=[{seed: [0], budget: [10]}]")
    table = result_table(results, build_cells(results))
    assert column(table, "mIoU (%)") == ["20.0"]
    assert table.caption.endswith("; values of one seed.")


def test_captions_of_different_splits_name_their_experiment(study: Study) -> None:
    other = experiment("name=other", "evaluate={splits: {val: {}}, report: val}")
    results = load_results(study.store, [experiment(), other])
    caption = result_table(results, build_cells(results)).caption
    assert "camvid test (360 x 480 pixels) for study; camvid val (360 x 480 pixels) for other" in caption


def test_a_cell_without_seeds_says_missing(study: Study) -> None:
    results = load_results(study.store, [experiment("grid=[{seed: [0, 1, 2, 3, 4], budget: [10]}]")])
    table = result_table(results, build_cells(results))
    assert column(table, "mIoU (%)") == ["missing 0/5"]
    assert class_tables(results, build_cells(results)) == ()


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (20 / 172800, "0.012"),
        (40 / 172800, "0.023"),
        (100 / 172800, "0.058"),
        (0.00977, "0.977"),
        (0.0000049, "0.00049"),
        (0.01302, "1.30"),
        (0.2, "20.0"),
        (1.0, "100"),
        (None, "-"),
    ],
)
def test_shares_read_as_in_the_paper(study: Study, share: float | None, text: str) -> None:
    results = filled(study)
    assert share_text(replace(build_cells(results)[0], share=share)) == text


def test_classes_are_shown_at_the_largest_budget(study: Study) -> None:
    results = filled(study, "grid=[{acquire.strategy: [margin, random], seed: [0, 1, 2], budget: [10, 20]}]")
    (table,) = class_tables(results, build_cells(results))
    assert table.header == ("class", "margin, 20", "vs random", "random, 20")
    assert [row[0] for row in table.rows] == ["sky", "road", "mean"]
    assert column(table, "margin, 20") == ["50.0 ± 14.1 (2/3)", "0.0 ± 0.0 (2/3)", "25.0 ± 7.1 (2/3)"]
    assert column(table, "vs random") == ["+0.0", "+0.0", "+0.0"]


def test_a_class_that_never_occurs_is_a_dash(study: Study) -> None:
    spec = experiment("grid=[{seed: [0], budget: [10]}]")
    study.fill(spec, lambda trial: [[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    results = load_results(study.store, [spec])
    (table,) = class_tables(results, build_cells(results))
    assert table.rows[2] == ("car", "-")


def test_a_class_is_compared_with_random_over_the_seeds_that_both_have(study: Study) -> None:
    spec = experiment("grid=[{acquire.strategy: [margin, random], seed: [0, 1, 2], budget: [10]}]")
    percents = {("margin", 0): 60, ("margin", 1): 90, ("random", 0): 50, ("random", 2): 10}
    cell = {key: matrix(percent) for key, percent in percents.items()}
    study.fill(spec, lambda trial: cell.get((trial.acquire.strategy, trial.seed)))
    results = load_results(study.store, [spec])
    (table,) = class_tables(results, build_cells(results))
    assert column(table, "vs random") == ["+10.0", "+0.0", "+5.0"]


def test_without_a_common_seed_or_without_random_there_is_no_comparison(study: Study) -> None:
    apart = experiment("grid=[{acquire.strategy: [margin, random], seed: [0, 1], budget: [10]}]")
    study.fill(apart, lambda trial: matrix(50) if (trial.acquire.strategy == "margin") == (trial.seed == 0) else None)
    results = load_results(study.store, [apart])
    (table,) = class_tables(results, build_cells(results))
    assert column(table, "vs random") == ["-", "-", "-"]
    alone = filled(study, "name=alone")
    (table,) = class_tables(alone, build_cells(alone))
    assert table.header == ("class", "margin, 20")


def test_random_is_compared_at_the_same_budget(study: Study) -> None:
    margin = "{acquire.strategy: [margin], seed: [0], budget: [10]}"
    random = "{acquire.strategy: [random], seed: [0], budget: [10, 20]}"
    spec = experiment(f"grid=[{margin}, {random}]")
    percents = {("margin", 10): 30, ("random", 10): 40, ("random", 20): 80}
    study.fill(spec, lambda trial: matrix(percents[trial.acquire.strategy, int(trial.budget)]))
    results = load_results(study.store, [spec])
    (table,) = class_tables(results, build_cells(results))
    assert table.header == ("class", "margin, 10", "vs random", "random, 20")
    assert column(table, "vs random") == ["-10.0", "+0.0", "-5.0"]


def test_areas_and_missing_trials_have_tables_of_their_own(study: Study) -> None:
    results = filled(study)
    cells = build_cells(results)
    area, missing = area_table(results, cells), missing_table(results, cells)
    assert area is not None
    assert missing is not None
    assert (column(area, "area (%)"), column(area, "n"), column(area, "budgets")) == (
        ["25.0 ± 7.1"],
        ["2/3"],
        ["10 to 20"],
    )
    assert missing.rows == (("deeplabv3plus small", "none", "margin", "20", "test", "1", "not run yet"),)


def test_long_reasons_are_one_short_line(study: Study) -> None:
    results = filled(study)
    long = replace(results.missing[0], reason=f"failed: {'out of memory, ' * 20}\nsee the log")
    table = missing_table(replace(results, missing=(long,)), build_cells(results))
    assert table is not None
    (reason,) = column(table, "why")
    assert reason.startswith("failed: out of memory")
    assert len(reason) <= 93
    assert "\n" not in reason


SETTINGS = "{acquire.pool_fraction: [0.5, 1.0], seed: [0], budget: [10]}, {seed: [0], budget: [full]}"


def test_full_supervision_is_what_other_means_are_a_share_of(study: Study) -> None:
    spec = experiment(f"grid=[{SETTINGS}]")
    percents = {0.5: 20, 1.0: 50}
    study.fill(spec, lambda trial: matrix(80 if trial.budget == "full" else percents[trial.acquire.pool_fraction]))
    results = load_results(study.store, [spec])
    table = result_table(results, build_cells(results))
    assert column(table, "setting") == ["acquire.pool_fraction=0.5", "acquire.pool_fraction=1.0", ""]
    assert column(table, "of full (%)") == ["25.0", "62.5", "100.0"]


def test_without_one_full_supervision_of_the_same_training_there_is_no_share_of_it(study: Study) -> None:
    grids = "{model.pretrained: [none], train.batch_size: [2, 4], seed: [0], budget: [10]}"
    spec = experiment(f"grid=[{grids}, {{train.batch_size: [4], seed: [0], budget: [full]}}]")
    study.fill(spec, lambda trial: matrix(50))
    results = load_results(study.store, [spec])
    assert column(result_table(results, build_cells(results)), "of full (%)") == ["-", "100.0", "100.0"]


def test_full_supervision_without_a_value_gets_no_column(study: Study) -> None:
    spec = experiment("grid=[{seed: [0], budget: [10, full]}]")
    study.fill(spec, lambda trial: None if trial.budget == "full" else matrix(50))
    results = load_results(study.store, [spec])
    assert "of full (%)" not in result_table(results, build_cells(results)).header


def test_full_supervision_alone_is_a_share_of_nothing(study: Study) -> None:
    results = filled(study, "grid=[{seed: [0, 1], budget: [full]}]")
    table = result_table(results, build_cells(results))
    assert "of full (%)" not in table.header
    assert column(table, "mIoU (%)") == ["22.5 ± 3.5"]


def test_a_line_is_held_to_the_one_full_supervision_whose_settings_it_has() -> None:
    line = Line("e", "d", "a", "b", "none", "margin", "acquire.pool_fraction=1.0, train.epochs=2")
    plain, same = replace(line, strategy="", setting=""), replace(line, strategy="", setting="train.epochs=2")
    other, stranger = replace(same, setting="train.epochs=3"), replace(same, backbone="c")
    assert full_line(line, [line, same, same, other, stranger]) == same
    assert full_line(line, [line, other, stranger]) is None
    assert full_line(line, [plain, same]) is None


def test_one_budget_has_no_area_and_complete_results_miss_nothing(study: Study) -> None:
    results = filled(study, "grid=[{seed: [0, 1], budget: [10]}]")
    assert area_table(results, build_cells(results)) is None
    assert missing_table(results, build_cells(results)) is None


EPOCHS = ("train.epochs=3", "grid=[{seed: [0, 1], budget: [10]}]")


def test_rules_that_choose_an_epoch_stand_side_by_side(study: Study) -> None:
    spec = experiment(*EPOCHS, "evaluate={splits: {test: {}, val: {}}, report: test, when: every_epoch}")
    epochs = [matrix(40), matrix(80), matrix(60)]
    study.fill(spec, lambda trial: {"test": epochs, "val": epochs[::-1]} if trial.seed == 0 else {"test": epochs})
    results = load_results(study.store, [spec])
    table = protocol_table(results, build_cells(results))
    assert table is not None
    assert table.header[-4:] == ("pixels per image", "last", "best on test", "best on val")
    assert [row[-4:] for row in table.rows] == [("10", "30.0 ± 0.0", "40.0 ± 0.0", "40.0 (1/2)")]
    assert "camvid test (360 x 480 pixels)" in table.caption
    assert "flatters" in table.caption


def test_sizes_of_one_split_stand_side_by_side(study: Study) -> None:
    splits = "{val: {size: [720, 960]}, val_small: {split: val, size: [90, 120]}, test: {}}"
    spec = experiment(f"evaluate={{splits: {splits}, report: val}}")
    study.fill(spec, lambda trial: {"val": matrix(60), "val_small": matrix(40), "test": matrix(20)})
    results = load_results(study.store, [spec])
    table = protocol_table(results, build_cells(results))
    assert table is not None
    assert table.header[-2:] == ("val (720 x 960 pixels), last", "val_small (90 x 120 pixels), last")
    assert [row[-3:] for row in table.rows] == [(budget, "30.0 ± 0.0", "20.0 ± 0.0") for budget in ("10", "20")]
    assert "best" not in table.caption


def test_one_rule_and_one_size_need_no_table(study: Study) -> None:
    results = filled(study, "evaluate={splits: {test: {}, val: {}}, report: test}")
    assert protocol_table(results, build_cells(results)) is None


def test_the_csv_names_every_rule(study: Study) -> None:
    spec = experiment(*EPOCHS, "evaluate={splits: {test: {}, val: {}}, report: test, when: every_epoch}")
    study.fill(spec, lambda trial: [matrix(40), matrix(80), matrix(60)])
    lines = list(csv.DictReader(io.StringIO(cells_csv(build_cells(load_results(study.store, [spec]))))))
    assert {(line["split"], line["checkpoint"]) for line in lines} == {
        *(("test", "last"), ("test", "best"), ("test", "best_on_val"), ("val", "last"), ("val", "best"))
    }


def test_long_settings_are_cut_and_stay_distinct(study: Study) -> None:
    rates = [{name: {"b": rate} for name in "acdefghijklmnopq"} for rate in (0.125, 0.25)]
    oracles = "[" + ", ".join(f"{{name: erring, confusion: {confusion}}}" for confusion in rates) + "]"
    spec = experiment(f"grid=[{{oracle: {oracles}, seed: [0], budget: [10]}}]")
    labels = line_labels([cell.line for cell in build_cells(load_results(study.store, [spec]))])
    assert len(set(labels.values())) == 2
    assert all(len(label) <= 100 for label in labels.values())


def test_the_csv_has_fractions_counts_and_keys(study: Study) -> None:
    results = filled(study)
    lines = list(csv.DictReader(io.StringIO(cells_csv(build_cells(results)))))
    assert [(line["budget"], line["metric"]) for line in lines] == [
        ("10", "miou"),
        ("10", "pixel_accuracy"),
        ("20", "miou"),
        ("20", "pixel_accuracy"),
    ]
    assert float(lines[0]["mean"]) == pytest.approx(0.25)
    assert float(lines[0]["std"]) == pytest.approx(0.05)
    assert float(lines[0]["high"]) == pytest.approx(0.25 + 4.3027 * 0.05 / math.sqrt(3), abs=1e-5)
    assert (lines[2]["n"], lines[2]["expected"], lines[2]["seeds"]) == ("2", "3", "0 2")
    assert [len(key) for key in lines[2]["fit_keys"].split()] == [64, 64]


def test_labels_name_only_what_differs(study: Study) -> None:
    scratch, other = experiment(), experiment("name=other", "model.pretrained=imagenet")
    cells = build_cells(load_results(study.store, [scratch, other]))
    assert list(line_labels([cell.line for cell in cells]).values()) == [
        "pretrained none, margin",
        "pretrained imagenet, margin",
    ]
    twin = experiment("name=twin", "train.epochs=9")
    cells = build_cells(load_results(study.store, [scratch, twin]))
    assert list(line_labels([cell.line for cell in cells]).values()) == ["study, margin", "twin, margin"]


def test_mixed_cells_are_noted(study: Study) -> None:
    spec = experiment("grid=[{seed: [0, 1], budget: [10]}]")
    study.fill(spec, lambda trial: matrix(50) if trial.seed == 0 else None, torch="2.0")
    study.fill(spec, lambda trial: matrix(50) if trial.seed == 1 else None, torch="2.1")
    results = load_results(study.store, [spec])
    assert result_table(results, build_cells(results)).notes == ("Mixed within a cell: margin at 10 of study (torch).",)


def test_the_terminal_gets_the_default_table(study: Study) -> None:
    results = filled(study)
    assert terminal_table(results) == to_text(result_table(results, build_cells(results)))
    assert "25.0 ± 5.0" in terminal_table(results)
