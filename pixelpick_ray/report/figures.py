"""Curves over the budget. Drawing computes nothing: every number comes from a cell."""

import io
import math
import re
from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pixelpick_ray.report.cells import Cell, Line, reported
from pixelpick_ray.report.points import Budget
from pixelpick_ray.report.published import PublishedCell
from pixelpick_ray.report.rows import Results
from pixelpick_ray.report.tables import line_labels

# Okabe and Ito's colours, told apart with every common colour vision; without yellow, which is faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
MARKERS = "osD^vPX"
INK = "#262626"

_STYLE = {
    "svg.hashsalt": "pixelpick_ray",  # otherwise the identifiers in an SVG are random
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "legend.frameon": False,
}

Published = Mapping[tuple[Line, Budget], PublishedCell]


def curve_png(results: Results, cells: Sequence[Cell], published: Published) -> bytes:
    """mIoU over labelled pixels per image as PNG; equal results give equal bytes.

    `published` are the papers' numbers that were made by our protocol, drawn as hollow markers.
    """
    return _drawn(reported(results, cells), published, "png", {"Software": None})


def curve_svg(results: Results, cells: Sequence[Cell], published: Published) -> str:
    """The same curve as SVG."""
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    return _drawn(reported(results, cells), published, "svg", nothing).decode("utf-8")


def inline_svg(svg: str) -> str:
    """An SVG for a web page: no prologue, no background, and the page's own colour of text."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = body.replace(INK, "currentColor").replace("fill: #ffffff", "fill: none")
    return body.replace("<svg ", '<svg role="img" aria-label="mIoU over labelled pixels per image" ', 1)


def _drawn(cells: Sequence[Cell], published: Published, kind: str, metadata: dict[str, None]) -> bytes:
    target = io.BytesIO()
    with rc_context(_STYLE):  # type: ignore[arg-type]
        figure = _figure(cells, published)
        figure.savefig(target, format=kind, dpi=160, metadata=metadata)
    return target.getvalue()


def _figure(cells: Sequence[Cell], published: Published) -> Figure:
    """One panel a data set, one line a curve, one legend for all."""
    by_line: dict[Line, list[Cell]] = {}
    for cell in cells:
        by_line.setdefault(cell.line, []).append(cell)
    datasets = list(dict.fromkeys(line.dataset for line in by_line))
    figure = Figure(figsize=(max(6.4, 4.8 * len(datasets)), 4.6), layout="constrained")
    panels = figure.subplots(1, len(datasets), squeeze=False)[0]
    for panel, dataset in zip(panels, datasets, strict=True):
        own = {line: points for line, points in by_line.items() if line.dataset == dataset}
        _panel(panel, own, published)
        panel.set_title(f"{dataset}, {' and '.join(dict.fromkeys(points[0].split for points in own.values()))}")
    legend_rows = [_legend(panel) for panel in panels]
    figure.set_figheight(4.2 + 0.2 * max(legend_rows))
    return figure


def _panel(panel: Axes, by_line: dict[Line, list[Cell]], published: Published) -> None:
    labels = line_labels([line for line, points in by_line.items() if any(cell.values for cell in points)])
    for index, (line, points) in enumerate(by_line.items()):
        found = [cell for cell in points if cell.values]
        colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        complete = all(len(cell.values) == cell.expected for cell in points)
        label = labels.get(line, "") + ("" if complete else " (incomplete)")
        if found and line.strategy:
            _curve(panel, found, label, colour, marker)
        elif found:
            _level(panel, found[0], label, colour)
        hollow = [one for cell in points if (one := published.get((line, cell.budget))) and one.budget != "full"]
        if found and hollow:  # full supervision has no place on the axis
            _published(panel, hollow, labels[line], colour, marker)
    budgets = sorted({cell.budget for points in by_line.values() for cell in points if cell.budget != "full"})
    if budgets and len(budgets) <= 12:
        panel.set_xticks(budgets)
    panel.set_xlabel("labelled pixels per image")
    panel.set_ylabel("mIoU (%)")


def _curve(panel: Axes, cells: list[Cell], label: str, colour: str, marker: str) -> None:
    budgets = [float(cell.budget) for cell in cells]
    means = [100 * cell.summary.mean for cell in cells]
    # A single seed has no deviation (NaN): its band has no height and is not drawn.
    low = [100 * (cell.summary.mean - cell.summary.std) for cell in cells]
    high = [100 * (cell.summary.mean + cell.summary.std) for cell in cells]
    panel.fill_between(budgets, low, high, color=colour, alpha=0.16, linewidth=0)
    panel.plot(budgets, means, color=colour, marker=marker, markersize=5, linewidth=1.8, label=label)
    _dots(panel, [(float(cell.budget), value) for cell in cells for value in cell.values], colour)


def _dots(panel: Axes, points: list[tuple[float, float]], colour: str) -> None:
    values = [100 * value for _, value in points]
    panel.scatter([budget for budget, _ in points], values, s=14, color=colour, alpha=0.4, linewidths=0)


def _level(panel: Axes, cell: Cell, label: str, colour: str) -> None:
    centre, std = 100 * cell.summary.mean, 100 * cell.summary.std
    if len(cell.values) > 1:
        panel.axhspan(centre - std, centre + std, color=colour, alpha=0.1, linewidth=0)
    panel.axhline(centre, color=colour, linestyle=(0, (6, 3)), linewidth=1.5, label=label)


def _published(panel: Axes, cells: list[PublishedCell], label: str, colour: str, marker: str) -> None:
    """Hollow markers with bars of one standard deviation."""
    budgets, means = [float(cell.budget) for cell in cells], [cell.miou_percent for cell in cells]
    bars = panel.errorbar(
        budgets, means, yerr=[cell.std_percent for cell in cells], fmt=marker, color=colour, capsize=3, linewidth=1
    )
    bars.lines[0].set(markerfacecolor="none", markersize=8)
    bars.set_label(f"{label}, published")


def _legend(panel: Axes) -> int:
    """Draw the legend below the panel and return its number of rows."""
    handles, labels = panel.get_legend_handles_labels()
    if not handles:
        panel.text(0.5, 0.5, "no results stored", transform=panel.transAxes, ha="center", va="center")
        return 0
    title = "mean; band: ± 1 sample standard deviation; dots: seeds"
    columns = max(1, min(3, len(labels), 60 // (max(map(len, labels)) + 8)))
    below = (0.5, -0.14)  # inside, it would cover curves
    size = {"title_fontsize": 8, "fontsize": 9}
    panel.legend(handles, labels, title=title, ncols=columns, loc="upper center", bbox_to_anchor=below, **size)
    return math.ceil(len(labels) / columns)
