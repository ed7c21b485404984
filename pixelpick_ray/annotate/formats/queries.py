"""The ``queries.pkl`` of the published PixelPick code: a pickled dictionary from image paths to pixels.

An entry has ``height`` and ``width`` of the prepared image, ``x_coords`` and ``y_coords`` (columns and rows of its
pixels) and, once labelled, ``category_id`` (class numbers) and optionally ``category`` (class names). Lists of numbers
are written in reading order. As the published code requires, all entries have labels or none do: the format holds the
pixels with a class or, if there are none, the open questions; it does not hold annotators, times or answers without a
class. Lists, tuples and integer arrays can be read, and images are identified by the ends of their paths; the file's
code is not run (`pickles.py`).
"""

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from pixelpick_ray.annotate.formats.points import AskedImage, Exchanged, ExchangedPoint, Known
from pixelpick_ray.annotate.formats.problems import Found, Problems, shown
from pixelpick_ray.annotate.pickles import read_pickle
from pixelpick_ray.errors import DataError

MAX_POINTS = 5_000_000


def _held(points: tuple[ExchangedPoint, ...]) -> tuple[ExchangedPoint, ...]:
    """Points that the format holds, reduced to the fields that it holds."""
    labelled = [point for point in points if point.kind == "class" and not point.repeat]
    kept = labelled or [point for point in points if point.kind is None]
    unique = {point.place: point for point in kept}
    return tuple(
        ExchangedPoint(image=one.image, y=one.y, x=one.x, kind=one.kind, label=one.label)
        for _, one in sorted(unique.items())
    )


def write(exchanged: Exchanged) -> bytes:
    """Write points to a file's bytes, including images without points."""
    kept = _held(exchanged.points)
    labelled = any(point.kind is not None for point in kept)
    entries: dict[str, dict[str, Any]] = {
        picture.name: {"height": picture.height, "width": picture.width, "x_coords": [], "y_coords": []}
        | ({"category_id": [], "category": []} if labelled else {})
        for picture in exchanged.images
    }
    for point in kept:
        entry = entries[point.image]
        entry["x_coords"].append(point.x)
        entry["y_coords"].append(point.y)
        if point.label is not None:
            entry["category_id"].append(exchanged.class_names.index(point.label))
            entry["category"].append(point.label)
    names = {picture.name: picture.file_name for picture in exchanged.images}
    return pickle.dumps({names[name]: entry for name, entry in sorted(entries.items())}, protocol=4)


def read(content: bytes, known: Known, problems: Problems) -> list[Found]:
    """Read the points of a file."""
    try:
        tree = read_pickle(content)
    except DataError as error:
        problems.add("the file", str(error))
        return []
    if not isinstance(tree, dict):
        problems.given("the file", tree, "a dictionary from paths of images")
        return []
    found = list[Found]()
    for path, entry in tree.items():
        where = f"[{shown(path)}]"
        picture = problems.picture(path, where, known)
        own = problems.mapping(entry, where)
        if picture is not None and own is not None:
            found += _read_entry(where, own, picture, known, problems)
        if len(found) > MAX_POINTS:
            problems.add(where, f"more than {MAX_POINTS} pixels; split the file")
            return []
    return found


def _read_entry(
    where: str, entry: Mapping[Any, Any], picture: AskedImage, known: Known, problems: Problems
) -> list[Found]:
    for name, expected in (("height", picture.height), ("width", picture.width)):
        value = entry.get(name)
        problems.size(value.item() if isinstance(value, np.generic) else value, f"{where}[{name!r}]", expected)
    names = ["x_coords", "y_coords", *(["category_id"] if "category_id" in entry else [])]
    columns = [_whole_numbers(entry.get(name), f"{where}[{name!r}]", picture, problems) for name in names]
    if "category" in entry and "category_id" not in entry:
        problems.add(where, "has 'category' without 'category_id'; add the numbers of the classes")
    xs, ys, *numbers = [column for column in columns if column is not None] if None not in columns else ([], [])
    if len({len(column) for column in (xs, ys, *numbers)}) > 1:
        problems.add(where, f"has {' and '.join(names)} of different lengths")
        return []
    labels = _labels(numbers[0], entry.get("category"), where, known, problems) if numbers else [None] * len(xs)
    return [
        Found(f"{where} pixel {at}", {"image": picture.name, "y": y, "x": x, "label": label, "kind": label and "class"})
        for at, (x, y, label) in enumerate(zip(xs, ys, labels, strict=True))
    ]


def _whole_numbers(value: Any, where: str, picture: AskedImage, problems: Problems) -> list[int] | None:
    """A column of integers, limited to the image's number of pixels, however long an array claims to be."""
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu":
        column = value if len(value) > picture.height * picture.width else value.tolist()
    elif isinstance(value, list | tuple) and all(map(_is_whole, value)):
        column = [int(entry) for entry in value]
    else:
        problems.given(where, value, "a list or an array of whole numbers")
        return None
    if len(column) > picture.height * picture.width:
        pixels = picture.height * picture.width
        problems.add(where, f"has {len(column)} entries, but the image has only {pixels} pixels")
        return None
    return list(column)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _labels(numbers: list[int], names: Any, where: str, known: Known, problems: Problems) -> list[str | None]:
    """Class names of numbers; a different class name in `names` is a contradiction."""
    listed = list(names) if isinstance(names, list | tuple) and len(names) == len(numbers) else [None] * len(numbers)
    labels = list[str | None]()
    for at, (number, name) in enumerate(zip(numbers, listed, strict=True)):
        label = known.class_names[number] if 0 <= number < len(known.class_names) else None
        if label is None:
            allowed = f"0..{len(known.class_names) - 1} ({', '.join(known.class_names)})"
            problems.given(f"{where}['category_id'][{at}]", number, allowed)
        elif name in known.class_names and name != label:
            problems.given(f"{where}['category'][{at}]", name, f"{label!r}, which is category_id {number}")
        labels.append(label)
    return labels
