"""Drawing of budget curves, one panel per data set, over any axis; every number comes from a cell or the axis."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Affine2DBase, ScaledTranslation, Transform

from pixelpick_ray.config.trial import Budget
from pixelpick_ray.report.cells import Cell, Line
from pixelpick_ray.report.published import PublishedCell
from pixelpick_ray.report.tables import line_labels
from pixelpick_ray.report.thresholds import SHARE

Scale = Literal["linear", "log"]
Stroke = str | tuple[int, tuple[float, ...]]
PanelPosition = tuple[Line, Budget]
Published = Mapping[PanelPosition, PublishedCell]

# Okabe and Ito's colours, distinguishable with all common types of colour vision, without yellow, faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
# Coprime in number with the colours, so that styles repeat only after 70 lines.
MARKERS = "osD^vPX<>p"
# Without dashes, which mark full supervision.
STROKES: tuple[Stroke, ...] = ("solid", (0, (1, 1)), (0, (5, 1, 1, 1)))
DASHES: tuple[Stroke, ...] = ((0, (7, 3)), (0, (7, 3, 2, 3)), (0, (3, 3)))
INK = "#262626"
PIXELS = "labelled pixels per image"
MOST_DOTS = 1000  # per panel; more would hide the curves and bloat the page


@dataclass(frozen=True)
class Axis:
    """A horizontal axis: its name with the unit, and the place of each cell that has one."""

    name: str
    places: Mapping[PanelPosition, float]
    scale: Scale

    @property
    def title(self) -> str:
        """Title of a figure over this axis."""
        return f"mIoU over {self.name}{', logarithmic' * (self.scale == 'log')}"


@dataclass(frozen=True)
class _CurveStyle:
    """Style of a line; `shift` moves its points slightly sideways, so that error bars do not overlap."""

    label: str
    colour: str
    marker: str
    stroke: Stroke
    shift: Transform


def draw(cells: Sequence[Cell], published: Published, axis: Axis) -> Figure:
    """Draw one panel per data set, with a curve per line and a legend below."""
    by_line: dict[Line, list[Cell]] = {}
    for cell in cells:
        by_line.setdefault(cell.line, []).append(cell)
    datasets = list(dict.fromkeys(line.dataset for line in by_line))
    figure = Figure(figsize=(max(6.6, 5.2 * len(datasets)), 4.6), layout="constrained")
    panels = figure.subplots(1, len(datasets), squeeze=False)[0]
    rows = []
    for panel, dataset in zip(panels, datasets, strict=True):
        own = {line: points for line, points in by_line.items() if line.dataset == dataset}
        _fill(panel, own, published, axis, figure.dpi_scale_trans)
        panel.set_title(f"{dataset}, {' and '.join(dict.fromkeys(points[0].split for points in own.values()))}")
        rows.append(_legend(panel, [cell for points in own.values() for cell in points if cell.values]))
    figure.set_figheight(4.1 + 0.2 * max(rows))
    return figure


def _fill(
    panel: Axes, by_line: Mapping[Line, list[Cell]], published: Published, axis: Axis, inches: Affine2DBase
) -> None:
    """Draw all lines of a panel."""
    cells = [cell for points in by_line.values() for cell in points]
    _prepare(panel, cells, axis)
    placed = [cell for cell in cells if cell.values and (cell.line, cell.budget) in axis.places]
    for line, look in _looks(panel, by_line, inches).items():
        own = [cell for cell in placed if cell.line == line]
        if not line.strategy:
            _level(panel, by_line[line][0], look)
        elif own:
            places = [axis.places[line, cell.budget] for cell in own]
            _curve(panel, places, own, look)
            if _num_dots(placed) <= MOST_DOTS:
                _dots(panel, places, own, look)
            hollow = (place for place in published if place[0] == line and place in axis.places)
            _published(panel, {axis.places[place]: published[place] for place in hollow}, look)


# The horizontal axis


def _prepare(panel: Axes, cells: Iterable[Cell], axis: Axis) -> None:
    """Set scale, limits and ticks."""
    keys = ((cell.line, cell.budget) for cell in cells)
    values = sorted({axis.places[key] for key in keys if key in axis.places})
    panel.set(xlabel=axis.name, ylabel="mIoU (%)", xscale=axis.scale)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    if not values:
        panel.set_xticks([])
        return
    low, high = values[0], values[-1]
    if axis.scale == "log":
        factor = (high / low) ** 0.04 if high > low else 2.0
        panel.set_xlim(low / factor, high * factor)
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 20 * low else (1, 1.5, 2, 3, 4, 5, 7)))
    else:
        margin = 0.04 * (high - low) if high > low else high / 2
        panel.set_xlim(low - margin, high + margin)
    if axis.name == PIXELS and len(values) <= 12:
        panel.xaxis.set_major_locator(FixedLocator(_apart(values, axis.scale)))


def _apart(values: Sequence[float], scale: Scale) -> list[float]:
    """Those of the ascending values whose labels fit, always with the largest."""
    on_paper = [math.log(value) if scale == "log" else value for value in values]
    room = 0.06 * (on_paper[-1] - on_paper[0])
    kept = [len(values) - 1]
    for index in reversed(range(len(values) - 1)):
        if on_paper[kept[-1]] - on_paper[index] >= room:
            kept.append(index)
    return [values[index] for index in reversed(kept)]


# Lines


def _looks(panel: Axes, by_line: Mapping[Line, list[Cell]], inches: Affine2DBase) -> dict[Line, _CurveStyle]:
    """Styles of all lines with values, independent of what else is stored."""
    labels = line_labels([line for line, points in by_line.items() if any(cell.values for cell in points)])
    strategies = [line for line in by_line if line.strategy]
    fulls = [line for line in by_line if not line.strategy]
    looks = {}
    for line, label in labels.items():
        complete = all(len(cell.values) == cell.expected for cell in by_line[line])
        index = strategies.index(line) if line.strategy else fulls.index(line)
        colours, strokes = (PALETTE, STROKES) if line.strategy else ((INK, *PALETTE), DASHES)
        away = _step(by_line) * (index - (len(strategies) - 1) / 2)
        looks[line] = _CurveStyle(
            label=textwrap.fill(label + ("" if complete else " (incomplete)"), 64),
            colour=colours[index % len(colours)],
            marker=MARKERS[index % len(MARKERS)],
            stroke=strokes[index % len(strokes)],
            shift=panel.transData + ScaledTranslation(away, 0, inches),
        )
    return looks


def _step(by_line: Mapping[Line, list[Cell]]) -> float:
    """Inches between the points of adjacent lines, larger if all are at one budget."""
    strategies = [line for line in by_line if line.strategy]
    budgets = {cell.budget for line in strategies for cell in by_line[line]}
    widest, whole = (0.022, 0.11) if len(budgets) > 1 else (0.5, 4.0)
    return min(widest, whole / max(1, len(strategies)))


def _curve(panel: Axes, places: Sequence[float], cells: Sequence[Cell], look: _CurveStyle) -> None:
    """Draw means, a band of one standard deviation and interval bars; a single seed has neither band nor bar."""
    summaries = [cell.summary for cell in cells]
    means = [100 * one.mean for one in summaries]
    low, high = [[100 * (one.mean + sign * one.std) for one in summaries] for sign in (-1, 1)]
    panel.fill_between(places, low, high, color=look.colour, alpha=0.13, linewidth=0)
    panel.errorbar(
        places,
        means,
        yerr=[100 * (one.high - one.mean) for one in summaries],
        fmt="none",
        ecolor=look.colour,
        elinewidth=0.9,
        capsize=2,
        capthick=0.9,
        transform=look.shift,
    )
    panel.plot(
        places,
        means,
        color=look.colour,
        marker=look.marker,
        linestyle=look.stroke,
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        linewidth=1.7,
        label=look.label,
        transform=look.shift,
    )
    # Interval bars of two seeds reach nine standard deviations and would dominate the panel if they set its limits.
    known = [(place, one) for place, one in zip(places, summaries, strict=True) if one.n > 2]
    panel.update_datalim([(place, 100 * end) for place, one in known for end in (one.low, one.high)])


def _dots(panel: Axes, places: Sequence[float], cells: Sequence[Cell], look: _CurveStyle) -> None:
    points = [(place, 100 * value) for place, cell in zip(places, cells, strict=True) for value in cell.values]
    x, y = zip(*points, strict=True)
    panel.scatter(x, y, s=9, color=look.colour, alpha=0.35, linewidths=0, transform=look.shift)
    panel.update_datalim(points)


def _level(panel: Axes, cell: Cell, look: _CurveStyle) -> None:
    """Draw full supervision across the panel, and the share of it used as threshold."""
    centre, std = 100 * cell.summary.mean, 100 * cell.summary.std
    if len(cell.values) > 1:
        panel.axhspan(centre - std, centre + std, color=look.colour, alpha=0.08, linewidth=0)
    panel.axhline(centre, color=look.colour, linestyle=look.stroke, linewidth=1.4, label=look.label)
    panel.axhline(SHARE * centre, color=look.colour, linestyle=(0, (1, 2.5)), linewidth=1)


def _published(panel: Axes, by_place: Mapping[float, PublishedCell], look: _CurveStyle) -> None:
    """Draw hollow markers with bars of one standard deviation."""
    if not by_place:
        return
    bars = panel.errorbar(
        list(by_place),
        [cell.miou_percent for cell in by_place.values()],
        yerr=[cell.sample_std_percent for cell in by_place.values()],
        fmt=look.marker,
        color=look.colour,
        capsize=3,
        linewidth=1,
    )
    bars.lines[0].set(markerfacecolor="none", markersize=9)
    bars.set_label(f"{look.label}, published (best epoch)")


# The legend


def _legend(panel: Axes, cells: Sequence[Cell]) -> int:
    """Draw the legend below the panel and return its number of text lines."""
    handles, labels = panel.get_legend_handles_labels()
    if not handles:
        panel.set_yticks([])
        panel.text(0.5, 0.5, "no results stored", transform=panel.transAxes, ha="center", va="center")
        return 0
    title = _explanation(cells, labels)
    widest = max(len(line) for label in labels for line in label.splitlines())
    columns = max(1, min(3, len(labels), 66 // (widest + 8)))
    panel.legend(
        handles,
        labels,
        title=title,
        ncols=columns,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),  # inside the panel, it would cover curves
        title_fontsize=8,
        fontsize=9,
        handlelength=3.2,
    )
    per_column = math.ceil(len(labels) / columns)
    texts = ["\n".join(labels[at : at + per_column]) for at in range(0, len(labels), per_column)]
    return len(title.splitlines()) + max(len(text.splitlines()) for text in texts)


def _explanation(cells: Sequence[Cell], labels: Sequence[str]) -> str:
    """Legend title: what is drawn besides the means."""
    several = any(len(cell.values) > 1 for cell in cells)
    parts = ["line: mean over seeds" if several else "line: one seed"]
    if several:
        parts += ["band: ± 1 sample standard deviation", "bar: 95 % interval of the mean"]
        parts += ["dot: one seed"] * (_num_dots(cells) <= MOST_DOTS)
    if any(label.endswith(", published") for label in labels):
        parts.append("hollow: published, ± 1 deviation")
    if any(cell.budget == "full" for cell in cells):
        parts.append(f"thin dots: {100 * SHARE:.0f} % of full supervision")
    hard = "\N{NO-BREAK SPACE}"  # keeps each part on one line
    return textwrap.fill("; ".join(part.replace(" ", hard) for part in parts), 84).replace(hard, " ")


def _num_dots(cells: Iterable[Cell]) -> int:
    return sum(len(cell.values) for cell in cells if cell.budget != "full")
