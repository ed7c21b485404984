"""The doctor: what is made of facts, for every failure, and what two real nodes of a cluster answer."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.runner import survey
from pixelpick_ray.runner.doctor import Facts, Finding, Gpu, Meeting, NodeFacts, diagnose
from pixelpick_ray.runner.inspection import appears, contents, gpus, probe
from pixelpick_ray.store import Store
from tests.support.experiments import experiment_text
from tests.support.launch import ROOT, launch
from tests.support.stores import execution_at, tiny_plan

GIB = 2**30
DRIVER = NodeFacts("driver", versions={"Python": "3.11.7", "torch": "2.11.0"}, contents={"camvid train": "a1"})
NODE = replace(
    DRIVER,
    name="one",
    free={"the store": ("/store", 50 * GIB)},
    gpus=(Gpu("H100", 80 * GIB, 79 * GIB),) * 2,
    counted_gpus=2.0,
    clock=(-0.25, 0.01),
)
WELL = Facts(DRIVER, (NODE, replace(NODE, name="two")), needs_gpus=True, meeting=Meeting(("one", "two"), "cuda", 1.5))


# Facts to lines


def test_a_fit_cluster_is_told_line_by_line() -> None:
    lines = diagnose(WELL)
    assert all(line.ok for line in lines)
    assert [str(line) for line in lines[:9]] == [
        "ok    trial      cluster: 2 nodes, a trial fits",
        "ok    GPUs       cluster: none is in use",
        "ok    all-reduce one and two: two ranks on cuda completed an all-reduce in 1.5 s",
        "ok    versions   one: Python 3.11.7, torch 2.11.0",
        "ok    data       one: the driver's: camvid train",
        "ok    store      one: read and written by both",
        "ok    clock      one: 0.25 s behind the driver's, within 0.01 s",
        "ok    disk       one: 50.0 GiB are free for the store in /store",
        "ok    GPUs       one: H100 79 of 80 GiB free; H100 79 of 80 GiB free",
    ]
    assert [line.what for line in lines[9:]] == [line.what for line in lines[3:9]]


def with_node(**changes: Any) -> Facts:
    """The second node is not as it should be."""
    return replace(WELL, nodes=(NODE, replace(NODE, name="two", **changes)))


WRONG: dict[str, tuple[Facts, str]] = {
    "answer two": (
        with_node(problems={"answer": "no answer in 60 s"}),
        "no answer in 60 s; is the node alive, is this checkout at the same place there, and can its Python import it?",
    ),
    "versions two": (
        with_node(versions={"Python": "3.12.1"}),
        "Python 3.12.1, the driver has 3.11.7; torch absent, the driver has 2.11.0; install the versions of "
        "requirements.txt, and the same checkout, on every node",
    ),
    "data two": (
        with_node(contents={"camvid train": "b2"}),
        "camvid train: other content than the driver has; copy the driver's files, or let both see one folder",
    ),
    "data two absent": (
        with_node(contents={}, absent={"camvid train": "camvid: no folder /data; give it with --data"}),
        "camvid train: camvid: no folder /data; give it with --data",
    ),
    "data two unknown": (with_node(problems={"data": "no answer in 300 s"}), "no answer in 300 s"),
    "data driver": (
        replace(WELL, driver=replace(DRIVER, contents={}, absent={"weights resnet50 imagenet": "no weights at /data"})),
        "weights resnet50 imagenet: no weights at /data",
    ),
    "store driver": (
        replace(WELL, driver=replace(DRIVER, problems={"store": "/store: cannot be written (Read-only file system)"})),
        "/store: cannot be written (Read-only file system)",
    ),
    "store two": (
        with_node(problems={"store": "/store on this node does not have what the driver writes there"}),
        "/store on this node does not have what the driver writes there; give --store a folder that every node "
        "sees and may write to under one path, or an address such as s3://",
    ),
    "clock two": (
        with_node(clock=(61.5, 0.5)),
        "61.50 s ahead of the driver's, within 0.50 s; leases of the store need clocks that agree: set them by NTP",
    ),
    "clock two unknown": (with_node(problems={"clock": "no answer in 60 s"}), "no answer in 60 s"),
    "disk two": (
        with_node(free={"decoded images": ("/cache", GIB // 2)}),
        "0.5 GiB are free for decoded images in /cache, 2 are needed at least; make room or give another folder",
    ),
    "GPUs two": (
        with_node(gpus=(Gpu("H100", 80 * GIB, 79 * GIB), Gpu("H100", 80 * GIB, 12 * GIB))),
        "H100 79 of 80 GiB free; H100 12 of 80 GiB free; GPU 1 is used by another program; stop it (nvidia-smi "
        "shows it)",
    ),
    "GPUs two absent": (with_node(gpus=()), "Ray counts 2, nvidia-smi shows 0; start Ray there with what it has"),
    "GPUs two unknown": (
        with_node(problems={"GPUs": "nvidia-smi fails (x); repair the node's driver, or leave the node out"}),
        "nvidia-smi fails (x); repair the node's driver, or leave the node out",
    ),
    "trial cluster": (
        replace(WELL, trial="a trial of 4 ranks needs 1 GPU for each rank; lower --ranks"),
        "a trial of 4 ranks needs 1 GPU for each rank; lower --ranks",
    ),
    "GPUs cluster": (
        replace(WELL, taken_gpus=3.0),
        "3 GPUs are in use by other jobs of this cluster; trials wait for them, or stop those jobs",
    ),
    "all-reduce one and two": (
        replace(WELL, meeting=Meeting(("one", "two"), "cuda", problem="no result in 120 s")),
        "two ranks on cuda: no result in 120 s; let the nodes reach each other on every port, and name the network "
        "with GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME; NCCL_DEBUG=INFO says more",
    ),
    "all-reduce one": (
        replace(WELL, meeting=Meeting(("one",), "cpu", problem="Connection refused")),
        "two ranks on cpu: Connection refused; let the nodes reach each other on every port, and name the network "
        "with GLOO_SOCKET_IFNAME",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_with_what_to_do_and_the_rest_stays_well(case: str) -> None:
    facts, told = WRONG[case]
    what, where = re.sub(" (absent|unknown)$", "", case).split(" ", 1)
    (wrong,) = [line for line in diagnose(facts) if not line.ok]
    assert wrong == Finding(what, where, False, told)
    assert str(wrong).startswith("WRONG ")


def test_a_clock_counts_as_wrong_only_beyond_what_the_way_there_and_back_explains() -> None:
    for clock, ok in (((20.0, 6.0), True), ((20.0, 4.0), False), ((-20.0, 4.0), False), ((-14.0, 0.0), True)):
        assert all(line.ok for line in diagnose(with_node(clock=clock))) == ok


def test_gpus_are_no_matter_where_none_is_needed() -> None:
    facts = replace(with_node(gpus=(), counted_gpus=2.0), needs_gpus=False, taken_gpus=3.0, meeting=None)
    assert [line for line in diagnose(facts) if not line.ok or line.what in ("GPUs", "all-reduce")] == []


# What a node finds out about itself


def test_contents_are_named_and_what_is_absent_is_told_once(tmp_path: Path, write_camvid: Any) -> None:
    plan = tiny_plan("model.pretrained=imagenet")
    execution = execution_at(tmp_path, write_camvid(splits=("train",)))
    found, absent = contents(plan, execution)
    assert list(found) == ["camvid train 8x10"]
    assert list(absent) == ["weights test_resnet imagenet", "camvid test 8x10"]
    assert "no weights at" in absent["weights test_resnet imagenet"]
    assert "no folder" in absent["camvid test 8x10"]
    image = execution.data_path / "camvid" / "train" / "train_000.png"
    image.write_bytes((execution.data_path / "camvid" / "train" / "train_001.png").read_bytes())
    assert contents(plan, execution)[0].keys() == found.keys()
    assert contents(plan, execution)[0] != found
    absent = contents(tiny_plan(), replace(execution, data_path=tmp_path / "none"))[1]
    assert list(absent) == ["camvid train 8x10", "camvid test 8x10"]
    found, absent = contents(tiny_plan("dataset={name: folder, path: leaves}"), execution)
    assert (found, list(absent)) == ({}, ["folder"])
    assert "leaves/dataset.yaml: cannot be read" in absent["folder"]


def test_a_store_that_is_not_the_drivers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelpick_ray.runner.inspection.VISIBLE_SECONDS", 0.1)
    Store(tmp_path / "a").write_record("doctor/driver.json", {"mark": "mark"})
    assert probe(str(tmp_path / "a"), "doctor/driver.json", "doctor/mine.json", "mark") == ""
    assert appears(Store(tmp_path / "a"), "doctor/mine.json", "mark")
    assert "does not have what the driver writes" in probe(str(tmp_path / "b"), "doctor/driver.json", "x.json", "mark")
    (tmp_path / "file").write_text("")
    assert "file" in probe(str(tmp_path / "file"), "doctor/driver.json", "x.json", "mark")


SMI = "NVIDIA H100 80GB HBM3, 81559, 81000\nSome, GPU, 100, 50\n"


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == ()
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{SMI}'\n")
    tool.chmod(0o755)
    mib = 2**20
    assert gpus() == (Gpu("NVIDIA H100 80GB HBM3", 81559 * mib, 81000 * mib), Gpu("Some, GPU", 100 * mib, 50 * mib))
    tool.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(RuntimeError, match=r"nvidia-smi fails \(.*status 9.*\); repair the node's driver"):
        gpus()


# Two real nodes

TINY = experiment_text(evaluate="{splits: {val: {}}, report: val}")
CLUSTER = """
import os, signal, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
raylet = second.all_processes["raylet"][0].process.pid
print(cluster.address, second.node_id[:6], flush=True)
sys.stdin.readline()
os.kill(raylet, signal.SIGSTOP)
print("stopped", flush=True)
sys.stdin.readline()
os.kill(raylet, signal.SIGCONT)
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, str, "subprocess.Popen[str]"]]:
    """Address of a cluster of two nodes, the second's name, and the process that stops it on the first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout
    address, second = process.stdout.readline().split()
    yield address, second, process
    process.communicate("\n\n", timeout=60)


@pytest.mark.ray
def test_two_nodes_are_asked_and_one_that_stops_answering_is_a_finding(
    cluster: tuple[str, str, "subprocess.Popen[str]"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, second, process = cluster
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # as the cluster's, also for a user who has a token
    (tmp_path / "tiny.yaml").write_text(TINY)
    done = launch(tmp_path, "doctor", "tiny.yaml", "--ranks", "2", "--address", address, "--json")
    assert done.status == 0, done.out + done.err
    told = json.loads(done.out)
    assert told["ok"] is True
    nodes = {line["where"] for line in told["lines"]} - {"cluster"}
    single = {name for name in nodes if " and " not in name}
    assert len(single) == 2
    assert any(name.endswith(second) for name in single)
    for name in single:
        assert [line["what"] for line in told["lines"] if line["where"] == name] == [
            *("versions", "data", "store", "clock", "disk", "disk", "disk")
        ]
    (met,) = [line for line in told["lines"] if line["what"] == "all-reduce"]
    assert set(met["where"].split(" and ")) == single
    assert [path.name for path in (tmp_path / "store").rglob("*")] == []

    monkeypatch.setattr(survey, "ANSWER_SECONDS", 8.0)
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "stopped\n"
    start = time.monotonic()
    done = launch(tmp_path, "doctor", "tiny.yaml", "--address", address)
    assert done.status == 1, done
    assert time.monotonic() - start < 60
    wrong = [line for line in done.out.splitlines() if line.startswith("WRONG answer") and second in line]
    assert len(wrong) == 1, done.out
    assert f"{second}: no answer in 8 s; is the node alive, is this checkout at the same place there" in wrong[0]
