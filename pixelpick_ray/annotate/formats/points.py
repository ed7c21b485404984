"""Common data of the exchange formats: points, images and the vocabulary of other tools."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from pixelpick_ray.data.answers import Answer, Kind, OneLine, Said, Seconds
from pixelpick_ray.data.dataset import Colour

KindAndLabel = tuple[Kind | None, str | None]
FACTS = ("annotator", "time", "seconds", "idle_seconds", "suggestion", "repeat", "id")
_SEPARATORS = re.compile(r"[/\\=]")
_UPLOAD_PREFIX = 9  # characters
_UPLOADED = re.compile(r"[0-9a-f]{8}-")  # Label Studio prefixes names of uploaded files with it


@dataclass(frozen=True)
class AskedImage:
    """An image: its name, its prepared size in pixels, and its file name, if different.

    `native` reads the file's own height and width, only if a format needs them.
    """

    name: str
    height: int
    width: int
    native: Callable[[], tuple[int, int]]
    file: str = ""

    @cached_property
    def _native_size(self) -> tuple[int, int]:
        return self.native()

    @property
    def native_height(self) -> int:
        """Height of the file in pixels. Raises DataError as `Dataset.native_size` does."""
        return self._native_size[0]

    @property
    def native_width(self) -> int:
        """Width of the file in pixels. Raises DataError as `Dataset.native_size` does."""
        return self._native_size[1]

    @property
    def file_name(self) -> str:
        """The image's name in other tools."""
        return self.file or self.name


class ExchangedPoint(Said):
    """A pixel of a prepared image with an answer, or an open question if ``kind`` is None.

    The fields are those of an `Answer`; None if unknown.
    """

    annotator: OneLine | None = None
    time: Seconds | None = None
    id: OneLine | None = None


@dataclass(frozen=True)
class Exchanged:
    """Points of images to exchange, with the classes and their RGB colours."""

    class_names: tuple[str, ...]
    palette: tuple[Colour, ...]
    images: tuple[AskedImage, ...]
    points: tuple[ExchangedPoint, ...]


class Vocabulary:
    """Words in other tools for the classes, the two answers without a class, and open questions.

    The last three get trailing underscores if a class has the same name.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        """Make the words for these classes."""
        self._said: dict[str, KindAndLabel] = {name: ("class", name) for name in class_names}
        others: tuple[tuple[str, Kind | None], ...]
        others = ("none of the classes", "void"), ("cannot tell", "unknown"), ("open question", None)
        for text, kind in others:
            while text in self._said:
                text += "_"
            self._said[text] = kind, None
        self._texts = {said: text for text, said in self._said.items()}
        self.texts = tuple(self._said)

    def said(self, text: str) -> KindAndLabel | None:
        """Return the meaning of a word; None if it is unknown."""
        return self._said.get(text)

    def text(self, said: KindAndLabel) -> str:
        """Return the word for an answer."""
        return self._texts[said]


@dataclass(frozen=True)
class Known:
    """What a file may refer to; `answers` are the stored ones by id."""

    class_names: tuple[str, ...]
    images: tuple[AskedImage, ...]
    answers: Mapping[str, Answer] = field(default_factory=dict)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words for the classes."""
        return Vocabulary(self.class_names)

    @cached_property
    def by_name(self) -> dict[str, AskedImage]:
        """The images by name."""
        return {picture.name: picture for picture in self.images}

    @property
    def images_text(self) -> str:
        """The images, for a message."""
        names = ", ".join(repr(picture.name) for picture in self.images[:3])
        return f"one of the {len(self.images)} images, as {names}"

    @cached_property
    def _spellings(self) -> dict[str, set[str]]:
        found = defaultdict[str, set[str]](set)
        for picture in self.images:
            for text in (picture.name, picture.file_name):
                found[text].add(picture.name)
        return found

    @cached_property
    def _uploads(self) -> dict[str, set[str]]:
        found = defaultdict[str, set[str]](set)
        for text, names in self._spellings.items():
            for spelling in (text, _as_upload(text)):
                found[spelling] |= names
        return found

    @cached_property
    def _longest(self) -> int:
        """Length of the longest image name in characters."""
        return max(map(len, self._uploads), default=0)

    def matches(self, reference: str) -> list[AskedImage]:
        """Return the images that a path, address or upload name may refer to; an exact name means only that image."""
        whole = self._spellings.get(reference)
        names = set(whole or ())
        for text in () if whole else {reference, unquote(reference)}:
            for end in self._ends(text):
                names |= self._spellings.get(end, set())
                if _UPLOADED.match(end):
                    names |= self._uploads.get(end[_UPLOAD_PREFIX:], set())
        return [self.by_name[name] for name in sorted(names)]

    def _ends(self, text: str) -> list[str]:
        """Trailing parts of a path that are short enough to be a name."""
        start = max(0, len(text) - self._longest - _UPLOAD_PREFIX - 1)
        starts = [found.end() for found in _SEPARATORS.finditer(text, start)]
        return [text[at:] for at in (starts if start else [0, *starts])]


def _as_upload(name: str) -> str:
    """A file name as Label Studio stores it: spaces become underscores, most punctuation is dropped."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def centre(position: int, prepared: int, extent: float) -> float:
    """Map the centre of a prepared pixel to another frame, in which the side has length `extent`."""
    return (position + 0.5) * extent / prepared


def pixel_at(value: float, prepared: int, extent: float) -> int:
    """Return the prepared pixel at a position in 0..extent of another frame: the inverse of `centre`."""
    return min(math.floor(value * prepared / extent), prepared - 1)


def facts_of(point: ExchangedPoint, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what else is known of a point, with the answer it is about under ``of``; empty if nothing is."""
    fields = point.model_dump(include=set(FACTS), exclude_defaults=True)
    return fields | {"of": _stamp(vocabulary.text(point.said), point.y, point.x)} if fields else {}


def with_facts(fields: Mapping[str, Any], facts: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the fields of a point with the facts that another tool has kept.

    Facts are dropped if the point was moved or relabelled there, because they are about a different answer.
    """
    stamp = _stamp(vocabulary.text((fields["kind"], fields["label"])), fields["y"], fields["x"])
    if facts.get("of", stamp) != stamp:
        return dict(fields)
    return {**fields, **{name: facts[name] for name in FACTS if name in facts}}


def _stamp(text: str, y: int, x: int) -> str:
    return f"{text} at y={y}, x={x}"
