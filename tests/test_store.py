"""A store's promises, on a folder and on object storage: a result is whole or absent, and one process computes it."""

import hashlib
import json
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.errors import StoreError
from pixelpick_ray.store import Store, leases
from pixelpick_ray.store.backend import Storage
from pixelpick_ray.store.leases import LEASE_SECONDS
from pixelpick_ray.store.results import _json as as_json
from tests.support.results import INPUTS, KEY, ME, OTHER, at_once, fill, publish, puts

FILES = ("payload.txt", "inner/more.txt", "input.json", "provenance.json", "manifest.json")
OBJECTS = pytest.param("objects", marks=pytest.mark.long)
on_a_folder = pytest.mark.parametrize("location", ["folder"], indirect=True)


@pytest.fixture(params=["folder", OBJECTS])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    return str(request.getfixturevalue("bucket")).format(f"{tmp_path.name}/store")


@pytest.fixture
def store(location: str) -> Store:
    return Store(location)


def storage_of(store: Store) -> Storage:
    return store._storage


# Results


def test_what_is_published_is_read_back_by_its_inputs_and_by_its_key(store: Store) -> None:
    assert not store.has("fit", KEY)
    assert not store.intact("fit", KEY)
    assert (store.read("fit", INPUTS), store.files("fit", KEY, []), store.names("fit")) == (None, None, [])
    made = publish(store)
    for folder in (made, store.read("fit", INPUTS)):
        assert folder is not None
        assert (folder / "inner" / "more.txt").read_text() == "oneone"
        assert json.loads((folder / "input.json").read_text()) == INPUTS
        assert json.loads((folder / "provenance.json").read_text()) == {"seconds": 1.0}
        assert not store.is_folder or folder == store.folder("fit", KEY)
    assert store.has("fit", KEY)
    assert pickle.loads(pickle.dumps(store)).intact("fit", KEY)  # as in another process
    assert not store.has("pick", KEY)
    assert (store.read("fit", OTHER), store.files("pick", KEY, ["payload.txt"])) == (None, None)
    contents = {"payload.txt": b"one", "inner/more.txt": b"oneone"}
    assert store.files("fit", KEY, list(contents)) == contents
    assert (publish(store, "two") / "payload.txt").read_text() == "one"  # the first publisher wins
    assert (store.damaged(), store.names("fit")) == ([], [KEY])
    storage_of(store).write(f"fit/{KEY}/added.txt", b"later")
    assert [store.files("fit", KEY, [name]) for name in ("added.txt", "nowhere.txt")] == [None, None]
    store.discard("fit", KEY)
    assert (store.names("fit"), store.read("fit", INPUTS)) == ([], None)
    assert (publish(store, "two") / "payload.txt").read_text() == "two"


@on_a_folder
def test_of_publishers_at_the_same_time_one_wins_and_all_agree(store: Store) -> None:
    barrier = threading.Barrier(4)

    def race(number: int) -> Path:
        def write(folder: Path) -> None:
            fill(folder, str(number))
            barrier.wait(10)

        return store.publish("fit", INPUTS, write, {})

    assert at_once(4, race) == [store.read("fit", INPUTS)] * 4
    assert [path.name for path in (store.path / "fit").iterdir()] == [KEY]


def test_a_failure_while_writing_leaves_nothing(store: Store) -> None:
    def fails(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        store.publish("fit", INPUTS, fails, {})
    with pytest.raises(ValueError, match="JSON"):
        store.publish("fit", INPUTS, fill, {"seconds": float("nan")})
    assert (store.has("fit", KEY), store.names("fit")) == (False, [])
    assert not store.is_folder or list((store.path / "fit").iterdir()) == []


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes | None]]] = {
    "changed": ("payload.txt", lambda old: b"x" + old[1:]),
    "input cut": ("input.json", lambda old: old[:-1]),
    "provenance longer": ("provenance.json", lambda old: old + b" "),
    "manifest cut": ("manifest.json", lambda old: old[:-1]),
    "cut": ("inner/more.txt", lambda old: old[:3]),
    "removed": ("payload.txt", lambda old: None),
    "manifest no text": ("manifest.json", lambda old: b"\xff\xfe\x00"),
    "manifest a list": ("manifest.json", lambda old: b"[]"),
    "manifest entry": ("manifest.json", lambda old: b'{"payload.txt": 1}'),
    "manifest without it": ("manifest.json", lambda old: b"{}"),
}
ON_OBJECTS = ("changed", "manifest cut")


@pytest.mark.parametrize(
    ("location", "damage"),
    [("folder", one) for one in DAMAGES] + [pytest.param("objects", one, marks=pytest.mark.long) for one in ON_OBJECTS],
    indirect=["location"],
)
def test_damage_is_told_set_aside_and_made_again(store: Store, damage: str) -> None:
    name, spoil = DAMAGES[damage]
    publish(store)
    storage, where = storage_of(store), [f"fit/{KEY}/{file}" for file in FILES]
    old = storage.read(f"fit/{KEY}/{name}")
    assert old is not None
    new = spoil(old)
    storage.remove(f"fit/{KEY}/{name}") if new is None else storage.write(f"fit/{KEY}/{name}", new)
    before = storage.read_each(where)
    assert not store.intact("fit", KEY)
    unseen = name in ("inner/more.txt", "provenance.json") or damage == "manifest cut"
    assert (store.files("fit", KEY, ["payload.txt", "input.json"]) is None) != unseen  # who asks for it notices
    assert storage.read_each(where) == before  # who only looks changes nothing
    (line,) = store.damaged()
    assert line.startswith(f"fit/{KEY}: {name}: ")
    assert line.endswith(" (the next run will remake it)")
    assert store.read("fit", INPUTS) is None
    (line,) = store.damaged()
    assert line.startswith(f"fit/{KEY}: {name}: ")
    assert name == "manifest.json" or ("missing" if new is None else "content differs from what was published") in line
    aside = line.rpartition("set aside as ")[2].rstrip(")")
    assert aside.startswith(f"damaged/fit-{KEY}-")
    assert storage.read(f"{aside}/{name}") == new
    assert not store.has("fit", KEY)
    publish(store)
    assert store.read("fit", INPUTS) is not None
    assert len(store.damaged()) == 1


@on_a_folder
@pytest.mark.parametrize("looked_at", [True, False])
def test_a_folder_without_manifest_is_absent_and_replaced(store: Store, looked_at: bool) -> None:
    (publish(store, "old") / "manifest.json").unlink()
    assert not store.has("fit", KEY)
    if looked_at:
        assert store.read("fit", INPUTS) is None
        assert store.damaged()[0].startswith(f"fit/{KEY}: manifest.json: missing (set aside as damaged/fit-{KEY}-")
    assert (publish(store, "new") / "payload.txt").read_text() == "new"
    assert store.read("fit", INPUTS) == store.folder("fit", KEY)


def test_a_manifest_that_leads_elsewhere_is_damage_and_other_inputs_under_a_key_are_an_error(store: Store) -> None:
    publish(store)
    manifest = storage_of(store).read(f"fit/{KEY}/manifest.json") or b""
    for name in ("../../../outside.txt", "/outside.txt"):
        entry = {"bytes": 7, "sha256": hashlib.sha256(b"outside").hexdigest()}
        storage_of(store).write(f"fit/{KEY}/manifest.json", as_json({**json.loads(manifest), name: entry}))
        assert not store.intact("fit", KEY)
        assert "manifest.json: lists unexpected files" in store.damaged()[0]
    storage_of(store).write(f"fit/{KEY}/manifest.json", manifest)
    storage_of(store).move(f"fit/{KEY}", f"fit/{digest(OTHER)}")
    assert not store.intact("fit", digest(OTHER))
    assert store.files("fit", digest(OTHER), ["payload.txt", "input.json"]) is None
    with pytest.raises(StoreError, match=r"its inputs do not match its key; remove the folder and run again"):
        store.read("fit", OTHER)


@on_a_folder
def test_a_store_that_cannot_be_written_to_is_told(store: Store) -> None:
    store.folder("fit", KEY).parent.mkdir(parents=True)
    store.folder("fit", KEY).write_text("a file in the way")
    with pytest.raises(StoreError, match=r"could not be published; check that .*store is writable"):
        publish(store)


# Weights


def has_weights(store: Store, content: bytes) -> bool:
    found = store.weights(KEY)
    return found is not None and (found[0].read_bytes(), found[1]) == (content, hashlib.sha256(content).hexdigest())


def test_weights_live_beside_their_fit_and_are_no_part_of_it(store: Store) -> None:
    def fill_with_weights(folder: Path) -> None:
        fill(folder)
        (folder / "weights.safetensors").write_bytes(b"weights")
        (folder / "weights.run").write_text("mine")

    store.publish("fit", INPUTS, fill_with_weights, {})
    assert has_weights(store, b"weights")
    for _ in range(2):
        store.drop_weights(KEY, "mine")
        assert store.weights(KEY) is None
    for content in (b"old", b"new"):
        assert store.write_weights(KEY, puts(content)) == hashlib.sha256(content).hexdigest()
        assert has_weights(store, content)
    storage_of(store).write(f"fit/{KEY}/weights.safetensors", b"nex")
    assert store.weights(KEY) is None
    assert store.read("fit", INPUTS) is not None
    assert store.damaged() == []


@on_a_folder
def test_only_weights_that_a_run_made_for_itself_are_dropped_by_it_or_after_its_death(store: Store) -> None:
    folder = publish(store)
    assert store.weights(KEY) is None
    store.write_weights(KEY, puts(b"weights"), run="mine")
    store.drop_weights(KEY, "mine")
    assert store.weights(KEY) is None
    assert sorted(path.name for path in folder.glob("weights.*")) == ["weights.json"]
    store.write_weights(KEY, puts(b"weights"), run="other")
    with store.take("run", "other") or pytest.fail("it is free"):
        store.drop_weights(KEY, "mine")
        assert has_weights(store, b"weights")
    store.drop_weights(KEY, "mine")  # nobody will, now
    assert store.weights(KEY) is None
    for keep in (lambda: store.keep_weights(KEY), lambda: store.write_weights(KEY, puts(b"weights"))):
        store.write_weights(KEY, puts(b"weights"), run="mine")
        keep()
        store.drop_weights(KEY, "mine")
        assert has_weights(store, b"weights")  # kept for good


@on_a_folder
def test_weights_without_a_digest_are_absent_and_a_failed_write_keeps_the_old_ones(store: Store) -> None:
    folder = publish(store)
    for content in (b"", b"\xff", b"{}", b"[1]"):
        store.write_weights(KEY, puts(b"weights"))
        (folder / "weights.json").write_bytes(content)
        assert store.weights(KEY) is None
    store.write_weights(KEY, puts(b"old"))

    def full(path: Path) -> None:
        path.write_bytes(b"ne")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        store.write_weights(KEY, full)
    assert has_weights(store, b"old")


# Unfinished fits, records, journals, failures


def test_an_unfinished_fit_is_kept_until_it_is_dropped_and_a_damaged_one_is_removed(store: Store) -> None:
    assert store.unfinished(KEY) is None
    for content in (b"first", b"a\n" * 50_000, b""):
        store.write_unfinished(KEY, content)
        assert store.unfinished(KEY) == content
    for _ in range(2):
        store.drop_unfinished(KEY)
        assert store.unfinished(KEY) is None
    for end in (-1, 70, 0):
        store.write_unfinished(KEY, b"state of the training")
        old = storage_of(store).read(f"unfinished/{KEY}")
        assert old is not None
        storage_of(store).write(f"unfinished/{KEY}", old[:end] + b"x" * (end == -1))
        assert store.unfinished(KEY) is None
        assert store.names("unfinished") == []


def test_records_are_replaced_listed_and_removed(store: Store) -> None:
    folder = "experiments/x/chains"
    assert (store.read_record(f"{folder}/a.json"), store.records(folder)) == (None, [])
    for value in ({"stages": [1]}, {"stages": [1, 2]}):
        store.write_record(f"{folder}/a.json", value)
        assert store.read_record(f"{folder}/a.json") == value
    with pytest.raises(ValueError, match="JSON"):
        store.write_record(f"{folder}/a.json", {"stages": float("nan")})
    assert store.read_record(f"{folder}/a.json") == value
    store.write_record(f"{folder}/b.json", {"values": []})
    assert (store.records(folder), store.names("experiments")) == (["a", "b"], ["x"])
    for _ in range(2):
        store.remove_record(f"{folder}/a.json")
        assert store.records(folder) == ["b"]


def test_a_journal_keeps_its_lines_in_order_and_no_half_of_one(store: Store) -> None:
    path = "answers/book/mine.jsonl"
    assert store.lines(path) == []
    store.append_lines(path, [{"number": 0}, {"number": 1}])
    store.append_lines(path, [{"number": 2, "text": "ä\n"}])
    store.append_lines(path, [{"number": 3}])
    assert store.names("answers/book") == ["mine.jsonl"]
    for start in range(5):
        assert [line["number"] for line in store.lines(path, start=start)] == list(range(start, 4))
    assert store.lines(path, start=2)[0]["text"] == "ä\n"
    last = path if store.is_folder else f"{path}/{3:012d}"
    whole = storage_of(store).read(last)
    assert whole is not None
    storage_of(store).write(last, whole[:-1])  # as a process leaves it that is killed while it writes
    assert [line["number"] for line in store.lines(path)] == [0, 1, 2]
    storage_of(store).write(last, b"{" + whole)
    with pytest.raises(StoreError, match=r"book/mine\.jsonl: line \d is damaged \(.*correct or remove this"):
        store.lines(path)


def test_the_last_line_of_the_latest_failure_is_told(store: Store) -> None:
    assert store.last_error("chain") == ""
    for at, text in ((2, "Traceback\n  in fit\nRunError: out of memory\n\n"), (1, "Traceback\nDataError: damaged\n")):
        storage_of(store).write(f"attempts/chain/{1_700_000_000_000_000_000 + at}.txt", text.encode())
        assert store.last_error("chain") == "RunError: out of memory"
    assert store.last_error("another") == ""
    for text, told in (("Traceback\nRunError: again\n\n", "RunError: again"), ("\n", "")):
        store.record_attempt("chain", text)
        assert store.last_error("chain") == told


# Leases

LEASE = f"leases/fit-{KEY}"
ELSEWHERE = b"another-host pid 1\n"


def test_a_lease_excludes_others_until_it_ends(store: Store) -> None:
    assert store.leased() == {}
    with store.take("fit", KEY) or pytest.fail("it is free"):
        assert store.take("fit", KEY) is None  # not even this thread
        assert pickle.loads(pickle.dumps(store)).take("fit", KEY) is None
        assert store.leased() == {f"fit-{KEY}": ME}
        with store.take("pick", KEY) or pytest.fail("another result"):
            pass
    with pytest.raises(RuntimeError, match="failed"), store.take("fit", KEY) or pytest.fail("it is free"):
        raise RuntimeError("failed")
    assert (store.leased(), store.names("leases")) == ({}, [])
    assert not store.is_folder or list((store.path / "leases").iterdir()) == []


@pytest.mark.parametrize("content", [ELSEWHERE, b"", b"\xff\xfe\n\xff"], ids=["another host", "being taken", "broken"])
def test_a_lease_lasts_while_it_is_refreshed(store: Store, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    storage_of(store).create(LEASE, content)
    assert (store.take("fit", KEY), len(store.leased())) == (None, 1)
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.0)
    assert store.leased() == {}
    lease = store.take("fit", KEY)
    monkeypatch.setattr(leases, "LEASE_SECONDS", LEASE_SECONDS)
    with lease or pytest.fail("it is free"):
        assert list(store.leased().values()) == [ME]


def test_a_lease_that_was_taken_over_is_left_to_its_new_holder(store: Store) -> None:
    with store.take("fit", KEY) or pytest.fail("it is free"):
        storage_of(store).write(LEASE, ELSEWHERE)
    assert store.leased() == {f"fit-{KEY}": "another-host pid 1"}


@pytest.mark.parametrize("location", [OBJECTS], indirect=True)
def test_a_lease_on_objects_is_kept_young_by_its_holder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose clock has whole seconds only; test_store_faults.py does it with folders."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 3.0)
    with store.take("fit", KEY) or pytest.fail("it is free"):
        for _ in range(5):
            time.sleep(0.9)
            assert store.leased() != {}


@on_a_folder
def test_a_dead_lease_that_was_taken_over_is_not_taken_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes find the same dead lease; the slower one must not remove the lease of the faster."""
    storage_of(store).create(LEASE, ELSEWHERE)
    os.utime(store.path / LEASE, (time.time() - LEASE_SECONDS - 1,) * 2)
    look = leases.holder

    def overtaken(storage: Storage, path: str) -> str:
        found = look(storage, path)
        if found == "":
            storage.write(path, b"third-host pid 3")
        return found

    monkeypatch.setattr(leases, "holder", overtaken)
    assert store.take("fit", KEY) is None
    assert (store.path / LEASE).read_bytes() == b"third-host pid 3"
