"""Prepared splits: decoded and resized once per node into memory-mapped files that all its processes share.

The index holds digests of every image and label map, verified when a process first reads them, and of every source
file, verified once per run. Damaged data are reported on stderr and recreated.
"""

import hashlib
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from functools import partial as partial_
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
from pixelpick_ray.data.dataset import Dataset, ReportBytes, UInt8Array, readable
from pixelpick_ray.data.streams import stream
from pixelpick_ray.errors import DataError, data_errors
from pixelpick_ray.store.backend import sync

PIXELS_VERSION = 2  # of the preparation of images; in the keys of frozen features
INDEX_VERSION = 3
SMALLEST_SIDE = 8  # pixels: the networks halve three times
MOST_PIXELS = 200_000_000  # in images being decoded at the same time
COMMIT_IMAGES = 16  # at most as many are decoded again after a kill
INDEX, PARTIAL = "index.jsonl", ".partial"
FILES = (INDEX, "images.bin", "labels.bin")
COMPARED, RUNS = "compared.txt", 20  # the last runs that verified the source files
T = TypeVar("T")


@dataclass(frozen=True)
class PreparedSplit:
    """A split at its prepared sizes, which may differ between images.

    ``shapes`` (N, 2) are heights and widths; ``offsets`` (N + 1,) are first pixels in the flat arrays ``images``
    (pixels, 3) RGB and ``labels`` (pixels,), both uint8 and read-only; ``candidates`` (N,) counts pixels that are not
    void; ``fingerprint`` identifies the decoded source at native size, independently of file compression.
    """

    split: str
    names: tuple[str, ...]
    shapes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    candidates: npt.NDArray[np.int64]
    fingerprint: str
    images: UInt8Array
    labels: UInt8Array
    files: "_CacheFolder | None" = None  # the cache folder, if any

    def __len__(self) -> int:
        return len(self.names)

    def verify(self) -> None:
        """Verify all digests before the flat arrays are read. Raises DataError as `image` does."""
        for position in range(len(self)):
            self.image(position), self.label(position)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position by name."""
        return {name: position for position, name in enumerate(self.names)}

    def shape(self, position: int) -> tuple[int, int]:
        """(height, width) of an image."""
        return int(self.shapes[position, 0]), int(self.shapes[position, 1])

    def image(self, position: int) -> UInt8Array:
        """A view (H, W, 3) of an image. Raises DataError if it is damaged and cannot be recreated."""
        if self.files is not None:
            self.files.verify(position, "images")
        return self.images[self.offsets[position] : self.offsets[position + 1]].reshape(*self.shape(position), 3)

    def label(self, position: int) -> UInt8Array:
        """A view (H, W) of a label map. Raises DataError as `image` does."""
        if self.files is not None:
            self.files.verify(position, "labels")
        return self.labels[self.offsets[position] : self.offsets[position + 1]].reshape(self.shape(position))


def training_names(names: tuple[str, ...], num_images: int | None, seed: int) -> tuple[str, ...]:
    """The training images of a trial, sorted: all, or the first `num_images` of a permutation by the seed.

    Smaller numbers thus give subsets of larger ones. Raises DataError if there are fewer images.
    """
    if num_images is None:
        return names
    if num_images > len(names):
        raise DataError(
            f"dataset.images: {num_images} requested, but the training split has {len(names)}; lower it, or leave it "
            "out"
        )
    chosen = stream(seed, "images").permutation(len(names))[:num_images]
    return tuple(sorted(names[position] for position in chosen))


def default_cache_path(data_path: Path) -> Path:
    """``DATA/.cache``, or the user's cache folder if the data folder is missing or read-only."""
    if data_path.is_dir() and os.access(data_path, os.W_OK):
        return data_path / ".cache"
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "pixelpick-ray"


def prepare(
    dataset: Dataset,
    split: str,
    size: SizeSpec,
    cache_path: Path,
    report: ReportBytes | None = None,
    *,
    run: str | None = None,
) -> PreparedSplit:
    """Open a prepared split, first decoding, checking and resizing its files if no process has done so.

    An interrupted preparation is resumed. `report` receives images done and total images while decoding. With `run`,
    the contents of all source files are verified once per run and node, which detects changes under the same name, size
    and time. DataError names the faulty file.
    """
    geometry = size.model_dump(include={"size", "scale", "long_side"}, exclude_none=True)
    source = {"version": INDEX_VERSION, "size": geometry, "source": [*dataset.signature(split), *dataset.code]}
    files = _CacheFolder(cache_path / f"{dataset.facts.name}-{split}-{digest(source)[:20]}", dataset, split, size)
    listen = report or (lambda done, total: None)
    try:
        found = files.open() if files.folder.is_dir() else None
        if found is None or (run is not None and not files.is_compared(run)):
            cache_path.mkdir(parents=True, exist_ok=True)
            with FileLock(cache_path / f"{files.folder.name}.lock"):
                found = _made(files, run, listen)
    except OSError as error:
        raise DataError(f"{files.folder}: cannot be written ({error}); give another folder with --cache DIR") from error
    return found


def _made(files: "_CacheFolder", run: str | None, report: ReportBytes) -> PreparedSplit:
    """Open the split, decoding it if it is missing, damaged or outdated; the caller holds its lock."""
    folder = files.folder
    found = files.open() if folder.is_dir() else None
    changed = found.files.changed() if found and found.files and run and not files.is_compared(run) else []
    if changed:
        names = f"{', '.join(changed[:10])}{f' and {len(changed) - 10} more' if len(changed) > 10 else ''}"
        _tell(f"{folder}: the files of {names} changed but kept their size and time; decoding the split again")
    elif found is None and folder.exists():
        _tell(f"{folder}: this prepared split is damaged; decoding it again")
    if found is None or changed:
        _remove(folder)
        _decode(files.dataset, files.split, files.size, folder, report)
        found = files.open()
    if found is None:
        raise DataError(
            f"{folder}: data read back differ from data written; check the disk, or give another folder with "
            "--cache DIR"
        )
    if run:
        files.set_compared(run)
    return found


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _tell(line: str) -> None:
    print(f"DAMAGED {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Entry:
    """An index entry: size, candidates, SHA-256 of the native source, its `files` (or ""), prepared image and label."""

    name: str
    height: int
    width: int
    candidates: int
    digest: str
    files: str
    image: str
    label: str

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def line(self, folder: str, position: int) -> bytes:
        """The line of the index, with a digest that binds it to its position in this folder."""
        fields = asdict(self)
        return json.dumps(fields | {"line": digest([folder, position, fields])}).encode("ascii") + b"\n"


def _entries(path: Path, folder: str) -> Iterator[_Entry]:
    """The entries in the index of a folder of this name, up to the first damaged line."""
    for position, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.is_file() else ()):
        try:
            fields = json.loads(line)
            fields.pop("line")
            entry = _Entry(**fields)
            if entry.line(folder, position) != line:
                return
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            return
        yield entry


_opened: dict[Path, tuple[object, PreparedSplit]] = {}  # by folder, with what this process has verified
OPENED = 16  # splits, at most


@dataclass(frozen=True)
class _CacheFolder:
    """The folder of a prepared split and its source; `entries`, `offsets` and `verified` are set once it is opened."""

    folder: Path
    dataset: Dataset
    split: str
    size: SizeSpec
    entries: tuple[_Entry, ...] = ()
    offsets: tuple[int, ...] = ()
    verified: dict[str, bytearray] = field(default_factory=dict)

    def open(self) -> PreparedSplit | None:
        """The split; None if its index or file sizes are wrong.

        A process opens unchanged files once and verifies each image once.
        """
        before, known = self._state(), _opened.get(self.folder)
        if known is not None and known[0] == before:
            return known[1]
        entries = tuple(_entries(self.folder / INDEX, self.folder.name))
        offsets = np.cumsum([0, *(entry.pixels for entry in entries)], dtype=np.int64)
        names = tuple(entry.name for entry in entries)
        written = b"".join(entry.line(self.folder.name, position) for position, entry in enumerate(entries))
        if names != self.dataset.names(self.split) or (self.folder / INDEX).read_bytes() != written:
            return None
        if _sizes(self.folder) != (3 * offsets[-1], offsets[-1]):
            return None
        content = hashlib.sha256(
            canonical_json([*self.dataset.identity(self.split), *self.dataset.code]).encode("ascii")
        )
        for entry in entries:
            content.update(bytes.fromhex(entry.digest))
        verified = {kind: bytearray(len(entries)) for kind in ("images", "labels")}
        prepared = PreparedSplit(
            self.split,
            names,
            np.asarray([(entry.height, entry.width) for entry in entries], dtype=np.int64),
            offsets,
            np.asarray([entry.candidates for entry in entries], dtype=np.int64),
            content.hexdigest(),
            np.memmap(self.folder / "images.bin", dtype=np.uint8, mode="r", shape=(int(offsets[-1]), 3)),
            np.memmap(self.folder / "labels.bin", dtype=np.uint8, mode="r", shape=(int(offsets[-1]),)),
            replace(self, entries=entries, offsets=tuple(offsets.tolist()), verified=verified),
        )
        while len(_opened) >= OPENED:
            del _opened[next(iter(_opened))]
        _opened[self.folder] = before, prepared
        return prepared

    def _state(self) -> object:
        """A value that changes with any file of the folder or the description of the data set."""
        files = [(self.folder / name).stat() for name in FILES if (self.folder / name).is_file()]
        stats = [(one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in files]
        return stats, self.dataset.identity(self.split)

    def verify(self, position: int, kind: str) -> None:
        """Verify an image or label map when this process first reads it, and decode it again if it is damaged.

        Raises DataError if its source has changed.
        """
        if self.verified[kind][position]:
            return
        if not self._is_sound(position, kind):
            entry = self.entries[position]
            _tell(f"{self.folder / f'{kind}.bin'}: image {entry.name} is damaged; decoding it again")
            native = _read(self.dataset, self.split, entry.name)
            image, label, made = _prepared(self.dataset, self.split, entry.name, self.size, native)
            if made == entry:
                self._write(position, kind, (image if kind == "images" else label).tobytes())
            if made != entry or not self._is_sound(position, kind):
                raise DataError(
                    f"{self.folder}: image {entry.name} is damaged, and its source has changed or the disk is "
                    "faulty; run again to decode the split anew"
                )
        self.verified[kind][position] = 1

    def _place(self, position: int, kind: str) -> tuple[int, int]:
        """First byte and number of bytes of an image in its file."""
        channels = 3 if kind == "images" else 1
        return channels * self.offsets[position], channels * self.entries[position].pixels

    def _is_sound(self, position: int, kind: str) -> bool:
        start, size = self._place(position, kind)
        entry = self.entries[position]
        with open(self.folder / f"{kind}.bin", "rb") as file:
            file.seek(start)
            content = file.read(size)
        return hashlib.sha256(content).hexdigest() == (entry.image if kind == "images" else entry.label)

    def _write(self, position: int, kind: str, content: bytes) -> None:
        with open(self.folder / f"{kind}.bin", "r+b") as file:
            file.seek(self._place(position, kind)[0])
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def changed(self) -> list[str]:
        """Names of images whose source files have changed since they were decoded."""
        with ThreadPoolExecutor(min(8, local_cpus())) as pool:
            now = pool.map(lambda entry: _files_digest(self.dataset, self.split, entry.name), self.entries)
            return [entry.name for entry, found in zip(self.entries, now, strict=True) if found != entry.files]

    def is_compared(self, run: str) -> bool:
        """Whether a run has already verified the source files on this node."""
        path = self.folder / COMPARED
        return path.is_file() and run in path.read_text(encoding="utf-8", errors="replace").splitlines()

    def set_compared(self, run: str) -> None:
        path = self.folder / COMPARED
        others = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        path.write_text("\n".join([*others[-RUNS:], run]) + "\n", encoding="utf-8")


def _files_digest(dataset: Dataset, split: str, name: str) -> str:
    """SHA-256 of the contents of an image's files; empty without files. Raises DataError for a missing one."""
    content, paths = hashlib.sha256(), dataset.files(split, name)
    with readable():
        for path in paths:
            with open(path, "rb") as file:
                content.update(hashlib.file_digest(file, "sha256").digest())
    return content.hexdigest() if paths else ""


def _decode(dataset: Dataset, split: str, size: SizeSpec, folder: Path, report: ReportBytes) -> None:
    """Fill the folder under a temporary name and rename it, so that it is either complete or absent."""
    names = dataset.names(split)
    partial = folder.with_name(folder.name + PARTIAL)
    workers = min(8, local_cpus())

    def read(name: str) -> tuple[UInt8Array, UInt8Array, _Entry] | DataError:
        try:
            native = _read(dataset, split, name)
        except DataError as error:
            return error
        return _prepared(dataset, split, name, size, native)

    with data_errors() as wrong, _Appended(partial, names) as files, ThreadPoolExecutor(workers) as pool:
        if files.done:
            report(files.done, len(names))
        pixels = partial_(_pixels, dataset, split)
        for found in _in_order(pool, read, names[files.done :], ahead=2 * workers, pixels=pixels):
            with wrong.kept():
                if isinstance(found, DataError):
                    raise found
                if not wrong:  # after an error the rest is only checked, to report all errors at once
                    files.add(*found)
                    report(files.done, len(names))
    partial.rename(folder)


_Native = tuple[str, UInt8Array, UInt8Array]


def _read(dataset: Dataset, split: str, name: str) -> _Native:
    """Digest of an image's files, image and label map at native size."""
    return _files_digest(dataset, split, name), *dataset.read(split, name)


def _prepared(
    dataset: Dataset, split: str, name: str, size: SizeSpec, source: _Native
) -> tuple[UInt8Array, UInt8Array, _Entry]:
    """The prepared image, its label map and their index entry. Raises DataError for a side below SMALLEST_SIDE."""
    files, image, label = source
    native = hashlib.sha256(canonical_json([name, *label.shape]).encode("ascii"))
    native.update(np.ascontiguousarray(image).data)  # no copy if contiguous
    native.update(np.ascontiguousarray(label).data)
    height, width = size.prepared_size(*label.shape)
    if min(height, width) < SMALLEST_SIDE:
        raise DataError(
            f"{dataset.facts.name} {split}: image {name} would be resized to {height}x{width} (height x width), but "
            f"the networks need at least {SMALLEST_SIDE} pixels per side; raise dataset.size, scale or long_side (or "
            "those of the evaluated split), or remove the image"
        )
    image, label = _resize(image, label, height, width)
    candidates = int((label != dataset.facts.void_index).sum())
    digests = (hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in (image, label))
    return image, label, _Entry(name, height, width, candidates, native.hexdigest(), files, *digests)


def _resize(image: UInt8Array, label: UInt8Array, height: int, width: int) -> tuple[UInt8Array, UInt8Array]:
    """Resize: the image bilinearly with antialiasing, the label map by nearest neighbour at pixel centres."""
    if (height, width) == label.shape:
        return image, label
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    nearest = Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(small), np.asarray(nearest)


def _pixels(dataset: Dataset, split: str, name: str) -> int:
    """Number of pixels according to the image file's header; 0 if unknown."""
    files = dataset.files(split, name)
    try:
        with Image.open(files[0]) as image:
            return image.width * image.height
    except Exception:  # decoding will report the error
        return 0


def _in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[str], T],
    names: Sequence[str],
    ahead: int,
    pixels: Callable[[str], int] = lambda name: 0,
) -> Iterator[T]:
    """Like ``pool.map``, but with at most `ahead` results and MOST_PIXELS pixels pending, unless one image has more.

    A split may be larger than memory.
    """
    waiting: deque[tuple[Future[T], int]] = deque()
    for name in names:
        more = pixels(name)
        while waiting and (len(waiting) >= ahead or more + sum(one for _, one in waiting) > MOST_PIXELS):
            yield waiting.popleft()[0].result()
        waiting.append((pool.submit(function, name), more))
    while waiting:
        yield waiting.popleft()[0].result()


class _Appended:
    """The files of a partly prepared split, with `done` images, to which new ones are appended.

    An image counts once its line is in the index, which is written only after its pixels are synced to disk. Anything
    beyond that, left by an interrupted process, is truncated.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        folder.mkdir(exist_ok=True)
        whole = _whole(folder, names)
        pixels = sum(entry.pixels for entry in whole)
        self._images = _cut(folder / "images.bin", 3 * pixels)
        self._labels = _cut(folder / "labels.bin", pixels)
        self._name = folder.name.removesuffix(PARTIAL)
        self._index = _cut(
            folder / INDEX, sum(len(entry.line(self._name, position)) for position, entry in enumerate(whole))
        )
        self._waiting: list[bytes] = []
        self.done = len(whole)

    def add(self, image: UInt8Array, label: UInt8Array, entry: _Entry) -> None:
        self._images.write(image.tobytes())
        self._labels.write(label.tobytes())
        self._waiting.append(entry.line(self._name, self.done))
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
    """The entries of the leading images that are complete in a folder."""
    images, labels = _sizes(folder)
    room, found = min(images // 3, labels), list[_Entry]()
    for entry, name in zip(_entries(folder / INDEX, folder.name.removesuffix(PARTIAL)), names, strict=False):
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
    """Open a file for appending after truncating it to a size in bytes."""
    path.touch()
    os.truncate(path, size)
    return open(path, "ab")


def _to_disk(file: BufferedWriter) -> None:
    file.flush()
    sync(file.fileno())
