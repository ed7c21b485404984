"""Comparison with published numbers: difference, interval and verdict; not comparable if any protocol field differs."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pixelpick_ray.active.oracle import AnyOracle
from pixelpick_ray.config.trial import Budget, ErringSpec, EvaluateSpec, GroundTruthSpec, SizeSpec, Trial
from pixelpick_ray.data.datasets import known_facts
from pixelpick_ray.data.weights import normalisation
from pixelpick_ray.report.cells import Cell, Line, line_of, on_reported_split
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.points import size_text
from pixelpick_ray.report.published import OtherResult, Protocol, PublishedCell, other_results, published_cells
from pixelpick_ray.report.rows import BEST, Results, csv_text
from pixelpick_ray.report.statistics import welch_interval
from pixelpick_ray.report.tables import budget_text, line_labels, n_text, percent_text, rule_text, value_text
from pixelpick_ray.tasks import evaluation_size

AGREES, HIGHER, LOWER = "agrees", "higher", "lower"
TOO_FEW, NOT_COMPARABLE, NOTHING = "too few seeds", "not comparable", "nothing published"
OTHER_STATISTIC = "another statistic"  # from a different epoch than the published number

CSV_COLUMNS = (
    *("experiment", "dataset", "architecture", "backbone", "pretrained", "strategy", "setting", "budget", "split"),
    *("checkpoint", "mean", "std", "n", "published_mean", "published_std", "published_population_std", "published_n"),
    *("difference", "low", "high", "verdict", "differs_in", "published_rule", "rule_source", "source", "address"),
)


@dataclass(frozen=True)
class Comparison:
    """A cell of ours and its published counterpart, if any; fractions, NaN if undefined.

    `differs_in` lists protocol differences; `difference` is ours minus published, `low` to `high` its 95 % interval.
    """

    cell: Cell
    published: PublishedCell | None
    differs_in: tuple[str, ...]
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """One of the constants above; `higher` means that ours is."""
        if self.published is None:
            return NOTHING
        if self.differs_in:
            return NOT_COMPARABLE
        if self.cell.checkpoint != BEST:
            return OTHER_STATISTIC
        if self.cell.summary.n < 2:
            return TOO_FEW
        return LOWER if self.high < 0 else HIGHER if self.low > 0 else AGREES

    @property
    def comparable(self) -> PublishedCell | None:
        """The counterpart, if both have the same protocol."""
        return None if self.differs_in else self.published


def compare(results: Results, cells: Sequence[Cell]) -> tuple[Comparison, ...]:
    """Compare every mIoU cell on the reported splits, for every checkpoint rule, with its published counterpart."""
    # Trials of one line and budget differ only in the seed, so any of them gives the protocol.
    trials = {(line_of(point), point.budget): trial for point, trial in results.trials.items()}
    return tuple(
        _compared(cell, published, trials[cell.line, cell.budget], results.evaluate(cell.line.experiment))
        for cell in on_reported_split(results, cells)
        for published in _counterparts(cell, trials[cell.line, cell.budget]) or (None,)
    )


def _counterparts(cell: Cell, trial: Trial) -> list[PublishedCell]:
    """The published number of the same network.

    Nobody has published heads on frozen features: for these, those of all networks with the same data, strategy and
    budget.
    """
    line = cell.line
    wanted = line.dataset, line.strategy, cell.budget
    if trial.model.fitted_head is not None:
        return [one for one in published_cells().values() if (one.dataset, one.strategy, one.budget) == wanted]
    key = line.dataset, line.architecture, line.backbone, line.strategy, cell.budget
    return [one for one in (published_cells().get(key),) if one]


def _compared(cell: Cell, published: PublishedCell | None, trial: Trial, evaluate: EvaluateSpec) -> Comparison:
    ours = cell.summary
    differs_in = differences(trial, evaluate, published) if published else ()
    if published is None or differs_in or cell.checkpoint != BEST:
        return Comparison(cell, published, differs_in, math.nan, math.nan, math.nan)
    theirs = published.miou_percent / 100, published.sample_std_percent / 100, published.n
    return Comparison(cell, published, (), *welch_interval(ours.mean, ours.std, ours.n, *theirs))


# Fields in which comparable trials may differ, and why. The epoch rule, and the reported split with its size, are
# compared separately.
NO_DIFFERENCE = {
    "seed": "numbers are over seeds",
    "budget": "numbers stand beside those of their own budget",
    "dataset.path": "where images lie; the published data sets have no other place",
    "evaluate.when": "measuring changes no training; of which epoch a number is stands beside it",
    "evaluate.report": "a name; its split and size are compared",
    "evaluate.splits": "measuring other splits changes no training; the reported one is compared",
}


def differences(trial: Trial, evaluate: EvaluateSpec, published: PublishedCell) -> tuple[str, ...]:
    """List where a trial's protocol differs from the published one, such as "train.epochs 8, published 50".

    Compares all fields except those in `NO_DIFFERENCE`. Equivalent values are equal: sizes that prepare images alike,
    all images by their number, the data set's own mean and deviation, and an annotator who never errs. Fields that do
    not apply to full supervision are ignored for it.
    """
    protocol = published.protocol
    ours = _fields(trial, evaluate, protocol)
    theirs = _fields(protocol.trial(published.budget), protocol.evaluate, protocol)
    if trial.model.fitted_head is None:
        return tuple(_differing("", ours, theirs))
    # A head on frozen features shares nothing with their training.
    for field in ("model", "train"):
        del ours[field], theirs[field]
    network = f"{published.architecture} {published.backbone}"
    head = f"{trial.model.architecture} head on a frozen {trial.model.backbone}, published {network}, all trained"
    return (head, *_differing("", ours, theirs))


def _differing(path: str, ours: Any, theirs: Any) -> Iterator[str]:
    """Innermost fields in which two trees differ; for different kinds of a part, just the names."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.get("name") != theirs.get("name"):
            ours, theirs = {"name": ours.get("name")}, {"name": theirs.get("name")}
        for name in dict.fromkeys((*theirs, *ours)):
            yield from _differing(f"{path}.{name}".lstrip("."), ours.get(name), theirs.get(name))
    elif ours != theirs:
        yield f"{path} {_text(ours)}, published {_text(theirs)}"


def _fields(trial: Trial, evaluate: EvaluateSpec, protocol: Protocol) -> dict[str, Any]:
    """Fields of a trial and its evaluation to compare, in normal form."""
    without = {path.removeprefix("evaluate.") for path in NO_DIFFERENCE if path.startswith("evaluate.")}
    tree: dict[str, Any] = trial.model_dump(mode="json", exclude={"seed", "budget", "train", "oracle"})
    tree["train"] = None if trial.training is None else trial.training.model_dump(mode="json")
    tree["oracle"] = _oracle(trial.oracle)
    if trial.is_fully_supervised:
        del tree["acquire"], tree["oracle"]
    dataset, theirs = trial.dataset, protocol.dataset
    tree["dataset"] = {name: value for name, value in tree["dataset"].items() if name not in (*_SIZES, "path")} | {
        "size": _size(dataset, protocol),
        "split": dataset.split or theirs.split,
        "images": dataset.images or theirs.images,
    }
    normalise = normalisation(trial.model, known_facts(dataset.name))
    tree["model"]["normalise"] = "dataset" if normalise is None else normalise.model_dump(mode="json")
    tree["evaluate"] = evaluate.model_dump(mode="json", exclude=without) | {
        "split": evaluate.split_of(evaluate.report),
        "size": _size(evaluation_size(evaluate, trial, evaluate.report), protocol),
    }
    return tree


_SIZES = tuple(SizeSpec.model_fields)


def _oracle(oracle: AnyOracle) -> dict[str, Any]:
    never = isinstance(oracle, ErringSpec) and oracle.rate == 0
    return (GroundTruthSpec() if never else oracle).model_dump(mode="json")


def _size(size: SizeSpec, protocol: Protocol) -> str:
    if protocol.native_size is None:
        return size_text(size.size_spec())
    return size_text(SizeSpec(size=size.prepared_size(*protocol.native_size)))


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return " x ".join(map(_text, value))
    if isinstance(value, dict):
        return " ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else f"{value:g}"


def scoreboard_csv(comparisons: Sequence[Comparison]) -> str:
    """Write comparisons as CSV: fractions, `differs_in` joined by semicolons."""
    lines = []
    for one in comparisons:
        values = vars(one.cell.line) | vars(one.cell) | vars(one.cell.summary) | _published_values(one.published)
        values |= vars(one) | {"verdict": one.verdict, "differs_in": "; ".join(one.differs_in)}
        lines.append([values[name] for name in CSV_COLUMNS])
    return csv_text(CSV_COLUMNS, lines)


def _published_values(published: PublishedCell | None) -> dict[str, Any]:
    if published is None:
        return dict.fromkeys(name for name in CSV_COLUMNS if name.startswith("published_") or name in _SOURCES)
    return {
        "published_mean": published.miou_percent / 100,
        "published_std": published.sample_std_percent / 100,
        "published_population_std": published.std_percent / 100,
        "published_n": published.n,
        "published_rule": published.rule,
    } | {name: getattr(published, name) for name in _SOURCES}


_SOURCES = ("rule_source", "source", "address")


def scoreboard_table(results: Results, comparisons: Sequence[Comparison]) -> Table | None:
    """Tabulate ours next to published numbers, in percent; None if there are none.

    One row per line and budget: our number by the published rule, the published one, and other statistics.
    """
    shown = [one for one in comparisons if one.published]
    if not shown:
        return None
    labels = line_labels([one.cell.line for one in comparisons])
    rows: defaultdict[tuple[Line, Budget, PublishedCell | None], dict[str, Comparison]] = defaultdict(dict)
    for one in shown:
        rows[one.cell.line, one.cell.budget, one.published][one.cell.checkpoint] = one
    others = [(f"{rule_text(one.cell.checkpoint, one.cell.split)} epoch (%)", one.cell.checkpoint) for one in shown]
    others = [(head, rule) for head, rule in dict.fromkeys(others) if rule != BEST]
    judged = ("published (%)", "published n", "difference", "95 % interval", "verdict", "differs in")
    header = ("line", "pixels per image", AS_PUBLISHED, "n", *judged, *(head for head, _ in others))
    align = "lr" + "rr" + "rrrrll" + "r" * len(others)
    texts = [
        (labels[line], budget_text(budget), *_texts(found), *(_value_text(found.get(rule)) for _, rule in others))
        for (line, budget, _), found in rows.items()
    ]
    theirs = [f"{one.architecture} {one.backbone}" for _, _, one in rows if one]
    if theirs != [f"{line.architecture} {line.backbone}" for line, _, _ in rows]:  # several for one of ours
        header, align = (*header, "published network"), f"{align}l"
        texts = [(*row, network) for row, network in zip(texts, theirs, strict=True)]
    return Table(_caption(shown), header, tuple(texts), align, _notes(comparisons, labels))


AS_PUBLISHED = "best epoch on the reported split, as published (%)"


def _caption(shown: Sequence[Comparison]) -> str:
    lines = [(one.cell.line, one.cell.split) for one in shown]
    ours = dict.fromkeys(f"{x.architecture} {x.backbone} on {x.dataset} {split}" for x, split in lines)
    theirs = dict.fromkeys(f"{one.published.title} ({one.published.source})" for one in shown if one.published)
    return (
        f"mIoU in percent: {' and '.join(ours)}, next to {' and '.join(theirs)}. Published numbers are compared with "
        "our best epoch on the reported split, which is optimistic for both; other epochs are other statistics and "
        "are not compared. Deviations are sample ones: the published population deviations are multiplied by "
        "sqrt(n / (n - 1)). The difference, in points, is ours minus published, with Welch's interval."
    )


def _texts(found: Mapping[str, Comparison]) -> tuple[str, ...]:
    """A row's columns from the published rule to what differs, from its comparisons by checkpoint rule."""
    one = found.get(BEST) or next(iter(found.values()))
    published, theirs = one.published, ("-", "-")
    if published is not None:
        percent = percent_text(published.miou_percent / 100, published.sample_std_percent / 100)
        theirs = percent, str(published.n)
    difference = "-" if math.isnan(one.difference) else f"{100 * one.difference:+.1f}"
    interval = "-" if math.isnan(one.low) else f"{100 * one.low:+.1f} to {100 * one.high:+.1f}"
    best = found.get(BEST)
    ours = _value_text(best), n_text(best.cell) if best else "-"
    return (*ours, *theirs, difference, interval, one.verdict, _fields_text(one.differs_in))


def _value_text(one: Comparison | None) -> str:
    return value_text(one.cell) if one else "-"


def _fields_text(differs_in: Sequence[str]) -> str:
    """The first fields that differ; a note below the table says how."""
    if not differs_in:
        return "nothing"
    named = ", ".join(reason.partition(" ")[0] for reason in differs_in[:FEW])
    return named + (f" and {len(differs_in) - FEW} more" if len(differs_in) > FEW else "")


FEW = 3


def _notes(comparisons: Sequence[Comparison], labels: Mapping[Line, str]) -> tuple[str, ...]:
    """Notes on the published rule, chance, and protocol differences by line."""
    rules = dict.fromkeys((one.published.rule, one.published.rule_source) for one in comparisons if one.published)
    notes = [f"The published numbers: {rule} (source: {source})." for rule, source in rules]
    if not any(one.cell.checkpoint == BEST for one in comparisons):
        notes.append("Our best epochs are unknown, because only the last was measured; set evaluate.when: every_epoch.")
    judged = sum(one.verdict in (AGREES, HIGHER, LOWER) for one in comparisons)
    if judged:
        notes.append(f"Of {judged} 95 % intervals, about {judged / 20:g} exclude 0 by chance if nothing differs.")
    alone = sum(one.verdict == NOTHING for one in comparisons)
    if alone:
        notes.append(f"Nothing is published that corresponds to the other {alone} of our {len(comparisons)} numbers.")
    lines: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for one in comparisons:
        if one.differs_in:
            lines["; ".join(one.differs_in)][labels[one.cell.line]] = None
    notes += [f"Not comparable, {' and '.join(found)}: {reason}." for reason, found in lines.items()]
    return tuple(notes)


def elsewhere_table(results: Results) -> Table | None:
    """Tabulate other papers' numbers on the report's data sets, and why none is comparable; None if there are none."""
    datasets = {point.dataset for point in results.trials}
    found = [one for one in other_results() if one.dataset in datasets]
    if not found:
        return None
    rows, notes = [], defaultdict[str, dict[str, None]](dict)
    for (work, split, backbone, caveat), ones in groupby(found, _what_it_is_of):
        numbers = list(ones)
        asked = "; ".join(dict.fromkeys(one.asked for one in numbers))
        counts = ", ".join(dict.fromkeys("-" if one.n is None else str(one.n) for one in numbers))
        rows.append((work, split, backbone, asked, "; ".join(map(_miou_text, numbers)), counts))
        notes[f"{caveat} Source: {numbers[0].source}, {numbers[0].address}"][work] = None
    caption = "mIoU in percent from other papers. None is a like-for-like comparison, for the reasons below."
    header = ("work", "split", "backbone", "asked", "mIoU (%)", "n")
    return Table(caption, header, tuple(rows), "llllrr", tuple(f"{', '.join(of)}: {why}" for why, of in notes.items()))


def _what_it_is_of(one: OtherResult) -> tuple[str, str, str, str]:
    return one.work, f"{one.dataset} {one.split}", one.backbone, one.caveat


def _miou_text(one: OtherResult) -> str:
    return percent_text(one.miou_percent / 100, math.nan if one.std_percent is None else one.std_percent / 100)


def comparable_cells(comparisons: Sequence[Comparison]) -> dict[tuple[Line, Budget], PublishedCell]:
    """Return the published counterparts with the same protocol as ours, by line and budget."""
    found = ((one.cell.line, one.cell.budget, one.comparable) for one in comparisons)
    return {(line, budget): published for line, budget, published in found if published}
