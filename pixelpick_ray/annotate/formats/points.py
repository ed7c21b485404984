"""What the exchange formats have in common: pixels with what was said of them, in the words of other tools."""

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
_UPLOADED = re.compile(r"[0-9a-f]{8}-")  # Label Studio puts it before the names of uploaded files


@dataclass(frozen=True)
class AskedImage:
    """An image: its name, its size as prepared, and the file's name where it is another one.

    `native` reads its height and width as the file has them, which is done where a format needs them.
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
        """Rows of the file. DataError as in `Dataset.native_size`."""
        return self._native_size[0]

    @property
    def native_width(self) -> int:
        """Columns of the file. DataError as in `Dataset.native_size`."""
        return self._native_size[1]

    @property
    def file_name(self) -> str:
        """The name that other tools know the image by."""
        return self.file or self.name


class ExchangedPoint(Said):
    """A pixel of a prepared image: an answer, or an open question where ``kind`` is None.

    The fields are those of an `Answer`; None where nothing is known.
    """

    annotator: OneLine | None = None
    time: Seconds | None = None
    id: OneLine | None = None


@dataclass(frozen=True)
class Exchanged:
    """What is exchanged: points of images, with the classes and their colours (RGB)."""

    class_names: tuple[str, ...]
    palette: tuple[Colour, ...]
    images: tuple[AskedImage, ...]
    points: tuple[ExchangedPoint, ...]


class Vocabulary:
    """What other tools call the classes, the two answers that are no class, and open questions.

    These three get underscores at their ends where a class has the same name.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        """The words for these classes."""
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
        """What a word means; None for one that is none."""
        return self._said.get(text)

    def text(self, said: KindAndLabel) -> str:
        """The word for what was said."""
        return self._texts[said]


@dataclass(frozen=True)
class Known:
    """What a file may speak of; `answers` are those that are stored, by their ids."""

    class_names: tuple[str, ...]
    images: tuple[AskedImage, ...]
    answers: Mapping[str, Answer] = field(default_factory=dict)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words for classes."""
        return Vocabulary(self.class_names)

    @cached_property
    def by_name(self) -> dict[str, AskedImage]:
        """The images."""
        return {picture.name: picture for picture in self.images}

    @property
    def images_text(self) -> str:
        """The images in a message."""
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
        """How many characters the longest name of an image has."""
        return max(map(len, self._uploads), default=0)

    def matches(self, reference: str) -> list[AskedImage]:
        """The images that a path, an address or the name of an upload may mean; a whole name means that image only."""
        whole = self._spellings.get(reference)
        names = set(whole or ())
        for text in () if whole else {reference, unquote(reference)}:
            for end in self._ends(text):
                names |= self._spellings.get(end, set())
                if _UPLOADED.match(end):
                    names |= self._uploads.get(end[_UPLOAD_PREFIX:], set())
        return [self.by_name[name] for name in sorted(names)]

    def _ends(self, text: str) -> list[str]:
        """The parts of a path up to its end that are short enough to be a name."""
        start = max(0, len(text) - self._longest - _UPLOAD_PREFIX - 1)
        starts = [found.end() for found in _SEPARATORS.finditer(text, start)]
        return [text[at:] for at in (starts if start else [0, *starts])]


def _as_upload(name: str) -> str:
    """A file's name as Label Studio stores it: spaces are underscores, most punctuation goes."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def centre(position: int, prepared: int, extent: float) -> float:
    """Where the centre of a prepared pixel lies along a side that is `extent` long in another frame."""
    return (position + 0.5) * extent / prepared


def pixel_at(value: float, prepared: int, extent: float) -> int:
    """The prepared pixel at a place within 0..extent of another frame: `centre` turned round."""
    return min(math.floor(value * prepared / extent), prepared - 1)


def facts_of(point: ExchangedPoint, vocabulary: Vocabulary) -> dict[str, Any]:
    """What is known of a point beside its pixel and answer, and under ``of`` which answer that is; empty if nothing."""
    fields = point.model_dump(include=set(FACTS), exclude_defaults=True)
    return fields | {"of": _stamp(vocabulary.text(point.said), point.y, point.x)} if fields else {}


def with_facts(fields: Mapping[str, Any], facts: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """The fields of a point with those facts that another tool has kept.

    None is taken over once the point was moved or got another label there: they are facts of an answer that was not
    given.
    """
    stamp = _stamp(vocabulary.text((fields["kind"], fields["label"])), fields["y"], fields["x"])
    if facts.get("of", stamp) != stamp:
        return dict(fields)
    return {**fields, **{name: facts[name] for name in FACTS if name in facts}}


def _stamp(text: str, y: int, x: int) -> str:
    return f"{text} at y={y}, x={x}"
