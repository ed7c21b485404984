"""Stores on object storage: what is special about an address, and a whole run."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pixelpick_ray.data import datasets
from pixelpick_ray.errors import SpecError, StoreError
from pixelpick_ray.store import Store
from pixelpick_ray.store.objects import Objects
from tests.support.launch import ROOT, launch, overriding
from tests.support.object_storage import SECRET, served_bucket
from tests.support.results import INPUTS, KEY, fill_with_weights, publish
from tests.support.tiny_data import TINY_EXPERIMENT, TWO_STAGES, TinyDataset

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with served_bucket() as address:
        yield address


def test_no_message_shows_credentials(bucket: str, tmp_path: Path) -> None:
    store = Store(bucket.format("secrets"))
    assert store.address == "s3://bucket/secrets"
    store.write_record("a.json", {"values": 1})
    Objects(bucket.format("secrets")).write("a.json", b"{")
    with pytest.raises(StoreError, match=r"^s3://bucket/secrets/a\.json: is damaged: is not JSON") as told:
        store.read_record("a.json")
    elsewhere = bucket.format("x").replace("@bucket/", "@nowhere/")
    with pytest.raises(StoreError, match=r"^s3://nowhere/x/a\.json: .*NO_SUCH_BUCKET.*; check the address") as lost:
        Store(elsewhere).write_record("a.json", {"values": 1})
    with pytest.raises(SpecError, match=r"^--store s3://bucket/a b: .*; give a folder, or an address such as") as bad:
        Store(bucket.format("a b")).has("fit", KEY)
    for error in (told, lost, bad):
        assert SECRET not in str(error.value)


def test_an_address_that_nobody_understands_is_refused_and_none_is_a_folder(bucket: str) -> None:
    with pytest.raises(SpecError, match=r"^--store ftp://x/y: Unrecognized filesystem type.*; give a folder"):
        Store("ftp://x/y").names("fit")
    with pytest.raises(StoreError, match=r"s3://bucket/x: is not a folder"):
        Store(bucket.format("x")).folder("fit", KEY)


def test_a_server_that_does_not_answer_is_told_in_bounded_time() -> None:
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        options = f"endpoint_override=127.0.0.1:{taken.getsockname()[1]}&scheme=http&region=us-east-1"
        start = time.monotonic()
        with pytest.raises(StoreError, match=r"^s3://bucket/x/fit/.*NETWORK_CONNECTION.*check the address"):
            Store(f"s3://a:b@bucket/x?{options}").has("fit", KEY)
        assert time.monotonic() - start < 30


def test_a_folder_without_a_manifest_is_being_written_and_no_damage(bucket: str, tmp_path: Path) -> None:
    store = Store(bucket.format(tmp_path.name))
    publish(store)
    store._storage.remove(f"fit/{KEY}/manifest.json")
    assert store.read("fit", INPUTS) is None
    assert store.damaged() == []
    assert "payload.txt" in store.names(f"fit/{KEY}")
    folder = publish(store, "two")
    assert (folder / "payload.txt").read_text() == "two"
    assert store.intact("fit", KEY)


def test_any_file_system_of_pyarrow_will_do(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/store")
    store.publish("fit", INPUTS, fill_with_weights, {})
    assert store.read("fit", INPUTS) is not None
    assert store.weights(KEY) is not None
    assert Store(tmp_path / "store").intact("fit", KEY)  # the layout is the same
    store.discard("fit", KEY)
    assert not (tmp_path / "store" / "fit" / KEY).exists()


def test_local_copies_are_removed_with_their_process_or_after_its_death(tmp_path: Path) -> None:
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


OPTIONS = ("tiny.yaml", *overriding(*TWO_STAGES), "--store")


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
