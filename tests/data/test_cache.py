"""Prepared splits: right pixels, decoded once, noticed when the source changes, safe to share."""

import hashlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelpick_ray.config.trial import DatasetSpec, SizeSpec
from pixelpick_ray.data import cache
from pixelpick_ray.data.cache import default_cache_path, prepare, training_names
from pixelpick_ray.data.datasets import CamVid
from pixelpick_ray.errors import DataError
from tests.support.data_folders import camvid, loaded, opened, save

pytestmark = pytest.mark.long

WriteCamVid = Callable[..., Path]


def source(data: Path, name: str, split: str = "train") -> tuple[Image.Image, Image.Image]:
    """Image and label as Pillow reads them."""
    return loaded(data / "camvid" / split / name), loaded(data / "camvid" / f"{split}annot" / name)


SIZES = [  # with the prepared sizes of images of 16 x 20 and of 24 x 16
    (SizeSpec(), (16, 20), (24, 16)),
    (SizeSpec(size=(32, 60)), (32, 60), (32, 60)),
    (SizeSpec(scale=0.5), (8, 10), (12, 8)),
    (SizeSpec(scale=1.7), (27, 34), (40, 27)),
    (SizeSpec(long_side=12), (9, 12), (12, 8)),
    (DatasetSpec(name="camvid", images=2, long_side=40), (32, 40), (40, 26)),
]


def test_prepared_pixels_are_those_of_pillow(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    """Whatever else lies in the cache, at any size, of images of different sizes side by side; they are read-only."""
    data = write_camvid(num_images=4, size=(16, 20), splits=("train", "val"))
    for folder, mode in (("train", "RGB"), ("trainannot", "L")):
        Image.new(mode, (16, 24), 5 if mode == "L" else (1, 2, 3)).save(data / "camvid" / folder / "train_001.png")
    for (size, usual, other), split in itertools.product(SIZES, ("train", "val")):
        prepared = prepare(camvid(data), split, size, tmp_path / "cache")
        assert prepared.names == tuple(f"{split}_{index:03d}.png" for index in range(4))
        for position, name in enumerate(prepared.names):
            image, label = source(data, name, split)
            shape = other if name == "train_001.png" else usual
            nearest = np.asarray(label.resize(shape[::-1], Image.Resampling.NEAREST))
            assert prepared.index[name] == position
            assert prepared.shape(position) == shape
            assert (prepared.image(position) == image.resize(shape[::-1], Image.Resampling.BILINEAR)).all()
            assert (prepared.label(position) == nearest).all()
            assert prepared.candidates[position] == (nearest != 11).sum()
    with pytest.raises(ValueError, match="read-only"):
        prepared.image(0)[0, 0] = 0


def test_files_are_decoded_once(write_camvid: WriteCamVid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, progress = write_camvid(num_images=40), []
    before = prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache", lambda *state: progress.append(state))
    assert progress == [(done, 40) for done in range(1, 41)]
    monkeypatch.setattr(CamVid, "read", lambda *_: pytest.fail("decoded again"))
    again = prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache", lambda *_: pytest.fail("decoded again"))
    assert again.fingerprint == before.fingerprint
    assert (again.images == before.images).all()
    assert (again.labels == before.labels).all()


def test_a_changed_file_is_noticed(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid()
    before = prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache")
    path = data / "camvid" / "trainannot" / "train_002.png"
    label = np.asarray(loaded(path)).copy()
    label[0, 0] = (label[0, 0] + 1) % 11
    Image.fromarray(label).save(path)
    after = prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache")
    assert (after.label(2) == label).all()
    assert after.fingerprint != before.fingerprint
    (data / "camvid" / "train" / "train_000.png").unlink()
    assert len(prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache")) == 2


def test_the_fingerprint_is_a_digest_of_split_names_sizes_and_pixels(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    """At native size, whatever the prepared size and however the files are compressed."""
    data = write_camvid(num_images=2, splits=("train", "val"))
    for folder in ("val", "valannot"):  # the same bytes of pixels as 8 x 10, in another shape
        path = data / "camvid" / folder / "val_000.png"
        pixels = np.asarray(loaded(path))
        save(path, pixels.reshape(10, 8, *pixels.shape[2:]))
    for split, shapes in (("train", ("8,10", "8,10")), ("val", ("10,8", "8,10"))):
        content = hashlib.sha256(f'["camvid","{split}"]'.encode())
        for index, shape in enumerate(shapes):
            image, label = source(data, f"{split}_00{index}.png", split)
            described = f'["{split}_00{index}.png",{shape}]'.encode()
            content.update(hashlib.sha256(described + image.tobytes() + label.tobytes()).digest())
        for level, size in enumerate((SizeSpec(), SizeSpec(scale=1.5), SizeSpec(size=(20, 20)))):
            for path in (data / "camvid").rglob("*.png"):
                loaded(path).save(path, compress_level=level)
            assert prepare(camvid(data), split, size, tmp_path / "cache").fingerprint == content.hexdigest()


def test_the_fingerprint_of_scenes_is_that_of_this_version(tmp_path: Path) -> None:
    """Every stored result of the quick start is keyed by it."""
    prepared = prepare(opened("scenes", tmp_path), "val", SizeSpec(scale=0.25), tmp_path / "cache")
    assert prepared.fingerprint == "792b2929f26509ed994aaa2a9bcbe4deeba67a0fdc63df3f78f245c9eee799c9"


def test_a_wrong_file_leaves_no_half_prepared_split(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid()
    path = data / "camvid" / "train" / "train_002.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    for _ in range(2):
        with pytest.raises(DataError, match=r"train/train_002\.png: cannot be decoded"):
            prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache")
    path.write_bytes(whole)
    prepared = prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache")
    assert (prepared.image(2) == np.asarray(source(data, "train_002.png")[0])).all()


class Stopped(Exception):
    """What ends a preparation in these tests."""


class Watched(CamVid):
    """Notes what is read, and stops before an image when told to."""

    def __init__(self, data: Path, before: str = "") -> None:
        super().__init__(DatasetSpec(name="camvid"), data)
        self.before, self.was_read = before, list[str]()

    def read(self, split: str, name: str) -> Any:
        if name == self.before:
            raise Stopped
        self.was_read.append(name)
        return super().read(split, name)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the one prepared split in a cache, locks apart."""
    (prepared,) = (path for path in folder.iterdir() if path.is_dir())
    return {f"{prepared.name}/{path.name}": path.read_bytes() for path in prepared.iterdir()}


def write_sizes(write_camvid: WriteCamVid, num_images: int) -> Path:
    """CamVid whose images differ in size, so that what is cut at a wrong place shows."""
    data = write_camvid(num_images=num_images)
    for index in range(num_images):
        image, label = source(data, f"train_{index:03d}.png")
        size = (10 + index % 3, 8 + index % 5)
        image.resize(size).save(data / "camvid" / "train" / f"train_{index:03d}.png")
        label.resize(size, Image.Resampling.NEAREST).save(data / "camvid" / "trainannot" / f"train_{index:03d}.png")
    return data


def test_stopped_before_any_image_it_goes_on_there_and_ends_the_same(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data, size = write_sizes(write_camvid, 20), SizeSpec(long_side=13)
    names = prepare(camvid(data), "train", size, tmp_path / "undisturbed").names
    wanted = contents(tmp_path / "undisturbed")
    for at, name in enumerate(names):
        place, progress = tmp_path / f"stopped-{at}", []
        for where in (place, tmp_path / "stopped"):  # once, and again and again
            with pytest.raises(Stopped):
                prepare(Watched(data, before=name), "train", size, where)
        again = Watched(data)
        prepare(again, "train", size, place, lambda *state, seen=progress: seen.append(state))
        assert tuple(sorted(again.was_read)) == names[at:]
        assert progress == [(done, 20) for done in range(max(at, 1), 21)]
        assert contents(place) == wanted
    prepare(camvid(data), "train", size, tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == wanted


def test_whatever_a_lost_node_left_behind_it_ends_the_same(
    write_camvid: WriteCamVid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index cut anywhere, with more pixels than it names, fewer or none: what is not whole is decoded again."""
    data, rng = write_sizes(write_camvid, 5), np.random.default_rng(0)
    shapes = prepare(camvid(data), "train", SizeSpec(), tmp_path / "undisturbed").shapes
    wanted = contents(tmp_path / "undisturbed")
    (name,) = {Path(path).parent.name for path in wanted}
    monkeypatch.setattr(os, "fsync", lambda number: None)  # many runs
    losses = itertools.cycle((None, ("images.bin", 1), ("labels.bin", 1), ("images.bin", None), ("labels.bin", None)))
    for cut, lost in zip(range(0, len(wanted[f"{name}/index.jsonl"]) + 1, 41), losses, strict=False):
        place = tmp_path / f"cut-{cut}"
        (partial := place / f"{name}.partial").mkdir(parents=True)
        index = wanted[f"{name}/index.jsonl"][:cut] + bytes(cut % 3)
        (partial / "index.jsonl").write_bytes(index)
        pixels = int(shapes[: index.count(b"\n")].prod(axis=1).sum())
        for file, width in (("images.bin", 3), ("labels.bin", 1)):
            arrived = wanted[f"{name}/{file}"][: width * pixels]
            if lost is None or lost[0] != file:
                (partial / file).write_bytes(arrived + rng.bytes(int(rng.integers(99))))
            elif lost[1]:
                (partial / file).write_bytes(arrived[: -lost[1]])
        again = Watched(data)
        prepare(again, "train", SizeSpec(), place)
        assert contents(place) == wanted
        whole = index.count(b"\n")
        whole = whole if lost is None else max(whole - 1, 0) if lost[1] else 0
        assert len(again.was_read) == 5 - whole


def test_the_index_never_names_an_image_whose_pixels_are_not_on_the_disk(
    write_camvid: WriteCamVid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, fsync, on_disk, seen = write_camvid(num_images=50), os.fsync, dict[str, int](), list[int]()

    def watched(number: int) -> None:
        fsync(number)
        (partial,) = (tmp_path / "cache").glob("*.partial")
        files = {path.stat().st_ino: path.name for path in partial.iterdir()}
        on_disk[files[os.fstat(number).st_ino]] = os.fstat(number).st_size
        named = (partial / "index.jsonl").read_bytes().count(b"\n")
        assert on_disk.get("images.bin", 0) >= 3 * 8 * 10 * named
        assert on_disk.get("labels.bin", 0) >= 8 * 10 * named
        seen.append(named)

    monkeypatch.setattr(os, "fsync", watched)
    prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache")
    assert sorted(set(seen)) == [0, 16, 32, 48, 50]
    (index,) = (content for name, content in contents(tmp_path / "cache").items() if name.endswith("index.jsonl"))
    assert on_disk["index.jsonl"] == len(index)


def damage(content: bytes, other: bytes, rng: np.random.Generator) -> bytes | None:
    """What is left of a file: a bit or a run of bytes is another, a part is lost or moved, or it is another file."""
    at, stop = sorted(int(place) for place in rng.integers(0, len(content), size=2))
    before, behind, length = content[:at], content[stop + 1 :], stop - at + 1
    flipped = before + bytes([content[at] ^ (1 << int(rng.integers(8)))]) + content[at + 1 :]
    longer, moved = content + rng.bytes(1 + at), content[stop:] + content[:stop]
    other_bytes = before + rng.bytes(length) + behind
    found = [flipped, before + bytes(length) + behind, other_bytes, before, before + behind, longer, moved, other, None]
    return found[int(rng.integers(len(found)))]


@pytest.mark.parametrize("number", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_damage_is_unnoticed(
    write_camvid: WriteCamVid,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    monkeypatch.setattr(os, "fsync", lambda number: None)
    data = write_camvid(num_images=3, splits=("train", "val"))
    train, val = (prepare(camvid(data), split, SizeSpec(), tmp_path / "cache") for split in ("train", "val"))
    folders = [prepared.files.folder for prepared in (train, val) if prepared.files]
    whole, others = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    rng, unchanged, told = np.random.default_rng(0), 0, ""
    for turn in range(number):
        name = sorted(whole)[turn % 3]
        left = damage(whole[name], others[name], rng)
        (folders[0] / name).unlink()
        if left is not None:
            (folders[0] / name).write_bytes(left)
        cache._opened.clear()  # as in another process
        prepared = prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache")
        prepared.verify()
        told += (last := capsys.readouterr().err)
        unchanged += left == whole[name]
        assert ("DAMAGED" in last) == (left != whole[name]), (turn, name)
        assert prepared.fingerprint == train.fingerprint
        assert {path.name: path.read_bytes() for path in folders[0].iterdir()} == whole
    assert unchanged < number / 20
    assert f"DAMAGED {folders[0]}: this prepared split is damaged; decoding it again" in told


def test_a_process_verifies_an_image_once_and_the_label_map_apart(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid()
    first = prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache")
    first.image(1)
    assert prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache") is first
    assert first.files is not None
    verified = {kind: list(done) for kind, done in first.files.verified.items()}
    assert verified == {"images": [0, 1, 0], "labels": [0, 0, 0]}


def test_damage_that_cannot_be_mended_is_told(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid()
    prepared = prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob("labels.bin")
    path.write_bytes(bytes(path.stat().st_size))
    Image.new("RGB", (10, 8)).save(data / "camvid" / "train" / "train_001.png")
    with pytest.raises(DataError, match=r"image train_001\.png is damaged, and its source has changed"):
        prepared.label(1)


def test_files_that_changed_under_the_same_size_and_time_are_noticed_by_a_run(
    write_camvid: WriteCamVid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By content, once a run."""
    data, where = write_camvid(), tmp_path / "cache"
    path = data / "camvid" / "train" / "train_002.png"
    Image.new("RGB", (10, 8), (1, 2, 3)).save(path)
    before = prepare(camvid(data), "train", SizeSpec(), where, run="one").fingerprint
    stat = path.stat()
    Image.new("RGB", (10, 8), (1, 2, 4)).save(path)
    assert path.stat().st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert prepare(camvid(data), "train", SizeSpec(), where, run="one").fingerprint == before
    after = prepare(camvid(data), "train", SizeSpec(), where, run="two")
    assert "the files of train_002.png changed but kept their size and time" in capsys.readouterr().err
    assert after.fingerprint != before
    assert (after.image(2) == (1, 2, 4)).all()
    assert prepare(camvid(data), "train", SizeSpec(), where, run="three").fingerprint == after.fingerprint
    assert capsys.readouterr().err == ""


def _prepare_until_killed(data: Path, cache: Path, queue: "multiprocessing.Queue[bool]") -> None:
    def report(done: int, total: int) -> None:
        time.sleep(0.01)
        if done == 1:
            queue.put(True)
        if done == 37:
            os.kill(os.getpid(), signal.SIGKILL)

    prepare(camvid(data), "train", SizeSpec(size=(16, 20)), cache, report)


def test_when_a_process_is_killed_the_one_that_waits_goes_on(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data, context = write_camvid(num_images=40), multiprocessing.get_context("spawn")
    size, again = SizeSpec(size=(16, 20)), Watched(data)
    undisturbed = prepare(camvid(data), "train", size, tmp_path / "undisturbed")
    begun = context.Queue()
    process = context.Process(target=_prepare_until_killed, args=(data, tmp_path / "cache", begun))
    process.start()
    assert begun.get(timeout=60)
    prepared = prepare(again, "train", size, tmp_path / "cache")
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert contents(tmp_path / "cache") == contents(tmp_path / "undisturbed")
    assert prepared.fingerprint == undisturbed.fingerprint
    # Of the 37 images that were done two times 16 had reached the disk for certain.
    assert sorted(again.was_read) == [f"train_{index:03d}.png" for index in range(32, 40)]


def test_training_images_are_nested_subsets_by_seed() -> None:
    names = tuple(f"{index:03d}.png" for index in range(50))
    subsets = [set(training_names(names, count, seed=1)) for count in range(1, 51)]
    assert [len(subset) for subset in subsets] == list(range(1, 51))
    assert all(smaller < larger for smaller, larger in itertools.pairwise(subsets))
    assert training_names(names, 20, seed=1) == tuple(sorted(subsets[19]))
    assert training_names(names, 50, seed=1) == training_names(names, None, seed=1) == names
    assert set(training_names(names, 20, seed=2)) != subsets[19]
    with pytest.raises(DataError, match=r"dataset\.images: 51 requested, but the training split has 50"):
        training_names(names, 51, seed=0)


def test_the_cache_lies_beside_the_data_or_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert default_cache_path(tmp_path) == tmp_path / ".cache"
    assert default_cache_path(tmp_path / "absent") == tmp_path / "home" / "pixelpick-ray"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert default_cache_path(tmp_path) == tmp_path / "home" / "pixelpick-ray"


def test_images_are_decoded_little_ahead_of_writing_and_large_ones_one_after_another() -> None:
    """Or a large split would have to fit into memory while it is decoded."""
    running, begun, most = [], list[str](), [0]

    def decode(name: str) -> str:
        begun.append(name)
        running.append(name)
        most[0] = max(most[0], len(running))
        time.sleep(0.01)
        running.remove(name)
        return name

    for pixels, expected in ((cache.MOST_PIXELS, {1}), (0, {2, 3, 4})):
        begun.clear()
        most[0] = 0
        with ThreadPoolExecutor(4) as pool:
            found = cache._in_order(pool, decode, "abcdefghijklmnop", ahead=6, pixels=lambda name, p=pixels: p)  # type: ignore[misc]
            for written, name in enumerate(found):
                assert len(begun) <= written + 6 + 1
                assert name == "abcdefghijklmnop"[written]
        assert written == 15
        assert most[0] in expected
