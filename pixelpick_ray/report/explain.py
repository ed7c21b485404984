"""Explaining where one number of a report comes from."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pixelpick_ray.config.trial import Budget
from pixelpick_ray.errors import SpecError
from pixelpick_ray.report.cells import Cell, Line, line_of, on_reported_split
from pixelpick_ray.report.chains import ReportedChain
from pixelpick_ray.report.provenance import device_hours
from pixelpick_ray.report.rows import BEST_ON, LAST, Reading, Results
from pixelpick_ray.report.tables import (
    line_labels,
    percent_text,
    rule_text,
    share_text,
    strategy_text,
    value_text,
)
from pixelpick_ray.store import Store, paths

NAMES = (
    *("experiment", "dataset", "architecture", "backbone", "pretrained", "strategy", "setting", "budget"),
    *("split", "checkpoint", "metric", "class_name"),
)


def explain(store: Store, results: Results, cells: Sequence[Cell], chains: Sequence[ReportedChain], wanted: str) -> str:
    """Describe everything behind a cell: values, keys, folders, pixels, devices, versions and what else uses them.

    `wanted` is "NAME=VALUE,...", with columns of table.csv as names, e.g. "strategy=margin,budget=20"; columns left
    out default to those of the default table. Raises SpecError if not exactly one cell matches.
    """
    cell = _found(results, cells, parse_cell(wanted), wanted)
    lines = list(_cell_lines(cell))
    for reading in results.readings:
        if _is_of(reading, cell):
            lines += ["", *_reading_lines(store, results, cell, reading, chains)]
    missing = list(_missing_lines(results, cell))
    return "\n".join([*lines, *([""] if missing else []), *missing])


def parse_cell(wanted: str) -> dict[str, str]:
    """Parse "NAME=VALUE,..."; unnamed parts after a setting belong to it. Raises SpecError for unknown names."""
    found: dict[str, str] = {}
    last = ""
    for part in wanted.split(","):
        name, sign, value = part.strip().partition("=")
        if sign and name in NAMES:
            last, found[name] = name, value.strip()
        elif last == "setting":  # may itself contain commas and equals signs
            found[last] += f",{part.rstrip()}"
        else:
            raise SpecError(
                f"--explain: {part.strip()!r} is not of the form NAME=VALUE; allowed names are {', '.join(NAMES)}"
            )
    return found


def _found(results: Results, cells: Sequence[Cell], wanted: dict[str, str], text: str) -> Cell:
    full = {"checkpoint": LAST, "metric": "iou" if "class_name" in wanted else "miou"} | wanted
    pool = cells if "split" in wanted else on_reported_split(results, cells, full["metric"])
    matching = [cell for cell in pool if all(_is(cell, name, value) for name, value in full.items())]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        raise SpecError(f"--explain {text!r}: no such cell; existing values are {_known(cells, wanted)}")
    apart = [name for name in NAMES if len({_column(cell, name) for cell in matching}) > 1]
    raise SpecError(f"--explain {text!r}: matches {len(matching)} cells; narrow it down by {_known(matching, apart)}")


def _is(cell: Cell, name: str, value: str) -> bool:
    """Whether a column has a value, ignoring spaces between the parts of a setting."""
    return _column(cell, name).replace(", ", ",") == value.replace(", ", ",")


def _known(cells: Sequence[Cell], names: Iterable[str]) -> str:
    texts = {name: dict.fromkeys(_column(cell, name) for cell in cells) for name in names}
    return "; ".join(f"{name}: {', '.join(value or '(empty)' for value in values)}" for name, values in texts.items())


def _column(cell: Cell, name: str) -> str:
    return str(vars(cell.line)[name] if name in vars(cell.line) else vars(cell)[name])


def _cell_lines(cell: Cell) -> Iterator[str]:
    """Lines on the value and what it measures."""
    line = cell.line
    metric = _METRICS[cell.metric] + (f" of {cell.class_name}" if cell.class_name else "")
    place = _place(strategy_text(line), cell.budget)
    seeds = f"n = {len(cell.values)} of {cell.expected}"
    yield f"{line.experiment}: {place}, {metric} {_percent(value_text(cell))}, {seeds}"
    labelled = "" if cell.share is None else f", {share_text(cell)} % of the pixels labelled"
    yield f"  data        {line.dataset} {cell.split} ({cell.size}){labelled}"
    yield f"  model       {line.architecture} {line.backbone}, pretrained {line.pretrained}"
    if line.setting:
        yield f"  setting     {line.setting}"
    yield f"  epoch       {rule_text(cell.checkpoint, cell.split)}"
    if cell.summary.n > 1:
        yield f"  interval    {100 * cell.summary.low:.1f} to {100 * cell.summary.high:.1f} %, of the mean, at 95 %"
    if cell.mixed:
        yield f"  mixed       {', '.join(cell.mixed)}: not the same for all seeds"


_METRICS = {"miou": "mIoU", "iou": "IoU", "pixel_accuracy": "pixel accuracy"}


def _place(label: str, budget: Budget) -> str:
    return label if budget == "full" else f"{label} at {budget} pixels per image"


def _percent(text: str) -> str:
    """A table's text, with a percent sign if it is a number."""
    return f"{text} %" if text[0].isdigit() else text


def _missing_lines(results: Results, cell: Cell) -> Iterator[str]:
    """Lines on the seeds that the cell lacks, and why."""
    needed = cell.split, cell.checkpoint.removeprefix(BEST_ON)
    for one in results.missing:
        if (line_of(one.point), one.point.budget) == (cell.line, cell.budget) and one.split in needed:
            yield f"  seed {one.point.seed}: missing on {one.split}, {one.reason}"


def _is_of(one: Reading, cell: Cell) -> bool:
    asked = one.asked
    mine = asked.point.budget, asked.split, asked.checkpoint
    return mine == (cell.budget, cell.split, cell.checkpoint) and line_of(asked.point) == cell.line


def _reading_lines(
    store: Store, results: Results, cell: Cell, reading: Reading, chains: Sequence[ReportedChain]
) -> Iterator[str]:
    value = percent_text(reading.values[cell.metric, cell.class_name], math.nan)
    yield f"  seed {reading.asked.point.seed}: {_percent(value)}"
    if reading.diverged:
        yield f"    diverged    {reading.diverged}; it counts as the worst value"
        yield f"    record      {store.address}/{paths.diverged(reading.fit_key)}"
        return
    yield f"    fit         {store.address}/{paths.result('fit', reading.fit_key)}"
    yield f"    evaluation  {store.address}/{paths.result('evaluation', reading.evaluation_key)}"
    for budget, key in _picks(chains, cell.line, reading):
        yield f"    {f'{budget} pixels':<10}  {store.address}/{paths.result('pick', key)}"
    yield from _made_lines(results.fits[reading.fit_key])
    for place in _others(results, reading, cell.line):
        yield f"    also of     {place}"


def _picks(chains: Sequence[ReportedChain], line: Line, reading: Reading) -> Iterator[tuple[int, str]]:
    """Budgets and keys of the picks that a fit was trained on."""
    point = reading.asked.point
    for chain in chains:
        if chain.line == line and chain.point.seed == point.seed:
            for budget, key in chain.pick_keys():
                if key and point.budget != "full" and budget <= point.budget:
                    yield budget, key


def _made_lines(fit: dict[str, Any]) -> Iterator[str]:
    if not fit:
        yield "    made        unknown: the fit was removed"
        return
    told = {name: fit.get(name, "unknown") for name in ("finished", "device", "host", "torch", "version", "code")}
    ranks = int(fit.get("world_size", 1))
    where = f"{told['finished']} on {told['device']}, host {told['host']}, {ranks} rank{'s' * (ranks != 1)}"
    yield f"    made        {where}; device hours: {device_hours(fit):.3g}"
    yield f"    versions    torch {told['torch']}, package {told['version']}, code {told['code']}"


def _others(results: Results, reading: Reading, line: Line) -> list[str]:
    """Other cells that were measured with the same fit."""
    points = [one.asked.point for one in results.readings if one.fit_key == reading.fit_key]
    places = dict.fromkeys((line_of(point), point.budget) for point in points if line_of(point) != line)
    labels = line_labels([line, *(other for other, _ in places)])
    return [_place(labels[other], budget) for other, budget in places]
