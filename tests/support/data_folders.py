"""Small data sets on disk, in the layouts that their authors publish, or that a user may have."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from pixelpick_ray.config.trial import DatasetSpec
from pixelpick_ray.data.datasets import CamVid, Dataset, open_dataset

REAL = Path(os.environ.get("PIXELPICK_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
UInt8 = npt.NDArray[np.uint8]


def opened(name: str, data: Path, **fields: str) -> Dataset:
    return open_dataset(DatasetSpec(name=name, **fields), data)


def camvid(data: Path) -> CamVid:
    return CamVid(DatasetSpec(name="camvid"), data)


def save(path: Path, pixels: UInt8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def noise(size: tuple[int, int], values: Iterable[int], seed: int) -> tuple[UInt8, UInt8]:
    """A random picture (H, W, 3) and a random label map (H, W) of these values."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return picture, rng.choice(np.asarray(list(values), dtype=np.uint8), size)


def write_camvid(data: Path) -> None:
    for at, split in enumerate(("train", "val", "test")):
        for index in range(3):
            picture, label = noise((8, 10), range(12), seed=10 * at + index)
            save(data / "camvid" / split / f"{split}_{index}.png", picture)
            save(data / "camvid" / f"{split}annot" / f"{split}_{index}.png", label)


def write_cityscapes(data: Path) -> None:
    for at, split in enumerate(("train", "val")):
        for city, frames in (("ulm", (19,)), ("aachen", (39, 19))):
            for frame in frames:
                name = f"{city}_000000_{frame:06d}"
                picture, ids = noise((12, 16), range(34), seed=100 * at + frame + len(city))
                write_cityscapes_image(data, split, name, picture, ids)


def write_cityscapes_image(
    data: Path, split: str, name: str, picture: UInt8, ids: UInt8, kind: str = "labelIds"
) -> tuple[Path, Path]:
    """One image with one label file; their paths."""
    city = name.partition("_")[0]
    image = data / "cityscapes" / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    label = data / "cityscapes" / "gtFine" / split / city / f"{name}_gtFine_{kind}.png"
    save(image, picture)
    save(label, ids)
    return image, label


def write_voc(data: Path) -> None:
    """Lists train (a, b, c) and val (d, e); labels for trainaug are those of a, e, f, g."""
    release = data / "voc" / "VOCdevkit" / "VOC2012"
    for seed, name in enumerate("abcdefg"):
        picture, label = noise((10 + seed, 14), [*range(21), 255], seed)
        save(release / "JPEGImages" / f"{name}.jpg", picture)
        if name in "abcde":
            save(release / "SegmentationClass" / f"{name}.png", label)
        if name in "aefg":
            save(release / "SegmentationClassAug" / f"{name}.png", label[::-1])
    lists = release / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("c\na\nb\n")
    (lists / "val.txt").write_text("d\ne\n")


def write_folder(data: Path, **description: object) -> Path:
    """Three classes, splits train and val with .png, .jpg and .jpeg images; the folder of the data set."""
    folder = data / "leaves"
    for at, split in enumerate(("train", "val")):
        for index, suffix in enumerate(("png", "jpg", "jpeg")):
            picture, label = noise((9, 11), (0, 1, 2, 255), seed=10 * at + index)
            save(folder / split / "images" / f"leaf.v{index}.{suffix}", picture)
            save(folder / split / "labels" / f"leaf.v{index}.png", label)
    splits = {name: {"images": f"{name}/images", "labels": f"{name}/labels"} for name in ("train", "val")}
    described = {"classes": ["soil", "stem", "leaf"], "splits": splits} | description
    (folder / "dataset.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    return folder


# How to write each data set that has files, and the fields of its spec.
TREES: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "camvid": (write_camvid, {}),
    "cityscapes": (write_cityscapes, {}),
    "voc": (write_voc, {}),
    "folder": (write_folder, {"path": "leaves"}),
}


def loaded(file: Any) -> Image.Image:
    """An image of a file, which is closed again."""
    with Image.open(file) as picture:
        picture.load()
        return picture
