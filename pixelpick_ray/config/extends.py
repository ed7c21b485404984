"""Experiment files that extend others: ``extends: ../base/camvid.yaml``, then the differences.

Mappings are merged key by key; lists and scalars are replaced, and so is a mapping with a different ``name``, such as
another optimiser. The merged result is validated, stored and submitted, so keys do not depend on the split into files.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pixelpick_ray.config.yaml_text import line_of, read_text, read_yaml, write_yaml
from pixelpick_ray.errors import SpecError

EXTENDS = "extends"
SAME = ({"head", "architecture"},)  # synonymous keys: the extending file's replaces both


@dataclass(frozen=True)
class Merged:
    """The merged value of an experiment file, and the base file that each inherited value came from, by dotted path."""

    tree: Any
    origins: dict[str, str] = field(default_factory=dict)

    def origin_of(self, path: str, otherwise: str) -> str:
        """The base file that the value at a dotted path came from, else `otherwise`."""
        path = path.partition("[")[0]
        return next((file for said, file in self.origins.items() if _is_inside(path, said)), otherwise)

    def but_for(self, paths: Iterable[str]) -> "Merged":
        """The same without the origins of values at or below these paths, which were overridden."""
        said = {path: file for path, file in self.origins.items() if not any(_is_inside(path, one) for one in paths)}
        return Merged(self.tree, said)


def merged(text: str, where: str, folder: Path | None) -> Merged:
    """Parse an experiment file and merge in its bases, whose paths are relative to `folder`.

    `where` names the file in messages. SpecError gives file and line of a missing, absolute or circular base.
    """
    return _merged(text, where, folder, ())


def whole_text(path: Path) -> str:
    """The text of an experiment file with everything it extends merged in; its own text if it extends nothing."""
    text = read_text(path)
    tree = read_yaml(text, path.name)
    if not isinstance(tree, dict) or EXTENDS not in tree:
        return text
    return write_yaml(merged(text, path.name, path.parent).tree)


def _merged(text: str, where: str, folder: Path | None, extending: tuple[Path, ...]) -> Merged:
    tree = read_yaml(text, where)
    if not isinstance(tree, dict) or EXTENDS not in tree:
        return Merged(tree)
    given = tree.pop(EXTENDS)
    at = f"{where} line {line_of(text, EXTENDS)}: {EXTENDS}"
    if not isinstance(given, str):
        raise SpecError(f"{at}: should be the path of an experiment file, e.g. base/camvid.yaml; got {given!r}")
    if folder is None:
        raise SpecError(
            f"{at}: {given} is relative to the experiment file, but this text did not come from one; save it to a file"
        )
    if PurePosixPath(given).is_absolute():
        raise SpecError(f"{at}: {given} is absolute; give a path relative to the experiment file")
    path = folder / given
    if path.resolve() in extending:
        raise SpecError(f"{at}: {given} extends this file in turn; remove extends from one of the two")
    try:
        base_text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{at}: {given} cannot be read ({error}); give the path of an experiment file") from error
    base = _merged(base_text, given, path.parent, (*extending, path.resolve()))
    if not isinstance(base.tree, dict):
        raise SpecError(f"{at}: {given} is not a mapping; give the path of an experiment file")
    origins = dict.fromkeys(_leaves(base.tree), given) | base.origins
    whole = _with(base.tree, tree)
    own = set(_leaves(tree))
    return Merged(whole, {said: file for said, file in origins.items() if said not in own and _has(whole, said)})


def _with(base: dict[Any, Any], own: dict[Any, Any], *, is_part: bool = False) -> dict[Any, Any]:
    """The base updated with a file's own values."""
    if is_part and "name" in own and own["name"] != base.get("name"):
        return own
    stays = dict(base)
    for same in SAME:
        if same & own.keys():
            stays = {key: value for key, value in stays.items() if key not in same or key in own}
    for key, value in own.items():
        inner = stays.get(key)
        if isinstance(value, dict) and isinstance(inner, dict):
            value = _with(inner, value, is_part=True)
        stays[key] = value
    return stays


def _leaves(tree: dict[Any, Any], prefix: str = "") -> list[str]:
    """The dotted paths of all values that are not non-empty mappings."""
    found = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        found += _leaves(value, f"{path}.") if isinstance(value, dict) and value else [path]
    return found


def _is_inside(path: str, other: str) -> bool:
    return f"{path}.".startswith(f"{other}.")


def _has(tree: Any, path: str) -> bool:
    for key in path.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True
