"""The budget at which a share of full supervision is reached, with a confidence interval."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pixelpick_ray.report.cells import Cell, Line, full_line, reported
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.rows import Results
from pixelpick_ray.report.statistics import summarise, welch_interval
from pixelpick_ray.report.tables import count_text, line_columns, percent_text

SHARE = 0.95


@dataclass(frozen=True)
class Threshold:
    """The budget at which a line reaches `level`, an mIoU fraction: `SHARE` of full supervision's mean.

    `estimate` and the interval `low` to `high` are in labelled pixels per image: minus infinity if the level is passed
    before the smallest of the `budgets`, infinity if it is not reached by the largest; the interval is NaN if a budget
    has too few seeds. `n` is the smallest number of seeds of a budget, out of `expected`.
    """

    line: Line
    full: float
    level: float
    budgets: tuple[int, ...]
    estimate: float
    low: float
    high: float
    n: int
    expected: int


def thresholds(cells: Sequence[Cell]) -> tuple[Threshold, ...]:
    """Compute the threshold of every line whose model has full supervision; `cells` share one split and checkpoint.

    At each budget, the difference D between a line's mean and the level has a 95 % interval: Student's of the paired
    differences if line and full supervision have the same seeds, Welch's otherwise. Means and interval ends are
    interpolated linearly between budgets. The estimate is where D first reaches 0; the interval runs from where the
    upper end first does so to where the lower end does. It contains the budgets at which the seeds do not distinguish
    the line from the level, and accounts for the level's own uncertainty.
    """
    fulls = {cell.line: cell for cell in cells if cell.budget == "full" and cell.summary.n}
    by_line: defaultdict[Line, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.budget != "full" and cell.summary.n:
            by_line[cell.line].append(cell)
    matched = ((points, full_line(line, fulls)) for line, points in by_line.items())
    return tuple(_threshold(points, fulls[full]) for points, full in matched if full is not None)


def _threshold(points: Sequence[Cell], full: Cell) -> Threshold:
    differences = [_difference(cell, full) for cell in points]
    budgets = tuple(cell.budget for cell in points if cell.budget != "full")
    estimate, low, high = (
        first_crossing(budgets, [difference[end] for difference in differences]) for end in ("centre", "high", "low")
    )
    fewest = min(points, key=lambda cell: cell.summary.n)
    return Threshold(
        line=fewest.line,
        full=full.summary.mean,
        level=SHARE * full.summary.mean,
        budgets=budgets,
        estimate=estimate,
        low=low,
        high=high,
        n=fewest.summary.n,
        expected=fewest.expected,
    )


def _difference(cell: Cell, full: Cell) -> dict[str, float]:
    """How far a cell is above the level, as fractions: centre, and low and high end of the interval."""
    ours, theirs = cell.summary, full.summary
    if sorted(cell.seeds) == sorted(full.seeds):
        by_seed = dict(zip(full.seeds, full.values, strict=True))
        pairs = zip(cell.seeds, cell.values, strict=True)
        paired = summarise([value - SHARE * by_seed[seed] for seed, value in pairs])
        return {"centre": paired.mean, "low": paired.low, "high": paired.high}
    centre, low, high = welch_interval(ours.mean, ours.std, ours.n, SHARE * theirs.mean, SHARE * theirs.std, theirs.n)
    return {"centre": centre, "low": low, "high": high}


def first_crossing(budgets: Sequence[float], heights: Sequence[float]) -> float:
    """Return the budget at which straight lines through the points first reach 0 from below.

    Minus infinity if the first point is already above 0, infinity if none reaches it, NaN if any height is NaN.
    """
    if any(math.isnan(height) for height in heights):
        return math.nan
    if heights[0] >= 0:
        return budgets[0] if heights[0] == 0 else -math.inf
    for (left, below), (right, above) in itertools.pairwise(zip(budgets, heights, strict=True)):
        if above >= 0:
            return left + (right - left) * below / (below - above)
    return math.inf


def threshold_table(results: Results, cells: Sequence[Cell]) -> Table | None:
    """Tabulate the thresholds of the default table; None without full supervision to compare a line with."""
    found = thresholds(reported(results, cells))
    if not found:
        return None
    columns = line_columns(one.line for one in found)
    rows = tuple((*(texts[one.line] for texts in columns.values()), *_texts(one)) for one in found)
    caption = (
        f"Labelled pixels per image at which {100 * SHARE:.0f} % of full supervision's mean mIoU is reached, by linear "
        "interpolation between budgets. The 95 % interval runs from where the upper end of the difference's interval "
        "first reaches 0 to where the lower end does; differences are paired by seed if both have the same seeds."
    )
    header = (*columns, "full (%)", f"{100 * SHARE:.0f} % of it (%)", "pixels per image", "95 % interval", "n")
    return Table(caption, header, rows, "l" * len(columns) + "rrrrr")


def _texts(one: Threshold) -> tuple[str, ...]:
    levels = (percent_text(value, math.nan) for value in (one.full, one.level))
    return *levels, estimate_text(one), interval_text(one), count_text(one.n, one.expected)


def estimate_text(one: Threshold) -> str:
    """Format the estimate, e.g. "46", "below 10", "not reached by 100"."""
    return f"not reached by {one.budgets[-1]}" if one.estimate == math.inf else _budget_text(one, one.estimate)


def interval_text(one: Threshold) -> str:
    """Format the interval, e.g. "31 to 60", "below 10 to 31", "31 to beyond 100"; "-" for too few seeds."""
    if math.isnan(one.low) or math.isnan(one.high):
        return "-"
    return " to ".join(dict.fromkeys(_budget_text(one, end) for end in (one.low, one.high)))


def _budget_text(one: Threshold, budget: float) -> str:
    if math.isinf(budget):
        return f"below {one.budgets[0]}" if budget < 0 else f"beyond {one.budgets[-1]}"
    return f"{budget:.0f}" if budget >= 10 else f"{budget:.2g}"
