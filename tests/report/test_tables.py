"""What a reader sees: texts of numbers, formats, captions."""

import math
from dataclasses import replace
from typing import Any

import pytest

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.report import tables
from pixelpick_ray.report.cells import Line, build_cells, full_line, reported
from pixelpick_ray.report.formats import to_markdown, to_text
from pixelpick_ray.report.layouts import transposed_table, wide_table
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.rows import Results
from tests.support.study import Matrix, Study, column, csv_lines, experiment, matrix

ONE, BOTH = "grid=[{seed: [0], budget: [10]}]", "grid=[{seed: [0], budget: [10, full]}]"


def most(trial: Trial) -> Matrix | None:
    """mIoU 0.20, 0.25, 0.30 of seeds 0, 1, 2, without seed 1 at 20 pixels."""
    return None if (trial.seed, trial.budget) == (1, 20) else matrix(40 + 10 * trial.seed)


def shown(results: Results) -> Table:
    return tables.result_table(results, build_cells(results))


def by_class(results: Results) -> Table:
    (table,) = tables.class_tables(results, build_cells(results))
    return table


def test_one_seed_has_no_deviation_none_is_missing_and_mixed_ones_are_noted(study: Study) -> None:
    results = study.filled(most, ONE)
    table = shown(results)
    assert tables.terminal_table(results) == to_text(table)  # the terminal gets the default table
    assert column(table, "mIoU (%)") == ["20.0"]
    assert table.caption.endswith("; values of one seed.")
    results = study.results(experiment("name=never-run", "grid=[{seed: [0, 1, 2, 3, 4], budget: [10]}]"))
    assert column(shown(results), "mIoU (%)") == ["missing 0/5"]
    assert tables.class_tables(results, build_cells(results)) == ()
    cell = build_cells(results)[0]  # shares read as in the paper
    shares = {20 / 172800: "0.012", 0.00977: "0.977", 0.0000049: "0.00049", 0.01302: "1.30", 0.2: "20.0", 1.0: "100"}
    assert {share: tables.share_text(replace(cell, share=share)) for share in shares} == shares
    assert tables.share_text(replace(cell, share=None)) == "-"
    grid = "grid=[{seed: [0, 1], budget: [10]}]"
    study.filled(lambda trial: None if trial.seed else matrix(50), "name=mixed", "train.epochs=4", grid, torch="2.0")
    made = study.filled(lambda trial: matrix(50), "name=mixed", "train.epochs=4", grid, torch="2.1")
    assert shown(made).notes == ("Mixed within a cell: margin at 10 of mixed (torch).",)


def test_a_class_is_compared_with_random_at_the_same_budget_and_with_nothing_where_there_is_none(study: Study) -> None:
    table = by_class(study.filled(lambda trial: [[1, 1, 0], [1, 1, 0], [0, 0, 0]], ONE))
    assert (table.header, table.rows[2]) == (("class", "margin, 10"), ("car", "-"))  # which never occurs
    percents = {("margin", 10): 30, ("random", 10): 40, ("random", 20): 80}
    margin, random = (
        f"{{acquire.strategy: [{name}], seed: [3], budget: {budgets}}}"
        for name, budgets in (("margin", [10]), ("random", [10, 20]))
    )
    results = study.filled(lambda t: matrix(percents[t.acquire.strategy, t.budget]), f"grid=[{margin}, {random}]")
    table = by_class(results)
    assert table.header == ("class", "margin, 10", "vs random", "random, 20")
    assert column(table, "vs random") == ["-10.0", "+0.0", "-5.0"]
    apart = "grid=[{acquire.strategy: [margin, random], seed: [4, 5], budget: [10]}]"  # no seed of both
    results = study.filled(lambda t: matrix(50) if (t.acquire.strategy == "margin") == (t.seed == 4) else None, apart)
    assert column(by_class(results), "vs random") == ["-"] * 3


def test_areas_missing_trials_and_the_csv_and_that_tables_say_where_and_at_which_sizes(study: Study) -> None:
    results = study.filled(most, "evaluate={splits: {test: {size: [90, 120]}}, report: test}")
    cells = build_cells(results)
    area, missing = tables.area_table(results, cells), tables.missing_table(results, cells)
    for table in (shown(results), area, by_class(results)):
        assert "on camvid test (90 x 120 pixels). Training at 360 x 480 pixels; weights after" in table.caption
    found = [column(area, name) for name in ("area (%)", "n", "budgets")]
    assert found == [["25.0 ± 7.1"], ["2/3"], ["10 to 20"]]
    assert missing.rows == (("deeplabv3plus small", "none", "margin", "20", "test", "1", "not run yet"),)
    long = replace(results.missing[0], reason=f"failed: {'out of memory, ' * 20}\nsee the log")
    (reason,) = column(tables.missing_table(replace(results, missing=(long,)), cells), "why")
    assert (reason[:21], len(reason) <= 93, "\n" in reason) == ("failed: out of memory", True, False)
    lines = csv_lines(tables.cells_csv(cells))
    metrics = ("miou", "pixel_accuracy")
    assert [(line["budget"], line["metric"]) for line in lines] == [(b, m) for b in ("10", "20") for m in metrics]
    numbers = [float(lines[0][name]) for name in ("mean", "std", "high")]
    assert numbers == pytest.approx([0.25, 0.05, 0.25 + 4.3027 * 0.05 / math.sqrt(3)], abs=1e-5)
    assert (lines[2]["n"], lines[2]["expected"], lines[2]["seeds"]) == ("2", "3", "0 2")
    assert [len(key) for key in lines[2]["fit_keys"].split()] == [64, 64]


def test_a_line_is_held_to_the_one_full_supervision_whose_settings_it_has() -> None:
    line = Line("e", "d", "a", "b", "none", "margin", "acquire.pool_fraction=1.0, train.epochs=2")
    plain, same = replace(line, strategy="", setting=""), replace(line, strategy="", setting="train.epochs=2")
    other, stranger = replace(same, setting="train.epochs=3"), replace(same, backbone="c")
    assert full_line(line, [line, same, same, other, stranger]) == same
    assert full_line(line, [line, other, stranger]) is None
    assert full_line(line, [plain, same]) is None


def test_rules_that_choose_an_epoch_and_sizes_of_one_split_stand_side_by_side(study: Study) -> None:
    epochs = [matrix(40), matrix(80), matrix(60)]
    measured = {0: {"test": epochs, "val": epochs[::-1]}, 1: {"test": epochs}}
    two_rules = "train.epochs=3", "evaluate={splits: {test: {}, val: {}}, report: test, when: every_epoch}"
    results = study.filled(lambda trial: measured[trial.seed], *two_rules, "grid=[{seed: [0, 1], budget: [10]}]")
    table = tables.protocol_table(results, build_cells(results))
    assert table.header[-4:] == ("pixels per image", "last", "best on test", "best on val")
    assert [row[-4:] for row in table.rows] == [("10", "30.0 ± 0.0", "40.0 ± 0.0", "40.0 (1/2)")]
    assert "optimistic" in table.caption
    wanted = {("test", "last"), ("test", "best"), ("test", "best_on_val"), ("val", "last"), ("val", "best")}
    lines = csv_lines(tables.cells_csv(build_cells(results)))
    assert {(line["split"], line["checkpoint"]) for line in lines} == wanted
    splits = "{val: {size: [720, 960]}, val_small: {split: val, size: [90, 120]}, test: {}}"
    measured = {"val": matrix(60), "val_small": matrix(40), "test": matrix(20)}
    results = study.filled(lambda trial: measured, f"evaluate={{splits: {splits}, report: val}}")
    table = tables.protocol_table(results, build_cells(results))
    assert table.header[-2:] == ("val (720 x 960 pixels), last", "val_small (90 x 120 pixels), last")
    assert [row[-3:] for row in table.rows] == [(budget, "30.0 ± 0.0", "20.0 ± 0.0") for budget in ("10", "20")]
    assert "best" not in table.caption
    results = study.filled(most, "name=plain", "grid=[{seed: [0, 1], budget: [10]}]")
    cells = build_cells(results)  # one rule, one size, one budget and all stored need no table
    for make in (tables.protocol_table, tables.area_table, tables.missing_table):
        assert make(results, cells) is None


def test_labels_name_only_what_differs_and_stay_distinct_when_they_are_cut(study: Study) -> None:
    def labels(*overrides: str, beside: bool = True) -> list[str]:
        results = study.results(*([experiment()] * beside), experiment(*overrides))
        return list(tables.line_labels([cell.line for cell in build_cells(results)]).values())

    models = labels("name=other", "model.pretrained=imagenet")
    assert models == ["pretrained none, margin", "pretrained imagenet, margin"]
    assert labels("name=twin", "train.epochs=9") == ["study, margin", "twin, margin"]
    rates = [{name: {"b": rate} for name in "acdefghijklmnopq"} for rate in (0.125, 0.25)]
    oracles = "[" + ", ".join(f"{{name: erring, confusion: {confusion}}}" for confusion in rates) + "]"
    long = labels(f"grid=[{{oracle: {oracles}, seed: [0], budget: [10]}}]", beside=False)
    assert len(set(long)) == 2
    assert all(len(label) <= 100 for label in long)


# Whole tables as they are read: the default one, budgets across, lines across, classes; seeds that one of the
# strategies lacks do not count in what compares them

SEEDS = "seed: [0, 1, 2]"
GRIDS = f"grid=[{{acquire.strategy: [margin, random], {SEEDS}, budget: [10, 20]}}, {{{SEEDS}, budget: [full]}}]"

# IoU of the first class in percent, of seeds 0, 1 and 2; that of the second is 0, so that mIoU is half of it.
PERCENTS = {
    **{("margin", 10): (40, 44, 48), ("margin", 20): (60, 70, 68), ("", "full"): (80, 84, 88)},
    **{("random", 10): (40, 44, 48), ("random", 20): (50, None, 58)},
}


def measured(trial: Trial) -> Matrix | None:
    percent = PERCENTS["" if trial.budget == "full" else trial.acquire.strategy, trial.budget][trial.seed]
    return None if percent is None else matrix(percent)


CAPTION = (
    "mIoU in percent on camvid test (360 x 480 pixels). Training at 360 x 480 pixels; weights after the last epoch of "
    "a stage; mean ± sample standard deviation (n-1) over 3 seeds."
)
COUNTS = "A count such as (2/3): the value is over 2 of the 3 seeds requested."
NOTES = (
    "Missing: 1 of 15 trials.\n\n"
    "Bold: the best mean of a setting at a budget, and all means that a paired t test over seeds cannot "
    "distinguish from it.\n"
)


def test_the_default_table_the_other_layouts_and_classes(study: Study) -> None:
    results = study.filled(measured, GRIDS)
    whole = results, build_cells(results)
    best = frozenset((cell.line, cell.budget) for cell in reported(*whole)[:2])
    assert to_markdown(tables.result_table(*whole, strong=best)) == (
        f"{CAPTION}\n\n"
        "| model | pretrained | strategy | pixels per image | share (%) | mIoU (%) | of full (%) | n |\n"
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| deeplabv3plus small | none | margin | 10 | 0.0058 | **22.0 ± 2.0** | 52.4 | 3 |\n"
        "| deeplabv3plus small | none | margin | 20 | 0.012 | **33.0 ± 2.6** | 78.6 | 3 |\n"
        "| deeplabv3plus small | none | random | 10 | 0.0058 | 22.0 ± 2.0 | 52.4 | 3 |\n"
        "| deeplabv3plus small | none | random | 20 | 0.012 | 27.0 ± 2.8 | 64.3 | 2/3 |\n"
        "| deeplabv3plus small | none | full supervision | all | 100 | 42.0 ± 2.0 | 100.0 | 3 |\n\n"
        f"{NOTES}"
    )
    strong = frozenset({(whole[1][0].line, 20)})
    assert to_markdown(wide_table(*whole, strong=strong)) == (
        f"{CAPTION} Columns: labelled pixels per image and, if the same for all lines, their share of all pixels.\n\n"
        "| model | pretrained | strategy | 10 px (0.0058 %) | 20 px (0.012 %) | all |\n"
        "| --- | --- | --- | ---: | ---: | ---: |\n"
        "| deeplabv3plus small | none | margin | 22.0 ± 2.0 | **33.0 ± 2.6** | 42.0 ± 2.0 |\n"
        "| deeplabv3plus small | none | random | 22.0 ± 2.0 | 27.0 ± 2.8 (2/3) | 42.0 ± 2.0 |\n\n"
        f"{COUNTS}\n\n{NOTES}"
    )
    assert to_markdown(transposed_table(*whole, strong=strong)) == (
        f"{CAPTION}\n\n"
        "| pixels per image | share (%) | margin | random |\n"
        "| ---: | ---: | ---: | ---: |\n"
        "| 10 | 0.0058 | 22.0 ± 2.0 | 22.0 ± 2.0 |\n"
        "| 20 | 0.012 | **33.0 ± 2.6** | 27.0 ± 2.8 (2/3) |\n"
        "| all | 100 | 42.0 ± 2.0 | 42.0 ± 2.0 |\n\n"
        f"{COUNTS}\n\n{NOTES}"
    )
    (table,) = tables.class_tables(*whole)
    assert to_markdown(table) == (
        "study, deeplabv3plus small, pretrained none: IoU of each class in percent, at the largest budget, on camvid "
        "test (360 x 480 pixels). Training at 360 x 480 pixels; weights after the last epoch of a stage; "
        "mean ± sample standard deviation (n-1) over 3 seeds.\n\n"
        "| class | margin, 20 | vs random | random, 20 | full supervision, all |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| sky | 66.0 ± 5.3 | +10.0 | 54.0 ± 5.7 (2/3) | 84.0 ± 4.0 |\n"
        "| road | 0.0 ± 0.0 | +0.0 | 0.0 ± 0.0 (2/3) | 0.0 ± 0.0 |\n"
        "| mean | 33.0 ± 2.6 | +5.0 | 27.0 ± 2.8 (2/3) | 42.0 ± 2.0 |\n\n"
        f"{COUNTS}\n\n"
        "vs random: mean difference from random in points, over the seeds that both have.\n"
    )


def layouts(study: Study, *specs: Experiment) -> Any:
    """Budgets across, and lines across."""
    results = study.results(*specs)
    cells = build_cells(results)
    return wide_table(results, cells), transposed_table(results, cells)


def test_what_was_not_asked_for_is_a_dash_and_what_is_not_stored_is_missing(study: Study) -> None:
    assert layouts(study, experiment(ONE)) == (None, None)  # one budget needs no other layout, and one line one
    wide, transposed = layouts(study, experiment(BOTH))
    assert (wide.header[-2:], len(wide.rows), transposed) == (("10 px (0.0058 %)", "all"), 1, None)
    margin, random = (
        f"{{acquire.strategy: [{name}], seed: [0, 1], budget: {budgets}}}"
        for name, budgets in (("margin", [10, 20]), ("random", [10]))
    )
    for table in layouts(study, experiment(f"grid=[{margin}, {random}]")):
        assert [row[-2:] for row in table.rows] == [("missing 0/2", "missing 0/2"), ("missing 0/2", "-")]
        assert table.notes == ("Missing: 6 of 6 trials.",)


def test_data_sets_have_a_column_and_shares_that_differ_are_left_out(study: Study) -> None:
    other = experiment("name=other", "dataset={name: voc, size: [100, 100]}")
    wide, transposed = layouts(study, experiment(), other)
    assert wide.header == ("experiment", "dataset", "model", "pretrained", "strategy", "10 px", "20 px")
    assert transposed.header == ("pixels per image", "share (%)", "camvid, margin", "voc, margin")
    assert [row[:2] for row in transposed.rows] == [("10", "-"), ("20", "-")]
    assert "Training at 360 x 480 pixels for study; 100 x 100 pixels for other; weights" in wide.caption


def test_full_supervision_that_no_strategy_is_held_to_has_a_line_of_its_own(study: Study) -> None:
    grids = (f"{{train.batch_size: [{n}], seed: [0], budget: [{budget}]}}" for n, budget in ((2, 10), (4, "full")))
    spec = experiment(f"grid=[{', '.join(grids)}]")
    study.fill(spec, lambda trial: matrix(50))
    wide, _ = layouts(study, spec)
    assert [row[2:] for row in wide.rows] == [
        ("train.batch_size=2", "margin", "25.0", "-"),
        ("train.batch_size=4", "full supervision", "-", "25.0"),
    ]
    assert column(shown(study.results(spec)), "of full (%)") == ["-", "100.0"]
    alone = study.filled(lambda trial: matrix(50), "name=alone", "grid=[{seed: [0], budget: [full]}]")
    lacking = study.filled(lambda trial: None if trial.budget == "full" else matrix(50), "name=lacking", BOTH)
    assert not any("of full (%)" in shown(results).header for results in (alone, lacking))
