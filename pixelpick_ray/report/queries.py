"""Queries: statistics of the new pixels of every stage of every chain."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pixelpick_ray.report.cells import Line, line_of
from pixelpick_ray.report.chains import ReportedChain
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.points import Point
from pixelpick_ray.report.rows import csv_text
from pixelpick_ray.report.statistics import summarise
from pixelpick_ray.report.tables import budget_text, count_text, line_columns, strategy_text
from pixelpick_ray.store import Store

CSV_COLUMNS = (
    *("experiment", "dataset", "architecture", "backbone", "strategy", "setting", "seed", "stage", "budget"),
    *("statistic", "class_name", "value", "pretrained", "pick_key"),
)

# Statistic to its heading and format; the first is a mean over pixels, the others over images.
_SHOWN = {
    "entropy": ("entropy (nats)", ".3f"),
    "distinct_classes": ("classes per image", ".2f"),
    "spread": ("spread (pixels)", ".1f"),
    "border_distance": ("distance to a border (pixels)", ".1f"),
}


@dataclass(frozen=True)
class StageQuery:
    """The new pixels of a stage; at stage 0, the first ones.

    `point` has the budget that they lead to, whether or not a trial ends there. `statistics` is None if the pixels are
    not stored, or were stored before statistics existed; `active/queries.py` documents its fields.
    """

    point: Point
    stage: int
    pick_key: str
    class_names: tuple[str, ...]
    statistics: dict[str, Any] | None


def load_queries(store: Store, chains: Sequence[ReportedChain]) -> tuple[StageQuery, ...]:
    """Read the queries of all chains."""
    return tuple(query for chain in chains for query in _of_chain(store, chain))


def _of_chain(store: Store, chain: ReportedChain) -> Iterator[StageQuery]:
    names = chain.class_names
    for stage, (budget, key) in enumerate(chain.pick_keys()):
        yield StageQuery(replace(chain.point, budget=budget), stage, key or "", names, _statistics(store, key))


def _statistics(store: Store, key: str | None) -> dict[str, Any] | None:
    files = store.files("pick", key, ["statistics.json"]) if key else None
    if files is None:
        return None
    value: dict[str, Any] = json.loads(files["statistics.json"])
    return value


def queries_csv(queries: Sequence[StageQuery]) -> str:
    """Write queries as CSV, one value per row: pixels, images, class_count of each class, and the other statistics."""
    return csv_text(CSV_COLUMNS, _lines(queries))


def _lines(queries: Sequence[StageQuery]) -> Iterator[tuple[Any, ...]]:
    for query in queries:
        point = query.point
        where = point.experiment, point.dataset, point.architecture, point.backbone, point.strategy, point.setting
        for value in _values(query):
            yield *where, point.seed, query.stage, point.budget, *value, point.pretrained, query.pick_key


def _values(query: StageQuery) -> Iterator[tuple[str, str, Any]]:
    known = query.statistics
    if known is None:
        return
    yield from ((name, "", known[name]) for name in ("pixels", "images"))
    counts = zip(query.class_names, known["class_counts"], strict=True)
    yield from (("class_count", name, count) for name, count in counts)
    yield from ((name, "", known.get(name)) for name in _SHOWN)


def query_table(queries: Sequence[StageQuery], distances: Mapping[Line, float | None]) -> Table | None:
    """Tabulate query statistics by line and budget, means over seeds; None if none are stored.

    `distances` are mean distances in pixels of labelled pixels to a border in a line's training images, if known.
    """
    if all(query.statistics is None for query in queries):
        return None
    groups: defaultdict[Line, defaultdict[int, list[StageQuery]]] = defaultdict(lambda: defaultdict(list))
    for query in queries:
        groups[line_of(query.point)][query.stage].append(query)
    columns = line_columns(groups)
    rows = tuple(
        (*(texts[line] for texts in columns.values()), budget_text(own[0].point.budget), *_texts(own))
        for line, stages in groups.items()
        for _, own in sorted(stages.items())
    )
    caption = (
        "Queries at each stage, means over seeds: entropy of the prediction at the new pixels (none if no network was "
        "used), classes among an image's new pixels, distance between two of them, and distance to the nearest "
        "class border. The first pixels are random, whatever the strategy."
    )
    header = (*columns, "pixels per image", *(heading for heading, _ in _SHOWN.values()), "n")
    return Table(caption, header, rows, "l" * len(columns) + "r" * (2 + len(_SHOWN)), tuple(_distance_notes(distances)))


def _distance_notes(distances: Mapping[Line, float | None]) -> Iterator[str]:
    known = sorted({distance for distance in distances.values() if distance is not None})
    if known:
        texts = dict.fromkeys(f"{distance:.1f}" for distance in (known[0], known[-1]))
        yield (
            f"Any labelled pixel of the training images lies {' to '.join(texts)} pixels from a border on average, "
            "estimated from a sample."
        )


def _texts(queries: Sequence[StageQuery]) -> list[str]:
    known = [query.statistics for query in queries if query.statistics is not None]
    texts = []
    for name, (_, digits) in _SHOWN.items():
        values = [math.nan if one.get(name) is None else float(one[name]) for one in known]
        centre = summarise(values).mean
        texts.append("-" if math.isnan(centre) else f"{centre:{digits}}")
    return [*texts, count_text(len(known), len(queries))]


def class_share_tables(queries: Sequence[StageQuery], training: Mapping[Line, Sequence[int]]) -> tuple[Table, ...]:
    """Compare each class's share of the pixels asked for with its share in the training images, per setting.

    `training` has the pixel counts of each class in a line's training images, if known. Empty without statistics.
    """
    asked: defaultdict[tuple[tuple[str, ...], str], dict[Line, dict[str, int]]] = defaultdict(dict)
    for query in queries:
        if query.statistics is not None:
            line = line_of(query.point)
            own = asked[line.model, line.setting].setdefault(line, dict.fromkeys(query.class_names, 0))
            for name, count in zip(query.class_names, query.statistics["class_counts"], strict=True):
                own[name] += count
    return tuple(_class_share_table(lines, training) for lines in asked.values())


def _class_share_table(lines: Mapping[Line, Mapping[str, int]], training: Mapping[Line, Sequence[int]]) -> Table:
    line, own = next(iter(lines.items()))
    shares = {strategy_text(one): _shares(list(counts.values())) for one, counts in lines.items()}
    columns = {name: [_text(100 * share, 1) for share in column] for name, column in shares.items()}
    whole = next((_shares(training[one]) for one in lines if one in training), None)
    beside = ""
    if whole is not None:
        times = {name: _ratios(column, whole) for name, column in shares.items()}
        columns = {"training images": [_text(100 * share, 1) for share in whole]} | columns
        columns |= {f"{name}, ratio": [_text(ratio, 2) for ratio in column] for name, column in times.items()}
        beside = ", among all labelled pixels of the training images, and the ratio of the two"
    rows = tuple((name, *texts) for name, *texts in zip(own, *columns.values(), strict=True))
    model = line.experiment, line.dataset, f"{line.architecture} {line.backbone}", f"pretrained {line.pretrained}"
    where = ", ".join(text for text in (*model, line.setting) if text)
    caption = f"{where}: share of each class in percent among the pixels asked for at all stages and seeds{beside}."
    return Table(caption, ("class", *columns), rows, "l" + "r" * len(columns))


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total if total else math.nan for count in counts]


def _ratios(shares: Sequence[float], whole: Sequence[float]) -> list[float]:
    return [share / all_ if all_ else math.nan for share, all_ in zip(shares, whole, strict=True)]


def _text(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
