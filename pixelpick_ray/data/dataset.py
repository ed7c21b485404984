"""What a data set is: facts, names, and reading one image with its label."""

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
    """What belongs to a data set and is no choice: colours are RGB, mean and std are of RGB in 0..1."""

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
        """Classes without void."""
        return len(self.class_names)

    @property
    def unlabelled_index(self) -> int:
        """What stands in the place of a label where there is no label map: the largest of 0..255 that is neither a
        class nor void; -1, which no pixel has, when all of these are taken.
        """
        taken = {*range(self.num_classes), self.void_index}
        return max(set(range(256)) - taken, default=-1)


class Dataset(ABC):
    """Images with label maps in splits; an image is known by its name.

    ``facts`` are the class's own, except for data sets that are described beside their files: these have facts once
    they are opened. Raise `version` when the same files are read otherwise.
    """

    facts: DatasetFacts
    version: ClassVar[int] = 1

    def __init__(self, spec: DatasetSpec, data_path: Path) -> None:
        """Open the data set of this spec in the data folder; no image is touched yet."""
        self.spec, self.data_path = spec, data_path

    def fetch(self, report: ReportBytes) -> None:  # noqa: B027 (most have nothing to fetch)
        """Download what is absent, where that is allowed; `report` gets bytes done and in all (0: unknown).

        DataError says what to put where by hand.
        """

    @property
    def code(self) -> list[Any]:
        """What identifies how files are read, JSON-ready; nothing for version 1 of a built-in data set."""
        if "@" in self.spec.name:
            return [self.spec.name]
        return [] if self.version == 1 else [self.version]

    def identity(self, split: str) -> list[Any]:
        """What identifies a split beside its images, JSON-ready: part of the fingerprint of its content."""
        return [self.facts.name, split]

    def has_labels(self, split: str) -> bool:
        """Whether the images of a split have label maps."""
        return True

    @abstractmethod
    def names(self, split: str) -> tuple[str, ...]:
        """Sorted image names of a split. DataError when the files are missing."""

    @abstractmethod
    def signature(self, split: str) -> list[list[str | int]]:
        """Cheap identity of a split's source: changes whenever a file may have changed."""

    @abstractmethod
    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        """Checked image (H, W, 3) RGB and label (H, W) at native size. DataError names the file and the remedy.

        Without a label map the label is `DatasetFacts.unlabelled_index` at every pixel.
        """

    def files(self, split: str, name: str) -> tuple[Path, ...]:
        """The files that `read` reads for an image: their contents are compared when a run starts; none where there are
        no files.
        """
        return ()

    def left_out(self, split: str) -> Sequence[str]:
        """What lies beside the images of a split and is not read, a line a reason."""
        return ()

    def file_name(self, split: str, name: str) -> str:
        """What the file of an image is called, without its folder; the image's own name where it has no file."""
        return name

    def native_size(self, split: str, name: str) -> tuple[int, int]:
        """Height and width of an image at native size. DataError names the file and the remedy."""
        height, width = self.read(split, name)[1].shape
        return height, width


class FileDataset(Dataset):
    """A data set with an image file and, where a split has labels, a label file a name, in a folder of its name."""

    @property
    def path(self) -> Path:
        """The folder that holds the files."""
        return self.data_path / self.facts.name

    @abstractmethod
    def paths(self, split: str, name: str) -> tuple[Path, ...]:
        """The image file and, where the split has labels, the label file, there or not."""

    @cached_property
    def encoding(self) -> LabelEncoding:
        """What the numbers and colours of label files stand for."""
        facts = self.facts
        colours = tuple((colour,) for colour in facts.palette)
        return LabelEncoding([[at] for at in range(facts.num_classes)], [facts.void_index], facts.void_index, colours)

    @property
    def white(self) -> int | None:
        """The value of white in images of 16 bits, if it is known."""
        return None

    @property
    def follows_links(self) -> bool:
        """Whether files may be links out of the data folder."""
        return False

    def read_label(self, path: Path) -> UInt8Array:
        """The label map (H, W) of a file."""
        return self.encoding.decode(read_label_file(path), path)

    def signature(self, split: str) -> list[list[str | int]]:
        """Path, size in bytes and time of change of every file. DataError names those that are missing or may not be
        used.
        """
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
        """DataError for a file that lies outside of the data folder, or whose name no report could write."""
        known: set[Path] = set()
        with data_errors() as wrong:
            for name, paths in files:
                with wrong.kept():
                    if not is_line(name):
                        raise DataError(
                            f"{paths[0].parent}: the file name {name!a} is not one line of UTF-8; rename it"
                        )
                    for path in () if self.follows_links else paths:
                        if path.parent not in known or path.is_symlink():
                            self.check_inside(path)
                            known.add(path.parent)

    def check_inside(self, path: Path) -> Path:
        """The same path. DataError when links lead it out of the data folder, and this data set may not have such."""
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
        """As the beginning of the image file says; neither its pixels nor its label map are read."""
        return read_size(*self.paths(split, name))


def check_inside(path: Path, data_path: Path) -> Path:
    """The same path. DataError when links lead it out of the data folder.

    What lies right in the data folder may itself be a link, made by whoever made the folder; data sets and weights from
    elsewhere must not bring more of them.
    """
    real = Path(os.path.realpath(path))
    allowed = [data_path, *(data_path / part for part in path.relative_to(data_path).parts[:1])]
    if not any(real.is_relative_to(os.path.realpath(folder)) for folder in allowed):
        raise DataError(
            f"{path}: leads out of the data folder, to {real}; put the file or folder itself there (only what lies "
            f"right in {data_path} may be a link)"
        )
    return path


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """What the system refuses is a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); make it readable for the user who runs this"
        ) from error


def check_label(label: UInt8Array, image_size: Sequence[int], facts: DatasetFacts, path: Path) -> None:
    """DataError when a label map has another size than its image or a value that is neither a class nor void."""
    if label.shape != tuple(image_size):
        raise DataError(
            f"{path}: the label is {label.shape[0]}x{label.shape[1]} (height x width), its image "
            f"{image_size[0]}x{image_size[1]}; they must be equal"
        )
    wrong = (label >= facts.num_classes) & (label != facts.void_index)
    refuse_values(label, wrong, f"0..{facts.num_classes - 1} and {facts.void_index} (void)", path)


def refuse_values(label: UInt8Array, wrong: npt.NDArray[np.bool_], allowed: str, path: Path) -> None:
    """DataError with the first of the wrong (H, W) pixels, if there are any."""
    if wrong.any():
        y, x = (int(at) for at in np.unravel_index(np.argmax(wrong), wrong.shape))
        raise DataError(f"{path}: label value {label[y, x]} at (y={y}, x={x}); allowed are {allowed}")
