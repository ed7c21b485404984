"""Tables of cells, and all cells as CSV."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pixelpick_ray.config.canonical import brief, counted
from pixelpick_ray.config.trial import Budget
from pixelpick_ray.report.cells import Area, Cell, Line, areas, build_cells, full_line, line_of, reported
from pixelpick_ray.report.formats import to_text
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.points import size_text
from pixelpick_ray.report.rows import BEST, BEST_ON, LAST, Results, csv_text
from pixelpick_ray.report.statistics import summarise

FULL = "full supervision"
RANDOM = "random"

Strong = frozenset[tuple[Line, Budget]]

CSV_COLUMNS = (
    *("experiment", "dataset", "architecture", "backbone", "pretrained", "strategy", "setting", "budget", "share"),
    *("split", "checkpoint", "metric", "mean", "std", "n", "expected", "low", "high", "seeds", "fit_keys", "mixed"),
)


# Contents


def result_table(results: Results, cells: Sequence[Cell], *, strong: Strong = frozenset()) -> Table:
    """Build the default table: mIoU in percent, one row per model, strategy and budget; full supervision last.

    `strong` cells have their mIoU in bold. If full supervision has a value, a column gives the other means in percent
    of it, "-" unless exactly one full supervision has the same training.
    """
    shown = reported(results, cells)
    lines = line_columns(cell.line for cell in shown)
    columns = {name: [texts[cell.line] for cell in shown] for name, texts in lines.items()}
    columns["pixels per image"] = [budget_text(cell.budget) for cell in shown]
    columns["share (%)"] = [share_text(cell) for cell in shown]
    columns[_MIOU] = [value_text(cell) for cell in shown]
    if {"full"} < {cell.budget for cell in shown if cell.values}:
        columns["of full (%)"] = _of_full_texts(shown)
    columns["n"] = [n_text(cell) for cell in shown]
    alignment = "l" * len(lines) + "r" * (len(columns) - len(lines))
    bold = {(at, list(columns).index(_MIOU)) for at, cell in enumerate(shown) if (cell.line, cell.budget) in strong}
    caption, notes = caption_text("mIoU in percent", results, shown), result_notes(results, shown, strong)
    return Table(caption, tuple(columns), tuple(zip(*columns.values(), strict=True)), alignment, notes, frozenset(bold))


_MIOU = "mIoU (%)"


def _of_full_texts(cells: Sequence[Cell]) -> list[str]:
    """Each cell's mean in percent of its model's under full supervision, "-" if there is none."""
    means = {cell.line: cell.summary.mean for cell in cells if cell.budget == "full"}
    fulls = full_lines(cell.line for cell in cells)
    ratios = (_ratio(cell.summary.mean, means.get(fulls.get(cell.line, cell.line), math.nan)) for cell in cells)
    return [percent_text(ratio, math.nan) for ratio in ratios]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def full_lines(lines: Iterable[Line]) -> dict[Line, Line]:
    """Return the line of full supervision to compare each other line with, if there is one."""
    distinct = dict.fromkeys(lines)
    fulls = [line for line in distinct if not line.strategy]
    found = {line: full_line(line, fulls) for line in distinct if line.strategy}
    return {line: full for line, full in found.items() if full}


def protocol_table(results: Results, cells: Sequence[Cell]) -> Table | None:
    """Tabulate the reported split at every size and by every checkpoint rule; None if there is only one column."""
    shown = [cell for cell in cells if cell.metric == "miou" and _is_of_the_reported_split(results, cell)]
    heads = _protocol_heads(shown)
    names = tuple(dict.fromkeys(heads))
    if len(names) < 2:
        return None
    columns = line_columns(cell.line for cell in shown)
    values: defaultdict[tuple[Line, Budget], dict[str, str]] = defaultdict(dict)
    for cell, head in zip(shown, heads, strict=True):
        values[cell.line, cell.budget][head] = value_and_n_text(cell)
    rows = tuple(
        (*(texts[line] for texts in columns.values()), budget_text(budget), *(found.get(name, "-") for name in names))
        for (line, budget), found in values.items()
    )
    caption = f"mIoU in percent on {_places_text(shown)}, by the epoch of a stage: the last"
    if any(cell.checkpoint == BEST for cell in shown):
        caption += ", or the best on a split; the best on the reported split itself is optimistic"
    caption += f". Training at {_training_text(results, shown)}; {_spread_text(shown)}."
    header = (*columns, "pixels per image", *names)
    return Table(caption, header, rows, "l" * len(columns) + "r" * (1 + len(names)), count_notes(shown))


def _is_of_the_reported_split(results: Results, cell: Cell) -> bool:
    evaluate = results.evaluate(cell.line.experiment)
    return evaluate.split_of(cell.split) == evaluate.split_of(evaluate.report)


def _protocol_heads(cells: Sequence[Cell]) -> list[str]:
    """Column head of each cell, with split and size only if these differ."""
    rules = [rule_text(cell.checkpoint, cell.split) for cell in cells]
    if len({(cell.split, cell.size) for cell in cells}) == 1:
        return rules
    return [f"{cell.split} ({cell.size}), {rule}" for cell, rule in zip(cells, rules, strict=True)]


def rule_text(checkpoint: str, split: str) -> str:
    """Describe a checkpoint rule: "last", "best on val"."""
    if checkpoint == LAST:
        return LAST
    return f"{BEST} on {split if checkpoint == BEST else checkpoint.removeprefix(BEST_ON)}"


def class_tables(results: Results, cells: Sequence[Cell]) -> tuple[Table, ...]:
    """Tabulate the IoU of each class in percent at each strategy's largest budget, with the change from random.

    There is one table for each model and setting that has a value there.
    """
    by_setting: defaultdict[tuple[tuple[str, ...], str], dict[tuple[Line, Budget], dict[str, Cell]]] = defaultdict(dict)
    for cell in (*reported(results, cells, "iou"), *reported(results, cells)):
        own = by_setting[cell.line.model, cell.line.setting]
        own.setdefault((cell.line, cell.budget), {})[cell.class_name] = cell
    return tuple(table for found in by_setting.values() if (table := _class_table(results, found)))


def _class_table(results: Results, found: Mapping[tuple[Line, Budget], dict[str, Cell]]) -> Table | None:
    """Classes down, lines across; the class "" is the mean over classes. None without a value at any largest budget."""
    # Budgets of a line ascend, so the last one stays.
    largest = {line: (line, budget) for line, budget in found}.values()
    shown = [found[place][""] for place in largest]
    if not any(cell.values for cell in shown):
        return None
    columns = [("class", [name or "mean" for name in found[shown[0].line, shown[0].budget]])]
    for line, budget in largest:
        own, chance = found[line, budget], found.get((replace(line, strategy=RANDOM), budget))
        head = f"{strategy_text(line)}, {budget_text(budget)}"
        columns.append((head, [value_and_n_text(cell) for cell in own.values()]))
        if chance and line.strategy != RANDOM:
            columns.append((_CHANGE, [points_text(_change(cell, chance[name])) for name, cell in own.items()]))
    header, texts = zip(*columns, strict=True)
    notes = count_notes(cell for place in largest for cell in found[place].values())
    if _CHANGE in header:
        notes += (f"{_CHANGE}: mean difference from random in points, over the seeds that both have.",)
    caption = caption_text(_class_subject(shown[0].line), results, shown)
    return Table(caption, header, tuple(zip(*texts, strict=True)), "l" + "r" * (len(header) - 1), notes)


_CHANGE = f"vs {RANDOM}"


def _class_subject(line: Line) -> str:
    parts = (line.experiment, f"{line.architecture} {line.backbone}", f"pretrained {line.pretrained}", line.setting)
    return f"{', '.join(part for part in parts if part)}: IoU of each class in percent, at the largest budget,"


def _change(cell: Cell, other: Cell) -> float:
    """Mean difference over the seeds that both have; NaN if there are none."""
    values = dict(zip(other.seeds, other.values, strict=True))
    pairs = zip(cell.seeds, cell.values, strict=True)
    return summarise([value - values[seed] for seed, value in pairs if seed in values]).mean


def area_table(results: Results, cells: Sequence[Cell]) -> Table | None:
    """Tabulate the normalised area under each budget curve in percent; None if no line has two budgets."""
    shown = [cell for cell in reported(results, cells) if cell.budget != "full"]
    found = areas(shown)
    if not found:
        return None
    columns = line_columns(area.line for area in found)
    rows = tuple((*(columns[name][area.line] for name in columns), *_area_texts(area)) for area in found)
    what = caption_text(
        "Normalised area under the curve of mIoU (percent) over labelled pixels per image", results, shown
    )
    caption = (
        f"{what} The area is the mean height between the smallest and the largest budget, over the seeds that have "
        "every budget."
    )
    return Table(caption, (*columns, "budgets", "area (%)", "n"), rows, "l" * len(columns) + "rrr")


def missing_table(results: Results, cells: Sequence[Cell]) -> Table | None:
    """Tabulate trials without a stored measurement, with seeds joined; None if nothing is missing."""
    seeds: defaultdict[tuple[Line, Budget, str, str], list[str]] = defaultdict(list)
    for one in results.missing:
        reason = brief(" ".join(one.reason.split()), 90)
        seeds[line_of(one.point), one.point.budget, one.split, reason].append(str(one.point.seed))
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


def damage_table(damage: Mapping[str, str]) -> Table | None:
    """Tabulate damage found while reading results, as problems by path; None if there is none."""
    caption = "Damaged in the store, and therefore not in this report; run the experiment again to make it anew."
    return Table(caption, ("what", "how"), tuple(sorted(damage.items())), "ll") if damage else None


def diverged_table(results: Results) -> Table | None:
    """Tabulate trials whose training diverged, and how; None if there are none."""
    found = results.diverged
    columns = line_columns(map(line_of, results.trials))
    rows = tuple(
        (*(columns[name][line_of(point)] for name in columns), budget_text(point.budget), str(point.seed), why)
        for point, why in found.items()
    )
    header = (*columns, "pixels per image", "seed", "how")
    caption = "Trainings that diverged, or come after one that did: they count as 0 and are not retried."
    return Table(caption, header, rows, "l" * len(columns) + "rrl") if rows else None


def line_columns(lines: Iterable[Line]) -> dict[str, dict[Line, str]]:
    """Return each line's texts by column, without columns that are constant, except those a reader always needs."""
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
    """Return a short label for each line: its strategy, preceded by whatever else differs among the lines."""
    distinct = list(dict.fromkeys(lines))
    texts = [_line_texts(line) | {"pretrained": f"pretrained {line.pretrained}"} for line in distinct]
    names = ("dataset", "model", "pretrained", "setting")
    varying = [name for name in names if len({text[name] for text in texts}) > 1]
    if len({tuple(text[name] for name in (*varying, "strategy")) for text in texts}) < len(distinct):
        varying.insert(0, "experiment")
    labels = (", ".join(text[name] for name in (*varying, "strategy") if text[name]) for text in texts)
    return dict(zip(distinct, labels, strict=True))


# Captions and notes


def caption_text(what: str, results: Results, cells: Sequence[Cell]) -> str:
    """Caption for cells of the default table: split, sizes, epoch and seeds."""
    return (
        f"{what} on {_places_text(cells)}. Training at {_training_text(results, cells)}; weights after the last epoch "
        f"of a stage; {_spread_text(cells)}."
    )


def _places_text(cells: Iterable[Cell]) -> str:
    places = ((cell.line.experiment, f"{cell.line.dataset} {cell.split} ({cell.size})") for cell in cells)
    return _by_experiment(places, " and ")


def _training_text(results: Results, cells: Iterable[Cell]) -> str:
    lines = {cell.line for cell in cells}
    # Trials of a line differ only in seed and budget.
    datasets = {line_of(point): trial.dataset for point, trial in results.trials.items()}
    texts = ((line.experiment, size_text(spec, " pixels")) for line, spec in datasets.items() if line in lines)
    return _by_experiment(texts, " or ")


def _by_experiment(texts: Iterable[tuple[str, str]], joint: str) -> str:
    """Texts of each experiment, joined; experiments are named only if their texts differ."""
    found: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for experiment, text in texts:
        found[experiment][text] = None
    names: defaultdict[str, list[str]] = defaultdict(list)
    for experiment, own in found.items():
        names[joint.join(own)].append(experiment)
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{text} for {' and '.join(of)}" for text, of in names.items())


def _spread_text(cells: Iterable[Cell]) -> str:
    counts = sorted({cell.expected for cell in cells})
    if counts == [1]:
        return "values of one seed"
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return f"mean ± sample standard deviation (n-1) over {seeds} seeds"


def result_notes(results: Results, cells: Sequence[Cell], strong: Strong) -> tuple[str, ...]:
    """Return notes on what is missing, what is mixed within a cell, and what bold means."""
    missing = len({one.point for one in results.missing})
    trials = counted(len(results.trials), "trial")
    lacking: tuple[str, ...] = (f"Missing: {missing} of {trials}.",) if missing else ()
    if ended := len(results.diverged):
        lacking += (f"Diverged: {ended} of {trials}, counted as 0.",)
    bold = (_BOLD,) if any((cell.line, cell.budget) in strong for cell in cells) else ()
    return lacking + _mixed_notes(cells) + bold


_BOLD = (
    "Bold: the best mean of a setting at a budget, and all means that a paired t test over seeds cannot distinguish "
    "from it."
)


def _mixed_notes(cells: Iterable[Cell]) -> tuple[str, ...]:
    return tuple(
        f"Mixed within a cell: {strategy_text(cell.line)} at {budget_text(cell.budget)} of {cell.line.experiment} "
        f"({', '.join(cell.mixed)})."
        for cell in cells
        if cell.mixed
    )


def count_notes(cells: Iterable[Cell]) -> tuple[str, ...]:
    """Return a note on how to read the counts of `value_and_n_text`, if there are any."""
    if all(cell.summary.n in (0, cell.expected) for cell in cells):
        return ()
    return ("A count such as (2/3): the value is over 2 of the 3 seeds requested.",)


# Texts of one cell


def value_text(cell: Cell) -> str:
    """Format a cell's value: "50.8 ± 0.2", "50.8" for one seed, "missing 0/5" for none, "-" for an absent class."""
    if not cell.values:
        return f"missing 0/{cell.expected}"
    return percent_text(cell.summary.mean, cell.summary.std)


def value_and_n_text(cell: Cell) -> str:
    """Format a value, with the count if seeds are missing, for tables without a column for it."""
    n = cell.summary.n
    return value_text(cell) + (f" ({n}/{cell.expected})" if 0 < n < cell.expected else "")


def percent_text(mean: float, std: float) -> str:
    """Format a fraction in percent with its deviation, "50.8 ± 0.2"; "50.8" without one, "-" for NaN."""
    if math.isnan(mean):
        return "-"
    return f"{100 * mean:.1f}" if math.isnan(std) else f"{100 * mean:.1f} ± {100 * std:.1f}"


def points_text(difference: float) -> str:
    """Format a difference of fractions in percentage points, such as "+2.3"; "-" for NaN."""
    return "-" if math.isnan(difference) else f"{100 * difference:+z.1f}"


def n_text(cell: Cell) -> str:
    """Format the number of seeds, as "3/5" if some are missing."""
    return count_text(len(cell.values), cell.expected)


def count_text(n: int, expected: int) -> str:
    """Format a count, as "3/5" if fewer than expected."""
    return str(n) if n == expected else f"{n}/{expected}"


def share_text(cell: Cell) -> str:
    """Format the share of labelled pixels in percent: three decimals below 1, or more to show two digits ("0.012")."""
    if cell.share is None:
        return "-"
    percent = 100 * cell.share
    magnitude = math.floor(math.log10(percent))
    return f"{percent:.{max(0, 2 - magnitude) if percent >= 1 else max(3, 1 - magnitude)}f}"


def budget_text(budget: Budget) -> str:
    """Format a budget of labelled pixels per image."""
    return "all" if budget == "full" else str(budget)


def strategy_text(line: Line) -> str:
    """Return the strategy, or "full supervision"."""
    return line.strategy or FULL


def _area_texts(area: Area) -> tuple[str, str, str]:
    summary = area.summary
    value = percent_text(summary.mean, summary.std) if summary.n else f"missing 0/{area.expected}"
    return f"{area.budgets[0]} to {area.budgets[-1]}", value, count_text(summary.n, area.expected)


def cells_csv(cells: Iterable[Cell]) -> str:
    """Write all cells except those of single classes as CSV: fractions, 95 % intervals, lists joined by spaces."""
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
    """Return the default table as aligned plain text, for the end of a run."""
    return to_text(result_table(results, build_cells(results)))
