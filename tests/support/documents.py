"""The documents of the project, their code blocks, headings and links."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "benchmarks" / "RESULTS.md")
)
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+) -->\n)?(?:^`(?P<file>[\w./-]+)`:\n\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)


def text_of(document: str) -> str:
    """The text of a document, by its path in the repository."""
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, str, str]]:
    """File (the line before a block names it, else empty), language and text of each block of a document in docs/."""
    return [(found["file"] or "", found["kind"], found["text"]) for found in BLOCK.finditer(text_of(f"docs/{name}"))]


def runnable(kind: str) -> Iterator[tuple[str, str]]:
    """Document and text of each block of a language that no comment exempts, with its reason."""
    for document in DOCUMENTS:
        for found in BLOCK.finditer(text_of(document)):
            if found["kind"] == kind and not found["reason"]:
                yield document, found["text"]


def without_code(text: str) -> str:
    """The text of a document without code, in blocks or in lines, and without comments."""
    return re.sub(r"`[^`\n]+`|<!--.*?-->", "", BLOCK.sub("", text), flags=re.S)


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub and the site make them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", BLOCK.sub("", text), flags=re.M):
        slug = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def links(text: str) -> list[str]:
    """The targets of a document's links and pictures that lead to no other site."""
    return re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", without_code(text))


def write_files(name: str, folder: Path) -> None:
    for file, _, text in blocks(name):
        if file:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")
