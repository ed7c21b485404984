"""The page in a real browser: what a click does, at the width of a phone, in both themes, without scripts."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pixelpick_ray.report.costs import CostModel
from pixelpick_ray.report.files import write_report
from pixelpick_ray.report.page import Fact, Page, page_html
from pixelpick_ray.report.parts import Pictures, Prose, Table
from tests.support.browser import Browser, Key, browsing, needs_browser
from tests.support.pages import PIXEL, curves
from tests.support.sheets import GRID, fill
from tests.support.study import Study
from tests.support.waiting import wait_for

RESULTS = sorted((Path(__file__).resolve().parents[2] / "results").glob("*/index.html"))
pytestmark = [needs_browser, pytest.mark.browser, pytest.mark.whole_report]

ORDERED = Table(
    "A table to sort.",
    ("strategy", "pixels per image", "mIoU (%)", "n", "difference", "wide number", "same"),
    (
        ("margin", "20", "9.8 ± 0.2", "5", "+2.3", "1,024", "x"),
        ("entropy", "all", "50.8 ± 0.2", "3/5", "-1.5", "300", "x"),
        ("random", "100", "missing 0/5", "-", "-", "-", "x"),
        ("coreset10", "9", "50.75", "4/5", "−0.2", "20,480.5", "x"),
        ("coreset9", "10", "7", "10", "0.0", "5", "x"),
    ),
    "lrrrrrl",
    strong=frozenset({(1, 2)}),
)
LONG = Table(
    'Many rows, "and" more.',
    ("setting", "value, in percent"),
    tuple((f"a long name of a setting that does not end, number {number}", str(number)) for number in range(35)),
    "lr",
)

SHEET = f"""
<label class="stages" hidden>stages: the first <output>3</output> of 3 <input type="range" min="1" max="3" value="3">
</label><div class="wide"><table class="pictures"><thead><tr><th>image</th><th>picks</th></tr></thead><tbody><tr>
<td><img class="label-map" src="{PIXEL}" alt="a map"></td>
<td><svg viewBox="0 0 9 9"><g class="picks" data-stage="1"><circle r="1"/></g><g class="picks" data-stage="2">
<circle r="1"/></g><g class="picks" data-stage="3"><circle r="1"/></g></svg></td></tr></tbody></table></div>"""
DRAWN = (("pixels", "linear"), ("pixels", "log"), ("share", "log"), ("share", "linear"), ("clicks", "log"))
PAGE = Page(
    "A study with a rather long title, which says what was compared_with_what_else_at_the_same_time",
    "study: 12 trials, 10 fits",
    (Fact("50.8 ± 0.2", "mIoU at 100 pixels", "5 seeds"), Fact("3/5", "seeds", "")),
    {
        "Results": (Prose(("A sentence.",)), ORDERED),
        "Curve": (curves(*DRAWN),),
        "Many": (LONG,),
        "Pictures": (Pictures("Seen.", SHEET),),
    },
)


def column(browser: Browser, number: int) -> list[str]:
    cells = f"document.querySelectorAll('#results tbody td:nth-child({number})')"
    return browser.run(f"return [...{cells}].map(one => one.textContent)")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(page_html(PAGE), encoding="utf-8")
    return path


@pytest.fixture
def browser(started: Browser, path: Path) -> Browser:
    """A browser that has just opened the page on a wide screen."""
    started.prefer("light")
    started.visit(path.as_uri())
    return started


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a whole report with everything in it: pictures, judgement, costs."""
    folder = tmp_path_factory.mktemp("whole")
    study = Study(folder / "store")
    model = CostModel(seconds_per_pixel=2, money_per_hour=20, currency="EUR")
    write_report(study.store, [fill(study, GRID)], folder / "report", cost_model=model, picture_settings=1)
    return folder / "report" / "index.html"


def test_no_message_and_no_request(started: Browser, path: Path, whole: Path) -> None:
    for opened in (path, whole, *RESULTS):
        started.log("browser")
        started.log("performance")
        started.visit(opened.as_uri())
        assert started.log("browser") == []
        events = [json.loads(one["message"])["message"] for one in started.log("performance")]
        sent = [one["params"] for one in events if one["method"] == "Network.requestWillBeSent"]
        requests = {one["request"]["url"] for one in sent if not one["documentURL"].startswith("chrome://")}
        assert {url for url in requests if not url.startswith(("data:", "blob:"))} == {opened.as_uri()}


def test_every_kind_of_value_has_its_order_then_reversed_then_as_before_one_column_at_a_time(browser: Browser) -> None:
    before, names = column(browser, 3), column(browser, 1)
    ascending = ["7", "9.8 ± 0.2", "50.75", "50.8 ± 0.2", "missing 0/5"]
    for expected, state in (
        (ascending, "ascending"),
        ([*ascending[3::-1], "missing 0/5"], "descending"),
        (before, None),
    ):
        browser.click("#results th:nth-child(3) button")
        assert column(browser, 3) == expected
        assert browser.run("return document.querySelector('#results th:nth-child(3)').ariaSort") == state
    for _ in range(2):
        browser.click("#results th:nth-child(7) button")
        assert column(browser, 1) == names  # equal values keep their order in both directions
    for number, expected in (
        (2, ["9", "10", "20", "100", "all"]),
        (4, ["3/5", "4/5", "5", "10", "-"]),
        (5, ["-1.5", "−0.2", "0.0", "+2.3", "-"]),
        (6, ["5", "300", "1,024", "20,480.5", "-"]),
    ):
        browser.click(f"#results th:nth-child({number}) button")
        assert column(browser, number) == expected
    browser.press("#results th:nth-child(1) button", Key.ENTER)
    assert column(browser, 1) == ["coreset9", "coreset10", "entropy", "margin", "random"]
    states = "return [...document.querySelectorAll('#results th')].map(one => one.ariaSort)"
    assert browser.run(states) == ["ascending"] + [None] * 6


def test_a_long_table_is_short_until_all_is_asked_for_and_the_contents_follow(browser: Browser) -> None:
    assert sum(browser.shown("#many tbody tr")) == 20
    assert browser.run("return document.querySelector('#many .more').textContent") == "Show all 35 rows"
    browser.click("#many .more")
    assert sum(browser.shown("#many tbody tr")) == 35
    browser.click("#many .more")
    assert sum(browser.shown("#many tbody tr")) == 20
    assert browser.run("return document.querySelectorAll('.more').length") == 1
    browser.run("document.getElementById('many').scrollIntoView({behavior: 'instant'})")
    current = "return document.querySelector('.contents [aria-current]')?.textContent"
    wait_for(lambda: browser.run(current) == "Many")


def test_a_table_is_downloaded_with_all_its_rows_and_copied_as_it_is_sorted(browser: Browser, tmp_path: Path) -> None:
    browser.devtools("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.click("#many .tools button:nth-of-type(3)")
    (found,) = wait_for(lambda: list(tmp_path.glob("*.csv")))
    rows = csv.reader(found.read_text(encoding="utf-8").splitlines())
    assert [tuple(row) for row in rows] == [LONG.header, *LONG.rows]
    assert found.name.startswith("many-")
    browser.devtools("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.click("#results th:nth-child(2) button")
    browser.click("#results .tools button:nth-of-type(1)")
    wait_for(lambda: browser.run("return document.querySelector('#results [role=status]').textContent") == "Copied.")
    rows = csv.reader(browser.run("return navigator.clipboard.readText()").splitlines())
    assert [tuple(row) for row in rows] == [ORDERED.header, *(ORDERED.rows[index] for index in (3, 4, 0, 2, 1))]


def test_the_theme_changes_colours_and_is_kept_where_the_browser_stores_anything(browser: Browser, path: Path) -> None:
    def colour() -> str:
        return browser.run("return getComputedStyle(document.body).backgroundColor")

    light = colour()
    browser.click(".theme label:nth-child(3)")
    dark = colour()
    assert dark != light

    def is_kept() -> bool:
        browser.visit(path.as_uri())
        return colour() == dark

    wait_for(is_kept)  # another process of the browser may store it
    assert browser.run("return document.querySelector('.theme input:checked').value") == "dark"
    browser.click(".theme label:nth-child(1)")
    assert colour() == light
    browser.prefer("dark")
    assert colour() == dark
    refuse = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('', 'SecurityError'); }})"
    script = browser.devtools("Page.addScriptToEvaluateOnNewDocument", source=refuse)
    try:
        browser.visit(path.as_uri())
        browser.click(".theme label:nth-child(3)")
        assert browser.run("return document.documentElement.dataset.theme") == "dark"
        assert browser.log("browser") == []
    finally:
        browser.devtools("Page.removeScriptToEvaluateOnNewDocument", **script)


def test_axis_and_scale_choose_the_curve(browser: Browser) -> None:
    assert browser.shown(".curve") == [True, False, False, False, False]
    for kind, number, curve in (("axis", 2, 3), ("scale", 2, 2), ("scale", 1, 3), ("axis", 3, 4)):
        browser.click(f".{kind} label:nth-child({number})")
        assert browser.shown(".curve") == [at == curve for at in range(5)]
    chosen = "return [...document.querySelectorAll('.choices input:checked')].map(one => one.value)"
    assert browser.run(chosen) == ["clicks", "log"]  # which has no linear scale
    browser.click("summary")
    assert browser.shown("#curve details table") == [True]


def test_pictures_are_enlarged_and_a_slider_hides_the_picks_of_later_stages(browser: Browser) -> None:
    displays = "return [...document.querySelectorAll('.picks')].map(one => getComputedStyle(one).display)"
    assert "none" not in browser.run(displays)
    browser.click(".stages input")  # at its middle
    assert browser.run(displays) == ["inline", "inline", "none"]
    assert browser.run("return document.querySelector('.stages output').value") == "2"
    assert browser.run("return document.querySelectorAll('.sheet :is(.sort, .tools)').length") == 0
    browser.click(".sheet .zoom")
    wide = "return document.querySelector('.viewer img').getBoundingClientRect().width"
    fitting = browser.run(wide)
    browser.click(".viewer .zoom")
    assert browser.run(wide) > 2 * fitting > 1400
    browser.press(".viewer .close", Key.ESCAPE)
    assert browser.shown(".viewer") == [False]


def test_only_boxes_scroll_sideways_reached_by_keyboard_and_keep_their_first_column(
    browser: Browser, path: Path, whole: Path
) -> None:
    outside = """
        return [...document.querySelectorAll('body *')]
            .filter(one => !one.closest('.wide *, .contents ol *, .skip') && one.checkVisibility())
            .filter(one => one.getBoundingClientRect().right > innerWidth || one.getBoundingClientRect().left < 0
                || (one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).overflowX === 'visible'
                    && getComputedStyle(one).display === 'block'))
            .map(one => one.outerHTML.slice(0, 80))"""
    for opened, width in ((whole, 1400), (whole, 360), (path, 1400), (path, 820), (path, 360)):
        browser.visit(opened.as_uri(), width)
        browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert browser.run("return [document.documentElement.scrollWidth <= innerWidth, innerWidth]") == [True, width]
        assert browser.run(outside) == []
    box, left = "document.querySelector('#results .wide')", "getBoundingClientRect().left"
    wait_for(lambda: browser.run(f"return {box}.tabIndex") == 0)
    browser.run(f"{box}.scrollLeft = 200")
    assert abs(browser.run(f"return {box}.querySelector('td').{left} - {box}.{left}")) < 1


def test_without_scripts_everything_is_there(browser: Browser, path: Path) -> None:
    browser.devtools("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.visit(path.as_uri())
        assert browser.shown(".curve") == [True] * 5
        assert browser.shown("fieldset") == [False] * 3
        assert sum(browser.shown("#many tbody tr")) == 35
    finally:
        browser.devtools("Emulation.setScriptExecutionDisabled", value=False)
