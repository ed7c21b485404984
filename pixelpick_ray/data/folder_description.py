"""The file dataset.yaml, which describes the images and label maps in a user's folder."""

import json
import re
import unicodedata
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from pixelpick_ray.config.spec import Spec
from pixelpick_ray.config.trial import escapes
from pixelpick_ray.config.yaml_text import in_words, read_text, read_yaml
from pixelpick_ray.data.label_maps import Colour, LabelEncoding
from pixelpick_ray.data.voc import Voc
from pixelpick_ray.errors import DataError, SpecError

DESCRIPTION = "dataset.yaml"
VOID = "void"  # the key of void in `colours`
USUAL_VOID = 255


def _inside(path: str) -> str:
    if escapes(path):
        raise ValueError(f"{path!r} leaves the data set's folder; give a folder inside it, e.g. train/images")
    return path


def _pattern(text: str) -> str:
    if text.count("*") != 1:
        raise ValueError(f"{text!r}: must contain one *, which stands for the part shared by image and label map")
    return text


def _several(value: Any) -> Any:
    """A list or a single value as the tuple that pydantic expects."""
    return tuple(value) if isinstance(value, list) else (value,)


def _colours(value: Any) -> Any:
    """A list of colours or a single colour as a tuple of tuples."""
    if not isinstance(value, list):
        return value
    colours = value if any(isinstance(part, list) for part in value) else [value]
    return tuple(tuple(one) if isinstance(one, list) else one for one in colours)


Inside = Annotated[str, Field(min_length=1), AfterValidator(_inside)]
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
Spread = Annotated[float, Field(gt=0.0, le=1.0)]
Byte = Annotated[int, Field(ge=0, le=255)]
LabelValue = Annotated[int, Field(ge=0, le=65535)]
LabelValues = Annotated[tuple[LabelValue, ...], BeforeValidator(_several)]
ClassName = Annotated[str, Field(min_length=1)]
ClassColours = Annotated[tuple[tuple[Byte, Byte, Byte], ...], Field(min_length=1), BeforeValidator(_colours)]
Classes = Annotated[
    Annotated[tuple[ClassName, ...], Tag("list")]
    | Annotated[dict[ClassName, Annotated[LabelValues, Field(min_length=1)]], Tag("mapping")],
    Discriminator(lambda value: "mapping" if isinstance(value, dict) else "list"),
]


class SplitDescription(Spec):
    """The folders of a split's images and label maps, relative to the data set's folder.

    A split without ``labels`` has images only, which people can label. ``list`` is a text file of the images in the
    split, one per line, with or without suffix or folder, or of pairs of image and label map.
    """

    images: Inside
    labels: Inside | None = None
    list: Inside | None = None


class MaskNames(Spec):
    """How label maps are named: a ``suffix`` appended to the image's stem, or patterns for image and label map.

    The ``*`` of both patterns stands for the same text, without file suffix: ``*_leftImg8bit`` and ``*_labelIds``.
    """

    suffix: Annotated[str, Field(min_length=1)] | None = None
    image: Annotated[str, AfterValidator(_pattern)] | None = None
    label: Annotated[str, AfterValidator(_pattern)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.suffix is None) == (self.label is None) or (self.label is None and self.image is not None):
            raise ValueError('give {suffix: _mask} or {image: "*_photo", label: "*_mask"}')
        return self

    @property
    def patterns(self) -> tuple[str, str]:
        """The patterns of images and of label maps."""
        return self.image or "*", self.label or f"*{self.suffix}"


class FolderDescription(Spec):
    """The content of dataset.yaml: properties of the data set, and its splits by name.

    ``classes`` lists the names of label values 0, 1, ..., or maps each name to its values; ``void`` lists the values of
    pixels without a class. ``colours`` maps each class, and void, to its colours in colour masks and palettes;
    ``palette`` lists one colour per class, for files that may also be read by index. ``range`` is the value of white in
    16-bit images. ``mean`` and ``std`` are of RGB in 0..1. ``recursive`` includes subfolders.
    """

    classes: Classes
    void: LabelValues | None = None
    splits: dict[str, SplitDescription]
    train_split: str = "train"
    mean: tuple[UnitInterval, UnitInterval, UnitInterval] = Voc.facts.mean
    std: tuple[Spread, Spread, Spread] = Voc.facts.std
    palette: tuple[tuple[Byte, Byte, Byte], ...] | None = None
    colours: dict[str, ClassColours] | None = None
    masks: MaskNames | None = None
    recursive: bool = False
    follow_links: bool = False
    range: Annotated[int, Field(ge=256, le=65535)] | None = None

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Class names in index order."""
        return tuple(self.classes)

    @cached_property
    def ids(self) -> tuple[tuple[int, ...], ...]:
        """The label values of each class, in index order."""
        if isinstance(self.classes, dict):
            return tuple(self.classes.values())
        return tuple((index,) for index in range(len(self.classes)))

    @cached_property
    def void_ids(self) -> tuple[int, ...]:
        """The label values of void; by default 255 unless a class has it."""
        if self.void is not None:
            return self.void
        return () if any(USUAL_VOID in ids for ids in self.ids) else (USUAL_VOID,)

    @cached_property
    def void_index(self) -> int:
        """The value of void in prepared label maps: its single label value if above all classes, else 255."""
        free = [value for value in self.void_ids if len(self.classes) <= value <= USUAL_VOID]
        return free[0] if len(self.void_ids) == 1 and free else USUAL_VOID

    @cached_property
    def class_colours(self) -> tuple[tuple[Colour, ...], ...]:
        """The colours of each class, in index order; empty if none are given."""
        if self.colours is not None:
            return tuple(self.colours[name] for name in self.class_names)
        return tuple((colour,) for colour in self.palette or ())

    def encoding(self, path: Path) -> LabelEncoding:
        """The encoding of label files; `path` is the description's, for messages."""
        return LabelEncoding(
            self.ids,
            self.void_ids,
            self.void_index,
            self.class_colours,
            self.colours.get(VOID, ()) if self.colours and VOID not in self.class_names else (),
            colours_required=self.colours is not None,
            remedy=f"correct colours in {path}" if self.colours else f"list it under colours: in {path}",
        )

    @model_validator(mode="after")
    def _classes_and_void_differ(self) -> Self:
        if not 2 <= len(self.classes) <= 255:
            raise ValueError(f"classes: must be 2 to 255 classes; got {len(self.classes)}")
        _check_names(self.class_names)
        owner: dict[int, str] = {}
        for name, ids in zip(self.class_names, self.ids, strict=True):
            for value in ids:
                if (other := owner.setdefault(value, name)) != name:
                    raise ValueError(f"classes: {value} is assigned to both {other!r} and {name!r}; remove it from one")
        if taken := [value for value in self.void_ids if value in owner]:
            allowed = f"{len(self.classes)}..255" if not isinstance(self.classes, dict) else "values of no class"
            raise ValueError(
                f"void: {taken[0]} is the value of class {owner[taken[0]]!r}; allowed are {allowed}, or give classes "
                "as a mapping from name to value"
            )
        if len(self.classes) == 255 and (without := [name for name, one in self.splits.items() if one.labels is None]):
            raise ValueError(
                f"splits: {', '.join(without)} without labels needs a value that is neither a class nor void, but "
                "255 classes and void use all of 0..255; add labels, or reduce the classes to 254"
            )
        return self

    @model_validator(mode="after")
    def _every_class_has_a_colour(self) -> Self:
        if self.palette is not None and not len(set(self.palette)) == len(self.palette) == len(self.classes):
            raise ValueError(
                f"palette: needs {len(self.classes)} distinct colours, one per class; got {len(self.palette)}, "
                f"{len(set(self.palette))} of them distinct; correct it, or leave palette out"
            )
        if self.colours is None:
            return self
        if self.palette is not None:
            raise ValueError("palette: cannot be combined with colours; remove palette")
        if unknown := sorted(self.colours.keys() - {*self.class_names, VOID}):
            raise ValueError(
                f"colours: unknown class {', '.join(unknown)}; allowed are {', '.join(self.class_names)} and {VOID}"
            )
        if missing := [name for name in self.class_names if name not in self.colours]:
            raise ValueError(f"colours: missing for {', '.join(missing)}; give each class at least one")
        owner: dict[Colour, str] = {}
        for name, colours in self.colours.items():
            for colour in colours:
                if (other := owner.setdefault(colour, name)) != name:
                    raise ValueError(
                        f"colours: {list(colour)} is assigned to both {other!r} and {name!r}; remove it from one"
                    )
        return self

    @model_validator(mode="after")
    def _splits_are_named(self) -> Self:
        for name in self.splits:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise ValueError(f"splits: {name!r} is not a valid split name; letters, digits, _ and - are allowed")
        if self.train_split not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise ValueError(
                f"train_split: {self.train_split!r} is not one of the splits ({known}); use one of them, or add it"
            )
        return self


def _check_names(names: tuple[str, ...]) -> None:
    """Raise ValueError for names that are equal, hard to tell apart, empty or unprintable."""
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"classes: {', '.join(repeated)} given twice; give each class a name of its own")
    known: dict[str, str] = {}
    for name in names:
        if not name.isprintable():
            raise ValueError(f"classes: {name!r} contains invisible characters; give it a plain name")
        plain = " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFKC", name).casefold())).strip()
        if not plain:
            raise ValueError(f"classes: {name!r} is not a valid name; give each class a name")
        if (other := known.setdefault(plain, name)) != name:
            raise ValueError(
                f"classes: {other!r} and {name!r} differ only in case, spaces or separators; rename one, or "
                "merge them with a mapping, e.g. {leaf: [1, 2]}"
            )


def read_folder_description(path: Path) -> FolderDescription:
    """Read and validate a description; DataError has one line per problem."""
    try:
        tree = read_yaml(read_text(path), str(path))
    except UnicodeError as error:
        raise DataError(f"{path}: is not text in UTF-8 or UTF-16 ({error}); store it as UTF-8") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error}); correct dataset.path, give the data folder with --data DIR, or write "
            "the file, e.g. {classes: [soil, leaf], splits: {train: {images: images, labels: masks}}}"
        ) from error
    except SpecError as error:
        raise DataError(f"{error}; correct it") from error
    if not isinstance(tree, dict):
        raise DataError(
            f"{path}: should be a mapping with the keys {', '.join(FolderDescription.model_fields)}; got {tree!r:.80}"
        )
    classes = tree.get("classes")
    if isinstance(classes, dict) and classes and all(isinstance(name, str) for name in classes.values()):
        raise DataError(f"{path}: classes: maps values to names; give each name its value, e.g. {{leaf: 1}}")
    try:
        text = json.dumps(tree, default=str)
        _check_keys(tree, path)
        return FolderDescription.model_validate_json(text)
    except ValidationError as error:
        raise DataError("\n".join(f"{path}: {_explain(item)}" for item in error.errors())) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: contains something other than numbers, text, lists and mappings ({error}); correct it"
        ) from error


def _check_keys(tree: Any, path: Path, where: str = "") -> None:
    """Raise DataError for a key that YAML does not parse as text, such as ``no`` or 1."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if isinstance(tree, dict) and not isinstance(key, str):
            raise DataError(f"{path}: {where or 'a mapping'}: the key {key!r} is not text; put it in quotes")
        _check_keys(value, path, f"{where}.{key}".removeprefix("."))


def _explain(item: Any) -> str:
    """A message for a pydantic error: key, problem or allowed values, and given value."""
    loc = [part for at, part in enumerate(item["loc"]) if not (at == 1 and item["loc"][0] == "classes")]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
    message, given = item["msg"].removeprefix("Value error, "), item["input"]
    if item["type"] == "extra_forbidden":
        kinds: dict[Any, type[Spec]] = {"splits": SplitDescription, "masks": MaskNames}
        kind = kinds.get(item["loc"][0], FolderDescription)
        return f"{key}: unknown key; allowed here: {', '.join(kind.model_fields)}"
    if item["type"] == "missing":
        message = "is required"
    elif item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    else:
        message = in_words(item)
    return f"{key}: {message}; got {given!r:.80}"
