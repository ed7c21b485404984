"""What every kind of job has in common: checks before anything is written, and scripts that shellcheck accepts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.cluster_experiment import AWKWARD, KINDS, TINY
from tests.support.launch import launch, launch_without_torch

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHELLCHECK = str(Path(sys.executable).with_name("shellcheck"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def shellcheck(script: Path, *options: str) -> None:
    done = subprocess.run([SHELLCHECK, "--shell=bash", *options, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", sorted([*ROOT.glob("cluster/**/*.sh"), *ROOT.glob("cluster/**/*.sbatch")]))
def test_scripts_pass_shellcheck(script: Path) -> None:
    shellcheck(script)


@pytest.mark.parametrize("kind", ["slurm", "ray", "kubernetes"])
def test_generated_scripts_pass_shellcheck(place: Path, kind: str) -> None:
    name = 'tiny\'s $(x) "file".yaml'
    (place / name).write_text(TINY)
    options = [*KINDS[kind], "--dry-run", "--", "--set", f"title='{AWKWARD}'".replace("it's", "its")]
    outcome = launch(place, "submit", name, *options)
    assert outcome.status == 0, outcome.err
    text = outcome.out.split("\n# the command\n")[0]
    text = next(yaml.safe_load_all(text))["data"]["job.sh"] if kind == "kubernetes" else text.split("\n\n# /")[0]
    script = place / "generated.sh"
    script.write_text(text[text.index("#!/bin/bash") :])
    shellcheck(script, "--exclude=SC2016")  # a hint that quoted values do not expand, as is meant


@pytest.mark.parametrize("kind", KINDS)
def test_what_would_be_submitted_is_as_it_was(place: Path, kind: str) -> None:
    """Where it differs on purpose, the failed test says what to put into the golden file."""
    options = ["--dry-run", "--", "--time-limit", "2h", "--data", "my data"]
    told = launch(place, "submit", "tiny.yaml", *KINDS[kind], *options).out
    named = {str(place): "PLACE", str(Path(sys.executable).parent): "ENVIRONMENT", str(ROOT): "PROJECT"}
    for path, name in named.items():
        told = told.replace(path, name)
    told = re.sub(r"\d{4}-\d{6}-\d{3}", "MOMENT", told)
    assert told == (GOLDEN / f"submit-{kind}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (("budget: [10]", "budgets: [10]"), [], "budget"),
        (("", ""), ["--set", "train.epoch=1"], "epoch"),
        (("", ""), ["--ranks", "9"], "ranks that fit: 1, 2, 3, 4"),
        (("", ""), ["--device", "tpu"], "--device"),
        (("", ""), ["--time-limit", "soon"], "--time-limit"),
        (("", ""), ["--", "--address", "auto"], "--address"),
        (("", ""), ["--local"], "--local"),
        (("", ""), ["--nods", "2"], "--nods"),
    ],
)
def test_a_wrong_experiment_or_option_ends_with_2_and_nothing_is_written_or_submitted(
    place: Path, kind: str, change: tuple[str, str], options: list[str], message: str
) -> None:
    (place / "tiny.yaml").write_text(TINY.replace(*change))
    outcome = launch(place, "submit", "tiny.yaml", *KINDS[kind], *options)
    assert outcome.status == 2
    assert message in outcome.err
    assert {path.name for path in place.iterdir()} == {"tiny.yaml"}


@pytest.mark.parametrize(
    ("kind", "option"), [("ray", "--nodes"), ("ray", "--partition"), ("slurm", "--image"), ("kubernetes", "--account")]
)
def test_an_option_of_another_kind_is_refused(place: Path, kind: str, option: str) -> None:
    outcome = launch(place, "submit", "tiny.yaml", *KINDS[kind], option, "1")
    assert outcome.status == 2
    assert outcome.err == f"error: {option}: not an option of --to {kind}\n"


def test_a_trial_that_the_nodes_cannot_hold_is_refused(place: Path) -> None:
    def message(*options: str) -> str:
        outcome = launch(place, "submit", "tiny.yaml", "--to", "slurm", "--dry-run", *options)
        return outcome.err if outcome.status == 2 else ""

    assert "does not fit on 1 nodes with 1 GPUs" in message("--ranks", "2")
    assert "does not fit on 2 nodes with 3 CPUs" in message(
        "--nodes", "2", "--cpus-per-node", "3", "--cpus-per-rank", "2", "--ranks", "3", "--device", "cpu"
    )
    assert "--wait: the job would hold its nodes" in message("--wait")
    assert "--device cuda with --gpus-per-node 0" in message("--device", "cuda", "--gpus-per-node", "0")
    assert message("--ranks", "2", "--nodes", "2") == ""
    assert message("--ranks", "2", "--gpus-per-node", "0") == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_login_node_needs_neither_torch_nor_ray(place: Path, kind: str) -> None:
    assert "# the command" in launch_without_torch(place, "submit", "tiny.yaml", *KINDS[kind], "--dry-run")


def test_a_program_that_is_not_here_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place))
    outcome = launch(place, "submit", "tiny.yaml", "--to", "slurm")
    assert outcome.status == 2
    assert "sbatch is not on PATH" in outcome.err
    assert not (place / "runs").exists()


def test_what_the_cluster_refuses_ends_with_1_and_its_message(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch = place / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")
    outcome = launch(place, "submit", "tiny.yaml", "--to", "slurm")
    assert outcome.status == 1
    assert "invalid partition" in outcome.err
