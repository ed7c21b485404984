"""Exchange of questions and answers with files in our own and other tools' formats, by the names in FORMATS.

Each format's module documents what it holds. A file is imported as a whole or not at all.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pixelpick_ray.annotate.formats import coco, cvat, jsonl, label_studio, queries
from pixelpick_ray.annotate.formats.label_studio import label_config
from pixelpick_ray.annotate.formats.points import AskedImage, Exchanged, ExchangedPoint, Known
from pixelpick_ray.annotate.formats.problems import Found, Problems, check_points, checked
from pixelpick_ray.config import parts
from pixelpick_ray.config.canonical import digest
from pixelpick_ray.data.answers import Answer, Book
from pixelpick_ray.data.questions import Place, Questions
from pixelpick_ray.errors import DataError, SpecError

__all__ = [
    "FORMATS",
    "AskedImage",
    "Exchanged",
    "ExchangedPoint",
    "answers_of",
    "export",
    "label_config",
    "points_of",
    "read",
]
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Format:
    """File suffix, writer and reader of a format."""

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
    """Write points to a file's bytes. Raises DataError for contradictory points, SpecError for an unknown format."""
    chosen, problems = _format(format_name), Problems(format_name)
    points = [(f"points[{number}]", point) for number, point in enumerate(exchanged.points)]
    check_points(points, Known(exchanged.class_names, exchanged.images), problems)
    files = Counter(picture.file_name for picture in exchanged.images)
    for name in (name for name, count in files.items() if count > 1):
        problems.add("images", f"{files[name]} have the file name {name!r}; give each its own")
    problems.refuse_any("nothing was exported")
    return chosen.write(exchanged)


def read(
    content: bytes,
    format_name: str,
    *,
    class_names: Sequence[str],
    images: Sequence[AskedImage],
    answers: Iterable[Answer] = (),
) -> tuple[ExchangedPoint, ...]:
    """Read the points of a file, sorted by image, row and column; `answers` are the stored ones.

    Raises DataError listing what is wrong and where, including ids that contradict stored answers; SpecError for an
    unknown format.
    """
    chosen, problems = _format(format_name), Problems(format_name)
    known = Known(tuple(class_names), tuple(images), {answer.id: answer for answer in answers})
    if len(content) > MAX_BYTES:
        raise DataError(
            f"{format_name}: the file has {len(content)} bytes, more than the limit of {MAX_BYTES}; split it"
        )
    points = checked(chosen.read(content, known, problems), known, problems)
    problems.refuse_any("nothing was imported")
    return points


def _format(name: str) -> Format:
    if name in FORMATS:
        return FORMATS[name]
    if not parts.is_external("format", name):
        raise SpecError(f"format {name!r}: is unknown; choose one of {', '.join([*FORMATS, *parts.names('format')])}")
    found = parts.load("format", name)
    if not isinstance(found, Format):
        raise SpecError(f"format {name!r}: is {found!r}, not a pixelpick_ray.Format")
    return found


def points_of(
    questions: Questions, said: Mapping[Place, Answer], class_names: Sequence[str]
) -> tuple[ExchangedPoint, ...]:
    """Return a point for each question, with its answer, if any.

    Predictions are left out, because other tools would show them. Raises DataError if an answer has an unknown class.
    """
    places = zip(questions.names_per_pixel().tolist(), questions.y.tolist(), questions.x.tolist(), strict=True)
    points = [
        ExchangedPoint(image=place[0], y=place[1], x=place[2]) if place not in said else _answered(said[place])
        for place in places
    ]
    for point in points:
        if point.label is not None and point.label not in class_names:
            raise DataError(
                f"pixel {point.place} is labelled {point.label!r}, which is not a class of the data set "
                f"({', '.join(class_names)}); correct or remove this answer"
            )
    return tuple(points)


def _answered(answer: Answer) -> ExchangedPoint:
    return ExchangedPoint.model_validate(answer.model_dump())


def answers_of(points: Iterable[ExchangedPoint], book: Book, *, annotator: str, time: float) -> tuple[Answer, ...]:
    """Return the answers among points that are new to a book, with `annotator` and `time` as defaults.

    An answer with an id is new if the book lacks this id. One without is new if its pixel has a different answer or
    none; its id is then the digest of its content and of its time or, without a time, of the answer it replaces. One
    that was taken back is new, with an id of its own, if it would count again. Thus reading a file twice adds nothing
    the second time, and changing one's mind twice gives two answers.
    """
    counting = {(answer.place, answer.repeat): answer for answer in book.answers}
    ids, undone, found = book.ids, book.undone, dict[str, Answer]()
    for point in points:
        if point.kind is None:
            continue
        before = counting.get((point.place, point.repeat))
        answer = _answer(point, before, annotator, time)
        repeats_it = before is not None and before.said == answer.said
        if repeats_it and (point.id is None or answer.id in undone):
            continue
        if answer.id in undone:
            if before is not None and before.time >= answer.time:
                continue
            answer = _renamed(answer, undone)
        if answer.id not in ids:
            found.setdefault(answer.id, answer)
    return tuple(found.values())


def _answer(point: ExchangedPoint, before: Answer | None, annotator: str, now: float) -> Answer:
    """Answer of a point; `before` is the pixel's present answer, if any."""
    who = point.annotator or annotator
    since = before.id if point.time is None and before is not None else point.time
    content = [*point.place, point.kind, point.label, point.repeat, who, since]
    own = {"annotator": who, "time": _time(point, before, now), "id": point.id or _identity(content)}
    return Answer.model_validate({**point.model_dump(), **own})


def _time(point: ExchangedPoint, before: Answer | None, now: float) -> float:
    """When a point was answered; after the answer it replaces, if the file gives no time or the same one."""
    given = now if point.time is None else point.time
    if before is None or (point.time is not None and (point.id is not None or point.time != before.time)):
        return given
    # Another machine's clock may be fast.
    return max(given, math.nextafter(before.time, math.inf))


def _renamed(answer: Answer, undone: Collection[str]) -> Answer:
    """Copy of an answer that was taken back, with the first unused id of a chain that starts at its own."""
    content = [*answer.place, answer.kind, answer.label, answer.repeat, answer.annotator]
    while answer.id in undone:
        answer = answer.model_copy(update={"id": _identity([*content, answer.id])})
    return answer


def _identity(content: Sequence[str | int | float | bool | None]) -> str:
    return f"import-{digest(content)[:32]}"
