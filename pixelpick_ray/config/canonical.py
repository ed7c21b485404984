"""Canonical JSON and its digest; short texts for display."""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, the same for equal values; ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value: 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def brief(text: str, limit: int = 60) -> str:
    """A text for a label: one longer than `limit` characters is cut and ends in digits of its digest."""
    return text if len(text) <= limit else f"{text[: limit - 10]}... {digest(text)[:6]}"


def counted(number: float, noun: str) -> str:
    """A number with its noun, in the plural if needed: "1 trial", "2 trials"."""
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"
