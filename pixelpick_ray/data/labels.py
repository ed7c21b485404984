"""Labelled pixels, the value that grows during active learning."""

import hashlib
import zipfile
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from pixelpick_ray.config.canonical import canonical_json
from pixelpick_ray.errors import DataError, StoreError

IntArray = npt.NDArray[np.int32]
VOID, UNKNOWN = -1, -2  # labels of pixels without a class: it is none of the classes, or the annotator cannot tell


def reading_order(image: npt.ArrayLike, y: npt.ArrayLike, x: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """Indices that sort pixels by image, row and column; `image` may hold names or their ranks."""
    return np.lexsort((np.asarray(x), np.asarray(y), np.asarray(image)))


@dataclass(frozen=True, eq=False)
class LabelledPixels:
    """Labels at pixels of prepared images, sorted by (image, y, x), each pixel at most once.

    ``names`` (sorted, unique) are the images that occur. The columns (k,) have one entry per pixel: ``image`` indexes
    ``names``, ``y`` and ``x`` are coordinates in the prepared image, ``label`` is a class, ``stage`` the first stage
    that trains on it. Queried pixels that got no class are included, so that they are not queried again: their label is
    VOID or UNKNOWN, and they are not trained on (`with_class`).
    """

    names: tuple[str, ...]
    image: IntArray
    y: IntArray
    x: IntArray
    label: IntArray
    stage: IntArray

    @classmethod
    def of(
        cls,
        *,
        names: npt.ArrayLike,
        y: npt.ArrayLike,
        x: npt.ArrayLike,
        label: npt.ArrayLike,
        stage: int | npt.ArrayLike,
    ) -> Self:
        """Sort columns into a value; `names` has one name per pixel. Raises DataError if a pixel occurs twice."""
        columns = np.broadcast_arrays(np.asarray(y), np.asarray(x), np.asarray(label), np.asarray(stage))
        ys, xs, labels, stages = (np.asarray(column, dtype=np.int32).reshape(-1) for column in columns)
        unique, inverse = np.unique(np.asarray(names, dtype=np.str_).reshape(-1), return_inverse=True)
        order = reading_order(inverse, ys, xs)
        image, ys, xs = np.asarray(inverse[order], dtype=np.int32), ys[order], xs[order]
        twice = (np.diff(image) == 0) & (np.diff(ys) == 0) & (np.diff(xs) == 0)
        if twice.any():
            at = int(np.flatnonzero(twice)[0])
            raise DataError(f"pixel (y={ys[at]}, x={xs[at]}) of {unique[image[at]]} is labelled twice")
        return cls(tuple(str(name) for name in unique), image, ys, xs, labels[order], stages[order])

    def __len__(self) -> int:
        return len(self.image)

    def add(self, other: "LabelledPixels") -> "LabelledPixels":
        """The union. Raises DataError if a pixel is in both."""
        return LabelledPixels.of(
            names=np.concatenate([self.names_per_pixel(), other.names_per_pixel()]),
            y=np.concatenate([self.y, other.y]),
            x=np.concatenate([self.x, other.x]),
            label=np.concatenate([self.label, other.label]),
            stage=np.concatenate([self.stage, other.stage]),
        )

    def with_class(self) -> "LabelledPixels":
        """The pixels whose label is a class; the same object if all are."""
        if (self.label >= 0).all():
            return self
        kept = self.label >= 0
        return LabelledPixels.of(
            names=self.names_per_pixel()[kept],
            y=self.y[kept],
            x=self.x[kept],
            label=self.label[kept],
            stage=self.stage[kept],
        )

    def names_per_pixel(self) -> npt.NDArray[np.str_]:
        """The image name of every pixel."""
        return np.asarray(self.names, dtype=np.str_)[self.image] if len(self) else np.zeros(0, dtype=np.str_)

    def of_image(self, name: str) -> slice:
        """The slice of the columns for an image; empty if it has no labelled pixel."""
        at = bisect_left(self.names, name)
        if at >= len(self.names) or self.names[at] != name:
            return slice(0, 0)
        return slice(int(np.searchsorted(self.image, at)), int(np.searchsorted(self.image, at, side="right")))

    def digest(self) -> str:
        """SHA-256 of the pixels and their labels; stages do not count."""
        text = hashlib.sha256(canonical_json(list(self.names)).encode("ascii"))
        for column in (self.image, self.y, self.x, self.label):
            text.update(np.ascontiguousarray(column, dtype="<i4").tobytes())
        return text.hexdigest()

    def write(self, path: Path) -> None:
        """Write as .npz; equal pixels give equal bytes."""
        names = np.asarray(self.names, dtype=np.str_)
        np.savez(path, names=names, image=self.image, y=self.y, x=self.x, label=self.label, stage=self.stage)

    @classmethod
    def read(cls, path: Path | BinaryIO) -> Self:
        """Read a file from `write` without executing code in it. Raises StoreError for any other content."""
        try:
            with np.load(path, allow_pickle=False) as file:
                names = tuple(str(name) for name in file["names"])
                return cls(names, file["image"], file["y"], file["x"], file["label"], file["stage"])
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            where = path if isinstance(path, Path) else "pixels.npz of the store"
            raise StoreError(
                f"{where}: contains no labelled pixels ({str(error).partition('.')[0]}); remove its folder and run "
                "again"
            ) from error
