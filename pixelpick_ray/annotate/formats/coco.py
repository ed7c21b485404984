"""COCO keypoints: one annotation with a single keypoint, ``pixel``, per point.

Categories are the classes, the answers without a class, and open questions (`Vocabulary`). A keypoint is at the centre
of its pixel, in native pixels of the image file with the left edge at 0; its box is that pixel. Visibility is 2, or 1
for an open question. Everything else known about a point is in ``attributes``, so the format is lossless.
"""

from collections.abc import Mapping
from typing import Any

from pixelpick_ray.annotate.formats.points import AskedImage, Exchanged, ExchangedPoint, Known, centre, facts_of
from pixelpick_ray.annotate.formats.problems import Found, Problems, found_at, json_bytes, json_file

_OPEN, _ANSWERED = 1, 2  # visibility of a keypoint; 0 would have no position


def write(exchanged: Exchanged) -> bytes:
    """Write points to a file's bytes, including images without points."""
    known = Known(exchanged.class_names, exchanged.images)
    images = {picture.name: number for number, picture in enumerate(exchanged.images, start=1)}
    categories = {text: number for number, text in enumerate(known.vocabulary.texts, start=1)}
    tree = {
        "info": {"description": "Labelled pixels"},
        "images": [_image(number, known.by_name[name]) for name, number in images.items()],
        "categories": [_category(number, text, exchanged.class_names) for text, number in categories.items()],
        "annotations": [
            {
                "id": number,
                "image_id": images[point.image],
                "category_id": categories[known.vocabulary.text(point.said)],
                **_keypoint(point, known.by_name[point.image]),
                "attributes": facts_of(point, known.vocabulary),
            }
            for number, point in enumerate(exchanged.points, start=1)
        ],
    }
    return json_bytes(tree)


def _image(number: int, picture: AskedImage) -> dict[str, Any]:
    sizes = {"width": picture.native_width, "height": picture.native_height}
    return {"id": number, "file_name": picture.file_name, **sizes}


def _category(number: int, text: str, class_names: tuple[str, ...]) -> dict[str, Any]:
    group = "class" if text in class_names else "no class"
    return {"id": number, "name": text, "supercategory": group, "keypoints": ["pixel"], "skeleton": []}


def _keypoint(point: ExchangedPoint, picture: AskedImage) -> dict[str, Any]:
    width, height = picture.native_width / picture.width, picture.native_height / picture.height
    x = centre(point.x, picture.width, picture.native_width)
    y = centre(point.y, picture.height, picture.native_height)
    return {
        "keypoints": [x, y, _OPEN if point.kind is None else _ANSWERED],
        "num_keypoints": 1,
        "segmentation": [],
        "bbox": [point.x * width, point.y * height, width, height],
        "area": width * height,
        "iscrowd": 0,
    }


def read(content: bytes, known: Known, problems: Problems) -> list[Found]:
    """Read the points of a file, with its own ids of images and categories; unknown fields are ignored."""
    tree = json_file(content, dict, problems)
    if tree is None:
        return []
    images = {
        number: _read_image(where, image, known, problems)
        for where, number, image in _numbered(tree.get("images"), "images", problems)
    }
    words = {
        number: (f"{where}.name", category.get("name"))
        for where, number, category in _numbered(tree.get("categories"), "categories", problems)
    }
    found = [
        _read_annotation(where, annotation, images, words, known, problems)
        for where, annotation in problems.mappings(tree.get("annotations"), "annotations")
    ]
    return [one for one in found if one is not None]


def _numbered(value: Any, name: str, problems: Problems) -> list[tuple[str, int, dict[str, Any]]]:
    """Entries of a list with their places and ids."""
    rows, seen = [], dict[int, str]()
    for where, entry in problems.mappings(value, name):
        number = problems.identifier(entry.get("id"), f"{where}.id")
        if number is None:
            continue
        if number in seen:
            problems.add(where, f"has the id {number} of {seen[number]}; ids are unique")
        seen[number] = where
        rows.append((where, number, entry))
    return rows


def _read_image(where: str, image: Mapping[str, Any], known: Known, problems: Problems) -> AskedImage | None:
    picture = problems.picture(image.get("file_name"), f"{where}.file_name", known)
    if picture is not None:
        problems.size(image.get("height"), f"{where}.height", picture.native_height)
        problems.size(image.get("width"), f"{where}.width", picture.native_width)
    return picture


def _read_annotation(
    where: str,
    annotation: Mapping[str, Any],
    images: Mapping[int, AskedImage | None],
    words: Mapping[int, tuple[str, Any]],
    known: Known,
    problems: Problems,
) -> Found | None:
    """Point of an annotation; None, without a new problem, if its image was already rejected."""
    image = problems.identifier(annotation.get("image_id"), f"{where}.image_id")
    category = problems.identifier(annotation.get("category_id"), f"{where}.category_id")
    if image is None or category is None:
        return None
    for number, numbers, name, names in (
        (image, images, "image_id", "images"),
        (category, words, "category_id", "categories"),
    ):
        if number not in numbers:
            problems.given(f"{where}.{name}", number, f"an id of the file's {names}")
            return None
    picture, (word_at, word) = images[image], words[category]
    said = problems.said(word, f"{where}: {word_at}", known)
    facts = problems.mapping(annotation.get("attributes", {}), f"{where}.attributes")
    if picture is None or said is None or facts is None:
        return None
    pixel = _read_keypoint(annotation.get("keypoints"), f"{where}.keypoints", picture, problems)
    return None if pixel is None else found_at(where, picture, pixel, said, facts, known)


def _read_keypoint(value: Any, where: str, picture: AskedImage, problems: Problems) -> tuple[int, int] | None:
    if not isinstance(value, list) or len(value) != 3 or value[2] not in (_OPEN, _ANSWERED):
        problems.given(where, value, "[x, y, visibility] of one keypoint, with visibility 1 or 2")
        return None
    return problems.pixel((value[0], value[1]), where, picture, (picture.native_width, picture.native_height))
