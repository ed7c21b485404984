"""Cityscapes (Cordts et al. 2016), fine annotations, in the official layout."""

from pathlib import Path

from pixelpick_ray.data.dataset import DatasetFacts, FileDataset, UInt8Array
from pixelpick_ray.data.image_files import read_label_file
from pixelpick_ray.data.label_maps import Colour, LabelEncoding
from pixelpick_ray.errors import DataError

VOID = 19
# The label ids that are evaluated, out of 34; their train ids are 0..18 in this order.
_EVALUATED: tuple[tuple[int, str, Colour], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
LABEL_IDS = tuple(number for number, _, _ in _EVALUATED)
_COLOURS = tuple((colour,) for _, _, colour in _EVALUATED)
# By the last part of a label file's stem.
_ENCODINGS = {
    "labelIds": LabelEncoding(
        [[number] for number in LABEL_IDS],
        sorted({*range(34)} - {*LABEL_IDS}),
        VOID,
        _COLOURS,
        allowed="0..33 (label ids)",
    ),
    "labelTrainIds": LabelEncoding(
        [[at] for at in range(VOID)], [255], VOID, _COLOURS, allowed="0..18 and 255 (train ids)"
    ),
}


class Cityscapes(FileDataset):
    """Cityscapes with 19 classes: leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png, and label maps in gtFine/SPLIT/CITY.

    These are NAME_gtFine_labelIds.png or, if missing, NAME_gtFine_labelTrainIds.png.
    """

    facts = DatasetFacts(
        name="cityscapes",
        class_names=tuple(name for _, name, _ in _EVALUATED),
        void_index=VOID,
        mean=(0.28689554, 0.32513303, 0.28389177),
        std=(0.18696375, 0.19017339, 0.18720214),
        palette=tuple(colour for _, _, colour in _EVALUATED),
        splits=("train", "val"),
    )

    def names(self, split: str) -> tuple[str, ...]:
        for kind in ("leftImg8bit", "gtFine"):
            if not (self.path / kind / split).is_dir():
                raise DataError(
                    f"cityscapes: no folder {self.path / kind / split}; get leftImg8bit_trainvaltest.zip and "
                    f"gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com (needs a login) and unpack both "
                    f"in {self.path}, or give the folder that holds cityscapes/ with --data DIR"
                )
        folder = self.path / "leftImg8bit" / split
        names = []
        for path in folder.glob("*/*_leftImg8bit.png"):
            name = path.name.removesuffix("_leftImg8bit.png")
            if path != self.paths(split, name)[0]:
                raise DataError(f"cityscapes: {path} is not in its city's folder; move it to {_city(name)}/")
            names.append(name)
        if not names:
            raise DataError(
                f"cityscapes: {folder} holds no CITY/NAME_leftImg8bit.png; unpack leftImg8bit_trainvaltest.zip in "
                f"{self.path}"
            )
        return tuple(sorted(names))

    def paths(self, split: str, name: str) -> tuple[Path, Path]:
        image = self.path / "leftImg8bit" / split / _city(name) / f"{name}_leftImg8bit.png"
        labels = [self.path / "gtFine" / split / _city(name) / f"{name}_gtFine_{kind}.png" for kind in _ENCODINGS]
        return image, next((path for path in labels if path.is_file()), labels[0])

    def read_label(self, path: Path) -> UInt8Array:
        return _ENCODINGS[path.stem.rpartition("_")[2]].decode(read_label_file(path), path)


def _city(name: str) -> str:
    """CITY of a name CITY_SEQUENCE_FRAME."""
    return name.rsplit("_", 2)[0]
