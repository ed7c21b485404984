"""Figures of a search. Drawing computes nothing: every number comes from the journal."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pixelpick_ray.config.search import DomainSpec, value_text
from pixelpick_ray.report.figures import png, svg
from pixelpick_ray.report.panels import INK, PALETTE
from pixelpick_ray.report.parts import Curve, Curves, Table
from pixelpick_ray.report.search_tables import Findings, State
from pixelpick_ray.report.tables import percent_text
from pixelpick_ray.search.design import Level
from pixelpick_ray.search.journal import Sample

FINISHED, BEST, OWN = PALETTE[0], PALETTE[1], PALETTE[2]
PALE = 0.45  # opacity of background points
NOTHING = "no results stored"
LONGEST_TICK = 16  # characters

_TURNED: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor", "fontsize": 8}

# In every figure, filled markers are finished samples and hollow ones are not.
_LOOKS: dict[State, dict[str, Any]] = {
    "finished": {"marker": "o", "facecolors": FINISHED, "edgecolors": "white", "linewidths": 0.5, "s": 44},
    "stopped": {"marker": "o", "facecolors": "none", "edgecolors": INK, "linewidths": 1.0, "s": 30, "alpha": 0.7},
    "failed": {"marker": "x", "color": INK, "linewidths": 1.2, "s": 34},
    "open": {"marker": "D", "facecolors": "none", "edgecolors": INK, "linewidths": 1.0, "s": 26, "alpha": 0.7},
}


@dataclass(frozen=True)
class Drawing:
    """A figure, how to draw it, and the numbers behind it."""

    title: str
    axis: str
    caption: str
    make: Callable[[], Figure]
    data: Table

    def png(self) -> bytes:
        """Render as PNG; equal findings give equal bytes."""
        return png(self.make)

    def svg(self) -> str:
        """Render as SVG with text as outlines, so that it looks the same everywhere."""
        return svg(self.make, title=self.title, text="path")

    def part(self) -> Curves:
        """Render for the page, in its font."""
        drawn = svg(self.make, title=self.title, text="none")
        return Curves((Curve(self.axis, "linear", drawn, self.caption),), self.data)


# History


def history(found: Findings) -> Drawing:
    """Draw each sample's last score in order of issue, and the best so far."""
    bests = dict(_bests(found))
    rows = tuple(
        (
            *(str(sample.index), found.state(sample), found.level_label(sample)),
            _last_text(sample),
            percent_text(bests.get(sample.index, math.nan), math.nan),
        )
        for sample in found.samples
    )
    header = ("sample", "state", "level", "score (%)", "best so far (%)")
    data = Table("The score of each sample at its last report, in percent.", header, rows, "rllrr")
    caption = (
        "The score of each sample at its last report, in order of issue, and the best finished one so far. Scores of "
        "stopped samples are from earlier levels and not comparable with those of finished ones."
    )
    return Drawing("score of each sample in the order of issue", "samples", caption, lambda: _history(found), data)


def _bests(found: Findings) -> Iterator[tuple[int, float]]:
    """Yield samples, from the first finished one on, with the best finished score so far."""
    best = -math.inf
    for sample in found.samples:
        if found.state(sample) == "finished":
            best = max(best, sample.reports[-1].score)
        if best > -math.inf:
            yield sample.index, best


def _last_text(sample: Sample) -> str:
    return percent_text(sample.reports[-1].score, math.nan) if sample.reports else "-"


def _history(found: Findings) -> Figure:
    figure = Figure(figsize=(6.6, 4.4), layout="constrained")
    panel = figure.subplots()
    panel.set(xlabel="sample, in the order of issue", ylabel="score (%)")
    if not any(sample.reports for sample in found.samples):
        return _without_results(figure, [panel])
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    if steps := dict(_bests(found)):
        heights = [100 * height for height in steps.values()]
        panel.step(list(steps), heights, where="post", color=BEST, linewidth=1.7, label="best finished so far")
    if not math.isnan(found.own_score):
        panel.axhline(100 * found.own_score, color=OWN, linestyle=(0, (7, 3)), linewidth=1.2, label="the file's own")
    for state in _LOOKS:
        known = [sample for sample in found.of(state) if sample.reports]
        _points(panel, [one.index for one in known], [one.reports[-1].score for one in known], state)
    _legend(figure)
    return figure


# Budgets


def budgets(found: Findings) -> Drawing:
    """Draw the score of every sample from level to level."""
    levels = found.search.levels
    rows = tuple(
        (
            *(str(sample.index), found.state(sample)),
            *(percent_text(report.score, math.nan) for report in sample.reports),
            *["-"] * (len(levels) - len(sample.reports)),
        )
        for sample in found.samples
    )
    header = ("sample", "state", *(level.label for level in levels))
    data = Table("The score of each sample at every level, in percent.", header, rows, "rl" + "r" * len(levels))
    caption = (
        "The score of each sample at every level that it reached; a line that ends early was stopped or failed there."
    )
    return Drawing("score of each sample over levels", "levels", caption, lambda: _budgets(found), data)


def _budgets(found: Findings) -> Figure:
    levels = found.search.levels
    figure = Figure(figsize=(6.6, 4.4), layout="constrained")
    panel = figure.subplots()
    panel.set(xlabel="level", ylabel="score (%)", xlim=(-0.25, len(levels) - 0.75))
    if not any(sample.reports for sample in found.samples):
        return _without_results(figure, [panel])
    _level_ticks(panel, levels)
    best = found.ranked[0] if found.ranked else None
    for sample in found.samples:
        if sample.reports and sample != best and sample != found.own:
            _course(panel, sample, color=INK, alpha=0.3, linewidth=1.0)
    if found.own is not None and found.own.reports and found.own != best:
        _course(panel, found.own, color=OWN, linestyle=(0, (7, 3)), linewidth=1.7, label="the file's own")
    if best is not None:
        _course(panel, best, color=BEST, linewidth=2.0, label=f"the best, {best.label}")
    for state in _LOOKS:
        known = [one for one in found.of(state) if one.reports]
        places = [len(one.reports) - 1 for one in known]
        _points(panel, places, [one.reports[-1].score for one in known], state)
    _legend(figure)
    return figure


def _course(panel: Axes, sample: Sample, **look: Any) -> None:
    panel.plot(range(len(sample.reports)), [100 * report.score for report in sample.reports], **look)


def _level_ticks(panel: Axes, levels: Sequence[Level]) -> None:
    """Set ticks for as many levels as fit, always including the last."""
    step = math.ceil(len(levels) / 12)
    shown = list(range(len(levels) - 1, -1, -step))
    labels = [levels[position].label for position in shown]
    panel.set_xticks(shown, labels, **(_TURNED if len(labels) * max(map(len, labels)) > 66 else {}))


# Slices


def slices(found: Findings) -> Drawing:
    """Draw scores over the values of each setting: of all samples at the first level, of finished ones at the last."""
    samples, several = found.samples, len(found.search.levels) > 1
    first, last = found.search.levels[0].label, found.search.levels[-1].label
    columns = {"sample": [str(one.index) for one in samples], "state": [found.state(one) for one in samples]}
    columns |= {path: [value_text(one.values[path]) for one in samples] for path in found.paths}
    if several:
        heights = (one.reports[0].score if one.reports else math.nan for one in samples)
        columns[f"at {first} (%)"] = [percent_text(height, math.nan) for height in heights]
    columns[f"at {last} (%)"] = [_last_text(one) if found.state(one) == "finished" else "-" for one in samples]
    data = Table(
        "The values of each sample and its scores, in percent.",
        tuple(columns),
        tuple(zip(*columns.values(), strict=True)),
        "rl" + "l" * len(found.paths) + "r" * (1 + several),
    )
    caption = f"The scores at {last} over the values of each setting."
    if several:
        caption = (
            f"The scores over the values of each setting. Pale: all samples at {first}; solid: finished samples at "
            f"{last}."
        )
    return Drawing("score over the values of each setting", "values", caption, lambda: _slices(found), data)


def _slices(found: Findings) -> Figure:
    columns = min(3, len(found.paths))
    rows = math.ceil(len(found.paths) / columns)
    apart = ConstrainedLayoutEngine(h_pad=0.09)  # space between a title and the ticks above it
    figure = Figure(figsize=(max(4.6, 3.0 * columns), 0.6 + 2.7 * rows), layout=apart)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for panel in panels[len(found.paths) :]:
        panel.remove()
    shown = list(panels[: len(found.paths)])
    for panel, path in zip(shown, found.paths, strict=True):
        panel.set_title(path, fontsize=9)
    for panel in shown[::columns]:
        panel.set_ylabel("score (%)")
    if not any(sample.reports for sample in found.samples):
        return _without_results(figure, shown)
    for panel, path in zip(shown, found.paths, strict=True):
        _slice(panel, found, path)
    _legend(figure)
    return figure


def _slice(panel: Axes, found: Findings, path: str) -> None:
    """Draw one setting: the first level in the background, the last in front, the best sample marked."""
    domain = found.search.spec.space[path]
    _value_axis(panel, domain)
    places = _places(domain, {sample.index: sample.values[path] for sample in found.samples})
    if found.search.own_values is not None:
        own = _place(domain, found.search.own_values[path])
        panel.axvline(own, color=OWN, linestyle=(0, (7, 3)), linewidth=1.2, label="the file's own value")
    if len(found.search.levels) > 1:
        for state in _LOOKS:
            known = [one for one in found.of(state) if one.reports]
            first = [one.reports[0].score for one in known]
            label = f"{state}, at {found.search.levels[0].label}"
            _points(panel, [places[one.index] for one in known], first, state, label=label, alpha=PALE)
    label = f"finished, at {found.search.levels[-1].label}"
    last = [one.reports[-1].score for one in found.ranked]
    _points(panel, [places[one.index] for one in found.ranked], last, "finished", label=label)
    if found.ranked:
        look: dict[str, Any] = {
            "color": BEST,
            "marker": "D",
            "edgecolors": "white",
            "linewidths": 0.5,
            "s": 52,
            "zorder": 4,
        }
        panel.scatter([places[found.ranked[0].index]], [100 * last[0]], label="the best", **look)


def _value_axis(panel: Axes, domain: DomainSpec) -> None:
    """Show the whole domain, with ticks that fit a small panel."""
    if not domain.is_range:
        labels = _tick_labels(domain)
        panel.set_xticks(range(len(labels)), labels, **(_TURNED if len(labels) * max(map(len, labels)) > 26 else {}))
        panel.set_xlim(-0.6, len(labels) - 0.4)
        return
    low, high = domain.values
    if domain.kind == "loguniform":
        margin = (high / low) ** 0.05
        panel.set(xscale="log", xlim=(low / margin, high * margin))
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high >= 50 * low else (1, 2, 5), numticks=6))
        panel.xaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.05 * (high - low)
        panel.set_xlim(low - margin, high + margin)
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=domain.kind == "randint"))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _tick_labels(domain: DomainSpec) -> list[str]:
    """Short, distinct labels of the values of a choice."""
    texts = [value_text(value) for value in domain.values]
    cut = [
        text if len(text) <= LONGEST_TICK else f"{text[: LONGEST_TICK // 2 - 1]}…{text[-LONGEST_TICK // 2 :]}"
        for text in texts
    ]
    return [text if cut.count(text) == 1 else f"{text} ({number})" for number, text in enumerate(cut, start=1)]


def _place(domain: DomainSpec, value: Any) -> float:
    """Position of a value on the axis: a number itself, otherwise its index among the values."""
    return float(value) if domain.is_range else float(domain.values.index(value))


def _places(domain: DomainSpec, values: Mapping[int, Any]) -> dict[int, float]:
    """Positions of samples; those with the same choice are placed side by side."""
    places = {index: _place(domain, value) for index, value in values.items()}
    if domain.is_range:
        return places
    ordered = sorted(places, key=lambda index: (places[index], index))
    for place, group in itertools.groupby(ordered, key=dict(places).get):
        same = list(group)
        for rank, index in enumerate(same):
            places[index] = float(place or 0.0) + 0.5 * ((rank + 0.5) / len(same) - 0.5)
    return places


# All figures


def _points(
    panel: Axes, places: Sequence[float], scores: Sequence[float], state: State, *, label: str = "", alpha: float = 1.0
) -> None:
    if not places:
        return
    look = {"label": label or state, **_LOOKS[state]}
    if alpha < 1.0:
        look |= {"alpha": alpha * look.get("alpha", 1.0), "s": 0.6 * look["s"]}
    panel.scatter(places, [100 * score for score in scores], zorder=3, **look)


def _legend(figure: Figure) -> None:
    """Draw one legend below all panels, without duplicates."""
    found: dict[str, Any] = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    columns = max(1, min(len(found), 3 if figure.get_figwidth() > 6 else 2))
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns, fontsize=9)


def _without_results(figure: Figure, panels: Sequence[Axes]) -> Figure:
    for panel in panels:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.text(0.5, 0.5, NOTHING, transform=panel.transAxes, ha="center", va="center")
    return figure
