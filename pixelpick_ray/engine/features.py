"""Features of a frozen backbone, computed once per node and cached as float16.

>>> features = prepare_features(prepared, spec, facts, world, data_path=..., cache_path=..., seed=0)
>>> features.maps([0, 1])  # (2, D, h, w)

An entry is computed in blocks of images; all processes that need it (ranks of a trial, other chains, other drivers)
share the work. It is complete once every block has a digest; a process verifies all of them when it opens the entry.
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.keys import FEATURES_VERSION
from pixelpick_ray.config.model import FEATURE_FIELDS, ModelSpec, ViewSpec
from pixelpick_ray.data.cache import PIXELS_VERSION, PreparedSplit
from pixelpick_ray.data.dataset import DatasetFacts
from pixelpick_ray.data.weights import weights_digest
from pixelpick_ray.engine.batches import normalised
from pixelpick_ray.engine.images import SplitImages, moved
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import DataError
from pixelpick_ray.models.extractor import FeatureExtractor, build_extractor
from pixelpick_ray.store.backend import sync

BLOCK_IMAGES = 16
DEVICE_SHARE = 0.5  # fraction of a GPU's free memory that the features of one split may take
HOST = torch.device("cpu")
FEATURES = "features.bin"
WAIT_SECONDS = 0.2
IN_USE_SECONDS = 600.0  # features opened or written to within this time are not removed
TIMES_DAMAGED = 5
_opened: dict[Path, "Features"] = {}  # verified by this process, by folder


@dataclass(frozen=True)
class Features:
    """Feature maps of a prepared split's images: `vectors` (cells, D), read-only float16, image by image, row by row.

    `shapes` (N, 2) are the maps' heights and widths, `offsets` (N + 1,) their first cells. With `is_flipped`, the maps
    are those of horizontally flipped images.
    """

    vectors: npt.NDArray[np.float16]
    shapes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    is_flipped: bool = False
    on_device: dict[torch.device, Tensor | None] = field(default_factory=dict, compare=False)

    def shape(self, position: int) -> tuple[int, int]:
        """(h, w) of an image's feature map."""
        return int(self.shapes[position, 0]), int(self.shapes[position, 1])

    def of(self, position: int) -> npt.NDArray[np.float16]:
        """Features (h * w, D) of an image."""
        return self.vectors[self.offsets[position] : self.offsets[position + 1]]

    def maps(self, positions: Sequence[int], device: torch.device = HOST) -> Tensor:
        """Feature maps (n, D, h, w) float32, channels last, of images of equal size; a GPU keeps all if they fit."""
        height, width = self.shape(positions[0])
        whole = self._resident(device)
        if whole is not None:
            stacked = torch.stack([whole[self.offsets[at] : self.offsets[at + 1]] for at in positions]).float()
        else:
            stacked = moved(torch.from_numpy(np.stack([self.of(at) for at in positions])), device).float()
        return stacked.view(len(positions), height, width, -1).permute(0, 3, 1, 2)

    def _resident(self, device: torch.device) -> Tensor | None:
        if device.type != "cuda":
            return None
        if device not in self.on_device:
            free, _ = torch.cuda.mem_get_info(device)
            fits = self.vectors.nbytes <= DEVICE_SHARE * free
            self.on_device[device] = torch.from_numpy(np.array(self.vectors)).to(device) if fits else None
        return self.on_device[device]

    def at(self, position: int, y: npt.NDArray[np.int64], x: npt.NDArray[np.int64], size: tuple[int, int]) -> Tensor:
        """Features (k, D) float32 at pixels of an image of `size`, interpolated bilinearly with aligned corners.

        Pixels are given in the unflipped image.
        """
        height, width = self.shape(position)
        x = size[1] - 1 - x if self.is_flipped else x
        cells = self.of(position)
        (top, bottom, down), (left, right, across) = _between(y, size[0], height), _between(x, size[1], width)
        places = [row * width + column for row in (top, bottom) for column in (left, right)]
        corners = [torch.from_numpy(cells[place.numpy()]).float() for place in places]
        upper = torch.lerp(corners[0], corners[1], across[:, None])
        return torch.lerp(upper, torch.lerp(corners[2], corners[3], across[:, None]), down[:, None])


def _between(values: npt.NDArray[np.int64], length: int, coarse: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coarse positions before and after full-size ones, and the interpolation weight of the latter; all (k,)."""
    exact = torch.from_numpy(values.astype(np.float64)) * ((coarse - 1) / max(1, length - 1))
    before = exact.floor().clamp_(max=max(0, coarse - 2)).long()
    return before, (before + 1).clamp_(max=coarse - 1), (exact - before).float()


def prepare_features(
    prepared: PreparedSplit,
    spec: ModelSpec,
    facts: DatasetFacts,
    world: World,
    *,
    data_path: Path,
    cache_path: Path,
    seed: int,
    limit: int | None = None,
    view: ViewSpec | None = None,
) -> Features:
    """Open the features of a split, or of a view of its images, computing missing ones jointly with other processes.

    `facts` has the mean and standard deviation for normalisation. Damaged features are recomputed. With a `limit` in
    bytes, the least recently used ones are removed. Raises DataError if the cache folder cannot be written.
    """
    spec, is_flipped = spec.seen_in(view), view is not None and view.flip
    key = _key(prepared, spec, facts, seed, data_path, is_flipped)
    folder = cache_path / f"{facts.name}-{prepared.split}-features-{key[:20]}"
    if folder in _opened:
        return _opened[folder]
    extractor = build_extractor(spec, data_path=data_path, seed=seed)
    grids = np.asarray([extractor.grid(prepared.shape(position)) for position in range(len(prepared))], dtype=np.int64)
    offsets = np.cumsum([0, *grids.prod(axis=1)], dtype=np.int64)
    entry = _Files(folder, grids, offsets, extractor.channels, is_flipped)
    try:
        make_room(cache_path, folder, entry.size, limit)
        folder.mkdir(parents=True, exist_ok=True)
        entry.allocate()
        times_damaged = 0
        while (number := entry.discard_damaged()) != 0:
            times_damaged += number is not None
            if times_damaged > TIMES_DAMAGED:
                raise DataError(
                    f"{folder}: data read back repeatedly differ from data written; check the disk, or give another "
                    "folder with --cache DIR"
                )
            if not _compute_some(entry, prepared, extractor, facts, world):
                time.sleep(WAIT_SECONDS)
        os.utime(folder)  # when it was used last
        _opened[folder] = entry.open()
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error}); {_gigabytes(entry.size)} are needed; free space, or give "
            "another folder with --cache DIR"
        ) from error
    return _opened[folder]


def make_room(cache_path: Path, folder: Path, size: int, limit: int | None) -> None:
    """Remove least recently used features until all, including `size` bytes for `folder`, are within `limit` bytes.

    Processes that opened removed features can still read them. Raises DataError if the limit is too small for `folder`
    and features in use.
    """
    if limit is None:
        return
    found = [path for path in cache_path.glob("*-features-*") if path != folder and path.is_dir()]
    last_used, sizes = dict[Path, float](), dict[Path, int]()
    for path in found:
        with contextlib.suppress(FileNotFoundError):  # another process makes room, too
            last_used[path], sizes[path] = path.stat().st_mtime, (path / FEATURES).stat().st_size
    total = size
    for path in sorted(sizes, key=lambda path: last_used[path], reverse=True):
        if total + sizes[path] > limit and last_used[path] < time.time() - IN_USE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
        else:
            total += sizes[path]
    if total > limit:
        raise DataError(
            f"--cache-limit: {_gigabytes(limit)} is too small, as {folder.name} needs {_gigabytes(size)} and "
            f"features in use take {_gigabytes(total - size)}; raise it"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _key(
    prepared: PreparedSplit, spec: ModelSpec, facts: DatasetFacts, seed: int, data_path: Path, is_flipped: bool
) -> str:
    """Digest of everything that determines the features; without pretrained weights, that includes the seed."""
    return digest(
        ({"flip": True} if is_flipped else {})
        | {
            "version": FEATURES_VERSION,
            "images": [PIXELS_VERSION, prepared.fingerprint, prepared.shapes.tolist()],
            "backbone": spec.model_dump(mode="json", include=FEATURE_FIELDS, exclude_none=True),
            "weights": weights_digest(spec, data_path) or ["random", seed],
            "normalise": [facts.mean, facts.std],
        }
    )


@dataclass(frozen=True)
class _Files:
    """A cache folder: features.bin, and a file with the digest of each block of images."""

    folder: Path
    shapes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    channels: int
    is_flipped: bool

    @property
    def blocks(self) -> range:
        return range(-(-len(self.shapes) // BLOCK_IMAGES))

    @property
    def size(self) -> int:
        return 2 * int(self.offsets[-1]) * self.channels

    def images(self, block: int) -> range:
        return range(block * BLOCK_IMAGES, min(len(self.shapes), (block + 1) * BLOCK_IMAGES))

    def bytes(self, block: int) -> slice:
        images = self.images(block)
        start, stop = self.offsets[images.start], self.offsets[images.stop]
        return slice(2 * int(start) * self.channels, 2 * int(stop) * self.channels)

    def digest_path(self, block: int) -> Path:
        return self.folder / f"block-{block}.sha256"

    def allocate(self) -> None:
        """Allocate space for all features, so that a full disk is reported before anything is computed."""
        path = self.folder / FEATURES
        with FileLock(self.folder / "allocate.lock"):
            if not path.is_file() or path.stat().st_size != self.size:
                for block in self.blocks:
                    self.digest_path(block).unlink(missing_ok=True)
                with open(path, "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, self.size)

    def discard_damaged(self) -> int | None:
        """Remove the digests of damaged blocks and return their number; None while a block is missing."""
        try:
            digests = [self.digest_path(block).read_text(encoding="ascii") for block in self.blocks]
        except FileNotFoundError:
            return None
        whole = np.memmap(self.folder / FEATURES, dtype=np.uint8, mode="r")
        damaged = [
            block
            for block, expected in zip(self.blocks, digests, strict=True)
            if hashlib.sha256(whole[self.bytes(block)].tobytes()).hexdigest() != expected
        ]
        for block in damaged:
            self.digest_path(block).unlink(missing_ok=True)
        return len(damaged)

    def write(self, block: int, vectors: npt.NDArray[np.float16]) -> None:
        content, at = vectors.tobytes(), self.bytes(block)
        with open(self.folder / FEATURES, "r+b") as file:
            file.seek(at.start)
            file.write(content)
            file.flush()
            sync(file.fileno())
        partial = self.folder / f".block-{block}-{os.getpid()}"
        partial.write_text(hashlib.sha256(content).hexdigest(), encoding="ascii")
        partial.rename(self.digest_path(block))

    def open(self) -> Features:
        flat = np.memmap(
            self.folder / FEATURES, dtype=np.float16, mode="r", shape=(int(self.offsets[-1]), self.channels)
        )
        return Features(flat, self.shapes, self.offsets, self.is_flipped)


@torch.inference_mode()
def _compute_some(
    entry: _Files, prepared: PreparedSplit, extractor: FeatureExtractor, facts: DatasetFacts, world: World
) -> bool:
    """Compute a block that is neither stored nor in progress elsewhere; return whether there was one."""
    for block in entry.blocks:
        if entry.digest_path(block).is_file():
            continue
        try:
            with FileLock(entry.folder / f"block-{block}.lock", timeout=0):
                if not entry.digest_path(block).is_file():
                    network = extractor.to(world.device)
                    images = SplitImages.on(prepared, world.device)
                    found = []
                    for position in entry.images(block):
                        image = normalised(images.images([position]).float().div_(255), facts)
                        found.append(network(image.flip(3) if entry.is_flipped else image)[0].flatten(1).T.half())
                    for position, vectors in zip(entry.images(block), found, strict=True):
                        if not vectors.isfinite().all():
                            raise DataError(
                                f"image {prepared.names[position]}: features overflow float16; check that the "
                                "weights belong to this backbone and that model.normalise matches them"
                            )
                    entry.write(block, torch.cat(found).cpu().numpy())
                    return True
        except Timeout:
            continue
    return False
