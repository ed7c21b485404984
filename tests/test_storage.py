"""Where a store is: what is special about an address of object storage, and a whole run there."""

import itertools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pixelpick_ray.cli import app
from pixelpick_ray.config.canonical import digest
from pixelpick_ray.errors import SpecError, StoreError
from pixelpick_ray.store import Store, absolute
from pixelpick_ray.store.objects import Objects
from pixelpick_ray.store.paths import without_credentials
from tests.support.cluster_experiment import KINDS, TINY
from tests.support.launch import ROOT, launch, overriding
from tests.support.results import INPUTS, KEY, publish
from tests.support.tiny_data import TINY_EXPERIMENT, TWO_STAGES

pytestmark = pytest.mark.long


def test_no_message_shows_credentials_and_an_address_that_nobody_understands_is_refused(bucket: str) -> None:
    store = Store(bucket.format("secrets"))
    assert store.address == "s3://bucket/secrets"
    Objects(bucket.format("secrets")).write("a.json", b"{")
    elsewhere = bucket.format("x").replace("@bucket/", "@nowhere/")
    for told, act in (
        (r"s3://bucket/secrets/a\.json: is damaged \(is not JSON", lambda: store.read_record("a.json")),
        ("s3://bucket/secrets: is object storage, but a folder is needed", lambda: store.folder("fit", KEY)),
        (
            r"s3://nowhere/x/a\.json: .*NO_SUCH_BUCKET.*; check the address",
            lambda: Store(elsewhere).write_record("a.json", {}),
        ),
        (
            r"--store s3://bucket/a b: .*; give a folder, or an address such as",
            lambda: Store(bucket.format("a b")).has("fit", KEY),
        ),
        ("--store ftp://x/y: Unrecognized filesystem type.*; give a folder", lambda: Store("ftp://x/y").names("fit")),
    ):
        with pytest.raises((SpecError, StoreError), match=f"^{told}") as caught:
            act()
        assert "hush" not in str(caught.value)


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
    assert (store.read("fit", INPUTS), store.damaged()) == (None, [])
    assert "payload.txt" in store.names(f"fit/{KEY}")
    assert (publish(store, "two") / "payload.txt").read_text() == "two"
    assert store.intact("fit", KEY)


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
        assert Store(tmp_path / end).intact("fit", digest({}))  # the layout is that of a folder


def test_a_run_and_its_report_are_those_from_a_folder(bucket: str, tmp_path: Path, tiny: None, undrawn: None) -> None:
    address, folder = bucket.format(tmp_path.name) + "&allow_delayed_open=true", str(tmp_path / "store")

    def command(name: str, where: str, *options: str) -> str:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "tiny.yaml").write_text(TINY_EXPERIMENT)
        word, *rest = options
        done = launch(tmp_path / name, word, "tiny.yaml", *overriding(*TWO_STAGES), "--store", where, *rest)
        assert done.status == 0, done.out + done.err
        assert "hush" not in done.out + done.err
        return str(done.out)

    run, report = ("run", "--local", "--device", "cpu"), ("report", "--out", "report", "--pictures", "1")
    assert "trained now: 2" in command("objects", address, *run)
    assert Store(address).leased() == {}
    assert "trained now: 0" in command("objects", address, *run)
    command("folder", folder, *run)
    command("objects", address, *report)
    command("folder", folder, *report)
    for name in ("table.md", "table.csv", "table.tex", "rows.csv", "pairs.csv", "queries.csv"):
        assert (tmp_path / "objects/report" / name).read_bytes() == (tmp_path / "folder/report" / name).read_bytes()


def test_home_folders_and_addresses_with_one_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("~/st") == str(tmp_path / "st")
    assert Store("~/st").path == tmp_path / "st"
    for location, use in itertools.product(("s3:/bucket/prefix", "gs:/bucket"), (absolute, Store)):
        with pytest.raises(SpecError, match=rf"--store {location}: give \w+://bucket.* or \./{location} for a folder"):
            use(location)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("s3://me:hush@bucket/a", "s3://bucket/a"),
        ("s3://bucket/a?region=x&secret_key=hush", "s3://bucket/a?region=x"),
        ("a folder@home", "a folder@home"),
    ],
)
def test_credentials_are_not_shown(location: str, shown: str) -> None:
    assert without_credentials(location) == shown


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_the_shell_travel_with_a_job_and_credentials_are_refused_and_not_repeated(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    here = {"PIXELPICK_STORE": "/my/store", "PIXELPICK_DATA": "my data", "PIXELPICK_CACHE_LIMIT": "9GB"}
    words = ["submit", "tiny.yaml", *KINDS[kind], "--dry-run", "--", "--store"]
    given = CliRunner().invoke(app, [*words, "mine"], env=here).output
    assert "/my/store" not in given  # what is typed comes first
    for expected in ("--store mine", "--data 'my data'", "--cache-limit 9GB"):
        assert expected in given
    done = launch(tmp_path, *words, "s3://me:hush@bucket/a")
    assert (done.status, "hush" in done.out + done.err) == (2, False)
    assert "--store s3://bucket/a: contains credentials" in done.err
