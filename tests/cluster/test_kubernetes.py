"""The Kubernetes job: objects that the published schemas allow, and values that arrive in the container unchanged."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pixelpick_ray.config.experiment import parse_experiment
from tests.support.cluster_experiment import AWKWARD, TINY
from tests.support.kuberay import RAY_JOB
from tests.support.launch import ROOT, launch

pytestmark = pytest.mark.long

TEMPLATE = (ROOT / "cluster" / "kubernetes" / "rayjob.yaml").read_text()
OPTIONS = ["--to", "kubernetes", "--image", "registry.example.org/p:1", "--claim", "pixels", "--namespace", "lab"]


def dry_run(place: Path, *options: str, name: str = "tiny.yaml") -> list[dict[str, Any]]:
    """The objects that would be created."""
    (place / name).write_text(TINY)
    outcome = launch(place, "submit", name, *OPTIONS, "--dry-run", *options)
    assert outcome.status == 0, outcome.err
    return list(yaml.safe_load_all(outcome.out.split("\n# the command\n")[0]))


def check(config: dict[str, Any], job: dict[str, Any]) -> None:
    """Every object against the published schema of its kind."""
    kubernetes_validate.validate(config, "1.34", strict=True)
    jsonschema.validate(job, RAY_JOB)
    for template in templates(job):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        kubernetes_validate.validate(pod, "1.34", strict=True)


def templates(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def groups(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}


def limits(group: dict[str, Any]) -> dict[str, Any]:
    amounts: dict[str, Any] = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return amounts


def test_filled_jobs_are_valid_and_have_the_sizes_the_image_the_volume_and_a_token(tmp_path: Path) -> None:
    size = ["--nodes", "3", "--gpus-per-node", "4", "--cpus-per-node", "16", "--memory-per-node", "64", "--time", "2h"]
    config, job = dry_run(tmp_path, *size, "--folder", "/my volume")
    check(config, job)
    assert groups(job)["gpu"]["replicas"] == groups(job)["gpu"]["maxReplicas"] == 3
    assert groups(job)["cpu"]["replicas"] == 0
    assert limits(groups(job)["gpu"]) == {"cpu": 16, "memory": "64Gi", "nvidia.com/gpu": 4}
    assert job["spec"]["activeDeadlineSeconds"] == 7200
    assert job["metadata"]["namespace"] == "lab"
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for template in templates(job):
        [container] = template["spec"]["containers"]
        assert container["image"] == "registry.example.org/p:1"
        assert {"name": "shared", "mountPath": "/my volume"} in container["volumeMounts"]
        assert {"name": "shared", "persistentVolumeClaim": {"claimName": "pixels"}} in template["spec"]["volumes"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
    head = templates(job)[0]["spec"]
    assert {"name": "job", "configMap": {"name": config["metadata"]["name"]}} in head["volumes"]
    config, job = dry_run(tmp_path, "--device", "cpu", "--memory-per-node", "10")
    check(config, job)
    assert groups(job)["gpu"]["replicas"] == 0
    assert groups(job)["cpu"]["replicas"] == 1
    assert limits(groups(job)["cpu"]) == {"cpu": 8, "memory": "10Gi"}
    assert "activeDeadlineSeconds" not in job["spec"]
    for name in ("7." + "very_long-" * 7 + "name", "a"):  # which becomes one that Kubernetes allows
        config, job = dry_run(tmp_path, "--set", f"name={name}")
        check(config, job)
        assert config["metadata"] == job["metadata"]


def test_awkward_names_and_values_reach_the_run_unchanged(tmp_path: Path) -> None:
    """What the head runs is run here: the script of the ConfigMap, with a launch.py that notes its arguments."""
    title = f"title={json.dumps(AWKWARD)}"
    name = "tiny's $(touch broken).yaml"
    volume = tmp_path / "a $(touch broken) volume"
    config, job = dry_run(tmp_path, "--folder", str(volume), "--", "--set", title, "--ranks", "1", name=name)
    mounted, project = tmp_path / "job", tmp_path / "project"
    for folder in (volume, mounted, project):
        folder.mkdir()
    for key, text in config["data"].items():
        (mounted / key).write_text(text)
    (project / "launch.py").write_text("import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv[1:]]))")
    (project / "python").symlink_to(sys.executable)
    words = job["spec"]["entrypoint"].split()
    assert words == ["bash", "/job/job.sh", "/opt/pixelpick-ray", "/job/experiment.yaml"]
    command = ["bash", str(mounted / "job.sh"), str(project), str(mounted / "experiment.yaml")]
    path = f"{project}:{os.environ['PATH']}"
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PATH": path})
    run = ["run", str(mounted / "experiment.yaml"), "--address", "auto", "--set", title, "--ranks", "1"]
    assert json.loads(done.stdout) == [str(volume), *run]
    assert (mounted / "experiment.yaml").read_text() == TINY
    assert not list(tmp_path.rglob("broken"))


def test_a_run_that_waits_for_people_is_not_tried_again(tmp_path: Path) -> None:
    script = (ROOT / "cluster" / "ray" / "job.sh").read_text().replace("folder=/shared", f"folder='{tmp_path}'")
    (tmp_path / "job.sh").write_text(script)
    (tmp_path / "python").symlink_to(sys.executable)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    asks = "open(os.environ['PIXELPICK_JOB'] + '/people', 'w').write('5 answers'); "
    for run, status in ((asks + "sys.exit(3)", 0), (asks + "sys.exit(1)", 1), ("sys.exit(3)", 3), ("sys.exit(0)", 0)):
        (tmp_path / "launch.py").write_text(f"import os, sys; {run}")
        before = sorted(tmp_path.iterdir())
        done = subprocess.run(["bash", "job.sh", ".", "x.yaml"], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert ("submit it again then. 5 answers" in done.stdout) == ("5 answers" in run and status == 0)
        assert sorted(tmp_path.iterdir()) == before


def test_the_template_is_valid_and_runs_the_script_of_the_ray_job_and_what_the_image_holds() -> None:
    config, job = yaml.safe_load_all(TEMPLATE)
    check(config, job)
    assert job["metadata"]["name"] == config["metadata"]["name"]
    assert parse_experiment(config["data"]["experiment.yaml"], where="rayjob.yaml").name == "my-study"
    scripts = config["data"]["job.sh"], (ROOT / "cluster" / "ray" / "job.sh").read_text()
    mine, rays = ([line for line in text.splitlines() if not line.startswith(("#", "options="))] for text in scripts)
    assert mine == rays
    image = (ROOT / "cluster" / "kubernetes" / "Dockerfile").read_text()
    [folder] = re.findall(r"^WORKDIR (.+)$", image, flags=re.MULTILINE)
    assert job["spec"]["entrypoint"].split()[2] == folder
    copied = [word for line in re.findall(r"^COPY (.+)$", image, flags=re.MULTILINE) for word in line.split()[:-1]]
    assert {"launch.py", "pixelpick_ray", "requirements.txt"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    [version] = re.findall(r"^ray\[tune\]==(.+)$", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version
    for file in ("cluster/ray/cluster.yaml", "requirements-dev.txt"):
        assert f"ray[default]=={version}" in (ROOT / file).read_text()


def test_image_and_claim_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    outcome = launch(tmp_path, "submit", "tiny.yaml", "--to", "kubernetes")
    assert outcome.status == 2
    assert "--image" in outcome.err
    assert "--claim" in outcome.err
