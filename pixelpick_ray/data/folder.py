"""A user's own images and label maps in a folder, described by the file dataset.yaml in it."""

import json
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from pixelpick_ray.config.spec import Spec
from pixelpick_ray.config.trial import DatasetSpec, escapes
from pixelpick_ray.config.yaml_text import in_words, read_yaml
from pixelpick_ray.data.dataset import DatasetFacts, FileDataset, check_inside, readable
from pixelpick_ray.data.voc import Voc, colour_map
from pixelpick_ray.errors import DataError, SpecError

DESCRIPTION = "dataset.yaml"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def _inside(path: str) -> str:
    if escapes(path):
        raise ValueError(f"{path!r} leaves the folder of the data set; give a folder inside it, e.g. train/images")
    return path


Inside = Annotated[str, Field(min_length=1), AfterValidator(_inside)]
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
Spread = Annotated[float, Field(gt=0.0, le=1.0)]
Byte = Annotated[int, Field(ge=0, le=255)]


class SplitDescription(Spec):
    """Where the images and the label maps of a split lie, relative to the folder of the data set.

    A split without ``labels`` has images only: people may say what is in them.
    """

    images: Inside
    labels: Inside | None = None

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.labels is not None and PurePosixPath(self.images) == PurePosixPath(self.labels):
            raise ValueError(f"images and labels are the same folder {self.images!r}; give each its own")
        return self


class FolderDescription(Spec):
    """The content of dataset.yaml: facts of the data set, and its splits by name.

    ``classes`` names the label values 0, 1, ...; ``void`` is the value of pixels without a class; mean and std are of
    RGB in 0..1.
    """

    classes: tuple[Annotated[str, Field(min_length=1)], ...]
    void: Byte = 255
    splits: dict[str, SplitDescription]
    train_split: str = "train"
    mean: tuple[UnitInterval, UnitInterval, UnitInterval] = Voc.facts.mean
    std: tuple[Spread, Spread, Spread] = Voc.facts.std
    palette: tuple[tuple[Byte, Byte, Byte], ...] | None = None

    @model_validator(mode="after")
    def _classes_and_void_differ(self) -> Self:
        if not 2 <= len(self.classes) <= 255:
            raise ValueError(f"classes: {len(self.classes)} given; allowed are 2..255")
        if repeated := sorted({name for name in self.classes if self.classes.count(name) > 1}):
            raise ValueError(f"classes: {', '.join(repeated)} given twice; give each class a name of its own")
        if self.void < len(self.classes):
            raise ValueError(
                f"void: {self.void} is the value of class {self.classes[self.void]!r}; allowed are "
                f"{len(self.classes)}..255"
            )
        if len(self.classes) == 255 and (without := [name for name, one in self.splits.items() if one.labels is None]):
            raise ValueError(
                f"splits: {', '.join(without)} without labels needs a value that is neither a class nor void, and 255 "
                "classes with void take all of 0..255; give labels, or 254 classes at most"
            )
        return self

    @model_validator(mode="after")
    def _every_class_has_a_colour(self) -> Self:
        if self.palette is not None and not len(set(self.palette)) == len(self.palette) == len(self.classes):
            raise ValueError(
                f"palette: {len(self.palette)} colours, {len(set(self.palette))} different ones, for "
                f"{len(self.classes)} classes; give each class a colour of its own, or leave palette out"
            )
        return self

    @model_validator(mode="after")
    def _splits_are_named(self) -> Self:
        for name in self.splits:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise ValueError(f"splits: {name!r} is no name of a split; letters, digits, _ and - are allowed")
        if self.train_split not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise ValueError(f"train_split: {self.train_split!r} is not described; described in splits: {known}")
        return self


class Folder(FileDataset):
    """Images (png, jpg, jpeg) and, where there are any, label maps (png) of the same stem, in the folders of
    ``dataset.yaml``.
    """

    def __init__(self, spec: DatasetSpec, data_path: Path) -> None:
        """Read the description. SpecError without ``path``, DataError for a missing or wrong description."""
        super().__init__(spec, data_path)
        described = self._description = _read(check_inside(self.path / DESCRIPTION, data_path))
        self.facts = DatasetFacts(
            name="folder",
            class_names=described.classes,
            void_index=described.void,
            mean=described.mean,
            std=described.std,
            # The first colour of the map, black, is that of void in pictures.
            palette=described.palette or tuple(colour_map(at + 1) for at in range(len(described.classes))),
            splits=tuple(described.splits),
            train_split=described.train_split,
        )

    @property
    def path(self) -> Path:
        if self.spec.path is None:
            raise SpecError(
                f"dataset.path: the data set folder needs it: the folder under {self.data_path} that holds "
                f"{DESCRIPTION}, e.g. dataset: {{name: folder, path: leaves}}"
            )
        return self.data_path / self.spec.path

    def identity(self, split: str) -> list[Any]:
        """The description counts as content, for results depend on it; colours and the place of files do not."""
        return [*super().identity(split), self._description.model_dump(include={"classes", "void", "mean", "std"})]

    def signature(self, split: str) -> list[list[str | int]]:
        described: list[str | int] = [str(self.spec.path), self.facts.num_classes, self.facts.void_index]
        return [described, *super().signature(split)]

    def has_labels(self, split: str) -> bool:
        """SpecError for a split that is not described."""
        return self._described(split).labels is not None

    def names(self, split: str) -> tuple[str, ...]:
        """The file names of the images; SpecError for a split that is not described."""
        images = self._files(split, "images", IMAGE_SUFFIXES)
        labels = self._files(split, "labels", (".png",)) if self.has_labels(split) else {}
        for stem in sorted(images.keys() | labels.keys()):
            self._check_pair(split, images.get(stem, []), labels.get(stem, []))
        if not images:
            raise DataError(
                f"{self._folder(split, 'images')}: holds no image; copy the images of split {split} there "
                f"({', '.join(IMAGE_SUFFIXES)})"
            )
        return tuple(sorted(name for (name,) in images.values()))

    def _described(self, split: str) -> SplitDescription:
        if split not in self._description.splits:
            raise SpecError(
                f"{self.path / DESCRIPTION}: has no split {split!r}; it describes {', '.join(self.facts.splits)}"
            )
        return self._description.splits[split]

    def _folder(self, split: str, what: str) -> Path:
        return self.path / str(getattr(self._described(split), what))

    def _files(self, split: str, what: str, suffixes: tuple[str, ...]) -> dict[str, list[str]]:
        """File names by stem; hidden files and those of other kinds do not count."""
        folder, found = check_inside(self._folder(split, what), self.data_path), dict[str, list[str]]()
        if not folder.is_dir():
            raise DataError(
                f"{self.path / DESCRIPTION}: splits.{split}.{what}: no folder {folder}; make it or correct the entry"
            )
        with readable():
            paths = sorted(folder.iterdir())
        for path in paths:
            if path.suffix.lower() in suffixes and not path.name.startswith("."):
                found.setdefault(path.stem, []).append(path.name)
        return found

    def _check_pair(self, split: str, images: list[str], labels: list[str]) -> None:
        if len(images) == 1 and len(labels) == self.has_labels(split):
            return
        have = {"images": images, "labels": labels}
        for what, names in have.items():
            if len(names) > 1:
                raise DataError(f"{self._folder(split, what)}: {' and '.join(names)} have one stem; keep one of them")
        without, lacks, suffixes = ("images", "labels", (".png",)) if images else ("labels", "images", IMAGE_SUFFIXES)
        raise DataError(
            f"{self._folder(split, without)}: {have[without][0]} has no partner of the same stem in "
            f"{self._folder(split, lacks)} ({', '.join(suffixes)}); add it or remove {have[without][0]}"
        )

    def paths(self, split: str, name: str) -> tuple[Path, ...]:
        image = self._folder(split, "images") / name
        if not self.has_labels(split):
            return (image,)
        return image, self._folder(split, "labels") / f"{Path(name).stem}.png"


def _read(path: Path) -> FolderDescription:
    """The checked description; DataError with a line a problem."""
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); correct dataset.path, give the data folder with --data DIR, or write "
            "the file, e.g. {classes: [soil, leaf], splits: {train: {images: images, labels: masks}}}"
        ) from error
    except SpecError as error:
        raise DataError(f"{error}; correct it") from error
    if not isinstance(tree, dict):
        raise DataError(
            f"{path}: expected a mapping with {', '.join(FolderDescription.model_fields)}; got {tree!r:.80}"
        )
    try:
        return FolderDescription.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise DataError("\n".join(f"{path}: {_explain(item)}" for item in error.errors())) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: holds something that is neither number, text, list nor mapping ({error})") from error


def _explain(item: Any) -> str:
    """Key, what is allowed and what was given, of a problem that pydantic found."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).removeprefix(".")
    message, given = item["msg"].removeprefix("Value error, "), item["input"]
    if item["type"] == "extra_forbidden":
        kind = SplitDescription if item["loc"][0] == "splits" else FolderDescription
        return f"{key}: unknown key; allowed here: {', '.join(kind.model_fields)}"
    if item["type"] == "missing":
        message = "is required"
    elif item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    else:
        message = in_words(item)
    return f"{key}: {message}; got {given!r:.80}"
