"""Answers from people, the most expensive data of all, kept in a book for each set of prepared images.

A book is a folder of the store. Its records hold digests of the images as first shown to people. Each process that
takes answers appends lines to its own journal. Lines are never changed: an undo is a separate line.
"""

import os
import secrets
import socket
import time
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field, ValidationError, model_validator

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.spec import Spec
from pixelpick_ray.config.trial import is_line
from pixelpick_ray.data.labels import UNKNOWN, VOID
from pixelpick_ray.data.questions import UNSAID, Place, Questions, all_questions, is_whole, last_ask
from pixelpick_ray.errors import DataError, StoreError
from pixelpick_ray.store import Store, paths
from pixelpick_ray.store.leases import Lease
from pixelpick_ray.store.records import AskRecord

Kind = Literal["class", "void", "unknown"]
KINDS: dict[str, int] = {"void": VOID, "unknown": UNKNOWN}
TURN_SECONDS = 0.1  # between attempts to take a lease held by another process


def _one_line(text: str) -> str:
    if not is_line(text) or text != text.strip():
        raise ValueError(f"{text!r} must be one line of text without leading or trailing spaces")
    return text


OneLine = Annotated[str, Field(min_length=1, max_length=80), AfterValidator(_one_line)]
Coordinate = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Said(Spec):
    """A pixel of a prepared image and its answer; ``kind`` is None without one.

    ``label`` is the class name if ``kind`` is ``class``. ``seconds`` is the answering time, excluding the
    ``idle_seconds``, or None if not measured; ``suggestion`` is the class that was proposed, if any.
    """

    image: str
    y: Coordinate
    x: Coordinate
    kind: Kind | None = None
    label: str | None = None
    seconds: Seconds | None = None
    idle_seconds: Seconds | None = None
    suggestion: str | None = None
    repeat: bool = False

    @model_validator(mode="after")
    def _a_class_has_a_name(self) -> Self:
        if (self.kind == "class") != (self.label is not None):
            raise ValueError("label: must be the class name if kind is class, and absent otherwise")
        return self

    @property
    def place(self) -> Place:
        """The pixel."""
        return self.image, self.y, self.x

    @property
    def said(self) -> tuple[Kind | None, str | None]:
        """The answer: kind and label."""
        return self.kind, self.label


class Answer(Said):
    """A person's answer for a pixel: a class by name, none of the classes (void), or unknown.

    ``time`` is Unix time in seconds. A ``repeat`` answers a hidden second question about an answered pixel: it measures
    consistency and is not used as a label. ``id`` is unique.
    """

    id: OneLine
    kind: Kind
    annotator: OneLine
    time: Seconds


class Undo(Spec):
    """The withdrawal of an answer, by its id."""

    undone: OneLine
    annotator: OneLine
    time: Seconds


class Book:
    """The answers for one set of prepared images; processes may write concurrently, each to its own journal."""

    def __init__(self, store: Store, key: str) -> None:
        """Open a new or existing book and read it."""
        self._store, self.key = store, key
        stamp = f"{time.time_ns()}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._journal = paths.answers(key, f"{stamp}.jsonl")
        self._read: dict[str, int] = {}  # lines by journal
        self._given: dict[str, Answer] = {}
        self._undone: set[str] = set()
        self._at: dict[Place, list[Answer]] = {}  # not undone
        self._said: dict[Place, Answer] = {}
        self._answers: tuple[Answer, ...] | None = ()
        self.refresh()

    def refresh(self) -> list[Answer]:
        """Read new lines of other processes; return the answers they gave or undid, ordered by time.

        Raises StoreError naming a damaged line, before any new line takes effect.
        """
        names = [name for name in self._store.names(paths.answers(self.key)) if name.endswith(".jsonl")]
        others = [path for name in names if (path := paths.answers(self.key, name)) != self._journal]
        new = {path: self._new_lines(path) for path in others}
        for path, lines in new.items():
            self._read[path] = self._read.get(path, 0) + len(lines)
        return sorted((answer for lines in new.values() for answer in self._add(lines)), key=_moment)

    def _new_lines(self, path: str) -> list[Answer | Undo]:
        values = self._store.lines(path, start=self._read.get(path, 0))
        return [_parsed(value, f"{self._store.address}/{path}") for value in values]

    def append(self, *lines: Answer | Undo) -> None:
        """Write answers or undos durably. Raises StoreError if that fails."""
        self._store.append_lines(self._journal, [line.as_input() for line in lines])
        self._add(lines)

    def _add(self, lines: Sequence[Answer | Undo]) -> list[Answer]:
        """Apply lines, which may come in any order; return the answers that they change."""
        changed = []
        for line in lines:
            if isinstance(line, Undo):
                self._undone.add(line.undone)
                answer = self._given.get(line.undone)
            else:
                answer = self._given.setdefault(line.id, line)
            if answer is not None:
                self._count(answer)
                changed.append(answer)
        self._answers = None if lines else self._answers
        return changed

    def _count(self, changed: Answer) -> None:
        """Update the state of a pixel after an answer was given or undone."""
        place = changed.place
        counting = [one for one in self._at.get(place, ()) if one.id != changed.id]
        if changed.id not in self._undone:
            counting.append(changed)
        self._at[place] = counting
        labels = [one for one in counting if not one.repeat]
        if labels:
            self._said[place] = max(labels, key=_moment)
        else:
            self._said.pop(place, None)

    @property
    def ids(self) -> Set[str]:
        """The ids of all answers ever given, including undone ones."""
        return self._given.keys()

    @property
    def undone(self) -> Set[str]:
        """The ids of undone answers."""
        return self._undone

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The answers that are not undone, ordered by time."""
        if self._answers is None:
            found = [one for answers in self._at.values() for one in answers]
            self._answers = tuple(sorted(found, key=_moment))
        return self._answers

    def find(self, answer: str) -> Answer | None:
        """The answer with this id; None if there is none or it was undone."""
        return None if answer in self._undone else self._given.get(answer)

    def at(self, place: Place) -> Sequence[Answer]:
        """The answers for a pixel that are not undone, including repeats."""
        return self._at.get(place, ())

    def said(self) -> Mapping[Place, Answer]:
        """The valid answer of each pixel, the last that is not a repeat; a live view of the book."""
        return MappingProxyType(self._said)

    def labels(self, questions: Questions, class_names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Labels (k,) of the questions: a class index, VOID, UNKNOWN, or UNSAID without an answer.

        Raises StoreError if an answer names a class that is not in the data set.
        """
        said, index = self.said(), {name: number for number, name in enumerate(class_names)}
        found = np.full(len(questions), UNSAID, dtype=np.int64)
        for at, place in enumerate(questions.places()):
            answer = said.get(place)
            if answer is None:
                continue
            if answer.kind == "class" and answer.label not in index:
                where = f"{self._store.address}/{paths.answers(self.key)}"
                raise StoreError(
                    f"{where}: pixel {place} is labelled {answer.label!r}, which is not a class of the data set "
                    f"({', '.join(class_names)}); restore the class, or remove the answer"
                )
            found[at] = index[str(answer.label)] if answer.kind == "class" else KINDS[answer.kind]
        return found


def check_images(store: Store, book: str, looks: Mapping[str, str]) -> None:
    """Record digests of images before people label them: `looks` maps names to digests of their pixels.

    Safe in concurrent processes. Raises DataError if the book has a different digest for an image, since its existing
    answers belong to other pixels.
    """
    if not _unnoted(store, book, looks):
        return
    with _turn(store, book):
        new = _unnoted(store, book, looks)
        if new:
            # A separate record, since leases only save work: two holders must not overwrite each other's digests.
            store.write_record(paths.record(paths.answered_images(book), digest(new)), {"images": new})


def _unnoted(store: Store, book: str, looks: Mapping[str, str]) -> dict[str, str]:
    """The digests that are not recorded yet. Raises DataError if a recorded one differs."""
    folder, rest = paths.answered_images(book), dict(looks)
    for path in [paths.record(*folder.rsplit("/", 1)), *(paths.record(folder, name) for name in store.records(folder))]:
        fields = store.read_record(path) or {}
        noted = fields.get("images")  # older records are the mapping itself
        for name, look in (noted if isinstance(noted, dict) else fields).items():
            if looks.get(name, look) != look:
                raise DataError(
                    f"image {name}: differs from the image that people labelled under this name; rename it, or "
                    f"restore the earlier one (its answers are in {store.address}/{paths.answers(book)})"
                )
            rest.pop(name, None)
    return rest


def _turn(store: Store, book: str) -> Lease:
    """Wait for the lease to record digests of a book's images."""
    while (lease := store.take("images", book)) is None:
        time.sleep(TURN_SECONDS)
    return lease


@dataclass(frozen=True)
class Pending:
    """The number of missing answers, out of those asked for by the pick with this key."""

    pick: str
    missing: int
    asked: int


class Waiting:
    """Tracks the answers that chains of an experiment are waiting for; repeated looks are cheap."""

    def __init__(self, store: Store, experiment: Experiment) -> None:
        self._store, self._experiment = store, experiment
        self._books: dict[str, Book] = {}
        self._places: dict[AskRecord, list[Place]] = {}

    def look(self, chains: Iterable[str]) -> dict[str, Pending]:
        """Missing answers by chain id, zero if the chain can continue; chains that never asked people are absent.

        Raises StoreError if the store cannot be read.
        """
        asks = {chain: ask for chain in chains if (ask := last_ask(self._store, self._experiment, chain))}
        said = {key: self._read(key) for key in {ask.book for ask in asks.values()}}
        return {chain: self._pending(ask, said[ask.book]) for chain, ask in asks.items()}

    def _read(self, key: str) -> Collection[Place]:
        if key in self._books:
            self._books[key].refresh()
        else:
            self._books[key] = Book(self._store, key)
        return self._books[key].said()

    def _pending(self, ask: AskRecord, said: Collection[Place]) -> Pending:
        """Nothing is missing if the pick is stored, or if its questions are lost and have to be recreated."""
        if self._store.has("pick", ask.pick) or not is_whole(ask, self._store):
            return Pending(ask.pick, 0, 0)
        if ask not in self._places:
            self._places[ask] = all_questions(ask, self._store).places()
        places = self._places[ask]
        return Pending(ask.pick, sum(place not in said for place in places), len(places))


def _moment(answer: Answer) -> tuple[float, str]:
    """Sort key of answers: time, then id."""
    return answer.time, answer.id


def _parsed(value: Any, where: str) -> Answer | Undo:
    """Parse a line of a journal. Raises StoreError if it is invalid."""
    kind: type[Answer] | type[Undo] = Undo if isinstance(value, dict) and "undone" in value else Answer
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problem = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise StoreError(f"{where}: invalid line ({problem}); correct or remove it: {value!r:.200}") from error
