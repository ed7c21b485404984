"""Files of a report: tables, rows, curves and a page, from a store and experiments alone."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from pixelpick_ray.config.canonical import counted
from pixelpick_ray.config.execution import local_cpus
from pixelpick_ray.config.experiment import Experiment, dump_experiment
from pixelpick_ray.data.description import read_description
from pixelpick_ray.errors import SpecError
from pixelpick_ray.report.annotator_tables import annotation_tables
from pixelpick_ray.report.annotators import (
    COSTS_START,
    Annotations,
    answers_csv,
    costs_yaml,
    load_annotations,
    measured_basis,
    measured_costs,
)
from pixelpick_ray.report.cells import Cell, Line, build_cells, reported
from pixelpick_ray.report.chains import ReportedChain, load_chains
from pixelpick_ray.report.costs import CostModel, Costs, cost_table, costs_of
from pixelpick_ray.report.explain import explain
from pixelpick_ray.report.figures import curve_pdf, curve_png, curve_svg, curves
from pixelpick_ray.report.formats import latex_tables, to_latex, to_markdown
from pixelpick_ray.report.headline import headline
from pixelpick_ray.report.judgement import (
    Contest,
    best_and_ties,
    judge,
    pair_table,
    pairs_csv,
    stability_table,
    win_matrix,
)
from pixelpick_ray.report.layouts import transposed_table, wide_table
from pixelpick_ray.report.overlap import overlap_table
from pixelpick_ray.report.page import Page, page_html
from pixelpick_ray.report.parts import Listing, Part, Prose, Table
from pixelpick_ray.report.pictures import contact_sheets
from pixelpick_ray.report.provenance import effort_table, load_efforts, provenance_table
from pixelpick_ray.report.queries import StageQuery, class_share_tables, load_queries, queries_csv, query_table
from pixelpick_ray.report.rows import Missing, Results, load_results, rows_csv
from pixelpick_ray.report.scoreboard import (
    Comparison,
    comparable_cells,
    compare,
    elsewhere_table,
    scoreboard_csv,
    scoreboard_table,
)
from pixelpick_ray.report.tables import (
    area_table,
    cells_csv,
    class_tables,
    damage_table,
    diverged_table,
    missing_table,
    protocol_table,
    result_table,
)
from pixelpick_ray.report.thresholds import threshold_table
from pixelpick_ray.report.verdicts import verdicts
from pixelpick_ray.store import Store, paths
from pixelpick_ray.store.outputs import replace_files
from pixelpick_ray.store.records import DataWarnings


@dataclass(frozen=True)
class ReportSummary:
    """What was written: paths, the number of requested trials, and what is missing."""

    files: tuple[Path, ...]
    num_trials: int
    missing: tuple[Missing, ...]


def write_report(
    store: Store,
    experiments: Sequence[Experiment],
    out: Path,
    *,
    cost_model: CostModel | None = None,
    picture_settings: int = 0,
) -> ReportSummary:
    """Write the report of the experiments to the folder `out`, replacing files of the same names.

    At most `picture_settings` settings are illustrated with images. Without a cost model, one measured from people's
    answers is used, if any. Equal results give equal bytes, except in `index.html`, which includes versions and
    seconds. Raises SpecError if `out` is not writable, experiments differ but share a name, or the cost model does not
    fit them; StoreError for a record that contradicts its trial.
    """
    results = load_results(store, experiments, processes=local_cpus())
    contents = _contents(store, results, cost_model, picture_settings)
    files = write_files(contents, out, stale=_stale(contents, out, cost_model))
    return ReportSummary(files, len(results.trials), results.missing)


def write_files(contents: Mapping[str, str | bytes], out: Path, *, stale: Collection[str] = ()) -> tuple[Path, ...]:
    """Replace files in the folder `out` by name, all or none, and remove `stale` ones. Raises SpecError on failure."""
    try:
        replace_files({out / name: _bytes(content) for name, content in contents.items()})
        for name in stale:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise SpecError(
            f"--out {out}: cannot be written ({error}); give a writable folder with free space; existing files are "
            "unchanged"
        ) from error
    return tuple(out / name for name in contents)


def _bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")


def _stale(contents: Collection[str], out: Path, cost_model: CostModel | None) -> set[str]:
    """Misleading files of an earlier report, except for a cost model that may be the user's own.

    Raises SpecError if a cost model that no report wrote would be replaced.
    """
    stale, foreign = _NOT_ALWAYS - set(contents), _is_foreign(out / _COSTS)
    if foreign and _COSTS in contents:
        raise SpecError(
            f"--out {out}: its {_COSTS} was not written by a report and would be overwritten; move it, or give another "
            "folder"
        )
    return stale - {_COSTS} if foreign or cost_model is not None else stale


def _is_foreign(path: Path) -> bool:
    """Whether there is a cost model that no report wrote."""
    try:
        return path.is_file() and not path.read_bytes().startswith(COSTS_START.encode("ascii"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error}); make it readable, or give another --out") from error


def explain_cell(store: Store, experiments: Sequence[Experiment], wanted: str) -> str:
    """Describe where one number comes from; see `explain.explain`."""
    results = load_results(store, experiments)
    return explain(store, results, build_cells(results), load_chains(store, results), wanted)


@dataclass(frozen=True)
class _Findings:
    """Everything that the parts of a report are made from."""

    results: Results
    cells: Sequence[Cell]
    chains: Sequence[ReportedChain]
    queries: Sequence[StageQuery]
    comparisons: Sequence[Comparison]
    contests: Sequence[Contest]
    annotations: Annotations


def _contents(
    store: Store, results: Results, cost_model: CostModel | None, picture_settings: int
) -> dict[str, str | bytes]:
    """All files of a report by name."""
    cells, chains = build_cells(results), load_chains(store, results)
    queries, comparisons, contests = load_queries(store, chains), compare(results, cells), judge(results, cells)
    found = _Findings(results, cells, chains, queries, comparisons, contests, load_annotations(store, chains))
    costs = _costs(found, cost_model)
    published, efforts = comparable_cells(comparisons), load_efforts(store, results, chains)
    sections = _sections(store, found, costs)
    sections["Missing"] += _some(damage_table(store.damage))  # last: everything else has been read
    more: dict[str, tuple[Part, ...]] = {
        "Pictures": contact_sheets(store, results, chains, settings=picture_settings),
        "Other papers": _some(elsewhere_table(results)),
        "Provenance": _some(effort_table(efforts), provenance_table(results), *map(_listing, results.experiments)),
    }
    return {
        "table.md": "\n".join(text for parts in sections.values() for part in parts if (text := _markdown(part))),
        **_latex_files(found),
        "table.csv": cells_csv(cells),
        "rows.csv": rows_csv(results),
        "pairs.csv": pairs_csv(contests),
        "scoreboard.csv": scoreboard_csv(comparisons),
        "queries.csv": queries_csv(queries),
        **_annotation_files(found.annotations),
        "curve.png": curve_png(results, cells, published),
        "curve.svg": curve_svg(results, cells, published),
        "curve.pdf": curve_pdf(results, cells, published),
        "index.html": page_html(Page(*_title(results), headline(results, cells, efforts), sections | more)),
    }


def _sections(store: Store, found: _Findings, costs: Costs | None) -> dict[str, tuple[Part, ...]]:
    """Parts by section title, in reading order; a section may be empty."""
    results, cells, contests = found.results, found.cells, found.contests
    training = _training_facts(store, found.chains)
    # Training images without label maps have no classes to compare with.
    counts = {line: facts["class_counts"] for line, facts in training.items() if any(facts["class_counts"])}
    shares = class_share_tables(found.queries, counts)
    distances = {line: facts["border_distance"] for line, facts in training.items()}
    return {
        "Results": _some(verdicts(contests), *_forms(found).values()),
        "Budget curve": _some(
            curves(results, cells, comparable_cells(found.comparisons), costs),
            area_table(results, cells),
            threshold_table(results, cells),
            cost_table(results, cells, costs) if costs else None,
        ),
        "Strategy comparison": _some(pair_table(contests), win_matrix(contests), stability_table(contests)),
        "Protocols": _some(protocol_table(results, cells)),
        "Published numbers": _some(scoreboard_table(results, found.comparisons)),
        "Data": _data_warnings(store, results.experiments),
        "Missing": _some(missing_table(results, cells), diverged_table(results)),
        "Classes": class_tables(results, cells),
        "Queries": _some(query_table(found.queries, distances), *shares, overlap_table(store, found.chains)),
        "Annotation": annotation_tables(found.annotations),
    }


def _data_warnings(store: Store, experiments: Sequence[Experiment]) -> tuple[Part, ...]:
    """Data warnings of the experiments' last runs."""
    found: dict[str, None] = {}
    for experiment in experiments:
        path = paths.data_warnings(paths.experiment_folder(experiment))
        record = store.find_record(path, DataWarnings)
        found |= dict.fromkeys(f"Warning: {line}." for line in (record.warnings if record else ()))
    return (Prose(tuple(found)),) if found else ()


def _costs(found: _Findings, model: CostModel | None) -> Costs | None:
    """Costs by the given model, or else by people's measured times, if any."""
    cells = reported(found.results, found.cells)
    if model is not None:
        return costs_of(model, found.queries, cells)
    measured = measured_costs(found.annotations)
    return costs_of(measured, found.queries, cells, measured_basis(found.annotations)) if measured else None


def _annotation_files(annotations: Annotations) -> dict[str, str]:
    costs = costs_yaml(annotations)
    answers = {"answers.csv": answers_csv(annotations)} if annotations.given else {}
    return answers | ({_COSTS: costs} if costs else {})


def _forms(found: _Findings) -> dict[str, Table | None]:
    """All forms of the default table, by suffix of the file name."""
    strong = best_and_ties(found.contests)
    return {
        "": result_table(found.results, found.cells, strong=strong),
        "_wide": wide_table(found.results, found.cells, strong=strong),
        "_transposed": transposed_table(found.results, found.cells, strong=strong),
    }


_COSTS = "costs.yaml"
_NOT_ALWAYS = {"table_wide.tex", "table_transposed.tex", "table_classes.tex", "answers.csv", _COSTS}


def _latex_files(found: _Findings) -> dict[str, str]:
    label = f"tab:{'-'.join(experiment.name for experiment in found.results.experiments)}"
    forms = {f"table{form}.tex": to_latex(table, label + form) for form, table in _forms(found).items() if table}
    classes = enumerate(class_tables(found.results, found.cells), start=1)
    named = {f"{label}_classes_{number}": table for number, table in classes}
    return forms | ({"table_classes.tex": latex_tables(named)} if named else {})


def _title(results: Results) -> tuple[str, str]:
    """Title and lead paragraph of the page."""
    title = " · ".join(experiment.title or experiment.name for experiment in results.experiments)
    names = ", ".join(experiment.name for experiment in results.experiments)
    return title, f"{names}: {counted(len(results.trials), 'trial')}, {counted(len(results.fits), 'fit')}"


def _listing(experiment: Experiment) -> Listing:
    return Listing(f"The experiment {experiment.name} as it was run", dump_experiment(experiment))


def _training_facts(store: Store, chains: Sequence[ReportedChain]) -> dict[Line, dict[str, Any]]:
    """Stored facts of the training images, by line."""
    read = cache(partial(read_description, store))
    described = {chain.line: read(chain.training_description) for chain in reversed(chains)}
    return {line: description.facts for line, description in described.items() if description}


def _markdown(part: Part) -> str:
    match part:
        case Table():
            return to_markdown(part)
        case Prose():
            return "\n\n".join(part.sentences) + "\n"
        case _:
            return ""


def _some(*parts: Part | None) -> tuple[Part, ...]:
    return tuple(part for part in parts if part is not None)
