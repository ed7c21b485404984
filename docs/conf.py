"""The documentation as a web site: ``make site``. The source folder is the repository's, so that links are plain."""

from typing import Any

project = "PixelPick-Ray"
author = "The PixelPick-Ray developers"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md", "docs/**.md"]
exclude_patterns = [".*", "build", "data", "pixelpick_ray", "report", "results", "runs", "store", "tests"]
html_theme = "furo"
html_title = project
myst_heading_anchors = 3
myst_links_external_new_tab = False

# Pages by section, in the order of the sidebar: here and not in index.md, which stays plain Markdown.
CONTENTS = {
    "Start": ["/README", "tutorial"],
    "How to": [
        f"howto/{name}"
        for name in (
            *("compare-strategies", "label-with-colleagues", "frozen-features", "search", "reproduce-the-paper"),
            *("slurm", "kubernetes", "ray-cluster"),
        )
    ],
    "Reference": [
        *(f"reference/{name}" for name in ("commands", "experiment", "dataset", "reports", "store", "states")),
        *("reference/experiments", "python"),
    ],
    "Explanation": ["architecture", "decisions/index", "deviations", "faults", "/benchmarks/RESULTS"],
    "Changing it": ["extending", "/CONTRIBUTING", "/CHANGELOG"],
}


def _add_contents(app: Any, page: str, source: list[str]) -> None:
    if page == "docs/index":
        source[0] += "".join(
            f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(names) + "\n```\n"
            for caption, names in CONTENTS.items()
        )
    elif page == "docs/decisions/index":
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n0*\n```\n"


def setup(app: Any) -> None:
    app.connect("source-read", _add_contents)
