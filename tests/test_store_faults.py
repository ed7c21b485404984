"""The store under stress: disks that fill, are read-only or forbidden; processes that are killed, stopped, too many."""

import builtins
import contextlib
import errno
import hashlib
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.errors import StoreError
from pixelpick_ray.store import Store, leases
from pixelpick_ray.store import results as store_module
from pixelpick_ray.store.backend import PARTIAL, STALE_SECONDS, UNSYNCED, process_stamp
from pixelpick_ray.store.outputs import replace_files
from tests.support.launch import ROOT, unprivileged
from tests.support.results import INPUTS, KEY, ME, OTHER, at_once, left, publish, puts

pytestmark = pytest.mark.long

FORK = multiprocessing.get_context("fork")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and changing the user need root")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def run_together(*processes: Any) -> list[int]:
    """Exit codes of processes that run at the same time."""
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


# Disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


LARGE = np.zeros(300_000, dtype=np.float64)
WRITERS: tuple[Callable[[Path], object], ...] = (
    lambda folder: (folder / "payload").write_bytes(LARGE.tobytes()),
    lambda folder: np.savez(folder / "payload.npz", values=LARGE),
    lambda folder: save_file({"values": LARGE}, folder / "weights.safetensors"),
)


@root_only
def test_on_a_full_disk_what_was_there_stays_and_what_cannot_be_written_is_told(disk: Path) -> None:
    store = Store(disk / "store")
    publish(store)
    store.write_weights(KEY, puts(b"weights"))
    store.write_unfinished(KEY, b"epoch 1")
    store.write_record("a.json", {"values": [1]})
    store.append_lines("answers/mine.jsonl", ["first"])
    store.record_attempt("chain", "RunError: first")
    for write in WRITERS:
        with pytest.raises(StoreError, match=rf"^{disk}/store/fit/{digest(OTHER)}: the disk is full; free space there"):
            store.publish("fit", OTHER, write, {})  # type: ignore[arg-type]
        assert (store.names("fit"), left(store)) == ([KEY], [])
    replace_files({disk / "one": b"old", disk / "two": b"old"})
    with pytest.raises(OSError, match="No space left"):
        replace_files({disk / "one": b"new", disk / "two": LARGE.tobytes()})
    assert {path.name: path.read_bytes() for path in disk.iterdir() if path.is_file()} == {"one": b"old", "two": b"old"}
    filling = disk / "filling"
    with contextlib.suppress(OSError), open(filling, "wb", buffering=0) as file:
        while True:  # until no block is free
            file.write(b"x" * 512)
    refused: list[Callable[[], object]] = [
        lambda: store.write_record("a.json", {"values": [2] * 5000}),
        lambda: store.write_record("b/c/d.json", {"values": [1] * 5000}),
        lambda: store.append_lines("answers/mine.jsonl", ["second"] * 5000),
        lambda: store.append_lines("answers/another.jsonl", ["second"] * 5000),
        lambda: store.write_unfinished(KEY, b"epoch 2" * 5000),
        lambda: store.write_weights(KEY, puts(b"w" * 50_000)),
        lambda: publish(store, "x" * 50_000, OTHER),
        lambda: store.take("fit", KEY),
    ]
    for attempt in refused:
        with pytest.raises(StoreError, match="the disk is full; free space there, or give another --store, and run"):
            attempt()
    store.record_attempt("chain", "RunError: of the full disk")  # must not hide the error that it records
    assert left(store) == []
    assert store.read_record("a.json") == {"values": [1]}
    assert (store.lines("answers/mine.jsonl"), store.lines("answers/another.jsonl")) == (["first"], [])
    assert (store.unfinished(KEY), store.last_error("chain"), store.leased()) == (b"epoch 1", "RunError: first", {})
    assert store.read("fit", INPUTS) is not None
    filling.unlink()
    for attempt in refused[:-1]:
        attempt()
    assert store.read_record("a.json") == {"values": [2] * 5000}


@root_only
def test_a_read_only_disk_can_be_read_and_what_cannot_be_written_is_told(disk: Path) -> None:
    store = Store(disk / "store")
    folder = publish(store)
    store.write_record("a.json", {"values": [1]})
    (publish(store, inputs=OTHER) / "payload.txt").write_text("damaged")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert (store.leased(), store.damaged(), store.weights(KEY)) == ({}, [], None)
    for attempt in (
        lambda: publish(store, inputs={"seed": 2}),
        lambda: store.write_record("a.json", {"values": [2]}),
        lambda: store.write_unfinished(KEY, b"epoch 1"),
        lambda: store.discard("fit", KEY),
        lambda: store.take("fit", KEY),
        lambda: store.read("fit", OTHER),  # it cannot be set aside
    ):
        with pytest.raises(StoreError, match=rf"^{disk}/store/.*: the file system is read-only; mount it writable, or"):
            attempt()
    assert (store.read("fit", INPUTS), store.read_record("a.json")) == (folder, {"values": [1]})


def test_files_are_replaced_with_their_permissions_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"old")
    (tmp_path / "kept").chmod(0o640)
    (tmp_path / "link").symlink_to("kept")
    os.mkfifo(tmp_path / "pipe")  # no regular file: it is written into
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    replace_files({tmp_path / "link": b"new", tmp_path / "a" / "b": b"more", tmp_path / "pipe": b"content"})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "kept").read_bytes() == b"new"
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "a" / "b").read_bytes() == b"more"
    assert os.read(reader, 99) == b"content"
    os.close(reader)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "kept", "link", "pipe"]


@pytest.mark.parametrize("number", sorted(UNSYNCED))
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_file_system_that_cannot_sync_folders_is_written_all_the_same(
    store: Store, number: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Any = getattr(os, call)

    def unable(target: Any, *rest: Any) -> Any:
        if Path(f"/proc/self/fd/{target}" if call == "fsync" else target).is_dir():
            raise OSError(number, os.strerror(number))
        return original(target, *rest)

    monkeypatch.setattr(os, call, unable)
    publish(store)
    store.append_lines("answers/a/b.jsonl", [1])
    store.write_record("experiments/a.json", {"b": 1})
    assert store.intact("fit", KEY)
    assert (store.lines("answers/a/b.jsonl"), store.read_record("experiments/a.json")) == ([1], {"b": 1})


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.EIO, "input/output error; check the disk"), (errno.EDQUOT, "the quota is used up; free space there")],
)
def test_an_error_of_the_disk_while_syncing_is_told_and_nothing_is_left(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int, told: str
) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        for path, act in (
            (f"fit/{KEY}", lambda: publish(store)),
            (r"a\.json", lambda: store.write_record("a.json", {"values": 1})),
        ):
            with pytest.raises(StoreError, match=rf"store/{path}: {told}"):
                act()
    assert (store.names("fit"), store.read_record("a.json"), left(store)) == ([], None, [])


def test_an_error_elsewhere_is_not_blamed_on_the_store(store: Store, tmp_path: Path) -> None:
    def reads(folder: Path) -> None:
        (tmp_path / "image.png").read_bytes()

    with pytest.raises(FileNotFoundError, match=r"image\.png"):
        store.publish("fit", INPUTS, reads, {})


@root_only
def test_lost_permission_is_told_with_the_path_and_what_to_do() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        store, new = Store(Path(name) / "store"), Store(Path(name) / "new")
        folder = publish(store)
        store.write_record("a.json", {"values": [1]})

        def check_told(path: str, act: Callable[[], object]) -> None:
            advice = ": permission denied; let this user read and write there, or give another --store, and run again$"
            with unprivileged(), pytest.raises(StoreError, match=rf"^{name}/{path}.*{advice}"):
                act()

        with unprivileged():
            assert store.read("fit", INPUTS) == folder
        check_told("store/fit/", lambda: publish(store, inputs=OTHER))
        check_told(r"store/a\.json", lambda: store.write_record("a.json", {"values": [2]}))
        check_told("store/leases/", lambda: store.take("fit", KEY))
        check_told(f"store/fit/{KEY}", lambda: store.discard("fit", KEY))
        check_told(r"new/a\.json", lambda: new.write_record("a.json", {"values": 1}))
        (folder / "payload.txt").chmod(0)
        check_told(rf"store/fit/{KEY}/payload\.txt", lambda: store.read("fit", INPUTS))
        check_told(rf"store/fit/{KEY}/payload\.txt", lambda: store.intact("fit", KEY))
        (store.path / "fit").chmod(0)
        check_told(f"store/fit/{KEY}", lambda: store.has("fit", KEY))
        assert store.read("fit", INPUTS) == folder  # of which nothing was set aside
        assert store.damaged() == []


# Kills


CONTENTS = {name: name.encode() * 1000 for name in ("a", "b", "c", "weights.safetensors")}


def publish_all(location: Path) -> None:
    """What one driver does with the store for a fit."""

    def write(folder: Path) -> None:
        for name, content in CONTENTS.items():
            (folder / name).write_bytes(content)

    store = Store(location)
    if not store.has("fit", KEY):
        store.write_unfinished(KEY, b"unfinished" * 1000)
        store.publish("fit", INPUTS, write, {})
        store.drop_unfinished(KEY)
    store.write_record("record.json", {"reached": 0})


def is_whole(location: Path) -> bool:
    """Whether the fit is there; what is there is whole, and the fit has its weights."""
    store = Store(location)
    assert store.unfinished(KEY) in (None, b"unfinished" * 1000)
    assert store.read_record("record.json") in (None, {"reached": 0})
    if store.has("fit", KEY):
        assert store.intact("fit", KEY)
        weights = store.weights(KEY)
        assert weights is not None
        assert weights[0].read_bytes() == CONTENTS["weights.safetensors"]
    return store.has("fit", KEY)


def die_at(operation: int, act: Callable[[], None]) -> None:
    """Do something and be killed before the file operation of this number."""
    numbers = itertools.count(1)

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(numbers) == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    for name in ("mkdir", "fsync", "rename", "replace", "link", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    builtins.open = counted(open)
    act()


def test_a_kill_before_any_file_operation_leaves_whole_results_and_nothing_else(tmp_path: Path) -> None:
    operation, code, location, published = 0, -signal.SIGKILL, tmp_path / "store", set()
    while code == -signal.SIGKILL:
        operation += 1
        shutil.rmtree(location, ignore_errors=True)
        (code,) = run_together(FORK.Process(target=die_at, args=(operation, lambda: publish_all(location))))
        published.add(is_whole(location))
        if operation % 3 == 0:
            publish_all(location)
            assert is_whole(location)
            assert Store(location).damaged() == []
            assert [name for name in left(Store(location)) if "/fit/" in name] == []  # the next tidied up
    assert (code, operation > 30, published) == (0, True, {False, True})


def test_a_result_that_is_moved_while_it_is_read_is_no_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, measure = publish(store), hashlib.file_digest

    def moved_after(file: Any, algorithm: str) -> Any:
        measured = measure(file, algorithm)
        if folder.exists():
            folder.rename(folder.with_name("elsewhere"))
        return measured

    monkeypatch.setattr(hashlib, "file_digest", moved_after)
    assert store.read("fit", INPUTS) is None


@pytest.mark.parametrize("made_again", [True, False])
def test_only_what_is_damaged_is_set_aside(store: Store, made_again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow reader finds damage; before it acts, another process has set the result aside, and made it again."""
    (publish(store) / "payload.txt").write_text("damaged")
    find = store_module._damage

    def overtaken(folder: Path, entries: Any) -> str:
        problem = find(folder, entries)
        monkeypatch.setattr(store_module, "_damage", find)
        assert Store(store.path).read("fit", INPUTS) is None
        if made_again:
            publish(Store(store.path), "again")
        return problem

    monkeypatch.setattr(store_module, "_damage", overtaken)
    assert store.read("fit", INPUTS) is None
    assert store.files("fit", KEY, ["payload.txt"]) == ({"payload.txt": b"again"} if made_again else None)
    assert len(store.damaged()) == 1


def test_a_result_that_replaces_a_leftover_is_not_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (publish(store, "old") / "manifest.json").unlink()
    clear = store._storage._clear  # type: ignore[attr-defined]

    def overtaken(path: str) -> None:
        publish(Store(store.path), "of another")
        clear(path)

    monkeypatch.setattr(store._storage, "_clear", overtaken)
    publish(store, "mine")
    assert store.files("fit", KEY, ["payload.txt"]) == {"payload.txt": b"of another"}
    assert left(store) == []


# Leases


LEASE = f"leases/fit-{KEY}"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=lambda one: one.name)
def test_the_lease_of_a_stopped_process_is_taken_over_that_of_a_dead_one_at_once(
    store: Store, end: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, released = FORK.Event(), FORK.Event()
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.5)

    def hold() -> None:
        with Store(store.path).take("fit", KEY) or pytest.fail("it is free"):
            held.set()
            released.wait(60)

    process = FORK.Process(target=hold)
    process.start()
    assert held.wait(60)
    assert list(store.leased().values()) == [ME.replace(str(os.getpid()), str(process.pid))]
    if end == signal.SIGSTOP:
        time.sleep(2.0)  # it is kept young
        assert store.take("fit", KEY) is None
    os.kill(process.pid, end)
    if end == signal.SIGSTOP:
        assert store.take("fit", KEY) is None  # it lives, as far as one can tell
        time.sleep(2.0)
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # nobody has asked how it ended
    assert store.leased() == {}
    with store.take("fit", KEY) or pytest.fail("it is free"):
        mine = (store.path / LEASE).read_bytes()
        if end == signal.SIGSTOP:
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.6)
            released.set()
        process.join(10)
        assert process.exitcode == (0 if end == signal.SIGSTOP else -signal.SIGKILL)
        assert (store.path / LEASE).read_bytes() == mine
        assert list(store.leased().values()) == [ME]
    assert store.leased() == {}


def test_what_dead_processes_left_is_free_and_tidied_up(store: Store) -> None:
    """What is not known to be abandoned stays."""
    queue = FORK.SimpleQueue()
    assert run_together(FORK.Process(target=lambda: queue.put(process_stamp()))) == [0]
    namespace, number, started = process_stamp().split(".")
    elsewhere = f"0123456789ab.{number}.1"  # another machine, or another process namespace of this one
    living = [process_stamp(), elsewhere, f"0123456789ab.4000000.{started}", f".4000000.{started}", "nonsense"]
    dead = [queue.get(), f"{namespace}.{number}.1", f"{namespace}.4000000.{started}"]  # the number was used again

    def partial(stamp: str, age_seconds: float = 0.0) -> Path:
        folder = store.path / "fit" / f"{PARTIAL}abc-{stamp}-0123"
        (folder / "inner").mkdir(parents=True)
        os.utime(folder, (time.time() - age_seconds,) * 2)
        return folder

    left_there, old = {stamp: partial(stamp) for stamp in living + dead}, partial("other-78", STALE_SECONDS + 60)
    publish(store)
    assert [stamp for stamp, folder in left_there.items() if folder.exists()] == living
    assert (old.exists(), store.names("fit")) == (False, [KEY])
    for stamp in living + dead:
        store._storage.write(LEASE, f"host pid 5\n{stamp} token".encode())
        assert store.leased() == ({f"fit-{KEY}": "host pid 5"} if stamp in living else {})
        with store.take("fit", KEY) or contextlib.nullcontext() as lease:
            assert (lease is None) == (stamp in living)


@root_only
def test_a_process_of_another_namespace_of_this_machine_is_not_known_to_be_dead(store: Store) -> None:
    """As in two containers of one host: the holder's number means nothing here."""
    code = "import sys; from pixelpick_ray.store import Store; "
    code += f"lease = Store(sys.argv[1]).take('fit', {KEY!r}); print('held', flush=True); sys.stdin.read()"
    apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command = [*apart, sys.executable, "-c", code, str(store.path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"held\n":
            pytest.skip("no process namespace can be made here")
        assert (len(store.leased()), store.take("fit", KEY)) == (1, None)
        process.kill()


@pytest.mark.parametrize("links", [True, False])
def test_a_lease_has_one_holder_at_a_time(store: Store, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of threads and processes, also where the file system has no hard links."""
    store.path.mkdir()

    def hold_eight_times(_: int) -> None:
        mine, turns = Store(store.path), 8
        while turns:
            if lease := mine.take("fit", KEY):
                with lease, open(store.path / "inside", "x", encoding="utf-8"):  # fails where another is inside
                    time.sleep(0.002)
                    (store.path / "inside").unlink()
                turns -= 1

    def refuses(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refuses)
    assert run_together(*(FORK.Process(target=at_once, args=(2, hold_eight_times)) for _ in range(2))) == [0, 0]
    assert store.leased() == {}
