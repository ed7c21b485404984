"""Command line: parse, make one call, print. Only commands that compute import torch and ray."""

import sys
from typing import Annotated

import typer

from pixelpick_ray import __version__, supervisor
from pixelpick_ray.cli import cluster, data, people, reading, running
from pixelpick_ray.errors import DataError, PixelPickError, SpecError
from pixelpick_ray.runner.byproducts import print_safely

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Active learning for semantic segmentation from a few labelled pixels per image, on Ray Tune.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"pixelpick-ray {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Active learning for semantic segmentation from a few labelled pixels per image, on Ray Tune."""


app.command()(data.init)
app.command()(data.check)
app.command()(running.plan)
app.command()(running.run)
app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(cluster.submit)
app.command()(cluster.doctor)
app.command()(running.status)
app.command()(people.annotate)
app.command("export")(people.export_answers)
app.command("import")(people.import_answers)
app.command()(reading.report)
app.command()(reading.evaluate)


def main() -> None:
    """Run the command line; errors that users can act on print a message and exit with status 2 or 1."""
    print_safely()
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except (SpecError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(supervisor.WRONG)
    except PixelPickError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(supervisor.FAILED)
