"""Put the tables of ``results/*/table.md`` between the README's markers: ``make docs``."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKERS = re.compile(r"(<!-- results -->\n).*(<!-- /results -->)", re.DOTALL)


def results() -> str:
    """The first table of every result, under its folder's name."""
    parts = []
    for path in sorted(ROOT.glob("results/*/table.md")):
        folder = path.parent.relative_to(ROOT)
        parts.append(f"**[{folder}]({folder})**\n\n{first_table(path.read_text(encoding='utf-8'))}\n")
    return "\n".join(parts)


def first_table(text: str) -> str:
    """The first Markdown table of a report, without its caption."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    end = next((number for number in range(start, len(lines)) if not lines[number].startswith("|")), len(lines))
    return "\n".join(lines[start:end])


def updated(readme: str) -> str:
    """The README with the results of today."""
    return MARKERS.sub(lambda match: f"{match[1]}{results()}{match[2]}", readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
