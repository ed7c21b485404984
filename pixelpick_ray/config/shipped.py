"""What comes with the package: experiments, templates of batch jobs, ``launch.py``; beside it in a checkout."""

import hashlib
import os
import subprocess
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = PACKAGE / "shipped" if (PACKAGE / "shipped").is_dir() else PACKAGE.parent
STAMP = "commit.txt"  # in a copy of the package: the commit that it was made from


def experiment_file(path: Path) -> Path:
    """The file of an experiment: the one at the path, else the one that comes with the package under this path."""
    shipped = SHIPPED / path
    return shipped if not path.exists() and not path.is_absolute() and shipped.is_file() else path


def is_shipped(path: Path) -> bool:
    """Whether a file came with an installed package, where nothing is to be written beside it."""
    return SHIPPED.name == "shipped" and path.resolve().is_relative_to(SHIPPED)


@lru_cache(maxsize=1)
def code_commit() -> str:
    """Commit of this package's code, with "+" when files were changed; "unknown" outside a checkout of it.

    A copy that a batch job has says which commit it was made from.
    """
    folder = PACKAGE
    try:
        return (folder / STAMP).read_text(encoding="utf-8").strip()  # of the copy that a batch job has
    except OSError:
        pass
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")  # else of a project that an environment lies in
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", str(folder))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def code_digest() -> str:
    """What the package's files say: a commit does not tell of changes that are not in it."""
    content = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        content.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes())
    return content.hexdigest()[:8]


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, env=os.environ
    )
    return done.stdout.strip()
