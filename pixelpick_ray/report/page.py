"""One self-contained HTML page: tables, curve, what is missing, and how the results came about."""

import html
from collections import defaultdict
from collections.abc import Mapping, Sequence

from pixelpick_ray.report.figures import inline_svg
from pixelpick_ray.report.formats import to_html
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.rows import Results

CURVE = "Budget curve"

_PROVENANCE = {
    "device": "devices",
    "world_size": "ranks",
    "threads": "threads a rank",
    "torch": "torch",
    "numpy": "NumPy",
    "python": "Python",
    "version": "package",
    "code": "code commits",
}

_CSS = """
:root { color-scheme: light dark;
  --paper: #ffffff; --ink: #1c1c1e; --faint: #6b6b70; --line: #d9d9de; --raised: #f5f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16171a; --ink: #e8e8ea; --faint: #9a9aa2; --line: #35363c; --raised: #1f2024; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem;
  max-width: 80rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p.lead, figcaption, p.note { color: var(--faint); font-size: .9rem; margin: .25rem 0 .75rem; max-width: 52rem;
  overflow-wrap: anywhere; }
figure { margin: 0 0 1.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { background: var(--raised); font-weight: 600; white-space: normal; vertical-align: bottom; }
.r { text-align: right; }
.curve svg { width: 100%; height: auto; max-width: 48rem; display: block; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; font-size: .9rem; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
"""


def page_html(results: Results, sections: Mapping[str, Sequence[Table]], svg: str) -> str:
    """The page: the sections' tables under their titles, in order; `svg` is the curve as a document of its own."""
    title = " · ".join(experiment.title or experiment.name for experiment in results.experiments)
    names = ", ".join(experiment.name for experiment in results.experiments)
    curve = f'<div class="curve">{inline_svg(svg)}</div>\n'
    body = [
        f"<h1>{html.escape(title)}</h1>\n",
        f'<p class="lead">{html.escape(f"{names}: {len(results.trials)} trials, {len(results.fits)} fits")}</p>\n',
        *(_section(name, curve if name == CURVE else "", *map(to_html, tables)) for name, tables in sections.items()),
        _section("Provenance", *(_provenance(results, experiment.name) for experiment in results.experiments)),
    ]
    return _document(title, "".join(body))


def _document(title: str, body: str) -> str:
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>"
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}</body>\n</html>\n'


def _section(title: str, *parts: str) -> str:
    """A heading and its parts; empty when nothing is to be said."""
    return f"<h2>{html.escape(title)}</h2>\n{''.join(parts)}" if any(parts) else ""


def _provenance(results: Results, experiment: str) -> str:
    keys = {row.fit_key for row in results.rows if row.experiment == experiment}
    made = [results.fits[key] for key in sorted(keys)]
    facts: dict[str, str] = {"fits": str(len(keys))}
    for name, shown in _PROVENANCE.items():
        counts: defaultdict[str, int] = defaultdict(int)
        for one in made:
            counts[str(one.get(name, "unknown"))] += 1
        facts[shown] = ", ".join(_counted(value, counts) for value in sorted(counts)) or "-"
    facts["training and evaluation"] = _duration(sum(float(one.get("seconds", 0.0)) for one in made)) + " in all"
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>\n" for name, value in facts.items())
    return f"<h3>{html.escape(experiment)}</h3>\n<dl>\n{items}</dl>\n"


def _counted(value: str, counts: dict[str, int]) -> str:
    return value if len(counts) == 1 else f"{value} ({counts[value]} fits)"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
