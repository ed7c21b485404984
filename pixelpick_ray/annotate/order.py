"""In which order questions are asked, and which of them twice: pure functions."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pixelpick_ray.config.canonical import canonical_json, digest
from pixelpick_ray.data.questions import Place


@dataclass(frozen=True)
class Question:
    """A pixel that somebody is asked about.

    ``height`` and ``width`` are those of the prepared image, ``predicted`` the class that the network would say, -1
    where none was asked. A ``repeat`` has its answer already.
    """

    book: str
    image: str
    y: int
    x: int
    height: int
    width: int
    predicted: int
    repeat: bool = False

    @property
    def place(self) -> Place:
        """The pixel."""
        return self.image, self.y, self.x

    @cached_property
    def id(self) -> str:
        """Its name: the same in every process, so that a page may go on with another one."""
        return question_id(self.book, self.place, self.repeat)

    def again(self) -> "Question":
        """The question that repeats this one."""
        return replace(self, repeat=True)


def question_id(book: str, place: Place, repeat: bool) -> str:
    """The name of a question."""
    return digest([book, *place, repeat])[:24]


def nearest_path(points: Sequence[tuple[int, int]]) -> list[int]:
    """Indices of points (y, x) in the order of a walk that begins at the topmost, then leftmost one and goes on to the
    nearest one each time, the topmost and leftmost of equals.
    """
    if not points:
        return []
    places = np.asarray(points, dtype=np.int64)
    rest = np.lexsort((places[:, 1], places[:, 0]))
    walk = [int(rest[0])]
    rest = rest[1:]
    while len(rest):
        distance = ((places[rest] - places[walk[-1]]) ** 2).sum(axis=1)
        nearest = int(np.argmin(distance))
        walk.append(int(rest[nearest]))
        rest = np.delete(rest, nearest)
    return walk


def by_image(questions: Iterable[Question]) -> list[Question]:
    """Image after image in the given order, each along a path to the nearest pixel."""
    images: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        images.setdefault((question.book, question.image), []).append(question)
    return [group[at] for group in images.values() for at in nearest_path([(one.y, one.x) for one in group])]


def by_prediction(questions: Iterable[Question]) -> list[Question]:
    """Those of one predicted class together, and these by image."""
    classes: dict[int, list[Question]] = {}
    for question in questions:
        classes.setdefault(question.predicted, []).append(question)
    return [question for predicted in sorted(classes) for question in by_image(classes[predicted])]


def is_repeated(book: str, place: Place, share: float) -> bool:
    """Whether a pixel is asked a second time: a hash decides, so every process decides alike."""
    return _chance(book, place, "repeat") < share


def is_for_the_same(book: str, place: Place) -> bool:
    """Whether a pixel is repeated only to who answered it first: repeats measure people against themselves, too."""
    return _chance(book, place, "same") < 0.5


def _chance(book: str, place: Place, purpose: str) -> float:
    """A number in 0..1 that a pixel always has."""
    text = canonical_json([book, *place, purpose]).encode("ascii")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
