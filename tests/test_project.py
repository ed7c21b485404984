"""The habits of the project: one list of dependencies, its licence, and what is used of others behind their backs."""

import ast
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


def test_private_names_of_ray_stand_in_one_module_and_are_there() -> None:
    """A new Ray may take them away, so the range in pyproject.toml has an upper bound."""
    raylet = {"AuthenticationTokenLoader", "Config", "GcsClient"}
    users = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "pixelpick_ray").rglob("*.py")
        if re.search(r"\bray\._|from ray\.\S*\._| ray_constants", path.read_text(encoding="utf-8"))
    }
    assert users == {"pixelpick_ray/runner/cluster.py"}
    text = (ROOT / "pixelpick_ray" / "runner" / "cluster.py").read_text(encoding="utf-8")
    assert set(re.findall(r"ray\._raylet\.(\w+)", text)) == raylet
    imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.module]
    private = {name.name for node in imported if "_private" in str(node.module) for name in node.names}
    assert private == {"ray_constants", "services", "state", "utils", "worker"}
    import ray
    from ray._private import ray_constants, utils, worker
    from ray._private.state import state

    assert isinstance(ray_constants.ENABLE_RAY_CLUSTER, bool)
    assert all(map(callable, (utils.set_sigterm_handler, worker.print_to_stdstream, state.get_draining_nodes)))
    assert hasattr(worker, "_global_node")
    assert all(hasattr(ray._raylet, name) for name in raylet)
    (bound,) = [one for one in pins.listed()["requirements.txt"] if one.startswith("ray")]
    assert bound == "ray[tune]>=2.60,<2.61"


def test_version_licence_citation_and_changelog_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == pixelpick_ray.__version__
    assert citation["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()[0]
    newest = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest is not None
    assert newest.groups() == (citation["version"], str(citation["date-released"]))


def test_the_tests_end_as_python_does() -> None:
    """So that an abort of the interpreter is seen."""
    for path in (ROOT / "tests").rglob("conftest.py"):
        assert "_exit(" not in path.read_text(encoding="utf-8"), path


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_files_and_names_that_the_architecture_names_are_there() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "pixelpick_ray").rglob("*.py"))
    for word in set(re.findall(r"`([\w./]+)(?:\(.*?\))?`", ARCHITECTURE)):
        if re.search(r"\.(py|json|md)$", word):
            assert any((ROOT / folder / word).is_file() for folder in ("", "pixelpick_ray")), word
        elif re.fullmatch(r"(?:[\w/]+\.)?_?[A-Z]\w+|\w+\.[a-z_]+", word):
            name = word.rpartition(".")[2]
            assert re.search(rf"(?:class|def) {name}\b|^\s*(?:self\.)?{name}\b.* = ", code, re.M), word


def test_every_part_of_the_package_is_in_the_architecture() -> None:
    parts = {
        path.name for path in (ROOT / "pixelpick_ray").iterdir() if path.name not in ("__init__.py", "__pycache__")
    }
    listed = ARCHITECTURE.partition("## Where is what")[2].partition("## ")[0]
    assert [part for part in parts - {"errors.py"} if part not in listed] == []
