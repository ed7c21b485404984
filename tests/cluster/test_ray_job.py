"""A job on a Ray cluster that runs already: a real one on this machine, with a token, on ports of its own."""

import json
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml

from pixelpick_ray.config.experiment import load_experiment
from tests.support.cluster_experiment import TINY
from tests.support.experiments import experiment_text
from tests.support.launch import ROOT, Outcome, launch
from tests.support.ray_cluster import RAY, RAY_SETTINGS, running_cluster
from tests.support.waiting import wait_for

pytestmark = pytest.mark.ray

HUNT = experiment_text(
    "hunt",
    model="{backbone: test_resnet, pretrained: none}",
    grid="[{seed: [0], budget: [10]}]",
    search="{space: {train.optimizer.lr: {grid: [1e-3, 2e-3]}}, searcher: grid, scheduler: none}",
)


def run_job(place: Path, experiment: str, shared: Path, *options: str) -> str:
    """The output of a job submitted to a cluster with a token, which runs until the job has ended."""
    shared.mkdir()
    with pytest.MonkeyPatch.context() as patch, running_cluster() as (_, cluster):
        for key, value in RAY_SETTINGS.items():
            patch.setenv(key, value)
        request = urllib.request.Request(
            f"{cluster}/api/jobs/", headers={"Authorization": f"Bearer {RAY_SETTINGS['RAY_AUTH_TOKEN']}"}
        )
        wait_for(lambda: urllib.request.urlopen(request, timeout=10).close() or True, seconds=120)
        where = ["--to", "ray", "--address", cluster, "--folder", str(shared), "--device", "cpu"]

        def submitted() -> Outcome | None:
            outcome = launch(place, "submit", experiment, *where, *options)
            return None if re.search(r"No available agent|Failed to connect to Ray", outcome.err) else outcome

        outcome = wait_for(submitted, seconds=120)
        assert outcome.status == 0, outcome.err
        [job] = set(re.findall(r"raysubmit_\w+", outcome.out))
        logs = subprocess.run(
            [RAY, "job", "logs", "--follow", "--address", cluster, job], capture_output=True, text=True, timeout=200
        )
    assert "succeeded" in logs.stdout + logs.stderr
    return logs.stdout


@pytest.mark.always("a Ray job")
def test_a_submitted_job_leaves_its_results_in_the_shared_folder(tmp_path: Path) -> None:
    shared = tmp_path / "the shared folder"
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert "values of one seed" in run_job(tmp_path, "tiny.yaml", shared, "--set", "title=it's $1")
    assert len(list((shared / "store").glob("fit/*/manifest.json"))) == 1
    assert (shared / "runs" / "tiny").is_dir()
    [record] = (shared / "store").glob("experiments/tiny-*/experiment.json")
    assert "it's $1" in record.read_text()


@pytest.mark.slow
def test_a_submitted_search_brings_back_what_it_has_found(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (tmp_path / "hunt.yaml").write_text(HUNT)
    run_job(tmp_path, "hunt.yaml", shared)
    [kept] = (shared / "store").glob("experiments/hunt-*/found/hunt-*.yaml")
    done = launch(tmp_path, "report", "hunt.yaml", "--store", str(shared / "store"), "--out", "told")
    assert done.status == 0, done.err
    assert load_experiment(tmp_path / "found" / kept.name) == load_experiment(kept)
    assert f"run found/{kept.name}" in (tmp_path / "told" / "index.html").read_text()


def test_a_job_server_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = launch(tmp_path, "submit", "tiny.yaml", "--to", "ray", "--address", "http://head:1", "--folder", "/s")
    assert outcome.status == 2
    assert 'pip install "ray[default]"' in outcome.err
    assert not (tmp_path / "runs").exists()


def test_the_cluster_file_is_what_ray_up_accepts() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster" / "ray" / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    commands = json.dumps([config["head_start_ray_commands"], config["worker_start_ray_commands"]])
    assert commands.count("RAY_AUTH_MODE=token") == 2
    assert "--dashboard-host=127.0.0.1" in commands
