"""The command line: parse, one call, print. torch and ray are imported only by the commands that compute."""

import gc
import json
import math
import shlex
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.main import get_command

from pixelpick_ray.data.cache import default_cache_path
from pixelpick_ray.data.datasets import open_dataset
from pixelpick_ray.errors import DataError, PixelPickError, SpecError
from pixelpick_ray.estimate import cost_line, summarise
from pixelpick_ray.options import (
    Address,
    AsJson,
    Cache,
    CpusPerRank,
    Data,
    Device,
    ExperimentFile,
    FormatName,
    GpusPerRank,
    Overrides,
    Ranks,
    StoreLocation,
    one_of,
    parse_duration,
    parse_size,
)
from pixelpick_ray.plan import Plan, claim_name, make_plan, progress_of
from pixelpick_ray.runner import session
from pixelpick_ray.search.design import Search, check_splits, make_search
from pixelpick_ray.search.found import found_path
from pixelpick_ray.search.journal import Journal
from pixelpick_ray.search.overview import plan_figures, plan_text, search_status
from pixelpick_ray.spec.execution import Execution
from pixelpick_ray.spec.experiment import dataset_of_options, load_experiment
from pixelpick_ray.status import Status, status_of
from pixelpick_ray.store import Store, absolute

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Active learning for semantic segmentation from a few labelled pixels an image, on Ray Tune.",
)


def main() -> None:
    """Run the command line; errors that a user can act on end with their message and exit status 2."""
    try:
        app()
    except (SpecError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(session.WRONG)
    except PixelPickError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(session.FAILED)


@app.command()
def plan(
    experiment: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006 (typer copies it)
    data: Data = Path("data"),
    store: StoreLocation = "store",
    cache: Cache = None,
    ranks: Ranks = 1,
    as_json: AsJson = False,
) -> None:
    """Validate an experiment; list its trials, chains, stages, and what is stored and shared."""
    planned, search = _asked(experiment, overrides)
    execution = Execution(data, store, cache or default_cache_path(data), ranks=ranks)
    execution.check({trial.train.batch_size for trial in planned.trials})
    if search is not None:
        journal = Journal(Store(store), search)
        print(json.dumps(plan_figures(search, journal)) if as_json else plan_text(search, journal))
        return
    progress = progress_of(planned, execution)
    summary = summarise(planned, progress, execution)
    if as_json:
        print(json.dumps(summary))
        return
    for chain in planned.chains:
        stored = sum(stage.fit_stored for stage in progress.stages.get(chain.id, []))
        budgets = ", ".join(str(budget) for budget in chain.budgets)
        known = f"{stored} stored" if chain.id in progress.stages else "not known: no data here"
        print(f"{chain.label}: {len(chain.fits)} stages for budgets {budgets} ({known})")
    print(planned.sharing)
    if planned.answers_per_image:
        print(f"people label {planned.answers_per_image} pixels of each image")
    print(cost_line(summary))


@app.command()
def run(
    experiment: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006
    data: Data = Path("data"),
    store: StoreLocation = "store",
    cache: Cache = None,
    ranks: Ranks = 1,
    cpus_per_rank: CpusPerRank = 1,
    gpus_per_rank: GpusPerRank = None,
    device: Device = "auto",
    max_concurrent: Annotated[
        int | None, typer.Option("--max-concurrent", help="Chains at the same time.", show_default="as many as fit")
    ] = None,
    address: Address = None,
    local: Annotated[bool, typer.Option("--local", help="No Ray: chains one after another in this process.")] = False,
    time_limit: Annotated[
        str | None, typer.Option("--time-limit", help="Stop cleanly after e.g. 30m; run again to go on.")
    ] = None,
    keep_weights: Annotated[str, typer.Option("--keep-weights", help="needed, last or all.")] = "needed",
    checkpoint_minutes: Annotated[
        float,
        typer.Option(
            "--checkpoint-minutes",
            min=0,
            metavar="MINUTES",
            help="Save a fit in training after so long, at an epoch's end.",
        ),
    ] = 5.0,
    rank_timeout: Annotated[
        str, typer.Option("--rank-timeout", help="How long ranks wait for one that hangs, e.g. 10m.")
    ] = "10m",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for people who answer, and go on by itself.")] = False,
    runs: Annotated[
        Path, typer.Option("--runs", file_okay=False, metavar="DIR", help="Folder of logs and TensorBoard files.")
    ] = Path("runs"),
) -> None:
    """Run what is missing of an experiment on Ray, with live progress, then print the result table.

    With a search, print the best configurations and write the experiment of the best one.
    """
    planned, search = _asked(experiment, overrides)
    execution = _execution(
        planned,
        data,
        store,
        cache,
        device,
        runs_path=runs.resolve(),
        ranks=ranks,
        cpus_per_rank=cpus_per_rank,
        gpus_per_rank=gpus_per_rank,
        max_concurrent=max_concurrent,
        address=address,
        time_limit_seconds=parse_duration("--time-limit", time_limit) if time_limit else None,
        keep_weights=one_of("--keep-weights", keep_weights, ("needed", "last", "all")),
        checkpoint_seconds=60 * checkpoint_minutes,
        rank_timeout_seconds=parse_duration("--rank-timeout", rank_timeout),
        wait=wait,
    )
    console = Console(stderr=False, highlight=False)
    if local:
        from pixelpick_ray.runner.local import check_local

        if search is not None:
            raise SpecError("--local: a search runs on Ray Tune; leave out --local")
        check_local(execution)
    if search is not None:
        _check_search(search, execution, experiment)
    stop = session.StopRequest(execution.time_limit_seconds)
    with stop.listening():
        with _naming(experiment):
            session.prepare(planned, execution, console)
            if search is not None:
                search.check_images(execution.data_path)
        if search is None:
            claim_name(planned, Store(execution.store))
            exit_status = session.run(
                planned,
                execution,
                console,
                stop,
                local=local,
                annotate=_annotate_command(experiment, overrides, data, store),
            )
        else:
            claim_name(make_plan(search.experiment), Store(execution.store))
            exit_status = session.run_search(search, execution, console, stop, experiment)
    sys.exit(exit_status)


def _check_search(search: Search, execution: Execution, path: Path) -> None:
    """SpecError for what a search alone needs: its searcher, and splits of its data set."""
    from pixelpick_ray.runner.searchers import check_searcher

    with _naming(path):
        check_searcher(search.spec.searcher)
        whole = search.experiment.dataset.model_copy(update={"held_out": None})
        check_splits(search, open_dataset(whole, execution.data_path).facts)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def submit(
    context: typer.Context,
    experiment: ExperimentFile,
    to: Annotated[str, typer.Option("--to", metavar="KIND", help="slurm, kubernetes or ray.", show_default=False)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be submitted, and submit nothing.")
    ] = False,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Nodes.", show_default="1")] = None,
    cpus_per_node: Annotated[
        int | None, typer.Option("--cpus-per-node", min=1, help="CPUs of a node.", show_default="8")
    ] = None,
    gpus_per_node: Annotated[
        int | None,
        typer.Option("--gpus-per-node", min=0, help="GPUs of a node.", show_default="1, or 0 with --device cpu"),
    ] = None,
    memory_gib: Annotated[
        int | None,
        typer.Option(
            "--memory-per-node",
            min=1,
            metavar="GIB",
            help="Memory of a node.",
            show_default="all of it, or 4 a CPU on Kubernetes",
        ),
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", help="Limit of the job, e.g. 12h.", show_default="the cluster's")
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            "--folder",
            metavar="DIR",
            help="Where relative paths start: a folder that every node sees; on Kubernetes the place of the volume.",
            show_default="this one; /shared on Kubernetes",
        ),
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", help="Slurm: partition.")] = None,
    account: Annotated[str | None, typer.Option("--account", help="Slurm: account.")] = None,
    image: Annotated[str | None, typer.Option("--image", help="Kubernetes: container image.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", help="Kubernetes: namespace.")] = None,
    claim: Annotated[str | None, typer.Option("--claim", help="Kubernetes: volume claim of data and results.")] = None,
    address: Annotated[str | None, typer.Option("--address", help="Ray: address of its job server.")] = None,
) -> None:
    """Write, show and submit a batch job that runs an experiment; further options are those of `run`.

    EXPERIMENT comes first. The job is one Ray cluster on Slurm or Kubernetes, or joins the one at --address.
    """
    from pixelpick_ray.runner.submit import MAKERS, OPTIONS, Request

    given: dict[str, Any] = {
        "nodes": nodes,
        "cpus_per_node": cpus_per_node,
        "gpus_per_node": gpus_per_node,
        "memory_gib": memory_gib,
        "seconds": parse_duration("--time", time) if time else None,
        "folder": folder,
        "partition": partition,
        "account": account,
        "image": image,
        "namespace": namespace,
        "claim": claim,
        "address": address,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    kind = one_of("--to", to, tuple(MAKERS))
    if foreign := sorted(asked.keys() - OPTIONS[kind]):
        names = {parameter.name: parameter.opts[0] for parameter in context.command.params}
        names["seconds"] = "--time"
        raise SpecError(f"{', '.join(names[name] for name in foreign)}: not an option of --to {kind}")
    planned, execution = _checked_run(experiment, context.args)
    if execution.device == "cpu":
        asked = {"gpus_per_node": 0} | asked
    request = Request(planned.experiment.name, experiment, tuple(context.args), **asked)
    if kind != "ray":
        request.check(execution)
    job = MAKERS[kind](request)
    print(job.shown())
    if not dry_run:
        print(job.submit())


def _checked_run(experiment: Path, options: list[str]) -> tuple[Plan, Execution]:
    """The plan and the execution of `run EXPERIMENT OPTIONS`, checked as far as the cluster is not needed."""
    command = get_command(app).commands["run"]  # type: ignore[attr-defined]
    values = command.make_context("run", [str(experiment), *options]).params
    if values["local"] or values["address"]:
        raise SpecError("--local, --address: not for a batch job, which always runs on its own Ray cluster")
    for option in ("time_limit", "rank_timeout"):
        if values[option]:
            parse_duration(f"--{option.replace('_', '-')}", values[option])
    one_of("--keep-weights", values["keep_weights"], ("needed", "last", "all"))
    planned = _planned(experiment, values["overrides"])
    given = {name: values[name] for name in ("ranks", "cpus_per_rank", "gpus_per_rank", "max_concurrent")}
    places = Path(values["data"]), values["store"], Path(values["cache"]) if values["cache"] else None
    execution = _execution(planned, *places, values["device"], **given)
    return planned, execution


@app.command()
def doctor(
    experiment: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006
    data: Data = Path("data"),
    store: StoreLocation = "store",
    cache: Cache = None,
    ranks: Ranks = 1,
    cpus_per_rank: CpusPerRank = 1,
    gpus_per_rank: GpusPerRank = None,
    device: Device = "auto",
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Check every node of a cluster before a long run: a line each, ok or what to do; exit status 1 if one is not."""
    planned = _planned(experiment, overrides)
    rank = {"ranks": ranks, "cpus_per_rank": cpus_per_rank, "gpus_per_rank": gpus_per_rank}
    execution = _execution(planned, data, store, cache, device, address=address, **rank)
    from pixelpick_ray.runner.doctor import diagnose
    from pixelpick_ray.runner.survey import survey

    lines = diagnose(survey(planned, execution, lambda what: print(f"{what} ...", file=sys.stderr, flush=True)))
    well = all(line.ok for line in lines)
    if as_json:
        print(json.dumps({"ok": well, "lines": [asdict(line) for line in lines]}))
    else:
        print("\n".join(map(str, lines)))
    sys.exit(session.OK if well else session.FAILED)


@app.command()
def status(
    experiment: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006
    data: Data = Path("data"),
    store: StoreLocation = "store",
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Show stored, running, waiting, missing and failed stages, and the last error line of each failed chain.

    Of a search, the samples.
    """
    planned, search = _asked(experiment, overrides)
    execution = Execution(data, store, cache or default_cache_path(data))
    state = status_of(planned, execution) if search is None else search_status(search, Store(store))
    if as_json:
        print(json.dumps(state.as_dict()))
        return
    print(state.as_text())
    if isinstance(state, Status) and state.asks_people:
        print(f"answer with: {_annotate_command(experiment, overrides, data, store)}")


@app.command()
def annotate(
    experiment: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006
    data: Data = Path("data"),
    store: StoreLocation = "store",
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen on; only this machine reaches the page unless you change it."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port.", show_default="a free one")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address, and open no browser.")] = False,
) -> None:
    """Open the page where people label the pixels that an experiment asks about: one key, one label.

    Every answer is stored before the page goes on; start it while the experiment runs or later, stop it at any time.
    """
    from pixelpick_ray.annotate.desk import Desk
    from pixelpick_ray.annotate.server import serve

    planned = _planned(experiment, overrides)

    def ready(address: str) -> None:
        print(f"{planned.experiment.name}: {address}\nCtrl+C stops the page; every answer is stored", flush=True)
        if not no_browser:
            webbrowser.open(address)

    with _naming(experiment):
        desk = Desk(planned, Store(store), data.resolve())
    serve(desk, host=host, port=port, on_ready=ready)


@app.command("export")
def export_answers(
    experiment: ExperimentFile,
    out: Annotated[Path, typer.Option("--out", dir_okay=False, metavar="FILE", help="File.", show_default=False)],
    format_name: FormatName,
    overrides: Overrides = [],  # noqa: B006
    data: Data = Path("data"),
    store: StoreLocation = "store",
) -> None:
    """Write what people are asked, and what they have answered, to a file of another annotation tool."""
    from pixelpick_ray.annotate.transfer import write_answers

    planned = _planned(experiment, overrides)
    with _naming(experiment):
        lines = write_answers(planned, Store(store), data.resolve(), format_name, out)
    print("\n".join(lines))


@app.command("import")
def import_answers(
    experiment: ExperimentFile,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="File with answers.", show_default=False)
    ],
    format_name: FormatName,
    annotator: Annotated[
        str, typer.Option("--annotator", metavar="NAME", help="Who gave the answers that name nobody.")
    ] = "imported",
    overrides: Overrides = [],  # noqa: B006
    data: Data = Path("data"),
    store: StoreLocation = "store",
) -> None:
    """Take answers from a file of another annotation tool, all of them or, if one is wrong, none."""
    from pixelpick_ray.annotate.transfer import read_answers

    planned = _planned(experiment, overrides)
    with _naming(experiment):
        print(read_answers(planned, Store(store), data.resolve(), format_name, file, annotator=annotator))


@app.command()
def report(
    experiments: Annotated[
        list[Path], typer.Argument(metavar="EXPERIMENT...", help="Experiment files.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", file_okay=False, metavar="DIR", help="Folder of the report.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    store: StoreLocation = "store",
    costs: Annotated[
        Path | None, typer.Option("--costs", metavar="FILE", help="What a label costs (YAML): more axes and a table.")
    ] = None,
    pictures: Annotated[
        int,
        typer.Option(
            "--pictures", min=0, metavar="N", help="Settings shown with pictures of the data set; 0 leaves them out."
        ),
    ] = 3,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain", metavar="CELL", help="Print where a number comes from, e.g. strategy=margin,budget=20."
        ),
    ] = None,
) -> None:
    """Write tables, curves and one HTML page from the store, or explain one number; needs neither data nor torch."""
    from pixelpick_ray.report.costs import read_cost_model
    from pixelpick_ray.report.files import explain_cell, write_report  # matplotlib is slow to import

    asked = [_asked(path, overrides) for path in experiments]
    if any(search is not None for _, search in asked):
        if foreign := [option for option, value in (("--explain", explain), ("--costs", costs)) if value is not None]:
            raise SpecError(f"{', '.join(foreign)}: not for a search, whose report has no cells; leave it out")
        _report_search(asked, experiments, Store(store), out)
        return
    with _collector_off():
        planned = [one for one, _ in asked]
        given = [one.experiment for one in planned]
        if explain is not None:
            print(explain_cell(Store(store), given, explain))
        if out is None:
            if explain is None:
                raise SpecError("report: give --out DIR for the report, or --explain CELL for one number of it")
            return
        cost_model = read_cost_model(costs) if costs else None
        summary = write_report(Store(store), given, out, cost_model=cost_model, picture_settings=pictures)
    for one in planned:
        print(f"{one.experiment.name}: {one.sharing}")
    if len({one.point for one in summary.missing}) == summary.num_trials:
        where = Store(store).address
        print(f"nothing of it is stored in {where}; give the folder of the results with --store DIR, or run it first")
    elif summary.missing:
        print(f"missing: {len(summary.missing)} results, listed in the report")
    print(f"written to {out}: {', '.join(path.name for path in summary.files)}")


@app.command()
def evaluate(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS",
            help="weights.safetensors of a stored fit, or a published checkpoint (.pt).",
            show_default=False,
        ),
    ],
    dataset: Annotated[str, typer.Option("--dataset", metavar="NAME", help="Data set.", show_default=False)],
    split: Annotated[str, typer.Option("--split", metavar="SPLIT", help="Its split.", show_default=False)],
    size: Annotated[
        str | None, typer.Option("--size", metavar="HEIGHTxWIDTH", help="Prepared size.", show_default="native")
    ] = None,
    path: Annotated[
        str | None, typer.Option("--path", metavar="DIR", help="Of the data set `folder`, inside the data folder.")
    ] = None,
    data: Data = Path("data"),
    cache: Cache = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure per-class IoU, mIoU and pixel accuracy of a stored or a published checkpoint."""
    from pixelpick_ray.active.metrics import iou, miou, pixel_accuracy
    from pixelpick_ray.engine.checkpoint import evaluate_checkpoint
    from pixelpick_ray.runner.local import choose_device

    names, confusion = evaluate_checkpoint(
        weights,
        dataset_of_options(dataset, path, parse_size(size) if size else None),
        split,
        data_path=data.resolve(),
        cache_path=(cache or default_cache_path(data)).resolve(),
        device=choose_device(one_of("--device", device, ("auto", "cuda", "cpu"))),
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


def _report_search(asked: list[tuple[Plan, Search | None]], paths: list[Path], store: Store, out: Path | None) -> None:
    """Write the report of the only experiment, a search."""
    from pixelpick_ray.report.search import write_search_report

    search = asked[0][1]
    if len(asked) > 1 or search is None:
        raise SpecError("report: a search is reported alone; give its file only, or leave it out")
    if out is None:
        raise SpecError("report: give --out DIR for the report of a search")
    best = Journal(store, search).best()
    found = found_path(search, best, paths[0]) if best else None
    command = f"python launch.py run {found}" if found and found.is_file() else ""
    summary = write_search_report(store, search.experiment, out, next_command=command)
    for line in summary.missing:
        print(f"missing: {line}")
    print(f"written to {out}: {', '.join(path.name for path in summary.files)}")


def _execution(planned: Plan, data: Path, store: str, cache: Path | None, device: str, **options: Any) -> Execution:
    """Where and how fast the plan is to run, in absolute paths. SpecError for what no run can have."""
    execution = Execution(
        data.resolve(),
        absolute(store),
        (cache or default_cache_path(data)).resolve(),
        device=one_of("--device", device, ("auto", "cuda", "cpu")),
        **options,
    )
    execution.check({trial.train.batch_size for trial in planned.trials})
    return execution


def _annotate_command(path: Path, overrides: list[str], data: Path, store: str) -> str:
    """The command to type for the page where people answer."""
    places = [("--data", str(data), "data"), ("--store", store, "store")]
    given = [part for option, value, default in places if value != default for part in (option, value)]
    changed = [part for override in overrides for part in ("--set", override)]
    return shlex.join(["python", "launch.py", "annotate", str(path), *changed, *given])


def _planned(path: Path, overrides: list[str]) -> Plan:
    """The plan of an experiment; of a search, that of its file's own configuration and of the values in its space."""
    return _asked(path, overrides)[0]


def _asked(path: Path, overrides: list[str]) -> tuple[Plan, Search | None]:
    """The plan of an experiment, and its search if it has one."""
    experiment = load_experiment(path, overrides)
    with _naming(path):
        if experiment.search is None:
            return make_plan(experiment), None
        search = make_search(experiment)
        return search.ends_plan, search


@contextmanager
def _collector_off() -> Iterator[None]:
    """No search for garbage among a million values that all live to the end: a fifth of the time of a long report."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Begin the message of what is wrong in an experiment with the name of its file."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{path.name}: {error}") from error
