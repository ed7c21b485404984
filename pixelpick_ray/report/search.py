"""Report of a hyperparameter search, from its journal alone: what was tried, what is best, and what to run next."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixelpick_ray.config.experiment import Experiment, dump_experiment
from pixelpick_ray.report.costs import number_text
from pixelpick_ray.report.files import write_files
from pixelpick_ray.report.formats import to_latex, to_markdown
from pixelpick_ray.report.page import Fact, Page, page_html
from pixelpick_ray.report.parts import Listing, Part, Prose
from pixelpick_ray.report.search_figures import budgets, history, slices
from pixelpick_ray.report.search_importance import importance_parts
from pixelpick_ray.report.search_tables import (
    Findings,
    SearchCost,
    best_csv,
    best_table,
    cost_of,
    cost_table,
    count_words,
    diverged_table,
    metric_text,
    missing,
    missing_table,
    samples_csv,
    seeds_text,
    stopped_table,
    values_text,
)
from pixelpick_ray.report.tables import count_text, percent_text, points_text
from pixelpick_ray.search.design import make_search
from pixelpick_ray.search.journal import Journal
from pixelpick_ray.store import Store


@dataclass(frozen=True)
class SearchReportSummary:
    """What was written: paths, the number of issued samples, and one line per missing one."""

    files: tuple[Path, ...]
    num_samples: int
    missing: tuple[str, ...]


def write_search_report(
    store: Store, experiment: Experiment, out: Path, *, next_command: str = ""
) -> SearchReportSummary:
    """Write the report of the experiment's search to the folder `out`, replacing files of the same names.

    `next_command` measures the best configuration on the reported split. Equal journals give equal bytes. Raises
    SpecError if `out` is not writable, StoreError for an unreadable record.
    """
    search = make_search(experiment)
    found = Findings(search, Journal(store, search))
    files = write_files(_contents(found, next_command), out)
    lacking = tuple(f"{what}: {why}" for what, why in missing(found))
    return SearchReportSummary(files, len(found.samples), lacking)


def _contents(found: Findings, next_command: str) -> dict[str, str | bytes]:
    """All files of the report by name."""
    name, course, settings, best = found.search.experiment.name, history(found), slices(found), best_table(found)
    return {
        "table.md": to_markdown(best),
        "table.tex": to_latex(best, f"tab:{name}-search"),
        "table.csv": best_csv(found),
        "samples.csv": samples_csv(found),
        "curve.png": course.png(),
        "curve.svg": course.svg(),
        "slices.png": settings.png(),
        "slices.svg": settings.svg(),
        "index.html": page_html(_page(found, next_command)),
    }


def _page(found: Findings, next_command: str) -> Page:
    experiment, cost = found.search.experiment, cost_of(found)
    sections: dict[str, tuple[Part, ...]] = {"Result": _some(Prose(tuple(_result(found, next_command))))}
    if found.samples:
        sections["Result"] += _some(missing_table(found), diverged_table(found))
        sections |= {
            "Best configurations": (best_table(found),),
            "History": (history(found).part(),),
            "Budgets": (budgets(found).part(),),
            "Importance": importance_parts(found),
            "Slices": (slices(found).part(),),
            "Stopped": (stopped_table(found) or Prose(("No sample was stopped.",)),),
            "Cost": (cost_table(found, cost) if cost else Prose(("Nothing was trained.",)),),
        }
    sections["Experiment"] = (Listing(f"The experiment {experiment.name} as it was run", dump_experiment(experiment)),)
    lead = (
        f"{experiment.name}: a search of {count_words(len(found.paths), 'setting')}, "
        f"{count_text(len(found.samples), found.search.spec.size)} samples"
    )
    return Page(experiment.title or experiment.name, lead, tuple(_facts(found, cost)), sections)


def _some(*parts: Part | None) -> tuple[Part, ...]:
    return tuple(part for part in parts if part is not None)


# Headline figures


def _facts(found: Findings, cost: SearchCost | None) -> Iterator[Fact]:
    if found.ranked:
        best = found.ranked[0]
        score = f"{_percent(best.reports[-1].score)} %"
        yield Fact(score, f"score of the best, {best.label}", metric_text(found.search))
        if not math.isnan(found.own_score) and best != found.own:
            difference = points_text(best.reports[-1].score - found.own_score)
            yield Fact(difference, "points over the file's own", f"which has {_percent(found.own_score)} %")
    if found.samples:
        counted = count_text(len(found.ranked), found.search.spec.size)
        yield Fact(counted, "samples finished", f"{len(found.of('stopped'))} were stopped")
    if cost:
        note = f"{number_text(cost.stages)} of the {number_text(cost.all_stages)} that all samples have"
        yield Fact(f"{_percent(cost.stages / cost.all_stages)} %", "of the stages trained", note)


def _percent(fraction: float) -> str:
    return percent_text(fraction, math.nan)


# The result in words


def _result(found: Findings, next_command: str) -> Iterator[str]:
    yield _asked_text(found)
    yield _split_text(found)
    if not found.samples:
        yield "Nothing has been run yet; run the experiment, then report again."
        return
    yield _best_text(found)
    yield _counts_text(found)
    if next_command and found.ranked:
        yield f"Next, to measure the best configuration on {_reported(found)}: {next_command}"


def _asked_text(found: Findings) -> str:
    spec = found.search.spec
    settings = "; ".join(f"{path} ({domain.in_words()})" for path, domain in spec.space.items())
    scheduler = "without early stopping" if spec.scheduler == "none" else f"and stopped early by {spec.scheduler}"
    return (
        f"Searched: {settings}. Configurations were proposed by {spec.searcher} {scheduler}, with seed {spec.seed}, "
        f"and scored by {metric_text(found.search)}, {seeds_text(found.search)}."
    )


def _split_text(found: Findings) -> str:
    """Which split scores are from, and why they are not measurements."""
    split, share = found.search.split, found.search.judged.dataset.held_out
    name = split
    if split == "held_out" and share is not None:
        name = f"{split} ({100 * share:g} % of the training images, which no sample was trained on)"
    return (
        f"Scores are on {name}, not on {_reported(found)}, which is reported. The best score is optimistic, because it "
        f"is the highest of several; its value on {_reported(found)} has yet to be measured."
    )


def _reported(found: Findings) -> str:
    evaluate = found.search.experiment.evaluate
    return evaluate.split_of(evaluate.report)


def _best_text(found: Findings) -> str:
    if not found.ranked:
        return "No sample has finished yet, so there is no best one."
    best, own = found.ranked[0], found.own
    what = f"The best is {best.label} with {_percent(best.reports[-1].score)} %: {values_text(found, best)}."
    if own is None:
        return f"{what} The file's own configuration was not a sample."
    if own == best:
        return f"{what} It is the file's own configuration: the search found none better."
    if math.isnan(found.own_score):
        return f"{what} The file's own configuration, {own.label}, did not finish."
    difference = points_text(best.reports[-1].score - found.own_score)
    return (
        f"{what} The file's own configuration has {_percent(found.own_score)} %: a difference of {difference} points."
    )


def _counts_text(found: Findings) -> str:
    """Number of samples in each state, and of missing ones."""
    lacking = max(0, found.search.spec.size - len(found.samples))
    counts = {
        "finished": len(found.ranked),
        "stopped early": len(found.of("stopped")),
        "diverged": len(found.of("diverged")),
        "failed": len(found.of("failed")),
        "unfinished": len(found.of("open")),
        "not issued yet": lacking,
    }
    ends = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    missing_number = counts["failed"] + counts["unfinished"] + lacking
    end = f"{missing_number} missing; run the search again to add them" if missing_number else "none is missing"
    return f"Of {count_words(len(found.samples) + lacking, 'sample')}: {ends}; {end}."
