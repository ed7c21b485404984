"""Labelled pixels: a sorted set whose value depends on nothing but its members."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.errors import DataError

Row = tuple[str, int, int, int, int]
NAMES = st.sampled_from(["a.png", "b.png", "B.png", "a", "é.png", "10.png", "9.png"])


def rows_strategy(max_size: int = 30) -> st.SearchStrategy[list[Row]]:
    """Lists of (name, y, x, label, stage) without a pixel twice."""
    row = st.tuples(NAMES, st.integers(0, 5), st.integers(0, 5), st.integers(0, 255), st.integers(0, 9))
    return st.lists(row, max_size=max_size, unique_by=lambda item: item[:3])


def of(rows: list[Row]) -> LabelledPixels:
    names, y, x, label, stage = map(list, zip(*rows, strict=True)) if rows else [[] for _ in range(5)]
    return LabelledPixels.of(names=names, y=y, x=x, label=label, stage=stage)


def rows_of(labels: LabelledPixels) -> list[Row]:
    columns = (labels.y, labels.x, labels.label, labels.stage)
    return list(zip(labels.names_per_pixel().tolist(), *(column.tolist() for column in columns), strict=True))


@given(rows=rows_strategy())
def test_columns_are_the_sorted_rows(rows: list[Row]) -> None:
    labels = of(rows)
    assert rows_of(labels) == sorted(rows)
    assert labels.names == tuple(sorted({row[0] for row in rows}))
    assert len(labels) == len(rows)
    columns = labels.image, labels.y, labels.x, labels.label, labels.stage
    assert {column.dtype for column in columns} == {np.dtype("int32")}
    for name in ["a.png", "b.png", "B.png", "absent", "", "zzz", "é.png"]:
        assert rows_of(labels)[labels.of_image(name)] == sorted(row for row in rows if row[0] == name)


@given(rows=rows_strategy(max_size=5), others=rows_strategy(max_size=5), data=st.data())
def test_the_digest_is_of_labels_without_order_and_stage(
    rows: list[Row], others: list[Row], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(rows))
    restaged = [(*row[:4], row[4] + 1) for row in shuffled]
    assert of(shuffled).digest() == of(rows).digest() == of(restaged).digest()
    same = {row[:4] for row in rows} == {row[:4] for row in others}
    assert (of(rows).digest() == of(others).digest()) == same


def test_the_digest_is_that_of_this_version() -> None:
    found = of([("b.png", 1, 2, 3, 0), ("a.png", 0, 5, 9, 1)]).digest()
    assert found == "c278c898d9d565b19cc8582cc4b6ed13fd0c91d0f7763cddf1abf09229b4f5d3"


@given(rows=rows_strategy(), cut=st.integers(0, 30))
def test_adding_is_the_union_in_any_order(rows: list[Row], cut: int) -> None:
    first, second = of(rows[:cut]), of(rows[cut:])
    assert rows_of(first.add(second)) == rows_of(second.add(first)) == sorted(rows)
    assert first.add(second).digest() == of(rows).digest()


@given(rows=rows_strategy())
def test_a_pixel_may_be_labelled_once_only(rows: list[Row]) -> None:
    rows = [*rows, ("a.png", 1, 1, 0, 0)] if all(row[:3] != ("a.png", 1, 1) for row in rows) else rows
    again = ("a.png", 1, 1, 7, 8)
    for join in (lambda: of([*rows, again]), lambda: of(rows).add(of([again]))):
        with pytest.raises(DataError, match=r"pixel \(y=1, x=1\) of a\.png is labelled twice"):
            join()


@given(rows=rows_strategy(), data=st.data())
def test_written_and_read_it_is_the_same_and_equal_values_are_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    of(rows).write(folder / "one.npz")
    of(data.draw(st.permutations(rows))).write(folder / "two.npz")
    assert (folder / "one.npz").read_bytes() == (folder / "two.npz").read_bytes()
    again = LabelledPixels.read(folder / "one.npz")
    assert rows_of(again) == sorted(rows)
    assert again.digest() == of(rows).digest()
    assert again.add(of([])).digest() == again.digest()


def test_bytes_do_not_depend_on_the_time_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of([("a", 1, 2, 3, 4)]).write(tmp_path / "now.npz")
    earlier = time.gmtime(1.0e9)
    monkeypatch.setattr("time.time", lambda: 1.0e9)
    monkeypatch.setattr("time.localtime", lambda *_: earlier)
    of([("a", 1, 2, 3, 4)]).write(tmp_path / "then.npz")
    assert (tmp_path / "now.npz").read_bytes() == (tmp_path / "then.npz").read_bytes()
