"""Commands for people who answer: the annotation page, and files of other annotation tools."""

import socket
import webbrowser
import zlib
from pathlib import Path
from typing import Annotated

import typer

from pixelpick_ray.cli.options import (
    Data,
    ExperimentFile,
    FormatName,
    Overrides,
    StoreLocation,
)
from pixelpick_ray.cli.shared import planned_of
from pixelpick_ray.errors import naming
from pixelpick_ray.store import Store, absolute_path


def annotate(
    experiment: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006
    data: Data = Path("data"),
    store: StoreLocation = "store",
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address to listen on; by default, only this machine can reach the page.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="PORT",
            min=0,
            max=65535,
            help="Port; 0 for any free one.",
            show_default="always the same for an experiment and its store, if free",
        ),
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address without opening a browser.")
    ] = False,
) -> None:
    """Open the page where people label the pixels that an experiment asks about: one key, one label.

    Every answer is stored before the page moves on. Start it during a run or later; stop it at any time.
    """
    from pixelpick_ray.annotate.desk import Desk
    from pixelpick_ray.annotate.guard import EVERYWHERE
    from pixelpick_ray.annotate.server import serve

    planned = planned_of(experiment, overrides, store)

    def ready(address: str, once: str) -> None:
        print(f"{planned.experiment.name}: {address}")
        if host in EVERYWHERE:
            print(f"from other machines: {address.replace('127.0.0.1', socket.gethostname())}")
        print("Ctrl+C stops the page; every answer is stored", flush=True)
        if not no_browser:
            webbrowser.open(once)

    with naming(experiment.name):
        desk = Desk(planned, Store(store), absolute_path(data))
    ports = (port,) if port is not None else (_usual_port(planned.experiment.name, Store(store)), 0)
    serve(desk, host=host, ports=ports, on_ready=ready)


def _usual_port(name: str, store: Store) -> int:
    """Port that stays the same for an experiment, so that a browser finds answers it kept when the server was lost."""
    return 20000 + zlib.crc32(f"{name} {store.address}".encode()) % 10000


def export_answers(
    experiment: ExperimentFile,
    out: Annotated[Path, typer.Option("--out", dir_okay=False, metavar="FILE", help="Output.", show_default=False)],
    format_name: FormatName,
    overrides: Overrides = [],  # noqa: B006
    data: Data = Path("data"),
    store: StoreLocation = "store",
) -> None:
    """Write the questions and the answers so far to a file for another annotation tool."""
    from pixelpick_ray.annotate.transfer import write_answers

    planned = planned_of(experiment, overrides, store)
    with naming(experiment.name):
        lines = write_answers(planned, Store(store), absolute_path(data), format_name, out)
    print("\n".join(lines))


def import_answers(
    experiment: ExperimentFile,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="File with answers.", show_default=False)
    ],
    format_name: FormatName,
    annotator: Annotated[
        str, typer.Option("--annotator", metavar="NAME", help="Annotator for answers that name none.")
    ] = "imported",
    overrides: Overrides = [],  # noqa: B006
    data: Data = Path("data"),
    store: StoreLocation = "store",
) -> None:
    """Import answers from a file of another annotation tool: all of them, or none if any is wrong."""
    from pixelpick_ray.annotate.transfer import read_answers

    planned = planned_of(experiment, overrides, store)
    with naming(experiment.name):
        print(read_answers(planned, Store(store), absolute_path(data), format_name, file, annotator=annotator))
