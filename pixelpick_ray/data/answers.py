"""Answers of people: the most expensive data of all. A book has them for the pixels of one set of prepared images.

A book is ``answers/<key>/`` in the store: ``book.json`` says what its images are, and each process that takes answers
adds lines to a journal of its own. Lines are never changed: who takes an answer back adds one that says so.
"""

import os
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field, ValidationError, model_validator

from pixelpick_ray.data.labels import UNKNOWN, VOID
from pixelpick_ray.data.questions import UNSAID, Place, Questions, last_ask
from pixelpick_ray.errors import StoreError
from pixelpick_ray.spec.experiment import Experiment
from pixelpick_ray.spec.trial import Spec, is_line
from pixelpick_ray.store import Store

Kind = Literal["class", "void", "unknown"]
KINDS: dict[str, int] = {"void": VOID, "unknown": UNKNOWN}


def _one_line(text: str) -> str:
    if not is_line(text) or text != text.strip():
        raise ValueError(f"{text!r} is not one line of text without spaces around it")
    return text


Line = Annotated[str, Field(min_length=1, max_length=80), AfterValidator(_one_line)]
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

    id: Line
    kind: Kind
    annotator: Line
    time: Seconds


class Undo(Spec):
    """An answer, by its id, that was taken back."""

    undone: Line
    annotator: Line
    time: Seconds


class Book:
    """The answers for one set of prepared images; any number of processes may write at once, each its own journal."""

    def __init__(self, store: Store, key: str) -> None:
        """Open a book, new or not, as far as it is written now."""
        self._store, self.key = store, key
        stamp = f"{time.time_ns()}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._journal = f"answers/{key}/{stamp}.jsonl"
        self._lines: dict[str, list[Answer | Undo]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read what was written since. StoreError names a damaged line."""
        for name in self._store.names(f"answers/{self.key}"):
            if name.endswith(".jsonl"):
                path = f"answers/{self.key}/{name}"
                known = self._lines.setdefault(path, [])
                new = self._store.lines(path, start=len(known))
                known += [_parsed(value, f"{self._store.address}/{path}") for value in new]

    def append(self, line: Answer | Undo) -> None:
        """Write an answer, or that one is taken back; it is safe when this returns. StoreError when it cannot be."""
        self._store.append_line(self._journal, line.as_input())
        self._lines.setdefault(self._journal, []).append(line)

    @property
    def ids(self) -> frozenset[str]:
        """The identities of all answers that were ever given, taken back or not."""
        return frozenset(line.id for journal in self._lines.values() for line in journal if isinstance(line, Answer))

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The answers that were not taken back, in the order of time."""
        lines = [line for journal in self._lines.values() for line in journal]
        undone = {line.undone for line in lines if isinstance(line, Undo)}
        found = [line for line in lines if isinstance(line, Answer) and line.id not in undone]
        return tuple(sorted(found, key=lambda one: (one.time, one.id)))

    def said(self) -> dict[Place, Answer]:
        """The answer that counts for each pixel: the last one that is no repeat."""
        return {answer.place: answer for answer in self.answers if not answer.repeat}

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
                raise StoreError(
                    f"{self._store.address}/answers/{self.key}: pixel {place} was called {answer.label!r}; the data "
                    f"set has {', '.join(class_names)}"
                )
            found[at] = index[str(answer.label)] if answer.kind == "class" else KINDS[answer.kind]
        return found


@dataclass(frozen=True)
class Pending:
    """How many answers are missing, of how many that the pick with this key asks for."""

    pick: str
    missing: int
    asked: int


def pending_answers(store: Store, experiment: Experiment, chain: str) -> Pending | None:
    """What a chain of an experiment waits for: nothing missing when it can go on; None when it has not asked people."""
    ask = last_ask(store, experiment, chain)
    if ask is None:
        return None
    if store.has("pick", ask.pick) or not all(store.has("question", key) for key in ask.questions):
        return Pending(ask.pick, 0, 0)
    questions, said = ask.load(store), Book(store, ask.book).said()
    return Pending(ask.pick, sum(place not in said for place in questions.places()), len(questions))


def _parsed(value: Any, where: str) -> Answer | Undo:
    """A line of a journal. StoreError when it is none."""
    kind: type[Answer] | type[Undo] = Undo if isinstance(value, dict) and "undone" in value else Answer
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problem = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise StoreError(f"{where}: a line is no answer ({problem}); correct or remove it: {value!r:.200}") from error
