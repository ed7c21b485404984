"""Files for people are replaced whole; file systems that cannot sync, or have no room, lose nothing."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.data import cache
from pixelpick_ray.data.folder_description import read_folder_description
from pixelpick_ray.errors import DataError, StoreError
from pixelpick_ray.report.rows import csv_text
from pixelpick_ray.store import Store
from pixelpick_ray.store.backend import UNSYNCED
from pixelpick_ray.store.outputs import replace_files


def test_files_are_replaced_with_their_permissions_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"old")
    (tmp_path / "kept").chmod(0o640)
    (tmp_path / "link").symlink_to("kept")
    replace_files({tmp_path / "link": b"new", tmp_path / "a" / "b": b"more"})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "kept").read_bytes() == b"new"
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "a" / "b").read_bytes() == b"more"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "kept", "link"]


def test_a_disk_that_fills_leaves_all_files_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"old")
    write = Path.write_bytes

    def full(self: Path, content: Any) -> int:
        if content == b"second":
            write(self, content[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        replace_files({tmp_path / "one": b"first", tmp_path / "two": b"second"})
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"one": b"old", "two": b"old"}


def test_what_is_no_regular_file_is_written_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    replace_files({tmp_path / "pipe": b"content"})
    assert os.read(reader, 99) == b"content"
    assert not (tmp_path / "pipe").is_file()
    os.close(reader)


def publish(store: Store) -> None:
    store.publish("fit", {"a": 1}, lambda folder: (folder / "file").write_bytes(b"content") and None, {})
    store.append_lines("answers/a/b.jsonl", [1])
    store.write_record("experiments/a.json", {"b": 1})


@pytest.mark.parametrize("number", sorted(UNSYNCED))
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_file_system_that_cannot_sync_folders_is_written_all_the_same(
    number: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Any = getattr(os, call)

    def unable(target: Any, *rest: Any) -> Any:
        if Path(f"/proc/self/fd/{target}" if call == "fsync" else target).is_dir():
            raise OSError(number, os.strerror(number))
        return original(target, *rest)

    monkeypatch.setattr(os, call, unable)
    store = Store(tmp_path / "store")
    publish(store)
    assert store.intact("fit", next(iter(store.names("fit"))))
    assert (store.lines("answers/a/b.jsonl"), store.read_record("experiments/a.json")) == ([1], {"b": 1})


def test_a_disk_that_fails_to_sync_is_told_with_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreError, match=rf"{tmp_path}/store/fit/\w+: input/output error; check the disk"):
        publish(Store(tmp_path / "store"))


@pytest.mark.parametrize(
    ("value", "told"),
    [("=1+1", "'=1+1"), ("@sum", "'@sum"), ("+a", "'+a"), ("-leaf", "'-leaf"), ("\tx", "'\tx")]
    + [(one, str(one)) for one in ("a=b", "-1.5", "+3", "-inf", -1.5, 0)],
)
def test_a_spreadsheet_takes_no_text_of_a_table_for_a_formula(value: Any, told: str) -> None:
    assert csv_text(("a", "b"), [(value, None)]) == f"a,b\n{told},\n"


def test_large_images_are_decoded_one_after_another() -> None:
    running, most = [], [0]

    def decode(name: str) -> str:
        running.append(name)
        most[0] = max(most[0], len(running))
        time.sleep(0.01)
        running.remove(name)
        return name

    for pixels, expected in ((cache.MOST_PIXELS, {1}), (0, {2, 3, 4})):
        most[0] = 0
        with ThreadPoolExecutor(4) as pool:
            found = list(cache._in_order(pool, decode, "abcdefgh", ahead=4, pixels=lambda name, p=pixels: p))  # type: ignore[misc]
        assert found == list("abcdefgh")
        assert most[0] in expected


def test_a_class_name_that_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text('classes: ["leaf", "so\\e[31mil"]\nsplits: {train: {images: a}}\n')
    with pytest.raises(DataError, match=r"'so\\x1b\[31mil' has characters that cannot be seen"):
        read_folder_description(tmp_path / "dataset.yaml")
