"""Answers of people: the most expensive data of all. A book has them for the pixels of one set of prepared images.

A book is a folder of the store. Records in it say what its images looked like when they were asked about first, and
each process that takes answers adds lines to a journal of its own. Lines are never changed: who takes an answer back
adds one that says so.
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
TURN_SECONDS = 0.1  # how long a process waits for another one before it looks again


def _one_line(text: str) -> str:
    if not is_line(text) or text != text.strip():
        raise ValueError(f"{text!r} is not one line of text without spaces around it")
    return text


OneLine = Annotated[str, Field(min_length=1, max_length=80), AfterValidator(_one_line)]
Coordinate = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Said(Spec):
    """A pixel of a prepared image and what was said of it, nothing yet where ``kind`` is None.

    ``label`` is the name of the class where that is what was said. ``seconds`` is how long it took without the
    ``idle_seconds``, None where it was not measured; ``suggestion`` the class that was proposed, None where none was.
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
            raise ValueError("label: is the name of the class where kind is class, and absent otherwise")
        return self

    @property
    def place(self) -> Place:
        """The pixel."""
        return self.image, self.y, self.x

    @property
    def said(self) -> tuple[Kind | None, str | None]:
        """What was said of it: kind and label."""
        return self.kind, self.label


class Answer(Said):
    """What somebody said of a pixel: a class by its name, that it is none of the classes, or that they cannot tell.

    ``time`` is in seconds since 1970, UTC. A ``repeat`` is a hidden second question about a pixel that has its answer:
    it measures people, and labels nothing. ``id`` is unique.
    """

    id: OneLine
    kind: Kind
    annotator: OneLine
    time: Seconds


class Undo(Spec):
    """An answer, by its id, that was taken back."""

    undone: OneLine
    annotator: OneLine
    time: Seconds


class Book:
    """The answers for one set of prepared images; any number of processes may write at once, each its own journal."""

    def __init__(self, store: Store, key: str) -> None:
        """Open a book, new or not, as far as it is written now."""
        self._store, self.key = store, key
        stamp = f"{time.time_ns()}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._journal = paths.answers(key, f"{stamp}.jsonl")
        self._read: dict[str, int] = {}  # lines by journal
        self._given: dict[str, Answer] = {}
        self._undone: set[str] = set()
        self._at: dict[Place, list[Answer]] = {}  # that were not taken back
        self._said: dict[Place, Answer] = {}
        self._answers: tuple[Answer, ...] | None = ()
        self.refresh()

    def refresh(self) -> list[Answer]:
        """Read what other processes wrote since: the answers that were given or taken back by it, in the order of time.

        StoreError names a damaged line; nothing is taken in then.
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
        """Write answers, or that some are taken back; it is safe when this returns. StoreError when it cannot be."""
        self._store.append_lines(self._journal, [line.as_input() for line in lines])
        self._add(lines)

    def _add(self, lines: Sequence[Answer | Undo]) -> list[Answer]:
        """Take lines in, in whichever order they are read; the answers that they change."""
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
        """Take in that an answer was given or taken back."""
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
        """The identities of all answers that were ever given, taken back or not."""
        return self._given.keys()

    @property
    def undone(self) -> Set[str]:
        """The identities of the answers that were taken back."""
        return self._undone

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The answers that were not taken back, in the order of time."""
        if self._answers is None:
            found = [one for answers in self._at.values() for one in answers]
            self._answers = tuple(sorted(found, key=_moment))
        return self._answers

    def find(self, answer: str) -> Answer | None:
        """The answer of an id; None when there is none, or it was taken back."""
        return None if answer in self._undone else self._given.get(answer)

    def at(self, place: Place) -> Sequence[Answer]:
        """The answers to a pixel that were not taken back, repeats among them."""
        return self._at.get(place, ())

    def said(self) -> Mapping[Place, Answer]:
        """The answer that counts for each pixel, the last one that is no repeat: a view that follows the book."""
        return MappingProxyType(self._said)

    def labels(self, questions: Questions, class_names: Sequence[str]) -> npt.NDArray[np.int64]:
        """(k,) the label of each question: a class, VOID, UNKNOWN, or UNSAID where there is no answer yet.

        StoreError when an answer names a class that the data set does not have.
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
                    f"{where}: pixel {place} was called {answer.label!r}; the data set has {', '.join(class_names)}"
                )
            found[at] = index[str(answer.label)] if answer.kind == "class" else KINDS[answer.kind]
        return found


def check_images(store: Store, book: str, looks: Mapping[str, str]) -> None:
    """Note what images look like before people are asked about them: `looks` are digests of their pixels by name.

    Any number of processes may do so at once. DataError when an image looked otherwise before, for the answers that
    there are are of that one.
    """
    if not _unnoted(store, book, looks):
        return
    with _turn(store, book):
        new = _unnoted(store, book, looks)
        if new:
            # A record of its own, since a lease only saves work: two that hold it must not drop what the other notes.
            store.write_record(paths.record(paths.answered_images(book), digest(new)), {"images": new})


def _unnoted(store: Store, book: str, looks: Mapping[str, str]) -> dict[str, str]:
    """Those looks that no record has. DataError when one has another."""
    folder, rest = paths.answered_images(book), dict(looks)
    for path in [paths.record(*folder.rsplit("/", 1)), *(paths.record(folder, name) for name in store.records(folder))]:
        fields = store.read_record(path) or {}
        noted = fields.get("images")  # older records have the images alone
        for name, look in (noted if isinstance(noted, dict) else fields).items():
            if looks.get(name, look) != look:
                raise DataError(
                    f"image {name}: is not the image whose pixels people labelled; give it a name of its own, or "
                    f"restore the earlier one (its answers are in {store.address}/{paths.answers(book)})"
                )
            rest.pop(name, None)
    return rest


def _turn(store: Store, book: str) -> Lease:
    """The right to note what images of a book look like, when nobody else has it any more."""
    while (lease := store.take("images", book)) is None:
        time.sleep(TURN_SECONDS)
    return lease


@dataclass(frozen=True)
class Pending:
    """How many answers are missing, of how many that the pick with this key asks for."""

    pick: str
    missing: int
    asked: int


class Waiting:
    """What chains of an experiment wait for that only people can give; looking again costs little."""

    def __init__(self, store: Store, experiment: Experiment) -> None:
        self._store, self._experiment = store, experiment
        self._books: dict[str, Book] = {}
        self._places: dict[AskRecord, list[Place]] = {}

    def look(self, chains: Iterable[str]) -> dict[str, Pending]:
        """What is missing now, by the identity of the chain: nothing where it can go on. A chain that has not asked
        people is absent. StoreError when the store cannot be read.
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
        """Nothing is missing where the pick is stored, or where its questions vanished and have to be made again."""
        if self._store.has("pick", ask.pick) or not is_whole(ask, self._store):
            return Pending(ask.pick, 0, 0)
        if ask not in self._places:
            self._places[ask] = all_questions(ask, self._store).places()
        places = self._places[ask]
        return Pending(ask.pick, sum(place not in said for place in places), len(places))


def _moment(answer: Answer) -> tuple[float, str]:
    """What orders answers."""
    return answer.time, answer.id


def _parsed(value: Any, where: str) -> Answer | Undo:
    """A line of a journal. StoreError when it is none."""
    kind: type[Answer] | type[Undo] = Undo if isinstance(value, dict) and "undone" in value else Answer
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problem = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise StoreError(
            f"{where}: a line is not an answer ({problem}); correct or remove it: {value!r:.200}"
        ) from error
