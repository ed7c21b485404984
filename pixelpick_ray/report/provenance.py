"""Provenance of results: hardware and versions, training time, and sharing of fits."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixelpick_ray.config.trial import Budget
from pixelpick_ray.report.cells import Line, line_of
from pixelpick_ray.report.chains import ReportedChain
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.rows import Results
from pixelpick_ray.report.statistics import mean
from pixelpick_ray.report.tables import budget_text, line_columns
from pixelpick_ray.store import Store

# Provenance fields of a fit, and their names for readers.
_FACTS = {
    "device": "devices",
    "world_size": "ranks",
    "threads": "threads per rank",
    "torch": "torch",
    "numpy": "NumPy",
    "python": "Python",
    "version": "package",
    "code": "code commits",
}


@dataclass(frozen=True)
class Effort:
    """Fits of one stage of a line over all seeds: provenance by key, empty for removed fits."""

    line: Line
    budget: Budget
    fits: Mapping[str, dict[str, Any]]


def load_efforts(store: Store, results: Results, chains: Sequence[ReportedChain]) -> tuple[Effort, ...]:
    """Read the fits of all stages of all chains, whether or not a trial ends there, then full supervision."""
    found: dict[Line, dict[Budget, dict[str, dict[str, Any]]]] = {}
    for chain in chains:
        stages = zip(chain.pick_keys(), chain.stages, strict=False)
        for (budget, _), stage in stages:
            fits, key = found.setdefault(chain.line, {}).setdefault(budget, {}), stage.fit
            fits[key] = results.fits[key] if key in results.fits else _read(store, key)
    for reading in results.readings:
        point = reading.asked.point
        if point.budget == "full":
            fits = found.setdefault(line_of(point), {}).setdefault("full", {})
            fits[reading.fit_key] = results.fits[reading.fit_key]
    return tuple(Effort(line, budget, fits) for line, stages in found.items() for budget, fits in stages.items())


def _read(store: Store, key: str) -> dict[str, Any]:
    files = store.files("fit", key, ["provenance.json"])
    value: dict[str, Any] = json.loads(files["provenance.json"]) if files else {}
    return value


def effort_table(efforts: Sequence[Effort]) -> Table | None:
    """Tabulate time and sharing of each stage's fits, evaluation included; None if no fit is stored.

    A fit that several lines share counts in each of them.
    """
    shown = [effort for effort in efforts if any(effort.fits.values())]
    if not shown:
        return None
    users = Counter(key for effort in shown for key in effort.fits)
    columns = line_columns(effort.line for effort in shown)
    rows = tuple(
        (*(texts[one.line] for texts in columns.values()), budget_text(one.budget), *_effort_texts(one, users))
        for one in shown
    )
    number, hours = total_effort(shown)
    caption = (
        "Fits of every stage: their number, how many are shared with other lines of this table, mean seconds (training "
        "and evaluation), and total device hours (seconds times ranks). Counting each fit once: "
        f"{_count(number)}, {hours:.3g} device hours."
    )
    header = (*columns, "pixels per image", "fits", "shared", "seconds per fit", "device hours", "devices")
    return Table(caption, header, rows, "l" * len(columns) + "rrrrrl")


def total_effort(efforts: Sequence[Effort]) -> tuple[int, float]:
    """Return the number of stored fits and their device hours, counting each fit once."""
    fits = {key: fit for effort in efforts for key, fit in effort.fits.items() if fit}
    return len(fits), sum(map(device_hours, fits.values()))


def _effort_texts(effort: Effort, users: Counter[str]) -> tuple[str, ...]:
    fits = [fit for fit in effort.fits.values() if fit]
    shared = sum(users[key] > 1 for key in effort.fits)
    seconds = mean([float(fit.get("seconds", 0.0)) for fit in fits])
    hours = sum(map(device_hours, fits))
    return str(len(fits)), str(shared), f"{seconds:.1f}", f"{hours:.3g}", ", ".join(devices([effort]))


def devices(efforts: Sequence[Effort]) -> tuple[str, ...]:
    """Return the names of the devices that stored fits were trained on, sorted."""
    return tuple(sorted({str(fit.get("device", "unknown")) for one in efforts for fit in one.fits.values() if fit}))


def device_hours(fit: dict[str, Any]) -> float:
    """Return the device hours of a fit, over all its ranks, from its provenance."""
    return float(fit.get("seconds", 0.0)) * int(fit.get("world_size", 1)) / 3600


def provenance_table(results: Results) -> Table:
    """Tabulate what each experiment's fits were trained with; differing values come with their numbers of fits."""
    keys = {experiment.name: dict.fromkeys(_fit_keys(results, experiment.name)) for experiment in results.experiments}
    made = {name: [results.fits[key] for key in own] for name, own in keys.items()}
    rows = [("fits", *(str(len(fits)) for fits in made.values()))]
    for name, shown in _FACTS.items():
        rows.append((shown, *(_listed([str(fit.get(name, "unknown")) for fit in fits]) for fits in made.values())))
    return Table("Hardware and software behind the values.", ("", *made), tuple(rows), "l" * (1 + len(made)))


def _fit_keys(results: Results, experiment: str) -> list[str]:
    return [one.fit_key for one in results.readings if one.asked.point.experiment == experiment]


def _listed(values: Sequence[str]) -> str:
    counts = Counter(values)
    if len(counts) == 1:
        return values[0]
    return ", ".join(f"{value} ({_count(counts[value])})" for value in sorted(counts)) or "-"


def _count(fits: int) -> str:
    return f"{fits} fit{'s' * (fits != 1)}"
