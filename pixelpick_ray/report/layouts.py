"""Other layouts of the default table: budgets across, as in papers, and lines across."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pixelpick_ray.config.trial import Budget
from pixelpick_ray.report.cells import Cell, Line, reported
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.rows import Results
from pixelpick_ray.report.tables import (
    Strong,
    budget_text,
    caption_text,
    count_notes,
    full_lines,
    line_columns,
    line_labels,
    result_notes,
    share_text,
    value_and_n_text,
)

_COLUMNS = "Columns: labelled pixels per image and, if the same for all lines, their share of all pixels."


@dataclass(frozen=True)
class _Grid:
    """Cells by line and ascending budget, "full" last; full supervision is repeated for lines compared with it."""

    lines: tuple[Line, ...]
    budgets: tuple[Budget, ...]
    cells: Mapping[tuple[Line, Budget], Cell]

    def text(self, line: Line, budget: Budget) -> str:
        """Return the value as text, "-" if none was requested."""
        cell = self.cells.get((line, budget))
        return value_and_n_text(cell) if cell else "-"

    def share_text(self, budget: Budget) -> str:
        """Return the share of labelled pixels in percent; "-" if unknown or different between lines."""
        shares = {share_text(cell) for (_, own), cell in self.cells.items() if own == budget}
        return shares.pop() if len(shares) == 1 else "-"


def wide_table(results: Results, cells: Sequence[Cell], *, strong: Strong = frozenset()) -> Table | None:
    """Lay out the default table with lines down and budgets across; None if there is only one budget.

    Full supervision is the last column. `strong` cells are bold.
    """
    shown = reported(results, cells)
    grid = _grid(shown)
    if len(grid.budgets) < 2:
        return None
    columns = line_columns(grid.lines)
    rows = tuple(
        (*(texts[line] for texts in columns.values()), *(grid.text(line, budget) for budget in grid.budgets))
        for line in grid.lines
    )
    bold = frozenset(
        (row, len(columns) + column)
        for row, line in enumerate(grid.lines)
        for column, budget in enumerate(grid.budgets)
        if (line, budget) in strong
    )
    header = (*columns, *(_head(budget, grid.share_text(budget)) for budget in grid.budgets))
    alignment = "l" * len(columns) + "r" * len(grid.budgets)
    caption = f"{caption_text('mIoU in percent', results, shown)} {_COLUMNS}"
    return Table(caption, header, rows, alignment, _notes(results, shown, strong), bold)


def transposed_table(results: Results, cells: Sequence[Cell], *, strong: Strong = frozenset()) -> Table | None:
    """Lay out the default table with budgets down and lines across; None if there is only one budget or line.

    Full supervision is the last row. `strong` cells are bold.
    """
    shown = reported(results, cells)
    grid = _grid(shown)
    if len(grid.budgets) < 2 or len(grid.lines) < 2:
        return None
    rows = tuple(
        (budget_text(budget), grid.share_text(budget), *(grid.text(line, budget) for line in grid.lines))
        for budget in grid.budgets
    )
    bold = frozenset(
        (row, 2 + column)
        for row, budget in enumerate(grid.budgets)
        for column, line in enumerate(grid.lines)
        if (line, budget) in strong
    )
    labels = line_labels(grid.lines)
    header = ("pixels per image", "share (%)", *(labels[line] for line in grid.lines))
    caption = caption_text("mIoU in percent", results, shown)
    return Table(caption, header, rows, "r" * len(header), _notes(results, shown, strong), bold)


def _grid(shown: Sequence[Cell]) -> _Grid:
    found = {(cell.line, cell.budget): cell for cell in shown}
    fulls = full_lines(cell.line for cell in shown)
    found |= {(line, "full"): found[full, "full"] for line, full in fulls.items()}
    lines = tuple(line for line in dict.fromkeys(cell.line for cell in shown) if line not in fulls.values())
    numbers = sorted({cell.budget for cell in shown if cell.budget != "full"})
    full: tuple[Budget, ...] = ("full",) if any(cell.budget == "full" for cell in shown) else ()
    return _Grid(lines, (*numbers, *full), found)


def _head(budget: Budget, share: str) -> str:
    """Column head, e.g. "10 px (0.006 %)"."""
    if budget == "full":
        return budget_text(budget)
    return f"{budget} px" + ("" if share == "-" else f" ({share} %)")


def _notes(results: Results, cells: Sequence[Cell], strong: Strong) -> tuple[str, ...]:
    return count_notes(cells) + result_notes(results, cells, strong)
