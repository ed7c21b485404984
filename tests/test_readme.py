"""Documentation that can fail: files, commands, options, examples, links and results that the documents name."""

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command

from pixelpick_ray.cli import app
from pixelpick_ray.config.experiment import load_experiment, parse_experiment
from pixelpick_ray.config.yaml_text import read_yaml, write_yaml
from pixelpick_ray.data.folder_description import read_folder_description
from pixelpick_ray.planning import make_plan
from pixelpick_ray.report.costs import read_cost_model
from pixelpick_ray.report.files import write_report
from pixelpick_ray.store import Store
from tests.support.documents import BLOCK, DOCS, DOCUMENTS, ROOT, anchors, links, runnable, text_of, without_code
from tests.support.experiments import SHIPPED_EXPERIMENTS

pytestmark = pytest.mark.long

README = text_of("README.md")
COSTS = text_of("docs/reference/experiments.md")
MADE_BY_THE_READER = {"my-photos.yaml", "my-study.yaml"}
OTHER_PROGRAMS = {"docker", "export", "ray", "tensorboard"}
OF_OTHERS = {"--version", "--no-deps"}
RUN_ELSEWHERE = {"docs/extending.md", "docs/python.md"}  # tests/test_extending.py, tests/test_python_interface.py


def script(name: str) -> ModuleType:
    """A script of docs/, which imports others that lie beside it."""
    sys.path[:0] = [str(DOCS)]
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS))


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1200
    prose = re.sub(r"^\|.*$|^!\[.*$|^#.*$", "\n", without_code(BLOCK.sub("\n\n", README)), flags=re.M)
    sentences = re.split(r"(?<=[.!?:])\s+|\n\s*\n|\n- ", re.sub(r"\]\([^)]*\)", "]", prose))
    assert [sentence for sentence in sentences if len(sentence.split()) > 35] == []
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", README)
    assert len(pictures) == 3
    assert all((ROOT / picture).stat().st_size < 300_000 for picture in pictures)
    doors = [found["text"].splitlines() for found in BLOCK.finditer(README) if found["kind"] == "sh"]
    assert len(doors) >= 4
    assert all(len(commands) <= 4 for commands in doors)


def test_its_results_are_those_of_the_results_folder() -> None:
    update = script("update_readme")
    assert update.between(README, "results", update.results()) == README, "run `make docs`"
    assert "±" in README.split("<!-- results -->")[1]


def test_every_experiment_can_be_planned_and_costs_what_is_said_and_no_other_is_listed() -> None:
    table = COSTS.split("<!-- experiments -->")[1].split("<!-- /experiments -->")[0]
    rows = dict(re.findall(r"^\| `(experiments/[^`]+\.yaml)`(.*)", table, flags=re.MULTILINE))
    assert rows.keys() == {path.relative_to(ROOT).as_posix() for path in SHIPPED_EXPERIMENTS}
    for path, row in rows.items():
        plan = make_plan(load_experiment(ROOT / path))
        assert f"| {plan.num_fits} ({plan.num_fits_unshared} one by one) |" in row, path


@pytest.mark.slow
def test_the_costs_are_those_of_today() -> None:
    update = script("update_readme")
    assert update.between(COSTS, "experiments", update.experiments()) == COSTS, "run `make docs`"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document: str) -> None:
    for link in links(text_of(document)):
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_in_the_index_of_the_site() -> None:
    listed = {f"docs/{name}".removeprefix("docs//") + ".md" for one in script("conf").CONTENTS.values() for name in one}
    decisions = {document for document in DOCUMENTS if document.startswith("docs/decisions/0")}
    assert {f"docs/decisions/{link}" for link in links(text_of("docs/decisions/index.md"))} == decisions
    assert set(DOCUMENTS) == listed | decisions | {"docs/index.md"}


def test_generated_pages_are_those_of_today() -> None:
    for path, page in script("update_reference").pages().items():
        assert path.read_text(encoding="utf-8") == page, f"{path.name}: run `make docs`"


def test_every_block_is_of_a_language_that_is_checked() -> None:
    checked = {"sh", "yaml", "python", "text", "bibtex"}
    blocks = ((document, found["kind"]) for document in DOCUMENTS for found in BLOCK.finditer(text_of(document)))
    unknown = {(document, kind) for document, kind in blocks if kind not in checked}
    # The tree of the package, which tests/test_project.py checks.
    assert {one for one in unknown if one[0] not in RUN_ELSEWHERE} == {("docs/architecture.md", "")}


def test_every_command_option_and_target_exists() -> None:
    known: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), flags=re.MULTILINE))
    seen = set()
    for document, text in runnable("sh"):
        for words in filter(None, (shlex.split(line, comments=True) for line in text.splitlines())):
            where = f"{document}: {' '.join(words)}"
            if words[:2] == ["python", "launch.py"]:
                check_command(known, words[2:], where)
                seen.add(words[2])
            elif words[0] == "make":
                assert set(words[1:]) <= targets, where
            else:
                assert words[0] in OTHER_PROGRAMS or words[:3] == ["python", "-m", "pip"], where
    assert seen == known.keys()
    options = {name for command in known.values() for parameter in command.params for name in parameter.opts}
    for document in {*DOCUMENTS} - {"CHANGELOG.md"}:  # which names what there was
        text = text_of(document)
        assert set(re.findall(r"`(--[a-z][a-z-]+)", text)) <= options | OF_OTHERS, document
        assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets, document


def check_command(known: dict[str, Any], words: list[str], where: str) -> None:
    """AssertionError for a command, an option or an argument that there is not, or one that is missing."""
    name, *rest = words
    submits = name == "submit"  # which passes on options of `run`
    if submits:
        options = {option for one in ("submit", "run") for parameter in known[one].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, where
    command = known[name]
    given, arguments, _ = command.make_parser(command.make_context(name, [], resilient_parsing=True)).parse_args(rest)
    required = {parameter.name for parameter in command.params if parameter.required}
    assert {name for name in required if not given.get(name)} == set(), where
    assert submits or arguments == [], where
    for word in rest:
        if word.endswith(".yaml") and "NAME" not in word and word not in MADE_BY_THE_READER:
            assert (ROOT / word).is_file(), where


def test_every_yaml_block_is_valid(tmp_path: Path) -> None:
    kinds = {kind_of(text, document, tmp_path) for document, text in runnable("yaml")}
    assert kinds == {"experiment", "dataset", "costs", "part"}


def kind_of(text: str, document: str, folder: Path) -> str:
    """What a block is, by its keys; SpecError or DataError for a wrong one."""
    tree = read_yaml(text, document)
    file = folder / "block.yaml"
    file.write_text(text, encoding="utf-8")
    if document in RUN_ELSEWHERE or {"name", "grid"} <= tree.keys():
        if document not in RUN_ELSEWHERE:
            make_plan(parse_experiment(text, where=document, folder=ROOT / "experiments" / "studies"))
        return "experiment"
    if "classes" in tree:
        if "train" in tree["splits"] and len(tree["splits"]) == 1:
            tree["splits"] |= {"val": tree["splits"]["train"]}
        read_folder_description(file)
        return "dataset"
    if "clicks_per_pixel" in tree:
        read_cost_model(file)
        return "costs"
    # A part of an experiment: with what it leaves out, from one that has it.
    base = "annotate-quickstart" if "annotate" in tree else "quickstart-training"
    left_out = {"dataset": {"name": "scenes"}} | ({"acquire": {}} if "search" in tree else {})
    whole = read_yaml(text_of(f"experiments/{base}.yaml"), base) | left_out | tree
    if "split" in tree.get("search", {}):
        whole["evaluate"] = {"splits": {"test": {}, "val": {}}, "report": "test"}
    if "keys" in tree.get("annotate", {}):
        whole["dataset"] = {"name": "camvid", "size": [24, 32]}
    make_plan(parse_experiment(write_yaml(whole), where=document))
    return "part"


def test_python_blocks_parse_and_import_what_there_is() -> None:
    for document, text in runnable("python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pixelpick_ray"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names), document


def test_the_files_of_a_report_are_those_of_its_page(tmp_path: Path) -> None:
    section = text_of("docs/reference/reports.md").split("## ")[0]
    summary = write_report(Store(tmp_path / "store"), [load_experiment(SHIPPED_EXPERIMENTS[0])], tmp_path / "out")
    written = {path.name for path in summary.files}
    named = set(re.findall(r"`([a-z_]+\.[a-z]+)`", section))
    assert written <= named
    assert named - written <= {"table_transposed.tex", "table_classes.tex"}  # only with several lines, and results
