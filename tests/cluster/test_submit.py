"""What every kind of job has in common: checks before anything is written, and scripts that shellcheck accepts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.cluster_experiment import AWKWARD, KINDS, TINY
from tests.support.launch import ROOT, launch, launch_without_torch

pytestmark = pytest.mark.long

GOLDEN = ROOT / "tests" / "golden"
SHELLCHECK = str(Path(sys.executable).with_name("shellcheck"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def shellcheck(*scripts: Path, options: tuple[str, ...] = ()) -> str:
    """What shellcheck has to say."""
    command = [SHELLCHECK, "--shell=bash", *options, *map(str, scripts)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_the_projects_scripts_pass_shellcheck(tmp_path: Path) -> None:
    scripts = [*ROOT.glob("cluster/**/*.sh"), *ROOT.glob("cluster/**/*.sbatch")]
    assert len(scripts) == 2
    assert shellcheck(*scripts) == ""
    (tmp_path / "wrong.sh").write_text("rm $1\n")
    assert "SC2086" in shellcheck(tmp_path / "wrong.sh")


@pytest.mark.parametrize("kind", KINDS)
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
    assert shellcheck(script, options=("--exclude=SC2016",)) == ""  # a hint that quoted values do not expand, as meant


@pytest.mark.parametrize("kind", KINDS)
def test_what_would_be_submitted_is_as_it_was_and_needs_neither_torch_nor_ray(place: Path, kind: str) -> None:
    """Where it differs on purpose, the failed test says what to put into the golden file."""
    options = ["--dry-run", "--", "--time-limit", "2h", "--data", "my data"]
    told = launch_without_torch(place, "submit", "tiny.yaml", *KINDS[kind], *options)
    named = {str(place): "PLACE", str(Path(sys.executable).parent): "ENVIRONMENT", str(ROOT): "PROJECT"}
    for path, name in named.items():
        told = told.replace(path, name)
    told = re.sub(r"\d{4}-\d{6}-\d{3}", "MOMENT", told)
    assert told == (GOLDEN / f"submit-{kind}.txt").read_text(encoding="utf-8")
    assert not (place / "runs").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_experiment_or_option_ends_with_2_and_nothing_is_written_or_submitted(place: Path, kind: str) -> None:
    others = {"slurm": "--image", "kubernetes": "--account", "ray": "--nodes"}
    wrong = [
        (["--set", "budgets=1"], "budgets"),
        (["--ranks", "9"], "use at most 4, or raise train.batch_size"),
        (["--time-limit", "soon"], "--time-limit"),
        (["--", "--address", "auto"], "--address"),
        (["--local"], "--local"),
        ([others[kind], "1"], f"error: {others[kind]}: not available with --to {kind}; leave it out\n"),
    ]
    for options, message in wrong:
        outcome = launch(place, "submit", "tiny.yaml", *KINDS[kind], *options)
        assert outcome.status == 2
        assert message in outcome.err
    assert {path.name for path in place.iterdir()} == {"tiny.yaml"}


def test_a_trial_that_the_nodes_cannot_hold_is_refused(place: Path) -> None:
    def message(*options: str) -> str:
        outcome = launch(place, "submit", "tiny.yaml", "--to", "slurm", "--dry-run", *options)
        return outcome.err if outcome.status == 2 else ""

    assert "does not fit on 1 nodes with 1 GPUs" in message("--ranks", "2")
    assert "does not fit on 2 nodes with 3 CPUs" in message(
        "--nodes", "2", "--cpus-per-node", "3", "--cpus-per-rank", "2", "--ranks", "3", "--device", "cpu"
    )
    assert "--wait: not allowed in a job" in message("--wait")
    assert "--device cuda with --gpus-per-node 0" in message("--device", "cuda", "--gpus-per-node", "0")
    assert message("--ranks", "2", "--nodes", "2") == ""
    assert message("--ranks", "2", "--gpus-per-node", "0") == ""


def test_a_program_that_is_not_here_or_refuses_ends_with_its_message(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(place))
    outcome = launch(place, "submit", "tiny.yaml", "--to", "slurm")
    assert outcome.status == 2
    assert "sbatch is not on PATH" in outcome.err
    assert not (place / "runs").exists()
    (place / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    (place / "sbatch").chmod(0o755)
    outcome = launch(place, "submit", "tiny.yaml", "--to", "slurm")
    assert outcome.status == 1
    assert "invalid partition" in outcome.err
