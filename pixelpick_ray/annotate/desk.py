"""The desk, which hands out questions to people and takes their answers; independent of the web."""

import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pixelpick_ray.annotate.board import Board, Pile
from pixelpick_ray.annotate.claims import Claims
from pixelpick_ray.annotate.gallery import Gallery
from pixelpick_ray.annotate.order import Question, question_id
from pixelpick_ray.annotate.rota import Person, Refusal, Rota
from pixelpick_ray.config.annotate import AnnotateSpec, class_keys
from pixelpick_ray.config.spec import Spec
from pixelpick_ray.config.trial import HumanSpec
from pixelpick_ray.data.answers import Answer, Kind, OneLine
from pixelpick_ray.data.dataset import DatasetFacts
from pixelpick_ray.data.datasets import open_dataset
from pixelpick_ray.errors import SpecError
from pixelpick_ray.planning import Chain, Plan
from pixelpick_ray.store import Store

SENT = 60  # questions sent to a page at once
HISTORY = 100  # answers that a page can go back to after a reload
SWEEP_SECONDS = 5.0

AnswerSeconds = Annotated[float, Field(ge=0.0, le=86400.0, allow_inf_nan=False)]
Value = dict[str, Any]


class Reply(Spec):
    """An answer as sent by a page; `id` is unique to the answer, and the same if it is sent again."""

    id: OneLine
    annotator: OneLine
    question: OneLine
    kind: Kind
    label: str | None = None
    seconds: AnswerSeconds
    idle_seconds: AnswerSeconds = 0.0


class Desk:
    """Hands out questions and stores answers; thread-safe. Answers are durable when `answer` returns."""

    def __init__(self, plan: Plan, store: Store, data_path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open the desk for the chains of a plan that ask people.

        Raises SpecError if there are none, if their classes differ, or if keys clash; StoreError if the store cannot be
        read.
        """
        self._spec = plan.experiment.annotation
        self._title = plan.experiment.title or plan.experiment.name
        chains = _asking(plan)
        facts = _common_facts(chains, data_path)
        self._class_names, self._classes = facts.class_names, _classes(facts, self._spec)
        self._suggests = any(
            chain.trial.oracle.suggestions for chain in chains if isinstance(chain.trial.oracle, HumanSpec)
        )
        self._gallery, self._clock = Gallery(), clock
        self._board = Board(plan.experiment, chains, store, data_path, clock)
        self._rota = Rota(self._board, Claims(store), self._spec, clock)
        self._images: list[tuple[str, str]] = []  # book and name, by the number used on the page
        self._numbers: dict[tuple[str, str], int] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._look()
        self._sweeper = threading.Thread(target=self._sweep_on, daemon=True)
        self._sweeper.start()

    def _sweep_on(self) -> None:
        while not self._closed.wait(SWEEP_SECONDS):
            with self._lock:
                self._rota.sweep()

    def close(self) -> None:
        """Release everything that people here were working on."""
        self._closed.set()
        self._sweeper.join()
        with self._lock:
            self._rota.close()

    # Questions

    def begin(self, annotator: str) -> Value:
        """Return what a page needs once: classes with keys, and an annotator's answers to current questions."""
        with self._lock:
            person = self._rota.greet(annotator)
            self._look()
            return {
                "title": self._title,
                "classes": self._classes,
                "idle_seconds": self._spec.idle_seconds,
                "suggestions": self._suggests,
                "history": self._history(person),
                **self._progress(person),
            }

    def next(self, annotator: str, have: Sequence[str]) -> Value:
        """Return further questions for an annotator, and which of those the page already has (`have`) it must drop.

        The state is "asking", "elsewhere" (others work on all that is left), "waiting" (nothing is asked) or "done".
        Raises StoreError if the store cannot be read.
        """
        with self._lock:
            person = self._rota.greet(annotator)
            self._look()
            self._rota.keep(person, have)
            self._rota.refill(person)
            mine, known = {question.id for question in person.queue}, set(have)
            return {
                "items": [self._item(question) for question in person.queue[:SENT] if question.id not in known],
                "dropped": [question for question in have if question not in mine],
                "state": self._state(person),
                **self._progress(person),
            }

    def image(self, number: int) -> bytes:
        """Return an image as PNG at native size, by its number in questions. Raises Refusal for an unknown number."""
        with self._lock:
            book, name = self._image_at(number)
            read = self._board.piles[book].read_image
        return self._gallery.look(book, name, read).png

    def points(self, number: int) -> list[Value]:
        """Return the current pixels of an image with their answers, hidden for pixels that are being asked about again.

        Raises Refusal for an unknown number.
        """
        with self._lock:
            book, name = self._image_at(number)
            pile = self._board.piles[book]
            again = {question.place for question in self._rota.asked_again() if question.book == book}
            told = {place: None if place in again else pile.said.get(place) for place in pile.of_image(name)}
            return [{"y": place[1], "x": place[2], **_told(answer)} for place, answer in told.items()]

    def skip(self, annotator: str, question: str) -> Value:
        """Move a question to the end of the annotator's queue. Raises Refusal if it is not theirs."""
        with self._lock:
            person = self._rota.greet(annotator)
            skipped = self._rota.claim(person, question)
            person.queue.remove(skipped)
            person.queue.append(skipped)
            return self._progress(person)

    def _look(self) -> None:
        """Update the board, and drop what is no longer asked."""
        if self._board.poll():
            self._rota.tidy()

    def _progress(self, person: Person) -> Value:
        answered, total = self._board.counts()
        return {"answered": answered, "total": total, "mine": person.count}

    def _state(self, person: Person) -> str:
        if person.queue:
            return "asking"
        answered, total = self._board.counts()
        if answered < total:
            return "elsewhere"
        return "done" if self._board.is_done() else "waiting"

    def _history(self, person: Person) -> list[Value]:
        last: list[tuple[Answer, Question]] = []
        for pile in self._board.piles.values():
            mine = ((answer, pile.question_of(answer)) for answer in pile.given(person.name))
            asked = ((answer, question) for answer, question in mine if question is not None)
            last += islice(asked, HISTORY)
        last.sort(key=lambda pair: (pair[0].time, pair[0].id))
        return [
            {"id": answer.id, **_told(answer), "item": self._item(question)} for answer, question in last[-HISTORY:]
        ]

    def _item(self, question: Question) -> Value:
        """A question as sent to a page, with the prediction only if suggestions are shown."""
        item = {"id": question.id, "image": self._number(question), "name": question.image}
        item |= {"y": question.y, "x": question.x, "height": question.height, "width": question.width}
        suggestion = self._suggestion(question)
        return item if suggestion is None else item | {"suggestion": suggestion}

    def _suggestion(self, question: Question) -> str | None:
        shown = self._board.piles[question.book].suggests and question.predicted >= 0
        return self._class_names[question.predicted] if shown else None

    def _number(self, question: Question) -> int:
        key = question.book, question.image
        if key not in self._numbers:
            self._numbers[key] = len(self._images)
            self._images.append(key)
        return self._numbers[key]

    def _image_at(self, number: int) -> tuple[str, str]:
        if not 0 <= number < len(self._images):
            raise Refusal("gone", "No current question is about this image.")
        return self._images[number]

    # Answers

    def answer(self, reply: Reply) -> Value:
        """Store an answer; it is durable on return. If sent again, it is stored only once.

        Raises Refusal if the question is not theirs to answer, StoreError if it cannot be stored.
        """
        with self._lock:
            person = self._rota.greet(reply.annotator)
            self._check_label(reply)
            if not self._is_written(reply):
                question = self._rota.claim(person, reply.question)
                self._board.piles[question.book].add(self._as_answer(reply, question))
                self._rota.forget(question)
                person.count += 1
            return self._progress(person)

    def _check_label(self, reply: Reply) -> None:
        if (reply.kind == "class") != (reply.label is not None):
            raise Refusal("wrong", "label: required if kind is class, and not allowed otherwise.")
        if reply.label is not None and reply.label not in self._class_names:
            raise Refusal("wrong", f"label: there is no class {reply.label!r:.80}.")

    def _is_written(self, reply: Reply) -> bool:
        found = self._board.find_answer(reply.id)
        if found is None:
            return self._board.was_undone(reply.id)
        pile, answer = found
        same = question_id(pile.key, answer.place, answer.repeat), answer.annotator, answer.kind, answer.label
        if same != (reply.question, reply.annotator, reply.kind, reply.label):
            raise Refusal("wrong", "id: already used by another answer; give each answer a new id.")
        return True

    def _as_answer(self, reply: Reply, question: Question) -> Answer:
        return Answer(
            id=reply.id,
            image=question.image,
            y=question.y,
            x=question.x,
            kind=reply.kind,
            label=reply.label,
            annotator=reply.annotator,
            time=self._clock(),
            seconds=reply.seconds,
            idle_seconds=reply.idle_seconds,
            suggestion=self._suggestion(question),
            repeat=question.repeat,
        )

    def undo(self, annotator: str, answer: str) -> Value:
        """Take back an annotator's answer and put its question first; if requested again, it is done only once.

        Raises Refusal if a training has used it or it is not theirs, StoreError if it cannot be stored.
        """
        with self._lock:
            person = self._rota.greet(annotator)
            if not self._board.was_undone(answer):
                pile, written, question = self._to_take_back(person, answer)
                self._rota.put_first(person, question)
                pile.take_back(written, self._clock())
                person.count = max(0, person.count - 1)
            return self._progress(person)

    def _to_take_back(self, person: Person, answer: str) -> tuple[Pile, Answer, Question]:
        found = self._board.find_answer(answer)
        if found is None:
            raise Refusal("gone", "There is no such answer to undo.")
        pile, written = found
        if written.annotator != person.name:
            raise Refusal("wrong", "Only your own answers can be taken back.")
        question = pile.question_of(written)
        if question is None or pile.is_used(written):
            raise Refusal("gone", "The training has used this answer; it can no longer be taken back.")
        return pile, written, question


def _asking(plan: Plan) -> list[Chain]:
    """Chains that ask people. Raises SpecError if there are none."""
    asking = [chain for chain in plan.chains if isinstance(chain.trial.oracle, HumanSpec)]
    found = [chain for chain in asking if chain.trial.budget != "full"]
    if not found:
        raise SpecError("oracle: no chain of this experiment asks people; set oracle: {name: human}")
    return found


def _common_facts(chains: Sequence[Chain], data_path: Path) -> DatasetFacts:
    """Facts that the chains share. Raises SpecError if their classes differ, because a key must mean one class."""
    specs = {(chain.trial.dataset.name, chain.trial.dataset.path): chain.trial.dataset for chain in chains}
    facts = [open_dataset(spec, data_path).facts for spec in specs.values()]
    if len({one.class_names for one in facts}) > 1:
        raise SpecError(
            f"dataset: people would be asked about {' and '.join(one.name for one in facts)}, whose classes differ; "
            "use a separate experiment for each"
        )
    return facts[0]


def _classes(facts: DatasetFacts, spec: AnnotateSpec) -> list[Value]:
    """Name, key and colour (#rrggbb) of every class."""
    keys = class_keys(facts.class_names, spec.keys)
    return [
        {"name": name, "key": keys[name], "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
        for name, colour in zip(facts.class_names, facts.palette, strict=True)
    ]


def _told(answer: Answer | None) -> Value:
    return {"kind": answer.kind if answer else None, "label": answer.label if answer else None}
