"""Books of answers as they grow, and what images looked like when people were asked about them."""

import tempfile
import threading
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.data.answers import Answer, Book, Undo, check_images
from pixelpick_ray.errors import DataError, StoreError
from pixelpick_ray.store import Store
from tests.support.results import at_once

BOOK = digest("a book")


def an_answer(number: int, *, y: int = 0, moment: int = 0, repeat: bool = False) -> Answer:
    said: dict[str, Any] = {"kind": "class", "label": "road", "annotator": "ann", "time": float(moment)}
    return Answer(id=f"answer {number:02d}", image="a", y=y, x=0, repeat=repeat, **said)


def an_undo(answer: Answer) -> Undo:
    return Undo(undone=answer.id, annotator="ann", time=9.0)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["answer", "repeat", "undo", "look"]), st.integers(0, 11)),
        max_size=30,
    )
)
@settings(max_examples=30)
def test_a_book_that_grows_says_what_its_lines_say(steps: list[tuple[int, str, int]]) -> None:
    """Of three processes that write and look in turn, in whichever order lines of others are read."""
    lines: list[Answer | Undo] = []
    with tempfile.TemporaryDirectory() as folder:
        books = [Book(Store(folder), BOOK) for _ in range(3)]
        for who, what, number in steps:
            given_ = [line for line in lines if isinstance(line, Answer)]
            if what == "look":
                books[who].refresh()
            elif what != "undo":
                moment, y = divmod(number, 3)
                lines.append(an_answer(len(lines), y=y, moment=moment, repeat=what == "repeat"))
                books[who].append(lines[-1])
            elif given_:
                lines.append(an_undo(given_[number % len(given_)]))
                books[who].append(lines[-1])
        for book in books:
            book.refresh()
        for book in (*books, Book(Store(folder), BOOK)):
            check_book(book, lines)
            assert book.refresh() == []


def check_book(book: Book, lines: Sequence[Answer | Undo]) -> None:
    undone = {line.undone for line in lines if isinstance(line, Undo)}
    ever = [line for line in lines if isinstance(line, Answer)]
    counting = sorted((one for one in ever if one.id not in undone), key=lambda one: (one.time, one.id))
    assert book.answers == tuple(counting)
    assert book.said() == {one.place: one for one in counting if not one.repeat}
    assert (book.ids, book.undone) == ({one.id for one in ever}, undone)
    assert {one.id: book.find(one.id) for one in ever} == {one.id: None if one.id in undone else one for one in ever}
    for y in range(3):
        assert {one.id for one in book.at(("a", y, 0))} == {one.id for one in counting if one.y == y}


def test_a_look_tells_what_others_changed_and_a_damaged_line_lets_a_book_as_it_was(tmp_path: Path) -> None:
    """Also what other journals have is new when the line is corrected: nobody misses it."""
    mine, other = Book(Store(tmp_path), BOOK), Book(Store(tmp_path), BOOK)
    first, second, own = an_answer(1, moment=5), an_answer(2, moment=4), an_answer(3)
    mine.append(own)
    other.append(first, second)
    assert mine.refresh() == [second, first]
    other.append(an_undo(first))
    assert mine.refresh() == [first]
    for number in (4, 5):
        Store(tmp_path).append_lines(f"answers/{BOOK}/{number}.jsonl", [an_answer(number).as_input()])
    whole = (path := tmp_path / f"answers/{BOOK}/5.jsonl").read_bytes()
    path.write_bytes(b"{" + whole)
    with pytest.raises(StoreError, match="line 1 is damaged"):
        mine.refresh()
    assert mine.answers == (own, second)
    path.write_bytes(whole)
    assert [one.id for one in mine.refresh()] == ["answer 04", "answer 05"]


def refused(store: Store, name: str, **others: str) -> None:
    """The image is known with another look."""
    with pytest.raises(DataError, match=f"image {name}: differs from the image that people labelled under this name"):
        check_images(store, BOOK, {name: "other"} | others)


def test_images_are_noted_once_and_compared_ever_after(tmp_path: Path) -> None:
    """Also with what an old store noted of them."""
    store, old = Store(tmp_path / "store"), Store(tmp_path / "old")
    check_images(store, BOOK, {"a": "1", "b": "2"})
    check_images(store, BOOK, {"b": "2", "c": "3"})
    noted = sorted(tmp_path.rglob("*.json"))
    check_images(store, BOOK, {"a": "1", "c": "3"})
    assert sorted(tmp_path.rglob("*.json")) == noted
    assert len(noted) == 2
    for name in ("a", "b", "c"):
        refused(store, name, d="5")
    assert store.leased() == {}
    check_images(store, BOOK, {"d": "6"})  # what was refused was not noted
    old.write_record(f"answers/{BOOK}/images.json", {"a": "1"})
    check_images(old, BOOK, {"a": "1", "b": "2"})
    assert old.read_record(f"answers/{BOOK}/images.json") == {"a": "1"}
    for name in ("a", "b"):
        refused(old, name)


class Meeting(Store):
    """A store whose two writers meet, if they can, between reading and writing."""

    def __init__(self, location: Path) -> None:
        super().__init__(location)
        self._barrier = threading.Barrier(2)

    def write_record(self, relative: str, value: Any) -> None:
        with suppress(threading.BrokenBarrierError):
            self._barrier.wait(0.5)
        super().write_record(relative, value)


class Generous(Meeting):
    """Gives a lease to two at once, as object storage may."""

    def take(self, kind: str, key: str) -> Any:
        return nullcontext()


def noted_together(store: Store, *looks: dict[str, str]) -> list[str]:
    """Have several chains note images at once; what went wrong."""

    def note(number: int) -> str:
        try:
            check_images(store, BOOK, looks[number])
        except DataError as error:
            return str(error)
        return ""

    return [told for told in at_once(len(looks), note) if told]


@pytest.mark.parametrize("kind", [Meeting, Generous])
def test_chains_that_note_images_at_once_drop_none(tmp_path: Path, kind: type[Meeting]) -> None:
    assert noted_together(kind(tmp_path / "one"), {"a": "1", "b": "2"}, {"b": "2", "c": "3"}) == []
    for name in ("a", "b", "c"):
        refused(Store(tmp_path / "one"), name)
    if kind is Meeting:  # of chains that note different images at once one goes on
        (told,) = noted_together(kind(tmp_path / "other"), {"a": "1"}, {"a": "2"})
        assert told.startswith("image a: differs from the image that people labelled under this name")
