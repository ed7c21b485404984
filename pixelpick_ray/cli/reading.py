"""Commands that read results and weights without training."""

import gc
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pixelpick_ray.cli.options import (
    AsJson,
    Cache,
    Data,
    Device,
    Overrides,
    StoreLocation,
    one_of,
    parse_size,
)
from pixelpick_ray.cli.shared import asked_of
from pixelpick_ray.config.canonical import counted
from pixelpick_ray.config.command import typed
from pixelpick_ray.config.experiment import dataset_of_options
from pixelpick_ray.config.shipped import experiment_file
from pixelpick_ray.data.answers import Waiting
from pixelpick_ray.data.cache import default_cache_path
from pixelpick_ray.errors import RunError, SpecError
from pixelpick_ray.planning import Plan
from pixelpick_ray.search.design import Search
from pixelpick_ray.search.found import copy_found
from pixelpick_ray.search.journal import Journal
from pixelpick_ray.store import Store, absolute_path


def report(
    experiments: Annotated[
        list[Path],
        typer.Argument(
            metavar="EXPERIMENT...",
            help="Experiment files.",
            show_default=False,
            callback=lambda paths: [experiment_file(path) for path in paths],
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", file_okay=False, metavar="DIR", help="Folder for the report.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    store: StoreLocation = "store",
    costs: Annotated[
        Path | None,
        typer.Option("--costs", metavar="FILE", help="Cost model (YAML): adds annotation cost axes and a table."),
    ] = None,
    pictures: Annotated[
        int,
        typer.Option(
            "--pictures", min=0, metavar="N", help="Settings to illustrate with images of the data set; 0 for none."
        ),
    ] = 3,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain", metavar="CELL", help="Print where a number comes from, e.g. strategy=margin,budget=20."
        ),
    ] = None,
) -> None:
    """Write tables, curves and an HTML page from the store, or explain one number; needs neither data nor torch."""
    from pixelpick_ray.report.costs import read_cost_model
    from pixelpick_ray.report.files import explain_cell, write_report  # matplotlib is slow to import

    asked = [asked_of(path, overrides, store) for path in experiments]
    if any(search is not None for _, search in asked):
        if foreign := [option for option, value in (("--explain", explain), ("--costs", costs)) if value is not None]:
            raise SpecError(
                f"{', '.join(foreign)}: not available for a search, whose report has no cells; leave it out"
            )
        _report_search(asked, experiments, Store(store), out)
        return
    with _collector_off():
        planned, results = [one for one, _ in asked], Store(store)
        given = [one.experiment for one in planned]
        if explain is not None:
            print(explain_cell(results, given, explain))
        if out is None:
            if explain is None:
                raise SpecError("report: give --out DIR for the report, or --explain CELL for one number of it")
            return
        cost_model = read_cost_model(costs) if costs else None
        summary = write_report(results, given, out, cost_model=cost_model, picture_settings=pictures)
    for one in planned:
        print(f"{one.experiment.name}: {one.sharing}")
    if len({one.point for one in summary.missing}) == summary.num_trials:
        print(_why_nothing(planned, results))
    elif summary.missing:
        print(f"missing: {counted(len(summary.missing), 'result')}, listed in the report")
    _conclude(results, out, summary.files)


def _conclude(store: Store, out: Path, files: tuple[Path, ...]) -> None:
    """Print what was written. Raises RunError if damaged results are missing from the report."""
    print(f"written to {out}: {', '.join(path.name for path in files)}")
    for line in store.found_damaged:
        print(f"DAMAGED {line}")
    if store.found_damaged:
        raise RunError("the report lacks damaged results; run the experiment again to remake them")


def _why_nothing(planned: list[Plan], store: Store) -> str:
    """Say why a report has no results, and what to do."""
    looks = (Waiting(store, one.experiment).look(chain.id for chain in one.chains) for one in planned)
    if any(pending.missing for look in looks for pending in look.values()):
        return (
            "nothing has been trained yet, because people have to answer first; see `status` for the number of "
            "missing answers"
        )
    if store.found_damaged:
        return "the stored results are damaged and cannot be read; run the experiment again to remake them"
    return (
        f"{store.address} has no results of it; give the folder of the results with --store DIR, or run the "
        "experiment first"
    )


def evaluate(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS",
            help="weights.safetensors of a stored fit, or a published checkpoint (.pt, or .zip with one inside).",
            show_default=False,
        ),
    ],
    dataset: Annotated[str, typer.Option("--dataset", metavar="NAME", help="Data set.", show_default=False)],
    split: Annotated[str, typer.Option("--split", metavar="SPLIT", help="Its split.", show_default=False)],
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="HEIGHTxWIDTH",
            help="Prepared size.",
            show_default="native; cityscapes: 512x1024, as published",
        ),
    ] = None,
    scale: Annotated[
        float | None, typer.Option("--scale", metavar="FACTOR", help="Prepared size as a factor of the native size.")
    ] = None,
    long_side: Annotated[
        int | None, typer.Option("--long-side", metavar="PIXELS", help="Prepared size, given by the longer side.")
    ] = None,
    path: Annotated[
        str | None,
        typer.Option("--path", metavar="DIR", help="With --dataset folder: its folder inside the data folder."),
    ] = None,
    renamed: Annotated[
        list[str],
        typer.Option("--map", metavar="CLASS=NAME", help="Data set's name for a class of the weights; repeatable."),
    ] = [],  # noqa: B006 (typer copies it)
    data: Data = Path("data"),
    cache: Cache = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure per-class IoU, mIoU and pixel accuracy of a stored or published checkpoint."""
    from pixelpick_ray.active.metrics import iou, miou, pixel_accuracy
    from pixelpick_ray.engine.checkpoint import evaluate_checkpoint
    from pixelpick_ray.report.published import published_size
    from pixelpick_ray.runner.local import choose_device

    sizes = {"size": parse_size(size) if size else None, "scale": scale, "long_side": long_side}
    published = published_size(dataset)
    if published is not None and not any(sizes.values()):
        sizes = published.model_dump()
    names, confusion = evaluate_checkpoint(
        weights,
        dataset_of_options(dataset, {"path": path} | sizes),
        split,
        data_path=absolute_path(data),
        cache_path=absolute_path(cache or default_cache_path(data)),
        device=choose_device(one_of("--device", device, ("auto", "cuda", "cpu"))),
        renamed=_pairs(renamed),
        note=lambda line: print(line, file=sys.stderr),
    )
    values = {
        name: None if math.isnan(value) else float(value) for name, value in zip(names, iou(confusion), strict=True)
    }
    means = {"miou": miou(confusion), "pixel_accuracy": float(pixel_accuracy(confusion))}
    if as_json:
        print(json.dumps({"dataset": dataset, "split": split, "iou": values} | means))
        return
    width = max(map(len, (*names, "pixel accuracy")))
    for name, value in (*values.items(), ("mIoU", means["miou"]), ("pixel accuracy", means["pixel_accuracy"])):
        print(f"{name:<{width}}  {'does not occur' if value is None else f'{100 * value:5.1f} %'}")


def _pairs(options: list[str]) -> dict[str, str]:
    """Parse the values of ``--map``. Raises SpecError for a malformed one or a class given twice."""
    found: dict[str, str] = {}
    for option in options:
        old, sign, new = option.partition("=")
        if not (old and sign and new) or old in found:
            raise SpecError(f"--map {option}: expected CLASS=NAME, each class once, e.g. --map car=vehicle")
        found[old] = new
    return found


def _report_search(asked: list[tuple[Plan, Search | None]], paths: list[Path], store: Store, out: Path | None) -> None:
    """Write the report of a search. Raises SpecError unless it is the only experiment."""
    from pixelpick_ray.report.search import write_search_report

    search = asked[0][1]
    if len(asked) > 1 or search is None:
        raise SpecError(
            "report: a search cannot be combined with other experiments; give only its file, or leave it out"
        )
    if out is None:
        raise SpecError("report: give --out DIR for the report of a search")
    journal = Journal(store, search)
    best, command = journal.best(), ""
    if best is not None and journal.is_settled(search.spec.size):  # the run may have been on a cluster
        path, problem = copy_found(search, journal, best, paths[0])
        print(problem or f"found: {path}")
        command = "" if problem else f"{typed()} run {path}"
    summary = write_search_report(store, search.experiment, out, next_command=command)
    for line in summary.missing:
        print(f"missing: {line}")
    _conclude(store, out, summary.files)


@contextmanager
def _collector_off() -> Iterator[None]:
    """Disable garbage collection, which takes a fifth of a long report's time: its million values live to the end."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
