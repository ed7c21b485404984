"""Cells: readings grouped over seeds, with the numbers of seeds requested and stored."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pixelpick_ray.active.metrics import area_under_curve
from pixelpick_ray.config.trial import Budget
from pixelpick_ray.report.evaluations import MIOU, PIXEL_ACCURACY, Metric
from pixelpick_ray.report.points import Point
from pixelpick_ray.report.rows import LAST, Measurement, Reading, Results
from pixelpick_ray.report.statistics import Summary, mean, summarise


@dataclass(frozen=True)
class Line:
    """A curve: what its points at all budgets share; `strategy` is empty for full supervision."""

    experiment: str
    dataset: str
    architecture: str
    backbone: str
    pretrained: str
    strategy: str
    setting: str

    @property
    def model(self) -> tuple[str, ...]:
        """The line's fields without strategy and setting."""
        return self.experiment, self.dataset, self.architecture, self.backbone, self.pretrained


@dataclass(frozen=True)
class Cell:
    """One number of a table over `seeds`, which may be fewer than `expected`; deterministic results count once.

    `values` are fractions, one per seed; `share` of labelled pixels is None if the image size is unknown; `mixed` names
    what should be the same for all seeds (device, versions, data) but is not.
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
    """Normalised area under a line's budget curve, over those of the `expected` seeds that have every budget."""

    line: Line
    budgets: tuple[int, ...]
    expected: int
    summary: Summary


_Group = tuple[Line, Budget, str, str]


def build_cells(results: Results) -> tuple[Cell, ...]:
    """Group readings into cells, including empty ones, by model, strategy, budget, split, checkpoint and metric.

    Models and strategies are in the order of the experiment files, full supervision after its model's strategies.
    """
    readings: defaultdict[_Group, list[Reading]] = defaultdict(list)
    metrics: defaultdict[tuple[str, str], dict[Metric, None]] = defaultdict(lambda: {MIOU: None, PIXEL_ACCURACY: None})
    for reading in results.readings:
        readings[_group(reading.asked)].append(reading)
        metrics[reading.asked.point.experiment, reading.asked.point.dataset] |= dict.fromkeys(reading.values)
    return tuple(
        cell
        for group, asked in _groups(results.measurements)
        for cell in _cells(group, asked, metrics[group[0].experiment, group[0].dataset], readings[group], results)
    )


def line_of(point: Point) -> Line:
    """Return the line of a trial."""
    model = point.experiment, point.dataset, point.architecture, point.backbone, point.pretrained
    return Line(*model, point.strategy, point.setting)


def full_line(line: Line, lines: Iterable[Line]) -> Line | None:
    """Return the line of full supervision to compare a line with; None if there is none, or more than one.

    It has the same model and no setting that `line` lacks; settings of picking do not apply to it.
    """
    items = _setting_items(line)
    fulls = {one for one in lines if one.strategy == "" and one.model == line.model and _setting_items(one) <= items}
    return fulls.pop() if len(fulls) == 1 else None


def reported(results: Results, cells: Iterable[Cell], metric: str = "miou") -> tuple[Cell, ...]:
    """Select the cells of the default table: the last checkpoint on each experiment's reported split."""
    return tuple(cell for cell in on_reported_split(results, cells, metric) if cell.checkpoint == LAST)


def on_reported_split(results: Results, cells: Iterable[Cell], metric: str = "miou") -> tuple[Cell, ...]:
    """Select the cells of one metric on each experiment's reported split, for every checkpoint rule."""
    splits = {experiment.name: experiment.evaluate.report for experiment in results.experiments}
    return tuple(cell for cell in cells if cell.metric == metric and cell.split == splits[cell.line.experiment])


def areas(cells: Sequence[Cell]) -> tuple[Area, ...]:
    """Compute the areas of lines with two or more budgets, from cells of one metric, split and checkpoint."""
    by_line: defaultdict[Line, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.budget != "full":
            by_line[cell.line].append(cell)
    return tuple(_area(line, points) for line, points in by_line.items() if len(points) > 1)


def _setting_items(line: Line) -> frozenset[str]:
    return frozenset(line.setting.split(", ") if line.setting else ())


def _area(line: Line, cells: list[Cell]) -> Area:
    budgets = tuple(cell.budget for cell in cells if cell.budget != "full")
    by_seed = [dict(zip(cell.seeds, cell.values, strict=True)) for cell in cells]
    complete = [seed for seed in by_seed[0] if all(seed in values for values in by_seed)]
    found = [area_under_curve(budgets, [values[seed] for values in by_seed]) for seed in complete]
    return Area(line, budgets, max(cell.expected for cell in cells), summarise(found))


def _groups(measurements: Sequence[Measurement]) -> list[tuple[_Group, list[Measurement]]]:
    groups: defaultdict[_Group, list[Measurement]] = defaultdict(list)
    for one in measurements:
        groups[_group(one)].append(one)
    models = {model: index for index, model in enumerate(dict.fromkeys(group[0].model for group in groups))}
    lines = {line: index for index, line in enumerate(dict.fromkeys(group[0] for group in groups))}

    def order(item: tuple[_Group, list[Measurement]]) -> tuple[int, bool, int, int]:
        line, budget, _, _ = item[0]
        full = budget == "full"
        return models[line.model], full, lines[line], 0 if budget == "full" else budget

    return sorted(groups.items(), key=order)


def _group(one: Measurement) -> _Group:
    return line_of(one.point), one.point.budget, one.split, one.checkpoint


def _cells(
    group: _Group, asked: list[Measurement], metrics: Iterable[Metric], readings: list[Reading], results: Results
) -> Iterator[Cell]:
    """One cell per metric, for measurements that differ only in the seed."""
    line, budget, split, checkpoint = group
    shares = [one.share for one in asked if one.share is not None]
    evidence = [results.evidence[one.evaluation_key] for one in readings if one.evaluation_key]
    mixed = tuple(name for name in (evidence[0] if evidence else ()) if len({one[name] for one in evidence}) > 1)
    for metric, class_name in metrics:
        told = [one for one in readings if (metric, class_name) in one.values]
        found = list({one.fit_key: one for one in reversed(told)}.values())[::-1]  # seeds may share a fit
        values = tuple(one.values[metric, class_name] for one in found)
        yield Cell(
            line=line,
            budget=budget,
            split=split,
            checkpoint=checkpoint,
            metric=metric,
            class_name=class_name,
            size=" or ".join(dict.fromkeys(one.size for one in asked)),
            share=mean(shares) if shares else None,
            expected=len(asked) - (len(told) - len(found)),
            seeds=tuple(one.asked.point.seed for one in found),
            values=values,
            summary=summarise(values),
            fit_keys=tuple(one.fit_key for one in found),
            mixed=mixed,
        )
