"""The store under stress: disks that fill, are read-only or forbidden; processes that are killed, stopped, too many."""

import builtins
import contextlib
import errno
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.data import datasets
from pixelpick_ray.errors import StoreError
from pixelpick_ray.store import Store, leases
from pixelpick_ray.store import results as store_module
from pixelpick_ray.store.backend import PARTIAL, STALE_SECONDS, process_stamp
from tests.support.launch import ROOT, launch, overriding
from tests.support.results import INPUTS, KEY, ME, OTHER, at_once, left, publish, puts
from tests.support.tiny_data import TINY_EXPERIMENT, TWO_STAGES, TinyDataset

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


def check_refused(attempts: list[Callable[[], object]], told: str) -> None:
    for attempt in attempts:
        with pytest.raises(StoreError, match=told):
            attempt()


def fill_up(disk: Path) -> Path:
    """Leave no block free."""
    filling = disk / "filling"
    with contextlib.suppress(OSError), open(filling, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
    return filling


LARGE = np.zeros(300_000, dtype=np.float64)
WRITERS: dict[str, Callable[[Path], object]] = {
    "plain": lambda folder: (folder / "payload").write_bytes(LARGE.tobytes()),
    "numpy": lambda folder: np.savez(folder / "payload.npz", values=LARGE),
    "safetensors": lambda folder: save_file({"values": LARGE}, folder / "weights.safetensors"),
}


@root_only
@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_fills_while_a_result_is_written_is_told_and_nothing_is_left(disk: Path, writer: str) -> None:
    store = Store(disk / "store")
    publish(store, inputs=OTHER)
    with pytest.raises(StoreError, match=rf"^{disk}/store/fit/{KEY}: the disk is full; free space there, or give"):
        store.publish("fit", INPUTS, WRITERS[writer], {})  # type: ignore[arg-type]
    assert store.names("fit") == [digest(OTHER)]
    assert left(store) == []
    assert store.read("fit", OTHER) is not None
    publish(store, "smaller")
    assert store.read("fit", INPUTS) is not None


@root_only
def test_on_a_full_disk_what_was_there_stays_and_what_cannot_be_written_is_told(disk: Path) -> None:
    store = Store(disk / "store")
    publish(store)
    store.write_weights(KEY, puts(b"weights"))
    store.write_unfinished(KEY, b"epoch 1")
    store.write_record("a.json", {"values": [1]})
    store.append_lines("answers/mine.jsonl", ["first"])
    store.record_attempt("chain", "RunError: first")
    filling = fill_up(disk)
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
    check_refused(refused, "the disk is full; free space there, or give another --store, and run")
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
    assert store.read("fit", INPUTS) == folder
    assert store.files("fit", KEY, ["payload.txt"]) == {"payload.txt": b"one"}
    assert store.read_record("a.json") == {"values": [1]}
    assert (store.leased(), store.damaged(), store.weights(KEY)) == ({}, [], None)
    refused: list[Callable[[], object]] = [
        lambda: publish(store, inputs={"seed": 2}),
        lambda: store.write_record("a.json", {"values": [2]}),
        lambda: store.write_unfinished(KEY, b"epoch 1"),
        lambda: store.discard("fit", KEY),
        lambda: store.take("fit", KEY),
        lambda: store.read("fit", OTHER),  # it cannot be set aside
    ]
    check_refused(refused, rf"^{disk}/store/.*: the file system is read-only; mount it writable, or")
    assert store.read("fit", INPUTS) == folder


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
        with pytest.raises(StoreError, match=rf"store/fit/{KEY}: {told}"):
            publish(store)
        with pytest.raises(StoreError, match=rf"store/a\.json: {told}"):
            store.write_record("a.json", {"values": 1})
    assert (store.names("fit"), store.read_record("a.json"), left(store)) == ([], None, [])


def test_an_error_elsewhere_is_not_blamed_on_the_store(store: Store, tmp_path: Path) -> None:
    def reads(folder: Path) -> None:
        (tmp_path / "image.png").read_bytes()

    with pytest.raises(FileNotFoundError, match=r"image\.png"):
        store.publish("fit", INPUTS, reads, {})


def as_nobody(act: Callable[[], object]) -> str:
    """What happens when a user without rights does something: the error, or its result."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            told = repr(act())
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(write, told.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with open(read, encoding="utf-8") as file:
        return file.read()


@root_only
def test_lost_permission_is_told_with_the_path_and_what_to_do() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        store = Store(Path(name) / "store")
        folder = publish(store)
        store.write_record("a.json", {"values": [1]})

        def is_told(path: str, act: Callable[[], object]) -> bool:
            said = as_nobody(act)
            advice = ": permission denied; let this user read and write there, or give another --store, and run again"
            return said.startswith(f"StoreError: {name}/{path}") and said.endswith(advice)

        assert as_nobody(lambda: store.read("fit", INPUTS)) == repr(folder)
        assert is_told("store/fit/", lambda: publish(store, inputs=OTHER))
        assert is_told("store/a.json", lambda: store.write_record("a.json", {"values": [2]}))
        assert is_told("store/leases/", lambda: store.take("fit", KEY))
        assert is_told(f"store/fit/{KEY}", lambda: store.discard("fit", KEY))
        assert is_told("new/a.json", lambda: Store(Path(name) / "new").write_record("a.json", {"values": 1}))
        (folder / "payload.txt").chmod(0)
        assert is_told(f"store/fit/{KEY}/payload.txt", lambda: store.read("fit", INPUTS))
        assert is_told(f"store/fit/{KEY}/payload.txt", lambda: store.intact("fit", KEY))
        (store.path / "fit").chmod(0)
        assert is_told(f"store/fit/{KEY}", lambda: store.has("fit", KEY))
        assert store.read("fit", INPUTS) == folder  # of which nothing was set aside
        assert store.damaged() == []


def run(place: Path, store: Path) -> Any:
    options = (*overriding(*TWO_STAGES), "--local", "--device", "cpu", "--store", str(store))
    return launch(place, "run", "tiny.yaml", *options)


@root_only
def test_a_run_whose_disk_fills_says_so_and_goes_on_when_there_is_space(
    disk: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(datasets.DATASETS, "tiny", TinyDataset)
    (tmp_path / "tiny.yaml").write_text(TINY_EXPERIMENT)
    filling = disk / "filling"
    filling.write_bytes(b"x" * 800_000)
    done = run(tmp_path, disk / "store")
    assert done.status == 1
    assert "the disk is full; free space there, or give another --store, and run again" in done.out
    filling.unlink()
    subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
    again = run(tmp_path, disk / "store")
    assert again.status == 0
    undisturbed = run(tmp_path, tmp_path / "store")
    numbers = [line for line in undisturbed.out.splitlines() if line.startswith("deeplabv3plus")]
    assert len(numbers) == 2
    assert set(numbers) <= set(again.out.splitlines())
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    refused = run(tmp_path, disk / "store")
    assert refused.status == 2
    assert "the file system is read-only; mount it writable, or give another --store" in refused.err


# Kills


def slowly(number: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in ("a", "b", "c", "weights.safetensors"):
            (folder / name).write_bytes(f"{name} {number}".encode() * 1000)
            time.sleep(0.001)

    return write


def publish_all(location: Path, count: int) -> None:
    """What one driver does with the store, for a number of fits."""
    for number in range(count):
        store, inputs = Store(location), {"seed": number}
        if not store.has("fit", digest(inputs)):
            store.write_unfinished(digest(inputs), b"unfinished" * 1000)
            store.publish("fit", inputs, slowly(number), {})
            store.drop_unfinished(digest(inputs))
        store.write_record("record.json", {"reached": number})


def check_whole(location: Path, count: int) -> int:
    """Every result that is there is whole and has its weights; returns how many are."""
    store, found = Store(location), 0
    for number in range(count):
        key = digest({"seed": number})
        if store.has("fit", key):
            found += 1
            assert store.intact("fit", key)
            weights = store.weights(key)
            assert weights is not None
            assert weights[0].read_bytes() == f"weights.safetensors {number}".encode() * 1000
        content = store.unfinished(key)
        assert content in (None, b"unfinished" * 1000)
    record = store.read_record("record.json")
    assert record is None or record["reached"] < count
    return found


OPERATIONS = ("mkdir", "fsync", "rename", "replace", "link", "unlink", "rmdir")


def die_at(operation: int, act: Callable[[], None]) -> None:
    """Do something and be killed before the file operation of this number."""
    done = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    builtins.open = counted(open)
    act()


def test_a_kill_before_any_file_operation_leaves_whole_results_and_nothing_else(tmp_path: Path) -> None:
    count, operation, code = 1, 0, -signal.SIGKILL
    location = tmp_path / "store"
    published = set()
    while code == -signal.SIGKILL:
        operation += 1
        shutil.rmtree(location, ignore_errors=True)
        (code,) = run_together(FORK.Process(target=die_at, args=(operation, lambda: publish_all(location, count))))
        published.add(check_whole(location, count))
        if operation % 3 == 0:
            publish_all(location, count)
            assert check_whole(location, count) == count
            assert Store(location).damaged() == []
            assert [name for name in left(Store(location)) if "/fit/" in name] == []  # the next tidied up
    assert code == 0
    assert operation > 30
    assert published == {0, 1}


def put_partial(store: Store, stamp: str, age_seconds: float = 0.0) -> Path:
    folder = store.path / "fit" / f"{PARTIAL}abc-{stamp}-0123"
    (folder / "inner").mkdir(parents=True)
    os.utime(folder, (time.time() - age_seconds,) * 2)
    return folder


def test_only_what_is_known_to_be_abandoned_is_tidied_up(store: Store) -> None:
    queue = FORK.SimpleQueue()
    assert run_together(FORK.Process(target=lambda: queue.put(process_stamp()))) == [0]  # which is dead now
    elsewhere = f"0123456789ab.{os.getpid()}.12345"  # another machine, or another process namespace of this one
    kept = [put_partial(store, process_stamp()), put_partial(store, elsewhere), put_partial(store, "host-77")]
    gone = [put_partial(store, queue.get()), put_partial(store, "other-78", STALE_SECONDS + 60)]
    namespace, number, started = process_stamp().split(".")
    gone.append(put_partial(store, f"{namespace}.{number}.{int(started) - 1}"))  # the number is used again
    publish(store)
    assert [path.exists() for path in kept] == [True, True, True]
    assert [path.exists() for path in gone] == [False, False, False]
    assert store.names("fit") == [KEY]


# Several processes


def publish_together(location: Path, name: str, count: int, start: Any) -> None:
    start.wait(60)
    for number in range(count):
        store, inputs = Store(location), {"seed": number}
        if store.read("fit", inputs) is None:
            publish(store, f"{name} {number}", inputs)


def test_processes_that_publish_the_same_onto_leftovers_and_damage_agree(tmp_path: Path) -> None:
    location, count = tmp_path / "store", 20
    for number in range(0, count, 2):
        folder = publish(Store(location), "old", {"seed": number})
        if number % 4:
            (folder / "manifest.json").unlink()
        else:
            (folder / "payload.txt").write_text("damaged")
    start = FORK.Barrier(3)
    processes = [FORK.Process(target=publish_together, args=(location, name, count, start)) for name in "abc"]
    assert run_together(*processes) == [0, 0, 0]
    store = Store(location)
    for number in range(count):
        files = store.files("fit", digest({"seed": number}), ["payload.txt"])
        assert files is not None
        assert files["payload.txt"] in {f"{name} {number}".encode() for name in "abc"}
    assert left(store) == []
    problems = {line.split(": ", 1)[0]: line for line in store.damaged()}
    assert problems.keys() == {f"fit/{digest({'seed': number})}" for number in range(0, count, 2)}


def test_a_result_that_is_moved_while_it_is_read_is_no_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, measure = publish(store), hashlib.file_digest

    def moved_after(file: Any, algorithm: str) -> Any:
        measured = measure(file, algorithm)
        if folder.exists():
            folder.rename(folder.with_name("elsewhere"))
        return measured

    monkeypatch.setattr(hashlib, "file_digest", moved_after)
    assert store.read("fit", INPUTS) is None


def test_a_result_that_was_made_again_meanwhile_is_not_set_aside(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow reader finds damage; before it acts, another process has set the result aside and made it again."""
    (publish(store) / "payload.txt").write_text("damaged")
    find = store_module._damage

    def overtaken(folder: Path, entries: Any) -> str:
        problem = find(folder, entries)
        monkeypatch.setattr(store_module, "_damage", find)
        assert Store(store.path).read("fit", INPUTS) is None
        publish(Store(store.path), "again")
        return problem

    monkeypatch.setattr(store_module, "_damage", overtaken)
    assert store.read("fit", INPUTS) is None
    assert store.files("fit", KEY, ["payload.txt"]) == {"payload.txt": b"again"}
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


def hold(location: Path, held: Event, released: Event) -> None:
    leases.LEASE_SECONDS = 1.5
    with Store(location).take("fit", KEY) or pytest.fail("it is free"):
        held.set()
        released.wait(60)


Holder = tuple[Store, Any, Event]


@pytest.fixture
def holder(store: Store) -> Iterator[Holder]:
    """A store, a process that holds a lease in it, and the event that makes it let go."""
    held, released = FORK.Event(), FORK.Event()
    process = FORK.Process(target=hold, args=(store.path, held, released))
    process.start()
    assert held.wait(60)
    yield store, process, released
    process.kill()
    process.join(10)


def test_the_lease_of_a_killed_process_is_free_even_before_it_is_reaped(holder: Holder) -> None:
    store, process, _ = holder
    assert store.take("fit", KEY) is None
    assert list(store.leased().values()) == [ME.replace(str(os.getpid()), str(process.pid))]
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and nobody has asked how it ended
    assert store.leased() == {}
    with store.take("fit", KEY) or pytest.fail("it is free"):
        assert list(store.leased().values()) == [ME]


def test_the_lease_of_a_stopped_process_is_taken_over(holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    store, process, released = holder
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.5)
    time.sleep(2.0)
    assert store.take("fit", KEY) is None  # it is kept young
    os.kill(process.pid, signal.SIGSTOP)
    assert store.take("fit", KEY) is None  # it lives, as far as one can tell
    time.sleep(2.0)
    with store.take("fit", KEY) or pytest.fail("it is free"):
        mine = (store.path / LEASE).read_bytes()
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.6)
        released.set()
        process.join(10)
        assert process.exitcode == 0
        assert (store.path / LEASE).read_bytes() == mine
        assert list(store.leased().values()) == [ME]
    assert store.leased() == {}


@pytest.mark.parametrize(
    ("stamp", "live"),
    [
        ("{namespace}.{number}.{started}", True),
        ("{namespace}.{number}.1", False),  # the number was used again
        ("{namespace}.4000000.{started}", False),  # there is no such process
        ("0123456789ab.4000000.{started}", True),  # of another machine: only its age tells
        (".4000000.{started}", True),
        ("nonsense", True),
        ("", True),
    ],
)
def test_who_is_known_to_be_dead(store: Store, stamp: str, live: bool) -> None:
    namespace, number, started = process_stamp().split(".")
    text = stamp.format(namespace=namespace, number=number, started=started)
    store._storage.write(LEASE, f"host pid 5\n{text} token".encode())
    assert store.leased() == ({f"fit-{KEY}": "host pid 5"} if live else {})
    with store.take("fit", KEY) or contextlib.nullcontext() as lease:
        assert (lease is None) == live


@root_only
def test_a_process_of_another_namespace_of_this_machine_is_not_known_to_be_dead(store: Store) -> None:
    """As in two containers of one host: the holder's number means nothing here."""
    code = "import sys, time; from pixelpick_ray.store import Store; "
    code += f"lease = Store(sys.argv[1]).take('fit', {KEY!r}); print('held', flush=True); sys.stdin.read()"
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c"]
    with subprocess.Popen(
        [*command, code, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"held\n":
            pytest.skip("no process namespace can be made here")
        assert len(store.leased()) == 1
        assert store.take("fit", KEY) is None
        process.kill()


def test_without_hard_links_a_lease_still_has_one_holder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuses)
    (lease,) = [lease for lease in at_once(6, lambda _: store.take("fit", KEY)) if lease is not None]
    with lease:
        assert list(store.leased().values()) == [ME]
    assert store.leased() == {}


def count_inside(location: Path, turns: int) -> None:
    store = Store(location)
    while turns:
        lease = store.take("fit", KEY)
        if lease is not None:
            with lease:
                with open(location / "inside", "x", encoding="utf-8"):  # fails where another is inside
                    time.sleep(0.002)
                (location / "inside").unlink()
            turns -= 1


def test_threads_and_processes_hold_a_lease_one_at_a_time(tmp_path: Path) -> None:
    location = tmp_path / "store"
    location.mkdir()
    two = (FORK.Process(target=at_once, args=(2, lambda _: count_inside(location, 8))) for _ in range(2))
    assert run_together(*two) == [0, 0]
