"""Annotation settings: shortcut keys, order, hidden repeats. None changes what a label means, so none enters a key."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from pixelpick_ray.config.spec import Fraction, Positive, Spec
from pixelpick_ray.config.yaml_text import read_yaml
from pixelpick_ray.errors import SpecError

KEYS = "abcdefghijklmnopqrstuvwxyz123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # for classes; capitals need Shift
_KEYS_TEXT = "a-z, 1-9 and A-Z"
_COMMANDS = "0.?+- "  # keys with a function on the page


class AnnotateSpec(Spec):
    """How people are shown the pixels to label.

    ``keys`` assigns shortcut keys to classes by name; other classes get a free letter of their names. ``order`` is the
    order of the pixels: ``image``, image by image and always on to the nearest pixel, or ``predicted``, grouped by
    predicted class, which needs ``oracle.suggestions``. ``repeats`` is the fraction of pixels shown again later,
    unmarked, to measure consistency. Pauses longer than ``idle_seconds`` do not count as working time.
    """

    keys: dict[str, Annotated[str, Field(min_length=1, max_length=1)]] = Field(default_factory=dict)
    order: Literal["image", "predicted"] = "image"
    repeats: Fraction = 0.0
    idle_seconds: Positive = 30.0


def class_keys(class_names: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """The shortcut key of every class, in class order: as configured, else the first free letter of its name.

    Initials of words are assigned first, then other letters of the names; a class whose letters are all taken gets the
    first free key. Raises SpecError for too many classes and, with a working proposal, for conflicting or invalid keys.
    """
    if len(class_names) > len(KEYS):
        raise SpecError(
            f"annotate.keys: {len(class_names)} classes, but only {len(KEYS)} keys ({_KEYS_TEXT}); merge "
            "classes in the label maps and in dataset.yaml"
        )
    if unknown := [name for name in wanted if name not in class_names]:
        raise SpecError(
            f"annotate.keys: unknown class {', '.join(map(repr, unknown))}; the data set has {', '.join(class_names)}"
        )
    given = {name: wanted[name] for name in class_names if name in wanted}
    if problems := [*_forbidden(given), *_clashes(given)]:
        keys = _filled(class_names, _first_owners(given))
        raise SpecError(f"annotate.keys: {'; '.join(problems)}; for example, use {_flow_text(keys)}")
    return _filled(class_names, given)


def _filled(class_names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Assign keys to the classes without one, initials before other letters, so that no class takes a better match."""
    found = dict(given)
    for candidates in (_starts, _letters, lambda name: KEYS):
        for name in class_names:
            free = [key for key in candidates(name) if key not in found.values()]
            if name not in found and free:
                found[name] = free[0]
    return {name: found[name] for name in class_names}


def _starts(name: str) -> str:
    """The ASCII initials of the words of a name, in lower case."""
    return "".join(_letters(name[at]) for at in range(len(name)) if at == 0 or not name[at - 1].isalpha())


def _letters(name: str) -> str:
    """The ASCII letters of a name in lower case."""
    return "".join(letter.lower() for letter in name if letter.isascii() and letter.isalpha())


def _forbidden(given: Mapping[str, str]) -> Iterator[str]:
    for name, key in given.items():
        if key not in KEYS:
            why = "is reserved by the page" if key in _COMMANDS else "is not a valid key"
            yield f"{key!r} for {name} {why} (allowed are {_KEYS_TEXT})"


def _clashes(given: Mapping[str, str]) -> Iterator[str]:
    owners: dict[str, list[str]] = {}
    for name, key in given.items():
        owners.setdefault(key, []).append(name)
    for key, names in owners.items():
        if len(names) > 1 and key in KEYS:
            yield f"{', '.join(names[:-1])} and {names[-1]} {'both' if len(names) == 2 else 'all'} have {key!r}"


def _first_owners(given: dict[str, str]) -> dict[str, str]:
    """The valid keys, each kept by the first class that has it."""
    owners = {given[name]: name for name in reversed(given) if given[name] in KEYS}
    return {name: key for key, name in owners.items()}


def _flow_text(keys: Mapping[str, str]) -> str:
    """The keys as a YAML flow mapping."""
    pairs = (f"{_scalar(name)}: {_scalar(key)}" for name, key in keys.items())
    return f"{{{', '.join(pairs)}}}"


def _scalar(text: str) -> str:
    """A YAML scalar for a text, quoted only if necessary."""
    is_plain = re.fullmatch(r"\w[\w -]*", text) is not None and read_yaml(text, text) == text
    return text if is_plain else json.dumps(text, ensure_ascii=False)
