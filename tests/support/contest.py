"""Cells written by hand, for what compares strategies: mIoU by strategy, budget and seed."""

import math
from collections.abc import Collection, Mapping, Sequence

from pixelpick_ray.report.cells import Cell, Line
from pixelpick_ray.report.judgement import Contest, judge
from pixelpick_ray.report.rows import Results
from pixelpick_ray.report.statistics import summarise
from tests.support.study import experiment

Percent = Mapping[str, Mapping[int, Sequence[float | None]]]

RESULTS = Results((experiment(),), {}, (), (), (), {}, {})


def line(strategy: str, setting: str = "") -> Line:
    return Line("study", "camvid", "deeplabv3plus", "small", "none", strategy, setting)


def make_cells(percent: Percent, *, same: Collection[int] = (), setting: str = "") -> tuple[Cell, ...]:
    """Cells of the default table; None is a missing seed, and at the budgets `same` all strategies share networks."""
    return tuple(
        make_cell(line(strategy, setting), budget, values, "shared" if budget in same else strategy)
        for strategy, by_budget in percent.items()
        for budget, values in by_budget.items()
    )


def make_cell(line: Line, budget: int, percent: Sequence[float | None], network: str) -> Cell:
    values = {seed: value / 100 for seed, value in enumerate(percent) if value is not None}
    return Cell(
        line=line,
        budget=budget,
        split="test",
        checkpoint="last",
        metric="miou",
        class_name="",
        size="360 x 480 pixels",
        share=math.nan,
        expected=len(percent),
        seeds=tuple(values),
        values=tuple(values.values()),
        summary=summarise(list(values.values())),
        fit_keys=tuple(f"{network} {budget} {seed}" for seed in values),
        mixed=(),
    )


def contests(*cells: Cell) -> tuple[Contest, ...]:
    return judge(RESULTS, cells)
