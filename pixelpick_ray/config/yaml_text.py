"""YAML as people write it: numbers such as 5e-4 are numbers, repeated keys are refused, nothing is executed."""

import codecs
import re
from typing import Any

import yaml

from pixelpick_ray.errors import SpecError


class _Loader(yaml.SafeLoader):
    """YAML with numbers such as 5e-4 as numbers, and repeated keys refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for inner, _ in node.value:
            if inner.tag == "tag:yaml.org,2002:merge":
                continue
            keys.append(self.construct_object(inner, deep=True))
            if keys.count(keys[-1]) > 1:
                message = f"the key {keys[-1]!r} appears twice"
                raise yaml.constructor.ConstructorError(None, None, message, inner.start_mark)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """YAML that `_Loader` reads back: text that looks like 5e-4 is quoted."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def text_of(content: bytes) -> str:
    """The text of a file in UTF-8 or, where it begins with such a mark, UTF-16; UnicodeError for any other."""
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_wide else "utf-8-sig")


def read_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; SpecError says where in it (`where` names it) and what is wrong."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError(f"{where}:{line} is not YAML: {getattr(error, 'problem', error)}") from error


def in_words(problem: Any) -> str:
    """What should be where pydantic found a wrong value, in the words of YAML."""
    words = {
        "string_type": "should be text, in quotes where YAML reads something else",
        "tuple_type": "should be a list, e.g. [1, 2]",
        "dict_type": "should be a mapping, e.g. {name: value}",
        "model_type": "should be a mapping, e.g. {name: value}",
        "string_pattern_mismatch": (
            "should be lower-case letters, digits, '.', '_' and '-', beginning with a letter or digit"
        ),
    }
    if problem["type"] == "too_long":
        return f"has {problem['ctx']['max_length']} values at most"
    return str(words.get(problem["type"], problem["msg"]))


def write_yaml(tree: Any) -> str:
    """The value as YAML that `read_yaml` gives back."""
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120))
