"""Files shipped with the package (next to it in a checkout): experiments, batch job templates, ``launch.py``."""

import hashlib
import os
import subprocess
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = PACKAGE / "shipped" if (PACKAGE / "shipped").is_dir() else PACKAGE.parent
STAMP = "commit.txt"  # in a batch job's copy of the package: the commit it was made from


def experiment_file(path: Path) -> Path:
    """The experiment file at the path or, if there is none, the shipped one of this relative path."""
    shipped = SHIPPED / path
    return shipped if not path.exists() and not path.is_absolute() and shipped.is_file() else path


def is_shipped(path: Path) -> bool:
    """Whether a file belongs to an installed package, so that nothing should be written next to it."""
    return SHIPPED.name == "shipped" and path.resolve().is_relative_to(SHIPPED)


@lru_cache(maxsize=1)
def code_commit() -> str:
    """Commit of this package's code, with "+" for uncommitted changes; "unknown" outside a checkout.

    A batch job's copy of the package records the commit it was made from.
    """
    folder = PACKAGE
    try:
        return (folder / STAMP).read_text(encoding="utf-8").strip()  # in a batch job's copy
    except OSError:
        pass
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")  # the repository may be one around an environment
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", str(folder))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def code_digest() -> str:
    """First 8 hex digits of the SHA-256 of the package's source files, uncommitted changes included."""
    content = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        content.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes())
    return content.hexdigest()[:8]


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, env=os.environ
    )
    return done.stdout.strip()
