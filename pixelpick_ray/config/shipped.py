"""What comes with the package: experiments, templates of batch jobs, ``launch.py``; beside it in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = PACKAGE / "shipped" if (PACKAGE / "shipped").is_dir() else PACKAGE.parent


def experiment_file(path: Path) -> Path:
    """The file of an experiment: the one at the path, else the one that comes with the package under this path."""
    shipped = SHIPPED / path
    return shipped if not path.exists() and not path.is_absolute() and shipped.is_file() else path


def is_shipped(path: Path) -> bool:
    """Whether a file came with an installed package, where nothing is to be written beside it."""
    return SHIPPED.name == "shipped" and path.resolve().is_relative_to(SHIPPED)
