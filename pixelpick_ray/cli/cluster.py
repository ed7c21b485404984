"""Commands for clusters: check one, or submit a run to one."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from pixelpick_ray import supervisor
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
    Overrides,
    Ranks,
    StoreLocation,
    one_of,
    parse_duration,
)
from pixelpick_ray.cli.shared import execution_of, planned_of
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.errors import SpecError, naming
from pixelpick_ray.planning import Plan
from pixelpick_ray.store.paths import without_credentials


def submit(
    context: typer.Context,
    experiment: ExperimentFile,
    to: Annotated[str, typer.Option("--to", metavar="KIND", help="slurm, kubernetes or ray.", show_default=False)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be submitted, without submitting it.")
    ] = False,
    nodes: Annotated[int | None, typer.Option("--nodes", metavar="N", min=1, help="Nodes.", show_default="1")] = None,
    cpus_per_node: Annotated[
        int | None, typer.Option("--cpus-per-node", metavar="N", min=1, help="CPUs per node.", show_default="8")
    ] = None,
    gpus_per_node: Annotated[
        int | None,
        typer.Option(
            "--gpus-per-node", metavar="N", min=0, help="GPUs per node.", show_default="1, or 0 with --device cpu"
        ),
    ] = None,
    memory_gib: Annotated[
        int | None,
        typer.Option(
            "--memory-per-node",
            min=1,
            metavar="GIB",
            help="Memory per node.",
            show_default="all of it, or 4 per CPU on Kubernetes",
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            "--time", metavar="DURATION", help="Time limit of the job, e.g. 12h.", show_default="the cluster's"
        ),
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            "--folder",
            metavar="DIR",
            help="Base of relative paths, visible to all nodes; on Kubernetes, the volume's mount point.",
            show_default="the current folder; /shared on Kubernetes",
        ),
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", metavar="NAME", help="Slurm: partition.")] = None,
    account: Annotated[str | None, typer.Option("--account", metavar="NAME", help="Slurm: account.")] = None,
    image: Annotated[str | None, typer.Option("--image", metavar="IMAGE", help="Kubernetes: container image.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", metavar="NAME", help="Kubernetes: namespace.")] = None,
    claim: Annotated[
        str | None, typer.Option("--claim", metavar="NAME", help="Kubernetes: volume claim for data and results.")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", metavar="ADDRESS", help="Ray: address of the job server.")
    ] = None,
) -> None:
    """Write, show and submit a batch job that runs an experiment; also takes the options of `run`.

    EXPERIMENT comes first. The job starts a Ray cluster on Slurm or Kubernetes, or joins the one at --address.
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
        raise SpecError(f"{', '.join(names[name] for name in foreign)}: not available with --to {kind}; leave it out")
    planned, execution, options = _checked_run(experiment, context.args)
    if execution.device == "cpu":
        asked = {"gpus_per_node": 0} | asked
    request = Request(planned.experiment.name, experiment, options, sources=planned.experiment.sources, **asked)
    if kind != "ray":
        request.check(execution)
    job = MAKERS[kind](request)
    print(job.shown())
    if not dry_run:
        print(job.submit())


def _checked_run(experiment: Path, options: list[str]) -> tuple[Plan, Execution, tuple[str, ...]]:
    """Plan and execution of `run EXPERIMENT OPTIONS`, checked as far as possible without the cluster, and all options.

    Options taken from environment variables are made explicit, because the job may not have these variables.
    """
    from pixelpick_ray.cli import app  # circular import: it registers this module's commands

    command = get_command(app).commands["run"]  # type: ignore[attr-defined]
    given_here = command.make_context("run", [str(experiment), *options])
    values = given_here.params
    for parameter in command.params:
        source = given_here.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "ENVIRONMENT":
            options = [*options, parameter.opts[0], str(values[parameter.name])]
    if without_credentials(values["store"]) != values["store"]:
        raise SpecError(
            f"--store {without_credentials(values['store'])}: contains credentials, which others could read in the "
            "job's files and commands; remove them, and pass them through the job's environment"
        )
    if values["local"] or values["address"]:
        raise SpecError(
            "--local, --address: not allowed for a batch job, which always runs on its own Ray cluster; remove them"
        )
    for option in ("time_limit", "rank_timeout"):
        if values[option]:
            parse_duration(f"--{option.replace('_', '-')}", values[option])
    one_of("--keep-weights", values["keep_weights"], KEEP_WEIGHTS)
    planned = planned_of(experiment, values["overrides"], values["store"])
    given = {name: values[name] for name in ("ranks", "cpus_per_rank", "gpus_per_rank", "max_concurrent", "wait")}
    places = Path(values["data"]), values["store"], Path(values["cache"]) if values["cache"] else None
    execution = execution_of(planned, *places, values["device"], **given)
    with naming(experiment.name):
        check_labels(planned.experiment, planned.trials, execution.data_path)
    return planned, execution, tuple(options)


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
    """Check every node of a cluster before a long run: each line is ok or says what to do.

    Exit status 1 if any is not ok.
    """
    planned = planned_of(experiment, overrides, store)
    rank = {"ranks": ranks, "cpus_per_rank": cpus_per_rank, "gpus_per_rank": gpus_per_rank}
    execution = execution_of(planned, data, store, cache, device, address=address, **rank)
    warnings = data_warnings(planned.experiment, planned.trials, execution)
    for line in warnings if not as_json else ():
        print(f"warning: {line}")
    from pixelpick_ray.runner.doctor import diagnose
    from pixelpick_ray.runner.survey import survey

    lines = diagnose(survey(planned, execution, lambda what: print(f"{what} ...", file=sys.stderr, flush=True)))
    well = all(line.ok for line in lines)
    if as_json:
        print(json.dumps({"ok": well, "lines": [asdict(line) for line in lines], "warnings": warnings}))
    else:
        print("\n".join(map(str, lines)))
    sys.exit(supervisor.OK if well else supervisor.FAILED)
