"""How results came about: what was trained with what, for how long, and what was shared."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pixelpick_ray.report.cells import Cell, reported
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.rows import Results
from pixelpick_ray.report.statistics import mean
from pixelpick_ray.report.tables import budget_text, line_columns

# What a fit says of itself, and how a reader calls it.
_FACTS = {
    "device": "devices",
    "world_size": "ranks",
    "threads": "threads a rank",
    "torch": "torch",
    "numpy": "NumPy",
    "python": "Python",
    "version": "package",
    "code": "code commits",
}


def effort_table(results: Results, cells: Sequence[Cell]) -> Table | None:
    """Seconds and device hours of each cell's fits, evaluation included, and how many of them other cells share; None
    when no fit is stored. A fit that several cells share counts in each of them.
    """
    shown = [cell for cell in reported(results, cells) if any(results.fits.get(key) for key in cell.fit_keys)]
    if not shown:
        return None
    users = Counter(key for cell in shown for key in cell.fit_keys)
    columns = line_columns(cell.line for cell in shown)
    rows = tuple(
        (*(texts[cell.line] for texts in columns.values()), budget_text(cell.budget), *_effort(results, cell, users))
        for cell in shown
    )
    hours = [device_hours(fit) for key in users if (fit := results.fits.get(key))]
    caption = (
        "Fits that the values are of: seconds of one, training and evaluation together, hours of the devices of all "
        "(seconds times ranks), and how many of them other cells of this table use too. Stages at other budgets are "
        f"not in it. Each fit counted once: {_count(len(hours))}, {sum(hours):.3g} device hours."
    )
    header = (*columns, "pixels per image", "fits", "shared", "seconds a fit", "device hours", "devices")
    return Table(caption, header, rows, "l" * len(columns) + "rrrrrl")


def _effort(results: Results, cell: Cell, users: Counter[str]) -> tuple[str, ...]:
    fits = [fit for key in cell.fit_keys if (fit := results.fits.get(key))]
    shared = sum(users[key] > 1 for key in cell.fit_keys)
    seconds = mean([float(fit.get("seconds", 0.0)) for fit in fits])
    hours = sum(map(device_hours, fits))
    devices = ", ".join(sorted({str(fit.get("device", "unknown")) for fit in fits}))
    return str(len(fits)), str(shared), f"{seconds:.1f}", f"{hours:.3g}", devices


def device_hours(fit: dict[str, Any]) -> float:
    """Hours of all devices that a fit was trained on, from its provenance."""
    return float(fit.get("seconds", 0.0)) * int(fit.get("world_size", 1)) / 3600


def provenance_table(results: Results) -> Table:
    """What the fits of each experiment were made with; several values are listed with their number of fits."""
    keys = {experiment.name: dict.fromkeys(_fit_keys(results, experiment.name)) for experiment in results.experiments}
    made = {name: [results.fits[key] for key in own] for name, own in keys.items()}
    rows = [("fits", *(str(len(fits)) for fits in made.values()))]
    for name, shown in _FACTS.items():
        rows.append((shown, *(_listed([str(fit.get(name, "unknown")) for fit in fits]) for fits in made.values())))
    hours = (f"{sum(map(device_hours, fits)):.3g}" for fits in made.values())
    rows.append(("device hours, training and evaluation", *hours))
    return Table("What the results were made with.", ("", *made), tuple(rows), "l" * (1 + len(made)))


def _fit_keys(results: Results, experiment: str) -> list[str]:
    return [one.fit_key for one in results.readings if one.asked.point.experiment == experiment]


def _listed(values: Sequence[str]) -> str:
    counts = Counter(values)
    if len(counts) == 1:
        return values[0]
    return ", ".join(f"{value} ({_count(counts[value])})" for value in sorted(counts)) or "-"


def _count(fits: int) -> str:
    return f"{fits} fit{'s' * (fits != 1)}"
