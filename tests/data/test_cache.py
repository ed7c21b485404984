"""Prepared splits: right pixels, decoded once, noticed when the source changes, safe to share."""

import hashlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
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


SIZES = {
    (16, 20): SizeSpec(),
    (9, 13): SizeSpec(size=(9, 13)),
    (32, 60): SizeSpec(size=(32, 60)),
    (8, 10): SizeSpec(scale=0.5),
    (27, 34): SizeSpec(scale=1.7),
    (9, 12): SizeSpec(long_side=12),
    (32, 40): DatasetSpec(name="camvid", images=2, long_side=40),
}


def test_prepared_pixels_are_those_of_pillow(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    """Whatever else lies in the cache, at any size; they cannot be written to."""
    data = write_camvid(num_images=4, size=(16, 20), splits=("train", "val"))
    for (shape, size), split in itertools.product(SIZES.items(), ("train", "val")):
        prepared = prepare(camvid(data), split, size, tmp_path / "cache")
        assert prepared.names == tuple(f"{split}_{index:03d}.png" for index in range(4))
        assert len(prepared) == 4
        for position, name in enumerate(prepared.names):
            image, label = source(data, name, split)
            nearest = np.asarray(label.resize(shape[::-1], Image.Resampling.NEAREST))
            assert prepared.index[name] == position
            assert prepared.shape(position) == shape
            assert (prepared.image(position) == image.resize(shape[::-1], Image.Resampling.BILINEAR)).all()
            assert (prepared.label(position) == nearest).all()
            assert prepared.candidates[position] == (nearest != 11).sum()
    with pytest.raises(ValueError, match="read-only"):
        prepared.image(0)[0, 0] = 0


def test_images_of_different_sizes_stand_side_by_side(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid(num_images=3)
    for folder, mode in (("train", "RGB"), ("trainannot", "L")):
        Image.new(mode, (4, 6), 5 if mode == "L" else (1, 2, 3)).save(data / "camvid" / folder / "train_001.png")
    prepared = prepare(camvid(data), "train", SizeSpec(long_side=20), tmp_path / "cache")
    assert prepared.shapes.tolist() == [[16, 20], [20, 13], [16, 20]]
    assert (prepared.image(1) == (1, 2, 3)).all()
    assert (prepared.label(1) == 5).all()
    image, label = source(data, "train_002.png")
    assert (prepared.image(2) == np.asarray(image.resize((20, 16), Image.Resampling.BILINEAR))).all()
    assert (prepared.label(2) == np.asarray(label.resize((20, 16), Image.Resampling.NEAREST))).all()


def test_files_are_decoded_once(write_camvid: WriteCamVid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, progress = write_camvid(num_images=40), []
    before = prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache", lambda *state: progress.append(state))
    assert progress == [(done, 40) for done in range(1, 41)]
    monkeypatch.setattr(CamVid, "read", lambda *_: pytest.fail("decoded again"))
    again = prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache", lambda *_: pytest.fail("decoded again"))
    assert again.fingerprint == before.fingerprint
    assert (again.images == before.images).all()
    assert (again.labels == before.labels).all()


def test_reading_never_runs_far_ahead_of_writing(
    write_camvid: WriteCamVid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a large split would have to fit into memory while it is decoded."""
    data, lock, read = write_camvid(num_images=120), threading.Lock(), CamVid.read
    read_images, done_images, ahead = list[str](), list[int](), list[int]()

    def counted(self: CamVid, split: str, name: str) -> Any:
        with lock:
            read_images.append(name)
            ahead.append(len(read_images) - len(done_images))
        return read(self, split, name)

    def slow(done: int, total: int) -> None:
        done_images.append(done)
        time.sleep(0.002)

    monkeypatch.setattr(CamVid, "read", counted)
    prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache", slow)
    assert len(done_images) == 120
    assert max(ahead) <= 17  # twice the threads, 8 at most


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


def test_fingerprint_is_the_content_at_native_size_only(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid()

    def fingerprint(size: SizeSpec) -> str:
        return prepare(camvid(data), "train", size, tmp_path / "cache").fingerprint

    before = fingerprint(SizeSpec())
    assert fingerprint(SizeSpec(scale=1.5)) == fingerprint(SizeSpec(size=(20, 20))) == before
    for path in (data / "camvid").rglob("*.png"):
        content = path.read_bytes()
        loaded(path).save(path, compress_level=0)
        assert path.read_bytes() != content
    assert fingerprint(SizeSpec()) == before


def test_the_fingerprint_is_a_digest_of_split_names_sizes_and_pixels(write_camvid: WriteCamVid, tmp_path: Path) -> None:
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
        found = prepare(camvid(data), split, SizeSpec(), tmp_path / "cache").fingerprint
        assert found == content.hexdigest()


def test_an_image_too_small_for_the_networks_is_told(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data, cases = write_camvid(), {"7x30": {"size": (7, 30)}, "6x8": {"scale": 0.8}, "7x9": {"long_side": 9}}
    for shape, size in cases.items():
        told = (
            rf"camvid train: image train_000\.png is {shape} .*need 8 pixels per side; raise dataset\.size, scale or l"
        )
        with pytest.raises(DataError, match=told):
            prepare(camvid(data), "train", SizeSpec(**size), tmp_path / "cache")
    Image.new("RGB", (30, 7)).save(data / "camvid" / "train" / "train_001.png")
    Image.new("L", (30, 7)).save(data / "camvid" / "trainannot" / "train_001.png")
    with pytest.raises(DataError, match=r"image train_001\.png is 7x30 \(height x width\) when prepared"):
        prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache")


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


# Going on after a stop


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
    undisturbed = prepare(camvid(data), "train", size, tmp_path / "undisturbed")
    wanted = contents(tmp_path / "undisturbed")
    for at, name in enumerate(undisturbed.names):
        place, progress = tmp_path / f"stopped-{at}", []
        with pytest.raises(Stopped):
            prepare(Watched(data, before=name), "train", size, place)
        again = Watched(data)
        prepared = prepare(again, "train", size, place, lambda *state, seen=progress: seen.append(state))
        assert tuple(sorted(again.was_read)) == undisturbed.names[at:]
        assert progress == [(done, 20) for done in range(max(at, 1), 21)]
        assert contents(place) == wanted
        assert prepared.fingerprint == undisturbed.fingerprint
    for name in undisturbed.names:  # again and again
        with pytest.raises(Stopped):
            prepare(Watched(data, before=name), "train", size, tmp_path / "stopped")
    prepare(camvid(data), "train", size, tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == wanted


def test_whatever_a_lost_node_left_behind_it_ends_the_same(
    write_camvid: WriteCamVid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index cut anywhere, and behind its whole lines pixels that never arrived, or arrived in part."""
    data, rng = write_sizes(write_camvid, 5), np.random.default_rng(0)
    shapes = prepare(camvid(data), "train", SizeSpec(), tmp_path / "undisturbed").shapes
    wanted = contents(tmp_path / "undisturbed")
    (name,) = {Path(path).parent.name for path in wanted}
    monkeypatch.setattr(os, "fsync", lambda number: None)  # many runs
    for cut in range(0, len(wanted[f"{name}/index.jsonl"]) + 1, 41):
        place = tmp_path / f"cut-{cut}"
        (partial := place / f"{name}.partial").mkdir(parents=True)
        index = wanted[f"{name}/index.jsonl"][:cut] + bytes(cut % 3)
        (partial / "index.jsonl").write_bytes(index)
        pixels = int(shapes[: index.count(b"\n")].prod(axis=1).sum())
        for file, width in (("images.bin", 3), ("labels.bin", 1)):
            (partial / file).write_bytes(wanted[f"{name}/{file}"][: width * pixels] + rng.bytes(int(rng.integers(99))))
        again = Watched(data)
        prepare(again, "train", SizeSpec(), place)
        assert contents(place) == wanted
        assert len(again.was_read) == 5 - index.count(b"\n")


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


@pytest.mark.parametrize("file", ["images.bin", "labels.bin", "index.jsonl"])
def test_pixels_that_are_lost_are_decoded_again(write_camvid: WriteCamVid, tmp_path: Path, file: str) -> None:
    data, place = write_camvid(), tmp_path / "cache"
    prepare(camvid(data), "train", SizeSpec(), place)
    wanted = contents(place)
    (folder,) = (path for path in place.iterdir() if path.is_dir())
    for size, decoded in ((len(wanted[f"{folder.name}/{file}"]) - 1, 1), (0, 3), (None, 3)):
        partial = folder.rename(folder.with_name(folder.name + ".partial"))
        if size is None:
            (partial / file).unlink()
        else:
            os.truncate(partial / file, size)
        again = Watched(data)
        prepare(again, "train", SizeSpec(), place)
        assert contents(place) == wanted
        assert len(again.was_read) == decoded


# Verified when it is read


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
    """Each is named, and what is read afterwards is what was written."""
    monkeypatch.setattr(os, "fsync", lambda number: None)
    data = write_camvid(num_images=3, splits=("train", "val"))
    train, val = (prepare(camvid(data), split, SizeSpec(), tmp_path / "cache") for split in ("train", "val"))
    assert train.files is not None
    assert val.files is not None
    folder, wanted = train.files.folder, train.fingerprint
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    others = {path.name: path.read_bytes() for path in val.files.folder.iterdir()}
    rng, unchanged, told = np.random.default_rng(0), 0, list[str]()
    for turn in range(number):
        name = sorted(whole)[turn % 3]
        left = damage(whole[name], others[name], rng)
        (folder / name).unlink()
        if left is not None:
            (folder / name).write_bytes(left)
        cache._opened.clear()  # as in another process
        prepared = prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache")
        prepared.verify()
        told.append(capsys.readouterr().err)
        unchanged += left == whole[name]
        assert ("DAMAGED" in told[-1]) == (left != whole[name]), (turn, name)
        assert prepared.fingerprint == wanted
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert unchanged < number / 20
    assert f"DAMAGED {folder}: this prepared split is damaged; it is decoded again" in "".join(told)


def test_a_process_verifies_an_image_once_and_the_label_map_apart(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid()
    first = prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache")
    assert first.files is not None
    first.image(1)
    again = prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache")
    assert again is first
    assert {kind: list(done) for kind, done in first.files.verified.items()} == {
        "images": [0, 1, 0],
        "labels": [0, 0, 0],
    }


def test_damage_that_cannot_be_mended_is_told(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid()
    prepared = prepare(camvid(data), "train", SizeSpec(), tmp_path / "cache")
    assert prepared.files is not None
    path = prepared.files.folder / "labels.bin"
    path.write_bytes(bytes(path.stat().st_size))
    Image.new("RGB", (10, 8)).save(data / "camvid" / "train" / "train_001.png")
    with pytest.raises(DataError, match=r"image train_001\.png is damaged and cannot be made again as it was"):
        prepared.label(1)


def test_files_that_changed_under_the_same_size_and_time_are_noticed_by_a_run(
    write_camvid: WriteCamVid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By content, once a run."""
    data, where = write_camvid(), tmp_path / "cache"
    before = prepare(camvid(data), "train", SizeSpec(), where, run="one").fingerprint
    path = data / "camvid" / "train" / "train_002.png"
    stat, size = path.stat(), path.stat().st_size
    for level in range(256):
        Image.new("RGB", (10, 8), (level, 0, 0)).save(path)
        if path.stat().st_size <= size:
            break
    with open(path, "ab") as file:
        file.write(bytes(size - path.stat().st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert prepare(camvid(data), "train", SizeSpec(), where, run="one").fingerprint == before
    after = prepare(camvid(data), "train", SizeSpec(), where, run="two")
    assert "the files of train_002.png changed under the same size and time" in capsys.readouterr().err
    assert after.fingerprint != before
    assert (after.image(2) == (level, 0, 0)).all()
    assert prepare(camvid(data), "train", SizeSpec(), where, run="three").fingerprint == after.fingerprint
    assert capsys.readouterr().err == ""


# Several processes


class Slow(CamVid):
    """Notes in a file what is read, and takes its time."""

    def read(self, split: str, name: str) -> Any:
        with open(self.data_path / "reads", "a", encoding="utf-8") as file:
            file.write(name + "\n")
        time.sleep(0.01)
        return super().read(split, name)


def _prepare_slowly(data: Path, cache: Path, killed_after: int, results: "multiprocessing.Queue[Any]") -> None:
    def report(done: int, total: int) -> None:
        if done == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)

    prepared = prepare(Slow(DatasetSpec(name="camvid"), data), "train", SizeSpec(size=(16, 20)), cache, report)
    results.put((prepared.fingerprint, np.array(prepared.images).tobytes()))


def test_processes_that_start_together_share_one_preparation(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data, context = write_camvid(num_images=20), multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (data, tmp_path / "cache", -1, results)
    processes = [context.Process(target=_prepare_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert found[0] == found[1]
    assert len((data / "reads").read_text(encoding="utf-8").splitlines()) == 20


def test_when_a_process_is_killed_the_one_that_waits_goes_on(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data, context = write_camvid(num_images=40), multiprocessing.get_context("spawn")
    size, progress = SizeSpec(size=(16, 20)), []
    undisturbed = prepare(camvid(data), "train", size, tmp_path / "undisturbed")
    results = context.Queue()
    process = context.Process(target=_prepare_slowly, args=(data, tmp_path / "cache", 37, results))
    process.start()
    while process.is_alive() and not list((tmp_path / "cache").glob("*.partial")):
        time.sleep(0.005)
    again = Watched(data)
    prepared = prepare(again, "train", size, tmp_path / "cache", lambda *state: progress.append(state))
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert contents(tmp_path / "cache") == contents(tmp_path / "undisturbed")
    assert prepared.fingerprint == undisturbed.fingerprint
    # Of the 37 images that were done two times 16 had reached the disk for certain.
    assert sorted(again.was_read) == [f"train_{index:03d}.png" for index in range(32, 40)]
    assert progress == [(done, 40) for done in range(32, 41)]


# Which images


def test_training_images_are_nested_subsets_by_seed() -> None:
    names = tuple(f"{index:03d}.png" for index in range(50))
    subsets = [set(training_names(names, count, seed=1)) for count in range(1, 51)]
    assert [len(subset) for subset in subsets] == list(range(1, 51))
    assert all(smaller < larger for smaller, larger in itertools.pairwise(subsets))
    assert training_names(names, 20, seed=1) == tuple(sorted(subsets[19]))
    assert training_names(names, 50, seed=1) == training_names(names, None, seed=1) == names
    assert set(training_names(names, 20, seed=2)) != subsets[19]
    with pytest.raises(DataError, match=r"dataset\.images: 51 asked for, the training split has 50"):
        training_names(names, 51, seed=0)


def test_the_cache_lies_beside_the_data_or_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert default_cache_path(tmp_path) == tmp_path / ".cache"
    assert default_cache_path(tmp_path / "absent") == tmp_path / "home" / "pixelpick-ray"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert default_cache_path(tmp_path) == tmp_path / "home" / "pixelpick-ray"
