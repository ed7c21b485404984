"""Tables and CSV of the samples of a search, from its journal."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pixelpick_ray.config.canonical import brief
from pixelpick_ray.config.search import value_text
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.errors import SpecError
from pixelpick_ray.planning import make_plan
from pixelpick_ray.report.costs import number_text
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.rows import csv_text
from pixelpick_ray.report.statistics import Summary, mean, summarise
from pixelpick_ray.report.tables import percent_text, points_text
from pixelpick_ray.search.design import Search
from pixelpick_ray.search.journal import Journal, Sample

State = Literal["finished", "stopped", "diverged", "failed", "open"]

MOST_ROWS = 10  # in the table of the best
LONGEST = 90  # characters of a reason in a table


@dataclass(frozen=True)
class Findings:
    """A search and its journal."""

    search: Search
    journal: Journal

    @property
    def samples(self) -> Sequence[Sample]:
        """All samples in order of issue."""
        return self.journal.samples

    @property
    def paths(self) -> tuple[str, ...]:
        """Dotted paths of the searched settings."""
        return tuple(self.search.spec.space)

    def state(self, sample: Sample) -> State:
        """Return the state of a sample; "open" is neither over nor failed."""
        if self.journal.is_finished(sample):
            return "finished"
        if sample.stopped:
            return "stopped"
        if sample.diverged:
            return "diverged"
        return "failed" if sample.error else "open"

    def of(self, state: State) -> list[Sample]:
        """Return the samples in a state."""
        return [sample for sample in self.samples if self.state(sample) == state]

    @cached_property
    def ranked(self) -> list[Sample]:
        """The finished samples, best first; ties in order of issue."""
        return sorted(self.of("finished"), key=lambda sample: (-sample.reports[-1].score, sample.index))

    @cached_property
    def own(self) -> Sample | None:
        """The file's own configuration, if it was a sample."""
        wanted = self.search.own_values
        return next((sample for sample in self.samples if sample.values == wanted), None)

    @property
    def own_score(self) -> float:
        """The final score of the file's own configuration; NaN if it did not finish."""
        return self.own.reports[-1].score if self.own is not None and self.state(self.own) == "finished" else math.nan

    def summary(self, sample: Sample) -> Summary:
        """Summarise the scores of a sample's individual seeds at its last report."""
        known = sample.reports[-1].mious
        seeds = [str(seed) for seed in self.search.seeds if str(seed) in known]
        return summarise([self.search.score([report.mious[seed] for report in sample.reports]) for seed in seeds])

    def level_label(self, sample: Sample) -> str:
        """Return the level of a sample's last report, "-" if there is none."""
        return self.search.levels[len(sample.reports) - 1].label if sample.reports else "-"


# Words


def values_text(found: Findings, sample: Sample) -> str:
    """Describe the values of a sample, e.g. "train.optimizer.lr 0.01, acquire.strategy margin"."""
    return ", ".join(f"{path} {value_text(sample.values[path])}" for path in found.paths)


def metric_text(search: Search) -> str:
    """Describe the score of finished samples, e.g. "mIoU in percent at 40 labelled pixels per image on camvid val"."""
    first = next(level.budget for level in search.levels if level.epoch is None)
    last = search.levels[-1].budget
    what = f"mIoU in percent at {last} labelled pixels per image"
    if last == "full":
        what = "mIoU in percent under full supervision"
    elif search.spec.metric.name == "area":
        what = f"normalised area under the curve of mIoU (percent) over {first} to {last} labelled pixels per image"
    return f"{what} on {search.experiment.dataset.name} {search.split}"


def seeds_text(search: Search) -> str:
    """Describe the seeds of a score, e.g. "mean over 3 seeds"."""
    return f"mean over {len(search.seeds)} seeds" if len(search.seeds) > 1 else "one seed"


def count_words(number: int, what: str) -> str:
    """Count things, e.g. "1 sample", "3 samples"."""
    return f"{number} {what}{'s' * (number != 1)}"


def short(text: str) -> str:
    """Shorten a text to one line that fits a table."""
    return brief(" ".join(text.split()), LONGEST)


# The best


def best_table(found: Findings) -> Table:
    """Tabulate the best configurations and the file's own; with intervals if there are several seeds."""
    shown, several = _shown(found), len(found.search.seeds) > 1
    ranks = {sample.index: str(rank) for rank, sample in enumerate(found.ranked, start=1)}
    scores = [sample.reports[-1].score if sample.index in ranks else math.nan for sample in shown]
    columns = {
        "rank": [ranks.get(sample.index, "-") for sample in shown],
        "sample": [str(sample.index) for sample in shown],
    }
    columns |= {path: [value_text(sample.values[path]) for sample in shown] for path in found.paths}
    columns["score (%)"] = [percent_text(score, math.nan) for score in scores]
    if several:
        columns["95 % interval"] = [
            interval_text(found.summary(sample)) if sample.index in ranks else "-" for sample in shown
        ]
    if not math.isnan(found.own_score):
        columns["vs own"] = [points_text(score - found.own_score) for score in scores]
    alignment = "".join("l" if name in found.paths else "r" for name in columns)
    interval = " with Student's 95 % interval" if several else ""
    caption = (
        f"The best configurations out of {count_words(len(found.ranked), 'finished sample')}. Score: "
        f"{metric_text(found.search)}, {seeds_text(found.search)}{interval}."
    )
    return Table(caption, tuple(columns), tuple(zip(*columns.values(), strict=True)), alignment, _best_notes(found))


def _shown(found: Findings) -> list[Sample]:
    """The best samples, and in any case the file's own configuration."""
    best = found.ranked[:MOST_ROWS]
    return best if found.own is None or found.own in best else [*best, found.own]


def _best_notes(found: Findings) -> tuple[str, ...]:
    own, notes = found.own, [] if found.ranked else ["No sample is finished yet."]
    if own is not None and found.state(own) == "finished":
        notes.append(f"Sample {own.index} is the file's own configuration; vs own: difference from it in points.")
    elif own is not None:
        notes.append(f"Sample {own.index} is the file's own configuration; {_course_text(found, own)}.")
    if hidden := sum(sample not in _shown(found) for sample in found.ranked):
        notes.append(f"Finished and not shown: {hidden}; samples.csv has every sample.")
    return tuple(notes)


def _course_text(found: Findings, sample: Sample) -> str:
    """How far an unfinished sample got."""
    verb = {"stopped": "it was stopped", "failed": "it failed"}.get(found.state(sample), "it is not finished")
    if not sample.reports:
        return f"{verb} before it had a score"
    return f"{verb}, with {percent_text(sample.reports[-1].score, math.nan)} % at {found.level_label(sample)}"


def interval_text(summary: Summary) -> str:
    """Format an interval in percent, e.g. "49.8 to 51.2"; "-" if there is none."""
    if math.isnan(summary.low):
        return "-"
    return f"{percent_text(summary.low, math.nan)} to {percent_text(summary.high, math.nan)}"


def best_csv(found: Findings) -> str:
    """Write the table of the best as CSV: fractions, values as in YAML, empty fields for unfinished samples."""
    search = found.search
    ranks = {sample.index: rank for rank, sample in enumerate(found.ranked, start=1)}
    where = (search.spec.metric.name, search.split, search.levels[-1].budget)
    lines = (
        (
            *(ranks.get(sample.index), sample.index),
            *(_csv_value(sample.values[path]) for path in found.paths),
            *where,
            *(_measured(found, sample) if sample.index in ranks else (None,) * 5),
        )
        for sample in _shown(found)
    )
    named = ("metric", "split", "budget", "score", "n", "low", "high", "difference")
    return csv_text(("rank", "sample", *found.paths, *named), lines)


def _measured(found: Findings, sample: Sample) -> tuple[float, ...]:
    """Score, number of seeds, interval and difference from the file's own configuration."""
    score, summary = sample.reports[-1].score, found.summary(sample)
    return score, summary.n, summary.low, summary.high, score - found.own_score


def _csv_value(value: Any) -> str:
    return value if isinstance(value, str) else value_text(value)


# Every sample


def samples_csv(found: Findings) -> str:
    """Write every sample, level and seed as a line of CSV; a sample without reports has one line without a level.

    `miou` is the seed's; `score` and `seconds` (of all stages up to the level) are over all seeds.
    """
    known = ("sample", "origin", "state", "level", "budget", "epoch", "seed", "miou", "score", "seconds", "stopped")
    return csv_text((*known, *found.paths), [line for sample in found.samples for line in _sample_lines(found, sample)])


def _sample_lines(found: Findings, sample: Sample) -> Iterator[list[Any]]:
    before = [sample.index, sample.origin, found.state(sample)]
    behind = [sample.stopped, *(_csv_value(sample.values[path]) for path in found.paths)]
    for number, (level, report) in enumerate(zip(found.search.levels, sample.reports, strict=False), start=1):
        for seed in sorted(report.mious, key=int):
            where = [number, level.budget, level.epoch, int(seed)]
            yield [*before, *where, report.mious[seed], report.score, report.seconds, *behind]
    if not sample.reports:
        yield [*before, *[None] * 7, *behind]


def stopped_table(found: Findings) -> Table | None:
    """Tabulate the samples that a scheduler stopped; None if there are none."""
    rows = tuple(
        (
            str(sample.index),
            found.level_label(sample),
            percent_text(sample.reports[-1].score, math.nan) if sample.reports else "-",
            short(sample.stopped),
        )
        for sample in found.of("stopped")
    )
    caption = "Samples that were stopped before the last level, and their scores at that point."
    return Table(caption, ("sample", "stopped after", "score (%)", "why"), rows, "rlrl") if rows else None


def diverged_table(found: Findings) -> Table | None:
    """Tabulate the samples without a score because a training diverged; None if there are none."""
    rows = tuple((str(one.index), values_text(found, one), short(one.diverged)) for one in found.of("diverged"))
    caption = "Samples whose training diverged: they rank below all others and are not retried."
    return Table(caption, ("sample", "configuration", "how"), rows, "rll") if rows else None


def missing(found: Findings) -> tuple[tuple[str, str], ...]:
    """List the samples that the search still lacks, and why."""
    lacking = [(sample.label, _why(found, sample)) for state in ("failed", "open") for sample in found.of(state)]
    absent = found.search.spec.size - len(found.samples)
    if absent > 0:
        lacking.append((count_words(absent, "sample"), "not issued yet"))
    return tuple(lacking)


def _why(found: Findings, sample: Sample) -> str:
    if sample.error:
        at = f"after {found.level_label(sample)}" if sample.reports else "before the first level"
        return f"failed {at}: {short(sample.error)}"
    return f"unfinished, scored up to {found.level_label(sample)}" if sample.reports else "unfinished, no score yet"


def missing_table(found: Findings) -> Table | None:
    """Tabulate what the search still lacks; None if it is complete."""
    rows = missing(found)
    return Table("Missing samples; run the search again to add them.", ("what", "why"), rows, "ll") if rows else None


# Cost


@dataclass(frozen=True)
class SearchCost:
    """Training up to the last reports, and what it would be with every sample trained to the last level.

    Stages are distinct trainings; one that was left at an epoch counts as a fraction. `all_seconds` is an estimate,
    None if a sample lacks a level that no other has reached.
    """

    stages: float
    all_stages: int
    seconds: float
    all_seconds: float | None
    shared: bool


def cost_of(found: Findings) -> SearchCost | None:
    """Compute the cost of all issued samples except those that cannot be trained at all; None if there are none."""
    runs = list(_runs(found))
    plan = make_plan(found.search.judged, [trial for _, trial in runs])
    by_id = {chain.id: chain for chain in plan.chains}
    trained: dict[str, float] = {}
    for sample, trial in runs:
        for fit, share in zip(by_id[trial.chain_id].fits, _shares(found, sample, trial), strict=False):
            trained[fit] = max(trained.get(fit, 0.0), share)
    samples = list({sample.index: sample for sample, _ in runs}.values())
    seconds = math.fsum(sample.reports[-1].seconds for sample in samples if sample.reports)
    added = _seconds_lacking(found, samples)
    everything = None if added is None else seconds + added
    shared = plan.num_fits < plan.num_fits_unshared
    return SearchCost(math.fsum(trained.values()), plan.num_fits, seconds, everything, shared) if runs else None


def _runs(found: Findings) -> Iterator[tuple[Sample, Trial]]:
    """Yield each sample with its trials to the last level, seed by seed."""
    for sample in found.samples:
        with contextlib.suppress(SpecError):  # incompatible values: the sample failed without training
            for seed in found.search.seeds:
                yield sample, found.search.trial(sample.values, seed=seed, budget=found.search.levels[-1].budget)


def _shares(found: Findings, sample: Sample, trial: Trial) -> list[float]:
    """Fraction of each stage trained up to the last report: 1, or an epoch's share of the first stage."""
    if not sample.reports:
        return []
    level = found.search.levels[len(sample.reports) - 1]
    if level.epoch is not None:
        return [level.epoch / trial.epochs]
    return [1.0] * trial.model_copy(update={"budget": level.budget}).num_stages


def _seconds_lacking(found: Findings, samples: Sequence[Sample]) -> float | None:
    """Estimated seconds for levels not reached, from the mean of samples that did; None if a level has none."""
    total = 0.0
    for position in range(len(found.search.levels)):
        lacking = sum(len(sample.reports) <= position for sample in samples)
        steps = [_step_seconds(sample, position) for sample in samples if len(sample.reports) > position]
        if lacking and not steps:
            return None
        total += lacking * mean(steps) if lacking else 0.0
    return total


def _step_seconds(sample: Sample, position: int) -> float:
    """Seconds from the previous level to this one."""
    return sample.reports[position].seconds - (sample.reports[position - 1].seconds if position else 0.0)


def cost_table(found: Findings, cost: SearchCost) -> Table:
    """Tabulate the cost of the search and what it would cost without early stopping."""
    rows = (
        ("stages trained", *_cost_texts(cost.stages, cost.all_stages)),
        ("seconds", *_cost_texts(cost.seconds, cost.all_seconds)),
    )
    caption = (
        f"Cost of {count_words(len(found.samples), 'sample')} up to their last reports, and if all were trained to the "
        "last level. Seconds so far are measured; the total is an estimate that uses, for each level not reached, "
        "the mean over samples that reached it."
    )
    notes = ["Stages shared by samples are trained once but counted in the seconds of each."] if cost.shared else []
    if cost.all_seconds is None:
        notes.append("No estimate of the seconds: at least one level was reached by no sample.")
    return Table(caption, ("", "so far", "without stopping", "share (%)"), rows, "lrrr", tuple(notes))


def _cost_texts(part: float, whole: float | None) -> tuple[str, str, str]:
    if not whole:
        return number_text(part), "-", "-"
    return number_text(part), number_text(whole), percent_text(part / whole, math.nan)
