"""A job on a Ray cluster that runs already: a real one on this machine, with a token, on ports of its own."""

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pixelpick_ray.config.experiment import load_experiment
from tests.support.cluster_experiment import TINY
from tests.support.experiments import experiment_text
from tests.support.launch import launch
from tests.support.ray_cluster import RAY, RAY_SETTINGS, running_cluster

pytestmark = pytest.mark.ray

HUNT = experiment_text(
    "hunt",
    model="{backbone: test_resnet, pretrained: none}",
    grid="[{seed: [0], budget: [10]}]",
    search="{space: {train.optimizer.lr: {grid: [1e-3, 2e-3]}}, searcher: grid, scheduler: none}",
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of the job server of a cluster of two CPUs."""
    for key, value in RAY_SETTINGS.items():
        monkeypatch.setenv(key, value)
    with running_cluster() as (_, jobs):
        yield jobs


@pytest.mark.always("a Ray job")
def test_a_submitted_job_leaves_its_results_in_the_shared_folder(cluster: str, tmp_path: Path) -> None:
    shared = tmp_path / "the shared folder"
    shared.mkdir()
    (tmp_path / "tiny.yaml").write_text(TINY)
    logs = run_job(cluster, tmp_path, "tiny.yaml", shared, "--set", "title=it's $1")
    assert "values of one seed" in logs
    assert "succeeded" in logs
    assert len(list((shared / "store").glob("fit/*/manifest.json"))) == 1
    assert (shared / "runs" / "tiny").is_dir()
    [record] = (shared / "store").glob("experiments/tiny-*/experiment.json")
    assert "it's $1" in record.read_text()


def run_job(cluster: str, place: Path, experiment: str, shared: Path, *options: str) -> str:
    """What a submitted job says, to its end."""
    _wait_for_server(cluster)
    command = ["submit", experiment, "--to", "ray", "--address", cluster, "--folder", str(shared), "--device", "cpu"]
    deadline = time.monotonic() + 120
    outcome = launch(place, *command, *options)
    not_yet = r"No available agent|Failed to connect to Ray"
    while re.search(not_yet, outcome.err) and time.monotonic() < deadline:
        time.sleep(2)
        outcome = launch(place, *command, *options)
    assert outcome.status == 0, outcome.err
    [job] = set(re.findall(r"raysubmit_\w+", outcome.out))
    logs = subprocess.run(
        [RAY, "job", "logs", "--follow", "--address", cluster, job], capture_output=True, text=True, timeout=200
    )
    return logs.stdout + logs.stderr


@pytest.mark.slow
def test_a_submitted_search_brings_back_what_it_has_found(cluster: str, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "hunt.yaml").write_text(HUNT)
    assert "succeeded" in run_job(cluster, tmp_path, "hunt.yaml", shared)
    [kept] = (shared / "store").glob("experiments/hunt-*/found/hunt-*.yaml")
    done = launch(tmp_path, "report", "hunt.yaml", "--store", str(shared / "store"), "--out", "told")
    assert done.status == 0, done.err
    assert f"found: found/{kept.name}" in done.out
    assert load_experiment(tmp_path / "found" / kept.name) == load_experiment(kept)
    assert f"run found/{kept.name}" in (tmp_path / "told" / "index.html").read_text()


def _wait_for_server(address: str) -> None:
    """Until the job server answers who has the token."""
    request = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {RAY_SETTINGS['RAY_AUTH_TOKEN']}"}
    )
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the job server did not start"
            time.sleep(0.5)


def test_what_would_be_submitted_is_shown_and_nothing_written(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    options = ["--to", "ray", "--address", "http://head:8265", "--folder", "/shared", "--dry-run"]
    outcome = launch(tmp_path, "submit", "tiny.yaml", *options, "--", "--ranks", "2", "--data", "my data")
    assert outcome.status == 0, outcome.err
    assert "options=(--ranks 2 --data 'my data')" in outcome.out
    assert TINY.strip() in outcome.out
    assert "-- bash job.sh . experiment.yaml" in outcome.out
    assert not (tmp_path / "runs").exists()


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
