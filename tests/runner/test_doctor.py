"""The doctor: what is made of facts, for every failure, and what two real nodes of a cluster answer."""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pixelpick_ray.runner import survey
from pixelpick_ray.runner.doctor import Facts, Gpu, Meeting, NodeFacts, diagnose
from pixelpick_ray.runner.inspection import appears, contents, gpus, probe
from pixelpick_ray.store import Store
from tests.support.experiments import experiment_text
from tests.support.fault_cluster import Nodes
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
        "ok    GPUs       cluster: none in use",
        "ok    all-reduce one and two: two ranks on cuda completed an all-reduce in 1.5 s",
        "ok    versions   one: Python 3.11.7, torch 2.11.0",
        "ok    data       one: the driver's: camvid train",
        "ok    store      one: read and written by both",
        "ok    clock      one: 0.25 s behind the driver's, within 0.01 s",
        "ok    disk       one: 50.0 GiB free for the store in /store",
        "ok    GPUs       one: H100 79 of 80 GiB free; H100 79 of 80 GiB free",
    ]
    assert [line.what for line in lines[9:]] == [line.what for line in lines[3:9]]


def with_node(**changes: Any) -> Facts:
    """The second node is not as it should be."""
    return replace(WELL, nodes=(NODE, replace(NODE, name="two", **changes)))


SAME_NETWORK = "let the nodes reach each other on every port, and name the network with GLOO_SOCKET_IFNAME"
WRONG: list[tuple[Facts, list[str]]] = [
    (
        replace(
            with_node(
                versions={"Python": "3.12.1"},
                contents={"camvid train": "b2"},
                problems={"store": "/store on this node does not contain what the driver wrote"},
                clock=(61.5, 0.5),
                free={"decoded images": ("/cache", GIB // 2)},
                gpus=(Gpu("H100", 80 * GIB, 79 * GIB), Gpu("H100", 80 * GIB, 12 * GIB)),
            ),
            trial="a trial of 4 ranks needs 1 GPU per rank; lower --ranks",
            taken_gpus=3.0,
            meeting=Meeting(("one", "two"), "cuda", problem="no result in 120 s"),
        ),
        [
            "trial      cluster: a trial of 4 ranks needs 1 GPU per rank; lower --ranks",
            "GPUs       cluster: 3 GPUs are in use by other jobs of this cluster; wait for them, or stop those",
            f"all-reduce one and two: two ranks on cuda: no result in 120 s; {SAME_NETWORK} and NCCL_SOCKET_IFNAME",
            "versions   two: Python 3.12.1, the driver has 3.11.7; torch absent, the driver has 2.11.0; install the",
            "data       two: camvid train: differs from the driver's; copy the driver's files, or use",
            "store      two: /store on this node does not contain what the driver wrote; give --store a folder",
            "clock      two: 61.50 s ahead of the driver's, within 0.50 s; leases in the store need synchronised",
            "disk       two: only 0.5 GiB free for decoded images in /cache, at least 2 are needed; free space, or",
            "GPUs       two: H100 79 of 80 GiB free; H100 12 of 80 GiB free; GPU 1 is used by another program; stop it",
        ],
    ),
    (
        with_node(problems={"answer": "no response within 60 s"}),
        ["answer     two: no response within 60 s; check that the node is alive, that this checkout is at the same"],
    ),
    (
        with_node(
            problems={
                "data": "no response within 300 s",
                "clock": "no response within 60 s",
                "GPUs": "nvidia-smi fails (x)",
            }
        ),
        [
            "data       two: no response within 300 s",
            "clock      two: no response within 60 s",
            "GPUs       two: nvidia-smi fails (x)",
        ],
    ),
    (
        replace(
            with_node(contents={}, absent={"camvid train": "no folder /data; give it with --data"}, gpus=()),
            driver=replace(
                DRIVER,
                absent={"weights resnet50 imagenet": "no weights at /data"},
                problems={"store": "/store: cannot be written (Read-only file system)"},
            ),
            meeting=Meeting(("one",), "cpu", problem="Connection refused"),
        ),
        [
            f"all-reduce one: two ranks on cpu: Connection refused; {SAME_NETWORK}",
            "data       driver: weights resnet50 imagenet: no weights at /data",
            "store      driver: /store: cannot be written (Read-only file system)",
            "data       two: camvid train: no folder /data; give it with --data",
            "GPUs       two: Ray counts 2 GPUs, nvidia-smi shows 0; restart Ray there with the right number",
        ],
    ),
]


@pytest.mark.parametrize(("facts", "told"), WRONG)
def test_what_is_wrong_is_one_line_each_with_what_to_do_and_the_rest_stays_well(facts: Facts, told: list[str]) -> None:
    """These are their beginnings."""
    wrong = [str(line) for line in diagnose(facts) if not line.ok]
    assert [line[: len(start) + 6] for line, start in zip(wrong, told, strict=True)] == [f"WRONG {one}" for one in told]


def test_a_clock_may_be_as_wrong_as_the_way_there_and_back_explains_and_gpus_matter_only_where_needed() -> None:
    for clock, ok in (((20.0, 6.0), True), ((20.0, 4.0), False), ((-20.0, 4.0), False), ((-14.0, 0.0), True)):
        assert all(line.ok for line in diagnose(with_node(clock=clock))) == ok
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
    assert "does not contain what the driver wrote" in probe(
        str(tmp_path / "b"), "doctor/driver.json", "x.json", "mark"
    )
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


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A cluster of two nodes, and the variables of who joins it."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # sockets need short paths
        variables = {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        patient = {"num_cpus": 1, "_system_config": {}}  # for a node that is stopped is to stay a member
        cluster = Nodes(variables | {"PYTHONPATH": str(ROOT)}, patient, {"num_cpus": 1})
        yield cluster
        psutil.Process(cluster.raylet).resume()
        cluster.stop()


@pytest.mark.ray
def test_two_nodes_are_asked_and_one_that_stops_answering_is_a_finding(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    done = launch(tmp_path, "doctor", "tiny.yaml", "--ranks", "2", "--address", nodes.address, "--json")
    assert done.status == 0, done.out + done.err
    told = json.loads(done.out)
    assert told["ok"] is True
    names = {line["where"] for line in told["lines"] if line["what"] == "versions"}
    second = nodes.worker_id[:6]
    assert len(names) == 2
    assert any(name.endswith(second) for name in names)
    for name in names:
        assert [line["what"] for line in told["lines"] if line["where"] == name] == [
            *("versions", "data", "store", "clock", "disk", "disk", "disk")
        ]
    (met,) = [line for line in told["lines"] if line["what"] == "all-reduce"]
    assert set(met["where"].split(" and ")) == names
    assert [path.name for path in (tmp_path / "store").rglob("*")] == []

    monkeypatch.setattr(survey, "ANSWER_SECONDS", 3.0)
    psutil.Process(nodes.raylet).suspend()
    start = time.monotonic()
    done = launch(tmp_path, "doctor", "tiny.yaml", "--address", nodes.address)
    assert done.status == 1, done
    assert time.monotonic() - start < 60
    (wrong,) = [line for line in done.out.splitlines() if line.startswith("WRONG answer") and second in line]
    assert f"{second}: no response within 3 s; check that the node is alive, that this checkout is at" in wrong
