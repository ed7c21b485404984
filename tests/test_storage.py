"""What a store promises, of a folder and of object storage alike; and what only one of them has."""

import hashlib
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.data import datasets
from pixelpick_ray.errors import SpecError, StoreError
from pixelpick_ray.store import Store, absolute, leases
from pixelpick_ray.store.backend import Storage
from pixelpick_ray.store.leases import LEASE_SECONDS
from pixelpick_ray.store.objects import Objects
from pixelpick_ray.store.results import _json as as_json
from tests.support.launch import launch
from tests.support.object_storage import SECRET, served_bucket
from tests.support.tiny_data import TINY_EXPERIMENT, TinyDataset

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
INPUTS = {"step": "fit", "seed": 0}
KEY = digest(INPUTS)
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "payload.txt": lambda old: b"x" + old[1:],
    "inner/more.txt": lambda old: b"",
    "input.json": lambda old: old[:-1],
    "provenance.json": lambda old: old + b" ",
    "manifest.json": lambda old: old[:-1],
}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with served_bucket() as address:
        yield address


@pytest.fixture(params=["folder", "objects"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    return str(request.getfixturevalue("bucket")).format(f"{tmp_path.name}/store")


@pytest.fixture
def store(location: str) -> Store:
    return Store(location)


def storage_of(store: Store) -> Storage:
    return store._storage


def fill(folder: Path, content: str = "one") -> None:
    (folder / "inner").mkdir()
    (folder / "payload.txt").write_text(content)
    (folder / "inner" / "more.txt").write_text(content * 2)


def fill_with_weights(folder: Path) -> None:
    fill(folder)
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "weights.run").write_text("mine")


def publish(store: Store, write: Callable[[Path], None] = fill) -> Path:
    return store.publish("fit", INPUTS, write, {"seconds": 1.0})


def puts(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


class TestContract:
    """What every store promises."""

    def test_what_is_published_is_read_back_by_its_inputs_and_by_its_key(self, store: Store) -> None:
        assert not store.has("fit", KEY)
        assert store.read("fit", INPUTS) is None
        assert store.files("fit", KEY, []) is None
        assert not store.intact("fit", KEY)
        made = publish(store)
        for folder in (made, store.read("fit", INPUTS)):
            assert folder is not None
            assert (folder / "payload.txt").read_text() == "one"
            assert (folder / "inner" / "more.txt").read_text() == "oneone"
            assert json.loads((folder / "input.json").read_text()) == INPUTS
        assert store.has("fit", KEY)
        assert store.intact("fit", KEY)
        assert not store.has("pick", KEY)
        found = store.files("fit", KEY, ["inner/more.txt", "input.json"])
        assert found is not None
        assert found["inner/more.txt"] == b"oneone"
        assert json.loads(found["input.json"]) == INPUTS
        assert store.files("fit", KEY, ["nowhere.txt"]) is None
        assert store.names("fit") == [KEY]

    def test_the_first_publisher_wins(self, store: Store) -> None:
        publish(store)
        folder = publish(store, lambda folder: fill(folder, "two"))
        assert (folder / "payload.txt").read_text() == "one"
        assert store.damaged() == []

    def test_a_failure_while_writing_leaves_nothing(self, store: Store) -> None:
        def fails(folder: Path) -> None:
            fill(folder)
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError, match="out of memory"):
            publish(store, fails)
        assert not store.has("fit", KEY)
        assert store.names("fit") == []

    def test_a_discarded_result_is_gone_and_may_be_made_again(self, store: Store) -> None:
        store.discard("fit", KEY)
        publish(store)
        store.discard("fit", KEY)
        assert store.names("fit") == []
        assert store.read("fit", INPUTS) is None
        assert store.damaged() == []
        publish(store)
        assert store.read("fit", INPUTS) is not None

    @pytest.mark.parametrize("name", DAMAGES)
    def test_damage_is_told_set_aside_and_made_again(self, store: Store, name: str) -> None:
        damage = DAMAGES[name]
        publish(store)
        storage = storage_of(store)
        old = storage.read(f"fit/{KEY}/{name}")
        assert old is not None
        storage.write(f"fit/{KEY}/{name}", damage(old))
        assert not store.intact("fit", KEY)
        assert store.damaged() == []  # who only looks changes nothing
        assert store.read("fit", INPUTS) is None
        (line,) = store.damaged()
        assert line.startswith(f"fit/{KEY}: {name}: ")
        aside = line.rpartition("set aside as ")[2].rstrip(")")
        assert storage.read(f"{aside}/{name}") == damage(old)
        assert not store.has("fit", KEY)
        publish(store)
        assert store.read("fit", INPUTS) is not None
        assert len(store.damaged()) == 1

    def test_a_manifest_that_leads_elsewhere_is_damage(self, store: Store, tmp_path: Path) -> None:
        publish(store)
        manifest = json.loads(storage_of(store).read(f"fit/{KEY}/manifest.json") or b"")
        (tmp_path / "outside.txt").write_text("outside")
        for name in ("../../../outside.txt", str(tmp_path / "outside.txt")):
            entry = {"bytes": 7, "sha256": hashlib.sha256(b"outside").hexdigest()}
            storage_of(store).write(f"fit/{KEY}/manifest.json", as_json({**manifest, name: entry}))
            assert not store.intact("fit", KEY)
        assert store.read("fit", INPUTS) is None
        assert "manifest.json: names other files than a result has" in store.damaged()[0]

    def test_a_result_of_other_inputs_is_an_error(self, store: Store) -> None:
        publish(store)
        other = {**INPUTS, "seed": 1}
        storage_of(store).move(f"fit/{KEY}", f"fit/{digest(other)}")
        assert not store.intact("fit", digest(other))
        with pytest.raises(StoreError, match=r"was made from other inputs than its key says"):
            store.read("fit", other)

    def test_weights_appear_with_their_fit_and_are_no_part_of_it(self, store: Store) -> None:
        publish(store, fill_with_weights)
        found = store.weights(KEY)
        assert found is not None
        assert found[0].read_bytes() == b"weights"
        assert found[1] == hashlib.sha256(b"weights").hexdigest()
        manifest = json.loads(storage_of(store).read(f"fit/{KEY}/manifest.json") or b"")
        assert set(manifest) == {"payload.txt", "inner/more.txt", "input.json", "provenance.json"}
        store.drop_weights(KEY, "mine")
        store.drop_weights(KEY, "mine")
        assert store.weights(KEY) is None
        assert store.read("fit", INPUTS) is not None
        assert store.damaged() == []

    def test_weights_are_written_again_and_damaged_ones_are_absent(self, store: Store) -> None:
        publish(store, fill_with_weights)
        sha256 = store.write_weights(KEY, puts(b"other"))
        assert sha256 == hashlib.sha256(b"other").hexdigest()
        found = store.weights(KEY)
        assert found is not None
        assert (found[0].read_bytes(), found[1]) == (b"other", sha256)
        storage_of(store).write(f"fit/{KEY}/weights.safetensors", b"othex")
        assert store.weights(KEY) is None
        assert store.read("fit", INPUTS) is not None

    def test_an_unfinished_fit_is_kept_until_it_is_dropped(self, store: Store) -> None:
        assert store.unfinished(KEY) is None
        for content in (b"first", os.urandom(100_000), b""):
            store.write_unfinished(KEY, content)
            assert store.unfinished(KEY) == content
        publish(store)
        assert store.unfinished(KEY) == b""
        store.drop_unfinished(KEY)
        store.drop_unfinished(KEY)
        assert store.unfinished(KEY) is None

    @pytest.mark.parametrize("damage", [lambda old: old[:-1] + b"x", lambda old: old[:70], lambda old: b""])
    def test_a_damaged_unfinished_fit_is_absent_and_removed(
        self, store: Store, damage: Callable[[bytes], bytes]
    ) -> None:
        store.write_unfinished(KEY, b"state of the training")
        old = storage_of(store).read(f"unfinished/{KEY}")
        assert old is not None
        storage_of(store).write(f"unfinished/{KEY}", damage(old))
        assert store.unfinished(KEY) is None
        assert store.names("unfinished") == []

    def test_records_are_replaced_listed_and_removed(self, store: Store) -> None:
        assert store.read_record("experiments/x/chains/a.json") is None
        assert store.records("experiments/x/chains") == []
        for value in ({"stages": [1]}, {"stages": [1, 2]}):
            store.write_record("experiments/x/chains/a.json", value)
            assert store.read_record("experiments/x/chains/a.json") == value
        store.write_record("experiments/x/chains/b.json", {"values": []})
        assert store.records("experiments/x/chains") == ["a", "b"]
        assert store.names("experiments") == ["x"]
        store.remove_record("experiments/x/chains/a.json")
        store.remove_record("experiments/x/chains/a.json")
        assert store.records("experiments/x/chains") == ["b"]

    def test_a_journal_keeps_its_lines_in_order_and_no_half_of_one(self, store: Store) -> None:
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

    def test_the_last_line_of_the_latest_failure_is_told(self, store: Store) -> None:
        assert store.last_error("chain") == ""
        store.record_attempt("chain", "Traceback\nRunError: first\n")
        store.record_attempt("chain", "Traceback\nRunError: out of memory\n\n")
        assert store.last_error("chain") == "RunError: out of memory"

    def test_a_lease_excludes_others_until_it_ends(self, store: Store) -> None:
        assert store.leased() == {}
        lease = store.take("fit", KEY)
        assert lease is not None
        with lease:
            assert store.take("fit", KEY) is None  # not even this thread
            assert pickle.loads(pickle.dumps(store)).take("fit", KEY) is None
            assert store.leased() == {f"fit-{KEY}": f"{socket.gethostname()} pid {os.getpid()}"}
            with store.take("pick", KEY) or pytest.fail("another result"):
                pass
        assert store.leased() == {}
        assert store.names("leases") == []
        with store.take("fit", KEY) or pytest.fail("it is free"):
            pass

    def test_a_lease_that_is_not_refreshed_is_free(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        storage_of(store).create(f"leases/fit-{KEY}", b"another-host pid 1\n")
        assert store.take("fit", KEY) is None
        monkeypatch.setattr(leases, "LEASE_SECONDS", 0.0)
        assert store.leased() == {}
        lease = store.take("fit", KEY)
        monkeypatch.setattr(leases, "LEASE_SECONDS", LEASE_SECONDS)
        assert lease is not None
        with lease:
            assert list(store.leased().values()) == [f"{socket.gethostname()} pid {os.getpid()}"]

    def test_a_lease_that_was_taken_over_is_left_to_its_new_holder(self, store: Store) -> None:
        with store.take("fit", KEY) or pytest.fail("it is free"):
            storage_of(store).write(f"leases/fit-{KEY}", b"another-host pid 1\n")
        assert store.leased() == {f"fit-{KEY}": "another-host pid 1"}

    def test_a_lease_is_kept_young_by_its_holder(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(leases, "LEASE_SECONDS", 3.0)  # whole seconds: the clock of object storage has no others
        with store.take("fit", KEY) or pytest.fail("it is free"):
            for _ in range(9):
                time.sleep(0.5)
                assert store.leased() != {}

    def test_of_threads_that_take_one_lease_at_once_one_gets_it(self, store: Store) -> None:
        barrier, got = threading.Barrier(4), []

        def race() -> None:
            barrier.wait(10)
            got.append(store.take("fit", KEY))

        threads = [threading.Thread(target=race) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = [lease for lease in got if lease is not None]
        assert len(held) == 1
        with held[0]:
            assert len(store.leased()) == 1

    def test_a_store_travels_to_another_process(self, store: Store) -> None:
        publish(store)
        assert pickle.loads(pickle.dumps(store)).intact("fit", KEY)


class TestObjectStorage:
    """What is special about an address."""

    def test_no_message_shows_credentials(self, bucket: str, tmp_path: Path) -> None:
        store = Store(bucket.format("secrets"))
        assert store.address == "s3://bucket/secrets"
        store.write_record("a.json", {"values": 1})
        Objects(bucket.format("secrets")).write("a.json", b"{")
        with pytest.raises(StoreError, match=r"^s3://bucket/secrets/a\.json: is damaged: is not JSON") as told:
            store.read_record("a.json")
        elsewhere = bucket.format("x").replace("@bucket/", "@nowhere/")
        with pytest.raises(StoreError, match=r"^s3://nowhere/x/a\.json: .*NO_SUCH_BUCKET.*; check the address") as lost:
            Store(elsewhere).write_record("a.json", {"values": 1})
        with pytest.raises(
            SpecError, match=r"^--store s3://bucket/a b: .*; give a folder, or an address such as"
        ) as bad:
            Store(bucket.format("a b")).has("fit", KEY)
        for error in (told, lost, bad):
            assert SECRET not in str(error.value)

    def test_an_address_that_nobody_understands_is_refused(self) -> None:
        with pytest.raises(SpecError, match=r"^--store ftp://x/y: Unrecognized filesystem type.*; give a folder"):
            Store("ftp://x/y").names("fit")

    def test_a_server_that_does_not_answer_is_told_in_bounded_time(self) -> None:
        with socket.socket() as taken:  # bound, and not listening
            taken.bind(("127.0.0.1", 0))
            options = f"endpoint_override=127.0.0.1:{taken.getsockname()[1]}&scheme=http&region=us-east-1"
            start = time.monotonic()
            with pytest.raises(StoreError, match=r"^s3://bucket/x/fit/.*NETWORK_CONNECTION.*check the address"):
                Store(f"s3://a:b@bucket/x?{options}").has("fit", KEY)
            assert time.monotonic() - start < 30

    def test_it_is_no_folder(self, bucket: str) -> None:
        with pytest.raises(StoreError, match=r"s3://bucket/x: is not a folder"):
            Store(bucket.format("x")).folder("fit", KEY)

    def test_a_folder_without_a_manifest_is_being_written_and_no_damage(self, bucket: str, tmp_path: Path) -> None:
        store = Store(bucket.format(tmp_path.name))
        publish(store)
        storage_of(store).remove(f"fit/{KEY}/manifest.json")
        assert store.read("fit", INPUTS) is None
        assert store.damaged() == []
        assert "payload.txt" in store.names(f"fit/{KEY}")
        folder = publish(store, lambda folder: fill(folder, "two"))
        assert (folder / "payload.txt").read_text() == "two"
        assert store.intact("fit", KEY)

    def test_publishers_whose_files_mixed_are_found(self, bucket: str, tmp_path: Path) -> None:
        """Both saw no manifest; the slower one overwrites the payload of the faster after its manifest was written."""
        store = Store(bucket.format(tmp_path.name))
        publish(store)
        storage_of(store).write(f"fit/{KEY}/payload.txt", b"of the slower")
        assert store.read("fit", INPUTS) is None
        assert store.damaged()[0].startswith(f"fit/{KEY}: payload.txt: other content than was published")

    def test_any_file_system_of_pyarrow_will_do(self, tmp_path: Path) -> None:
        store = Store(f"file://{tmp_path}/store")
        publish(store, fill_with_weights)
        assert store.read("fit", INPUTS) is not None
        assert store.weights(KEY) is not None
        assert Store(tmp_path / "store").intact("fit", KEY)  # the layout is the same
        store.discard("fit", KEY)
        assert not (tmp_path / "store" / "fit" / KEY).exists()

    def test_local_copies_are_removed_with_their_process_or_after_its_death(self, tmp_path: Path) -> None:
        code = (
            "import os, sys\nfrom pixelpick_ray.store import Store\n"
            "store = Store(sys.argv[1])\n"
            "store.publish('fit', {}, lambda folder: (folder / 'a').write_text('a'), {})\n"
            "if sys.argv[2] == 'killed': os.kill(os.getpid(), 9)\n"
        )
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        for end, left in (("ended", 0), ("killed", 1), ("ended", 0)):
            command = [sys.executable, "-c", code, f"file://{tmp_path}/{end}", end]
            subprocess.run(command, env={**os.environ, "TMPDIR": str(temporary)}, check=end == "ended", cwd=ROOT)
            assert len(list(temporary.iterdir())) == left


def test_a_location_is_made_absolute_and_an_address_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("store") == str(tmp_path / "store")
    assert absolute("s3://bucket/prefix?region=x") == "s3://bucket/prefix?region=x"


# A whole run


OPTIONS = ("tiny.yaml", "--set", "grid=[{budget: [3, 6]}]", "--set", "train.epochs=1", "--store")


def tiny_run(store: str, place: Path) -> str:
    """What a run prints."""
    place.mkdir(exist_ok=True)
    (place / "tiny.yaml").write_text(TINY_EXPERIMENT)
    done = launch(place, "run", *OPTIONS, store, "--local", "--device", "cpu")
    assert done.status == 0, done.out + done.err
    assert SECRET not in done.out + done.err
    return done.out


def tiny_report(store: str, place: Path) -> dict[str, bytes]:
    """The files of numbers of a report."""
    done = launch(place, "report", *OPTIONS, store, "--out", "report", "--pictures", "1")
    assert done.status == 0
    assert SECRET not in done.out + done.err
    names = ("table.md", "table.csv", "table.tex", "rows.csv", "pairs.csv", "queries.csv")
    return {name: (place / "report" / name).read_bytes() for name in names}


def test_a_run_and_its_report_from_object_storage_are_those_from_a_folder(
    bucket: str, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(datasets.DATASETS, "tiny", TinyDataset)
    address, folder = bucket.format(tmp_path.name) + "&allow_delayed_open=true", str(tmp_path / "store")
    assert "trained now: 2" in tiny_run(address, tmp_path / "objects")
    assert Store(address).leased() == {}
    assert "trained now: 0" in tiny_run(address, tmp_path / "objects")
    tiny_run(folder, tmp_path / "folder")
    assert tiny_report(address, tmp_path / "objects") == tiny_report(folder, tmp_path / "folder")
