"""The command line: parse, one call, print. torch and ray are imported only by the commands that compute."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pixelpick_ray.data.cache import default_cache_path
from pixelpick_ray.data.datasets import CamVid, open_dataset
from pixelpick_ray.errors import DataError, PixelPickError, SpecError
from pixelpick_ray.plan import Chain, Plan, Progress, check_data, claim_name, make_plan, progress_of
from pixelpick_ray.spec.execution import Execution
from pixelpick_ray.spec.experiment import load_experiment
from pixelpick_ray.status import status_of
from pixelpick_ray.store import Store

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Active learning for semantic segmentation from a few labelled pixels an image, on Ray Tune.",
)

ExperimentFile = Annotated[
    Path, typer.Argument(metavar="EXPERIMENT", help="Experiment file (YAML).", show_default=False)
]
Overrides = Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a field; repeatable.")]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        envvar="PIXELPICK_DATA",
        file_okay=False,
        metavar="DIR",
        help="Folder that holds camvid, voc, weights, ...",
    ),
]
StorePath = Annotated[
    Path,
    typer.Option("--store", envvar="PIXELPICK_STORE", file_okay=False, metavar="DIR", help="Folder of the results."),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache", file_okay=False, metavar="DIR", help="Folder of decoded images.", show_default="DATA/.cache"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]

OK, FAILED, WRONG, STOPPED = 0, 1, 2, 3


def main() -> None:
    """Run the command line; errors that a user can act on end with their message and exit status 2."""
    try:
        app()
    except (SpecError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(WRONG)
    except PixelPickError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)


@app.command()
def plan(
    experiment: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006 (typer copies it)
    data: Data = Path("data"),
    store: StorePath = Path("store"),
    cache: Cache = None,
    ranks: Annotated[int, typer.Option("--ranks", help="DDP processes a trial.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Validate an experiment; list its trials, chains, stages, and what is stored and shared."""
    planned = _planned(experiment, overrides)
    execution = Execution(data, store, cache or default_cache_path(data), ranks=ranks)
    execution.check({trial.train.batch_size for trial in planned.trials})
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
    print(_sharing(planned))
    print(_cost(summary))


@app.command()
def run(
    experiment: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006
    data: Data = Path("data"),
    store: StorePath = Path("store"),
    cache: Cache = None,
    ranks: Annotated[int, typer.Option("--ranks", help="DDP processes a trial.")] = 1,
    cpus_per_rank: Annotated[int, typer.Option("--cpus-per-rank", help="CPUs, and threads, of a rank.")] = 1,
    gpus_per_rank: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-rank",
            help="GPUs of a rank; a fraction packs one-rank trials.",
            show_default="1 where there are GPUs",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cuda or cpu.")] = "auto",
    max_concurrent: Annotated[
        int | None, typer.Option("--max-concurrent", help="Chains at the same time.", show_default="as many as fit")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="An existing Ray cluster.", show_default="start one here")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="No Ray: chains one after another in this process.")] = False,
    time_limit: Annotated[
        str | None, typer.Option("--time-limit", help="Stop cleanly after e.g. 30m; run again to go on.")
    ] = None,
    keep_weights: Annotated[str, typer.Option("--keep-weights", help="needed, last or all.")] = "needed",
    runs: Annotated[
        Path, typer.Option("--runs", file_okay=False, metavar="DIR", help="Folder of logs and TensorBoard files.")
    ] = Path("runs"),
) -> None:
    """Run what is missing of an experiment on Ray, with live progress, then print the result table."""
    planned = _planned(experiment, overrides)
    execution = Execution(
        data_path=data.resolve(),
        store_path=store.resolve(),
        cache_path=(cache or default_cache_path(data)).resolve(),
        runs_path=runs.resolve(),
        ranks=ranks,
        cpus_per_rank=cpus_per_rank,
        gpus_per_rank=gpus_per_rank,
        device=_one_of("--device", device, ("auto", "cuda", "cpu")),
        max_concurrent=max_concurrent,
        address=address,
        time_limit_seconds=parse_duration(time_limit) if time_limit else None,
        keep_weights=_one_of("--keep-weights", keep_weights, ("needed", "last", "all")),
    )
    execution.check({trial.train.batch_size for trial in planned.trials})
    console = Console(stderr=False, highlight=False)
    if local:
        from pixelpick_ray.runner.local import check_local

        check_local(execution)
    with _naming(experiment):
        _prepare(planned, execution, console)
    claim_name(planned, Store(execution.store_path))
    sys.exit(_run(planned, execution, console, local=local))


@app.command()
def status(
    experiment: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006
    data: Data = Path("data"),
    store: StorePath = Path("store"),
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Show stored, running, waiting, missing and failed stages, and the last error line of each failed chain."""
    planned = _planned(experiment, overrides)
    execution = Execution(data, store, cache or default_cache_path(data))
    state = status_of(planned, execution)
    if as_json:
        print(json.dumps(state.as_dict()))
        return
    print(state.as_text())


@app.command()
def report(
    experiments: Annotated[
        list[Path], typer.Argument(metavar="EXPERIMENT...", help="Experiment files.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", file_okay=False, metavar="DIR", help="Folder of the report.", show_default=False)
    ],
    overrides: Overrides = [],  # noqa: B006
    store: StorePath = Path("store"),
) -> None:
    """Write tables, curves and one HTML page from the store; needs neither data nor torch."""
    from pixelpick_ray.report.files import write_report  # matplotlib is slow to import

    planned = [_planned(path, overrides) for path in experiments]
    summary = write_report(Store(store), [one.experiment for one in planned], out)
    for one in planned:
        print(f"{one.experiment.name}: {_sharing(one)}")
    if summary.missing:
        print(f"missing: {len(summary.missing)} results, listed in the report")
    print(f"written to {out}: {', '.join(path.name for path in summary.files)}")


def _planned(path: Path, overrides: list[str]) -> Plan:
    experiment = load_experiment(path, overrides)
    with _naming(path):
        return make_plan(experiment)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Begin the message of what is wrong in an experiment with the name of its file."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{path.name}: {error}") from error


def summarise(planned: Plan, progress: Progress, execution: Execution) -> dict[str, Any]:
    """The figures of a plan, as `plan --json` prints them; `stored_*` are None where they cannot be known."""
    seconds = fit_seconds(planned, progress, execution)
    fits, stored = planned.num_fits, progress.stored_fits
    missing = fits - (stored or 0)
    return {
        "experiment": planned.experiment.name,
        "trials": len(planned.trials),
        "chains": len(planned.chains),
        "fits": fits,
        "fits_unshared": planned.num_fits_unshared,
        "picks": planned.num_picks,
        "stored_fits": stored,
        "stored_picks": progress.stored_picks,
        "epochs_missing": sum(_epochs_missing(planned, progress).values()),
        "seconds_per_fit": seconds,
        "seconds_missing": None if seconds is None else round(seconds * missing, 1),
    }


def fit_seconds(planned: Plan, progress: Progress, execution: Execution) -> float | None:
    """Mean seconds of the plan's stored fits, evaluation included; None before the first."""
    store = Store(execution.store_path)
    keys = {stage.fit for row in progress.stages.values() for stage in row if stage.fit_stored}
    seconds = [store.read_record(f"fit/{key}/provenance.json")["seconds"] for key in sorted(filter(None, keys))]
    return round(sum(seconds) / len(seconds), 2) if seconds else None


def _epochs_missing(planned: Plan, progress: Progress) -> dict[str, int]:
    """Epochs still to train by fit; a fit whose key is unknown counts as missing."""
    missing: dict[str, int] = {}
    for chain in planned.chains:
        known = progress.stages.get(chain.id, [])
        for stage, fit in enumerate(chain.fits):
            if not (stage < len(known) and known[stage].fit_stored):
                missing[fit] = chain.trial.train.epochs
    return missing


def _sharing(planned: Plan) -> str:
    saved = planned.num_fits_unshared - planned.num_fits
    return (
        f"{len(planned.trials)} trials in {len(planned.chains)} chains: {planned.num_fits} stages to train, "
        f"where the trials one by one would train {planned.num_fits_unshared}; {saved} are shared"
    )


def _cost(summary: dict[str, Any]) -> str:
    stored = summary["stored_fits"]
    left = summary["fits"] - (stored or 0)
    known = f"{stored} of {summary['fits']} stages are stored, " if stored is not None else ""
    text = f"{known}{left} to train, {summary['epochs_missing']} epochs"
    if summary["seconds_missing"] is not None:
        text += f", about {summary['seconds_missing'] / 60:.0f} minutes of one trial's resources as measured so far"
    return text


def _prepare(planned: Plan, execution: Execution, console: Console) -> None:
    """Fetch what is absent, check everything that trials read, and build each network once.

    Networks are built without their weights first: a wrong name must not wait for a download.
    """
    from pixelpick_ray.models.backbones import fetch_weights
    from pixelpick_ray.models.segmentation import build_model

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        tasks: dict[str, Any] = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done)

        models = {json.dumps(trial.model.as_input()): trial for trial in planned.trials}
        for trial in models.values():
            unloaded = trial.model.model_copy(update={"pretrained": "none"})
            build_model(unloaded, num_classes=2, data_path=execution.data_path, seed=0, stage=0)
        for name in sorted({trial.dataset.name for trial in planned.trials}):
            dataset = open_dataset(name, execution.data_path)
            if isinstance(dataset, CamVid):
                dataset.fetch(lambda done, total: told("fetching camvid (bytes)", done, total))
        for trial in models.values():
            fetch_weights(trial.model, execution.data_path)
        check_data(planned, execution, told)
    for trial in models.values():
        num_classes = open_dataset(trial.dataset.name, execution.data_path).facts.num_classes
        build_model(trial.model, num_classes=num_classes, data_path=execution.data_path, seed=trial.seed, stage=0)


def _run(planned: Plan, execution: Execution, console: Console, *, local: bool) -> int:
    progress = progress_of(planned, execution)
    chains = [chain for chain in planned.chains if not progress.done(chain)]
    errors: dict[str, str] = {}
    trained = 0
    stop = StopRequest(execution.time_limit_seconds)
    if chains:
        console.print(_sharing(planned), soft_wrap=True)
        with stop.listening():
            errors, trained = _run_chains(planned, chains, execution, console, stop, local=local)
        progress = progress_of(planned, execution)
    missing = [chain for chain in planned.chains if not progress.done(chain)]
    if not missing:
        _drop_weights(planned, progress, execution)
    _print_result(planned, execution, console)
    console.print(f"{_sharing(planned)}; trained now: {trained}", soft_wrap=True)
    return _conclude(missing, errors, stop, console)


def _run_chains(
    planned: Plan, chains: list[Chain], execution: Execution, console: Console, stop: "StopRequest", *, local: bool
) -> tuple[dict[str, str], int]:
    from pixelpick_ray.runner.progress import Progress as Live
    from pixelpick_ray.runner.progress import TensorBoard

    if local:
        from pixelpick_ray.runner.local import run as run_chains
    else:
        from pixelpick_ray.runner.tune import run as run_chains
    board = TensorBoard(planned, execution)
    try:
        with Live(planned, chains, console, [board]) as live:
            errors = run_chains(planned, chains, execution, live, stop)
    finally:
        board.close()
    console.print(f"TensorBoard: tensorboard --logdir {_shown(execution.runs_path)}", markup=False, soft_wrap=True)
    return errors, live.computed_fits


def _conclude(missing: list[Chain], errors: dict[str, str], stop: "StopRequest", console: Console) -> int:
    if not missing:
        return OK
    for chain in missing:
        why = errors.get(chain.id, "stopped early" if stop.asked else "not finished")
        console.print(f"MISSING {chain.label}: {why}", soft_wrap=True, markup=False)
    if stop.asked and not any(chain.id in errors for chain in missing):
        console.print("stopped; the same command goes on from here")
        return STOPPED
    return FAILED


def _print_result(planned: Plan, execution: Execution, console: Console) -> None:
    from pixelpick_ray.report.rows import load_results
    from pixelpick_ray.report.tables import terminal_table

    results = load_results(Store(execution.store_path), [planned.experiment])
    console.print(terminal_table(results), markup=False, soft_wrap=True)


def _drop_weights(planned: Plan, progress: Progress, execution: Execution) -> None:
    """After the last chain, weights kept for other chains are needed no more."""
    if execution.keep_weights == "all":
        return
    store = Store(execution.store_path)
    for row in progress.stages.values():
        for stage in row:
            last = stage.stage + 1 == len(row)
            if stage.fit and not (execution.keep_weights == "last" and last):
                store.drop_weights(stage.fit)


class StopRequest:
    """Says when to stop: after a time limit, SIGINT or SIGTERM."""

    def __init__(self, limit_seconds: float | None) -> None:
        self._deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
        self._signalled = False

    @property
    def asked(self) -> bool:
        """Whether to stop."""
        return self._signalled or (self._deadline is not None and time.monotonic() > self._deadline)

    def __call__(self) -> bool:
        return self.asked

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as the request; a second signal ends the process at once."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def on_signal(number: int, frame: Any) -> None:
            if self._signalled:
                os._exit(STOPPED)
            self._signalled = True
            print("stopping; once more to stop at once", file=sys.stderr)

        for number in before:
            signal.signal(number, on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def parse_duration(text: str) -> float:
    """Seconds of "90", "90s", "30m", "2h" or "1d". SpecError otherwise."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    number, unit = (text[:-1], units[text[-1]]) if text and text[-1] in units else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise SpecError(f"--time-limit: {text!r} is no duration; give e.g. 90s, 30m, 2h or 1d")
    return seconds


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise SpecError(f"{option}: {value!r} given, allowed are {', '.join(allowed)}")
    return value


def _shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
