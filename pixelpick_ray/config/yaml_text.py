"""Reading text, YAML and JSON from untrusted sources, within limits on size, depth and aliases.

Numbers such as 5e-4 are parsed as numbers in YAML, repeated keys are rejected, and nothing is executed.
"""

import codecs
import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from pixelpick_ray.errors import SpecError

MAX_BYTES = 2**30  # of a file
MAX_YAML = 2**20  # characters; a pure Python parser takes seconds for this many
MAX_DEPTH = 50  # of nesting
MAX_VALUES = 100_000  # in a YAML text, with aliases expanded
MAX_DIGITS = 100  # characters in a number
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """YAML loader that parses 5e-4 as a number, and rejects repeated keys and too much nesting or repetition."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._sizes: dict[int, tuple[int, int]] = {}  # values and depth of a node, aliases resolved

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._level += 1
        if self._level > MAX_DEPTH:
            self._refuse(f"it is nested more than {MAX_DEPTH} deep", self.peek_event())  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is not None and id(node) not in self._sizes:
            self._sizes[id(node)] = self._size(node)
        return node

    def _size(self, node: yaml.Node) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            if node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
                self._refuse(f"a number has {len(node.value)} characters; if it is text, put it in quotes", node)
            return 1, 1
        inner = [one for value in node.value for one in (value if isinstance(value, tuple) else (value,))]
        sizes = [self._sizes.get(id(one), (1, 1)) for one in inner]
        values, depth = 1 + sum(size for size, _ in sizes), 1 + max((deep for _, deep in sizes), default=0)
        if values > MAX_VALUES:
            self._refuse(f"it has more than {MAX_VALUES} values, including those repeated by aliases (*)", node)
        if depth > MAX_DEPTH:
            self._refuse(f"it is nested more than {MAX_DEPTH} deep, aliases (*) included", node)
        return values, depth

    def _refuse(self, what: str, at: Any) -> None:
        raise yaml.constructor.ConstructorError(None, None, what, at.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for inner, _ in node.value:
            if inner.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(inner, deep=True)
            if isinstance(key, list | dict | set):
                continue  # rejected below as unhashable
            if key in keys:
                self._refuse(f"the key {key!r} appears twice", inner)
            keys.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """YAML dumper matching `_Loader`: quotes text that looks like 5e-4."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def file_bytes(path: Path) -> bytes:
    """Read a regular file, or a pipe opened by a shell under /dev/fd.

    Raises OSError for folders, devices and other pipes, which could block, and for more than MAX_BYTES.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if _is_of_the_shell(path) else os.O_NONBLOCK))
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or _is_of_the_shell(path)):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError("it is a pipe or a device, not a file")
    with open(descriptor, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(f"it is larger than {MAX_BYTES} bytes")
    return content


def _is_of_the_shell(path: Path) -> bool:
    return str(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/"))


def read_text(path: Path) -> str:
    """Read a text file in UTF-8 or, if it has a byte order mark for it, UTF-16.

    Raises UnicodeError for other encodings and OSError as `file_bytes` does.
    """
    content = file_bytes(path)
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_wide else "utf-8-sig")


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML; SpecError gives the line, column and problem, with `where` as the name of the text."""
    if len(text) > MAX_YAML:
        raise SpecError(f"{where}: has {len(text)} characters, but YAML is limited to {MAX_YAML}; shorten it")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError(f"{where}:{line} is not valid YAML: {getattr(error, 'problem', error)}") from error
    except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError) as error:
        # From constructors: an invalid date, a tag that does not fit its value.
        raise SpecError(f"{where}: has a value that cannot be read ({error!s:.80}); put text in quotes") from error


def line_of(text: str, key: str) -> int:
    """The 1-based line of a key of the top-level mapping in valid YAML; 1 if it is absent."""
    root = yaml.compose(text, Loader=_Loader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return next((inner.start_mark.line + 1 for inner, _ in pairs if inner.value == key), 1)


def read_json(text: str | bytes) -> Any:
    """Parse JSON strictly.

    Raises ValueError for invalid JSON, NaN, infinity, numbers of thousands of digits, and more than MAX_DEPTH levels.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, list | dict)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return value
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def in_words(problem: Any) -> str:
    """The expected value at a pydantic error, in YAML's terms."""
    words = {
        "string_type": "should be text (quote it if YAML reads it as something else)",
        "tuple_type": "should be a list, e.g. [1, 2]",
        "dict_type": "should be a mapping, e.g. {name: value}",
        "model_type": "should be a mapping, e.g. {name: value}",
        "string_pattern_mismatch": (
            "should be lower-case letters, digits, '.', '_' and '-', beginning with a letter or digit"
        ),
    }
    if problem["type"] == "too_long":
        return f"must have at most {problem['ctx']['max_length']} values"
    return str(words.get(problem["type"], problem["msg"]))


def write_yaml(tree: Any) -> str:
    """The value as YAML that `read_yaml` reads back equal."""
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120))
