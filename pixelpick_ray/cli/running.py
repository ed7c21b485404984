"""Commands that plan, run and watch an experiment."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, TextIO, cast

import typer
from rich.console import Console

from pixelpick_ray.checks import check_labels, data_warnings
from pixelpick_ray.cli.options import (
    KEEP_WEIGHTS,
    Address,
    AsJson,
    Cache,
    CpusPerRank,
    Data,
    Device,
    ExperimentFile,
    GpusPerRank,
    KeepWeightsOption,
    Overrides,
    Ranks,
    StoreLocation,
    one_of,
    parse_bytes,
    parse_duration,
)
from pixelpick_ray.cli.shared import asked_of, execution_of
from pixelpick_ray.config.canonical import counted
from pixelpick_ray.config.command import typed
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.data.cache import default_cache_path
from pixelpick_ray.errors import naming
from pixelpick_ray.estimate import cost_line, features_line, summarise
from pixelpick_ray.planning import progress_of
from pixelpick_ray.runner import session
from pixelpick_ray.runner.byproducts import Output
from pixelpick_ray.search.journal import Journal
from pixelpick_ray.search.overview import plan_figures, plan_text, search_status
from pixelpick_ray.status import Status, status_of
from pixelpick_ray.store import Store, absolute_path
from pixelpick_ray.store.paths import without_credentials


def plan(
    experiment: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006 (typer copies it)
    data: Data = Path("data"),
    store: StoreLocation = "store",
    cache: Cache = None,
    ranks: Ranks = 1,
    keep_weights: KeepWeightsOption = "needed",
    as_json: AsJson = False,
) -> None:
    """Validate an experiment; list its chains and stages, and what is stored, shared and still to be trained."""
    planned, search = asked_of(experiment, overrides, store)
    kept = one_of("--keep-weights", keep_weights, KEEP_WEIGHTS)
    execution = Execution(data, store, cache or default_cache_path(data), ranks=ranks, keep_weights=kept)
    execution.check({trial.training.batch_size for trial in planned.trials if trial.training})
    with naming(experiment.name):
        check_labels(planned.experiment, planned.trials, data)
    warnings = data_warnings(planned.experiment, planned.trials, execution)
    for line in warnings if not as_json else ():
        print(f"warning: {line}")
    if search is not None:
        results = Store(store)
        journal = Journal(results, search)
        if as_json:
            print(json.dumps(plan_figures(search, journal)))
        else:
            print("\n".join([plan_text(search, journal), *(f"DAMAGED {line}" for line in results.found_damaged)]))
        return
    progress = progress_of(planned, execution)
    summary = summarise(planned, progress, execution)
    if as_json:
        print(json.dumps(summary | {"warnings": warnings}))
        return
    for chain in planned.chains:
        stored = sum(stage.fit_stored for stage in progress.stages.get(chain.id, []))
        budgets = ", ".join(str(budget) for budget in chain.budgets)
        known = f"{stored} stored" if chain.id in progress.stages else "unknown until data and weights are downloaded"
        noun = "budget" if len(chain.budgets) == 1 else "budgets"
        print(f"{chain.label}: {counted(len(chain.fits), 'stage')} for {noun} {budgets} ({known})")
    for line in planned.code:
        print(f"code: {line}")
    for line in summary["normalise"]:
        print(line)
    print(planned.sharing)
    if planned.answers_per_image:
        print(f"people label {counted(planned.answers_per_image, 'pixel')} of each image")
    for line in progress.damaged:
        print(f"DAMAGED {line}")
    if line := features_line(summary["features_bytes"], execution):
        print(line)
    print(cost_line(summary))


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
        int | None,
        typer.Option(
            "--max-concurrent", metavar="N", help="Chains to run concurrently.", show_default="as many as fit"
        ),
    ] = None,
    address: Address = None,
    local: Annotated[bool, typer.Option("--local", help="Run chains one by one in this process, without Ray.")] = False,
    time_limit: Annotated[
        str | None,
        typer.Option("--time-limit", metavar="DURATION", help="Stop cleanly after e.g. 30m; run again to continue."),
    ] = None,
    keep_weights: KeepWeightsOption = "needed",
    checkpoint_minutes: Annotated[
        float,
        typer.Option(
            "--checkpoint-minutes",
            min=0,
            metavar="MINUTES",
            help="Minutes between checkpoints during training, saved at the end of an epoch.",
        ),
    ] = 5.0,
    rank_timeout: Annotated[
        str,
        typer.Option("--rank-timeout", metavar="DURATION", help="How long to wait for a rank that hangs, e.g. 10m."),
    ] = "10m",
    cache_limit: Annotated[
        str | None,
        typer.Option(
            "--cache-limit",
            envvar="PIXELPICK_CACHE_LIMIT",
            metavar="SIZE",
            help="Limit on cached features of frozen backbones, e.g. 20GB; the least recently used are removed.",
            show_default="no limit",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for people's answers, then continue.")] = False,
    runs: Annotated[
        Path, typer.Option("--runs", file_okay=False, metavar="DIR", help="Folder for logs and TensorBoard files.")
    ] = Path("runs"),
) -> None:
    """Run what is missing from an experiment on Ray, with live progress, then print the table of results.

    For a search, print the best configurations and write the experiment of the best one.
    """
    planned, search = asked_of(experiment, overrides, store)
    execution = execution_of(
        planned,
        data,
        store,
        cache,
        device,
        runs_path=absolute_path(runs),
        ranks=ranks,
        cpus_per_rank=cpus_per_rank,
        gpus_per_rank=gpus_per_rank,
        max_concurrent=max_concurrent,
        address=address,
        time_limit_seconds=parse_duration("--time-limit", time_limit) if time_limit else None,
        keep_weights=one_of("--keep-weights", keep_weights, KEEP_WEIGHTS),
        checkpoint_seconds=60 * checkpoint_minutes,
        rank_timeout_seconds=parse_duration("--rank-timeout", rank_timeout),
        cache_limit=parse_bytes("--cache-limit", cache_limit) if cache_limit else None,
        wait=wait,
    )
    console = Console(file=cast(TextIO, Output(sys.stdout, expendable=True)), highlight=False)
    outcome = session.begin(
        planned,
        search,
        execution,
        console,
        session.StopRequest(execution.time_limit_seconds),
        source=experiment,
        local=local,
        annotate=_annotate_command(experiment, overrides, data, store),
    )
    sys.exit(outcome.status)


def status(
    experiment: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006
    data: Data = Path("data"),
    store: StoreLocation = "store",
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Show stored, running, waiting, missing and failed stages, and the last error line of each failed chain.

    For a search, show the samples.
    """
    planned, search = asked_of(experiment, overrides, store)
    execution = Execution(data, store, cache or default_cache_path(data))
    state = status_of(planned, execution) if search is None else search_status(search, Store(store))
    if as_json:
        print(json.dumps(state.as_dict()))
        return
    print(state.as_text())
    if isinstance(state, Status) and state.asks_people:
        print(f"answer with: {_annotate_command(experiment, overrides, data, store)}")


def _annotate_command(path: Path, overrides: list[str], data: Path, store: str) -> str:
    """Command to type to open the annotation page."""
    places = [("--data", str(data), "data"), ("--store", without_credentials(store), "store")]
    given = [part for option, value, default in places if value != default for part in (option, value)]
    changed = [part for override in overrides for part in ("--set", override)]
    return f"{typed()} {shlex.join(['annotate', str(path), *changed, *given])}"
