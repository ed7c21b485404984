"""The questions that chains currently ask people, and the answers so far."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from pixelpick_ray.annotate.gallery import reader
from pixelpick_ray.annotate.order import Question, is_for_the_same, is_repeated
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import HumanSpec
from pixelpick_ray.data.answers import Answer, Book, Undo
from pixelpick_ray.data.questions import Place, is_whole, open_ask, read_questions
from pixelpick_ray.errors import StoreError
from pixelpick_ray.planning import Chain
from pixelpick_ray.store import Store
from pixelpick_ray.store.records import AskRecord, ChainRecord, read_chain

POLL_SECONDS = 1.0
POLL_SHARE = 0.1  # maximum share of time spent polling: large books take long to read


class Pile:
    """The questions whose answers go into one book: those of all chains that ask about the same images.

    `questions` are the current ones, `open` the unanswered ones among them, by image, and `said` is the answer that
    counts for each pixel. A `share` of the pixels is asked about a second time, even after a training has used the
    first answer; second answers label nothing.
    """

    def __init__(self, store: Store, key: str, chain: Chain, data_path: Path, share: float) -> None:
        self._store, self.key, self._share = store, key, share
        self.suggests = isinstance(chain.trial.oracle, HumanSpec) and chain.trial.oracle.suggestions
        self.read_image = reader(chain.trial.dataset, data_path)
        self._asks: dict[str, AskRecord] = {}  # all that this process has seen, by pick
        self._loaded: dict[str, dict[Place, Question]] = {}  # by key of the questions
        self._again: dict[Place, Question] = {}  # repeats, of pixels asked about a second time
        self._same: set[Place] = set()  # the pixels that only the first annotator is asked about again
        self._now: list[str] = []  # keys of the current questions
        self._book = Book(store, key)
        self.said = self._book.said()
        self._mine: dict[str, list[Answer]] = {}  # by annotator, in order of time, including some taken back
        self._index()
        self._keep(self._book.answers)

    # Questions

    def ask(self, asks: Sequence[AskRecord], earlier: Iterable[str]) -> None:
        """Set the current questions; pixels of `earlier` ones, given by key, may be asked about again.

        Raises StoreError if current questions have vanished.
        """
        before, now = (self._now, len(self._loaded)), [key for ask in asks for key in ask.questions]
        for key in now:
            self._load(key)
        for key in earlier:
            with contextlib.suppress(StoreError):  # a repeat is not worth failing for
                self._load(key)
        self._asks |= {ask.pick: ask for ask in asks}
        self._now = now
        if before != (now, len(self._loaded)):
            self._index()

    def _load(self, key: str) -> None:
        if key in self._loaded:
            return
        asked = read_questions(self._store, key)
        shapes = asked.shapes.tolist()
        columns = (column.tolist() for column in (asked.image, asked.y, asked.x, asked.predicted))
        found = [
            Question(self.key, asked.names[image], y, x, shapes[image][0], shapes[image][1], predicted)
            for image, y, x, predicted in zip(*columns, strict=True)
        ]
        self._loaded[key] = {question.place: question for question in found}
        marked = [one for one in found if self._share and is_repeated(self.key, one.place, self._share)]
        self._again |= {one.place: one.again() for one in marked if one.place not in self._again}
        self._same |= {one.place for one in marked if is_for_the_same(self.key, one.place)}

    def _index(self) -> None:
        """Rebuild all indices of questions."""
        self.questions: dict[Place, Question] = {}
        for key in reversed(self._now):
            self.questions |= self._loaded[key]
        images: dict[str, dict[Place, Question]] = {}
        for place, question in self.questions.items():
            images.setdefault(question.image, {})[place] = question
        self._images = dict(sorted(images.items()))
        self._ids = {one.id: one for one in (*self.questions.values(), *self._again.values())}
        self.open: dict[str, dict[Place, Question]] = {}
        self.missing = 0  # answers
        self._due: dict[Place, Question] = {}  # repeats of pixels with one answer
        for place in self.questions | self._again:
            self._settle(place)

    def _settle(self, place: Place) -> None:
        """Update which questions about a pixel are due."""
        question, again, is_said = self.questions.get(place), self._again.get(place), place in self.said
        if question is not None:
            here = self.open.setdefault(place[0], {})
            self.missing -= place in here
            here.pop(place, None)
            if not is_said:
                here[place] = question
                self.missing += 1
            if not here:
                del self.open[place[0]]
        self._due.pop(place, None)
        if again is not None and is_said and not any(answer.repeat for answer in self._book.at(place)):
            self._due[place] = again

    def find(self, question: str) -> Question | None:
        """Return the question or repeat with an id; None if it is not asked."""
        return self._ids.get(question)

    def asks(self, question: Question) -> bool:
        """Whether a question is due; a repeat is due while the pixel has just one answer."""
        if question.repeat:
            return question.place in self._due
        return question.place in self.open.get(question.image, {})

    def images(self) -> list[str]:
        """Return the images with open questions by name, those already begun first."""
        names = [image for image in self._images if image in self.open]
        return sorted(names, key=lambda image: len(self.open[image]) == len(self._images[image]))

    def of_image(self, image: str) -> list[Place]:
        """Return the pixels of an image with current questions, sorted."""
        return sorted(self._images.get(image, ()))

    def due(self, annotator: str) -> Iterator[Question]:
        """Yield the repeats that an annotator may be asked."""
        for place, question in self._due.items():
            if place not in self._same or self.said[place].annotator == annotator:
                yield question

    # Answers

    def refresh(self) -> None:
        """Read what other processes wrote. Raises StoreError for a damaged line."""
        self._keep(self._book.refresh())

    def add(self, answer: Answer) -> None:
        """Write an answer; it is durable on return. Raises StoreError if that fails."""
        self._book.append(answer)
        self._keep([answer])

    def take_back(self, answer: Answer, now: float) -> None:
        """Write that an answer no longer counts. Raises StoreError if that fails."""
        self._book.append(Undo(undone=answer.id, annotator=answer.annotator, time=now))
        self._keep([answer])

    def _keep(self, changed: Iterable[Answer]) -> None:
        """Register answers that were given or taken back."""
        for answer in changed:
            if self._book.find(answer.id) is not None:
                self._mine.setdefault(answer.annotator, []).append(answer)
            self._settle(answer.place)

    def find_answer(self, answer: str) -> Answer | None:
        """Return the answer with an id; None if there is none, or it was taken back."""
        return self._book.find(answer)

    def was_undone(self, answer: str) -> bool:
        """Whether the answer with this id was taken back."""
        return answer in self._book.undone

    def given(self, annotator: str) -> Iterator[Answer]:
        """Yield an annotator's answers, except those taken back, latest first."""
        mine = reversed(self._mine.get(annotator, []))
        return (answer for answer in mine if self._book.find(answer.id) is not None)

    def is_used(self, answer: Answer) -> bool:
        """Whether a training has used an answer, as far as this process knows; repeats are never used."""
        place, picks = answer.place, self._asks.items()
        asked = [pick for pick, ask in picks if any(place in self._loaded[key] for key in ask.questions)]
        return not answer.repeat and any(self._store.has("pick", pick) for pick in asked)

    def question_of(self, answer: Answer) -> Question | None:
        """Return the question of an answer; None if it is no longer asked and cannot be answered anew."""
        return (self._again if answer.repeat else self.questions).get(answer.place)


class Board:
    """The piles of an experiment's chains that ask people, by book key."""

    def __init__(
        self,
        experiment: Experiment,
        chains: Sequence[Chain],
        store: Store,
        data_path: Path,
        clock: Callable[[], float],
    ) -> None:
        self._experiment, self._chains, self._store, self._data_path = experiment, chains, store, data_path
        self._clock, self._share = clock, experiment.annotation.repeats
        self.piles: dict[str, Pile] = {}
        self._looked = self._due = 0.0

    def poll(self) -> bool:
        """Update questions and answers, unless that was done a moment ago; return whether it was done."""
        if self._looked <= self._clock() < self._due:
            return False
        begun = time.monotonic()
        self.look()
        took = time.monotonic() - begun
        self._looked = self._clock()
        self._due = self._looked + max(POLL_SECONDS, took / POLL_SHARE)
        return True

    def look(self) -> None:
        """Update questions and answers. Raises StoreError if the store cannot be read."""
        asks: dict[str, dict[str, AskRecord]] = {}
        earlier: dict[str, dict[str, None]] = {}
        for chain in self._chains:
            ask = open_ask(self._store, self._experiment, chain.id)
            if ask is not None and is_whole(ask, self._store):
                self._open(ask.book, chain)
                asks.setdefault(ask.book, {})[ask.pick] = ask
            record = self._record(chain) if self._share else None
            if record is not None and record.book is not None:
                self._open(record.book, chain)
                earlier.setdefault(record.book, {}).update(dict.fromkeys(record.questions))
        for key, pile in self.piles.items():
            pile.ask(list(asks.get(key, {}).values()), earlier.get(key, ()))
            pile.refresh()

    def _open(self, book: str, chain: Chain) -> None:
        if book not in self.piles:
            self.piles[book] = Pile(self._store, book, chain, self._data_path, self._share)

    def _record(self, chain: Chain) -> ChainRecord | None:
        return read_chain(self._store, self._experiment, chain.id)

    def find(self, question: str) -> Question | None:
        """Return the question or repeat with an id; None if it is not asked."""
        found = (pile.find(question) for pile in self.piles.values())
        return next((one for one in found if one is not None), None)

    def asks(self, question: Question) -> bool:
        """Whether a question is due."""
        return self.piles[question.book].asks(question)

    def refresh(self, books: Iterable[str]) -> None:
        """Read what other processes wrote to these books. Raises StoreError for a damaged line."""
        for book in set(books):
            self.piles[book].refresh()

    def find_answer(self, answer: str) -> tuple[Pile, Answer] | None:
        """Return the answer with an id, and its pile; None if there is none, or it was taken back."""
        found = ((pile, pile.find_answer(answer)) for pile in self.piles.values())
        return next(((pile, one) for pile, one in found if one is not None), None)

    def was_undone(self, answer: str) -> bool:
        """Whether the answer with this id was taken back."""
        return any(pile.was_undone(answer) for pile in self.piles.values())

    def last_answers(self, annotator: str, count: int) -> list[tuple[Pile, Answer]]:
        """Return an annotator's last answers, except those taken back, in order of time."""
        found = [(pile, one) for pile in self.piles.values() for one in islice(pile.given(annotator), count)]
        return sorted(found, key=lambda pair: (pair[1].time, pair[1].id))[-count:]

    def counts(self) -> tuple[int, int]:
        """Return how many of the current questions have an answer, and how many there are."""
        total = sum(len(pile.questions) for pile in self.piles.values())
        return total - sum(pile.missing for pile in self.piles.values()), total

    def is_done(self) -> bool:
        """Whether every chain has been fully trained."""
        records = ((self._record(chain), chain) for chain in self._chains)
        return all(record is not None and len(record.stages) >= len(chain.fits) for record, chain in records)
