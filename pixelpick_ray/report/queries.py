"""What was asked: statistics of each stage's new pixels, of every chain that the trials are prefixes of."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pixelpick_ray.report.cells import Line, line_of
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.points import Point
from pixelpick_ray.report.rows import Results, csv_text, read_chain
from pixelpick_ray.report.statistics import summarise
from pixelpick_ray.report.tables import budget_text, count_text, line_columns
from pixelpick_ray.spec.keys import chain_id
from pixelpick_ray.spec.trial import Trial
from pixelpick_ray.store import Store

CSV_COLUMNS = (
    *("experiment", "dataset", "architecture", "backbone", "strategy", "setting", "seed", "stage", "budget"),
    *("statistic", "class_name", "value", "pretrained", "pick_key"),
)

# Statistic to its heading and format; all are means over images but the first, over pixels.
_SHOWN = {
    "entropy": ("entropy (nats)", ".3f"),
    "distinct_classes": ("classes an image", ".2f"),
    "spread": ("spread (pixels)", ".1f"),
}


@dataclass(frozen=True)
class Query:
    """The new pixels that stage `stage` trains on first, the first of all at stage 0.

    `point` has the budget that they lead to, whether or not a trial ends there. `statistics` is None for pixels that
    are not stored, or were stored before there were statistics; `active/queries.py` explains its fields.
    """

    point: Point
    stage: int
    pick_key: str
    class_names: tuple[str, ...]
    statistics: dict[str, Any] | None


def load_queries(store: Store, results: Results) -> tuple[Query, ...]:
    """The queries of every chain up to its largest budget; full supervision asks for nothing."""
    longest: dict[tuple[str, str], tuple[Point, Trial]] = {}
    for point, trial in results.trials.items():
        if trial.budget == "full":
            continue
        key = point.experiment, chain_id(trial)
        if key not in longest or trial.num_stages > longest[key][1].num_stages:
            longest[key] = point, trial
    experiments = {experiment.name: experiment for experiment in results.experiments}
    found: list[Query] = []
    for point, trial in longest.values():
        record = read_chain(store, experiments[point.experiment], trial)
        found += _of_chain(store, point, trial, record or {"stages": [], "class_names": []})
    return tuple(found)


def _of_chain(store: Store, point: Point, trial: Trial, record: dict[str, Any]) -> Iterator[Query]:
    first, step = trial.acquire.initial_pixels, trial.acquire.pixels_per_stage
    keys = [record.get("initial"), *(stage.get("pick") for stage in record["stages"])]
    for stage in range(trial.num_stages):
        key = (keys[stage] if stage < len(keys) else None) or ""
        end = replace(point, budget=first + stage * step)
        yield Query(end, stage, key, tuple(record["class_names"]), _statistics(store, key))


def _statistics(store: Store, key: str) -> dict[str, Any] | None:
    folder = store.result("pick", key) if key else None
    if folder is None or not (folder / "statistics.json").is_file():
        return None
    value: dict[str, Any] = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    return value


def queries_csv(queries: Sequence[Query]) -> str:
    """One value a row: pixels, images, class_count of each class, entropy, distinct_classes, spread."""
    lines = []
    for query in queries:
        fixed = vars(query.point) | {"stage": query.stage, "pick_key": query.pick_key}
        for statistic, class_name, value in _values(query):
            values = fixed | {"statistic": statistic, "class_name": class_name, "value": value}
            lines.append([values[name] for name in CSV_COLUMNS])
    return csv_text(CSV_COLUMNS, lines)


def _values(query: Query) -> Iterator[tuple[str, str, Any]]:
    known = query.statistics
    if known is None:
        return
    yield from ((name, "", known[name]) for name in ("pixels", "images"))
    counts = zip(query.class_names, known["class_counts"], strict=True)
    yield from (("class_count", name, count) for name, count in counts)
    yield from ((name, "", known[name]) for name in _SHOWN)


def query_table(queries: Sequence[Query]) -> Table | None:
    """Means over seeds of what was asked, by line and budget; None when no statistics are stored."""
    if all(query.statistics is None for query in queries):
        return None
    groups: defaultdict[Line, defaultdict[int, list[Query]]] = defaultdict(lambda: defaultdict(list))
    for query in queries:
        groups[line_of(query.point)][query.stage].append(query)
    columns = line_columns(groups)
    rows = tuple(
        (*(texts[line] for texts in columns.values()), budget_text(own[0].point.budget), *_texts(own))
        for line, stages in groups.items()
        for _, own in sorted(stages.items())
    )
    caption = (
        "What was asked at each stage, means over seeds: entropy of the prediction at the new pixels (none where no "
        "network was asked), classes among an image's new pixels, and distance between two of them. The first pixels "
        "are by chance, whatever the strategy."
    )
    header = (*columns, "pixels per image", *(heading for heading, _ in _SHOWN.values()), "n")
    return Table(caption, header, rows, "l" * len(columns) + "r" * (2 + len(_SHOWN)))


def _texts(queries: Sequence[Query]) -> list[str]:
    known = [query.statistics for query in queries if query.statistics is not None]
    texts = []
    for name, (_, digits) in _SHOWN.items():
        values = [math.nan if one[name] is None else float(one[name]) for one in known]
        centre = summarise(values).mean
        texts.append("-" if math.isnan(centre) else f"{centre:{digits}}")
    return [*texts, count_text(len(known), len(queries))]
