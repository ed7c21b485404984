"""The one JSON text of a value, its digest, and its text for people."""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces; NaN and infinity are refused with ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def brief(text: str, limit: int = 60) -> str:
    """A text for a label: cut when it is longer than `limit` characters, and then told apart by its digest."""
    return text if len(text) <= limit else f"{text[: limit - 10]}... {digest(text)[:6]}"


def counted(number: float, noun: str) -> str:
    """A number with its noun: "1 trial", "2 trials"."""
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"
