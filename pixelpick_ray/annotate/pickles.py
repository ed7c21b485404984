"""Safe reading of plain values from pickles: nothing in the file is run, and nothing it names is imported.

A pickle is a program. The interpreter here knows only the instructions that build plain values: numbers, strings,
bytes, lists, tuples and dictionaries, and NumPy arrays and scalars in the few forms that NumPy writes, which it decodes
from their bytes. Anything else is rejected by name.
"""

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Never

import numpy as np
import numpy.typing as npt

from pixelpick_ray.errors import DataError

MAX_STEPS = 5_000_000  # instructions; also values, counting shared ones at every occurrence
MAX_DEPTH = 32  # of nested containers
_MAX_DIMENSIONS = 8
_KEYS = (str, bytes, int, float, type(None))  # no tuples: hashing nested ones may take forever
_PLAIN = (str, bytes, bytearray, int, float, type(None), np.generic)
_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")


class _RefusedError(Exception):
    """The current instruction is not allowed, or is malformed."""


@dataclass(frozen=True)
class _Name:
    """One of the few global names that the interpreter handles itself."""

    dotted: str


@dataclass
class _Type:
    """A NumPy data type, as far as it is known."""

    code: str
    order: str | None = None

    def numpy(self) -> np.dtype[Any]:
        return np.dtype((self.order or "=") + self.code)


@dataclass
class _Array:
    """A NumPy array, possibly not filled yet."""

    value: npt.NDArray[Any] | None = None


def read_pickle(content: bytes) -> Any:
    """Return the plain value of a pickle of any protocol; containers are new, unshared and not recursive.

    Raises DataError, with the byte offset, for code, for anything that is not plain, and for files that are damaged,
    larger than MAX_STEPS or deeper than MAX_DEPTH.
    """
    machine, position = _Machine(len(content)), 0
    try:
        for steps, (opcode, argument, at) in enumerate(pickletools.genops(content)):
            position = at or 0
            if steps >= MAX_STEPS:
                raise _RefusedError(f"has more than {MAX_STEPS} instructions")
            _operation(opcode.name)(machine, argument)
        if position + 1 != len(content):
            raise _RefusedError(f"the pickle ends here, {len(content) - position - 1} bytes follow")
        return _Unfolding().plain(machine.result(), 0)
    except (_RefusedError, ValueError, OverflowError) as error:  # the latter two come from pickletools
        text = str(error) if isinstance(error, _RefusedError) else f"is damaged ({error!s:.100})"
        raise DataError(
            f"byte {position} of the pickle: {text}; nothing in it was run or imported. Supported: dictionaries, "
            "lists, tuples, strings, bytes, numbers, and arrays of numbers"
        ) from error


class _Machine:
    """Stack and memo of a pickle being read."""

    def __init__(self, size: int) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._bytes_left = size  # limit on text decoded to bytes: the file's size

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        self._need(1)
        return self._stack.pop()

    def top(self) -> Any:
        self._need(1)
        return self._stack[-1]

    def _need(self, count: int) -> None:
        if len(self._stack) - (self._marks[-1] if self._marks else 0) < count:
            raise _RefusedError("needs more values than there are")

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def since_mark(self) -> list[Any]:
        """Pop everything since the last mark."""
        if not self._marks:
            raise _RefusedError("needs a mark, but there is none")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def keep(self, place: int | None) -> None:
        """Store the top of the stack in the memo, by default at the next place."""
        self._memo[len(self._memo) if place is None else place] = self.top()

    def recall(self, place: int) -> None:
        if place not in self._memo:
            raise _RefusedError(f"recalls value {place}, which was never kept")
        self.push(self._memo[place])

    def encoded(self, text: str) -> bytes:
        """Decode the bytes that old protocols write as text."""
        self._bytes_left -= len(text)
        if self._bytes_left < 0:
            raise _RefusedError("makes more bytes than it has")
        return text.encode("latin-1")

    def result(self) -> Any:
        if len(self._stack) != 1 or self._marks:
            raise _RefusedError(f"ends with {len(self._stack)} values and {len(self._marks)} open marks, not with one")
        return self._stack[0]


class _Unfolding:
    """Copies the result without the interpreter's own values, counting values and depth."""

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def plain(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise _RefusedError(f"unfolds to more than {MAX_STEPS} values")
        if depth > MAX_DEPTH:
            raise _RefusedError(f"is nested more than {MAX_DEPTH} deep, or holds itself")
        if isinstance(value, dict):
            return {key: self.plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.plain(item, depth + 1) for item in value]
        if isinstance(value, tuple):
            return tuple(self.plain(item, depth + 1) for item in value)
        if isinstance(value, _Array) and value.value is not None:
            return value.value
        if isinstance(value, _PLAIN):
            return value
        raise _RefusedError(f"holds {_said(value)} as a value")


def _said(value: Any) -> str:
    """Short text of a value for a message, which may be huge or recursive."""
    if isinstance(value, _Name):
        return value.dotted
    if isinstance(value, _Array | _Type):
        return "an unfinished array"
    return f"{value[:60]!r}" if isinstance(value, str) else f"a value of type {type(value).__name__}"


# Instructions


def _number(machine: _Machine, argument: Any) -> None:
    if isinstance(argument, int) and not -(2**63) <= argument < 2**64:
        raise _RefusedError("holds a number of more than 64 bits")
    machine.push(argument)


def _append(machine: _Machine, values: list[Any]) -> None:
    target = machine.top()
    if not isinstance(target, list):
        raise _RefusedError(f"appends to {_said(target)}")
    target.extend(values)


def _put_items(machine: _Machine, values: list[Any]) -> None:
    target = machine.top()
    if not isinstance(target, dict) or len(values) % 2:
        raise _RefusedError(f"puts {len(values)} keys and values into {_said(target)}")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, _KEYS):
            raise _RefusedError(f"has {_said(key)} as a key")
        target[key] = value


def _several(machine: _Machine, count: int) -> list[Any]:
    return [machine.pop() for _ in range(count)][::-1]


def _dictionary(machine: _Machine, _: Any) -> None:
    values = machine.since_mark()
    machine.push({})
    _put_items(machine, values)


def _global(machine: _Machine, argument: str) -> None:
    machine.push(_known_name(*argument.split(" ", 1)))


def _stack_global(machine: _Machine, _: Any) -> None:
    module, name = _several(machine, 2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise _RefusedError(f"imports {_said(name)} of {_said(module)}")
    machine.push(_known_name(module, name))


def _known_name(module: str, name: str) -> _Name:
    dotted = f"{module}.{name}".replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
    if dotted not in _CALLS and dotted != _NDARRAY:
        raise _RefusedError(f"calls {module:.60}.{name:.60}: rejected")
    return _Name(dotted)


def _reduce(machine: _Machine, _: Any) -> None:
    name, arguments = _several(machine, 2)
    if not isinstance(name, _Name) or name.dotted not in _CALLS or not isinstance(arguments, tuple):
        raise _RefusedError(f"calls {_said(name)}: rejected")
    machine.push(_CALLS[name.dotted](machine, arguments))


def _build(machine: _Machine, _: Any) -> None:
    state, target = machine.pop(), machine.top()
    if isinstance(target, _Type):
        _set_order(target, state)
    elif isinstance(target, _Array):
        _fill(target, state)
    else:
        raise _RefusedError(f"sets the state of {_said(target)}: rejected")


# NumPy


def _bytes_of_text(machine: _Machine, arguments: tuple[Any, ...]) -> bytes:
    match arguments:
        case (str() as text, "latin1" | "latin-1"):
            return machine.encoded(text)
    _unexpected("_codecs.encode")


def _no_bytes(_: _Machine, arguments: tuple[Any, ...]) -> bytes:
    if arguments:
        _unexpected("bytes")
    return b""


def _empty_array(_: _Machine, arguments: tuple[Any, ...]) -> _Array:
    match arguments:
        case (_Name(dotted="numpy.ndarray"), (0,), b"b"):
            return _Array()
    _unexpected("numpy.core.multiarray._reconstruct")


def _type(_: _Machine, arguments: tuple[Any, ...]) -> _Type:
    match arguments:
        case (str() as code, *_) if len(code) < 8:
            if _NUMBERS.fullmatch(code):
                return _Type(code)
            raise _RefusedError(f"holds an array of type {code!r}; b1, i1 to i8, u1 to u8 and f2 to f8 are read")
    _unexpected("numpy.dtype")


def _scalar(_: _Machine, arguments: tuple[Any, ...]) -> Any:
    match arguments:
        case (_Type() as kind, bytes() as data):
            return _decoded(data, kind, (), "C")[()]
    _unexpected("numpy.core.multiarray.scalar")


def _array_of_buffer(_: _Machine, arguments: tuple[Any, ...]) -> _Array:
    match arguments:
        case (bytes() | bytearray() as data, _Type() as kind, tuple() as shape, "C" | "F" as order):
            return _Array(_decoded(data, kind, shape, order))
    _unexpected("numpy.core.numeric._frombuffer")


def _set_order(target: _Type, state: Any) -> None:
    match state:
        case (3 | 4, "<" | ">" | "|" | "=" as order, None, None, None, *_) if target.order is None:
            target.order = order
        case _:
            _unexpected("the state of numpy.dtype")


def _fill(target: _Array, state: Any) -> None:
    match state:
        case (1, tuple() as shape, _Type() as kind, bool() as fortran, bytes() as data) if target.value is None:
            target.value = _decoded(data, kind, shape, "F" if fortran else "C")
        case _:
            _unexpected("the state of numpy.ndarray")


def _decoded(
    data: bytes | bytearray, kind: _Type, shape: tuple[Any, ...], order: Literal["C", "F"]
) -> npt.NDArray[Any]:
    """Numeric array, as a view of its bytes."""
    if len(shape) > _MAX_DIMENSIONS or not all(type(side) is int and 0 <= side < 2**31 for side in shape):
        raise _RefusedError("holds an array with an invalid shape")
    size = math.prod(shape) * kind.numpy().itemsize
    if size != len(data):
        raise _RefusedError(f"holds an array of {size} bytes by its shape and {len(data)} bytes of data")
    return np.ndarray(shape, kind.numpy(), buffer=data, order=order)


def _unexpected(name: str) -> Never:
    raise _RefusedError(f"calls {name} in a way that NumPy does not: rejected")


_NDARRAY = "numpy.ndarray"
_CALLS: dict[str, Callable[[_Machine, tuple[Any, ...]], Any]] = {
    "_codecs.encode": _bytes_of_text,
    "builtins.bytes": _no_bytes,
    "numpy.dtype": _type,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array_of_buffer,
}
_PUSHED = (
    *("FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_PUSHED, _Machine.push),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _number),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.keep),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.recall),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(_several(machine, 1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(_several(machine, 2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(_several(machine, 3))),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "DICT": _dictionary,
    "APPEND": lambda machine, _: _append(machine, _several(machine, 1)),
    "APPENDS": lambda machine, _: _append(machine, machine.since_mark()),
    "SETITEM": lambda machine, _: _put_items(machine, _several(machine, 2)),
    "SETITEMS": lambda machine, _: _put_items(machine, machine.since_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
}


def _operation(name: str) -> Callable[[_Machine, Any], None]:
    if name not in _OPERATIONS:
        raise _RefusedError(f"has the instruction {name}: rejected")
    return _OPERATIONS[name]
