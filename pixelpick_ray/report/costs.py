"""Annotation costs in clicks, seconds and money, computed for stored results without training again."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from pixelpick_ray.config.spec import NonNegative, Spec
from pixelpick_ray.config.trial import Budget
from pixelpick_ray.config.yaml_text import read_text, read_yaml
from pixelpick_ray.errors import SpecError
from pixelpick_ray.report.cells import Cell, Line, full_line, line_of, reported
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.queries import StageQuery
from pixelpick_ray.report.rows import Results
from pixelpick_ray.report.statistics import mean
from pixelpick_ray.report.tables import budget_text, line_columns, n_text, value_text


class FullCost(Spec):
    """Cost of labelling a whole image."""

    clicks_per_image: NonNegative
    seconds_per_image: NonNegative


class CostModel(Spec):
    """Cost of a label.

    `seconds_per_pixel` applies to classes absent from `seconds_per_class`. `seconds_per_image` is the time to open an
    image, paid at each stage that asks for its pixels.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    clicks_per_pixel: NonNegative = 1.0
    seconds_per_pixel: NonNegative
    seconds_per_class: dict[str, NonNegative] = Field(default_factory=dict)
    seconds_per_image: NonNegative = 0.0
    full: FullCost | None = None
    money_per_hour: NonNegative | None = None
    currency: Annotated[str, Field(min_length=1, max_length=12)] | None = None

    @model_validator(mode="after")
    def _money_has_a_currency(self) -> Self:
        if (self.money_per_hour is None) != (self.currency is None):
            given, absent = (
                ("currency", "money_per_hour") if self.money_per_hour is None else ("money_per_hour", "currency")
            )
            raise ValueError(f"{absent}: is required with {given}")
        return self

    def cost(self, clicks: float, seconds: float) -> "Cost":
        """Return a cost, with money if the model has a rate."""
        money = None if self.money_per_hour is None else seconds / 3600 * self.money_per_hour
        return Cost(clicks, seconds, money)


@dataclass(frozen=True)
class Cost:
    """Clicks, seconds of annotation, and money if the model has a rate."""

    clicks: float
    seconds: float
    money: float | None


@dataclass(frozen=True)
class Costs:
    """Costs by a model; `by_cell` lacks cells of unknown cost. `basis` says where the model comes from."""

    model: CostModel
    by_cell: Mapping[tuple[Line, Budget], Cost]
    basis: str = "Assumed"

    @property
    def quantities(self) -> dict[str, dict[tuple[Line, Budget], float]]:
        """Costs of each kind by its name and unit, by cell: clicks, hours and perhaps money."""
        found = {
            "clicks": {place: cost.clicks for place, cost in self.by_cell.items()},
            "hours of annotation": {place: cost.seconds / 3600 for place, cost in self.by_cell.items()},
        }
        money = {place: cost.money for place, cost in self.by_cell.items() if cost.money is not None}
        return found | ({f"money ({self.model.currency})": money} if self.model.currency else {})


def read_cost_model(path: Path) -> CostModel:
    """Read a cost model from a YAML file. Raises SpecError naming file, key, value and what is allowed."""
    try:
        tree = read_yaml(read_text(path), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read ({error}); give the path of a cost model") from error
    if not isinstance(tree, dict):
        raise SpecError(f"{path.name}: should be a mapping; allowed: {', '.join(CostModel.model_fields)}")
    try:
        return CostModel.model_validate(tree)
    except ValidationError as error:
        raise SpecError("\n".join(f"{path.name}: {_problem(item)}" for item in error.errors())) from error


def _problem(item: Any) -> str:
    path = ".".join(part for part in map(str, item["loc"]) if part != "[key]")
    allowed = ", ".join((FullCost if item["loc"][:1] == ("full",) else CostModel).model_fields)
    message = f"{path}: {item['msg']}; got {item['input']!r}"
    if item["type"] == "extra_forbidden":
        message = f"{path}: unknown key; allowed: {allowed}"
    elif item["type"] == "model_type":
        message = f"{path}: should be a mapping with the keys {allowed}; got {item['input']!r}"
    elif item["type"] == "missing":
        message = f"{path}: is required"
    elif item["type"] == "value_error":
        message = str(item["msg"]).removeprefix("Value error, ")
    return message


def costs_of(model: CostModel, queries: Sequence[StageQuery], cells: Iterable[Cell], basis: str = "Assumed") -> Costs:
    """Compute the cost of every cell with values: that of all stages up to its budget, averaged over seeds.

    `cells` share one metric, split and checkpoint. A cell has no cost if a stage's statistics are not stored. Full
    supervision labels every image that a chain of its model asks about. Pixels that people gave no class cost
    `seconds_per_pixel`. Raises SpecError for a class that no data set has.
    """
    _check_classes(model, queries)
    spent = _spent(model, queries)
    by_cell: dict[tuple[Line, Budget], Cost] = {}
    for cell in cells:
        found = [cost for seed in cell.seeds if (cost := spent.get((cell.line, seed, cell.budget)))]
        if cell.budget == "full":
            found = _full_costs(model, cell.line, queries)
        elif len(found) < len(cell.seeds):
            found = []
        if cell.values and found:
            by_cell[cell.line, cell.budget] = _mean_cost(model, found)
    return Costs(model, by_cell, basis)


def _check_classes(model: CostModel, queries: Sequence[StageQuery]) -> None:
    known = dict.fromkeys(name for query in queries for name in query.class_names)
    unknown = [name for name in model.seconds_per_class if name not in known]
    if known and unknown:
        raise SpecError(
            f"cost model: seconds_per_class: no data set of this report has the class {unknown[0]!r}; "
            f"allowed: {', '.join(known)}"
        )


def _spent(model: CostModel, queries: Sequence[StageQuery]) -> dict[tuple[Line, int, Budget], Cost]:
    """Cost of a chain on reaching a budget, by line, seed and budget."""
    chains: defaultdict[tuple[Line, int], list[StageQuery]] = defaultdict(list)
    for query in queries:
        chains[line_of(query.point), query.point.seed].append(query)
    spent: dict[tuple[Line, int, Budget], Cost] = {}
    for (line, seed), stages in chains.items():
        clicks = seconds = 0.0
        for query in sorted(stages, key=lambda one: one.stage):
            known = query.statistics
            if known is None:
                break
            clicks += model.clicks_per_pixel * (known["pixels"] + known.get("refused", 0))
            seconds += model.seconds_per_image * known["images"] + _pixel_seconds(model, query.class_names, known)
            spent[line, seed, query.point.budget] = model.cost(clicks, seconds)
    return spent


def _pixel_seconds(model: CostModel, class_names: Sequence[str], known: Mapping[str, Any]) -> float:
    counts = zip(class_names, known["class_counts"], strict=True)
    classes = (model.seconds_per_class.get(name, model.seconds_per_pixel) * count for name, count in counts)
    return math.fsum([*classes, model.seconds_per_pixel * known.get("refused", 0)])


def _full_costs(model: CostModel, line: Line, queries: Sequence[StageQuery]) -> list[Cost]:
    """Cost of full supervision, empty if unknown. The first stage asks about every training image."""
    first = [query for query in queries if query.stage == 0 and full_line(line_of(query.point), [line])]
    images = [query.statistics["images"] for query in first if query.statistics is not None]
    if model.full is None or not images:
        return []
    return [model.cost(model.full.clicks_per_image * max(images), model.full.seconds_per_image * max(images))]


def _mean_cost(model: CostModel, costs: Sequence[Cost]) -> Cost:
    return model.cost(mean([cost.clicks for cost in costs]), mean([cost.seconds for cost in costs]))


def cost_table(results: Results, cells: Sequence[Cell], costs: Costs) -> Table:
    """Tabulate cost and mIoU of each cell of the default table; notes give the cost model and what is left out."""
    stored = [cell for cell in reported(results, cells) if cell.values]
    shown = [cell for cell in stored if (cell.line, cell.budget) in costs.by_cell]
    columns, quantities = line_columns(cell.line for cell in shown), costs.quantities
    rows = tuple(
        (
            *(texts[cell.line] for texts in columns.values()),
            budget_text(cell.budget),
            *(number_text(values[cell.line, cell.budget]) for values in quantities.values()),
            value_text(cell),
            n_text(cell),
        )
        for cell in shown
    )
    header = (*columns, "pixels per image", *quantities, "mIoU (%)", "n")
    notes = (f"{costs.basis}: {_model_text(costs.model)}.", *_absence_notes(len(stored) - len(shown)))
    caption = "Total cost of the labels by a cost model: all stages up to a budget, means over seeds."
    return Table(caption, header, rows, "l" * len(columns) + "r" * (len(quantities) + 3), notes)


def number_text(value: float) -> str:
    """Format a quantity with three significant digits or, from 100, in whole units: "0.0125", "3.5", "12,000"."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _model_text(model: CostModel) -> str:
    classes = ", ".join(f"{name} {number_text(seconds)} s" for name, seconds in model.seconds_per_class.items())
    pixel = f"{_clicks_text(model.clicks_per_pixel)} and {number_text(model.seconds_per_pixel)} s per pixel"
    parts = [pixel + (f" ({classes})" if classes else "")]
    if model.seconds_per_image:
        parts.append(f"{number_text(model.seconds_per_image)} s to open an image at each stage")
    if model.full is not None:
        whole = f"{_clicks_text(model.full.clicks_per_image)} and {number_text(model.full.seconds_per_image)} s"
        parts.append(f"{whole} to label a whole image")
    if model.money_per_hour is not None:
        parts.append(f"{number_text(model.money_per_hour)} {model.currency} per hour")
    return "; ".join(parts)


def _clicks_text(clicks: float) -> str:
    return f"{number_text(clicks)} click{'s' * (clicks != 1)}"


def _absence_notes(absent: int) -> tuple[str, ...]:
    if not absent:
        return ()
    rows = "One result is" if absent == 1 else f"{absent} results are"
    return (f"{rows} left out: the cost is unknown, because statistics are not stored or the model lacks a cost.",)
