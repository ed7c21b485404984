"""Two network namespaces as two real nodes: the Slurm job's own commands start Ray on both and run one experiment."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster_experiment import TINY
from tests.support.fake_slurm import Node, Slurm
from tests.support.launch import ROOT, launch
from tests.support.network_namespaces import NODES, SLURMD_PORT, two_nodes, why_not

pytestmark = [pytest.mark.ray, pytest.mark.skipif(bool(why_not()), reason=why_not())]
SIZES = ["--nodes", "2", "--cpus-per-node", "1", "--ranks", "2", "--cpus-per-rank", "1", "--device", "cpu"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """A Slurm of two nodes, each a namespace; the experiment lies beside it."""
    slurm = Slurm(tmp_path / "slurm", [Node(name, address, SLURMD_PORT) for name, address in NODES.items()])
    (tmp_path / "tiny.yaml").write_text(TINY)
    for key, value in slurm.environment().items():
        monkeypatch.setenv(key, value)
    return slurm


def submitted(place: Path, slurm: Slurm, *options: str) -> dict[str, Any]:
    outcome = launch(place, "submit", "tiny.yaml", "--to", "slurm", *SIZES, *options)
    assert outcome.status == 0, outcome.err
    return slurm.job()


@contextmanager
def started(
    job: dict[str, Any], place: Path, on_second: tuple[str, ...] = ("true",)
) -> Iterator[tuple["subprocess.Popen[bytes]", list[str]]]:
    """The batch shell on the first node, and the prefix of a command that runs there too; `on_second` is a command for
    the second node before that.
    """
    environment = job["env"] | {"XDG_CACHE_HOME": str(place / "cache")}
    nodes = two_nodes(place, Path(f"/tmp/pixelpick-{job['id']}"))
    with nodes as (on_first_node, on_second_node), log(place).open("ab") as stream:
        subprocess.run([*on_second_node, *on_second], check=True)
        command = [*on_first_node, *job["argv"]]
        yield subprocess.Popen(command, env=environment, cwd=job["cwd"], stdout=stream, stderr=stream), on_first_node


def log(place: Path) -> Path:
    return place / "job.log"


def requeued(slurm: Slurm) -> int:
    return sum("requeue" in call for call in slurm.calls("scontrol"))


def steps(place: Path) -> list[tuple[str, int, str, str]]:
    """Host, rank, phase and event of all that the workers noted."""
    return [
        (path.name.rpartition("-")[0], step["rank"], step["phase"], step["event"])
        for path in (place / "runs" / "tiny" / "steps").glob("*.jsonl")
        for step in map(json.loads, path.read_text().splitlines())
    ]


RANK = """
import sys, torch
from pixelpick_ray.engine.world import join
rank, address = int(sys.argv[1]), sys.argv[2]
with join(rank=rank, size=2, device=torch.device("cpu"), address=address, timeout_seconds=100) as world:
    print(world.sum_(torch.tensor(rank + 1.0)).item())
"""


def test_ranks_meet_over_the_network_though_each_node_knows_itself_as_a_loopback(tmp_path: Path, slurm: Slurm) -> None:
    address = f"{next(iter(NODES.values()))}:29400"
    with two_nodes(tmp_path, tmp_path / "job") as prefixes:
        commands = [[*prefix, sys.executable, "-c", RANK, str(rank), address] for rank, prefix in enumerate(prefixes)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        ranks = [subprocess.Popen(one, env=environment, stdout=subprocess.PIPE, text=True) for one in commands]
        assert [rank.communicate(timeout=120)[0] for rank in ranks] == ["3.0\n", "3.0\n"]


@pytest.mark.always("two nodes")
def test_the_slurm_job_runs_a_trial_whose_two_ranks_are_on_two_nodes(tmp_path: Path, slurm: Slurm) -> None:
    with started(submitted(tmp_path, slurm), tmp_path) as (process, _):
        assert process.wait(timeout=400) == 0, log(tmp_path).read_text()
    assert "values of one seed" in log(tmp_path).read_text()
    fitting = [(host, rank) for host, rank, phase, _ in steps(tmp_path) if phase == "fit"]
    assert {host for host, _ in fitting} == NODES.keys()
    assert {rank for _, rank in fitting} == {0, 1}
    [provenance] = (tmp_path / "store").glob("fit/*/provenance.json")
    assert json.loads(provenance.read_text())["world_size"] == 2
    assert requeued(slurm) == 0


@pytest.mark.slow
def test_a_store_that_is_another_folder_on_one_node_is_refused_before_anything_is_trained(
    tmp_path: Path, slurm: Slurm
) -> None:
    (tmp_path / "store").mkdir()
    hidden = ("mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "store"))
    with started(submitted(tmp_path, slurm), tmp_path, hidden) as (process, _):
        assert process.wait(timeout=400) == 2, log(tmp_path).read_text()
    told = log(tmp_path).read_text()
    assert re.search(
        r"error: --store: node-b 10.77.0.2 \w+: \S+/store on this node does not have what the driver", told
    )
    assert "; give --store a folder that every node sees" in told
    assert not list((tmp_path / "store").glob("fit/*"))


@pytest.mark.slow
def test_a_preempted_job_stops_with_3_goes_back_into_the_queue_and_then_ends(tmp_path: Path, slurm: Slurm) -> None:
    job = submitted(tmp_path, slurm, "--set", "train.epochs=60")
    with started(job, tmp_path) as (process, on_first_node):
        deadline = time.monotonic() + 200
        while not any(phase == "fit" for _, _, phase, _ in steps(tmp_path)):
            assert process.poll() is None, log(tmp_path).read_text()
            assert time.monotonic() < deadline, log(tmp_path).read_text()
            time.sleep(0.2)
        subprocess.run([*on_first_node, "pkill", "-TERM", "-o", "-f", job["argv"][1]], check=True)
        assert process.wait(timeout=200) == 3, log(tmp_path).read_text()
    assert requeued(slurm) == 1
    assert not list((tmp_path / "store").glob("fit/*/manifest.json"))
    with started(job, tmp_path) as (process, _):
        assert process.wait(timeout=400) == 0, log(tmp_path).read_text()
    assert requeued(slurm) == 1
