"""Rendering of ``RESULTS.md`` from all stored lines."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.goals import FASTER, KINDS, MEASURES, RATIO, Line

INTRODUCTION = """# What is timed

Made by `make bench` and `python -m benchmarks.whole_experiment`; each number is a line of `results/`.
**Bare** is the network alone on one resident batch, in the best way that the project has: forward, logits at the
labelled pixels, loss, backward, optimiser; for inference the full-size logits. The **plain** network is eager fp32 in
NCHW with full-size logits. The **baseline** (`baseline.py`) does the whole work of the original image by image and is
never tuned. What is compared takes turns in one process: medians of the ratios, in brackets the smallest and largest.
"""


def holds(line: Line) -> bool | None:
    """Whether a line meets its goal; None without a goal or a value."""
    goal, value = line.get("goal"), line.get("value")
    if goal is None or value is None:
        return None
    return bool(value >= goal if line["unit"] == FASTER else value <= goal)


def identity(line: Line) -> tuple[str, str]:
    """Name and setting, which determine the line that a newer one replaces."""
    return line["name"], line["setting"]


def update(lines: Iterable[Line], folder: Path) -> None:
    """Store lines in ``results/``, replacing those of equal `identity`, and rewrite ``RESULTS.md``."""
    for line in lines:
        path = folder / "results" / f"{slug(line['device'])}.jsonl"
        kept = [other for other in read(path) if identity(other) != identity(line)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(one) + "\n" for one in [*kept, line]), encoding="utf-8")
    (folder / "RESULTS.md").write_text(render(folder / "results"), encoding="utf-8")


def read(path: Path) -> list[Line]:
    """The lines of a file; none if it is missing."""
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def slug(device: str) -> str:
    """A device's name as a file name: NVIDIA H200 -> nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def render(folder: Path) -> str:
    """The text of RESULTS.md: a section per device, then the measures without a result."""
    devices = [lines for path in sorted(folder.glob("*.jsonl")) if (lines := read(path))]
    sections = [INTRODUCTION, *(_section(lines) for lines in devices)]
    sections += [_unmeasured(kind, [line for lines in devices for line in lines]) for kind in KINDS]
    return "\n".join(section for section in sections if section)


def _section(lines: Sequence[Line]) -> str:
    order = list(MEASURES)
    rows = sorted(lines, key=lambda line: (order.index(line["name"]), line["setting"]))
    return "\n".join(
        [
            f"## {rows[0]['device']}\n",
            "| what | of | value | goal | holds | conditions |",
            "| --- | --- | ---: | ---: | --- | --- |",
            *map(_row, rows),
            "",
        ]
    )


def _row(line: Line) -> str:
    goal = "" if line.get("goal") is None else f"{'≥' if line['unit'] == FASTER else '≤'} {line['goal']:g}"
    word = {True: "yes", False: "**no**", None: ""}[holds(line)]
    cells = [MEASURES[line["name"]].about, line["setting"], _value(line), goal, word, _conditions(line)]
    return f"| {' | '.join(cells)} |"


def _value(line: Line) -> str:
    if "value" not in line:
        return f"not measured: {line['skipped']}"
    value = f"{line['value']:g}" + ("" if line["unit"] == RATIO else f" {line['unit']}")
    return value + (f" [{line['spread'][0]:g}, {line['spread'][1]:g}]" if "spread" in line else "")


def _conditions(line: Line) -> str:
    """The medians behind a ratio, import times, images, rounds, threads and software."""
    parts = [f"{name} {value:g} ms" for name, value in line.get("milliseconds", {}).items()]
    parts += [f"import {name} {value:g} s" for name, value in line.get("import_seconds", {}).items()]
    parts += [f"{name} {line[name]}" for name in ("images", "rounds", "threads") if name in line]
    return ", ".join([*parts, f"torch {line['torch']}", str(line["code"])[:7]])


def _unmeasured(kind: str, lines: Sequence[Line]) -> str:
    """The measures without a value on any device of a kind; empty if there are none."""
    found = {line["name"] for line in lines if line["kind"] == kind and "value" in line}
    missing = [
        f"- {measure.about} (`{name}`)"
        for name, measure in MEASURES.items()
        if kind in measure.kinds and name not in found
    ]
    title = "## Not measured on a GPU yet\n" if kind == "cuda" else "## Not measured on a CPU yet\n"
    return "\n".join([title, *missing, ""]) if missing else ""
