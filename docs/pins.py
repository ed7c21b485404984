"""Write requirements.txt and requirements-dev.txt: the installed versions of what pyproject.toml lists with ranges.

``make pins``, after `pip install --upgrade` of what is to move, and before the tests.
"""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADS = {
    "requirements.txt": "# Tested together on Python 3.11 and 3.12; `make pins` writes it from pyproject.toml.",
    "requirements-dev.txt": "# What tests and checks need; `make pins` writes this too.\n-r requirements.txt",
}


def listed() -> dict[str, list[str]]:
    """The requirements of pyproject.toml with their ranges, by the file that pins them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    development = project["optional-dependencies"]["dev"]
    return {"requirements.txt": project["dependencies"], "requirements-dev.txt": development}


def name_of(requirement: str) -> str:
    """The name of a requirement with its extras: "ray[tune]" of "ray[tune]>=2.60"."""
    return re.split(r"[<>=!~; ]", requirement, maxsplit=1)[0]


def pinned(requirements: list[str]) -> list[str]:
    """The installed version of each; local build tags are left out."""
    names = map(name_of, requirements)
    return [f"{name}=={version(name.partition('[')[0]).partition('+')[0]}" for name in names]


if __name__ == "__main__":
    for file, requirements in listed().items():
        (ROOT / file).write_text("\n".join([HEADS[file], *pinned(requirements)]) + "\n", encoding="utf-8")
