"""The habits of the project: one list of dependencies, its licence, what is private in Ray, what the tests promise."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import pixelpick_ray

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("pins", ROOT / "docs" / "pins.py")
assert SPEC is not None
assert SPEC.loader is not None
pins = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pins)


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_pins_are_of_what_pyproject_lists_and_in_its_ranges(file: str) -> None:
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith(("#", "-r"))]
    pinned = dict(line.split("==") for line in lines)
    listed = {pins.name_of(one): one.removeprefix(pins.name_of(one)) for one in pins.listed()[file]}
    assert pinned.keys() == listed.keys()
    for name, ranges in listed.items():
        for bound in filter(None, ranges.split(",")):
            relation, version = re.fullmatch(r"(>=|<)([0-9.]+)", bound.strip()).groups()  # type: ignore[union-attr]
            mine, theirs = (tuple(map(int, re.findall(r"\d+", one))) for one in (pinned[name], version))
            assert mine >= theirs if relation == ">=" else mine < theirs, f"{name} {pinned[name]} {bound}"


def test_private_names_of_ray_stand_in_one_module() -> None:
    """A new Ray may take them away, so the range in pyproject.toml has an upper bound."""
    private = re.compile(r"\bray\._|from ray\.\S*\._| ray_constants")
    paths = [path for path in (ROOT / "pixelpick_ray").rglob("*.py") if private.search(path.read_text("utf-8"))]
    assert paths == [ROOT / "pixelpick_ray" / "runner" / "cluster.py"]
    source = paths[0].read_text("utf-8")
    raylet = {"AuthenticationTokenLoader", "Config", "GcsClient"}
    assert set(re.findall(r"ray\._raylet\.(\w+)", source)) == raylet
    imported = re.findall(r"^from ray\._private(?:\.\w+)? import (.*)$", source, re.M)
    assert imported == ["ray_constants, services, utils, worker", "state"]


def test_version_licence_citation_and_changelog_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (pixelpick_ray.__version__, "Apache-2.0")
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()[0]
    newest = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest is not None
    assert newest.groups() == (citation["version"], str(citation["date-released"]))


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_architecture_names_every_part_of_the_package_and_only_what_is_there() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "pixelpick_ray").rglob("*.py"))
    for word in set(re.findall(r"`([\w./]+)(?:\(.*?\))?`", ARCHITECTURE)):
        if re.search(r"\.(py|json|md)$", word):
            assert any((ROOT / folder / word).is_file() for folder in ("", "pixelpick_ray")), word
        elif re.fullmatch(r"(?:[\w/]+\.)?_?[A-Z]\w+|\w+\.[a-z_]+", word):
            name = word.rpartition(".")[2]
            assert re.search(rf"(?:class|def) {name}\b|^\s*(?:self\.)?{name}\b.* = ", code, re.M), word
    parts = {path.name for path in (ROOT / "pixelpick_ray").iterdir()} - {"__init__.py", "__pycache__", "errors.py"}
    listed = ARCHITECTURE.partition("## Where is what")[2].partition("## ")[0]
    assert [part for part in parts if part not in listed] == []


# What the default run promises to check, whatever else moves to `slow`: marked at the tests, listed here.
ALWAYS = {
    "one rank and two",
    "two nodes",
    "a search with a killed trial",
    "Slurm with requeue",
    "a Ray job",
    "kill and resume",
    "TensorBoard",
    "the page for people in a browser",
    "a table of mean and standard deviation by hand",
}


@functools.cache
def marked_tests() -> dict[str, str]:
    """The code of the decorators of every test, with the marks of its module."""
    found = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        common = [ast.unparse(node) for node in tree.body if ast.unparse(node).startswith("pytestmark = ")]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
                found[f"{path.relative_to(ROOT / 'tests')}::{node.name}"] = " ".join(common + decorators)
    return found


def test_the_default_run_keeps_its_promises() -> None:
    kept = set()
    for name, marks in marked_tests().items():
        topics = re.findall(r"mark\.always\('(.+?)'\)", marks)
        assert not topics or not re.search(r"mark\.(slow|gpu)\b", marks), name
        kept |= set(topics)
    assert kept == ALWAYS


def test_every_slow_test_is_listed_with_its_reason() -> None:
    """Nothing is checked nowhere: what the default run leaves out says why, and what it checks of that itself."""
    listed = (ROOT / "tests" / "slow.md").read_text(encoding="utf-8")
    slow = [name for name, marks in marked_tests().items() if "mark.slow" in marks]
    slow.append("test_experiments.py::test_every_experiment_runs")  # most of its parameters
    assert [name for name in slow if f"`{name}`" not in listed] == []
    assert len(slow) == listed.count("| `")
