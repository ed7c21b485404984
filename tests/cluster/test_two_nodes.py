"""Two network namespaces as two real nodes: the Slurm job's own commands start Ray on both and run one experiment."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.cluster_experiment import TINY
from tests.support.fake_slurm import Node, Slurm
from tests.support.launch import launch
from tests.support.network_namespaces import NODES, SLURMD_PORT, two_nodes, why_not

pytestmark = [pytest.mark.ray, pytest.mark.skipif(bool(why_not()), reason=why_not())]
SIZES = ["--nodes", "2", "--cpus-per-node", "1", "--ranks", "2", "--cpus-per-rank", "1", "--device", "cpu"]


def run_job(place: Path, *on_second: str) -> tuple[int, str, Slurm]:
    """Status and log of the job of two nodes, and its Slurm; `on_second` is a command for the second node before that.

    As on real nodes, each knows itself as a loopback address.
    """
    slurm = Slurm(place / "slurm", [Node(name, address, SLURMD_PORT) for name, address in NODES.items()])
    (place / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in slurm.environment().items():
            patch.setenv(key, value)
        outcome = launch(place, "submit", "tiny.yaml", "--to", "slurm", *SIZES)
    assert outcome.status == 0, outcome.err
    job, log = slurm.job(), place / "job.log"
    script = Path(job["argv"][1])
    script.write_text(script.read_text().replace("sleep 20", "sleep 3"))  # until what still runs on the other is ended
    environment = job["env"] | {"XDG_CACHE_HOME": str(place / "cache")}
    with two_nodes(place, Path(f"/tmp/pixelpick-{job['id']}")) as (first, second), log.open("wb") as stream:
        if on_second:
            subprocess.run([*second, *on_second], check=True)
        command = [*first, *job["argv"]]
        status = subprocess.run(command, env=environment, cwd=job["cwd"], stdout=stream, stderr=stream, timeout=400)
    return status.returncode, log.read_text(), slurm


@pytest.mark.always("two nodes")
def test_the_slurm_job_runs_a_trial_whose_two_ranks_are_on_two_nodes(tmp_path: Path) -> None:
    status, log, slurm = run_job(tmp_path)
    assert status == 0, log
    assert "values of one seed" in log
    fitting = {
        (path.name.rpartition("-")[0], step["rank"])
        for path in (tmp_path / "runs" / "tiny" / "steps").glob("*.jsonl")
        for step in map(json.loads, path.read_text().splitlines())
        if step["phase"] == "fit"
    }
    assert sorted(host for host, _ in fitting) == sorted(NODES)
    assert {rank for _, rank in fitting} == {0, 1}
    [provenance] = (tmp_path / "store").glob("fit/*/provenance.json")
    assert json.loads(provenance.read_text())["world_size"] == 2
    assert not [call for call in slurm.calls("scontrol") if "requeue" in call]


@pytest.mark.slow
def test_a_store_that_is_another_folder_on_one_node_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    status, log, _ = run_job(tmp_path, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "store"))
    assert status == 2, log
    assert re.search(r"error: --store: node-b 10.77.0.2 \w+: \S+/store on this node does not have what the driver", log)
    assert "; give --store a folder that every node sees" in log
    assert not list((tmp_path / "store").glob("fit/*"))
