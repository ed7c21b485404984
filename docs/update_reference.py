"""Write the generated parts of docs/reference: experiment files and ``dataset.yaml`` from their models, commands from
the command line itself. ``make docs``; a test compares.
"""

import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pixelpick_ray.cli import app  # noqa: E402
from pixelpick_ray.config.experiment import Experiment  # noqa: E402
from pixelpick_ray.config.spec import Spec  # noqa: E402
from pixelpick_ray.data.folder_description import FolderDescription  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
WORDS = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Any": "any value"}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def fields(root: type[Spec], heading: str) -> str:
    """A section for a model, and for each that it is made of: its docstring and a table of its fields."""
    parts, seen = [], set[type[Spec]]()
    waiting = [(root, heading)]
    while waiting:
        model, place = waiting.pop(0)
        if model in seen:
            continue
        seen.add(model)
        parts.append(_section(model, place, level=2 if model is root else 3))
        inner = [
            (found, f"`{_path(place, name, model is root)}{_variant(found, field.annotation)}`")
            for name, field in _shown(model).items()
            for found in _models_in(field.annotation)
        ]
        waiting = inner + waiting
    return "\n".join(parts)


def _path(place: str, name: str, is_root: bool) -> str:
    return name if is_root else f"{place.strip('`').partition(':')[0]}.{name}"


def _variant(model: type[Spec], annotation: Any) -> str:
    """Which of several kinds a field may be: `: adam`."""
    name = model.model_fields.get("name")
    if len(list(_models_in(annotation))) < 2 or name is None:
        return ""
    return (
        f": {', '.join(get_args(name.annotation))}" if get_origin(name.annotation) is Literal else ": an external one"
    )


def _shown(model: type[Spec]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _section(model: type[Spec], heading: str, *, level: int) -> str:
    text = inspect.cleandoc(model.__doc__ or "").replace("``", "`")
    lines = [f"{'#' * level} {heading}", "", text, "", "| field | value | default |", "| --- | --- | --- |"]
    for name, field in _shown(model).items():
        lines.append(f"| `{name}` | {_type(field.annotation, field.metadata)} | {_default(field)} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "none" if field.default_factory is dict else "depends on the head"
    value = field.default
    if isinstance(value, Spec):
        value = value.model_dump(mode="json", exclude_none=True)
    return "–" if value is None else f"`{_yaml(value)}`" if value != "" else "none"


def _yaml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return f"{{{', '.join(f'{key}: {_yaml(inner)}' for key, inner in value.items())}}}"
        case list() | tuple():
            return f"[{', '.join(map(_yaml, value))}]"
        case _:
            return f"{value:g}" if isinstance(value, float) else str(value)


def _type(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """An annotation as somebody who writes YAML would say it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0], inner[1:])
    if origin in (Union, types.UnionType):
        said = dict.fromkeys(_type(one) for one in inner if one is not type(None))
        return " or ".join(said)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return f"list of {_type(inner[0])}"
        return f"[{', '.join(_type(one) for one in inner)}]"
    if origin is dict:
        return f"mapping of {_type(inner[0])} to {_type(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return "mapping, see below"
    word = WORDS.get(getattr(annotation, "__name__", "Any"), "any value")
    bounds = [
        f"{sign} {getattr(limit, name):g}"
        for limit in _limits(metadata)
        for name, sign in BOUNDS.items()
        if isinstance(getattr(limit, name, None), int | float)
    ]
    return " ".join([word, *([", ".join(bounds)] if bounds else [])])


def _limits(metadata: list[Any] | tuple[Any, ...]) -> Iterator[Any]:
    for one in metadata:
        yield from one.metadata if isinstance(one, FieldInfo) else [one]


def _models_in(annotation: Any) -> Iterator[type[Spec]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def commands() -> str:
    """A section for each command: what it does, its arguments and options."""
    sections = []
    group: Any = get_command(app)
    for name, command in group.commands.items():
        usage = " ".join([name, *(one.metavar for one in command.params if one.param_type_name == "argument")])
        sections.append(f"## {name}\n\n`python launch.py {usage}`\n\n{inspect.cleandoc(command.help)}\n")
        rows = [_option(one) for one in command.params]
        sections.append("\n".join(["| option | meaning | default |", "| --- | --- | --- |", *rows]) + "\n")
    return "\n".join(sections)


def _option(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"| `{parameter.metavar}` | {parameter.help} | required |"
    value = "" if parameter.is_flag else f" {parameter.metavar}"
    shown = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    default = "required" if parameter.required else "–" if shown in (None, False, [], ()) else str(shown)
    variable = f" Also `{parameter.envvar}`." if parameter.envvar else ""
    return f"| `{parameter.opts[0]}{value}` | {parameter.help}{variable} | {default} |"


def pages() -> dict[Path, str]:
    """The pages with generated parts, as they should be."""
    generated = {
        "experiment.md": fields(Experiment, "Fields"),
        "dataset.md": fields(FolderDescription, "Fields"),
        "commands.md": commands(),
    }
    return {REFERENCE / name: _between((REFERENCE / name).read_text("utf-8"), text) for name, text in generated.items()}


def _between(page: str, text: str) -> str:
    markers = re.compile(r"(<!-- generated -->\n).*(<!-- /generated -->)", re.DOTALL)
    if not markers.search(page):
        raise ValueError("no markers for what is generated")
    return markers.sub(lambda match: f"{match[1]}\n{text}\n{match[2]}", page)


if __name__ == "__main__":
    for path, page in pages().items():
        path.write_text(page, encoding="utf-8")
