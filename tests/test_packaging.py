"""The package as pip installs it: in a fresh environment, from another folder, without a checkout."""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

import pixelpick_ray
from pixelpick_ray.config.command import typed
from tests.support.cluster_experiment import KINDS
from tests.support.launch import ROOT, overriding

pytestmark = pytest.mark.training
TINY = (
    "dataset={name: scenes, size: [32, 48], images: 4}",
    "model={backbone: test_resnet, pretrained: none}",
    "train.epochs=1",
    "grid=[{seed: [0], budget: [2]}]",
)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of an environment that has the wheel, and the requirements of this one."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    for name in tracked.stdout.split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith(("tests/", "results/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", str(source)]
    subprocess.run([str(python), *pip], check=True)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)  # a project that the environment lies in
    (folder / "file").write_text("")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "a"], check=True)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COVERAGE_FILE")}

    def run(program: str, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [str(python.with_name(program)), *words]
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)

    return run


def test_an_experiment_that_the_package_ships_is_run_and_reported(installed: Run) -> None:
    for words in (("pixelpick-ray", "--version"), ("python", "-m", "pixelpick_ray", "--version")):
        assert installed(*words).stdout.strip() == f"pixelpick-ray {pixelpick_ray.__version__}"
    words = ("experiments/quickstart-training.yaml", *overriding(*TINY))
    done = installed("pixelpick-ray", "run", *words, "--local")
    assert "trained now: 1" in done.stdout, done.stdout + done.stderr
    report = installed("pixelpick-ray", "report", *words, "--out", "report")
    assert report.returncode == 0, report.stderr
    code = installed("python", "-c", "from pixelpick_ray.config.shipped import code_commit as c; print(c())")
    assert code.stdout.strip() == "unknown"  # not the commit of the project around


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_is_made_of_the_templates_that_the_package_ships(kind: str, installed: Run) -> None:
    done = installed("pixelpick-ray", "submit", "experiments/quickstart.yaml", "--dry-run", *KINDS[kind])
    assert done.returncode == 0, done.stderr
    assert "launch.py" in done.stdout
    for path in re.findall(r"a copy of (/\S+)", done.stdout):
        assert Path(path).exists()


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("launch.py", "python launch.py"),
        ("/usr/lib/pixelpick_ray/__main__.py", "python -m pixelpick_ray"),
        ("/usr/bin/pixelpick-ray", "pixelpick-ray"),
    ],
)
def test_hints_name_what_was_typed(program: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "status"])
    assert typed() == told
