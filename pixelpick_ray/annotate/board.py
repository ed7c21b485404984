"""What chains ask people now, and what has been answered of it."""

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
POLL_SHARE = 0.1  # of the time at most: a book of many answers takes long to read


class Pile:
    """The questions whose answers go into one book: those of all chains that ask about the same images.

    `questions` are those that are asked now, `open` those of them without an answer, by image, and `said` is the answer
    that counts for each pixel. A `share` of the pixels is asked a second time, also after a training has gone on with
    the first answer: the second one labels nothing.
    """

    def __init__(self, store: Store, key: str, chain: Chain, data_path: Path, share: float) -> None:
        self._store, self.key, self._share = store, key, share
        self.suggests = isinstance(chain.trial.oracle, HumanSpec) and chain.trial.oracle.suggestions
        self.read_image = reader(chain.trial.dataset, data_path)
        self._asks: dict[str, AskRecord] = {}  # by pick: all that this process has seen
        self._loaded: dict[str, dict[Place, Question]] = {}  # by the key of the questions
        self._again: dict[Place, Question] = {}  # repeats of the pixels that are asked a second time
        self._same: set[Place] = set()  # those of these pixels that only who answered first is asked again
        self._now: list[str] = []  # keys of the questions that are asked now
        self._book = Book(store, key)
        self.said = self._book.said()
        self._mine: dict[str, list[Answer]] = {}  # by annotator, in the order of time; some were taken back
        self._index()
        self._keep(self._book.answers)

    # Questions

    def ask(self, asks: Sequence[AskRecord], earlier: Iterable[str]) -> None:
        """Take these as all that is asked now; pixels of `earlier` questions, by their keys, may be asked again.

        StoreError when questions that are asked now vanished.
        """
        before, now = (self._now, len(self._loaded)), [key for ask in asks for key in ask.questions]
        for key in now:
            self._load(key)
        for key in earlier:
            with contextlib.suppress(StoreError):  # no second answer is worth a stop
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
        """Sort out all questions anew."""
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
        self._due: dict[Place, Question] = {}  # repeats of what was answered once
        for place in self.questions | self._again:
            self._settle(place)

    def _settle(self, place: Place) -> None:
        """See which questions about a pixel are to be answered now."""
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
        """The question of an id; None when it is not asked now, and no pixel is asked that a second time."""
        return self._ids.get(question)

    def asks(self, question: Question) -> bool:
        """Whether a question is to be answered now: a repeat while the pixel has just one answer."""
        if question.repeat:
            return question.place in self._due
        return question.place in self.open.get(question.image, {})

    def images(self) -> list[str]:
        """The images with open questions by name, but first those that were begun."""
        names = [image for image in self._images if image in self.open]
        return sorted(names, key=lambda image: len(self.open[image]) == len(self._images[image]))

    def of_image(self, image: str) -> list[Place]:
        """The pixels of an image that are asked now."""
        return sorted(self._images.get(image, ()))

    def due(self, annotator: str) -> Iterator[Question]:
        """The repeats that somebody may be asked."""
        for place, question in self._due.items():
            if place not in self._same or self.said[place].annotator == annotator:
                yield question

    # Answers

    def refresh(self) -> None:
        """Read what other processes wrote. StoreError for a damaged line."""
        self._keep(self._book.refresh())

    def add(self, answer: Answer) -> None:
        """Write an answer; it is safe when this returns. StoreError when it cannot be."""
        self._book.append(answer)
        self._keep([answer])

    def take_back(self, answer: Answer, now: float) -> None:
        """Write that an answer does not count. StoreError when it cannot be."""
        self._book.append(Undo(undone=answer.id, annotator=answer.annotator, time=now))
        self._keep([answer])

    def _keep(self, changed: Iterable[Answer]) -> None:
        """Take in answers that were given or taken back."""
        for answer in changed:
            if self._book.find(answer.id) is not None:
                self._mine.setdefault(answer.annotator, []).append(answer)
            self._settle(answer.place)

    def find_answer(self, answer: str) -> Answer | None:
        """The answer of an id; None when there is none, or it was taken back."""
        return self._book.find(answer)

    def was_undone(self, answer: str) -> bool:
        """Whether the answer of this id was taken back."""
        return answer in self._book.undone

    def given(self, annotator: str) -> Iterator[Answer]:
        """What somebody answered and did not take back, the last answer first."""
        mine = reversed(self._mine.get(annotator, []))
        return (answer for answer in mine if self._book.find(answer.id) is not None)

    def is_used(self, answer: Answer) -> bool:
        """Whether a training has gone on with an answer, as far as this process knows: never with a repeat."""
        place, picks = answer.place, self._asks.items()
        asked = [pick for pick, ask in picks if any(place in self._loaded[key] for key in ask.questions)]
        return not answer.repeat and any(self._store.has("pick", pick) for pick in asked)

    def question_of(self, answer: Answer) -> Question | None:
        """What was answered; None when it can not be answered anew, for it is not asked any more."""
        return (self._again if answer.repeat else self.questions).get(answer.place)


class Board:
    """The piles of the chains of an experiment that ask people, by the keys of their books."""

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
        """Look at what is asked and answered now, unless that was done a moment ago; whether it was looked at."""
        if self._looked <= self._clock() < self._due:
            return False
        begun = time.monotonic()
        self.look()
        took = time.monotonic() - begun
        self._looked = self._clock()
        self._due = self._looked + max(POLL_SECONDS, took / POLL_SHARE)
        return True

    def look(self) -> None:
        """Look at what is asked and answered now. StoreError when the store cannot be read."""
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
        """The question of an id; None when it is not asked now, and no pixel is asked that a second time."""
        found = (pile.find(question) for pile in self.piles.values())
        return next((one for one in found if one is not None), None)

    def asks(self, question: Question) -> bool:
        """Whether a question is to be answered now."""
        return self.piles[question.book].asks(question)

    def refresh(self, books: Iterable[str]) -> None:
        """Read what other processes wrote into these books. StoreError for a damaged line."""
        for book in set(books):
            self.piles[book].refresh()

    def find_answer(self, answer: str) -> tuple[Pile, Answer] | None:
        """The answer of an id with its pile; None when there is none, or it was taken back."""
        found = ((pile, pile.find_answer(answer)) for pile in self.piles.values())
        return next(((pile, one) for pile, one in found if one is not None), None)

    def was_undone(self, answer: str) -> bool:
        """Whether the answer of this id was taken back."""
        return any(pile.was_undone(answer) for pile in self.piles.values())

    def last_answers(self, annotator: str, count: int) -> list[tuple[Pile, Answer]]:
        """The last answers that somebody gave and did not take back, in the order of time."""
        found = [(pile, one) for pile in self.piles.values() for one in islice(pile.given(annotator), count)]
        return sorted(found, key=lambda pair: (pair[1].time, pair[1].id))[-count:]

    def counts(self) -> tuple[int, int]:
        """How many of the pixels that are asked now have an answer, and how many they are."""
        total = sum(len(pile.questions) for pile in self.piles.values())
        return total - sum(pile.missing for pile in self.piles.values()), total

    def is_done(self) -> bool:
        """Whether every chain has been trained to its end."""
        records = ((self._record(chain), chain) for chain in self._chains)
        return all(record is not None and len(record.stages) >= len(chain.fits) for record, chain in records)
