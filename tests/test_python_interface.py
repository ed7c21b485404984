"""The Python interface: docs/python.md and its notebook are run, and what it says of runs that go otherwise."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import pixelpick_ray as pp
from pixelpick_ray.events import Event
from tests.support.documents import DOCS, blocks
from tests.support.experiments import experiment_text
from tests.support.launch import ROOT, launch

pytestmark = pytest.mark.training


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "pp.Experiment":
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(experiment_text("own", grid="[{seed: [0], budget: [10, 20]}]"))
    return pp.load("own.yaml", **{"train.epochs": 1})


@pytest.mark.usefixtures("undrawn")
def test_the_document_runs_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {"__name__": "document"}
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        for _, kind, text in blocks("python.md"):
            assert kind == "python"
            exec(compile(text, "python.md", "exec"), space)
    assert "4 trials in 2 chains: 3 stages; run one by one, the trials would train 6; 3 are shared" in shown.getvalue()
    table = space["table"]
    assert list(table.index.names) == ["strategy", "budget"]
    assert len(table) == 4
    assert (table["mean"] > 0).all()


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(DOCS / "python.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert "Outcome(status=0, missing={}, trained=" in str(printed)
    assert printed[-1]["data"]["text/plain"] == "0"


def test_a_run_that_stops_or_fails_says_why(experiment: "pp.Experiment", tmp_path: Path) -> None:
    outcome = pp.run(experiment, local=True, time_limit_seconds=1e-9)
    assert (outcome.status, outcome.trained, list(outcome.missing.values())) == (3, 0, ["stopped early"])
    events: list[Event] = []
    (tmp_path / "mine.py").write_text("def score(logits):\n    raise ValueError('no idea')\n")
    wrong = pp.load("own.yaml", **{"name": "wrong", "acquire.strategy": "file:mine.py:score"})
    outcome = pp.run(wrong, local=True, on_event=events.append)
    assert (outcome.status, outcome.trained) == (1, 1)
    [(label, why)] = outcome.missing.items()
    assert "seed 0" in label
    assert "no idea" in why
    assert type(events[-1]).__name__ == "ChainFailed"
    assert set(pp.results("store", wrong)["budget"]) == {10}
    with pytest.raises(pp.SpecError, match=r"own\.yaml: train\.epoch: unknown key"):
        pp.load("own.yaml", **{"train.epoch": 1})
    with pytest.raises(pp.SpecError, match="--local runs a single rank"):
        pp.run(experiment, local=True, ranks=2)
    with pytest.raises(AttributeError, match="has no attribute 'predict'"):
        pp.predict  # noqa: B018


@pytest.mark.usefixtures("undrawn")
def test_the_command_line_finds_what_a_program_made(experiment: "pp.Experiment", tmp_path: Path) -> None:
    assert pp.run(experiment, local=True).trained == 2
    words = ("--set", "train.epochs=1")
    assert "trained now: 0" in launch(tmp_path, "run", "own.yaml", "--local", *words).out
    assert launch(tmp_path, "report", "own.yaml", "--out", "report", *words).status == 0
    rows = (tmp_path / "report" / "rows.csv").read_text().splitlines()
    frame = pp.results("store", experiment)
    assert list(frame.columns) == rows[0].split(",")
    assert len(frame) == len(rows) - 1


LAUNCHER = """
import numpy as np
import pixelpick_ray as pp

class Squares(pp.Dataset):
    facts = pp.DatasetFacts(
        name="squares", class_names=("a", "b"), void_index=255, mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3),
        palette=((0, 0, 0), (255, 0, 0)), splits=("train", "test"),
    )
    def names(self, split):
        return tuple(f"{split}{number}" for number in range(4))
    def signature(self, split):
        return [["squares", split]]
    def read(self, split, name):
        label = np.zeros((32, 48), np.uint8)
        label[8:20, 10:30] = 1
        return np.repeat(label[:, :, None] * 200, 3, axis=2), label

if __name__ == "__main__":
    pp.register("dataset", "squares", Squares)
    outcomes = [pp.run(pp.load("squares.yaml"), local=local) for local in (False, True)]
    print([(one.status, one.trained) for one in outcomes])
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_data_set_of_a_launcher_reaches_rays_workers(tmp_path: Path) -> None:
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    (tmp_path / "squares.yaml").write_text(experiment_text("squares", dataset="{name: squares}"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "launcher.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[(0, 1), (0, 0)]", done.stdout + done.stderr
