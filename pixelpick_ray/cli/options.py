"""Command-line options shared by several commands, and parsers of option values."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pixelpick_ray.config.shipped import experiment_file
from pixelpick_ray.errors import SpecError
from pixelpick_ray.store.paths import checked


def _at_home(path: Path | None) -> Path | None:
    """Expand ``~``, which a shell leaves alone in ``--data=~/images``."""
    return None if path is None else Path(os.path.expanduser(path))


ExperimentFile = Annotated[
    Path,
    typer.Argument(
        metavar="EXPERIMENT",
        help="Experiment file (YAML), or one shipped with the package, such as experiments/quickstart.yaml.",
        show_default=False,
        callback=experiment_file,
    ),
]
Overrides = Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a field; repeatable.")]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        envvar="PIXELPICK_DATA",
        callback=_at_home,
        file_okay=False,
        metavar="DIR",
        help="Folder that contains camvid, voc, weights, ...",
    ),
]


def _no_file(value: str) -> str:
    location = checked(value)
    if "://" not in location and Path(location).is_file():
        raise typer.BadParameter(f"Folder {value!r} is a file.")
    return location


StoreLocation = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="PIXELPICK_STORE",
        callback=_no_file,
        metavar="DIR",
        help="Folder for results, or an address such as s3://bucket/prefix.",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        callback=_at_home,
        file_okay=False,
        metavar="DIR",
        help="Folder for decoded images.",
        show_default="DATA/.cache",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]
FormatName = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="NAME",
        help="jsonl, coco, label-studio, cvat, or queries (queries.pkl).",
        show_default=False,
    ),
]
Ranks = Annotated[int, typer.Option("--ranks", metavar="N", help="DDP processes per trial.")]
CpusPerRank = Annotated[int, typer.Option("--cpus-per-rank", metavar="N", help="CPUs and threads per rank.")]
GpusPerRank = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-rank",
        metavar="N",
        help="GPUs per rank; a fraction puts several one-rank trials on a GPU.",
        show_default="1 if there are GPUs",
    ),
]
KEEP_WEIGHTS = ("needed", "last", "all")
KeepWeightsOption = Annotated[
    str,
    typer.Option(
        "--keep-weights",
        metavar="WHICH",
        help="needed (only until nothing needs them), last (of each chain) or all. If people answer, the last ones "
        "are always kept.",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cuda or cpu.")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="ADDRESS", help="Running Ray cluster.", show_default="start one here"),
]


def parse_size(text: str) -> tuple[int, int]:
    """Parse a size in pixels such as "360x480" to (height, width). Raises SpecError."""
    height, sign, width = text.partition("x")
    if not (sign and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise SpecError(f"--size: {text!r} is not a size; give HEIGHTxWIDTH in pixels, e.g. 360x480")
    return int(height), int(width)


def parse_duration(option: str, text: str) -> float:
    """Parse a duration such as "90", "90s", "30m", "2h" or "1d" to seconds. Raises SpecError."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    number, unit = (text[:-1], units[text[-1]]) if text and text[-1] in units else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise SpecError(f"{option}: {text!r} is not a duration; give e.g. 90s, 30m, 2h or 1d")
    return seconds


def parse_bytes(option: str, text: str) -> int:
    """Parse a size such as "500MB", "20GB" or "1.5TB" to bytes. Raises SpecError."""
    units = {"MB": 10**6, "GB": 10**9, "TB": 10**12}
    number, unit = text[:-2].strip(), units.get(text[-2:].upper())
    try:
        size = int(float(number) * unit) if unit else -1
    except (ValueError, OverflowError):
        size = -1
    if size <= 0:
        raise SpecError(f"{option}: {text!r} is not a size; give e.g. 500MB, 20GB or 1.5TB")
    return size


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> Any:
    """Return the value if it is allowed. Raises SpecError otherwise."""
    if value not in allowed:
        raise SpecError(f"{option}: {value!r} is not allowed; choose one of {', '.join(allowed)}")
    return value
