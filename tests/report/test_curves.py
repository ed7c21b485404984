"""Curves over every axis: what is drawn, how it looks, and that it fits on a page."""

import re
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from scipy import stats

from pixelpick_ray.config.trial import Trial
from pixelpick_ray.report.cells import Cell, build_cells, reported
from pixelpick_ray.report.costs import Cost, CostModel, Costs
from pixelpick_ray.report.figures import curve_pdf, curve_svg, curves, inline_svg
from pixelpick_ray.report.panels import INK, MOST_DOTS, Axis, Scale, draw
from pixelpick_ray.report.parts import Curves
from pixelpick_ray.report.published import PublishedCell
from pixelpick_ray.report.rows import Results
from tests.support.study import Study, exact, experiment

pytestmark = pytest.mark.whole_report

GRID = "grid=[{acquire.strategy: [margin, random], seed: [0, 1, 2], budget: [10, 20]}, {seed: [0, 1], budget: [full]}]"
Drawn = tuple[Results, tuple[Cell, ...]]


def height(trial: Trial) -> int:
    """mIoU in thousandths: random is 40 below margin, full supervision has 600 and 620."""
    heights = {10: (400, 420, 410), 20: (500, 520, 540), "full": (600, 620)}[trial.budget]
    return heights[trial.seed] - 40 * (trial.budget != "full" and trial.acquire.strategy == "random")


def load(results: Results) -> Drawn:
    return results, reported(results, build_cells(results))


@pytest.fixture(scope="module")
def drawn(kept: Study) -> Drawn:
    """Two strategies, two budgets, three seeds and full supervision."""
    return load(kept.filled(lambda trial: exact(height(trial)), GRID))


@pytest.fixture(scope="module")
def paid(drawn: Drawn) -> Curves:
    """The same, also over what was paid, in a currency that needs to be escaped."""
    return curves(*drawn, {}, costs(drawn[1]))


def axis(cells: Sequence[Cell], scale: Scale = "linear", *, factor: float = 1.0, name: str = "clicks") -> Axis:
    places = {(cell.line, cell.budget): factor * cell.budget for cell in cells if cell.budget != "full"}
    return Axis(name, places, scale)


def panel(cells: Sequence[Cell], over: Axis | None = None, **published: PublishedCell) -> Axes:
    known = {(one.line, one.budget): published[one.line.strategy] for one in cells if one.line.strategy in published}
    (found,) = draw(cells, known, over or axis(cells)).axes
    return found


def labelled(found: Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in found.lines}


def costs(cells: Sequence[Cell], *, clicks: float = 3.0) -> Costs:
    model = CostModel(seconds_per_pixel=1, money_per_hour=10, currency='"&')
    places = [(cell.line, cell.budget) for cell in cells if cell.budget != "full"]
    return Costs(model, {place: Cost(clicks * place[1], 360.0 * place[1], 1.0 * place[1]) for place in places})


def test_lines_are_means_bars_student_intervals_bands_one_deviation_and_full_supervision_a_level(drawn: Drawn) -> None:
    over = axis(drawn[1], factor=7)
    assert labelled(panel(drawn[1], over))["margin"] == pytest.approx(np.array([[70, 41.0], [140, 52.0]]))
    places = {place: value for place, value in over.places.items() if place[0].strategy != "random"}
    assert "random" not in labelled(panel(drawn[1], Axis("clicks", places, "linear")))
    found = panel(drawn[1])
    band, bars = found.collections[0].get_paths()[0], found.containers[0].lines[2][0].get_segments()
    for index, values in enumerate(([40.0, 42.0, 41.0], [50.0, 52.0, 54.0])):
        mean, std = np.mean(values), stats.tstd(values)
        interval = stats.t.interval(0.95, 2, loc=mean, scale=stats.sem(values))
        assert [point[1] for point in bars[index]] == pytest.approx(list(interval))
        at = [y for x, y in band.vertices if x == (10, 20)[index]]
        assert (min(at), max(at)) == pytest.approx((mean - std, mean + std))
    level, goal = [line for line in found.lines if len(set(np.asarray(line.get_ydata()))) == 1][-2:]
    assert (level.get_label(), level.get_marker(), level.get_color()) == ("full supervision", "None", INK)
    assert [line.get_ydata()[0] for line in (level, goal)] == pytest.approx([61.0, 57.95])


def test_seeds_are_dots_unless_there_are_too_many_and_published_numbers_hollow(drawn: Drawn) -> None:
    def dots(cells: Sequence[Cell]) -> int:
        found = [one for one in panel(cells).collections if isinstance(one, PathCollection)]
        return sum(len(one.get_offsets()) for one in found)

    assert dots(drawn[1]) == 12
    many = tuple(range(MOST_DOTS // 4 + 1))
    cells = [replace(cell, seeds=many, values=(0.5,) * len(many)) for cell in drawn[1]]
    assert dots(cells) == 0
    theirs = PublishedCell.model_construct(miou_percent=44.0, std_percent=0.5, n=5)
    found = panel(drawn[1], axis(drawn[1], factor=7), margin=theirs)
    hollow = [line for line in found.lines if line.get_markerfacecolor() == "none"]
    assert [np.asarray(line.get_xydata()).tolist() for line in hollow] == [[[70.0, 44.0], [140.0, 44.0]]]
    assert "margin, published (best epoch)" in found.get_legend_handles_labels()[1]


def test_missing_seeds_and_a_single_one_are_said_and_budgets_that_are_close_get_fewer_labels(study: Study) -> None:
    full = "name=full", "grid=[{seed: [0, 1], budget: [full]}]"
    empty = curves(*load(study.results(experiment(*full))), {})
    assert {"no results stored" in curve.svg for curve in empty.curves} == {True}
    assert empty.data.rows == ()
    alone = load(study.filled(lambda trial: exact(600), *full))
    found = {(curve.axis, curve.scale) for curve in curves(*alone, {}).curves}
    assert found == {("labelled pixels per image", scale) for scale in ("linear", "log")}
    results = study.filled(lambda trial: None if (trial.seed, trial.budget) == (1, 20) else exact(500))
    cells = load(results)[1]
    assert list(labelled(panel(cells)))[-1] == "margin (incomplete)"
    other = [replace(cell, line=replace(cell.line, dataset="voc")) for cell in cells]
    assert len(draw([*cells, *other], {}, axis([*cells, *other])).axes) == 2  # a data set has a panel of its own
    close = "acquire={initial_pixels: 1, pixels_per_stage: 1}", "grid=[{seed: [0], budget: [1, 2, 5, 100]}]"
    results = study.filled(lambda trial: exact(500), "name=single", *close)
    cells, pixels = load(results)[1], "labelled pixels per image"
    found = panel(cells, axis(cells, name=pixels))
    assert found.get_legend().get_title().get_text() == "line: one seed"  # neither band nor bar
    assert list(found.get_xticks()) == [5, 100]
    assert list(panel(cells, axis(cells, "log", name=pixels)).get_xticks()) == [1, 2, 5, 100]


def test_seventy_lines_look_different_and_the_same_whatever_else_is_stored(drawn: Drawn) -> None:
    def colour(cells: Sequence[Cell]) -> dict[str, object]:
        return {str(line.get_label()): line.get_color() for line in panel(cells).lines}

    empty = [replace(cell, seeds=(), values=()) for cell in drawn[1] if cell.line.strategy == "margin"]
    others = [cell for cell in drawn[1] if cell.line.strategy != "margin"]
    assert colour([*empty, *others])["random"] == colour(drawn[1])["random"]
    margin, full = drawn[1][0], drawn[1][-1]
    copies = [(margin, index) for index in range(70)] + [(full, index) for index in range(3)]
    cells = [replace(cell, line=replace(cell.line, setting=f"seed={index}")) for cell, index in copies]
    handles, _ = panel(cells).get_legend_handles_labels()
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in handles}) == 73


def test_there_is_a_curve_for_every_axis_and_scale_with_its_numbers_but_for_what_costs_nothing(
    drawn: Drawn, paid: Curves
) -> None:
    names = ["labelled pixels per image", "share of pixels (%)", "clicks", "hours of annotation", 'money ("&)']
    assert [(curve.axis, curve.scale) for curve in paid.curves] == [(n, s) for n in names for s in ("linear", "log")]
    found = costs(drawn[1], clicks=0.0)
    free = Costs(found.model, {place: replace(cost, seconds=0.0, money=0.0) for place, cost in found.by_cell.items()})
    assert {curve.axis for curve in curves(*drawn, {}, free).curves} == set(names[:2])
    table = paid.data
    assert table.header[3:5] == ("pixels per image", "share (%)")
    assert table.header[5:] == (*names[2:], "mIoU (%)", "standard deviation", "95 % from", "to", "n")
    # 4.303 x 1 / sqrt(3) = 2.48 and 4.303 x 2 / sqrt(3) = 4.97; of two seeds 12.71 x sqrt(2) / sqrt(2).
    assert [row[2:] for row in table.rows] == [
        ("margin", "10", "0.0058", "30", "1", "10", "41.0", "1.0", "38.5", "43.5", "3"),
        ("margin", "20", "0.012", "60", "2", "20", "52.0", "2.0", "47.0", "57.0", "3"),
        ("random", "10", "0.0058", "30", "1", "10", "37.0", "1.0", "34.5", "39.5", "3"),
        ("random", "20", "0.012", "60", "2", "20", "48.0", "2.0", "43.0", "53.0", "3"),
        ("full supervision", "all", "100", "-", "-", "-", "61.0", "1.4", "48.3", "73.7", "2"),
    ]
    assert table.notes == ("Results of unknown cost (-) are not drawn on cost axes.",)


def test_curves_of_a_page_share_no_identifier_and_files_have_outlines_and_no_date(drawn: Drawn, paid: Curves) -> None:
    inlined = [inline_svg(curve.svg) for curve in paid.curves]
    identifiers = [name for svg in inlined for name in re.findall(r' id="([^"]*)"', svg)]
    assert len(identifiers) == len(set(identifiers)) > 0
    for curve, svg in zip(paid.curves, inlined, strict=True):
        own = set(re.findall(r' id="([^"]*)"', svg))
        assert set(re.findall(r'(?:href="|url\()#([^")]*)', svg)) == own
        root = ElementTree.fromstring(svg)
        label = f"mIoU over {curve.axis}{', logarithmic' * (curve.scale == 'log')}"
        assert (root.get("aria-label"), root.get("role")) == (label, "img")
        texts = {"".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"margin", "random", "full supervision", curve.axis, "mIoU (%)"} <= texts
        for absent in ("<title", "<metadata", "<?xml", "font-family", "DejaVu", "#ffffff", INK):
            assert absent not in svg
        assert "currentColor" in svg
    document = curve_pdf(*drawn, {})
    assert (document[:5], document.count(b"/Count 1"), document.count(b"Date")) == (b"%PDF-", 1, 0)  # of one page
    root = ElementTree.fromstring(curve_svg(*drawn, {}))
    assert not list(root.iter("{http://www.w3.org/2000/svg}text"))  # outlines
    assert root.findtext("{http://www.w3.org/2000/svg}title") == "mIoU over labelled pixels per image"
