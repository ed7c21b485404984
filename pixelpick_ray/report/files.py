"""The files of a report: tables, rows, curves and one page, from a store and experiments alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pixelpick_ray.errors import SpecError
from pixelpick_ray.report.cells import Cell, build_cells
from pixelpick_ray.report.figures import curve_png, curve_svg
from pixelpick_ray.report.page import page_html
from pixelpick_ray.report.rows import Missing, Results, load_results, rows_csv
from pixelpick_ray.report.tables import (
    area_table,
    cells_csv,
    class_tables,
    missing_table,
    result_table,
    to_latex,
    to_markdown,
)
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
    cells = build_cells(results)
    contents = _contents(results, cells)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (out / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    except OSError as error:
        raise SpecError(f"--out {out}: cannot be written ({error}); give a folder that you may write to") from error
    files = tuple(out / name for name in contents)
    return ReportSummary(files, len(results.rows), len(results.points), results.missing)


def _contents(results: Results, cells: Sequence[Cell]) -> dict[str, str | bytes]:
    svg = curve_svg(results, cells)
    label = f"tab:{'-'.join(experiment.name for experiment in results.experiments)}"
    return {
        "table.md": _markdown(results, cells),
        "table.tex": to_latex(result_table(results, cells), label),
        "table.csv": cells_csv(cells),
        "rows.csv": rows_csv(results),
        "curve.png": curve_png(results, cells),
        "curve.svg": svg,
        "index.html": page_html(results, cells, svg),
    }


def _markdown(results: Results, cells: Sequence[Cell]) -> str:
    optional = (area_table(results, cells), missing_table(results, cells))
    tables = [result_table(results, cells), *class_tables(results, cells), *(table for table in optional if table)]
    return "\n".join(to_markdown(table) for table in tables)
