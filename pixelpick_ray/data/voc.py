"""PASCAL VOC 2012 segmentation (Everingham et al. 2015) in the official layout."""

import tarfile
from dataclasses import replace
from functools import cached_property
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from pixelpick_ray.config.yaml_text import read_text
from pixelpick_ray.data.dataset import DatasetFacts, FileDataset, ReportBytes
from pixelpick_ray.data.label_maps import Colour, LabelEncoding
from pixelpick_ray.errors import DataError, data_errors

SITE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
ARCHIVE = "VOCtrainval_11-May-2012.tar"


def colour_map(index: int) -> Colour:
    """RGB colour of an index 0..255 in VOC's colour map: its bits are dealt in turn to the channels' high bits."""
    red, green, blue = (sum(((index >> 3 * at + channel) & 1) << 7 - at for at in range(8)) for channel in range(3))
    return red, green, blue


def _names_in(line: str, path: Path, labels: str) -> list[str]:
    """Image names in a line: plain names, or the paths of one image and its label map. DataError for other paths."""
    parts = [PurePosixPath(part) for part in line.split()]
    if all(len(part.parts) == 1 and not part.name.startswith(".") for part in parts):
        return line.split()
    folders = [part.parent.name for part in parts]
    if folders not in (["JPEGImages"], ["JPEGImages", labels]) or len({part.stem for part in parts}) > 1:
        raise DataError(
            f"voc: {path}: the line {line!r} names files other than JPEGImages/NAME.jpg and {labels}/NAME.png; give "
            "one NAME per line (label maps in SegmentationClassAug belong to split trainaug)"
        )
    return [parts[0].stem]


class Voc(FileDataset):
    """VOC 2012 with 21 classes: JPEGImages, SegmentationClass and lists in ImageSets/Segmentation of VOCdevkit/VOC2012.

    ``trainaug`` are all images with a label map in SegmentationClassAug (SBD) that are not in val.
    """

    facts = DatasetFacts(
        name="voc",
        class_names=(
            *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
            *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
            "tvmonitor",
        ),
        void_index=255,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        palette=tuple(colour_map(index) for index in range(21)),
        splits=("train", "val", "trainaug"),
    )

    @cached_property
    def encoding(self) -> LabelEncoding:
        return replace(super().encoding, void_colours=[colour_map(255)])

    @property
    def _release(self) -> Path:
        return self.path / "VOCdevkit" / "VOC2012"

    def names(self, split: str) -> tuple[str, ...]:
        if split != "trainaug":
            return self._listed(split)
        labels = self._labels(split)
        if not labels.is_dir():
            raise DataError(
                f"voc: no folder {labels}; split trainaug needs label maps NAME.png (0..20 and 255) of the Semantic "
                "Boundaries Dataset in the classes of VOC: copy them there, or use split train"
            )
        names = {path.stem for path in labels.glob("*.png")} - set(self._listed("val"))
        if not names:
            raise DataError(f"voc: {labels} contains no .png label maps outside val; copy them there")
        return tuple(sorted(names))

    def _labels(self, split: str) -> Path:
        return self._release / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")

    def _listed(self, split: str) -> tuple[str, ...]:
        path = self._release / "ImageSets" / "Segmentation" / f"{split}.txt"
        try:
            lines = read_text(path).splitlines()
        except (OSError, UnicodeError) as error:
            raise DataError(
                f"voc: {path} cannot be read ({error}); unpack {ARCHIVE} of {SITE} in {self.path}, or give the folder "
                "that holds voc/ with --data DIR or PIXELPICK_DATA"
            ) from error
        with data_errors() as wrong:
            names = set[str]()
            for line in filter(None, map(str.strip, lines)):
                with wrong.kept():
                    names.update(_names_in(line, path, self._labels(split).name))
        if not names:
            raise DataError(f"voc: {path} names no image; copy the official list there")
        return tuple(sorted(names))

    def paths(self, split: str, name: str) -> tuple[Path, Path]:
        return self._release / "JPEGImages" / f"{name}.jpg", self._labels(split) / f"{name}.png"

    def fetch(self, report: ReportBytes) -> None:
        """Download the official archive if the folder is missing; torchvision verifies it and shows the progress."""
        if self.path.is_dir():
            return
        try:
            from torchvision.datasets import VOCSegmentation

            self.data_path.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self.data_path, prefix=".voc-") as folder:
                unpacked = Path(folder) / "voc"
                VOCSegmentation(root=unpacked, year="2012", image_set="train", download=True)
                (unpacked / ARCHIVE).unlink(missing_ok=True)
                unpacked.rename(self.path)
        except (OSError, RuntimeError, ImportError, HTTPException, tarfile.TarError) as error:
            raise DataError(
                f"voc: {self.path} is missing and could not be downloaded from {SITE} ({error}); unpack {ARCHIVE} "
                f"there, so that {self._release / 'JPEGImages'} exists, or give another folder with --data DIR"
            ) from error
