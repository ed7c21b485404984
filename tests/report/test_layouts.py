"""Whole tables as they are read: the default one, budgets across, lines across, classes."""

import pytest

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.report.cells import build_cells, reported
from pixelpick_ray.report.formats import to_markdown
from pixelpick_ray.report.layouts import transposed_table, wide_table
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.rows import Results
from pixelpick_ray.report.tables import class_tables, result_table
from tests.support.study import Matrix, Study, experiment, matrix

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


@pytest.fixture(scope="module")
def results(kept: Study) -> Results:
    """Two strategies with one seed missing, and full supervision."""
    return kept.filled(measured, GRIDS)


CAPTION = (
    "mIoU in percent on camvid test (360 x 480 pixels). Training at 360 x 480 pixels; weights after the last epoch of "
    "a stage; mean ± sample standard deviation (n-1) over 3 seeds."
)
COUNTS = "A count such as (2/3): the value is of 2 of the 3 seeds asked for."
NOTES = (
    "Missing: 1 of 15 trials.\n\n"
    "Bold: the best mean of a setting at a budget, and those that a paired t test over seeds does not tell apart from "
    "it.\n"
)


def test_the_default_table(results: Results) -> None:
    cells = build_cells(results)
    best = frozenset((cell.line, cell.budget) for cell in reported(results, cells)[:2])
    assert to_markdown(result_table(results, cells, strong=best)) == (
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


def test_budgets_across(results: Results) -> None:
    cells = build_cells(results)
    table = wide_table(results, cells, strong=frozenset({(cells[0].line, 20)}))
    assert to_markdown(table) == (
        f"{CAPTION} Columns: labelled pixels per image, with their share of all pixels where it is the same for all "
        "lines.\n\n"
        "| model | pretrained | strategy | 10 px (0.0058 %) | 20 px (0.012 %) | all |\n"
        "| --- | --- | --- | ---: | ---: | ---: |\n"
        "| deeplabv3plus small | none | margin | 22.0 ± 2.0 | **33.0 ± 2.6** | 42.0 ± 2.0 |\n"
        "| deeplabv3plus small | none | random | 22.0 ± 2.0 | 27.0 ± 2.8 (2/3) | 42.0 ± 2.0 |\n\n"
        f"{COUNTS}\n\n{NOTES}"
    )


def test_lines_across(results: Results) -> None:
    cells = build_cells(results)
    table = transposed_table(results, cells, strong=frozenset({(cells[0].line, 20)}))
    assert to_markdown(table) == (
        f"{CAPTION}\n\n"
        "| pixels per image | share (%) | margin | random |\n"
        "| ---: | ---: | ---: | ---: |\n"
        "| 10 | 0.0058 | 22.0 ± 2.0 | 22.0 ± 2.0 |\n"
        "| 20 | 0.012 | **33.0 ± 2.6** | 27.0 ± 2.8 (2/3) |\n"
        "| all | 100 | 42.0 ± 2.0 | 42.0 ± 2.0 |\n\n"
        f"{COUNTS}\n\n{NOTES}"
    )


def test_classes(results: Results) -> None:
    (table,) = class_tables(results, build_cells(results))
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
        "vs random: mean change against random in points, over the seeds that both have.\n"
    )


def layouts(study: Study, *specs: Experiment) -> tuple[Table | None, Table | None]:
    """Budgets across, and lines across."""
    results = study.results(*specs)
    cells = build_cells(results)
    return wide_table(results, cells), transposed_table(results, cells)


def test_what_was_not_asked_for_is_a_dash_and_what_is_not_stored_is_missing(study: Study) -> None:
    margin, random = (
        f"{{acquire.strategy: [{name}], seed: [0, 1], budget: {budgets}}}"
        for name, budgets in (("margin", [10, 20]), ("random", [10]))
    )
    for table in layouts(study, experiment(f"grid=[{margin}, {random}]")):
        assert [row[-2:] for row in table.rows] == [("missing 0/2", "missing 0/2"), ("missing 0/2", "-")]
        assert table.notes == ("Missing: 6 of 6 trials.",)


def test_one_budget_needs_no_other_layout_and_one_line_is_not_transposed(study: Study) -> None:
    assert layouts(study, experiment("grid=[{seed: [0], budget: [10]}]")) == (None, None)
    wide, transposed = layouts(study, experiment("grid=[{seed: [0], budget: [10, full]}]"))
    assert wide.header == ("model", "pretrained", "strategy", "10 px (0.0058 %)", "all")
    assert len(wide.rows) == 1
    assert transposed is None


def test_data_sets_have_a_column_and_shares_that_differ_are_left_out(study: Study) -> None:
    other = experiment("name=other", "dataset={name: voc, size: [100, 100]}")
    wide, transposed = layouts(study, experiment(), other)
    assert wide.header == ("experiment", "dataset", "model", "pretrained", "strategy", "10 px", "20 px")
    assert [row[1] for row in wide.rows] == ["camvid", "voc"]
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
