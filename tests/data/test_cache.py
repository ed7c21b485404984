"""Prepared splits: right pixels, decoded once, noticed when the source changes, safe to share."""

import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelpick_ray.data.cache import default_cache_path, prepare, training_names
from pixelpick_ray.data.datasets import CamVid, Scenes
from pixelpick_ray.errors import DataError
from pixelpick_ray.spec.experiment import DatasetSpec, SizeSpec

WriteCamVid = Callable[..., Path]


def source(data: Path, name: str, split: str = "train") -> tuple[Image.Image, Image.Image]:
    """Image and label as Pillow reads them."""
    return Image.open(data / "camvid" / split / name), Image.open(data / "camvid" / f"{split}annot" / name)


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        (SizeSpec(), (8, 10)),
        (SizeSpec(size=(5, 7)), (5, 7)),
        (SizeSpec(size=(16, 30)), (16, 30)),
        (SizeSpec(scale=0.5), (4, 5)),
        (SizeSpec(scale=1.7), (13, 17)),
        (SizeSpec(long_side=6), (4, 6)),
        (DatasetSpec(name="camvid", images=2, long_side=20), (16, 20)),
    ],
)
def test_prepared_pixels_are_those_of_pillow(
    write_camvid: WriteCamVid, tmp_path: Path, size: SizeSpec, shape: tuple[int, int]
) -> None:
    data = write_camvid(num_images=4)
    prepared = prepare(CamVid(data), "train", size, tmp_path / "cache")
    assert prepared.names == tuple(f"train_{index:03d}.png" for index in range(4))
    assert len(prepared) == 4
    for position, name in enumerate(prepared.names):
        image, label = source(data, name)
        wanted = np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR))
        nearest = np.asarray(label.resize(shape[::-1], Image.Resampling.NEAREST))
        assert prepared.index[name] == position
        assert prepared.shape(position) == shape
        assert (prepared.image(position) == wanted).all()
        assert (prepared.label(position) == nearest).all()
        assert prepared.candidates[position] == (nearest != 11).sum()


def test_sizes_and_splits_share_a_cache(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data, found = write_camvid(num_images=2, splits=("train", "val")), {}
    for split in ("train", "val"):
        for size in (SizeSpec(), SizeSpec(scale=0.5), SizeSpec(long_side=5), SizeSpec(size=(4, 6))):
            prepared = prepare(CamVid(data), split, size, tmp_path / "cache")
            found[split, prepared.shape(0)] = prepared.names[0]
    shapes = [(8, 10), (4, 5), (4, 6)]  # half the size and a long side of 5 are the same here
    assert found == {(split, shape): f"{split}_000.png" for split in ("train", "val") for shape in shapes}


def test_images_of_different_sizes_stand_side_by_side(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid(num_images=3)
    for folder, mode in (("train", "RGB"), ("trainannot", "L")):
        Image.new(mode, (4, 6), 5 if mode == "L" else (1, 2, 3)).save(data / "camvid" / folder / "train_001.png")
    prepared = prepare(CamVid(data), "train", SizeSpec(long_side=20), tmp_path / "cache")
    assert prepared.shapes.tolist() == [[16, 20], [20, 13], [16, 20]]
    assert (prepared.image(1) == (1, 2, 3)).all()
    assert (prepared.label(1) == 5).all()
    image, label = source(data, "train_002.png")
    assert (prepared.image(2) == np.asarray(image.resize((20, 16), Image.Resampling.BILINEAR))).all()
    assert (prepared.label(2) == np.asarray(label.resize((20, 16), Image.Resampling.NEAREST))).all()


def test_prepared_pixels_cannot_be_written_to(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    prepared = prepare(CamVid(write_camvid()), "train", SizeSpec(), tmp_path / "cache")
    with pytest.raises(ValueError, match="read-only"):
        prepared.image(0)[0, 0] = 0


def test_files_are_decoded_once(write_camvid: WriteCamVid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, progress = write_camvid(num_images=40), []
    before = prepare(CamVid(data), "train", SizeSpec(), tmp_path / "cache", lambda *state: progress.append(state))
    assert progress == [(done, 40) for done in range(1, 41)]
    monkeypatch.setattr(CamVid, "read", lambda *_: pytest.fail("decoded again"))
    again = prepare(CamVid(data), "train", SizeSpec(), tmp_path / "cache", lambda *_: pytest.fail("decoded again"))
    assert again.fingerprint == before.fingerprint
    assert (again.images == before.images).all()
    assert (again.labels == before.labels).all()


def test_reading_never_runs_far_ahead_of_writing(
    write_camvid: WriteCamVid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a large split would have to fit into memory while it is decoded."""
    data, lock, read = write_camvid(num_images=120), threading.Lock(), CamVid.read
    read_images: list[str] = []
    done_images: list[int] = []
    ahead: list[int] = []

    def counted(self: CamVid, split: str, name: str) -> Any:
        with lock:
            read_images.append(name)
            ahead.append(len(read_images) - len(done_images))
        return read(self, split, name)

    def slow(done: int, total: int) -> None:
        done_images.append(done)
        time.sleep(0.002)

    monkeypatch.setattr(CamVid, "read", counted)
    prepare(CamVid(data), "train", SizeSpec(), tmp_path / "cache", slow)
    assert len(done_images) == 120
    assert max(ahead) <= 40


def test_a_changed_file_is_noticed(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid()
    before = prepare(CamVid(data), "train", SizeSpec(), tmp_path / "cache")
    path = data / "camvid" / "trainannot" / "train_002.png"
    label = np.asarray(Image.open(path)).copy()
    label[0, 0] = (label[0, 0] + 1) % 11
    Image.fromarray(label).save(path)
    after = prepare(CamVid(data), "train", SizeSpec(), tmp_path / "cache")
    assert (after.label(2) == label).all()
    assert after.fingerprint != before.fingerprint
    (data / "camvid" / "train" / "train_000.png").unlink()
    assert len(prepare(CamVid(data), "train", SizeSpec(), tmp_path / "cache")) == 2


def test_fingerprint_is_the_content_at_native_size_only(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid()

    def fingerprint(size: SizeSpec | None = None) -> str:
        return prepare(CamVid(data), "train", size or SizeSpec(), tmp_path / "cache").fingerprint

    before = fingerprint()
    assert fingerprint(SizeSpec(scale=0.5)) == fingerprint(SizeSpec(size=(20, 20))) == before
    bytes_before = {path: path.read_bytes() for path in sorted((data / "camvid").rglob("*.png"))}
    for path in bytes_before:
        with Image.open(path) as image:
            image.load()
        image.save(path, compress_level=0)
    assert all(path.read_bytes() != content for path, content in bytes_before.items())
    assert fingerprint() == before
    image_path = data / "camvid" / "train" / "train_001.png"
    pixels = np.asarray(Image.open(image_path)).copy()
    pixels[7, 9, 2] ^= 1
    Image.fromarray(pixels).save(image_path)
    assert fingerprint() != before


def test_fingerprint_tells_names_splits_and_shapes_apart(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid(num_images=2, splits=("train", "val"))
    for folder in ("train", "trainannot"):
        for path in sorted((data / "camvid" / folder).iterdir()):
            target = path.parent.with_name(folder.replace("train", "val")) / path.name.replace("train", "val")
            target.write_bytes(path.read_bytes())

    def fingerprint(split: str) -> str:
        return prepare(CamVid(data), split, SizeSpec(), tmp_path / "cache").fingerprint

    prints = [fingerprint("train"), fingerprint("val")]
    for folder in ("val", "valannot"):
        (data / "camvid" / folder / "val_001.png").rename(data / "camvid" / folder / "val_009.png")
    prints.append(fingerprint("val"))
    for folder, mode in (("val", "RGB"), ("valannot", "L")):  # the same bytes of pixels as 8 x 10, in another shape
        pixels = np.asarray(Image.open(data / "camvid" / folder / "val_000.png"))
        Image.fromarray(pixels.reshape(10, 8, *pixels.shape[2:]), mode=None).save(
            data / "camvid" / folder / "val_000.png"
        )
        assert Image.open(data / "camvid" / folder / "val_000.png").mode == mode
    prints.append(fingerprint("val"))
    assert len(set(prints)) == 4


def test_the_fingerprint_of_scenes_is_that_of_this_version(tmp_path: Path) -> None:
    """Every stored result of the quick start is keyed by it."""
    prepared = prepare(Scenes(tmp_path), "val", SizeSpec(scale=0.25), tmp_path / "cache")
    assert prepared.fingerprint == "792b2929f26509ed994aaa2a9bcbe4deeba67a0fdc63df3f78f245c9eee799c9"


def test_a_wrong_file_leaves_no_half_prepared_split(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid()
    path = data / "camvid" / "train" / "train_002.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    for _ in range(2):
        with pytest.raises(DataError, match=r"train/train_002\.png: cannot be decoded"):
            prepare(CamVid(data), "train", SizeSpec(), tmp_path / "cache")
    path.write_bytes(whole)
    prepared = prepare(CamVid(data), "train", SizeSpec(), tmp_path / "cache")
    assert (prepared.image(2) == np.asarray(source(data, "train_002.png")[0])).all()


def test_a_preparation_that_was_killed_is_begun_anew(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid()
    finished = prepare(CamVid(data), "train", SizeSpec(), tmp_path / "cache")
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    wanted = np.array(finished.images)
    del finished
    (folder / "images.bin").write_bytes(b"")
    folder.rename(folder.with_name(folder.name + ".partial"))
    assert (prepare(CamVid(data), "train", SizeSpec(), tmp_path / "cache").images == wanted).all()


def _prepare_and_digest(data: Path, cache: Path, results: "multiprocessing.Queue[Any]", reads: Path) -> None:
    class Counted(CamVid):
        def read(self, split: str, name: str) -> Any:
            with open(reads, "a", encoding="utf-8") as file:
                file.write(name + "\n")
            time.sleep(0.02)
            return super().read(split, name)

    prepared = prepare(Counted(data), "train", SizeSpec(size=(16, 20)), cache)
    results.put((prepared.fingerprint, np.array(prepared.images).tobytes()))


def test_processes_that_start_together_share_one_preparation(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data, context = write_camvid(num_images=20), multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (data, tmp_path / "cache", results, tmp_path / "reads")
    processes = [context.Process(target=_prepare_and_digest, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert found[0] == found[1]
    assert len((tmp_path / "reads").read_text(encoding="utf-8").splitlines()) == 20


def test_training_images_are_nested_subsets_by_seed() -> None:
    names = tuple(f"{index:03d}.png" for index in range(50))
    subsets = [set(training_names(names, count, seed=1)) for count in range(1, 51)]
    assert [len(subset) for subset in subsets] == list(range(1, 51))
    assert all(smaller < larger for smaller, larger in itertools.pairwise(subsets))
    assert training_names(names, 20, seed=1) == tuple(sorted(subsets[19]))
    assert training_names(names, 50, seed=1) == training_names(names, None, seed=1) == names
    assert set(training_names(names, 20, seed=2)) != subsets[19]


def test_more_training_images_than_there_are_are_refused() -> None:
    with pytest.raises(DataError, match=r"dataset\.images: 3 asked for, the training split has 2"):
        training_names(("a", "b"), 3, seed=0)


def test_the_cache_lies_beside_the_data_or_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert default_cache_path(tmp_path) == tmp_path / ".cache"
    assert default_cache_path(tmp_path / "absent") == tmp_path / "home" / "pixelpick-ray"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert default_cache_path(tmp_path) == tmp_path / "home" / "pixelpick-ray"
