"""Recognition of common layouts of image and mask folders, for proposing a `dataset.yaml`."""

import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelpick_ray.config.yaml_text import read_text
from pixelpick_ray.data.camvid import CamVid
from pixelpick_ray.data.cityscapes import LABEL_IDS, Cityscapes
from pixelpick_ray.data.folder_description import VOID
from pixelpick_ray.data.image_files import IMAGE_SUFFIXES, LABEL_SUFFIXES, packed, read_label_file
from pixelpick_ray.data.label_maps import Colour, rgb
from pixelpick_ray.data.voc import Voc, colour_map
from pixelpick_ray.errors import DataError

READ_MASKS = 400  # read to find the values that occur, evenly spaced
SPLIT_NAMES = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_MASK_WORDS = {"mask", "masks", "label", "labels", "annotation", "annotations", "annot", "gt", "groundtruth", "seg"}
_MASK_WORDS |= {"segmentation", "segmentations", "target", "targets", "labelmaps", "segmentationclass"}
_SUFFIXES = (
    "_mask",
    "_masks",
    "_label",
    "_labels",
    "_gt",
    "_seg",
    "_segmentation",
    "_annotation",
    "_labelIds",
    "-mask",
)
_NO_MASKS = re.compile(r"SegmentationObject|SegmentationClassVisualization|instance|color|visual|_viz", re.I)


@dataclass(frozen=True)
class Layout:
    """A recognised layout: its name, the folders and lists of its splits, and information from files next to the masks.

    ``names`` are class names by label value, ``colours`` are colours by class name; ``why`` says what was recognised.
    """

    name: str
    splits: Mapping[str, Mapping[str, str]]
    masks: Mapping[str, str] = field(default_factory=dict)
    recursive: bool = False
    names: Mapping[int, str] = field(default_factory=dict)
    colours: Mapping[str, Sequence[Colour]] = field(default_factory=dict)
    classes: Mapping[str, int] | None = None
    void: Sequence[int] | None = None
    why: str = ""

    @property
    def has_masks(self) -> bool:
        """Whether any split has label maps."""
        return any("labels" in split for split in self.splits.values())


def recognise(folder: Path) -> Layout:
    """Recognise the layout of a folder. Raises DataError if it contains no image."""
    files = _files(folder)
    for look in (_cityscapes, _voc, _roboflow, _camvid, _labelme_folders, _beside, _one_folder, _bare):
        if (found := look(folder, files)) is not None:
            return found
    raise DataError(
        f"{folder}: contains no images ({', '.join(IMAGE_SUFFIXES)}); give the folder that contains your images"
    )


_ImagesByFolder = Mapping[str, list[str]]  # image file names by relative folder


def _files(folder: Path) -> _ImagesByFolder:
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in relative.parts):
            found[relative.parent.as_posix()].append(path.name)
    return found


def _split_of(path: str) -> str | None:
    """The split named in a path, looking at its last parts first."""
    for part in reversed(PurePosixPath(path.lower()).parts):
        for word in re.split(r"[\W_]+", part):
            for split, words in SPLIT_NAMES.items():
                if word in words:
                    return split
    return None


def _stems(names: Sequence[str]) -> set[str]:
    return {PurePosixPath(name).stem for name in names}


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeError):
        return ""


# Published layouts and exports


def _cityscapes(folder: Path, files: _ImagesByFolder) -> Layout | None:
    for place in sorted(folder.rglob("leftImg8bit")):
        root = place.parent
        kinds = [kind for kind in ("labelIds", "labelTrainIds") if any(root.glob(f"gtFine/*/*/*_gtFine_{kind}.png"))]
        splits = [
            path.name
            for path in sorted(place.iterdir())
            if path.is_dir() and any((root / "gtFine" / path.name).glob(f"*/*_{kinds[0]}.png" if kinds else "-"))
        ]
        if not splits:
            continue
        at = root.relative_to(folder)
        names = Cityscapes.facts.class_names
        ids = LABEL_IDS if kinds[0] == "labelIds" else tuple(range(len(names)))
        return Layout(
            "Cityscapes",
            {
                split: {
                    "images": (at / "leftImg8bit" / split).as_posix(),
                    "labels": (at / "gtFine" / split).as_posix(),
                }
                for split in splits
            },
            masks={"image": "*_leftImg8bit", "label": f"*_gtFine_{kinds[0]}"},
            recursive=True,
            classes=dict(zip(names, ids, strict=True)),
            void=sorted({*range(34)} - {*ids}) if kinds[0] == "labelIds" else [255],
            why=f"leftImg8bit and gtFine with *_{kinds[0]}.png",
        )
    return None


def _voc(folder: Path, files: _ImagesByFolder) -> Layout | None:
    """The VOC layout, also as exported by CVAT and labelme."""
    for place in sorted(folder.rglob("JPEGImages")):
        root = place.parent
        at = root.relative_to(folder)
        kinds = [kind for kind in ("SegmentationClassPNG", "SegmentationClass") if any((root / kind).glob("*.png"))]
        if not kinds:
            continue
        where = {"images": (at / "JPEGImages").as_posix(), "labels": (at / kinds[0]).as_posix()}
        lists = {path.stem: path for path in sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))}
        splits: dict[str, dict[str, str]] = {}
        for name, path in lists.items():
            if (split := _split_of(name)) and _text(path).strip():
                splits[split] = where | {"list": path.relative_to(folder).as_posix()}
        if not splits and lists:
            path = next(iter(lists.values()))
            splits = {"train": where | {"list": path.relative_to(folder).as_posix()}}
        names, colours = _class_files(root)
        if colours:
            why = "JPEGImages, SegmentationClass and labelmap.txt, as CVAT exports"
        elif names:
            why = f"JPEGImages, {kinds[0]} and class_names.txt, as labelme exports"
        else:
            why = "JPEGImages and SegmentationClass, as VOC"
            names = dict(enumerate(Voc.facts.class_names))
            colours = {name: [colour_map(at)] for at, name in names.items()} | {VOID: [colour_map(255)]}
        kind = "CVAT" if "CVAT" in why else "labelme" if "labelme" in why else "VOC"
        return Layout(kind, _in_order(splits or {"train": where}), names=names, colours=colours, why=why)
    return None


def _class_files(root: Path) -> tuple[dict[int, str], dict[str, list[Colour]]]:
    """Class names by value and colours by name, from files next to the masks."""
    colours: dict[str, list[Colour]] = {}
    for line in _text(root / "labelmap.txt").splitlines():  # CVAT's, label:color_rgb:parts:actions
        if match := re.match(r"([^#:][^:]*):(\d+),(\d+),(\d+)", line.strip()):
            colours.setdefault(match[1].strip(), []).append((int(match[2]), int(match[3]), int(match[4])))
    for line in _text(root / "label_colors.txt").splitlines():  # CamVid's, and CVAT's in that format
        if match := re.match(r"(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)", line.strip()):
            colours.setdefault(match[4].strip(), []).append((int(match[1]), int(match[2]), int(match[3])))
    lines = [line.strip() for line in _text(root / "class_names.txt").splitlines() if line.strip()]
    if lines[:1] == ["__ignore__"]:  # -1, which is 255 in a mask
        lines = lines[1:]
    return {at: name.strip("_") for at, name in enumerate(lines)}, colours


def _roboflow(folder: Path, files: _ImagesByFolder) -> Layout | None:
    splits, names = {}, dict[int, str]()
    for place in files:
        table = _text(folder / place / "_classes.csv")
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(table)) if len(row) >= 2]
        known = {int(row[0]): row[1] for row in rows if row[0].isdigit()}
        if known and any(name.endswith("_mask.png") for name in files[place]):
            splits[_split_of(place) or "train"] = {"images": place, "labels": place}
            names |= known
    if not splits:
        return None
    return Layout(
        "Roboflow",
        _in_order(splits),
        {"suffix": "_mask"},
        names=names,
        why="_classes.csv and *_mask.png in each folder",
    )


def _camvid(folder: Path, files: _ImagesByFolder) -> Layout | None:
    splits = {}
    for place in files:
        if f"{place}annot" in files and len(_stems(files[place]) & _stems(files[f"{place}annot"])):
            splits[_split_of(place) or PurePosixPath(place).name] = {"images": place, "labels": f"{place}annot"}
    if not splits:
        return None
    first = splits.get("train") or next(iter(splits.values()))
    _, colours = _class_files(folder / PurePosixPath(first["images"]).parent)
    why = "folders NAME and NAMEannot, as in the SegNet tutorial"
    found = Layout("CamVid", _in_order(splits), colours=colours, why=why)
    if not colours and _is_camvid({*values_of(masks_of(folder, found)).numbers}):
        return replace(found, names=dict(enumerate(CamVid.facts.class_names)), void=[CamVid.facts.void_index])
    return found


def _is_camvid(values: set[int]) -> bool:
    return values <= {*range(12)} and 11 in values and len(values) > 8


def _labelme_folders(folder: Path, files: _ImagesByFolder) -> Layout | None:
    """One folder per image, with img.png, label.png and label_names.txt."""
    places = [place for place, names in files.items() if {"img.png", "label.png"} <= set(names)]
    texts = {_text(folder / place / "label_names.txt") for place in places}
    if not places or len(texts) != 1:
        return None
    names = {at: name.strip("_") for at, name in enumerate(texts.pop().split())}
    above = PurePosixPath(places[0]).parent.as_posix()
    return Layout(
        "labelme",
        {"train": {"images": above, "labels": above}},
        {"image": "*/img", "label": "*/label"},
        recursive=True,
        names=names,
        why="folders with img.png and label.png, as labelme_json_to_dataset writes",
    )


# Layouts without a name


def _beside(folder: Path, files: _ImagesByFolder) -> Layout | None:
    """Masks in separate folders, named like the images or with a suffix."""
    pairs, suffix = defaultdict[str, list[tuple[str, str]]](list), ""
    alone = defaultdict[str, list[str]](list)  # images without masks, in named splits
    masks = [place for place in files if _is_of_masks(place)]
    for place in files:
        if place in masks:
            continue
        best, ending = "", ""
        for other in masks:
            for end in ("", *_SUFFIXES):
                shared = {f"{stem}{end}" for stem in _stems(files[place])} & _stems(files[other])
                is_same_split = _split_of(place) == _split_of(other)
                if is_same_split and len(shared) >= max(1, len(files[place]) // 2) and not best:
                    best, ending = other, end
        if best:
            pairs[_split_of(place) or "train"].append((place, best))
            suffix = ending
        elif split := _split_of(place):
            alone[split].append(place)
    if not pairs:
        return None
    splits = {
        split: {"images": _common(one for one, _ in some), "labels": _common(one for _, one in some)}
        for split, some in pairs.items()
    }
    splits |= {split: {"images": _common(iter(some))} for split, some in alone.items() if split not in splits}
    return Layout(
        "folders",
        _in_order(splits),
        {"suffix": suffix} if suffix else {},
        recursive=any(len(some) > 1 for some in pairs.values()) or any(len(some) > 1 for some in alone.values()),
        why="masks with the names of the images",
    )


def _is_of_masks(place: str) -> bool:
    words = {word for part in PurePosixPath(place.lower()).parts for word in re.split(r"[\W_]+", part)}
    return bool(words & _MASK_WORDS) and not _NO_MASKS.search(place)


def _one_folder(folder: Path, files: _ImagesByFolder) -> Layout | None:
    """Images and masks in the same folder."""
    splits = {}
    endings = Counter[str]()
    for place, names in files.items():
        stems = _stems(names)
        for end in _SUFFIXES:
            paired = [stem for stem in stems if not stem.endswith(end) and f"{stem}{end}" in stems]
            if len(paired) >= max(1, len(stems) // 3):
                splits[_split_of(place) or "train"] = {"images": place, "labels": place}
                endings[end] += 1
    if splits:
        end = endings.most_common(1)[0][0]
        return Layout("one folder", _in_order(splits), {"suffix": end}, why=f"images next to masks named *{end}")
    for place, names in files.items():
        masks = _stems([name for name in names if PurePosixPath(name).suffix.lower() in LABEL_SUFFIXES])
        photos = _stems([name for name in names if PurePosixPath(name).suffix.lower() not in LABEL_SUFFIXES])
        if masks and masks == photos:
            splits[_split_of(place) or "train"] = {"images": place, "labels": place}
    return Layout("one folder", _in_order(splits), why="photos next to masks of the same stem") if splits else None


def _bare(folder: Path, files: _ImagesByFolder) -> Layout | None:
    if not files:
        return None
    places = defaultdict[str, list[str]](list)
    for place in files:
        places[_split_of(place) or "train"].append(place)
    splits = {split: {"images": _common(iter(some))} for split, some in places.items()}
    is_deep = any(len(some) > 1 for some in places.values())
    return Layout("images alone", _in_order(splits), recursive=is_deep, why="no masks were found")


def _common(places: Iterator[str]) -> str:
    """The deepest common parent folder."""
    return PurePosixPath(os.path.commonpath([*places])).as_posix()


def _in_order(splits: Mapping[str, Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
    """Splits in the usual order; without one called train, the first is renamed to it."""
    if "train" not in splits:
        first = next(iter(splits))
        splits = {"train" if name == first else name: split for name, split in splits.items()}
    order = [name for name in SPLIT_NAMES if name in splits]
    return {name: splits[name] for name in [*order, *(name for name in splits if name not in order)]}


# Content of the masks


@dataclass(frozen=True)
class MaskValues:
    """Pixel counts of the values and packed colours in masks, and the colours of palette indices."""

    numbers: Counter[int]
    colours: Counter[int]
    by_index: Mapping[int, frozenset[int]]


def masks_of(folder: Path, layout: Layout) -> Iterator[Path]:
    """A sample of a layout's mask files, evenly spaced."""
    pattern = layout.masks.get("label") or f"*{layout.masks.get('suffix', '')}"
    behind = pattern.partition("*")[2]
    places = [split["labels"] for split in layout.splits.values() if "labels" in split]
    for place in (folder / one for one in places):
        found = [
            path
            for path in sorted(place.rglob("*") if layout.recursive else place.iterdir())
            if path.suffix.lower() in LABEL_SUFFIXES and path.stem.endswith(PurePosixPath(behind).name)
        ]
        step = max(1, len(found) * len(places) // READ_MASKS)
        yield from found[::step]


def values_of(paths: Iterator[Path]) -> MaskValues:
    """Count the values in mask files, skipping unreadable ones, which `check` reports."""
    numbers, colours, by_index = Counter[int](), Counter[int](), defaultdict[int, set[int]](set)
    for path in paths:
        try:
            file = read_label_file(path)
        except DataError:
            continue
        found = _counted(file.values if file.values is not None else file.colours)
        palette = dict(enumerate([] if file.palette is None else file.palette.tolist()))
        if any(palette.get(index, index * 0x010101) != index * 0x010101 for index in found):
            for index, count in found.items():
                by_index[index].add(palette.get(index, 0))
                colours[palette.get(index, 0)] += count
        elif file.values is not None:
            scale = 255 // (2**file.bits - 1) if file.bits in (2, 4) else 1
            numbers += Counter({value * scale: count for value, count in found.items()})
        else:
            colours += Counter(found)
    if colours and not by_index:  # among colour masks, grey ones are colour masks too
        colours += Counter({value * 0x010101: count for value, count in numbers.items() if value < 256})
        numbers.clear()
    return MaskValues(numbers, colours, {index: frozenset(found) for index, found in by_index.items()})


def _counted(values: npt.ArrayLike | None) -> dict[int, int]:
    """The number of occurrences of each value."""
    found, counts = np.unique(np.asarray(values), return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def described_classes(layout: Layout, seen: MaskValues) -> dict[str, Any]:
    """The fields classes, void and colours of a description. DataError for no readable mask or too many values."""
    if layout.classes is not None:
        return {"classes": dict(layout.classes), "void": list(layout.void or [])}
    if not seen.numbers and not seen.colours:
        raise DataError(
            f"no mask could be read; they must be {', '.join(LABEL_SUFFIXES)} with a value, palette index or colour "
            "per class (JPEG alters them: export the masks again as PNG)"
        )
    if len(seen.numbers) > 255 or len(seen.colours) > 255:
        raise DataError(
            f"the masks have {max(len(seen.numbers), len(seen.colours))} different values or colours, too many for "
            "classes; if they are photos, blurred or JPEG, export them again as PNG with one value per class"
        )
    if seen.colours and not seen.numbers:
        return _of_colours(layout, seen)
    return _of_numbers(layout, seen)


def _of_numbers(layout: Layout, seen: MaskValues) -> dict[str, Any]:
    values = sorted(seen.numbers)
    if values == [0, 255] and not layout.names:
        return {"classes": {"background": 0, "object": 255}, "void": []}
    void = list(layout.void) if layout.void is not None else [255] if 255 in values and 255 not in layout.names else []
    is_voc = layout.name == "VOC" and not {*values} <= {*layout.names, 255}
    known = dict(layout.names) if layout.names and not is_voc else dict.fromkeys(values, "")
    known |= {value: "" for value in values if value not in known}
    kept = {value: name or ("background" if value == 0 else f"class_{value}") for value, name in sorted(known.items())}
    classes = {name: value for value, name in kept.items() if value not in void}
    if list(classes.values()) == list(range(len(classes))):
        return {"classes": list(classes), "void": void[0] if len(void) == 1 else void}
    return {"classes": classes, "void": void[0] if len(void) == 1 else void}


def _of_colours(layout: Layout, seen: MaskValues) -> dict[str, Any]:
    known = {int(packed(colour)): name for name, colours in layout.colours.items() for colour in colours}
    if layout.name == "VOC" and not {*seen.colours} <= {*known}:  # VOC's layout with other classes
        known = {int(packed(colour_map(255))): VOID} if int(packed(colour_map(255))) in seen.colours else {}
    elif not known and layout.names:  # a palette with named indices
        known = {next(iter(colours)): layout.names[at] for at, colours in seen.by_index.items() if at in layout.names}
        known |= {int(packed(colour_map(at))): name for at, name in layout.names.items() if name not in known.values()}
    colours: dict[str, list[Colour]] = defaultdict(list)
    for colour, name in known.items():
        colours[VOID if name.lower() in ("void", "ignore", "unlabelled", "unlabeled") else name].append(rgb(colour))
    for number, (colour, _) in enumerate(seen.colours.most_common()):
        if colour not in known:
            is_border = rgb(colour) == colour_map(255) and 255 in seen.by_index
            colours[VOID if is_border else "background" if colour == 0 else f"class_{number}"].append(rgb(colour))
    names = [name for name in colours if name != VOID]
    shown = {name: [list(one) for one in some] if len(some) > 1 else list(some[0]) for name, some in colours.items()}
    return {"classes": names, "void": 255, "colours": shown}
