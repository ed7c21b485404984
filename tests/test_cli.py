"""The command line: what is refused before a start, what runs and reports do, and what is printed."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pixelpick_ray.cli import app
from pixelpick_ray.cli.options import parse_duration
from pixelpick_ray.config.trial import DatasetSpec, SizeSpec
from pixelpick_ray.errors import SpecError
from pixelpick_ray.runner.session import StopRequest
from tests.support.experiments import experiment_text
from tests.support.launch import ROOT, Outcome, launch, launch_without_torch

pytestmark = [pytest.mark.usefixtures("tiny"), pytest.mark.training]

Study = tuple[Path, Outcome]  # its place, and what its run printed

SCENES = experiment_text(
    train="{epochs: 2, batch_size: 4, optimizer: {name: adam, lr: 2e-3, backbone_lr_factor: 1.0}}",
    evaluate="{splits: {val: {}}, report: val}",
    grid="[{acquire.strategy: [margin, random], seed: [0, 1], budget: [10, 20]}]",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny: None) -> Study:
    """A finished study and what its run printed; tests that change it use a copy."""
    place = tmp_path_factory.mktemp("study")
    (place / "tiny.yaml").write_text(SCENES)
    return place, launch(place, "run", "tiny.yaml", "--local", "--keep-weights", "all")


@pytest.fixture
def copy(study: Study, tmp_path: Path) -> Path:
    """A copy of the finished study."""
    return Path(shutil.copytree(study[0], tmp_path / "copy"))


def num_fits(place: Path) -> int:
    return len(list((place / "store").glob("fit/*/manifest.json")))


def test_a_run_prints_progress_the_table_and_what_was_shared(study: Study) -> None:
    place, done = study
    assert done.status == 0, done
    assert len(re.findall(r"px: mIoU \d+\.\d % \(trained\)", done.out)) == 6
    assert len(re.findall(r"px: mIoU \d+\.\d % \(from the store\)", done.out)) == 2  # the first fits of the other chain
    assert len(re.findall(r"(margin|random) +(10|20) .*\d+\.\d ± \d+\.\d +2", done.out)) == 4
    assert done.out.splitlines()[-1] == (
        "8 trials in 4 chains: 6 stages; run one by one, the trials would train 12; 6 are shared; trained now: 6"
    )
    assert num_fits(place) == 6
    assert list((place / "runs" / "tiny").iterdir()) != []


@pytest.mark.usefixtures("undrawn")
def test_a_report_needs_no_data_and_an_explained_number_no_torch(copy: Path, study: Study) -> None:
    for name in ("runs", "cache"):
        shutil.rmtree(copy / name)
    told = launch_without_torch(copy, "report", "tiny.yaml", "--explain", "strategy=margin,budget=20")
    assert told.startswith("tiny: margin at 20 pixels per image, mIoU ")
    folders = [Path(word) for word in told.split() if word.startswith("store/")]
    assert [folder.parts[1] for folder in folders] == ["fit", "evaluation", "pick", "pick"] * 2  # of two seeds
    assert all((copy / folder / "manifest.json").is_file() for folder in folders)
    (copy / "costs.yaml").write_text("{seconds_per_pixel: 90, money_per_hour: 20, currency: EUR}")
    printed = launch(copy, "report", "tiny.yaml", "--out", "elsewhere", "--costs", "costs.yaml").out
    page = (copy / "elsewhere" / "index.html").read_text(encoding="utf-8")
    assert [text in page for text in ('data-axis="money (EUR)"', "data:image/jpeg")] == [True, True]
    assert "are shared" in printed
    assert "written to elsewhere: " in printed
    written = {path.name for path in (copy / "elsewhere").iterdir()}
    assert written >= {"index.html", "table.md", "table.tex", "table.csv", "rows.csv", "curve.svg"}
    values = re.findall(r"[0-9.]+ ± [0-9.]+", study[1].out)
    assert values
    table = (copy / "elsewhere" / "table.md").read_text()
    assert re.findall(r"[0-9.]+ ± [0-9.]+", table)[: len(values)] == values
    assert "| margin | 20 | 80 | 2 | 40 |" in table


def test_plan_and_status_print_a_line_for_each_chain_or_one_json_object(copy: Path) -> None:
    plan = launch(copy, "plan", "tiny.yaml", "--set", "grid=[{seed: [0, 5], budget: [10, 20]}]").out.splitlines()
    assert plan[0] == "test_resnet margin seed 0: 2 stages for budgets 10, 20 (2 stored)"
    assert plan[1] == "test_resnet margin seed 5: 2 stages for budgets 10, 20 (0 stored)"
    assert plan[-1].startswith("2 of 4 stages stored, 2 to train, 4 epochs, about ")
    one = launch(copy, "plan", "tiny.yaml", "--store", "no", "--set", "grid=[{seed: [0], budget: [10]}]").out
    assert "1 stage for budget 10" in one
    assert "1 trial in 1 chain: 1 stage; run one by one, the trials would train 1; 0 are shared" in one
    assert "0 of 1 stage stored, 1 to train, 2 epochs" in one
    status = launch(copy, "status", "tiny.yaml").out.splitlines()
    assert status[0] == "test_resnet margin seed 0  2 stored"
    assert status[-2:] == ["6 stored", "6 of 6 stages stored, 0 to train"]
    done = [launch(copy, command, "tiny.yaml", "--json") for command in ("plan", "status")]
    assert [(one.status, one.err) for one in done] == [(0, "")] * 2
    figures, state = (json.loads(one.out) for one in done)
    assert figures.items() >= {"fits": 6, "stored_fits": 6, "stored_picks": 6, "epochs_missing": 0}.items()
    assert figures["seconds_per_fit"] > 0
    assert state["stages"] == {"stored": 6} | dict.fromkeys(("running", "waiting", "missing", "failed", "diverged"), 0)


@pytest.mark.usefixtures("undrawn")
def test_a_training_that_diverges_is_a_result_that_counts_as_worst_and_is_not_repeated(copy: Path) -> None:
    """Too high a learning rate in a second grid: its chain has no number as a loss."""
    grid = [
        {"acquire.strategy": ["margin", "random"], "seed": [0, 1], "budget": [10, 20]},
        {"train.optimizer.lr": [1e30], "seed": [0], "budget": [10]},
        {"seed": [3], "budget": [10]},
    ]
    options = ("--set", f"grid={json.dumps(grid)}")
    done = launch(copy, "run", "tiny.yaml", "--local", *options)
    assert done.status == 0, done
    how = r"stage 0, epoch \d of 2: the loss is .*; lower train.optimizer.lr"
    ended = rf"(?m)^DIVERGED test_resnet margin seed 0, train.optimizer.lr=1e\+30: {how}$"
    assert re.search(ended, done.out)
    assert re.search(r"seed 3, .*: 10 px: mIoU .* \(trained\)", done.out)  # planned after the one that fails
    assert num_fits(copy) == 7
    status = json.loads(launch(copy, "status", "tiny.yaml", "--json", *options).out)
    rest = {"running": 0, "waiting": 0, "missing": 0, "failed": 0}
    assert status["stages"] == {"stored": 7, "diverged": 1} | rest
    again = launch(copy, "run", "tiny.yaml", "--local", *options)
    assert (again.status, "trained now: 0" in again.out, len(re.findall(ended, again.out))) == (0, True, 1)
    told = launch(copy, "plan", "tiny.yaml", *options).out
    assert "7 of 8 stages stored, 0 to train; 1 without a result, because a training diverged" in told
    assert launch(copy, "report", "tiny.yaml", *options, "--out", "told").status == 0
    assert "Diverged: 1 of 10 trials, counted as 0." in (copy / "told" / "table.md").read_text()
    values = [line.split(",") for line in (copy / "told" / "rows.csv").read_text().splitlines()]
    assert [line[11] for line in values if "train.optimizer.lr=1e+30" in line and line[9] == "miou"] == ["0.0"]
    cell = launch(copy, "report", "tiny.yaml", *options, "--explain", "setting=train.optimizer.lr=1e+30")
    assert re.search(rf"diverged +{how}; it counts as the worst value", cell.out)


def test_a_time_limit_stops_between_epochs_with_status_3(copy: Path) -> None:
    shutil.rmtree(copy / "store")
    done = launch(copy, "run", "tiny.yaml", "--local", "--time-limit", "0.001s")
    assert (done.status, done.out.count("stopped early")) == (3, 4)
    assert json.loads(launch(copy, "status", "tiny.yaml", "--json").out)["stages"]["missing"] == 6


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
        ("", "", "stopped; run the same command again to continue\n"),
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


# The commands `report` and `evaluate`


@pytest.mark.usefixtures("undrawn")
def test_damage_is_named_and_a_store_without_results_is_pointed_out(copy: Path) -> None:
    path = next((copy / "store" / "pick").glob("*/statistics.json"))
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    done = launch(copy, "report", "tiny.yaml", "--out", "named", "--pictures", "0")
    where, how = f"pick/{path.parent.name}", "statistics.json: content differs from what was published"
    assert done.status == 1
    assert f"DAMAGED {where}: {how} (the next run will remake it)" in done.out
    assert done.err.startswith("error: the report lacks damaged results; run the experiment again")
    assert f"| {where} | {how} |" in (copy / "named" / "table.md").read_text(encoding="utf-8")
    assert "data:image/jpeg" not in (copy / "named" / "index.html").read_text(encoding="utf-8")
    done = launch(copy, "report", "tiny.yaml", "--store", "elsewhere", "--out", "nothing")
    assert done.status == 0
    assert "elsewhere has no results of it; give the folder of the results with --store DIR" in done.out
    assert "missing 0/2" in (copy / "nothing" / "table.md").read_text(encoding="utf-8")
    for path in (copy / "store").glob("experiments/*/chains/*.json"):
        path.write_text("{")
    for command in (("report", "tiny.yaml", "--out", "nothing"), ("plan", "tiny.yaml"), ("status", "tiny.yaml")):
        out = launch(copy, *command).out
        assert len(re.findall(r"DAMAGED experiments/.*: is not JSON", out)) == 4
        assert ("the stored results are damaged and cannot be read" in out) == (command[0] == "report")


def test_what_cannot_be_reported_or_evaluated_is_refused(copy: Path) -> None:
    for words, told in (
        ("report tiny.yaml", "report: give --out DIR for the report, or --explain CELL"),
        ("report tiny.yaml --explain strategy=margin", "matches 2 cells; narrow it down by budget: 10, 20"),
        ("report tiny.yaml --out out --costs nowhere.yaml", "nowhere.yaml: cannot be read"),
        ("report tiny.yaml --out tiny.yaml", "--out"),
        ("evaluate x.pt --dataset scenes --split val", "x.pt: no such file; give the weights.safetensors"),
        ("evaluate x.pt --dataset scenes --split tset", "split: scenes has no 'tset'; it has"),
        ("evaluate x.pt --dataset scene --split val", "unknown data set 'scene'; known: camvid"),
        ("evaluate x.pt --dataset scenes --split val --size 48", "--size: '48' is not a size; give HEIGHTx"),
    ):
        outcome = launch(copy, *words.split())
        assert (outcome.status, told in outcome.err) == (2, True), outcome
        assert not (copy / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_stored_weights_measure_what_the_experiment_measured(copy: Path) -> None:
    assert launch(copy, "report", "tiny.yaml", "--out", "report", "--pictures", "0").status == 0
    with open(copy / "report" / "rows.csv", encoding="utf-8") as file:
        reported = next(row for row in csv.DictReader(file) if row["metric"] == "miou")
    weights = copy / "store" / "fit" / reported["fit_key"] / "weights.safetensors"
    where = ["--dataset", "scenes", "--split", "val", "--size", "32x48"]
    measured = launch(copy, "evaluate", str(weights), *where, "--json")
    assert measured.status == 0, measured.err
    assert json.loads(measured.out)["miou"] == pytest.approx(float(reported["value"]), abs=1e-9)
    assert "images of scenes val at 32 x 48 pixels, normalised with mean" in measured.err
    assert "mIoU is over the classes that occur" in measured.err


def test_a_data_set_is_measured_at_the_published_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def spy(path: Path, dataset: DatasetSpec, split: str, **options: object) -> tuple[tuple[str, ...], object]:
        found.append(dataset.size_spec())
        return ("a", "b"), np.eye(2, dtype=np.int64)

    monkeypatch.setattr("pixelpick_ray.engine.checkpoint.evaluate_checkpoint", spy)
    for words in ("cityscapes", "cityscapes --scale 0.25", "camvid"):
        assert launch(tmp_path, "evaluate", "x.zip", "--dataset", *words.split(), "--split", "val").status == 0
    assert found == [SizeSpec(size=(512, 1024)), SizeSpec(scale=0.25), SizeSpec()]
