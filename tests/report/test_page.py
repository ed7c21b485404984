"""The page as text: what is escaped, what is left out, that it is whole, closed and asks for nothing."""

import base64
import hashlib
import itertools
import re
from collections.abc import Sequence
from importlib import resources

import pytest

from pixelpick_ray.report.page import Fact, Page, page_html
from pixelpick_ray.report.parts import Curve, Curves, Part, Pictures, Prose, Table
from tests.support.pages import PIXEL, Tree, curves, drawing, identifiers

pytestmark = pytest.mark.whole_report

EVIL = "<script>alert(1)</script>\"'&"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;"


def page(**sections: Sequence[Part]) -> Page:
    return Page("A study", "study: 3 trials", (Fact("50.8 ± 0.2", "mIoU", ""),), sections)


@pytest.fixture(scope="module")
def everything() -> str:
    table = Table("Results.", ("strategy", "mIoU (%)"), (("margin", "50.8 ± 0.2"),), "lr", ("A note.",))
    drawn = curves(("pixels", "linear"), ("pixels", "log"), ("share", "linear"), ("share", "log"))
    image = f'<img class="label-map" src="{PIXEL}" alt="a map">'
    pictures = Pictures("Predictions.", f'<div class="pictures">{image}</div>')
    return page_html(page(Results=(table,), Curves=(drawn,), Words=(Prose(("One.", "Two.")),), Seen=(pictures,)))


def test_every_text_is_escaped() -> None:
    table = Table(EVIL, (EVIL,), ((EVIL,),), "l", (EVIL,))
    drawn = Curves((Curve(EVIL, "linear", drawing("a")), Curve("b", "linear", drawing("b"))), table)
    parts = (table, Prose((EVIL,)), drawn, Pictures(EVIL, "<i>ours</i>"))
    text = page_html(Page(EVIL, EVIL, (Fact(EVIL, EVIL, EVIL),), {EVIL: parts}))
    assert "<script>alert" not in text
    assert text.count("<script>") == 1  # the page's own
    # Title twice, lead, fact three times, section four times, table and its numbers four times each, prose, the choice
    # of an axis twice, the drawing twice, pictures.
    assert text.count(ESCAPED) == 2 + 1 + 3 + 4 + 8 + 1 + 2 + 2 + 1
    assert "<i>ours</i>" in text


def test_what_says_nothing_is_left_out_and_every_section_has_an_anchor_of_its_own() -> None:
    said = (Prose(("Said.",)),)
    sections = {"At 5 %": said, "At 5": said, "±": said, "At: 5!": said, "Empty": (), "Silent": (Prose(()),)}
    text = page_html(Page("A", "b", (), sections))
    assert not re.search("Empty|Silent|<dl", text)
    for pattern in (r'<section id="(.*?)"', r'<li><a href="#(.*?)"'):
        assert re.findall(pattern, text) == ["at-5", "at-5-2", "section", "at-5-3"]


def test_every_tag_is_closed_nothing_is_asked_for_and_only_the_page_s_own_script_may_run(everything: str) -> None:
    root = Tree(everything).root
    assert len(identifiers(root)) > 4
    loading = ("href", "src", "xlink:href", "action", "srcset")
    loaded = [value for one in root.iter() for name, value in one.attrib.items() if name in loading]
    assert [one for one in loaded if not one.startswith(("#", "data:"))] == []
    outside = re.sub(r"http://www\.w3\.org/(2000/svg|1999/xlink)", "", everything)  # names, not addresses
    assert not re.search(r"http(?!-equiv)|@import|url\((?!#)", outside)

    script = re.findall(r"<script>(.*?)</script>", everything, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    policy = re.findall(r'Content-Security-Policy" content="(.*?)"', everything)[0]
    assert len(script) == 1
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}';" in policy
    assert "img-src data:;" in policy
    assert everything.count('<figure class="curve"') == 4
    assert set(re.findall(r"<(\w+)[^>]* hidden>", everything)) == {"fieldset"}
    assert len(re.findall("<fieldset", everything)) == len(re.findall("<fieldset[^>]* hidden>", everything)) == 3


def test_choices_are_offered_only_where_there_is_something_to_choose() -> None:
    def text(*drawn: tuple[str, str]) -> str:
        return page_html(page(Curve=(curves(*drawn),)))

    single, scales = [("pixels", "linear")], [("pixels", "linear"), ("pixels", "log")]
    both = [("pixels", "linear"), ("share", "log")]
    counts = [len(re.findall(r'type="radio" name="curve', text(*drawn))) for drawn in (both, scales, single)]
    assert counts == [4, 2, 0]


def test_text_can_be_read_in_both_themes() -> None:
    """Contrast by WCAG 2.2: at least 4.5 for text on paper and on the tint below a row."""

    def luminance(colour: str) -> float:
        channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    style = resources.files("pixelpick_ray.report").joinpath("page.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--(\w+): light-dark\((#\w{6}, #\w{6})\)", style))
    for theme in (0, 1):
        at = {name: luminance(pair.split(", ")[theme]) for name, pair in colours.items()}
        for text, ground in itertools.product(("ink", "faint", "accent"), ("paper", "tint")):
            light, dark = sorted((at[text], at[ground]), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (theme, text, ground)
