"""The code blocks of a document."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"(?:^`(?P<file>[\w./-]+)`:\n\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


def blocks(name: str) -> list[tuple[str, str, str]]:
    """File (the line before a block names it, else empty), language and text of each block of a document in docs/."""
    text = (DOCS / name).read_text(encoding="utf-8")
    return [(found["file"] or "", found["kind"], found["text"]) for found in BLOCK.finditer(text)]


def write_files(name: str, folder: Path) -> None:
    """Write the blocks that have a file."""
    for file, _, text in blocks(name):
        if file:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")
