"""Order and repetition of questions: pure functions."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pixelpick_ray.config.canonical import canonical_json, digest
from pixelpick_ray.data.questions import Place


@dataclass(frozen=True)
class Question:
    """A pixel that people are asked about.

    ``height`` and ``width`` are those of the prepared image, ``predicted`` is the network's class, -1 without one. A
    ``repeat`` is about a pixel that already has an answer.
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
        """Identifier, the same in every process, so that a page may switch servers."""
        return question_id(self.book, self.place, self.repeat)

    def again(self) -> "Question":
        """Return the repeat of this question."""
        return replace(self, repeat=True)


def question_id(book: str, place: Place, repeat: bool) -> str:
    """Return the identifier of a question."""
    return digest([book, *place, repeat])[:24]


def nearest_path(points: Sequence[tuple[int, int]]) -> list[int]:
    """Return indices of points (y, x) along a nearest-neighbour walk from the topmost, then leftmost one.

    Ties go to the topmost, then leftmost point.
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
    """Order questions image by image as given, each along a nearest-neighbour path."""
    images: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        images.setdefault((question.book, question.image), []).append(question)
    return [group[at] for group in images.values() for at in nearest_path([(one.y, one.x) for one in group])]


def by_prediction(questions: Iterable[Question]) -> list[Question]:
    """Order questions by predicted class, then by image."""
    classes: dict[int, list[Question]] = {}
    for question in questions:
        classes.setdefault(question.predicted, []).append(question)
    return [question for predicted in sorted(classes) for question in by_image(classes[predicted])]


def is_repeated(book: str, place: Place, share: float) -> bool:
    """Whether to ask about a pixel a second time, decided by a hash, so alike in every process."""
    return _chance(book, place, "repeat") < share


def is_for_the_same(book: str, place: Place) -> bool:
    """Whether only the first annotator is asked about a pixel again, which measures self-agreement."""
    return _chance(book, place, "same") < 0.5


def _chance(book: str, place: Place, purpose: str) -> float:
    """Pseudo-random number in [0, 1) that is fixed for a pixel and purpose."""
    text = canonical_json([book, *place, purpose]).encode("ascii")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
