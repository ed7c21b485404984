"""Writing XML for other tools, and reading untrusted XML."""

import re
from xml.etree import ElementTree
from xml.parsers import expat

from pixelpick_ray.data.dataset import Colour
from pixelpick_ray.errors import DataError

MAX_DEPTH = 32
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class XmlError(Exception):
    """The reason why a file is not accepted as XML."""


def xml_bytes(root: ElementTree.Element, format_name: str) -> bytes:
    """Write a tree as UTF-8. Raises DataError if a name has a character that XML cannot hold."""
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    found = _NO_XML.search(text)
    if found:
        around = text[max(0, found.start() - 20) : found.end() + 20]
        raise DataError(
            f"{format_name}: XML cannot hold the character {found[0]!a} in {around!a}; choose another format"
        )
    return (text + "\n").encode("utf-8")


def xml_tree(content: bytes) -> ElementTree.Element:
    """Parse UTF-8 XML. Raises XmlError if it is damaged or has a document type, which could declare entities."""
    builder, depth = ElementTree.TreeBuilder(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise XmlError(f"is nested more than {MAX_DEPTH} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse_type
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError) as error:
        raise XmlError(f"is not XML ({error})") from error
    return builder.close()


def _refuse_type(name: str, *_: object) -> None:
    raise XmlError(f"declares a document type, <!DOCTYPE {name[:40]} ...>, which could name other files; remove it")


def colour_text(colour: Colour) -> str:
    """Format a colour as #rrggbb."""
    return "#" + "".join(f"{value:02x}" for value in colour)
