"""The store: a result is there whole or not at all, whatever happens, and one process computes it."""

import hashlib
import json
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.experiment import parse_experiment
from pixelpick_ray.errors import StoreError
from pixelpick_ray.store import Store, experiment_folder, leases
from pixelpick_ray.store import results as store_module
from pixelpick_ray.store.backend import Storage
from pixelpick_ray.store.leases import LEASE_SECONDS, Lease

INPUTS = {"step": "fit", "version": 1, "seed": 0, "lr": 5e-4}
KEY = digest(INPUTS)
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def writes(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "payload.txt").write_text(content, encoding="utf-8")
        (folder / "inner" / "more.txt").write_text(content * 2, encoding="utf-8")

    return write


def publish(store: Store, content: str = "one") -> Path:
    return store.publish("fit", INPUTS, writes(content), {"commit": "abc"})


def test_what_is_published_is_read_back(store: Store) -> None:
    assert not store.has("fit", KEY)
    assert store.read("fit", INPUTS) is None
    folder = publish(store)
    assert store.has("fit", KEY)
    assert store.read("fit", INPUTS) == folder == store.folder("fit", KEY)
    assert (folder / "payload.txt").read_text(encoding="utf-8") == "one"
    assert (folder / "inner" / "more.txt").read_text(encoding="utf-8") == "oneone"
    assert json.loads((folder / "input.json").read_text(encoding="utf-8")) == INPUTS
    assert json.loads((folder / "provenance.json").read_text(encoding="utf-8")) == {"commit": "abc"}
    assert not store.has("pick", KEY)
    assert store.read("fit", {**INPUTS, "seed": 1}) is None


def test_the_manifest_lists_every_file_with_size_and_digest(store: Store) -> None:
    folder = publish(store)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert manifest == {
        str(path.relative_to(folder)): {
            "bytes": len(path.read_bytes()),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files
    }
    assert len(files) == 4


def test_a_second_publisher_adopts_the_first_result(store: Store) -> None:
    first = publish(store, "one")
    assert publish(store, "two") == first
    assert (first / "payload.txt").read_text(encoding="utf-8") == "one"
    assert [path.name for path in first.parent.iterdir()] == [KEY]


def test_of_publishers_at_the_same_time_one_wins_and_all_agree(store: Store) -> None:
    barrier, found = threading.Barrier(4), []

    def race(number: int) -> None:
        def write(folder: Path) -> None:
            writes(str(number))(folder)
            barrier.wait(10)

        found.append(store.publish("fit", INPUTS, write, {}))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [store.read("fit", INPUTS)] * 4
    assert [path.name for path in found[0].parent.iterdir()] == [KEY]


def test_a_failure_while_writing_leaves_nothing(store: Store) -> None:
    def write(folder: Path) -> None:
        writes("half")(folder)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        store.publish("fit", INPUTS, write, {})
    with pytest.raises(ValueError, match="JSON"):
        store.publish("fit", INPUTS, writes("one"), {"seconds": float("nan")})
    assert not store.has("fit", KEY)
    assert list((store.path / "fit").iterdir()) == []


@pytest.mark.parametrize("looked_at", [True, False])
def test_a_folder_without_manifest_is_absent_and_replaced(store: Store, looked_at: bool) -> None:
    (publish(store, "old") / "manifest.json").unlink()
    assert not store.has("fit", KEY)
    if looked_at:
        assert store.read("fit", INPUTS) is None
        assert store.damaged()[0].startswith(f"fit/{KEY}: manifest.json: missing (set aside as damaged/fit-{KEY}-")
    folder = publish(store, "new")
    assert store.read("fit", INPUTS) == folder
    assert (folder / "payload.txt").read_text(encoding="utf-8") == "new"


def puts(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def damage_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "changed": ("payload.txt", damage_byte),
    "cut short": ("inner/more.txt", lambda path: os.truncate(path, 3)),
    "emptied": ("input.json", lambda path: os.truncate(path, 0)),
    "longer": ("payload.txt", puts(b"one and more")),
    "removed": ("provenance.json", Path.unlink),
    "manifest emptied": ("manifest.json", lambda path: os.truncate(path, 0)),
    "manifest no text": ("manifest.json", puts(b"\xff\xfe\x00")),
    "manifest a list": ("manifest.json", puts(b"[]")),
    "manifest entry": ("manifest.json", puts(b'{"payload.txt": 1}')),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_result_is_set_aside_with_the_reason_and_made_again(store: Store, kind: str) -> None:
    name, damage = DAMAGES[kind]
    damage(publish(store) / name)
    assert store.read("fit", INPUTS) is None
    assert not store.has("fit", KEY)
    (aside,) = (store.path / "damaged").iterdir()
    assert aside.name.startswith(f"fit-{KEY}")
    assert name in (aside / "problem.txt").read_text(encoding="utf-8")
    assert store.read("fit", INPUTS) is None
    again = publish(store, "two")
    assert store.read("fit", INPUTS) == again


def test_readers_that_find_the_same_damage_at_once_both_see_an_absent_result(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage_byte(publish(store) / "payload.txt")
    find, barrier, found = store_module._damage, threading.Barrier(2), []

    def together(folder: Path, entries: dict[str, tuple[int, str]]) -> str:
        problem = find(folder, entries)
        if folder == store.folder("fit", KEY):
            barrier.wait(10)
        return problem

    monkeypatch.setattr(store_module, "_damage", together)

    def read() -> None:
        found.append(store.read("fit", INPUTS))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [None, None]


def test_a_result_of_other_inputs_under_a_key_is_an_error(store: Store) -> None:
    folder, other = publish(store), {**INPUTS, "seed": 1}
    folder.rename(store.folder("fit", digest(other)))
    with pytest.raises(StoreError, match=r"made from other inputs than its key says; remove the folder and run again"):
        store.read("fit", other)


def contents(store: Store) -> dict[Path, bytes]:
    return {path.relative_to(store.path): path.read_bytes() for path in store.path.rglob("*") if path.is_file()}


def test_files_of_a_result_are_read(store: Store) -> None:
    folder = publish(store)
    assert store.files("fit", KEY, ["input.json", "payload.txt", "inner/more.txt"]) == {
        "input.json": (folder / "input.json").read_bytes(),
        "payload.txt": b"one",
        "inner/more.txt": b"oneone",
    }


ASKED = ("payload.txt", "input.json", "manifest.json")
NO_FILES = {f"{kind} {name}": (name, damage) for kind, (name, damage) in DAMAGES.items() if name in ASKED} | {
    "removed": ("payload.txt", Path.unlink),
    "removed input": ("input.json", Path.unlink),
    "removed manifest": ("manifest.json", Path.unlink),
    "manifest without it": ("manifest.json", puts(b"{}")),
    "other input": ("input.json", puts(b"{}")),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_asked_for_is_verified_and_left_as_it_is(store: Store, kind: str) -> None:
    name, damage = NO_FILES[kind]
    damage(publish(store) / name)
    before = contents(store)
    assert store.files("fit", KEY, ["payload.txt", "input.json"]) is None
    assert contents(store) == before


def test_what_is_not_asked_for_is_not_verified(store: Store) -> None:
    folder = publish(store)
    damage_byte(folder / "inner" / "more.txt")
    (folder / "provenance.json").unlink()
    before = contents(store)
    assert store.files("fit", KEY, ["payload.txt"]) is not None
    assert store.files("fit", KEY, ["payload.txt", "inner/more.txt"]) is None
    assert contents(store) == before


def test_no_file_is_read_of_what_is_absent_or_was_never_published(store: Store) -> None:
    assert store.files("fit", KEY, []) is None
    folder = publish(store)
    (folder / "added.txt").write_text("later", encoding="utf-8")
    assert store.files("fit", KEY, ["added.txt"]) is None
    assert store.files("fit", KEY, ["nowhere.txt"]) is None
    assert store.files("pick", KEY, ["payload.txt"]) is None


def test_no_file_is_read_under_a_key_of_other_inputs(store: Store) -> None:
    other = digest({**INPUTS, "seed": 1})
    publish(store).rename(store.folder("fit", other))
    assert store.files("fit", other, ["payload.txt", "input.json"]) is None


def fail(store: Store, time_ns: int, text: str) -> None:
    folder = store.path / "attempts" / "chain"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{time_ns}.txt").write_text(text, encoding="utf-8")


def test_the_last_line_of_the_latest_failure_is_told(store: Store) -> None:
    assert store.last_error("chain") == ""
    fail(store, 1_700_000_000_000_000_002, "Traceback\n  in fit\nRunError: out of memory\n\n")
    fail(store, 1_700_000_000_000_000_001, "Traceback\nDataError: a.png is damaged\n")
    assert store.last_error("chain") == "RunError: out of memory"
    assert store.last_error("another") == ""
    fail(store, 1_700_000_000_000_000_003, "\n")
    assert store.last_error("chain") == ""


def test_a_store_that_cannot_be_written_to_is_told(store: Store) -> None:
    store.folder("fit", KEY).parent.mkdir(parents=True)
    store.folder("fit", KEY).write_text("a file in the way", encoding="utf-8")
    with pytest.raises(StoreError, match=r"could not be published; is .*store writable"):
        publish(store)


def test_weights_are_kept_checked_and_dropped_beside_their_fit(store: Store) -> None:
    folder, content = publish(store), bytes(range(256)) * 10
    assert store.weights(KEY) is None
    sha256 = store.write_weights(KEY, puts(content))
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert store.weights(KEY) == (folder / "weights.safetensors", sha256)
    assert (folder / "weights.safetensors").read_bytes() == content
    assert store.read("fit", INPUTS) == folder
    store.drop_weights(KEY, "mine")
    assert store.weights(KEY) is not None  # no run has made them for itself
    assert store.write_weights(KEY, puts(content), run="mine") == sha256
    store.drop_weights(KEY, "mine")
    store.drop_weights(KEY, "mine")
    assert store.weights(KEY) is None
    assert store.read("fit", INPUTS) == folder
    assert sorted(path.name for path in folder.glob("weights.*")) == ["weights.json"]


def test_weights_that_a_run_made_for_itself_are_left_to_it_while_it_is_alive(store: Store) -> None:
    publish(store)
    store.write_weights(KEY, puts(b"weights"), run="other")
    with store.take("run", "other") or pytest.fail("it is free"):
        store.drop_weights(KEY, "mine")
        assert store.weights(KEY) is not None
    store.drop_weights(KEY, "mine")  # nobody will, now
    assert store.weights(KEY) is None


def test_weights_that_are_kept_for_good_are_dropped_by_no_run(store: Store) -> None:
    publish(store)
    for keep in (lambda: store.keep_weights(KEY), lambda: store.write_weights(KEY, puts(b"again"))):
        store.write_weights(KEY, puts(b"weights"), run="mine")
        keep()
        store.drop_weights(KEY, "mine")
        assert store.weights(KEY) is not None


def test_weights_written_again_replace_the_old_ones(store: Store) -> None:
    publish(store)
    for content in (b"old", b"new"):
        sha256 = store.write_weights(KEY, puts(content))
    found = store.weights(KEY)
    assert found is not None
    assert found[1] == sha256
    assert found[0].read_bytes() == b"new"


@pytest.mark.parametrize(
    ("name", "content"),
    [("weights.safetensors", b"wights")] + [("weights.json", content) for content in (b"", b"\xff", b"{}", b"[1]")],
)
def test_damaged_weights_are_absent_and_the_fit_is_not(store: Store, name: str, content: bytes) -> None:
    folder = publish(store)
    store.write_weights(KEY, puts(b"weights"))
    (folder / name).write_bytes(content)
    assert store.weights(KEY) is None
    assert store.read("fit", INPUTS) == folder


def test_a_failure_while_weights_are_written_keeps_the_old_ones(store: Store) -> None:
    publish(store)
    sha256 = store.write_weights(KEY, puts(b"old"))

    def full(path: Path) -> None:
        path.write_bytes(b"ne")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        store.write_weights(KEY, full)
    found = store.weights(KEY)
    assert found is not None
    assert found[1] == sha256


def test_a_record_that_cannot_be_written_keeps_the_old_one(store: Store) -> None:
    store.write_record("a.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        store.write_record("a.json", {"loss": float("nan")})
    assert store.read_record("a.json") == {"loss": 1.0}
    assert store.records(".") == ["a"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_record_is_told_with_its_path(store: Store, content: bytes) -> None:
    store.path.mkdir()
    (store.path / "a.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"a\.json: is damaged: is not JSON .*remove it and run again"):
        store.read_record("a.json")


def test_a_reader_never_sees_half_a_record(store: Store) -> None:
    values = [{"number": number, "filling": "x" * 20000} for number in range(60)]
    store.write_record("a.json", values[0])

    def write() -> None:
        for value in values:
            store.write_record("a.json", value)

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(store.read_record("a.json")["number"])
    writer.join()
    assert seen == sorted(seen)
    assert store.read_record("a.json") == values[-1]


def test_experiments_that_extend_a_grid_share_a_folder(camvid_yaml: str) -> None:
    def folder(*overrides: str) -> str:
        return experiment_folder(parse_experiment(camvid_yaml, where="x", overrides=overrides))

    assert folder() == folder("grid=[{seed: [7], budget: [10]}]") != folder("train.epochs=60")
    assert folder().startswith("experiments/camvid-mobilenet-")


# Leases


def lease_path(store: Store) -> Path:
    return store.path / "leases" / f"fit-{KEY}"


def put_lease(store: Store, holder: str, age_seconds: float = 0.0) -> None:
    lease_path(store).parent.mkdir(parents=True, exist_ok=True)
    lease_path(store).write_text(holder, encoding="utf-8")
    os.utime(lease_path(store), (time.time() - age_seconds,) * 2)


def take(store: Store) -> Lease:
    """The lease, which must be free."""
    lease = store.take("fit", KEY)
    assert lease is not None
    return lease


def test_a_lease_is_seen_while_it_is_held_only(store: Store) -> None:
    assert store.leased() == {}
    with take(store):
        assert store.leased() == {f"fit-{KEY}": f"{socket.gethostname()} pid {os.getpid()}"}
    assert store.leased() == {}
    assert list(lease_path(store).parent.iterdir()) == []


def test_a_lease_ends_with_a_failure(store: Store) -> None:
    with pytest.raises(RuntimeError, match="training failed"), take(store):
        raise RuntimeError("training failed")
    assert store.leased() == {}


@pytest.mark.parametrize("holder", ["another-host pid 1", ""], ids=["another host", "just being taken"])
def test_a_live_lease_belongs_to_its_holder(store: Store, holder: str) -> None:
    put_lease(store, holder)
    assert store.take("fit", KEY) is None
    assert lease_path(store).read_text(encoding="utf-8") == holder


@pytest.mark.parametrize("holder", ["another-host pid 1", ""])
def test_a_lease_that_nobody_touches_is_dead(store: Store, holder: str) -> None:
    put_lease(store, holder, age_seconds=LEASE_SECONDS + 1)
    assert store.leased() == {}
    with take(store):
        assert store.leased() != {}


def test_a_lease_is_kept_alive_by_its_holder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.6)
    with take(store):
        for _ in range(4):
            time.sleep(0.3)
            assert store.leased() != {}


def test_a_dead_lease_that_was_just_taken_over_is_not_taken_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes find the same dead lease; the slower one must not remove the lease of the faster."""
    put_lease(store, "another-host pid 1", age_seconds=LEASE_SECONDS + 1)
    look = leases.holder

    def overtaken(storage: Storage, path: str) -> str:
        found = look(storage, path)
        if found == "":
            (store.path / path).unlink()
            put_lease(store, "third-host pid 3")
        return found

    monkeypatch.setattr(leases, "holder", overtaken)
    assert store.take("fit", KEY) is None
    assert lease_path(store).read_text(encoding="utf-8") == "third-host pid 3"


def test_a_lease_that_was_taken_over_is_left_to_its_new_holder(store: Store) -> None:
    with take(store):
        put_lease(store, "another-host pid 1")
    assert store.leased() == {f"fit-{KEY}": "another-host pid 1"}


def _publish_slowly(path: Path, writing: Event) -> None:
    def write(folder: Path) -> None:
        writes("half")(folder)
        writing.set()
        time.sleep(600)

    Store(path).publish("fit", INPUTS, write, {})


def test_a_process_killed_while_publishing_leaves_no_result(store: Store) -> None:
    writing = SPAWN.Event()
    process = SPAWN.Process(target=_publish_slowly, args=(store.path, writing))
    process.start()
    assert writing.wait(60)
    process.kill()
    process.join(10)
    assert store.read("fit", INPUTS) is None
    assert not store.has("fit", KEY)
    folder = publish(store, "whole")
    assert store.read("fit", INPUTS) == folder
