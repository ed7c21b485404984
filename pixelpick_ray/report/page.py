"""The HTML page of a report: one self-contained file, readable without a network or scripts."""

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from pixelpick_ray.report.figures import inline_svg
from pixelpick_ray.report.formats import to_html
from pixelpick_ray.report.parts import Curve, Curves, Listing, Part, Pictures, Prose, Table


@dataclass(frozen=True)
class Fact:
    """A headline figure: short value, label and note; an empty note is not shown."""

    value: str
    label: str
    note: str


@dataclass(frozen=True)
class Page:
    """Contents of a page from top to bottom; `sections` are parts by title."""

    title: str
    lead: str
    headline: tuple[Fact, ...]
    sections: Mapping[str, Sequence[Part]]


def page_html(page: Page) -> str:
    """Render a page as one HTML document, with equal bytes for equal pages; empty sections are left out.

    All text is escaped, except `Curve.svg` and `Pictures.html`, which are inserted verbatim.
    """
    bodies = {title: _parts(anchor, page.sections[title]) for title, anchor in _anchors(page.sections).items()}
    anchors = {title: anchor for title, anchor in _anchors(page.sections).items() if bodies[title]}
    return _document(
        page.title,
        '<a class="skip" href="#page-main">Skip to the results</a>\n<div class="page">\n',
        _header(page),
        _contents(anchors),
        '<main id="page-main" tabindex="-1">\n',
        *(_section(title, anchor, bodies[title]) for title, anchor in anchors.items()),
        "</main>\n</div>\n",
    )


def _document(title: str, *body: str) -> str:
    style, script = _asset("page.css"), _asset("page.js")
    # The policy allows only our script, by its digest, and no network requests.
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = (
        '<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n"
        '<link rel="icon" href="data:,">\n'  # otherwise browsers request one
        f"<style>{style}</style>\n<script>{script}</script>\n"
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}</head>\n<body>\n{"".join(body)}</body>\n</html>\n'


def _asset(name: str) -> str:
    return resources.files("pixelpick_ray.report").joinpath(name).read_text(encoding="utf-8")


# Frame


def _header(page: Page) -> str:
    theme = _choice("Theme", "theme", {name.lower(): name for name in ("Auto", "Light", "Dark")})
    facts = "".join(map(_fact, page.headline))
    return (
        f'<header>\n<div class="masthead"><p>PixelPick-Ray report</p>{theme}</div>\n'
        f'<h1>{html.escape(page.title)}</h1>\n<p class="lead">{html.escape(page.lead)}</p>\n'
        + (f'<dl class="facts">\n{facts}</dl>\n' if facts else "")
        + "</header>\n"
    )


def _fact(fact: Fact) -> str:
    aside = f'<dd class="aside">{html.escape(fact.note)}</dd>' if fact.note else ""
    label, value = html.escape(fact.label), html.escape(fact.value)
    return f'<div><dt>{label}</dt><dd class="value">{value}</dd>{aside}</div>\n'


def _contents(anchors: Mapping[str, str]) -> str:
    items = "".join(f'<li><a href="#{anchor}">{html.escape(title)}</a></li>\n' for title, anchor in anchors.items())
    return f'<nav class="contents" aria-label="Contents">\n<ol>\n{items}</ol>\n</nav>\n'


def _section(title: str, anchor: str, body: str) -> str:
    text = html.escape(title)
    link = f'<a class="anchor" href="#{anchor}" aria-label="Link to {text}">#</a>'
    return f'<section id="{anchor}" aria-label="{text}">\n<h2>{text}{link}</h2>\n{body}</section>\n'


def _anchors(titles: Iterable[str]) -> dict[str, str]:
    """A unique identifier for each title, made of its letters and a number if necessary."""
    found: dict[str, str] = {}
    for title in titles:
        slug = anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        number = 1
        while anchor in found.values():
            number += 1
            anchor = f"{slug}-{number}"
        found[title] = anchor
    return found


# Parts


def _parts(anchor: str, parts: Sequence[Part]) -> str:
    return "".join(_part(f"{anchor}-part-{number}", part) for number, part in enumerate(parts, start=1))


def _part(name: str, part: Part) -> str:
    """A part as HTML; its identifiers begin with `name`."""
    match part:
        case Table():
            return f'<div class="part table">{to_html(part)}</div>\n'
        case Prose():
            paragraphs = "".join(f"<p>{html.escape(sentence)}</p>\n" for sentence in part.sentences)
            return f'<div class="part prose">\n{paragraphs}</div>\n' if paragraphs else ""
        case Curves():
            return _curves(name, part)
        case Listing():
            summary = f"<summary>{html.escape(part.title)}</summary>"
            return f'<div class="part"><details>{summary}<pre>{html.escape(part.text)}</pre></details></div>\n'
        case Pictures():
            caption = f"<figcaption>{html.escape(part.caption)}</figcaption>"
            return f'<div class="part sheet"><figure>{caption}\n{part.html}</figure></div>\n'


def _curves(name: str, part: Curves) -> str:
    choices: dict[str, list[str]] = {
        "Axis": list(dict.fromkeys(curve.axis for curve in part.curves)),
        "Scale": list(dict.fromkeys(curve.scale for curve in part.curves)),
    }
    fields = "".join(
        _choice(text, f"{name}-{text.lower()}", {value: value for value in values})
        for text, values in choices.items()
        if len(values) > 1
    )
    drawings = "".join(_curve(f"{name}-{number}", curve) for number, curve in enumerate(part.curves, start=1))
    numbers = f"<details><summary>Numbers behind the figure</summary>{to_html(part.data)}</details>"
    return f'<div class="part curves">\n<div class="choices">{fields}</div>\n{drawings}{numbers}\n</div>\n'


def _curve(name: str, curve: Curve) -> str:
    """One drawing, with a caption for readers without scripts, who see all of them."""
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", inline_svg(curve.svg))
    caption = html.escape(curve.caption or f"Over {curve.axis}, {curve.scale} scale.")
    return (
        f'<figure class="curve" data-axis="{html.escape(curve.axis)}" data-scale="{curve.scale}" '
        f'style="--points: {_width(svg):g}">\n'
        f'<div class="wide">{svg}</div>\n<figcaption>{caption}</figcaption></figure>\n'
    )


def _width(svg: str) -> float:
    """Width of a drawing in its own units."""
    found = re.search(r'viewBox="\S+ \S+ (\S+)', svg)
    if found is None:
        raise AssertionError("a drawing without a viewBox cannot be scaled")
    return float(found[1])


def _choice(legend: str, name: str, values: Mapping[str, str]) -> str:
    """Radio buttons, the first one checked; hidden until the script that handles them runs."""
    labels = "".join(
        f'<label><input type="radio" name="{name}" value="{html.escape(value)}"{" checked" * (number == 0)}>'
        f"<span>{html.escape(text)}</span></label>"
        for number, (value, text) in enumerate(values.items())
    )
    return (
        f'<fieldset class="{legend.lower()}" hidden><legend class="unseen">{legend}</legend>'
        f'<span aria-hidden="true">{legend}</span><span class="segments">{labels}</span></fieldset>'
    )
