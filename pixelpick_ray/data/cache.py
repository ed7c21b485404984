"""Prepared splits: decoded and resized once a node into a memory map that every process on the node shares."""

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from PIL import Image

from pixelpick_ray.data.datasets import Dataset, UInt8Array
from pixelpick_ray.data.streams import stream
from pixelpick_ray.errors import DataError
from pixelpick_ray.spec.canonical import canonical_json, digest
from pixelpick_ray.spec.execution import local_cpus
from pixelpick_ray.spec.experiment import SizeSpec

CACHE_VERSION = 1
Report = Callable[[int, int], None]
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
        raise DataError(f"dataset.images: {num_images} asked for, the training split has {len(names)}")
    chosen = stream(seed, "images").permutation(len(names))[:num_images]
    return tuple(sorted(names[position] for position in chosen))


def default_cache_path(data_path: Path) -> Path:
    """``DATA/.cache``, or the user's cache folder when the data folder is missing or read-only."""
    if data_path.is_dir() and os.access(data_path, os.W_OK):
        return data_path / ".cache"
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "pixelpick-ray"


def prepare(
    dataset: Dataset, split: str, size: SizeSpec, cache_path: Path, report: Report | None = None
) -> PreparedSplit:
    """Open a prepared split, decoding, checking and resizing its files first if no process has done so.

    `report` gets images done and images in all while it decodes. DataError names the file that is wrong.
    """
    geometry = size.model_dump(include={"size", "scale", "long_side"}, exclude_none=True)
    source = {"version": CACHE_VERSION, "size": geometry, "source": dataset.signature(split)}
    folder = cache_path / f"{dataset.facts.name}-{split}-{digest(source)[:20]}"
    if not (folder / "index.json").is_file():
        try:
            cache_path.mkdir(parents=True, exist_ok=True)
            with FileLock(cache_path / f"{folder.name}.lock"):
                if not (folder / "index.json").is_file():
                    _decode(dataset, split, size, folder, report or (lambda done, total: None))
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error}); give another folder with --cache DIR") from error
    return _open(folder, split)


def _open(folder: Path, split: str) -> PreparedSplit:
    index: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    shapes = np.asarray(index["shapes"], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))]).astype(np.int64)
    images = np.memmap(folder / "images.bin", dtype=np.uint8, mode="r", shape=(int(offsets[-1]), 3))
    labels = np.memmap(folder / "labels.bin", dtype=np.uint8, mode="r", shape=(int(offsets[-1]),))
    candidates = np.asarray(index["candidates"], dtype=np.int64)
    return PreparedSplit(
        split, tuple(index["names"]), shapes, offsets, candidates, index["fingerprint"], images, labels
    )


def _decode(dataset: Dataset, split: str, size: SizeSpec, folder: Path, report: Report) -> None:
    names = dataset.names(split)
    content = hashlib.sha256(canonical_json([dataset.facts.name, split]).encode("ascii"))
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    shapes, candidates = [], []

    def read(name: str) -> tuple[bytes, UInt8Array, UInt8Array]:
        image, label = dataset.read(split, name)
        native = hashlib.sha256(canonical_json([name, *label.shape]).encode("ascii"))
        native.update(image.tobytes())
        native.update(label.tobytes())
        return native.digest(), *_resize(image, label, size)

    with open(partial / "images.bin", "wb") as images, open(partial / "labels.bin", "wb") as labels:
        with ThreadPoolExecutor(max_workers=min(8, local_cpus())) as pool:
            for done, (native, image, label) in enumerate(_in_order(pool, read, names), start=1):
                content.update(native)
                images.write(image.tobytes())
                labels.write(label.tobytes())
                shapes.append(list(label.shape))
                candidates.append(int((label != dataset.facts.void_index).sum()))
                report(done, len(names))
    index = {"names": names, "shapes": shapes, "candidates": candidates, "fingerprint": content.hexdigest()}
    (partial / "index.json").write_text(json.dumps(index), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)  # a folder without an index is a leftover
    partial.rename(folder)


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[str], T], names: Sequence[str], ahead: int = 32
) -> Iterator[T]:
    """As ``pool.map``, never more than `ahead` results before the one in use: a split may be larger than the memory."""
    waiting: deque[Future[T]] = deque()
    for name in names:
        waiting.append(pool.submit(function, name))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _resize(image: UInt8Array, label: UInt8Array, size: SizeSpec) -> tuple[UInt8Array, UInt8Array]:
    """Image bilinear with antialiasing, label nearest at pixel centres."""
    height, width = size.prepared_size(*label.shape)
    if (height, width) == label.shape:
        return image, label
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    nearest = Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(small), np.asarray(nearest)
