"""Prepared splits: decoded and resized once a node into a memory map that every process on the node shares."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BufferedWriter
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from PIL import Image

from pixelpick_ray.config.canonical import canonical_json, digest
from pixelpick_ray.config.execution import local_cpus
from pixelpick_ray.config.trial import SizeSpec
from pixelpick_ray.data.dataset import Dataset, ReportBytes, UInt8Array
from pixelpick_ray.data.streams import stream
from pixelpick_ray.errors import DataError, data_errors

CACHE_VERSION = 2
SMALLEST_SIDE = 8  # pixels: the networks halve three times
COMMIT_IMAGES = 16  # as many are decoded again at most after a kill
INDEX = "index.jsonl"
T = TypeVar("T")


@dataclass(frozen=True)
class PreparedSplit:
    """One split at its prepared sizes; images of different sizes may stand side by side.

    ``shapes`` is (N, 2) height and width; ``offsets`` (N + 1,) are first pixels in the flat arrays ``images``
    (pixels, 3) RGB and
    ``labels`` (pixels,), both uint8 and read-only; ``candidates`` (N,) counts the pixels that are not void;
    ``fingerprint`` is the
    content of the source at native size, whatever its files' compression.
    """

    split: str
    names: tuple[str, ...]
    shapes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    candidates: npt.NDArray[np.int64]
    fingerprint: str
    images: UInt8Array
    labels: UInt8Array

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position by name."""
        return {name: position for position, name in enumerate(self.names)}

    def shape(self, position: int) -> tuple[int, int]:
        """(height, width) of an image."""
        return int(self.shapes[position, 0]), int(self.shapes[position, 1])

    def image(self, position: int) -> UInt8Array:
        """A (H, W, 3) view."""
        return self.images[self.offsets[position] : self.offsets[position + 1]].reshape(*self.shape(position), 3)

    def label(self, position: int) -> UInt8Array:
        """A (H, W) view."""
        return self.labels[self.offsets[position] : self.offsets[position + 1]].reshape(self.shape(position))


def training_names(names: tuple[str, ...], num_images: int | None, seed: int) -> tuple[str, ...]:
    """The training images of a trial, sorted: all, or the first `num_images` of a permutation by the seed.

    So the images of a smaller number are among those of a larger one. DataError when there are not so many.
    """
    if num_images is None:
        return names
    if num_images > len(names):
        raise DataError(
            f"dataset.images: {num_images} asked for, the training split has {len(names)}; lower it, or leave it out"
        )
    chosen = stream(seed, "images").permutation(len(names))[:num_images]
    return tuple(sorted(names[position] for position in chosen))


def default_cache_path(data_path: Path) -> Path:
    """``DATA/.cache``, or the user's cache folder when the data folder is missing or read-only."""
    if data_path.is_dir() and os.access(data_path, os.W_OK):
        return data_path / ".cache"
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "pixelpick-ray"


def prepare(
    dataset: Dataset, split: str, size: SizeSpec, cache_path: Path, report: ReportBytes | None = None
) -> PreparedSplit:
    """Open a prepared split, decoding, checking and resizing its files first if no process has done so.

    A preparation that was stopped goes on where it was. `report` gets images done and images in all while it decodes.
    DataError names the file that is wrong.
    """
    geometry = size.model_dump(include={"size", "scale", "long_side"}, exclude_none=True)
    source = {"version": CACHE_VERSION, "size": geometry, "source": [*dataset.signature(split), *dataset.code]}
    folder = cache_path / f"{dataset.facts.name}-{split}-{digest(source)[:20]}"
    if not folder.is_dir():
        try:
            cache_path.mkdir(parents=True, exist_ok=True)
            with FileLock(cache_path / f"{folder.name}.lock"):
                if not folder.is_dir():
                    _decode(dataset, split, size, folder, report or (lambda done, total: None))
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error}); give another folder with --cache DIR") from error
    return _open(folder, dataset, split)


@dataclass(frozen=True)
class _Entry:
    """A prepared image in the index: size, pixels that are not void, SHA-256 of its source."""

    name: str
    height: int
    width: int
    candidates: int
    digest: str

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode("ascii") + b"\n"


def _entries(path: Path) -> Iterator[_Entry]:
    """The entries of an index up to the first line that is not whole."""
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        try:
            entry = _Entry(**json.loads(line))
        except (ValueError, TypeError):
            return
        if entry.line() != line:
            return
        yield entry


def _open(folder: Path, dataset: Dataset, split: str) -> PreparedSplit:
    entries = list(_entries(folder / INDEX))
    content = hashlib.sha256(canonical_json([*dataset.identity(split), *dataset.code]).encode("ascii"))
    for entry in entries:
        content.update(bytes.fromhex(entry.digest))
    offsets = np.cumsum([0, *(entry.pixels for entry in entries)], dtype=np.int64)
    if not entries or _sizes(folder) != (3 * offsets[-1], offsets[-1]):
        raise DataError(f"{folder}: this prepared split is damaged; remove the folder, it is made anew")
    images = np.memmap(folder / "images.bin", dtype=np.uint8, mode="r", shape=(int(offsets[-1]), 3))
    labels = np.memmap(folder / "labels.bin", dtype=np.uint8, mode="r", shape=(int(offsets[-1]),))
    return PreparedSplit(
        split,
        tuple(entry.name for entry in entries),
        np.asarray([(entry.height, entry.width) for entry in entries], dtype=np.int64),
        offsets,
        np.asarray([entry.candidates for entry in entries], dtype=np.int64),
        content.hexdigest(),
        images,
        labels,
    )


def _decode(dataset: Dataset, split: str, size: SizeSpec, folder: Path, report: ReportBytes) -> None:
    """Fill the folder under another name and rename it: it is whole, or it is not there."""
    names = dataset.names(split)
    partial = folder.with_name(folder.name + ".partial")
    workers = min(8, local_cpus())

    def read(name: str) -> tuple[UInt8Array, UInt8Array, _Entry] | DataError:
        try:
            image, label = dataset.read(split, name)
        except DataError as error:
            return error
        return _prepared(dataset, split, name, size, image, label)

    with data_errors() as wrong, _Appended(partial, names) as files, ThreadPoolExecutor(workers) as pool:
        if files.done:
            report(files.done, len(names))
        for found in _in_order(pool, read, names[files.done :], ahead=2 * workers):
            with wrong.kept():
                if isinstance(found, DataError):
                    raise found
                if not wrong:  # else the others are only looked at: all that are wrong are told at once
                    files.add(*found)
                    report(files.done, len(names))
    partial.rename(folder)


def _prepared(
    dataset: Dataset, split: str, name: str, size: SizeSpec, image: UInt8Array, label: UInt8Array
) -> tuple[UInt8Array, UInt8Array, _Entry]:
    native = hashlib.sha256(canonical_json([name, *label.shape]).encode("ascii"))
    native.update(image.tobytes())
    native.update(label.tobytes())
    height, width = size.prepared_size(*label.shape)
    if min(height, width) < SMALLEST_SIDE:
        raise DataError(
            f"{dataset.facts.name} {split}: image {name} is {height}x{width} (height x width) when prepared, the "
            f"networks need {SMALLEST_SIDE} pixels a side; raise dataset.size, scale or long_side (or those of the "
            "evaluated split), or remove the image"
        )
    image, label = _resize(image, label, height, width)
    candidates = int((label != dataset.facts.void_index).sum())
    return image, label, _Entry(name, height, width, candidates, native.hexdigest())


def _resize(image: UInt8Array, label: UInt8Array, height: int, width: int) -> tuple[UInt8Array, UInt8Array]:
    """Image bilinear with antialiasing, label nearest at pixel centres."""
    if (height, width) == label.shape:
        return image, label
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    nearest = Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(small), np.asarray(nearest)


def _in_order(pool: ThreadPoolExecutor, function: Callable[[str], T], names: Sequence[str], ahead: int) -> Iterator[T]:
    """As ``pool.map``, never more than `ahead` results before the one in use: a split may be larger than the memory."""
    waiting: deque[Future[T]] = deque()
    for name in names:
        waiting.append(pool.submit(function, name))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Appended:
    """The files of a split in the making, which new images are appended to; `done` images are in them.

    An image counts once its line is in the index, which is written only after its pixels have reached the disk. What
    a stopped process left beyond that is cut off.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        folder.mkdir(exist_ok=True)
        whole = _whole(folder, names)
        pixels = sum(entry.pixels for entry in whole)
        self._images = _cut(folder / "images.bin", 3 * pixels)
        self._labels = _cut(folder / "labels.bin", pixels)
        self._index = _cut(folder / INDEX, sum(len(entry.line()) for entry in whole))
        self._waiting: list[bytes] = []
        self.done = len(whole)

    def add(self, image: UInt8Array, label: UInt8Array, entry: _Entry) -> None:
        self._images.write(image.tobytes())
        self._labels.write(label.tobytes())
        self._waiting.append(entry.line())
        self.done += 1
        if len(self._waiting) >= COMMIT_IMAGES:
            self._commit()

    def _commit(self) -> None:
        _to_disk(self._images)
        _to_disk(self._labels)
        self._index.writelines(self._waiting)
        self._waiting.clear()
        _to_disk(self._index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._images, self._labels, self._index:
            self._commit()


def _whole(folder: Path, names: Sequence[str]) -> list[_Entry]:
    """The entries of the first images that a folder has in full."""
    images, labels = _sizes(folder)
    room, found = min(images // 3, labels), list[_Entry]()
    for entry, name in zip(_entries(folder / INDEX), names, strict=False):
        room -= entry.pixels
        if entry.name != name or room < 0:
            break
        found.append(entry)
    return found


def _sizes(folder: Path) -> tuple[int, int]:
    """Bytes in images.bin and in labels.bin."""
    images, labels = (
        path.stat().st_size if path.is_file() else 0 for path in (folder / "images.bin", folder / "labels.bin")
    )
    return images, labels


def _cut(path: Path, size: int) -> BufferedWriter:
    """The file, cut to a size in bytes, for appending."""
    path.touch()
    os.truncate(path, size)
    return open(path, "ab")


def _to_disk(file: BufferedWriter) -> None:
    file.flush()
    os.fsync(file.fileno())
