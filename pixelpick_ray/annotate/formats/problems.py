"""Checks of a file as a whole: all problems are collected, and nothing is imported unless there are none."""

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from pixelpick_ray.annotate.formats.points import AskedImage, ExchangedPoint, KindAndLabel, Known, pixel_at, with_facts
from pixelpick_ray.config.yaml_text import read_json
from pixelpick_ray.data.answers import Answer
from pixelpick_ray.errors import DataError

Container = TypeVar("Container", dict[str, Any], list[Any])
SHOWN = 10
_SHORT = 6  # list entries shown in a message
_LONGEST = 4096  # characters of a path or address
_WRITER = reprlib.Repr()
_WRITER.maxstring = _WRITER.maxother = 80


@dataclass(frozen=True)
class Found:
    """The fields of a point, and its place in the file."""

    where: str
    fields: Mapping[str, Any]


class Problems:
    """Collected problems of a file; checks add to it, and return None if they find one."""

    def __init__(self, format_name: str) -> None:
        """Start without problems."""
        self._format, self._lines, self._count = format_name, list[str](), 0

    @property
    def found(self) -> bool:
        """Whether there are any problems."""
        return self._count > 0

    def add(self, where: str, what: str) -> None:
        """Add a problem."""
        self._count += 1
        if len(self._lines) < SHOWN:
            self._lines.append(f"  {where}: {what}")

    def given(self, where: str, value: Any, allowed: str) -> None:
        """Add a value that is not allowed."""
        if len(self._lines) < SHOWN:
            self.add(where, f"is {shown(value)}; expected {allowed}")
        else:
            self._count += 1

    def refuse_any(self, done: str) -> None:
        """Raise DataError with the first problems, if there are any; `done` says what was not done."""
        if self._count:
            more = f"\n  and {self._count - SHOWN} more" if self._count > SHOWN else ""
            told = "\n".join(self._lines)
            raise DataError(
                f"{self._format}: {done} because of {self._count} problem(s); correct the file\n{told}{more}"
            )

    def mapping(self, value: Any, where: str) -> dict[str, Any] | None:
        """Return the value if it is an object."""
        if isinstance(value, dict):
            return value
        self.given(where, value, "an object")
        return None

    def items(self, value: Any, where: str) -> list[tuple[str, Any]]:
        """Return the entries of a list with their places; none if it is not a list."""
        if isinstance(value, list):
            return [(f"{where}[{number}]", entry) for number, entry in enumerate(value)]
        self.given(where, value, "a list")
        return []

    def mappings(self, value: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
        """Return the entries of a list that are objects, as all should be, with their places."""
        found = [(at, self.mapping(entry, at)) for at, entry in self.items(value, where)]
        return [(at, entry) for at, entry in found if entry is not None]

    def identifier(self, value: Any, where: str) -> int | None:
        """Return the value if it is an integer."""
        if type(value) is int:
            return value
        self.given(where, value, "a whole number")
        return None

    def picture(self, reference: Any, where: str, known: Known) -> AskedImage | None:
        """Return the one image that a name, path or address refers to."""
        text = reference if isinstance(reference, str) and len(reference) <= _LONGEST else ""
        matches = known.matches(text) if text else []
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = " or ".join(shown(picture.name) for picture in matches[:3])
            self.add(where, f"{shown(reference)} is ambiguous: image {names}; use the exact name")
        else:
            self.given(where, reference, known.images_text)
        return None

    def size(self, value: Any, where: str, expected: int) -> None:
        """Check a height or width against the image's."""
        if not isinstance(value, int | float) or isinstance(value, bool) or value != expected:
            self.given(where, value, f"{expected}, the size of the image")

    def pixel(
        self, place: tuple[Any, Any], where: str, picture: AskedImage, extents: tuple[float, float]
    ) -> tuple[int, int] | None:
        """Return the prepared pixel (y, x) at (x, y) of an image with `extents` (width, height) in the file."""
        found = [
            self._position(value, f"{where}: {name}", prepared, extent)
            for value, name, prepared, extent in zip(
                place, ("x", "y"), (picture.width, picture.height), extents, strict=True
            )
        ]
        return None if found[0] is None or found[1] is None else (found[1], found[0])

    def _position(self, value: Any, where: str, prepared: int, extent: float) -> int | None:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= extent:
            return pixel_at(value, prepared, extent)
        self.given(where, value, f"a number in 0..{extent:g}, inside of the image")
        return None

    def said(self, word: Any, where: str, known: Known) -> KindAndLabel | None:
        """Return the meaning of another tool's word."""
        said = known.vocabulary.said(word) if isinstance(word, str) else None
        if said is None:
            self.given(where, word, f"one of {', '.join(known.vocabulary.texts)}")
        return said


def shown(value: Any) -> str:
    """Return a short text of a value that may be huge."""
    if isinstance(value, list | tuple) and not (
        len(value) <= _SHORT and all(isinstance(entry, int | float | str) for entry in value)
    ):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, str | int | float | list | tuple | None):
        return _WRITER.repr(value)
    return f"of type {type(value).__name__}"


def text_of(content: bytes, problems: Problems) -> str:
    """Decode a UTF-8 file; empty if it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.add(f"byte {error.start}", "is not UTF-8; save the file as UTF-8")
        return ""


def json_file(content: bytes, kind: type[Container], problems: Problems) -> Container | None:
    """Parse a JSON file; see `json_of`."""
    text = text_of(content, problems)
    return None if problems.found else json_of(text, "the file", kind, problems)


def json_of(text: str, where: str, kind: type[Container], problems: Problems) -> Container | None:
    """Parse JSON text that must be an object (dict) or a list; NaN and infinity are not allowed."""
    try:
        value = read_json(text)
    except json.JSONDecodeError as error:
        problems.add(where, f"is not JSON (line {error.lineno}, column {error.colno}: {error.msg})")
        return None
    except ValueError as error:  # a constant such as NaN, a number with thousands of digits, or deep nesting
        problems.add(where, f"is JSON that cannot be read ({error!s:.80})")
        return None
    if isinstance(value, kind):
        return value
    problems.given(where, value, "an object" if kind is dict else "a list")
    return None


def json_bytes(value: Any) -> bytes:
    """Write a value as a JSON file, with non-ASCII characters escaped."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode("ascii")


def found_at(
    where: str, picture: AskedImage, pixel: tuple[int, int], said: KindAndLabel, facts: Mapping[str, Any], known: Known
) -> Found:
    """Make a point of another tool's file, at pixel (y, x), with the facts that the tool has kept."""
    fields = {"image": picture.name, "y": pixel[0], "x": pixel[1], "kind": said[0], "label": said[1]}
    return Found(where, with_facts(fields, facts, known.vocabulary))


def checked(found: Iterable[Found], known: Known, problems: Problems) -> tuple[ExchangedPoint, ...]:
    """Return the points sorted by image, row and column, adding what is wrong with them to `problems`."""
    points = [(one.where, point) for one in found if (point := _point(one, problems)) is not None]
    check_points(points, known, problems)
    return tuple(sorted((point for _, point in points), key=_order))


def _point(found: Found, problems: Problems) -> ExchangedPoint | None:
    try:
        return ExchangedPoint.model_validate(dict(found.fields))
    except ValidationError as error:
        for item in error.errors():
            loc = ".".join(map(str, item["loc"]))
            what = f"{shown(item['input'])}: {item['msg']}" if loc else item["msg"]
            problems.add(found.where, f"{loc} {what}".strip())
    return None


def _order(point: ExchangedPoint) -> tuple[Any, ...]:
    return (*point.place, point.repeat, point.time or 0.0, point.id or "", point.annotator or "")


def check_points(points: Sequence[tuple[str, ExchangedPoint]], known: Known, problems: Problems) -> None:
    """Check points, given with their places, one by one and against each other."""
    for where, point in points:
        _check_alone(where, point, known, problems)
    _check_places(points, problems)
    _check_ids(points, known, problems)


def _check_alone(where: str, point: ExchangedPoint, known: Known, problems: Problems) -> None:
    picture = known.by_name.get(point.image)
    if picture is None:
        problems.given(f"{where}: image", point.image, known.images_text)
        return
    for name, value, side in (("y", point.y, picture.height), ("x", point.x, picture.width)):
        if value >= side:
            problems.given(f"{where}: {name}", value, f"0..{side - 1}, inside of {point.image}")
    for name, word in (("label", point.label), ("suggestion", point.suggestion)):
        if word is not None and word not in known.class_names:
            problems.given(f"{where}: {name}", word, f"one of {', '.join(known.class_names)}")


def _check_places(points: Sequence[tuple[str, ExchangedPoint]], problems: Problems) -> None:
    """Find pixels with contradictory answers; repeats may contradict, which is their purpose."""
    first: dict[tuple[str, int, int], tuple[str, ExchangedPoint]] = {}
    for where, point in points:
        if point.kind is None or point.repeat:
            continue
        before, other = first.setdefault(point.place, (where, point))
        if other.said != point.said:
            told, earlier = (one.label or one.kind for one in (point, other))
            problems.add(
                where,
                f"pixel (y={point.y}, x={point.x}) of {point.image} is {told} here but {earlier} in {before}; keep "
                "only one",
            )


def _check_ids(points: Sequence[tuple[str, ExchangedPoint]], known: Known, problems: Problems) -> None:
    first: dict[str, tuple[str, ExchangedPoint]] = {}
    for where, point in points:
        if point.id is None:
            continue
        before, other = first.setdefault(point.id, (where, point))
        stored = known.answers.get(point.id)
        if other != point:
            problems.add(where, f"has the id {point.id!r} of another answer, in {before}; ids are unique")
        elif stored is not None and (differences := _differences(point, stored)):
            problems.add(
                where,
                f"has the id {point.id!r} of a stored answer that differs ({differences}); to change the answer, "
                "remove id and time",
            )


def _differences(point: ExchangedPoint, stored: Answer) -> str:
    """How a point differs from the stored answer with its id; empty if it does not."""
    here, there = point.model_dump(), stored.model_dump()
    told = [name for name, value in here.items() if value is not None or name in ("kind", "label")]
    return ", ".join(
        f"{name} is {shown(here[name])} here and {shown(there[name])} there"
        for name in told
        if here[name] != there[name]
    )
