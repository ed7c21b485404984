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
