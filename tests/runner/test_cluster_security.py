"""The cluster of a run and strangers: who can connect to it, where it listens, and whose token decides."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray._private import worker
from ray._private.runtime_env import uv_runtime_env_hook

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.errors import SpecError
from pixelpick_ray.runner import cluster
from pixelpick_ray.runner.cluster import authentication, joined
from tests.support.ray_cluster import RAY_SETTINGS

pytestmark = pytest.mark.ray

VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def execution(address: str | None = None) -> Execution:
    return Execution(Path("data"), "store", Path("cache"), address=address)


def given_variables() -> dict[str, str]:
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


@contextmanager
def variables(home: Path, **values: str) -> Iterator[None]:
    """Only these of Ray's variables for its token, and a home that holds none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for name in (*VARIABLES, "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        for name, value in values.items():
            patch.setenv(name, value)
        yield


# Which token


@pytest.mark.parametrize(
    ("given", "joins", "has_token", "mode", "fresh"),
    [
        ({}, False, False, "token", True),
        ({"RAY_AUTH_MODE": "disabled"}, False, False, "disabled", False),
        ({"RAY_AUTH_MODE": "Token"}, False, False, "Token", True),
        ({"RAY_AUTH_TOKEN_PATH": "file"}, False, True, "token", False),
        ({}, False, True, "token", True),  # a file in the home is for the user's other clusters
        ({"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN": ""}, False, False, "token", True),
        ({}, True, False, "disabled", False),
        ({}, True, True, "token", False),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "mine"}, True, True, "disabled", False),
    ],
)
def test_the_users_variables_decide_and_a_cluster_that_is_started_gets_a_fresh_token_where_they_say_nothing(
    given: dict[str, str], joins: bool, has_token: bool, mode: str, fresh: bool
) -> None:
    chosen = [authentication(given, joins=joins, has_token=has_token) for _ in range(2)]
    assert [values.pop("RAY_AUTH_MODE") for values in chosen] == [mode, mode]
    assert [set(values) for values in chosen] == [{"RAY_AUTH_TOKEN"} if fresh else set()] * 2
    if fresh:
        assert chosen[0] != chosen[1]
        assert len(chosen[0]["RAY_AUTH_TOKEN"]) == 64


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


# A cluster that a run starts


@pytest.fixture(scope="class")
def started(home: Path) -> Iterator[dict[str, str]]:
    """A cluster as a run starts it; its address and the variables of its processes."""
    with variables(home), joined(execution()):
        yield {"address": ray.get_runtime_context().gcs_address} | given_variables()


STRANGER = """
import json, os, sys
import ray
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient
for variables in json.loads(sys.argv[2]):
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ.update(variables)
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        GcsClient(address=sys.argv[1])
        print("connected")
    except Exception as error:
        print(type(error).__name__, str(error).partition(".")[0])
"""


def sockets_of(processes: list[psutil.Process], kind: str) -> list[Any]:
    found: list[Any] = []
    for process in processes:
        with suppress(psutil.Error):  # it has ended
            found += process.net_connections(kind)
    return found


def listening(processes: list[psutil.Process]) -> set[str]:
    """Addresses that these processes listen on."""
    return {one.laddr.ip for one in sockets_of(processes, "tcp") if one.status == psutil.CONN_LISTEN}


def mine() -> list[psutil.Process]:
    """This process and all that it has started."""
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


def two_ranks() -> list[Any]:
    """Two actors as a trial has them, which may meet through torch.distributed.

    The class is in the function because workers cannot import this file.
    """

    @ray.remote(num_cpus=0.1)
    class Rank:
        def address(self) -> str:
            from pixelpick_ray.runner.ranks import free_address

            return free_address()

        def join(self, rank: int, address: str) -> tuple[int, float]:
            import torch

            from pixelpick_ray.engine.world import join

            self.group = join(rank=rank, size=2, device=torch.device("cpu"), address=address, timeout_seconds=60)
            return os.getpid(), self.group.__enter__().sum_(torch.tensor(float(rank + 1))).item()

    return [Rank.remote() for _ in range(2)]  # type: ignore[attr-defined]


class TestStarted:
    """A cluster that a run starts on its machine."""

    def test_only_a_stranger_with_the_token_can_connect(self, started: dict[str, str], home: Path) -> None:
        attempts = [
            {"RAY_AUTH_MODE": "disabled"},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": started["RAY_AUTH_TOKEN"][::-1]},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": started["RAY_AUTH_TOKEN"]},
        ]
        clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        command = [sys.executable, "-c", STRANGER, started["address"], json.dumps(attempts)]
        done = subprocess.run(command, env=clean | {"HOME": str(home)}, capture_output=True, text=True, timeout=120)
        refused = "AuthenticationError RPC error: InvalidAuthToken: Authentication token is missing or incorrect"
        assert done.stdout.splitlines() == [refused, refused, "connected"], done.stderr

    def test_its_workers_have_the_token_which_no_file_has_and_the_priority_of_this_process(
        self, started: dict[str, str], home: Path
    ) -> None:
        names = VARIABLES

        @ray.remote
        def inherited() -> tuple[dict[str, str], int]:
            return {name: os.environ[name] for name in names if name in os.environ}, os.nice(0)

        found, niceness = ray.get(inherited.remote(), timeout=60)
        assert found | {"address": started["address"]} == started
        assert found["RAY_AUTH_MODE"] == "token"
        assert list(home.iterdir()) == []
        assert niceness == os.nice(0)

    def test_it_listens_on_loopback_alone_and_so_do_the_ranks_of_a_trial(self, started: dict[str, str]) -> None:
        ranks = two_ranks()
        address = ray.get(ranks[0].address.remote(), timeout=60)
        met = ray.get([actor.join.remote(rank, address) for rank, actor in enumerate(ranks)], timeout=120)
        assert [total for _, total in met] == [3.0, 3.0]
        assert {pid for pid, _ in met} < {process.pid for process in mine()}
        assert listening(mine()) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        assert all(listening([psutil.Process(pid)]) for pid, _ in met)

    @pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
    def test_another_user_can_neither_see_nor_replace_its_sockets(self, started: dict[str, str]) -> None:
        sockets = {Path(str(one.laddr)) for one in sockets_of(mine(), "unix") if one.laddr}
        assert {"plasma_store", "raylet"} <= {path.name for path in sockets}
        for path in sockets:
            assert path.is_absolute()  # an abstract one has no permissions
            for command in (["ls", str(path)], ["mv", str(path), f"{path}.mine"]):
                done = subprocess.run(command, user=65534, group=65534, capture_output=True, text=True)
                assert "Permission denied" in done.stderr, done
        assert all(path.exists() for path in sockets)

    def test_a_notice_that_a_node_is_about_to_be_taken_is_seen_by_workers(self, started: dict[str, str]) -> None:
        @ray.remote
        class Worker:
            def noticed(self, seconds: float) -> bool:
                until = time.monotonic() + seconds
                while not (found := cluster.is_draining()) and time.monotonic() < until:
                    time.sleep(0.1)
                return found

        actor = Worker.remote()  # type: ignore[attr-defined]
        assert not ray.get(actor.noticed.remote(0.0), timeout=60)
        client = ray._raylet.GcsClient(address=started["address"])
        node = ray.get_runtime_context().get_node_id()
        accepted, why = client.drain_node(node, 2, "preemption", int(1000 * (time.time() + 600)))
        assert accepted, why
        assert ray.get(actor.noticed.remote(30.0), timeout=60)


def test_uv_run_does_not_make_ray_pack_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uv_runtime_env_hook, "_get_uv_run_cmdline", lambda: ["uv", "run", "launch.py"])
    with cluster._quiet():
        assert not worker._maybe_modify_runtime_env({}, False)


# A cluster that a run joins


OURS = RAY_SETTINGS["RAY_AUTH_TOKEN"]
WRONG = [
    ({}, "the cluster requires a token, but none is set; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file"),
    ({"RAY_AUTH_MODE": "token"}, "the cluster requires a token, but none is set; set RAY_AUTH_TOKEN, "),
    ({"RAY_AUTH_TOKEN": "theirs"}, "the token of RAY_AUTH_TOKEN is not the cluster's; set RAY_AUTH_TOKEN"),
    (
        {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": OURS},
        "RAY_AUTH_MODE=disabled prevents the token in RAY_AUTH_TOKEN from being used; set",
    ),
]


@pytest.mark.parametrize(("given", "told"), WRONG)
def test_joining_without_the_token_is_refused(ray_cluster: str, home: Path, given: dict[str, str], told: str) -> None:
    start = time.monotonic()
    with variables(home, **given):
        with pytest.raises(SpecError) as caught, joined(execution(ray_cluster)):
            pass
        assert given_variables() == given
    assert f"--address {ray_cluster}: {told}" in str(caught.value)
    assert str(caught.value).endswith("RAY_AUTH_MODE=token, the same as where the cluster was started")
    assert time.monotonic() - start < 20
    assert not ray.is_initialized()


@pytest.mark.parametrize("way", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "the user's file"])
def test_joining_works_however_the_token_is_given(ray_cluster: str, tmp_path: Path, way: str) -> None:
    file = tmp_path / (".ray/auth_token" if way == "the user's file" else "token")
    file.parent.mkdir(exist_ok=True)
    file.write_text(OURS)
    values = {"RAY_AUTH_TOKEN": OURS, "RAY_AUTH_TOKEN_PATH": str(file)}
    with variables(tmp_path, **({way: values[way]} if way in values else {})), joined(execution(ray_cluster)):
        assert ray.cluster_resources()["CPU"] == 2
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "told", "given"),
    [
        ("127.0.0.1:1", r"no Ray cluster could be joined \(.*refused\); give HOST:PORT of a running one", {}),
        ("head", r"no Ray cluster could be joined \(Invalid address format: head\); give HOST:PORT", {}),
        ("local", r"no Ray cluster could be joined \(no cluster has this address\); give HOST:PORT", {}),
        ("ray://127.0.0.1:10001", "Ray Client addresses are not supported; run on a node of the cluster", {}),
        (None, "TOKEN_PATH: 'none' cannot be read or is empty; give the file", {"RAY_AUTH_TOKEN_PATH": "none"}),
    ],
)
def test_an_address_without_a_cluster_and_a_token_file_that_is_not_there_are_refused_at_once(
    home: Path, address: str | None, told: str, given: dict[str, str]
) -> None:
    start = time.monotonic()
    with variables(home, **given), pytest.raises(SpecError, match=told), joined(execution(address)):
        pass
    assert time.monotonic() - start < 10


SLOW, OTHER = Exception("The current node timed out during startup."), ValueError("no such thing")


@pytest.mark.parametrize(("error", "failures", "calls"), [(SLOW, 2, 3), (SLOW, 3, 3), (OTHER, 1, 1)])
def test_a_start_that_took_too_long_is_tried_again_twice_and_one_that_failed_otherwise_is_not(
    error: Exception, failures: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []

    def init(**options: object) -> None:
        seen.append(options)
        if len(seen) <= failures:
            raise error

    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(type(error), match=str(error)) if failures == calls else nullcontext():
        cluster._start({"num_cpus": 1})
    assert seen == [{"num_cpus": 1}] * calls
