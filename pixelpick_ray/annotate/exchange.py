"""Exchanging questions and answers with files: our own and those of other tools, by the names in FORMATS.

Each format's module says what it holds. Reading takes over a file as a whole or not at all.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pixelpick_ray.annotate.formats import coco, cvat, jsonl, label_studio, queries
from pixelpick_ray.annotate.formats.label_studio import label_config
from pixelpick_ray.annotate.formats.points import Exchanged, Known, Picture, Point
from pixelpick_ray.annotate.formats.problems import Found, Problems, check_points, checked
from pixelpick_ray.data.answers import Answer
from pixelpick_ray.data.questions import Place, Questions
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.spec.canonical import digest

__all__ = ["FORMATS", "Exchanged", "Picture", "Point", "answers_of", "export", "label_config", "points_of", "read"]
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Format:
    """How a format is written and read, and what its files are called."""

    suffix: str
    write: Callable[[Exchanged], bytes]
    read: Callable[[bytes, Known, Problems], list[Found]]


FORMATS: dict[str, Format] = {
    "jsonl": Format(".jsonl", jsonl.write, jsonl.read),
    "coco": Format(".json", coco.write, coco.read),
    "label-studio": Format(".json", label_studio.write, label_studio.read),
    "cvat": Format(".xml", cvat.write, cvat.read),
    "queries": Format(".pkl", queries.write, queries.read),
}


def export(exchanged: Exchanged, format_name: str) -> bytes:
    """The file of these points. DataError when they contradict each other or the images, SpecError for no format."""
    chosen, problems = _format(format_name), Problems(format_name)
    points = [(f"points[{number}]", point) for number, point in enumerate(exchanged.points)]
    check_points(points, Known(exchanged.class_names, exchanged.images), problems)
    files = Counter(picture.file_name for picture in exchanged.images)
    for name in (name for name, count in files.items() if count > 1):
        problems.add("images", f"{files[name]} have the file name {name!r}; give each its own")
    problems.refuse_any("nothing was exported")
    return chosen.write(exchanged)


def read(
    content: bytes, format_name: str, *, class_names: Sequence[str], images: Sequence[Picture]
) -> tuple[Point, ...]:
    """The points of a file, sorted by image, row and column.

    DataError lists what is wrong with it, and where; SpecError for no format.
    """
    chosen, problems, known = _format(format_name), Problems(format_name), Known(tuple(class_names), tuple(images))
    if len(content) > MAX_BYTES:
        raise DataError(f"{format_name}: the file has {len(content)} bytes, at most {MAX_BYTES} are read; split it")
    points = checked(chosen.read(content, known, problems), known, problems)
    problems.refuse_any("nothing was imported")
    return points


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise SpecError(f"format {name!r}: allowed are {', '.join(FORMATS)}")
    return FORMATS[name]


def points_of(questions: Questions, said: Mapping[Place, Answer], class_names: Sequence[str]) -> tuple[Point, ...]:
    """A point for each question, with the answer that it has, if any.

    DataError when an answer names another class. What the network predicts is left out: other tools would show it.
    """
    places = zip(questions.names_per_pixel().tolist(), questions.y.tolist(), questions.x.tolist(), strict=True)
    points = [
        Point(image=place[0], y=place[1], x=place[2]) if place not in said else _answered(said[place])
        for place in places
    ]
    for point in points:
        if point.label is not None and point.label not in class_names:
            raise DataError(
                f"pixel {point.place} was called {point.label!r}; the data set has {', '.join(class_names)}"
            )
    return tuple(points)


def _answered(answer: Answer) -> Point:
    return Point.model_validate(answer.model_dump())


def answers_of(points: Iterable[Point], *, annotator: str, time: float, known: frozenset[str]) -> tuple[Answer, ...]:
    """The answers among points that are not `known` by their ids, each once.

    A point without annotator or time gets those given; one without id gets the digest of its pixel, answer and
    annotator, so that a file that is imported twice adds nothing the second time.
    """
    found = dict[str, Answer]()
    for point in points:
        if point.kind is not None:
            answer = _answer(point, annotator, time)
            found.setdefault(answer.id, answer)
    return tuple(answer for answer in found.values() if answer.id not in known)


def _answer(point: Point, annotator: str, time: float) -> Answer:
    who = point.annotator or annotator
    own = {"annotator": who, "time": time if point.time is None else point.time}
    content = [*point.place, point.kind, point.label, point.repeat, who]
    return Answer.model_validate({**point.model_dump(), **own, "id": point.id or f"import-{digest(content)[:32]}"})
