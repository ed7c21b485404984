"""Files for people are replaced whole; file systems that cannot sync, or have no room, lose nothing."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.data import cache
from pixelpick_ray.report.rows import csv_text
from pixelpick_ray.store import Store
from pixelpick_ray.store.backend import UNSYNCED
from pixelpick_ray.store.outputs import replace_files
from tests.support.results import KEY, publish


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
    store.append_lines("answers/a/b.jsonl", [1])
    store.write_record("experiments/a.json", {"b": 1})
    assert store.intact("fit", KEY)
    assert (store.lines("answers/a/b.jsonl"), store.read_record("experiments/a.json")) == ([1], {"b": 1})


@pytest.mark.parametrize(
    ("value", "told"),
    [(text, f"'{text}") for text in ("=1+1", "@sum", "+a", "-leaf", "\tx")]
    + [(one, str(one)) for one in ("a=b", "-1.5", "+3", "-inf", -1.5)],
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
