"""Ours beside the published: the difference, its interval, and one word; not comparable where protocols differ."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixelpick_ray.config.trial import (
    Budget,
    DatasetSpec,
    ErringSpec,
    EvaluateSpec,
    GroundTruthSpec,
    SizeSpec,
    Trial,
)
from pixelpick_ray.data.datasets import known_facts
from pixelpick_ray.data.weights import normalisation
from pixelpick_ray.report.cells import Cell, Line, line_of, on_reported_split
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.points import lookup, size_text
from pixelpick_ray.report.published import OtherResult, PublishedCell, other_results, published_cells
from pixelpick_ray.report.rows import Results, csv_text
from pixelpick_ray.report.statistics import welch_interval
from pixelpick_ray.report.tables import budget_text, line_labels, n_text, percent_text, rule_text, value_text
from pixelpick_ray.tasks import evaluation_size

AGREES, HIGHER, LOWER = "agrees", "higher", "lower"
TOO_FEW, NOT_COMPARABLE, NOTHING = "too few seeds", "not comparable", "nothing published"

CSV_COLUMNS = (
    *("experiment", "dataset", "architecture", "backbone", "pretrained", "strategy", "setting", "budget", "split"),
    *("checkpoint", "mean", "std", "n", "published_mean", "published_std", "published_n", "difference", "low", "high"),
    *("verdict", "differs_in", "source", "address"),
)


@dataclass(frozen=True)
class Comparison:
    """A cell of ours beside its published counterpart, if there is one; fractions, NaN where there is nothing to tell.

    `differs_in` says where the protocols differ; `difference` is ours minus the published, with its interval at 95 %.
    """

    cell: Cell
    published: PublishedCell | None
    differs_in: tuple[str, ...]
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """One word, of the constants above; `higher` means that ours is."""
        if self.published is None:
            return NOTHING
        if self.differs_in:
            return NOT_COMPARABLE
        if self.cell.summary.n < 2:
            return TOO_FEW
        return LOWER if self.high < 0 else HIGHER if self.low > 0 else AGREES

    @property
    def comparable(self) -> PublishedCell | None:
        """The counterpart, if both were made by one protocol."""
        return None if self.differs_in else self.published


def compare(results: Results, cells: Sequence[Cell]) -> tuple[Comparison, ...]:
    """Every mIoU cell on the reported splits, by every rule that chooses an epoch, beside the published one."""
    # Trials of one line and budget differ in the seed alone, so any of them tells the protocol.
    trials = {(line_of(point), point.budget): trial for point, trial in results.trials.items()}
    return tuple(
        _compared(cell, published, trials[cell.line, cell.budget], results.evaluate(cell.line.experiment))
        for cell in on_reported_split(results, cells)
        for published in _counterparts(cell, trials[cell.line, cell.budget]) or (None,)
    )


def _counterparts(cell: Cell, trial: Trial) -> list[PublishedCell]:
    """The published number of the same network; of heads on frozen features, which nobody has published, those of all
    networks on the same data with as many pixels by the same strategy.
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
    if published is None or differs_in:
        return Comparison(cell, published, differs_in, math.nan, math.nan, math.nan)
    theirs = published.miou_percent / 100, published.std_percent / 100, published.n
    return Comparison(cell, published, (), *welch_interval(ours.mean, ours.std, ours.n, *theirs))


def differences(trial: Trial, evaluate: EvaluateSpec, published: PublishedCell) -> tuple[str, ...]:
    """Where a trial's protocol is not the published one, as "train.epochs 8, published 50".

    Any supervised weights of the same kind count as those published, whoever trained them: every `pretrained` but
    `none`, `moco_v2` and a file. All images of a data set are as many as published, and an annotator who never errs is
    the ground truth.
    """
    own = _protocol(trial, evaluate, published)
    pairs = [(path, own[path], theirs) for path, theirs in published.protocol.items() if theirs]
    found = []
    if trial.model.fitted_head is not None:  # its training has nothing in common with theirs
        pairs = [pair for pair in pairs if not pair[0].startswith(("model.", "train."))]
        theirs = f"{published.architecture} {published.backbone}"
        found = [f"{trial.model.architecture} head on a frozen {trial.model.backbone}, published {theirs}, all trained"]
    return (*found, *(f"{path} {ours}, published {theirs}" for path, ours, theirs in pairs if ours != theirs))


def _protocol(trial: Trial, evaluate: EvaluateSpec, published: PublishedCell) -> dict[str, str]:
    """The text of each published path for a trial."""
    tree = trial.model_dump(mode="json")
    pretrained, oracle = trial.model.pretrained, trial.oracle
    supervised = pretrained not in ("none", "moco_v2") and not pretrained.startswith("file:")
    is_true = isinstance(oracle, GroundTruthSpec) or (isinstance(oracle, ErringSpec) and oracle.rate == 0)
    return {path: _text(lookup(tree, path)[1]) for path in published.protocol} | {
        "dataset.split": trial.dataset.split or published.protocol["dataset.split"],
        "dataset.images": _images(trial.dataset, published),
        "dataset.size": _size(trial.dataset, published),
        "evaluate.split": evaluate.split_of(evaluate.report),
        "evaluate.size": _size(evaluation_size(evaluate, trial, evaluate.report), published),
        "model.pretrained": "supervised ImageNet" if supervised else pretrained,
        "model.normalise": _normalise(trial),
        "oracle.name": "ground_truth" if is_true else oracle.name,
    }


def _normalise(trial: Trial) -> str:
    """By what images are normalised: `dataset`, also where the weights' own are the same."""
    found = normalisation(trial.model, known_facts(trial.dataset.name))
    return "dataset" if found is None else _text(found.model_dump(mode="json"))


def _images(dataset: DatasetSpec, published: PublishedCell) -> str:
    """How many training images; where a share is held out, all but those."""
    if dataset.images is not None:
        return str(dataset.images)
    every = published.protocol["dataset.images"]
    return every if dataset.held_out is None else f"{every} without a share of {dataset.held_out:g}"


def _size(size: SizeSpec, published: PublishedCell) -> str:
    if published.native_size is None:
        return size_text(size)
    return size_text(SizeSpec(size=size.prepared_size(*published.native_size)))


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return " x ".join(map(_text, value))
    if isinstance(value, dict):
        return " ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    return value if isinstance(value, str) else f"{value:g}"


def scoreboard_csv(comparisons: Sequence[Comparison]) -> str:
    """Every comparison as CSV; fractions, and `differs_in` joined by semicolons."""
    lines = []
    for one in comparisons:
        values = vars(one.cell.line) | vars(one.cell) | vars(one.cell.summary) | _published_values(one.published)
        values |= vars(one) | {"verdict": one.verdict, "differs_in": "; ".join(one.differs_in)}
        lines.append([values[name] for name in CSV_COLUMNS])
    return csv_text(CSV_COLUMNS, lines)


def _published_values(published: PublishedCell | None) -> dict[str, Any]:
    if published is None:
        return dict.fromkeys(("published_mean", "published_std", "published_n", "source", "address"))
    return {
        "published_mean": published.miou_percent / 100,
        "published_std": published.std_percent / 100,
        "published_n": published.n,
        "source": published.source,
        "address": published.address,
    }


def scoreboard_table(results: Results, comparisons: Sequence[Comparison]) -> Table | None:
    """Ours beside the published, in percent, where there is such a number; None when there is none at all."""
    shown = [one for one in comparisons if one.published]
    if not shown:
        return None
    labels = line_labels([one.cell.line for one in comparisons])
    measured = ("ours (%)", "n", "published (%)", "published n", "difference", "95 % interval", "verdict")
    header: tuple[str, ...] = ("line", "pixels per image", "epoch", *measured)
    align = "lrlrrrrrrl"
    rows = tuple((labels[one.cell.line], *_texts(one)) for one in shown)
    networks = [(f"{one.published.architecture} {one.published.backbone}",) for one in shown if one.published]
    ours_networks = [(f"{one.cell.line.architecture} {one.cell.line.backbone}",) for one in shown]
    if networks != ours_networks:  # several of others for one of ours
        header, align = (*header, "published network"), f"{align}l"
        rows = tuple(row + network for row, network in zip(rows, networks, strict=True))
    lines = [(one.cell.line, one.cell.split) for one in shown]
    ours = dict.fromkeys(f"{x.architecture} {x.backbone} on {x.dataset} {split}" for x, split in lines)
    theirs = dict.fromkeys(f"{one.published.title} ({one.published.source})" for one in shown if one.published)
    caption = (
        f"mIoU in percent of {' and '.join(ours)} beside {' and '.join(theirs)}; the difference in points is ours "
        "minus the published, its interval Welch's, from both means, standard deviations and numbers of runs."
    )
    return Table(caption, header, rows, align, _notes(comparisons, labels))


def _texts(one: Comparison) -> tuple[str, ...]:
    cell, published = one.cell, one.published
    theirs = ("-", "-")
    if published is not None:
        theirs = f"{published.miou_percent:.1f} ± {published.std_percent:.1f}", str(published.n)
    difference = "-" if math.isnan(one.difference) else f"{100 * one.difference:+.1f}"
    interval = "-" if math.isnan(one.low) else f"{100 * one.low:+.1f} to {100 * one.high:+.1f}"
    ours = budget_text(cell.budget), rule_text(cell.checkpoint, cell.split), value_text(cell), n_text(cell)
    return (*ours, *theirs, difference, interval, one.verdict)


def _notes(comparisons: Sequence[Comparison], labels: Mapping[Line, str]) -> tuple[str, ...]:
    """What the published rule is, what chance does, and for which lines protocols differ in what."""
    remarks = dict.fromkeys(one.published.checkpoint for one in comparisons if one.published)
    notes = [f"The epoch of the published numbers: {remark}." for remark in remarks]
    judged = sum(one.verdict in (AGREES, HIGHER, LOWER) for one in comparisons)
    if judged:
        notes.append(f"Of {judged} intervals at 95 %, about {judged / 20:g} miss 0 by chance where nothing differs.")
    alone = sum(one.verdict == NOTHING for one in comparisons)
    if alone:
        notes.append(f"Nothing is published for the other {alone} of our {len(comparisons)} numbers.")
    lines: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for one in comparisons:
        if one.differs_in:
            lines["; ".join(one.differs_in)][labels[one.cell.line]] = None
    notes += [f"Not comparable, {' and '.join(found)}: {reason}." for reason, found in lines.items()]
    return tuple(notes)


def elsewhere_table(results: Results) -> Table | None:
    """Numbers of other papers on the data sets of the report, and why none is like for like; None without any."""
    datasets = {point.dataset for point in results.trials}
    found = [one for one in other_results() if one.dataset in datasets]
    if not found:
        return None
    rows = tuple((one.work, f"{one.dataset} {one.split}", one.backbone, one.asked, *_other_texts(one)) for one in found)
    notes = dict.fromkeys(f"{one.work}: {one.caveat} Source: {one.source}, {one.address}" for one in found)
    caption = "mIoU in percent of other papers. None is like for like; why is said below."
    return Table(caption, ("work", "split", "backbone", "asked", "mIoU (%)", "n"), rows, "llllrr", tuple(notes))


def _other_texts(one: OtherResult) -> tuple[str, str]:
    std = math.nan if one.std_percent is None else one.std_percent / 100
    return percent_text(one.miou_percent / 100, std), "-" if one.n is None else str(one.n)


def comparable_cells(comparisons: Sequence[Comparison]) -> dict[tuple[Line, Budget], PublishedCell]:
    """The published counterparts that were made by our protocol, by line and budget."""
    found = ((one.cell.line, one.cell.budget, one.comparable) for one in comparisons)
    return {(line, budget): published for line, budget, published in found if published}
