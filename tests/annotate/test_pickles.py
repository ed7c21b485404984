"""Pickles without running them: what Python and NumPy write is read, whatever else a file asks for is refused."""

import contextlib
import copyreg
import os
import pathlib
import pickle
import pickletools
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from pixelpick_ray.annotate import pickles
from pixelpick_ray.annotate.pickles import read_pickle
from pixelpick_ray.errors import DataError
from tests.support.experiments import WRONG

pytestmark = pytest.mark.long

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=300)
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.tuples(inner, inner) | st.dictionaries(SCALARS, inner, max_size=5),
    max_leaves=20,
)
NUMBERS = st_numpy.boolean_dtypes() | st_numpy.integer_dtypes(endianness="?") | st_numpy.floating_dtypes(endianness="?")
NUMBERS = NUMBERS.filter(lambda kind: kind.itemsize <= 8)
ARRAYS = st_numpy.arrays(NUMBERS, st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


def of_old(content: bytes) -> bytes:
    """The pickle as NumPy 1 writes it, whose modules have other names: one byte shorter each."""
    for name in (b"numpy._core.multiarray", b"numpy._core.numeric"):
        old = name.replace(b"_core", b"core")
        content = content.replace(bytes([len(name)]) + name, bytes([len(old)]) + old).replace(b"c" + name, b"c" + old)
    return content


def same(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    return found.shape == expected.shape and found.dtype == expected.dtype and found.tobytes() == expected.tobytes()


@settings(max_examples=100)
@given(PLAIN, st.sampled_from(PROTOCOLS))
def test_plain_values_of_every_protocol_come_back(value: Any, protocol: int) -> None:
    found = read_pickle(pickle.dumps(value, protocol))
    assert found == value
    assert repr(found) == repr(value)


@settings(max_examples=100)
@given(ARRAYS, st.sampled_from(PROTOCOLS), st.sampled_from(["as it is", "as Fortran has it", "every other"]))
def test_arrays_of_every_protocol_come_back(value: np.ndarray[Any, Any], protocol: int, layout: str) -> None:
    if layout == "as Fortran has it":
        value = np.asfortranarray(value)
    elif value.ndim and layout == "every other":
        value = value[::2]
    content = pickle.dumps(value, protocol)
    assert same(read_pickle(content), value)
    assert same(read_pickle(of_old(content)), value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numbers_of_numpy_and_files_as_the_published_code_writes_them_come_back(protocol: int) -> None:
    for kind in ("?", "i1", "u1", "<i2", ">i4", "i8", "u8", "f2", "f4", ">f8"):
        value = np.array([1], dtype=kind)[0]
        for content in (pickle.dumps(value, protocol), of_old(pickle.dumps(value, protocol))):
            found = read_pickle(content)
            assert (type(found), found) == (type(value), value)
    old = of_old(pickle.dumps([np.arange(3), np.float32(1)], protocol))
    assert (b"numpy._core" in old, b"numpy.core.multiarray" in old) == (False, True)
    ys, xs = np.nonzero(np.eye(4, 5, dtype=bool))
    entry = {"height": 4, "width": np.int64(5), "x_coords": xs, "y_coords": ys, "category_id": [0, 1, 2, 0]}
    found = read_pickle(pickle.dumps({"/data/train/a b.png": entry, "/data/train/ä.png": entry}, protocol))
    assert list(found) == ["/data/train/a b.png", "/data/train/ä.png"]
    for one in found.values():
        assert same(one.pop("x_coords"), xs)
        assert same(one.pop("y_coords"), ys)
        assert one == {"height": 4, "width": 5, "category_id": [0, 1, 2, 0]}


def test_optimised_and_framed_pickles_come_back_and_what_is_shared_becomes_values_of_their_own() -> None:
    value = [{"a": list(range(2000)), "b": "x" * 70_000}] * 3
    for content in (pickle.dumps(value, 4), pickletools.optimize(pickle.dumps(value, 4)), pickle._dumps(value, 2)):
        found = read_pickle(content)
        assert found == value
        assert found[0] is not found[1]


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def refusal(content: bytes) -> str:
    with pytest.raises(DataError) as told:
        read_pickle(content)
    assert "nothing in it was run" in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_code_is_refused_by_its_name_and_not_run(tmp_path: Path, protocol: int) -> None:
    sentinel = tmp_path / "sentinel"
    content = pickle.dumps({"a": [Calls(os.system, f"touch {sentinel}")]}, protocol)
    assert f"calls {os.system.__module__}.system: rejected" in refusal(content)
    assert not sentinel.exists()
    pickle.loads(content)
    assert sentinel.exists()  # it would have run


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Calls(eval, "1"), ".eval: rejected"),
        (Calls(np.load, "x", None, True), "calls numpy.load: rejected"),
        (Calls(np.dtype, [("a", "i4")]), "calls numpy.dtype in a way that NumPy does not"),
        (Calls(bytes, 10**12), "calls bytes in a way that NumPy does not"),
        (Calls(copyreg._reconstructor, object, object, None), "calls copy"),
        (np.array([{}], dtype=object), "holds an array of type 'O8'; b1, i1 to i8"),
        (np.zeros(1, dtype=[("a", "i4")]), "holds an array of type 'V4'"),
        (np.dtype("i4"), "holds an unfinished array as a value"),
        (np.ndarray, "holds numpy.ndarray as a value"),
        (pathlib.PurePosixPath("/a"), "PurePosixPath: rejected"),
        ({(1, 2): 3}, "has a value of type tuple as a key"),
        (2**64, "holds a number of more than 64 bits"),
        (-(2**90), "holds a number of more than 64 bits"),
    ],
)
def test_what_is_not_plain_is_refused(protocol: int, value: Any, told: str) -> None:
    assert told in refusal(pickle.dumps(value, protocol))


TYPE, TYPE_STATE = b"cnumpy\ndtype\n(Vu1\nI00\nI01\ntR", b"(I3\nV|\nNNNI-1\nI-1\nI0\ntb"
ARRAY = b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR"
ARRAY_STATE = b"(I1\n(I2\nt" + TYPE + TYPE_STATE + b"I00\nC\x02\x07\x08tb"


def test_arrays_are_as_large_as_their_bytes() -> None:
    assert same(read_pickle(ARRAY + ARRAY_STATE + b"."), np.array([7, 8], dtype="u1"))  # the parts of programs above
    content = pickle.dumps(np.arange(3, dtype="u1"), 2)
    wrong = content.replace(b"K\x03\x85", b"J\xfe\xff\xff\x7f\x85", 1)
    assert "holds an array of 2147483646 bytes by its shape and 3 bytes of data" in refusal(wrong)
    assert "with an invalid shape" in refusal(content.replace(b"K\x03\x85", b"J\xff\xff\xff\xff\x85", 1))


PROGRAMS = [(case["content"].encode("latin-1"), case["told"]) for case in WRONG["pickles"]]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        *PROGRAMS,
        (TYPE + TYPE_STATE * 2 + b".", "calls the state of numpy.dtype in a way that NumPy does not: rejected"),
        (ARRAY + ARRAY_STATE * 2 + b".", "calls the state of numpy.ndarray in a way that NumPy does not: rejected"),
        (pickle.dumps([1, "a"])[:-1], "is damaged"),
        (b"I" + b"9" * 5000 + b"\n.", "is damaged"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "is damaged"),
    ],
)
def test_hostile_programs_are_refused(content: bytes, told: str) -> None:
    assert told in refusal(content)


def bomb(levels: int) -> bytes:
    """Pairs of the one before with itself: 2 ** levels values in five bytes a level."""
    return b"\x80\x02]q\x00" + b"".join(b"h%c\x86q%c" % (at, at + 1) for at in range(levels)) + b"."


def test_memo_bombs_values_in_themselves_and_deep_nesting_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    monkeypatch.setattr(pickles, "MAX_STEPS", 100_000)
    assert "unfolds to more than 100000 values" in refusal(bomb(30))
    assert "nested more than 32 deep" in refusal(bomb(200))
    assert "has a value of type tuple as a key" in refusal(bomb(100)[:-1] + b"q\xff}h\xffK\x01s.")
    assert "has more than 100000 instructions" in refusal(b"\x80\x02]" + b"q\x00" * 100_001 + b".")
    own: list[Any] = []
    own.append(own)
    for protocol in PROTOCOLS:
        assert "nested more than 32 deep, or holds itself" in refusal(pickle.dumps(own, protocol))
    assert "nested more than 32 deep" in refusal(b"()" + b"\x85" * 40_000 + b"l.")
    assert time.monotonic() - started < 30


def test_memory_stays_bounded_whatever_a_file_pretends() -> None:
    """Texts become no more bytes than a file has, however often; a place far away needs no list up to there."""
    text = b"X" + struct.pack("<I", 2**20) + b"x" * 2**20 + b"q\x00"
    call = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    assert read_pickle(b"\x80\x02(" + text + call + b"t.")[1] == b"x" * 2**20
    tracemalloc.start()
    assert "makes more bytes than it has" in refusal(b"\x80\x02(" + text + call * 3000 + b"t.")
    assert "which was never kept" in refusal(b"\x80\x04]r\xff\xff\xff\xffh\x00.")
    assert "ends with 0 values and 1000000 open marks" in refusal(b"(" * 10**6 + b".")
    assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    tracemalloc.stop()


VALUE = {"a.png": {"height": 3, "x_coords": np.arange(4), "y": [1, 2.5, "z", None, np.int8(3), (True,)]}}


@settings(max_examples=250)
@given(st.binary(max_size=200), st.data())
def test_random_bytes_and_damaged_pickles_are_refused_or_are_a_plain_value(random: bytes, data: st.DataObject) -> None:
    damaged = bytearray(pickle.dumps(VALUE, data.draw(st.sampled_from(PROTOCOLS))))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for content in (random, bytes(damaged)):
        with contextlib.suppress(DataError):
            assert isinstance(read_pickle(content), (*pickles._PLAIN, list, tuple, dict, np.ndarray))
