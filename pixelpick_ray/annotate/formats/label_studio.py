"""Label Studio: one task per image, with one keypoint per point, in percent of the image size.

Answers are in the task's annotation; open questions are a prediction, shown as points with the label for open questions
(`Vocabulary`). Everything else known about a point is in the ``meta`` of its region, so the format is lossless. Both
JSON exports of Label Studio can be read; ``data.image`` may have gained an address and an upload prefix. Label Studio's
own annotators and times are not imported.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from pixelpick_ray.annotate.formats.points import (
    AskedImage,
    Exchanged,
    ExchangedPoint,
    Known,
    Vocabulary,
    centre,
    facts_of,
)
from pixelpick_ray.annotate.formats.problems import Found, Problems, found_at, json_bytes, json_file
from pixelpick_ray.annotate.formats.xml_text import colour_text, xml_bytes
from pixelpick_ray.data.dataset import Colour

_CONTROL, _IMAGE, _TYPE = "label", "image", "keypointlabels"
_HOTKEYS = "1234567890qwertasdfgzxcvb"  # Label Studio's hotkeys for labels
_OTHER_COLOURS: tuple[Colour, ...] = (128, 128, 128), (192, 192, 192), (255, 255, 255)
_PERCENT = (100.0, 100.0)


def label_config(class_names: Sequence[str], palette: Sequence[Colour]) -> str:
    """Return the labelling interface (XML) of a project for these tasks, to paste into its settings.

    The first 25 labels have hotkeys. Raises DataError for a name that XML cannot hold.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=_IMAGE, value="$image", zoom="true")
    labels = ElementTree.SubElement(view, "KeyPointLabels", name=_CONTROL, toName=_IMAGE)
    colours = [*palette[: len(class_names)], *_OTHER_COLOURS]
    rows = zip(Vocabulary(class_names).texts, colours, strict=True)
    for (text, colour), key in itertools.zip_longest(rows, _HOTKEYS[: len(colours)]):
        hotkey = {} if key is None else {"hotkey": str(key)}
        ElementTree.SubElement(labels, "Label", {"value": text, "background": colour_text(colour), **hotkey})
    return xml_bytes(view, "label-studio").decode("utf-8")


def write(exchanged: Exchanged) -> bytes:
    """Write points as tasks, one per image, in the order of the images."""
    known = Known(exchanged.class_names, exchanged.images)
    points: dict[str, list[ExchangedPoint]] = {picture.name: [] for picture in exchanged.images}
    for point in exchanged.points:
        points[point.image].append(point)
    return json_bytes([_task(known.by_name[name], own, known.vocabulary) for name, own in points.items()])


def _task(picture: AskedImage, points: Sequence[ExchangedPoint], vocabulary: Vocabulary) -> dict[str, Any]:
    regions = [(point, _region(number, point, picture, vocabulary)) for number, point in enumerate(points)]
    answers = [region for point, region in regions if point.kind is not None]
    questions = [region for point, region in regions if point.kind is None]
    return {
        "data": {"image": picture.file_name},
        "annotations": [{"result": answers}] if answers else [],
        "predictions": [{"model_version": "open questions", "result": questions}] if questions else [],
    }


def _region(number: int, point: ExchangedPoint, picture: AskedImage, vocabulary: Vocabulary) -> dict[str, Any]:
    place = {"x": centre(point.x, picture.width, 100), "y": centre(point.y, picture.height, 100), "width": 0.5}
    return {
        "id": f"pixel-{number}",
        "from_name": _CONTROL,
        "to_name": _IMAGE,
        "type": _TYPE,
        "original_width": picture.native_width,
        "original_height": picture.native_height,
        "image_rotation": 0,
        "value": place | {_TYPE: [vocabulary.text(point.said)]},
        "meta": facts_of(point, vocabulary),
    }


def read(content: bytes, known: Known, problems: Problems) -> list[Found]:
    """Read the points of a file; predictions count only for unanswered pixels, skipped annotations never."""
    found = list[Found]()
    for where, task in problems.mappings(json_file(content, list, problems) or [], "tasks"):
        at, data = (f"{where}.data", task.get("data")) if "data" in task else (where, task)
        holder = problems.mapping(data, at)
        picture = None if holder is None else problems.picture(holder.get("image"), f"{at}.image", known)
        if picture is not None:
            found += _read_task(where, task, picture, known, problems)
    return found


def _read_task(
    where: str, task: Mapping[str, Any], picture: AskedImage, known: Known, problems: Problems
) -> Iterator[Found]:
    if "data" not in task:
        yield from _read_minimal(where, task, picture, known, problems)
        return
    answered = set()
    for name in ("annotations", "predictions"):
        for at, one in problems.mappings(task.get(name, []), f"{where}.{name}"):
            if one.get("was_cancelled"):
                continue
            for point in _read_regions(one.get("result", []), f"{at}.result", picture, known, problems):
                pixel = point.fields["y"], point.fields["x"]
                if name == "annotations" or pixel not in answered:
                    yield point
                answered.add(pixel)


def _read_regions(value: Any, where: str, picture: AskedImage, known: Known, problems: Problems) -> Iterator[Found]:
    for at, region in problems.mappings(value, where):
        if region.get("type") != _TYPE:
            problems.given(f"{at}.type", region.get("type"), f"{_TYPE!r}: points with a label")
            continue
        place = problems.mapping(region.get("value"), f"{at}.value")
        facts = problems.mapping(region.get("meta", {}), f"{at}.meta")
        if place is not None and facts is not None:
            yield from _read_region(at, place, region, facts, picture, known, problems)


def _read_minimal(
    where: str, task: Mapping[str, Any], picture: AskedImage, known: Known, problems: Problems
) -> Iterator[Found]:
    """Points of a JSON-MIN task, whose regions are under the name of the labels."""
    for at, region in problems.mappings(task.get(_CONTROL, []), f"{where}.{_CONTROL}"):
        yield from _read_region(at, region, region, {}, picture, known, problems)


def _read_region(
    where: str,
    place: Mapping[str, Any],
    region: Mapping[str, Any],
    facts: Mapping[str, Any],
    picture: AskedImage,
    known: Known,
    problems: Problems,
) -> Iterator[Found]:
    problems.size(region.get("original_width", picture.native_width), f"{where}.original_width", picture.native_width)
    problems.size(
        region.get("original_height", picture.native_height), f"{where}.original_height", picture.native_height
    )
    problems.size(region.get("image_rotation", 0), f"{where}.image_rotation", 0)
    words = place.get(_TYPE)
    if not isinstance(words, list) or len(words) != 1:
        problems.given(f"{where}.{_TYPE}", words, "a list of one label")
        return
    said = problems.said(words[0], f"{where}.{_TYPE}", known)
    pixel = problems.pixel((place.get("x"), place.get("y")), where, picture, _PERCENT)
    if said is not None and pixel is not None:
        yield found_at(where, picture, pixel, said, facts, known)
