"""The Python interface: docs/python.md and its notebook are run, and what it says of runs that go otherwise."""

import contextlib
import io
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import pixelpick_ray as pp
from pixelpick_ray.events import Event
from tests.support.documents import DOCS, blocks
from tests.support.experiments import experiment_text
from tests.support.launch import ROOT

pytestmark = pytest.mark.training


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


def test_a_run_that_stops_or_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(experiment_text("own", grid="[{seed: [0], budget: [10, 20]}]"))
    experiment = pp.load("own.yaml", **{"train.epochs": 1})
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
