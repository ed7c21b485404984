"""What other processes say is looked up: results in the store, and why a process is gone."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pixelpick_ray.config.execution import Execution, cpu_quota, local_cpus
from pixelpick_ray.errors import SpecError
from pixelpick_ray.events import ChainFailed, Event, FitTrained, PixelsPicked, StageDone, encode
from pixelpick_ray.runner import cluster, tune
from pixelpick_ray.runner.cluster import private_folder
from pixelpick_ray.runner.failures import LOST, explain_loss
from pixelpick_ray.runner.tune import Relay, check_sees_run
from pixelpick_ray.store import Store, absolute, absolute_path
from pixelpick_ray.store.backend import process_stamp

CURE = "give --store a folder that every node can write to under the same path, or an address such as s3://"


# Results


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(tune, "VISIBLE_SECONDS", 0.0)
    return Store(tmp_path / "store")


def test_what_a_node_says_is_stored_fails_its_chain_where_the_driver_does_not_see_it(store: Store) -> None:
    told: list[tuple[str, Callable[[str], Event]]] = [
        ("fit", lambda key: FitTrained("chain", 0, key)),
        ("fit", lambda key: StageDone("chain", 0, True, 2, key, 0.5, ((1, 0.5),), (1.0,), 2.0)),
        ("pick", lambda key: PixelsPicked("chain", 0, True, key)),
    ]
    for kind, event in told:
        heard: list[Event] = []
        relay = Relay(heard.append, 3, store)
        stop = tune._StopWhen(lambda: False, relay)
        stored = store.publish(kind, {"x": 1}, lambda folder: None, {}).name
        for key in (stored, "0" * 64, stored):
            result = {"event": encode(event(key))}
            relay.on_trial_result(0, [], None, result)
            assert stop("trial", result) == bool(relay.errors)
        why = f"a node reports {kind} 000000000000 as stored, but the driver does not see it in the store; {CURE}"
        assert heard == [event(stored), ChainFailed("chain", why, final=True)]  # what it says later is not heard


def test_a_trial_on_a_node_whose_store_is_another_one_trains_nothing(store: Store, tmp_path: Path) -> None:
    here = Execution(tmp_path, str(store.path), tmp_path, run="abc-1")
    with store.take("run", "abc-1") or pytest.fail("nobody has it"):
        check_sees_run(here)
        there = Execution(tmp_path, str(tmp_path / "other"), tmp_path, run="abc-1")
        with pytest.raises(SpecError, match=r"/other on node .* is a different store from .*; give --store"):
            check_sees_run(there)


def test_paths_are_absolute_and_no_link_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, link = tmp_path / "disk-7", tmp_path / "shared"
    real.mkdir()
    link.symlink_to(real)
    monkeypatch.chdir(link)
    monkeypatch.setenv("PWD", str(link))
    assert absolute_path(Path("store")) == link / "store"
    assert absolute("store") == str(link / "store")
    assert absolute("s3://bucket/store") == "s3://bucket/store"
    monkeypatch.setenv("PWD", "/")  # of a shell that has gone elsewhere since
    assert absolute_path(Path("store")) == real / "store"


# Processes that are gone


MONITOR = """The actor died unexpectedly before finishing this task.
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.2, ID: ab) was 15.20GB \
used / 16.00GB limit (0.950000)"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (MONITOR, "Ray's memory monitor ended its process, because the node was low on memory, 15.20 of 16.00 GB were"),
        (
            "The actor died because of an error raised in its creation task\nModuleNotFoundError: No module named 'y'",
            f"{LOST} (ModuleNotFoundError: No module named 'y')",
        ),
        (
            "Worker exits unexpectedly. Worker exits with an exit code None. Traceback (most recent call last):\n"
            "ModuleNotFoundError: No module named 'y'\nAn unexpected internal error occurred",
            f"{LOST} (ModuleNotFoundError: No module named 'y')",
        ),
        ("Some common causes include: (1) the process was killed by the OOM killer due to high memory usage", LOST),
    ],
)
def test_why_a_process_was_lost_is_told_and_recorded(text: str, told: str, store: Store, tmp_path: Path) -> None:
    assert explain_loss(text).startswith(told)
    heard: list[Event] = []
    relay = Relay(heard.append, 1, store, prefix="hunt ")
    raised = ray.exceptions.RayTaskError("train", "Traceback: no file", OSError("no file"))
    for name, content in (
        ("error.pkl", ray.cloudpickle.dumps(raised)),  # what Tune leaves of an exception that came before
        ("error.txt", f"Failure # 1 (occurred at 1)\n{raised}\nFailure # 2 (occurred at 2)\n{text}\n".encode()),
    ):
        (tmp_path / name).write_bytes(content)
    files = {"pickled_error_file": tmp_path / "error.pkl", "error_file": tmp_path / "error.txt"}
    trial: Any = SimpleNamespace(config={"name": "one"}, max_failures=9, **files)
    relay.on_trial_recover(0, [], trial)
    assert heard == [ChainFailed("one", explain_loss(text), final=False)]
    assert told in store.last_error("hunt one")
    relay.on_trial_recover(0, [], trial)
    assert relay.errors["one"].startswith(told)
    assert relay.errors["one"].endswith("(2 attempts without progress)")
    (tmp_path / "error.txt").write_text(f"Failure # 1 (occurred at 1)\n{raised}\n")
    heard.clear()
    Relay(heard.append, 1, store).on_trial_recover(0, [], trial)
    assert heard == []  # the trial itself reported its exception


# Private folders


def test_a_private_folder_goes_with_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "made"))
    stamp = process_stamp().rsplit(".", 1)[0]
    for name, owner in (("pp-dead", f"{stamp}.1"), ("pp-mine", process_stamp())):  # the number was used before
        (tmp_path / "made" / name).mkdir(parents=True)
        (tmp_path / "made" / name / "owner").write_text(owner)
    (tmp_path / "made" / "pp-of-somebody-else").mkdir()
    with private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {path.name for path in folder.parent.iterdir()} == {folder.name, "pp-mine", "pp-of-somebody-else"}
    assert not folder.exists()


def test_a_ray_tmpdir_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'x' * 60}")
    with pytest.raises(SpecError, match=r"RAY_TMPDIR: '/tmp/x+' is 65 characters long, .* leave room for \d+;"):
        with private_folder(longest=cluster.LONGEST_TEMPORARY):
            pass
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    with pytest.raises(SpecError, match=r"RAY_TMPDIR: cannot create a folder in .*/file' \(File exists\); set"):
        with private_folder():
            pass
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr(cluster.tempfile, "tempdir", str(tmp_path))
    with private_folder(longest=10) as folder:  # nobody has asked for the long one
        assert folder.parent == Path("/tmp")


# CPUs


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        (
            "0::/pod/one\n",
            {"pod/one/cpu.max": "max 100000", "pod/cpu.max": "250000 100000", "cpu.max": "max 100000"},
            2.5,
        ),
        (
            "5:memory:/m\n4:cpu,cpuacct:/docker/x\n",
            {"cpu,cpuacct/docker/x/cpu.cfs_quota_us": "50000", "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "not a number"}, None),
    ],
)
def test_a_containers_quota_limits_the_cpus(
    groups: str, files: dict[str, str], cpus: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(f"{text}\n")
    quota = cpu_quota(tmp_path / "cgroup", tmp_path / "root")
    assert quota == (float("inf") if cpus is None else cpus)
    monkeypatch.setattr("pixelpick_ray.config.execution.cpu_quota", lambda *_: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert local_cpus() == (64 if cpus is None else max(1, int(cpus)))
