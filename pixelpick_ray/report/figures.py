"""Budget curves. Drawing computes nothing: every number comes from a cell or a cost."""

import html
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from matplotlib import rc_context
from matplotlib.figure import Figure

from pixelpick_ray.report.cells import Cell, reported
from pixelpick_ray.report.costs import Costs, number_text
from pixelpick_ray.report.panels import INK, PIXELS, Axis, PanelPosition, Published, Scale, draw
from pixelpick_ray.report.parts import Curve, Curves, Table
from pixelpick_ray.report.rows import Results
from pixelpick_ray.report.tables import budget_text, line_columns, n_text, percent_text, share_text

_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 11,
    "grid.alpha": 0.16,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "legend.frameon": False,
}
_SCALES: tuple[Scale, ...] = ("linear", "log")
Lettering = Literal["path", "none"]  # text as outlines, or in the page's font


# Documents


def curve_png(results: Results, cells: Sequence[Cell], published: Published) -> bytes:
    """Draw mIoU over labelled pixels per image as PNG; equal results give equal bytes.

    `published` are papers' numbers obtained with the same protocol, drawn as hollow markers.
    """
    shown = reported(results, cells)
    return png(lambda: draw(shown, published, _pixel_axis(shown, "linear")))


def curve_pdf(results: Results, cells: Sequence[Cell], published: Published) -> bytes:
    """Draw the curve of `curve_png` as PDF."""
    shown = reported(results, cells)
    nothing = {"CreationDate": None, "Creator": None, "Producer": None}
    return _drawn(lambda: draw(shown, published, _pixel_axis(shown, "linear")), "pdf", nothing)


def curve_svg(results: Results, cells: Sequence[Cell], published: Published) -> str:
    """Draw the curve of `curve_png` as SVG, with text as outlines, so that it looks the same everywhere."""
    shown = reported(results, cells)
    return _svg(shown, published, _pixel_axis(shown, "linear"), "path")


def curves(results: Results, cells: Sequence[Cell], published: Published, costs: Costs | None = None) -> Curves:
    """Draw mIoU over pixels, their share and, if given, costs, each on a linear and a logarithmic axis.

    Text takes the font of the page that shows them.
    """
    shown = reported(results, cells)
    axes = _axes(shown, costs)
    drawn = tuple(Curve(axis.name, axis.scale, _svg(shown, published, axis, "none")) for axis in axes)
    return Curves(drawn, _data_table(shown, costs))


def inline_svg(svg: str) -> str:
    """Adapt an SVG to a web page: no prologue or background, the page's font and text colour, and an ARIA label.

    Unused identifiers are removed, so that several figures on one page do not clash.
    """
    title = re.search(r"<title>(.*?)</title>", svg, flags=re.DOTALL)
    name = html.escape(html.unescape(title[1]) if title else "curves")
    body = re.sub(r"\s*<(metadata|title|!--).*?(</\1>|-->)", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r"(fill|stroke): #ffffff", r"\1: none", body.replace(INK, "currentColor"))
    body = re.sub(r"font-family: [^;\"]*;? ?", "", re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body))
    used = set(re.findall(r"#([\w.-]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    return body.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


def _svg(cells: Sequence[Cell], published: Published, axis: Axis, text: Lettering) -> str:
    return svg(lambda: draw(cells, published, axis), title=axis.title, text=text)


def png(make: Callable[[], Figure]) -> bytes:
    """Render a figure in the reports' style as PNG; equal figures give equal bytes."""
    return _drawn(make, "png", {"Software": None})


def svg(make: Callable[[], Figure], *, title: str, text: Lettering) -> str:
    """Render a figure in the reports' style as SVG; titles must be unique on a page."""
    metadata = {"Title": title, "Date": None, "Creator": None, "Format": None, "Type": None}
    # Without a salt, identifiers are random; with a common one, figures on one page would share identifiers.
    return _drawn(make, "svg", metadata, {"svg.hashsalt": title, "svg.fonttype": text}).decode("utf-8")


def _drawn(
    make: Callable[[], Figure],
    kind: str,
    metadata: Mapping[str, str | None],
    style: Mapping[str, str] | None = None,
) -> bytes:
    target = io.BytesIO()
    with rc_context(_STYLE | dict(style or {})):  # type: ignore[arg-type]
        make().savefig(target, format=kind, dpi=160, metadata=metadata)
    return target.getvalue()


# Axes


def _pixel_axis(cells: Iterable[Cell], scale: Scale) -> Axis:
    return Axis(PIXELS, {(cell.line, cell.budget): cell.budget for cell in cells if cell.budget != "full"}, scale)


def _axes(cells: Sequence[Cell], costs: Costs | None) -> list[Axis]:
    """All axes that place at least one cell, linear and logarithmic; pixels always."""
    pixels = _pixel_axis(cells, "linear").places
    shares = {(cell.line, cell.budget): 100 * cell.share for cell in cells if cell.share is not None}
    quantities = {PIXELS: pixels, "share of pixels (%)": shares} | (costs.quantities if costs else {})
    axes = []
    for name, values in quantities.items():
        # Full supervision is drawn as a level: as a point, it would squeeze everything else into a corner.
        places = {place: value for place, value in values.items() if place in pixels and value > 0}
        axes += [Axis(name, places, scale) for scale in _SCALES if places or name == PIXELS]
    return axes


# Numbers


def _data_table(cells: Sequence[Cell], costs: Costs | None) -> Table:
    """Table of the numbers behind the curves."""
    shown = [cell for cell in cells if cell.values]
    columns, quantities = line_columns(cell.line for cell in shown), costs.quantities if costs else {}
    rows = tuple(
        (
            *(texts[cell.line] for texts in columns.values()),
            *(budget_text(cell.budget), share_text(cell)),
            *(_quantity_text(values, cell) for values in quantities.values()),
            *(percent_text(value, math.nan) for value in _numbers(cell)),
            n_text(cell),
        )
        for cell in shown
    )
    numbers = ("mIoU (%)", "standard deviation", "95 % from", "to", "n")
    header = (*columns, "pixels per image", "share (%)", *quantities, *numbers)
    caption = (
        "Numbers behind the curves: mIoU in percent, its sample standard deviation, and the 95 % interval of the mean "
        "over seeds."
    )
    unknown = any((cell.line, cell.budget) not in values for cell in shown for values in quantities.values())
    notes = ("Results of unknown cost (-) are not drawn on cost axes.",) if unknown else ()
    return Table(caption, header, rows, "l" * len(columns) + "r" * (len(header) - len(columns)), notes)


def _numbers(cell: Cell) -> tuple[float, float, float, float]:
    return cell.summary.mean, cell.summary.std, cell.summary.low, cell.summary.high


def _quantity_text(values: Mapping[PanelPosition, float], cell: Cell) -> str:
    value = values.get((cell.line, cell.budget))
    return "-" if value is None else number_text(value)
