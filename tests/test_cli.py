"""The command line: what is refused before a start, what a run, a second run and a repair do, and what is printed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from typer.testing import CliRunner

from pixelpick_ray.cli import app
from pixelpick_ray.cli.options import parse_duration
from pixelpick_ray.errors import SpecError
from pixelpick_ray.runner import session
from pixelpick_ray.runner.session import StopRequest
from tests.support.experiments import TWO_PIXELS, experiment_text
from tests.support.launch import ROOT, Outcome, launch, launch_without_torch

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.training]

Study = tuple[Path, Outcome]  # its place, and what its run printed

SCENES = experiment_text(
    model="{backbone: test_resnet, pretrained: none, dropout: [0.0, 0.0, 0.0]}",
    train="{epochs: 2, batch_size: 4, optimizer: {name: adam, lr: 2e-3, backbone_lr_factor: 1.0}}",
    evaluate="{splits: {val: {}}, report: val}",
    grid="[{acquire.strategy: [margin, random], seed: [0, 1], budget: [10, 20]}]",
)
CAMVID = experiment_text(
    dataset="{name: camvid, size: [8, 10]}",
    train="{epochs: 1, batch_size: 2, optimizer: {name: adam, lr: 1e-3}}",
    acquire=TWO_PIXELS,
    grid="[{budget: [2, 4]}]",
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(SCENES)
    (tmp_path / "street.yaml").write_text(CAMVID)
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, for data sets and for weights; and a run that would start is a failure of the test."""

    def no_network(*arguments: Any, **options: Any) -> Any:
        raise urllib.error.URLError("no network in this test")

    create = timm.create_model

    def no_weights(name: str, *arguments: Any, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            no_network()
        return create(name, *arguments, **options)

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(timm, "create_model", no_weights)
    monkeypatch.setattr(session, "run", lambda *values, **options: pytest.fail("it has started"))


def refused(place: Path, *arguments: str) -> str:
    """The message of a command that is refused and leaves neither a store nor logs."""
    done = launch(place, *arguments)
    assert done.status == 2, done
    assert done.out == ""
    assert not (place / "store").exists()
    assert not (place / "runs").exists()
    return done.err


# What is refused


def test_an_experiment_file_that_is_not_there_is_named(place: Path) -> None:
    for command in (["plan"], ["status"], ["report", "--out", "out"], ["run"]):
        assert "error: none.yaml: cannot be read" in refused(place, *command, "none.yaml")


@pytest.mark.usefixtures("offline")
def test_data_and_weights_that_are_absent_and_cannot_be_fetched_are_told_with_the_remedy(place: Path) -> None:
    told = refused(place, "run", "street.yaml")
    assert re.search(r"camvid: .*data/camvid is missing and could not be fetched from https.*no network", told)
    assert "copy the folder CamVid/ of the SegNet tutorial there, or give another folder with --data DIR" in told
    assert not (place / "data").exists()
    told = refused(place, "run", "tiny.yaml", "--set", "model.pretrained=imagenet")
    weights = r"no weights at .*weights/test_resnet\.imagenet\.safetensors and none downloaded \(.*no network.*put the"
    assert re.search(weights, told, re.DOTALL)


# Running


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A finished study and what its run printed; tests that change it use a copy."""
    place, threads = tmp_path_factory.mktemp("study"), torch.get_num_threads()
    (place / "tiny.yaml").write_text(SCENES)
    torch.set_num_threads(1)
    done = launch(place, "run", "tiny.yaml", "--local", "--cache", str(place / "cache"))
    torch.set_num_threads(threads)
    return place, done


@pytest.fixture
def copy(study: Study, tmp_path: Path) -> Path:
    """A copy of the finished study."""
    return Path(shutil.copytree(study[0], tmp_path / "copy"))


def again(place: Path, *options: str) -> Outcome:
    done = launch(place, "run", "tiny.yaml", "--local", "--cache", str(place / "cache"), *options)
    assert done.status == 0, done
    return done


def fits(place: Path) -> dict[str, float]:
    """When each stored fit was published."""
    return {path.parent.name: path.stat().st_mtime for path in (place / "store").glob("fit/*/manifest.json")}


def report_of(place: Path, study: Path | None = None, *, status: int = 0) -> dict[str, bytes]:
    """The files of a report by name, without the page, which also tells seconds."""
    assert launch(study or place, "report", "tiny.yaml", "--out", str(place / "report")).status == status
    found = {path.name: path.read_bytes() for path in (place / "report").iterdir()}
    assert b"<html" in found.pop("index.html")
    return found


@pytest.fixture(scope="module")
def tables(study: Study, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The report of the finished study."""
    return report_of(tmp_path_factory.mktemp("report"), study[0])


def test_a_run_prints_progress_the_table_and_what_was_shared(study: Study) -> None:
    place, done = study
    assert done.status == 0, done
    assert len(re.findall(r"px: mIoU \d+\.\d % \(trained\)", done.out)) == 6
    assert len(re.findall(r"px: mIoU \d+\.\d % \(from the store\)", done.out)) == 2  # the first fits of the other chain
    assert len(re.findall(r"(margin|random) +(10|20) .*\d+\.\d ± \d+\.\d +2", done.out)) == 4
    assert done.out.splitlines()[-1] == (
        "8 trials in 4 chains: 6 stages; run one by one, the trials would train 12; 6 are shared; trained now: 6"
    )
    assert len(fits(place)) == 6
    assert list((place / "store").rglob("weights.safetensors")) == []
    assert list((place / "runs" / "tiny").iterdir()) != []


def test_a_second_run_trains_nothing_and_prints_the_same_table(copy: Path, study: Study) -> None:
    before = fits(copy)
    done = again(copy)
    assert done.out.splitlines()[-1].endswith("trained now: 0")
    assert fits(copy) == before
    table = [line for line in study[1].out.splitlines() if " ± " in line]
    assert [line for line in done.out.splitlines() if " ± " in line] == table


def test_an_extended_grid_trains_only_what_is_new(copy: Path) -> None:
    """Stages of two chains, and once more the one before them, of which the weights are gone."""
    before = fits(copy)
    grid = "[{acquire.strategy: [margin, random], seed: [0, 1], budget: [10, 20]}, "
    grid += "{acquire.strategy: [margin, random], seed: [0], budget: [30]}]"
    done = again(copy, "--set", f"grid={grid}")
    after = fits(copy)
    assert done.out.splitlines()[-1].endswith("trained now: 3")
    assert len(after) == len(before) + 2
    assert {key: after[key] for key in before} == before


def test_what_is_damaged_is_missing_in_the_report_until_it_is_made_again(copy: Path, tables: dict[str, bytes]) -> None:
    path = min((copy / "store" / "evaluation").glob("*/confusion.npz"))
    path.write_bytes(path.read_bytes()[:-10])
    assert report_of(copy, status=1) != tables
    again(copy)
    assert report_of(copy) == tables


def test_a_report_needs_neither_data_nor_torch(copy: Path, study: Study, tables: dict[str, bytes]) -> None:
    assert {"table.md", "table.tex", "table.csv", "rows.csv", "curve.svg"} <= tables.keys()
    for name in ("runs", "cache"):
        shutil.rmtree(copy / name)
    printed = launch_without_torch(copy, "report", "tiny.yaml", "--out", "elsewhere")
    assert {path.name: path.read_bytes() for path in (copy / "elsewhere").iterdir() if path.suffix != ".html"} == tables
    assert "are shared" in printed
    assert "written to elsewhere: " in printed
    values = re.findall(r"[0-9.]+ ± [0-9.]+", study[1].out)
    assert values
    assert re.findall(r"[0-9.]+ ± [0-9.]+", tables["table.md"].decode())[: len(values)] == values


def test_plan_and_status_print_a_line_for_each_chain_or_one_json_object(copy: Path) -> None:
    plan = launch(copy, "plan", "tiny.yaml", "--set", "grid=[{seed: [0, 5], budget: [10, 20]}]").out.splitlines()
    assert plan[0] == "test_resnet margin seed 0: 2 stages for budgets 10, 20 (2 stored)"
    assert plan[1] == "test_resnet margin seed 5: 2 stages for budgets 10, 20 (0 stored)"
    assert plan[-1].startswith("2 of 4 stages stored, 2 to train, 4 epochs, about ")
    status = launch(copy, "status", "tiny.yaml").out.splitlines()
    assert status[0] == "test_resnet margin seed 0  2 stored"
    assert status[-2:] == ["6 stored", "6 of 6 stages stored, 0 to train"]
    done = [launch(copy, command, "tiny.yaml", "--json", "--cache", "cache") for command in ("plan", "status")]
    assert [(one.status, one.err) for one in done] == [(0, "")] * 2
    figures, state = (json.loads(one.out) for one in done)
    assert figures.items() >= {"fits": 6, "stored_fits": 6, "stored_picks": 6, "epochs_missing": 0}.items()
    assert figures["seconds_per_fit"] > 0
    assert state["stages"] == {"stored": 6} | dict.fromkeys(("running", "waiting", "missing", "failed", "diverged"), 0)


def test_a_record_that_cannot_be_read_is_named_and_made_again(copy: Path) -> None:
    (path, *_) = sorted((copy / "store").glob("experiments/*/chains/*.json"))
    before = path.read_bytes()
    path.write_text("{")
    for command in (("report", "tiny.yaml", "--out", "report"), ("plan", "tiny.yaml"), ("status", "tiny.yaml")):
        assert re.search(rf"DAMAGED experiments/.*{path.name}: is not JSON", launch(copy, *command).out)
    for other in (copy / "store").glob("experiments/*/chains/*.json"):
        if other != path:
            other.write_text(other.read_text().replace("margin", "marlin").replace("random", "rondom"))
    told = launch(copy, "report", "tiny.yaml", "--out", "report").out
    assert "run it again, which repairs what is stored" in told
    assert told.count("DAMAGED") == 4
    done = again(copy)
    assert re.search(rf"DAMAGED experiments/.*{path.name}: is not JSON .* \(set aside as damaged/record-", done.out)
    assert done.out.splitlines()[-1].endswith("trained now: 0")
    assert path.read_bytes() == before


def test_a_training_that_diverges_is_a_result_that_counts_as_worst_and_is_not_repeated(copy: Path) -> None:
    """Too high a learning rate in a second grid: its chain has no number as a loss."""
    grid = [
        {"acquire.strategy": ["margin", "random"], "seed": [0, 1], "budget": [10, 20]},
        {"train.optimizer.lr": [1e30], "seed": [0], "budget": [10]},
        {"seed": [3], "budget": [10]},
    ]
    options = ("--set", f"grid={json.dumps(grid)}", "--cache", str(copy / "cache"))
    done = launch(copy, "run", "tiny.yaml", "--local", *options)
    assert done.status == 0, done
    how = r"stage 0, epoch \d of 2: the loss is .*; lower train.optimizer.lr"
    ended = rf"(?m)^DIVERGED test_resnet margin seed 0, train.optimizer.lr=1e\+30: {how}$"
    assert re.search(ended, done.out)
    assert re.search(r"seed 3, .*: 10 px: mIoU .* \(trained\)", done.out)  # planned after the one that fails
    assert len(fits(copy)) == 7
    status = json.loads(launch(copy, "status", "tiny.yaml", "--json", *options).out)
    rest = {"running": 0, "waiting": 0, "missing": 0, "failed": 0}
    assert status["stages"] == {"stored": 7, "diverged": 1} | rest
    again = launch(copy, "run", "tiny.yaml", "--local", *options)
    assert (again.status, "trained now: 0" in again.out, len(re.findall(ended, again.out))) == (0, True, 1)
    told = launch(copy, "plan", "tiny.yaml", *options).out
    assert "7 of 8 stages stored, 0 to train; 1 without a result, because a training diverged" in told
    assert launch(copy, "report", "tiny.yaml", *options[:2], "--out", "told").status == 0
    assert "Diverged: 1 of 10 trials, counted as 0." in (copy / "told" / "table.md").read_text()
    values = [line.split(",") for line in (copy / "told" / "rows.csv").read_text().splitlines()]
    assert [line[11] for line in values if "train.optimizer.lr=1e+30" in line and line[9] == "miou"] == ["0.0"]
    cell = launch(copy, "report", "tiny.yaml", *options[:2], "--explain", "setting=train.optimizer.lr=1e+30")
    assert re.search(rf"diverged +{how}; it counts as the worst value", cell.out)


# Stopping


def test_a_time_limit_stops_between_epochs_with_status_3(place: Path, study: Study) -> None:
    cache = ("--cache", str(study[0] / "cache"))
    done = launch(place, "run", "tiny.yaml", "--local", *cache, "--time-limit", "0.001s")
    assert done.status == 3
    assert done.out.count("stopped early") == 4
    assert fits(place) == {}
    assert json.loads(launch(place, "status", "tiny.yaml", "--json", *cache).out)["stages"]["missing"] == 6


def test_a_stop_is_asked_for_by_the_deadline_or_a_signal_and_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert not StopRequest(None).asked
    assert not StopRequest(60).asked
    stop = StopRequest(0.01)
    time.sleep(0.02)
    assert stop.asked
    assert stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        stop = StopRequest(60)
        with stop.listening():
            with stop.awaited():
                assert not stop()
                os.kill(os.getpid(), number)
                assert stop()
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("chains", "out", "err"),
    [
        (", stop.awaited()", "still here\n", "stopping; interrupt again to stop at once\n"),
        ("", "", "stopped; run the same command to go on from here\n"),
    ],
)
def test_a_second_signal_or_one_before_or_after_the_chains_ends_the_process(chains: str, out: str, err: str) -> None:
    code = f"""
import os, signal
from pixelpick_ray import supervisor
from pixelpick_ray.runner.session import StopRequest
supervisor.REPEAT_SECONDS = 0
stop = StopRequest(None)
with stop.listening(){chains}:
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("too long", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, out, err)


def test_durations_are_numbers_with_a_unit() -> None:
    seconds = {"90": 90, "90s": 90, "1.5m": 90, "30m": 1800, "2h": 7200, "1d": 86400}
    assert {text: parse_duration("--time-limit", text) for text in seconds} == seconds
    for text in ("m", "10 minutes", "-5m", "0", "nan", "1w", ""):
        with pytest.raises(SpecError, match="is not a duration"):
            parse_duration("--time-limit", text)


def test_every_command_and_every_option_has_help() -> None:
    commands = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert {"plan", "run", "status", "annotate", "export", "import", "report"} <= set(commands)
    overview = CliRunner().invoke(app, ["--help"])
    for name in commands:
        assert re.search(rf"^  {name} +[A-Z]\w+,? ", overview.stdout, re.MULTILINE)
        done = CliRunner().invoke(app, [name, "--help"], terminal_width=200)
        assert done.exit_code == 0
        options = done.stdout.split("Options:")[1].strip().splitlines()
        assert len(options) >= 2
        for line in options:  # "--name TYPE  what it does"
            assert re.match(r"\s*--[a-z-]+( <[a-z ]+>| [A-Za-z=|]+)?  +\S+", line), line
