"""Tidy rows grouped into cells: what seeds have in common, how many were asked for and how many are there."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from pixelpick_ray.report.points import Budget, Point
from pixelpick_ray.report.rows import LAST, Measurement, Results, Row
from pixelpick_ray.report.statistics import Summary, area_under_curve, mean, summarise


@dataclass(frozen=True)
class Line:
    """What all budgets of one curve share; `strategy` is empty for full supervision."""

    experiment: str
    dataset: str
    architecture: str
    backbone: str
    pretrained: str
    strategy: str
    setting: str

    @property
    def model(self) -> tuple[str, ...]:
        """The line without its strategy and setting."""
        return self.experiment, self.dataset, self.architecture, self.backbone, self.pretrained


@dataclass(frozen=True)
class Cell:
    """One number of a table, over `seeds`, which may be fewer than `expected`.

    `values` are fractions, one a seed; `share` is None where nothing tells how many pixels an image has; `mixed` names
    what the seeds should have in common (device, versions, data) but have not.
    """

    line: Line
    budget: Budget
    split: str
    checkpoint: str
    metric: str
    class_name: str
    size: str
    share: float | None
    expected: int
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    summary: Summary
    fit_keys: tuple[str, ...]
    mixed: tuple[str, ...]


@dataclass(frozen=True)
class Area:
    """Normalised area under a line's budget curve over the seeds that have every budget, of `expected` seeds."""

    line: Line
    budgets: tuple[int, ...]
    expected: int
    summary: Summary


_Group = tuple[Line, Budget, str, str]


def build_cells(results: Results) -> tuple[Cell, ...]:
    """All cells, also those without a value, by model, strategy, budget, split, checkpoint and metric.

    Models and strategies come in the order of the experiment files, full supervision after the strategies of its model.
    """
    rows: defaultdict[tuple[_Group, str, str], list[Row]] = defaultdict(list)
    classes: defaultdict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for row in results.rows:
        group = (line_of(row), row.budget, row.split, row.checkpoint)
        rows[group, row.metric, row.class_name].append(row)
        if row.metric == "iou":
            classes[row.experiment, row.dataset][row.class_name] = None
    cells = []
    for group, asked in _groups(results.measurements):
        names = classes[group[0].experiment, group[0].dataset]
        for metric, name in [("miou", ""), ("pixel_accuracy", ""), *(("iou", name) for name in names)]:
            cells.append(_cell(group, asked, metric, name, rows[group, metric, name], results))
    return tuple(cells)


def line_of(point: Point | Row) -> Line:
    """The line that a trial or a row lies on."""
    return Line(**{field.name: getattr(point, field.name) for field in fields(Line)})


def reported(results: Results, cells: Iterable[Cell], metric: str = "miou") -> tuple[Cell, ...]:
    """The cells of the default table: the last checkpoint on each experiment's reported split."""
    return tuple(cell for cell in on_reported_split(results, cells, metric) if cell.checkpoint == LAST)


def on_reported_split(results: Results, cells: Iterable[Cell], metric: str = "miou") -> tuple[Cell, ...]:
    """The cells of one metric on each experiment's reported split, by every rule that chooses an epoch."""
    splits = {experiment.name: experiment.evaluate.report for experiment in results.experiments}
    return tuple(cell for cell in cells if cell.metric == metric and cell.split == splits[cell.line.experiment])


def areas(cells: Sequence[Cell]) -> tuple[Area, ...]:
    """Areas of the lines with two budgets or more, from the cells of one metric, split and checkpoint."""
    by_line: defaultdict[Line, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.budget != "full":
            by_line[cell.line].append(cell)
    return tuple(_area(line, points) for line, points in by_line.items() if len(points) > 1)


def _area(line: Line, cells: list[Cell]) -> Area:
    budgets = tuple(cell.budget for cell in cells if cell.budget != "full")
    by_seed = [dict(zip(cell.seeds, cell.values, strict=True)) for cell in cells]
    complete = [seed for seed in by_seed[0] if all(seed in values for values in by_seed)]
    found = [area_under_curve(budgets, [values[seed] for values in by_seed]) for seed in complete]
    return Area(line, budgets, max(cell.expected for cell in cells), summarise(found))


def _groups(measurements: Sequence[Measurement]) -> list[tuple[_Group, list[Measurement]]]:
    groups: defaultdict[_Group, list[Measurement]] = defaultdict(list)
    for one in measurements:
        groups[line_of(one.point), one.point.budget, one.split, one.checkpoint].append(one)
    models = {model: index for index, model in enumerate(dict.fromkeys(group[0].model for group in groups))}
    lines = {line: index for index, line in enumerate(dict.fromkeys(group[0] for group in groups))}

    def order(item: tuple[_Group, list[Measurement]]) -> tuple[int, bool, int, int]:
        line, budget, _, _ = item[0]
        full = budget == "full"
        return models[line.model], full, lines[line], 0 if budget == "full" else budget

    return sorted(groups.items(), key=order)


def _cell(
    group: _Group, asked: list[Measurement], metric: str, class_name: str, rows: list[Row], results: Results
) -> Cell:
    line, budget, split, checkpoint = group
    shares = [one.share for one in asked if one.share is not None]
    evidence = [results.evidence[row.evaluation_key] for row in rows]
    return Cell(
        line=line,
        budget=budget,
        split=split,
        checkpoint=checkpoint,
        metric=metric,
        class_name=class_name,
        size=" or ".join(dict.fromkeys(one.size for one in asked)),
        share=mean(shares) if shares else None,
        expected=len(asked),
        seeds=tuple(row.seed for row in rows),
        values=tuple(row.value for row in rows),
        summary=summarise([row.value for row in rows]),
        fit_keys=tuple(row.fit_key for row in rows),
        mixed=tuple(name for name in (evidence[0] if evidence else ()) if len({one[name] for one in evidence}) > 1),
    )
