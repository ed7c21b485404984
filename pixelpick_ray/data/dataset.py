"""The interface of data sets: facts, image names, and reading an image with its label map."""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pixelpick_ray.config.trial import DatasetSpec, is_line
from pixelpick_ray.data.image_files import UInt8Array, check_whole, read_image, read_label_file, read_size
from pixelpick_ray.data.label_maps import Colour, LabelEncoding
from pixelpick_ray.errors import DataError, data_errors

__all__ = ["Colour", "Dataset", "DatasetFacts", "FileDataset", "ReportBytes", "UInt8Array", "check_inside", "readable"]

ReportBytes = Callable[[int, int], None]


@dataclass(frozen=True)
class DatasetFacts:
    """Fixed properties of a data set: colours are RGB in 0..255, mean and std are of RGB in 0..1."""

    name: str
    class_names: tuple[str, ...]
    void_index: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    palette: tuple[Colour, ...]
    splits: tuple[str, ...]
    train_split: str = "train"

    @property
    def num_classes(self) -> int:
        """Number of classes, without void."""
        return len(self.class_names)

    @property
    def unlabelled_index(self) -> int:
        """Label value of pixels without a label map: the largest in 0..255 that is free, else -1, which none has."""
        taken = {*range(self.num_classes), self.void_index}
        return max(set(range(256)) - taken, default=-1)


class Dataset(ABC):
    """Splits of images with label maps; images are identified by name.

    ``facts`` is a class attribute, except for data sets with a description file, which set it when opened. Increment
    `version` when the same files are decoded differently.
    """

    facts: DatasetFacts
    version: ClassVar[int] = 1

    def __init__(self, spec: DatasetSpec, data_path: Path) -> None:
        """Open the data set of this spec in the data folder, without reading any image."""
        self.spec, self.data_path = spec, data_path

    def fetch(self, report: ReportBytes) -> None:  # noqa: B027 (most have nothing to fetch)
        """Download missing files if permitted; `report` receives bytes done and total bytes (0: unknown).

        Raises DataError with instructions for a manual download.
        """

    @property
    def code(self) -> list[Any]:
        """JSON-ready identity of the reading code; empty for version 1 of a built-in data set."""
        if "@" in self.spec.name:
            return [self.spec.name]
        return [] if self.version == 1 else [self.version]

    def identity(self, split: str) -> list[Any]:
        """JSON-ready identity of a split apart from its images; part of the fingerprint of its content."""
        return [self.facts.name, split]

    def has_labels(self, split: str) -> bool:
        """Whether the images of a split have label maps."""
        return True

    @abstractmethod
    def names(self, split: str) -> tuple[str, ...]:
        """Sorted image names of a split. Raises DataError if the files are missing."""

    @abstractmethod
    def signature(self, split: str) -> list[list[str | int]]:
        """JSON-ready, cheap identity of a split's source, which changes whenever a file may have changed."""

    @abstractmethod
    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        """Read and check an image (H, W, 3) RGB and its label map (H, W), both uint8 at native size.

        Without a label map, every label is `DatasetFacts.unlabelled_index`. DataError names the file and the remedy.
        """

    def files(self, split: str, name: str) -> tuple[Path, ...]:
        """The files that `read` reads for an image, if any; their contents are compared when a run starts."""
        return ()

    def left_out(self, split: str) -> Sequence[str]:
        """Files next to a split's images that are not read: one line per reason."""
        return ()

    def file_name(self, split: str, name: str) -> str:
        """File name of an image without its folder, or the image's name if it has no file."""
        return name

    def native_size(self, split: str, name: str) -> tuple[int, int]:
        """(height, width) of an image at native size. DataError names the file and the remedy."""
        height, width = self.read(split, name)[1].shape
        return height, width


class FileDataset(Dataset):
    """A data set in a folder of its name, with an image file and, in labelled splits, a label file for each name."""

    @property
    def path(self) -> Path:
        """The folder that holds the files."""
        return self.data_path / self.facts.name

    @abstractmethod
    def paths(self, split: str, name: str) -> tuple[Path, ...]:
        """The image file and, in labelled splits, the label file, whether they exist or not."""

    @cached_property
    def encoding(self) -> LabelEncoding:
        """The mapping from values and colours in label files to classes."""
        facts = self.facts
        colours = tuple((colour,) for colour in facts.palette)
        return LabelEncoding([[at] for at in range(facts.num_classes)], [facts.void_index], facts.void_index, colours)

    @property
    def white(self) -> int | None:
        """The value of white in 16-bit images, if known."""
        return None

    @property
    def follows_links(self) -> bool:
        """Whether files may link out of the data folder."""
        return False

    def read_label(self, path: Path) -> UInt8Array:
        """Read the label map (H, W) of a file. DataError names the file and the problem."""
        return self.encoding.decode(read_label_file(path), path)

    def signature(self, split: str) -> list[list[str | int]]:
        """Path, size in bytes and modification time in ns of every file. DataError names missing or forbidden ones."""
        with readable():
            files = [(name, self.paths(split, name)) for name in self.names(split)]
            self._check_names(files)
            rows: list[list[str | int]] = []
            with data_errors() as wrong:
                for name, paths in files:
                    for path, what in zip(paths, ("image file", "label"), strict=False):
                        with wrong.kept():
                            rows.append(self._row(split, name, path, what))
        return rows

    def _row(self, split: str, name: str, path: Path, what: str) -> list[str | int]:
        check_whole(path)
        if not path.is_file():
            raise DataError(
                f"{self.facts.name}: image {name} of split {split} has no {what} {path}; add it or remove the image"
            )
        stat = path.stat()
        return [path.relative_to(self.path).as_posix(), stat.st_size, stat.st_mtime_ns]

    def _check_names(self, files: Sequence[tuple[str, tuple[Path, ...]]]) -> None:
        """Raise DataError for files outside the data folder, or with names that are not one line of UTF-8."""
        known: set[Path] = set()
        with data_errors() as wrong:
            for name, paths in files:
                with wrong.kept():
                    if not is_line(name):
                        raise DataError(
                            f"{paths[0].parent}: the file name {name!a} is not a single line of UTF-8; rename it"
                        )
                    for path in () if self.follows_links else paths:
                        if path.parent not in known or path.is_symlink():
                            self.check_inside(path)
                            known.add(path.parent)

    def check_inside(self, path: Path) -> Path:
        """Return the path. Raises DataError if links lead it out of the data folder and `follows_links` is false."""
        return path if self.follows_links else check_inside(path, self.data_path)

    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        image_path, *label_paths = self.paths(split, name)
        if not label_paths:
            image = read_image(image_path, white=self.white)
            return image, np.full(image.shape[:2], self.facts.unlabelled_index, dtype=np.uint8)
        with data_errors() as wrong:
            with wrong.kept():
                label = self.read_label(label_paths[0])
            with wrong.kept():
                size = None if wrong else (label.shape[0], label.shape[1])
                image = read_image(image_path, label_size=size, white=self.white)
        check_label(label, image.shape[:2], self.facts, label_paths[0])
        return image, label

    def files(self, split: str, name: str) -> tuple[Path, ...]:
        return self.paths(split, name)

    def file_name(self, split: str, name: str) -> str:
        return self.paths(split, name)[0].name

    def native_size(self, split: str, name: str) -> tuple[int, int]:
        """(height, width) from the file headers, without decoding pixels."""
        return read_size(*self.paths(split, name))


def check_inside(path: Path, data_path: Path) -> Path:
    """Return the path. Raises DataError if links lead it out of the data folder.

    Direct children of the data folder may be links, made by its owner; downloaded data sets and weights must not
    contain any.
    """
    real = Path(os.path.realpath(path))
    allowed = [data_path, *(data_path / part for part in path.relative_to(data_path).parts[:1])]
    if not any(real.is_relative_to(os.path.realpath(folder)) for folder in allowed):
        raise DataError(
            f"{path}: links out of the data folder, to {real}; copy it into the data folder (only direct children of "
            f"{data_path} may be links)"
        )
    return path


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Convert OSError to a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); make it readable for the current user"
        ) from error


def check_label(label: UInt8Array, image_size: Sequence[int], facts: DatasetFacts, path: Path) -> None:
    """Raise DataError if a label map differs in size from its image or has a value that is neither class nor void."""
    if label.shape != tuple(image_size):
        raise DataError(
            f"{path}: the label map is {label.shape[0]}x{label.shape[1]} (height x width), but its image is "
            f"{image_size[0]}x{image_size[1]}; make their sizes equal"
        )
    wrong = (label >= facts.num_classes) & (label != facts.void_index)
    refuse_values(label, wrong, f"0..{facts.num_classes - 1} and {facts.void_index} (void)", path)


def refuse_values(label: UInt8Array, wrong: npt.NDArray[np.bool_], allowed: str, path: Path) -> None:
    """Raise DataError naming the first pixel where `wrong` (H, W) is true, if any."""
    if wrong.any():
        y, x = (int(at) for at in np.unravel_index(np.argmax(wrong), wrong.shape))
        raise DataError(f"{path}: label value {label[y, x]} at (y={y}, x={x}); allowed are {allowed}")
