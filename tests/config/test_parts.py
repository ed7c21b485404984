"""External parts: what identifies their code, what is refused, and that the code runs as it was read."""

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pixelpick_ray.config import parts
from pixelpick_ray.config.experiment import Experiment, load_experiment
from pixelpick_ray.errors import SpecError
from pixelpick_ray.planning import make_plan
from tests.support.experiments import experiment_text

SCORE = "def score(logits):\n    return logits.sum(1)\n"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins without parts, and leaves no package."""
    for name in ("_codes", "_registered", "_names", "_loaded"):
        monkeypatch.setattr(parts, name, {})
    yield
    for cached in (parts._entry_points, parts._identity):
        cached.cache_clear()


def write(folder: Path, files: dict[str, str] | None = None, **more: str) -> Path:
    """Write sources, by path without suffix."""
    for name, text in {**(files or {}), **more}.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def named(folder: Path, name: str = "file:mine.py:score", kind: str = "strategy") -> str:
    return parts.resolved(kind, name, folder)


def experiment(folder: Path, *strategies: str) -> Experiment:
    grid = f"[{{acquire.strategy: {list(strategies)}, seed: [0], budget: [10, 20]}}]"
    (folder / "own.yaml").write_text(experiment_text("own", grid=grid))
    return load_experiment(folder / "own.yaml")


def test_a_name_says_what_code_it_is_wherever_the_file_lies(tmp_path: Path) -> None:
    one = named(write(tmp_path / "one", mine=SCORE))
    assert one == named(write(tmp_path / "two", mine=SCORE))
    assert one.startswith("file:mine.py:score@")
    assert one != named(write(tmp_path / "three", mine=SCORE.replace("sum", "mean")))
    assert named(tmp_path, "file:one/mine.py:score") == one
    assert parts.resolved("strategy", one) == one
    assert parts.resolved("strategy", "margin") == "margin"


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("import helper", "helper"),
        ("from helper import SIGN", "helper"),
        ("from package import inner", "package/inner"),
        ("import package.inner", "package/__init__"),
        ("def score(logits):\n    import helper", "helper"),
        ("import between", "helper"),  # which `between` imports
        ("from package.inner import *", "package/deeper"),
    ],
)
def test_every_local_module_that_is_imported_is_part_of_the_code(text: str, changed: str, tmp_path: Path) -> None:
    files = {"mine": f"{text}\n{SCORE}", "helper": "SIGN = 1\n", "between": "import helper\n", "unused": "A = 1\n"}
    files |= {"package/__init__": "", "package/inner": "from . import deeper\n", "package/deeper": "B = 1\n"}
    before = named(write(tmp_path, files))
    assert named(write(tmp_path, files | {"unused": "A = 2\n"})) == before
    assert named(write(tmp_path, files | {changed: f"{files[changed]}C = 3\n"})) != before


def test_installed_modules_are_none_of_it(tmp_path: Path) -> None:
    write(tmp_path, mine=f"import torch, json\nimport pixelpick_ray\n{SCORE}", json="", pixelpick_ray="")
    assert [path for path, _ in parts.read_code(tmp_path / "mine.py").files] == ["mine.py"]


def test_the_code_runs_as_it_was_read_whatever_becomes_of_the_files(tmp_path: Path) -> None:
    helper = "SIGN = 1\n"
    write(tmp_path, mine="import helper\nimport package.inner\nscore = lambda x: x * helper.SIGN * package.inner.TWO\n")
    write(tmp_path, {"helper": helper, "package/__init__": "", "package/inner": "TWO = 2\n"})
    one = named(tmp_path)
    write(tmp_path, helper="SIGN = -1\n")
    two = named(tmp_path)
    (tmp_path / "mine.py").unlink()
    assert [parts.load("strategy", name)(3) for name in (one, two, one)] == [6, -6, 6]
    assert "helper" not in sys.modules
    assert parts.load("strategy", one).__module__.startswith("pixelpick_code_")


def test_an_experiment_keeps_the_code_that_was_read_when_it_was_loaded(tmp_path: Path) -> None:
    write(tmp_path, mine=SCORE)
    first = experiment(tmp_path, "file:mine.py:score")
    write(tmp_path, mine=SCORE.replace("sum", "mean"))
    second = experiment(tmp_path, "file:mine.py:score")
    assert first.identity() == second.identity()
    one, other = first.trials()[0], second.trials()[0]
    assert one.acquire.strategy != other.acquire.strategy
    assert one.chain_id != other.chain_id
    assert one.as_named() == other.as_named()


def test_code_travels_with_an_experiment(tmp_path: Path) -> None:
    """To a process that has neither the files nor the experiment's folder."""
    write(tmp_path, mine=f"import helper\n{SCORE}", helper="SIGN = 1\n")
    spec = experiment(tmp_path, "margin", "file:mine.py:score")
    (name,) = {trial.acquire.strategy for trial in spec.trials()} - {"margin"}
    content = pickle.dumps(spec)
    for path in tmp_path.iterdir():
        path.unlink()
    script = (
        "import pickle, sys, torch\nfrom pixelpick_ray.config import parts\n"
        "spec = pickle.loads(sys.stdin.buffer.read())\n"
        f"assert {name!r} in [trial.acquire.strategy for trial in spec.trials()]\n"
        f"print(parts.load('strategy', {name!r})(torch.ones(1, 3, 1, 1)).item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=content, capture_output=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.decode().strip() == "3.0", done.stderr.decode()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def score(:\n", r"mine\.py, line 1: is not valid Python"),
        ("from . import helper\n", "line 1: a relative import leaves the folder"),
        ("import importlib\nimportlib.import_module('helper')\n", "line 2: imports a module dynamically"),
        ("helper = __import__('helper')\n", "line 1: imports a module dynamically"),
        ("import helper\n", r"helper\.py.*imported by .*mine\.py"),
        ("a" * (2**20 + 1), r"bytes, but a source is limited to"),
    ],
    ids=lambda text: text[:20],
)
def test_code_that_cannot_be_identified_is_refused(text: str, told: str, tmp_path: Path) -> None:
    write(tmp_path, mine=text, helper="1 +\n")
    with pytest.raises(SpecError, match=told):
        named(tmp_path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("file:other.py:score", r"other\.py: cannot be read"),
        ("file:mine.py:scores", r"mine\.py has no top-level 'scores'; it defines score"),
        ("file:mine.py", r"should be file:PATH\.py:NAME"),
    ],
)
def test_a_name_that_leads_to_no_code_is_refused(name: str, told: str, tmp_path: Path) -> None:
    write(tmp_path, mine=SCORE)
    with pytest.raises(SpecError, match=rf"acquire\.strategy: .*{told}"):
        experiment(tmp_path, name).trials()


def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    """An error inside with file and line, a kind that no file gives, and code that did not come along."""
    name = named(write(tmp_path, mine="import helper\nscore = 1\n", helper="\n\n1 / 0\n"))
    with pytest.raises(SpecError, match=r"line 3: cannot be imported \(ZeroDivisionError"):
        parts.load("strategy", name)
    with pytest.raises(SpecError, match="file: is not supported for a dataset"):
        named(tmp_path, kind="dataset")
    with pytest.raises(SpecError, match="its source is not available in this process"):
        parts.load("strategy", "file:mine.py:score@0123456789abcdef")
    with pytest.raises(SpecError, match=r"no package installed in .* provides it"):
        parts.load("strategy", "far@away-1.0")


def module_of(folder: Path, text: str) -> dict[str, object]:
    """What a program with this text has defined, as Python itself would have run it."""
    path = folder / "program.py"
    path.write_text(text)
    space: dict[str, object] = {"__name__": "__main__", "__file__": str(path)}
    exec(compile(text, str(path), "exec"), space)
    return space


def test_a_function_of_a_program_can_be_registered(tmp_path: Path) -> None:
    score = module_of(tmp_path, SCORE)["score"]
    parts.register("strategy", "margin", score)
    told = r"strategy 'margin': both a built-in strategy and margin@[0-9a-f]{16} have this name; rename yours"
    with pytest.raises(SpecError, match=told):
        make_plan(experiment(tmp_path, "margin"))
    parts.register("strategy", "mine", score)
    (name,) = {trial.acquire.strategy for trial in experiment(tmp_path, "mine").trials()}
    assert name.startswith("mine@")
    assert parts.load("strategy", name) is score
    assert "mine" in parts.names("strategy")
    shipped = pickle.loads(pickle.dumps(parts.shipment()))
    for known in (parts._codes, parts._registered, parts._names, parts._loaded):
        known.clear()
    parts.install(shipped)
    assert parts.load("strategy", name).__name__ == "score"


NOT_THERE = "is not a function or class at the top level|does not define"


@pytest.mark.parametrize(
    ("kind", "name", "value", "told"),
    [
        ("strategy", "mine", lambda logits: logits, NOT_THERE),
        ("strategy", "mine", len, NOT_THERE),
        ("strategy", "mine", type("Made", (), {}), NOT_THERE),
        ("decoder", "mine", write, "unknown kind 'decoder'; known: strategy, head"),
        ("strategy", "a@b", write, "is not a valid name"),
    ],
    ids=["lambda", "built-in", "made", "kind", "name"],
)
def test_what_cannot_be_registered_is_told(kind: str, name: str, value: object, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        parts.register(kind, name, value)


def installed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, text: str = SCORE, version: str = "1.0", is_editable: bool = False
) -> str:
    """The resolved name of the entry point `far` in a process that finds this package."""
    information = folder / "faraway.dist-info"
    information.mkdir(parents=True, exist_ok=True)
    (folder / "faraway.py").write_text(text)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: faraway\nVersion: {version}\n")
    (information / "entry_points.txt").write_text("[pixelpick_ray.strategies]\nfar = faraway:score\n")
    url = {"url": folder.as_uri(), "dir_info": {"editable": is_editable}}
    (information / "direct_url.json").write_text(json.dumps(url))
    monkeypatch.syspath_prepend(folder)
    for cached in (parts._entry_points, parts._identity):
        cached.cache_clear()
    monkeypatch.delitem(sys.modules, "faraway", raising=False)
    return parts.resolved("strategy", "far")


def test_a_package_is_its_version_an_editable_one_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = SCORE.replace("sum", "mean")
    assert installed(monkeypatch, tmp_path) == installed(monkeypatch, tmp_path, text=other) == "far@faraway-1.0"
    assert installed(monkeypatch, tmp_path, version="1.1") == "far@faraway-1.1"
    one, two = (installed(monkeypatch, tmp_path, text=text, is_editable=True) for text in (SCORE, other))
    assert re.fullmatch("far@[0-9a-f]{16}", one)
    assert one != two == installed(monkeypatch, tmp_path, text=other, version="2.0", is_editable=True)


def test_another_version_on_a_node_is_named_and_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = installed(monkeypatch, tmp_path)
    assert parts.load("strategy", asked).__name__ == "score"
    parts._loaded.clear()
    installed(monkeypatch, tmp_path, version="1.1")
    with pytest.raises(SpecError, match=r"strategy far: the driver uses faraway-1\.0, but .* faraway-1\.1"):
        parts.load("strategy", asked)
    installed(monkeypatch, tmp_path, text="1 / 0\n", version="1.0")
    with pytest.raises(SpecError, match=r"faraway:score cannot be imported \(ZeroDivisionError"):
        parts.load("strategy", asked)
