"""Options of the command line that several commands have: the same word and meaning everywhere."""

from pathlib import Path
from typing import Annotated

import typer

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


def _no_file(value: str) -> str:
    if "://" not in value and Path(value).is_file():
        raise typer.BadParameter(f"Folder {value!r} is a file.")
    return value


StoreLocation = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="PIXELPICK_STORE",
        callback=_no_file,
        metavar="DIR",
        help="Folder of the results, or an address such as s3://bucket/prefix.",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache", file_okay=False, metavar="DIR", help="Folder of decoded images.", show_default="DATA/.cache"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Ranks = Annotated[int, typer.Option("--ranks", help="DDP processes a trial.")]
CpusPerRank = Annotated[int, typer.Option("--cpus-per-rank", help="CPUs, and threads, of a rank.")]
GpusPerRank = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-rank",
        help="GPUs of a rank; a fraction packs one-rank trials.",
        show_default="1 where there are GPUs",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cuda or cpu.")]
Address = Annotated[
    str | None, typer.Option("--address", help="An existing Ray cluster.", show_default="start one here")
]
