"""Our own format, JSON lines: a point a line with the fields of an answer. Open questions have no ``kind``.

It holds everything of a point: pixels are those of the prepared images, images and classes go by their names.
"""

import json

from pixelpick_ray.annotate.formats.points import Exchanged, Known
from pixelpick_ray.annotate.formats.problems import Found, Problems, json_of, text_of


def write(exchanged: Exchanged) -> bytes:
    """The file of these points."""
    return b"".join(json.dumps(point.as_input()).encode("ascii") + b"\n" for point in exchanged.points)


def read(content: bytes, known: Known, problems: Problems) -> list[Found]:
    """The points of a file; empty lines count for nothing."""
    found = []
    for number, line in enumerate(text_of(content, problems).split("\n"), start=1):
        if line.strip():
            fields = json_of(line, f"line {number}", dict, problems)
            if fields is not None:
                found.append(Found(f"line {number}", fields))
    return found
