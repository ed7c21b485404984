"""Our own format, JSON lines: one point per line with the fields of an answer; open questions have no ``kind``.

Lossless: pixels are those of prepared images, and images and classes are given by name.
"""

import json

from pixelpick_ray.annotate.formats.points import Exchanged, Known
from pixelpick_ray.annotate.formats.problems import Found, Problems, json_of, text_of


def write(exchanged: Exchanged) -> bytes:
    """Write points to a file's bytes."""
    return b"".join(json.dumps(point.as_input()).encode("ascii") + b"\n" for point in exchanged.points)


def read(content: bytes, known: Known, problems: Problems) -> list[Found]:
    """Read the points of a file, skipping empty lines."""
    found = []
    for number, line in enumerate(text_of(content, problems).split("\n"), start=1):
        if line.strip():
            fields = json_of(line, f"line {number}", dict, problems)
            if fields is not None:
                found.append(Found(f"line {number}", fields))
    return found
