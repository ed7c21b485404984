"""The files of a report: tables, rows, curves and one page, from a store and experiments alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pixelpick_ray.errors import SpecError
from pixelpick_ray.report.cells import Cell, build_cells
from pixelpick_ray.report.figures import curve_png, curve_svg
from pixelpick_ray.report.formats import to_latex, to_markdown
from pixelpick_ray.report.page import CURVE, page_html
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.queries import load_queries, queries_csv, query_table
from pixelpick_ray.report.rows import Missing, Results, load_results, rows_csv
from pixelpick_ray.report.scoreboard import (
    Comparison,
    comparable_cells,
    compare,
    elsewhere_table,
    scoreboard_csv,
    scoreboard_table,
)
from pixelpick_ray.report.tables import area_table, cells_csv, class_tables, missing_table, protocol_table, result_table
from pixelpick_ray.spec.experiment import Experiment
from pixelpick_ray.store import Store


@dataclass(frozen=True)
class ReportSummary:
    """What was written: paths, number of rows, trials asked for, and what is missing."""

    files: tuple[Path, ...]
    num_rows: int
    num_trials: int
    missing: tuple[Missing, ...]


def write_report(store: Store, experiments: Sequence[Experiment], out: Path) -> ReportSummary:
    """Write the report of the experiments into the folder `out`, replacing files of the same names.

    Equal results give equal bytes, except for `index.html`, which also tells versions and seconds. SpecError when `out`
    cannot be written or the experiments cannot be told apart, StoreError for a record that contradicts its trial.
    """
    results = load_results(store, experiments)
    contents = _contents(store, results)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (out / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    except OSError as error:
        raise SpecError(f"--out {out}: cannot be written ({error}); give a folder that you may write to") from error
    files = tuple(out / name for name in contents)
    return ReportSummary(files, len(results.rows), len(results.trials), results.missing)


def _contents(store: Store, results: Results) -> dict[str, str | bytes]:
    """Every file of a report by its name."""
    cells = build_cells(results)
    queries = load_queries(store, results)
    comparisons = compare(results, cells)
    published = comparable_cells(comparisons)
    svg = curve_svg(results, cells, published)
    sections = _sections(results, cells, comparisons) | {"What was asked": _some(query_table(queries))}
    label = f"tab:{'-'.join(experiment.name for experiment in results.experiments)}"
    return {
        "table.md": "\n".join(to_markdown(table) for tables in sections.values() for table in tables),
        "table.tex": to_latex(result_table(results, cells), label),
        "table.csv": cells_csv(cells),
        "rows.csv": rows_csv(results),
        "scoreboard.csv": scoreboard_csv(comparisons),
        "queries.csv": queries_csv(queries),
        "curve.png": curve_png(results, cells, published),
        "curve.svg": svg,
        "index.html": page_html(results, sections | {"Elsewhere": _some(elsewhere_table(results))}, svg),
    }


def _sections(
    results: Results, cells: Sequence[Cell], comparisons: Sequence[Comparison]
) -> dict[str, tuple[Table, ...]]:
    """Tables under their titles, in the order of reading; a section may be empty."""
    return {
        "Results": (result_table(results, cells),),
        "Protocols": _some(protocol_table(results, cells)),
        "Published numbers": _some(scoreboard_table(results, comparisons)),
        CURVE: _some(area_table(results, cells)),
        "Missing": _some(missing_table(results, cells)),
        "Classes": class_tables(results, cells),
    }


def _some(table: Table | None) -> tuple[Table, ...]:
    return () if table is None else (table,)
