"""CVAT for images 1.1: an ``<image>`` element with one ``<points>`` element per point.

Labels are the classes, the answers without a class, and open questions (`Vocabulary`); a CVAT project must define them,
and keeps only the attributes that its labels define. Positions are in native pixels of the image file, with the left
edge at 0. Everything else known about a point is in its attributes, so the format is lossless.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from pixelpick_ray.annotate.formats.points import FACTS, AskedImage, Exchanged, ExchangedPoint, Known, centre, facts_of
from pixelpick_ray.annotate.formats.problems import Found, Problems, found_at, text_of
from pixelpick_ray.annotate.formats.xml_text import XmlError, colour_text, xml_bytes, xml_tree

_TEXTS = ("annotator", "suggestion", "id", "of")  # attributes written as text; the others are JSON
_NO_COLOUR = (128, 128, 128)


def write(exchanged: Exchanged) -> bytes:
    """Write points to a file's bytes, including images without points. Raises DataError for a name XML cannot hold."""
    known = Known(exchanged.class_names, exchanged.images)
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(_below(root, "meta", "task"), "labels")
    for number, text in enumerate(known.vocabulary.texts):
        palette = exchanged.palette if number < len(exchanged.class_names) else ()
        _write_label(labels, text, colour_text(palette[number] if palette else _NO_COLOUR))
    images = {
        picture.name: ElementTree.SubElement(root, "image", _image(number, picture))
        for number, picture in enumerate(exchanged.images)
    }
    for point in exchanged.points:
        _write_point(images[point.image], point, known)
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + xml_bytes(root, "cvat")


def _below(element: ElementTree.Element, *tags: str) -> ElementTree.Element:
    for tag in tags:
        element = ElementTree.SubElement(element, tag)
    return element


def _write_label(labels: ElementTree.Element, text: str, colour: str) -> None:
    label = ElementTree.SubElement(labels, "label")
    for tag, value in (("name", text), ("color", colour), ("type", "points")):
        ElementTree.SubElement(label, tag).text = value
    attributes = ElementTree.SubElement(label, "attributes")
    for name in (*FACTS, "of"):
        attribute = ElementTree.SubElement(attributes, "attribute")
        rows = ("name", name), ("mutable", "False"), ("input_type", "text"), ("default_value", ""), ("values", "")
        for tag, value in rows:
            ElementTree.SubElement(attribute, tag).text = value


def _image(number: int, picture: AskedImage) -> dict[str, str]:
    sizes = {"width": str(picture.native_width), "height": str(picture.native_height)}
    return {"id": str(number), "name": picture.file_name, **sizes}


def _write_point(image: ElementTree.Element, point: ExchangedPoint, known: Known) -> None:
    picture = known.by_name[point.image]
    x = centre(point.x, picture.width, picture.native_width)
    y = centre(point.y, picture.height, picture.native_height)
    place = {"points": f"{x!r},{y!r}", "source": "manual", "occluded": "0", "z_order": "0"}
    element = ElementTree.SubElement(image, "points", {"label": known.vocabulary.text(point.said), **place})
    for name, value in facts_of(point, known.vocabulary).items():
        text = value if name in _TEXTS else json.dumps(value)
        ElementTree.SubElement(element, "attribute", name=name).text = text


def read(content: bytes, known: Known, problems: Problems) -> list[Found]:
    """Read the points of a file; an element with several positions gives as many points with one label."""
    text = text_of(content, problems)
    if problems.found:
        return []
    try:
        root = xml_tree(text.encode("utf-8"))
    except XmlError as error:
        problems.add("the file", str(error))
        return []
    if root.tag != "annotations" or root.findtext("version") != "1.1":
        given = f"<{root.tag[:40]}> of version {root.findtext('version')}"
        problems.add("the file", f"is {given}; expected <annotations> of version 1.1, CVAT for images")
        return []
    return list(_read_root(root, known, problems))


def _read_root(root: ElementTree.Element, known: Known, problems: Problems) -> Iterator[Found]:
    for element in root:
        where = f"<{element.tag[:40]} id={element.get('id', '?')[:40]}>"
        if element.tag == "image":
            yield from _read_image(where, element, known, problems)
        elif element.tag not in ("version", "meta"):
            problems.add(where, "is not supported; only <image> with <points> is")


def _read_image(where: str, image: ElementTree.Element, known: Known, problems: Problems) -> Iterator[Found]:
    picture = problems.picture(image.get("name"), f"{where} name", known)
    if picture is None:
        return
    for name, expected in (("width", picture.native_width), ("height", picture.native_height)):
        problems.size(_number(image.get(name)), f"{where} {name}", expected)
    for number, element in enumerate(image, start=1):
        at = f"{where} <{element.tag[:40]}> {number}"
        if element.tag == "points":
            yield from _read_points(at, element, picture, known, problems)
        else:
            problems.add(at, "is not supported; only <points> is")


def _read_points(
    where: str, element: ElementTree.Element, picture: AskedImage, known: Known, problems: Problems
) -> Iterator[Found]:
    said = problems.said(element.get("label"), f"{where} label", known)
    facts = _read_facts(where, element, problems)
    for place in element.get("points", "").split(";"):
        x, _, y = place.partition(",")
        extents = picture.native_width, picture.native_height
        pixel = problems.pixel((_number(x), _number(y)), f"{where} points", picture, extents)
        if said is not None and pixel is not None:
            yield found_at(where, picture, pixel, said, facts, known)


def _read_facts(where: str, element: ElementTree.Element, problems: Problems) -> Mapping[str, Any]:
    """Attributes that are facts about the point; tools write absent ones as empty."""
    facts = dict[str, Any]()
    for attribute in element.iterfind("attribute"):
        name, text = attribute.get("name", ""), attribute.text or ""
        if name in _TEXTS and text:
            facts[name] = text
        elif name in FACTS and text:
            facts[name] = {"true": True, "false": False}.get(text, _number(text))
    return facts


def _number(text: str | None) -> Any:
    """Number in a text, or the text itself, for a message."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return text
