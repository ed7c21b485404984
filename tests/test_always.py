"""What the default run promises to check, whatever else moves to `slow`: marked at the tests, listed here."""

import ast
import functools
from pathlib import Path

TESTS = Path(__file__).resolve().parent
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


def marks_of(node: ast.expr) -> list[tuple[str, str]]:
    """Name and first argument of each mark in an expression."""
    found = []
    for one in ast.walk(node):
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Attribute) and one.value.attr == "mark":
            found.append((one.attr, ""))
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute) and one.args:
            argument = one.args[0]
            if isinstance(argument, ast.Constant):
                found.append((one.func.attr, str(argument.value)))
    return found


@functools.cache
def marked_tests() -> dict[str, list[tuple[str, str]]]:
    """The marks of every test, those of its module among them."""
    found = {}
    for path in TESTS.rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        common = [
            mark
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
            for mark in marks_of(node.value)
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                own = [mark for decorator in node.decorator_list for mark in marks_of(decorator)]
                found[f"{path.relative_to(TESTS)}::{node.name}"] = common + own
    return found


def test_the_default_run_keeps_its_promises() -> None:
    kept: dict[str, list[str]] = {}
    for name, marks in marked_tests().items():
        for mark, topic in marks:
            if mark == "always" and topic:
                assert not {"slow", "gpu"} & {other for other, _ in marks}, name
                kept.setdefault(topic, []).append(name)
    assert kept.keys() == ALWAYS


def test_every_slow_test_is_listed_with_its_reason() -> None:
    """Nothing is checked nowhere: what the default run leaves out says why, and what it checks of that itself."""
    listed = (TESTS / "slow.md").read_text(encoding="utf-8")
    slow = [name for name, marks in marked_tests().items() if any(mark == "slow" for mark, _ in marks)]
    slow.append("test_experiments.py::test_every_experiment_runs")  # most of its parameters
    assert [name for name in slow if f"`{name}`" not in listed] == []
    assert len(slow) == listed.count("| `")
