"""Cells as tables, and every cell as CSV."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from pixelpick_ray.report.cells import Area, Cell, Line, areas, build_cells, line_of, reported
from pixelpick_ray.report.formats import to_text
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.points import Budget
from pixelpick_ray.report.rows import BEST, BEST_ON, LAST, Results, csv_text
from pixelpick_ray.spec.canonical import brief

FULL = "full supervision"

CSV_COLUMNS = (
    *("experiment", "dataset", "architecture", "backbone", "pretrained", "strategy", "setting", "budget", "share"),
    *("split", "checkpoint", "metric", "mean", "std", "n", "expected", "low", "high", "seeds", "fit_keys", "mixed"),
)


# Contents


def result_table(results: Results, cells: Sequence[Cell]) -> Table:
    """The default table: mIoU in percent, one row a model, strategy and budget; full supervision last."""
    shown = reported(results, cells)
    columns = line_columns(cell.line for cell in shown)
    rows = tuple((*(columns[name][cell.line] for name in columns), *_cell_texts(cell)) for cell in shown)
    header = (*columns, "pixels per image", "share (%)", "mIoU (%)", "n")
    missing = len({one.point for one in results.missing})
    counted = (f"Missing: {missing} of {len(results.trials)} trials.",) if missing else ()
    return Table(_caption(results, shown), header, rows, "l" * len(columns) + "rrrr", counted + _mixed_notes(shown))


def protocol_table(results: Results, cells: Sequence[Cell]) -> Table | None:
    """The reported split at every size, by every rule that chooses an epoch; None when there is one column only."""
    shown = [cell for cell in cells if cell.metric == "miou" and _is_of_the_reported_split(results, cell)]
    heads = _protocol_heads(shown)
    names = tuple(dict.fromkeys(heads))
    if len(names) < 2:
        return None
    columns = line_columns(cell.line for cell in shown)
    values: defaultdict[tuple[Line, Budget], dict[str, str]] = defaultdict(dict)
    for cell, head in zip(shown, heads, strict=True):
        values[cell.line, cell.budget][head] = _value_and_n_text(cell)
    rows = tuple(
        (*(texts[line] for texts in columns.values()), budget_text(budget), *(found.get(name, "-") for name in names))
        for (line, budget), found in values.items()
    )
    caption = f"mIoU in percent on {' and '.join(dict.fromkeys(map(_place, shown)))}, by the epoch of a stage: the last"
    if any(cell.checkpoint == BEST for cell in shown):
        caption += ", or the best on a split; the best on the split that is reported flatters, being judged by itself"
    header = (*columns, "pixels per image", *names)
    return Table(f"{caption}.", header, rows, "l" * len(columns) + "r" * (1 + len(names)))


def _is_of_the_reported_split(results: Results, cell: Cell) -> bool:
    evaluate = results.evaluate(cell.line.experiment)
    return evaluate.split_of(cell.split) == evaluate.split_of(evaluate.report)


def _protocol_heads(cells: Sequence[Cell]) -> list[str]:
    """The column of each cell; it says where and at which size only where these differ."""
    rules = [rule_text(cell.checkpoint, cell.split) for cell in cells]
    if len({(cell.split, cell.size) for cell in cells}) == 1:
        return rules
    return [f"{cell.split} ({cell.size}), {rule}" for cell, rule in zip(cells, rules, strict=True)]


def rule_text(checkpoint: str, split: str) -> str:
    """The rule that chooses an epoch, for people: "last", "best on val"."""
    if checkpoint == LAST:
        return LAST
    return f"{BEST} on {split if checkpoint == BEST else checkpoint.removeprefix(BEST_ON)}"


def class_tables(results: Results, cells: Sequence[Cell]) -> tuple[Table, ...]:
    """IoU of each class in percent at each strategy's largest budget; a table for each model and setting."""
    by_model: defaultdict[tuple[tuple[str, ...], str], dict[Line, list[Cell]]] = defaultdict(dict)
    for cell in (*reported(results, cells, "iou"), *reported(results, cells)):
        by_model[cell.line.model, cell.line.setting].setdefault(cell.line, []).append(cell)
    # Cells of a line ascend in their budget, so the last one of a class is that of the largest.
    largest = [[{cell.class_name: cell for cell in line} for line in lines.values()] for lines in by_model.values()]
    return tuple(_class_table(last) for last in largest if any(cells[""].values for cells in last))


def _class_table(last: list[dict[str, Cell]]) -> Table:
    """Classes down, lines across; the class name "" stands for their mean."""
    names = [name for name in last[0] if name] + [""]
    heads = [f"{strategy_text(cells[''].line)}, {budget_text(cells[''].budget)}" for cells in last]
    rows = tuple((name or "mean", *(_value_and_n_text(cells[name]) for cells in last)) for name in names)
    line, split, size = last[0][""].line, last[0][""].split, last[0][""].size
    parts = [line.experiment, f"{line.architecture} {line.backbone}", f"pretrained {line.pretrained}", line.setting]
    what = f"IoU of each class in percent on {line.dataset} {split} ({size}) at the largest budget"
    caption = f"{what}: {', '.join(part for part in parts if part)}."
    return Table(caption, ("class", *heads), rows, "l" + "r" * len(heads))


def area_table(results: Results, cells: Sequence[Cell]) -> Table | None:
    """Normalised area under each budget curve in percent; None when no line has two budgets."""
    found = areas(reported(results, cells))
    if not found:
        return None
    columns = line_columns(area.line for area in found)
    rows = tuple((*(columns[name][area.line] for name in columns), *_area_texts(area)) for area in found)
    caption = (
        "Normalised area under the curve of mIoU (percent) over labelled pixels per image: the mean height between the "
        "smallest and the largest budget, over the seeds that have every budget."
    )
    return Table(caption, (*columns, "budgets", "area (%)", "n"), rows, "l" * len(columns) + "rrr")


def missing_table(results: Results, cells: Sequence[Cell]) -> Table | None:
    """Trials without a stored measurement, seeds side by side; None when everything is there."""
    seeds: defaultdict[tuple[Line, Budget, str, str], list[str]] = defaultdict(list)
    for one in results.missing:
        seeds[line_of(one.point), one.point.budget, one.split, one.reason].append(str(one.point.seed))
    if not seeds:
        return None
    columns = line_columns(line for line, _, _, _ in seeds)
    place = {place: index for index, place in enumerate(dict.fromkeys((cell.line, cell.budget) for cell in cells))}
    rows = tuple(
        (*(columns[name][line] for name in columns), budget_text(budget), split, ", ".join(found), reason)
        for (line, budget, split, reason), found in sorted(seeds.items(), key=lambda item: place[item[0][:2]])
    )
    header = (*columns, "pixels per image", "split", "seeds", "why")
    return Table("Missing results; run the experiment again to add them.", header, rows, "l" * len(columns) + "rlll")


def line_columns(lines: Iterable[Line]) -> dict[str, dict[Line, str]]:
    """Column name to text of each line; what is the same everywhere is left out unless a reader needs it."""
    texts = {line: _line_texts(line) for line in lines}
    columns = {name: {line: texts[line][name] for line in texts} for name in _LINE_COLUMNS}
    always = ("model", "pretrained", "strategy")
    return {name: column for name, column in columns.items() if name in always or len(set(column.values())) > 1}


_LINE_COLUMNS = ("experiment", "dataset", "model", "pretrained", "setting", "strategy")


def _line_texts(line: Line) -> dict[str, str]:
    return {
        "experiment": line.experiment,
        "dataset": line.dataset,
        "model": f"{line.architecture} {line.backbone}",
        "pretrained": line.pretrained,
        "setting": brief(line.setting, 90),
        "strategy": strategy_text(line),
    }


def line_labels(lines: Sequence[Line]) -> dict[Line, str]:
    """A short name for each line: its strategy, and before it whatever else differs among the lines."""
    distinct = list(dict.fromkeys(lines))
    texts = [_line_texts(line) | {"pretrained": f"pretrained {line.pretrained}"} for line in distinct]
    names = ("dataset", "model", "pretrained", "setting")
    varying = [name for name in names if len({text[name] for text in texts}) > 1]
    if len({tuple(text[name] for name in (*varying, "strategy")) for text in texts}) < len(distinct):
        varying.insert(0, "experiment")
    labels = (", ".join(text[name] for name in (*varying, "strategy") if text[name]) for text in texts)
    return dict(zip(distinct, labels, strict=True))


def _caption(results: Results, cells: Sequence[Cell]) -> str:
    places: dict[str, str] = {}
    for experiment in results.experiments:
        own = [cell for cell in cells if cell.line.experiment == experiment.name]
        found = dict.fromkeys(_place(cell) for cell in own)
        places[experiment.name] = " and ".join(found)
    where = next(iter(places.values()), "")
    if len(set(places.values())) > 1:
        where = "; ".join(f"{place} for {name}" for name, place in places.items())
    seeds = sorted({cell.expected for cell in cells})
    counts = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else f"{seeds[0]} seed{'s' * (seeds[0] > 1)}"
    return (
        f"mIoU in percent on {where}, weights after the last epoch of a stage; "
        f"mean ± sample standard deviation (n-1) over {counts}."
    )


def _place(cell: Cell) -> str:
    return f"{cell.line.dataset} {cell.split} ({cell.size})"


def _mixed_notes(cells: Iterable[Cell]) -> tuple[str, ...]:
    return tuple(
        f"Mixed within a cell: {strategy_text(cell.line)} at {budget_text(cell.budget)} of {cell.line.experiment} "
        f"({', '.join(cell.mixed)})."
        for cell in cells
        if cell.mixed
    )


# Texts of one cell


def _cell_texts(cell: Cell) -> tuple[str, str, str, str]:
    return budget_text(cell.budget), share_text(cell), value_text(cell), n_text(cell)


def value_text(cell: Cell) -> str:
    """For example "50.8 ± 0.2", "50.8" of one seed, "missing 0/5" of none; "-" for a class that does not occur."""
    if not cell.values:
        return f"missing 0/{cell.expected}"
    return percent_text(cell.summary.mean, cell.summary.std)


def _value_and_n_text(cell: Cell) -> str:
    """A value that says itself when it is of fewer seeds than asked for, for tables without a column for it."""
    n = cell.summary.n
    return value_text(cell) + (f" ({n}/{cell.expected})" if 0 < n < cell.expected else "")


def percent_text(mean: float, std: float) -> str:
    """A fraction in percent with its deviation, as "50.8 ± 0.2"; "50.8" without one, "-" for NaN."""
    if math.isnan(mean):
        return "-"
    return f"{100 * mean:.1f}" if math.isnan(std) else f"{100 * mean:.1f} ± {100 * std:.1f}"


def n_text(cell: Cell) -> str:
    """Number of seeds, as "3/5" when some are missing."""
    return count_text(len(cell.values), cell.expected)


def count_text(n: int, expected: int) -> str:
    """How many there are, as "3/5" when fewer than asked for."""
    return str(n) if n == expected else f"{n}/{expected}"


def share_text(cell: Cell) -> str:
    """Share of labelled pixels in percent, as "0.012": three decimals below 1, or as many as show two digits."""
    if cell.share is None:
        return "-"
    percent = 100 * cell.share
    magnitude = math.floor(math.log10(percent))
    return f"{percent:.{max(0, 2 - magnitude) if percent >= 1 else max(3, 1 - magnitude)}f}"


def budget_text(budget: Budget) -> str:
    """Labelled pixels per image."""
    return "all" if budget == "full" else str(budget)


def strategy_text(line: Line) -> str:
    """The strategy, or that there is none."""
    return line.strategy or FULL


def _area_texts(area: Area) -> tuple[str, str, str]:
    summary = area.summary
    value = percent_text(summary.mean, summary.std) if summary.n else f"missing 0/{area.expected}"
    return f"{area.budgets[0]} to {area.budgets[-1]}", value, count_text(summary.n, area.expected)


def cells_csv(cells: Iterable[Cell]) -> str:
    """Every cell but those of single classes as CSV; fractions, interval at 95 %, lists joined by spaces."""
    lines = []
    for cell in cells:
        if cell.metric == "iou":
            continue
        values = vars(cell.line) | vars(cell) | vars(cell.summary) | {"n": len(cell.values)}
        values |= {name: " ".join(map(str, values[name])) for name in ("seeds", "fit_keys")}
        values["mixed"] = "; ".join(cell.mixed)
        lines.append([values[name] for name in CSV_COLUMNS])
    return csv_text(CSV_COLUMNS, lines)


def terminal_table(results: Results) -> str:
    """The default table as plain text with aligned columns, for the end of a run."""
    return to_text(result_table(results, build_cells(results)))
