"""A job on a Ray cluster that runs already: a real one on this machine, with a token, on ports of its own."""

import json
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.support.cluster_experiment import TINY
from tests.support.launch import ROOT, Outcome, launch
from tests.support.ray_cluster import RAY, RAY_SETTINGS, running_cluster
from tests.support.waiting import wait_for

pytestmark = pytest.mark.ray


@pytest.mark.always("a Ray job")
def test_a_submitted_job_leaves_its_results_in_the_shared_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in RAY_SETTINGS.items():
        monkeypatch.setenv(key, value)
    shared = tmp_path / "the shared folder"
    shared.mkdir()
    (tmp_path / "tiny.yaml").write_text(TINY)
    with running_cluster() as (_, cluster):
        request = urllib.request.Request(
            f"{cluster}/api/jobs/", headers={"Authorization": f"Bearer {RAY_SETTINGS['RAY_AUTH_TOKEN']}"}
        )
        wait_for(lambda: urllib.request.urlopen(request, timeout=10).close() or True, seconds=120)
        where = ["--to", "ray", "--address", cluster, "--folder", str(shared)]

        def submitted() -> Outcome | None:
            outcome = launch(tmp_path, "submit", "tiny.yaml", *where, "--device", "cpu", "--set", "title=it's $1")
            return None if re.search(r"No available agent|Failed to connect to Ray", outcome.err) else outcome

        outcome = wait_for(submitted, seconds=120)
        assert outcome.status == 0, outcome.err
        [job] = set(re.findall(r"raysubmit_\w+", outcome.out))
        logs = subprocess.run(
            [RAY, "job", "logs", "--follow", "--address", cluster, job], capture_output=True, text=True, timeout=200
        )
    assert "values of one seed" in logs.stdout
    assert "succeeded" in logs.stdout + logs.stderr
    assert len(list((shared / "store").glob("fit/*/manifest.json"))) == 1
    assert (shared / "runs" / "tiny").is_dir()
    [record] = (shared / "store").glob("experiments/tiny-*/experiment.json")
    assert "it's $1" in record.read_text()


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
