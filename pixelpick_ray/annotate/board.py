"""What chains ask people now, and what has been answered of it."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pixelpick_ray.annotate.gallery import reader
from pixelpick_ray.annotate.order import Question
from pixelpick_ray.data.answers import Answer, Book, Undo
from pixelpick_ray.data.questions import Ask, Place, open_ask
from pixelpick_ray.plan import Chain
from pixelpick_ray.spec.experiment import Experiment
from pixelpick_ray.spec.trial import HumanSpec
from pixelpick_ray.store import Store, experiment_folder

POLL_SECONDS = 1.0
POLL_SHARE = 0.1  # of the time at most: a book of many answers takes long to read


class Pile:
    """The questions whose answers go into one book: those of all chains that ask about the same images.

    `questions` are those that are asked now and `open` those of them without an answer, by image. `answers` has all by
    their id in the order of time, `said` the one that counts for each pixel, `repeated` the pixels asked twice.
    """

    def __init__(self, store: Store, key: str, chain: Chain, data_path: Path) -> None:
        self._store, self.key = store, key
        self.suggests = isinstance(chain.trial.oracle, HumanSpec) and chain.trial.oracle.suggestions
        self.read_image = reader(chain.trial.dataset, data_path)
        self.questions: dict[Place, Question] = {}
        self._asked: dict[str, tuple[Ask, dict[Place, Question]]] = {}  # by pick: all that this process has seen
        self._book = Book(store, key)
        self._index()

    def ask(self, asks: Sequence[Ask]) -> None:
        """Take these as all that is asked now. StoreError when their questions vanished."""
        for ask in asks:
            if ask.pick not in self._asked or self._asked[ask.pick][0] != ask:
                self._asked[ask.pick] = ask, self._load(ask)
        self.questions = {}
        for ask in asks:
            self.questions = self._asked[ask.pick][1] | self.questions

    def _load(self, ask: Ask) -> dict[Place, Question]:
        asked = ask.load(self._store)
        shapes = asked.shapes.tolist()
        columns = (column.tolist() for column in (asked.image, asked.y, asked.x, asked.predicted))
        found = [
            Question(self.key, asked.names[image], y, x, shapes[image][0], shapes[image][1], predicted)
            for image, y, x, predicted in zip(*columns, strict=True)
        ]
        return {question.place: question for question in found}

    def refresh(self) -> None:
        """Read what other processes wrote. StoreError for a damaged line."""
        self._book.refresh()
        self._index()

    def _index(self) -> None:
        self.answers = {answer.id: answer for answer in self._book.answers}
        self.said = self._book.said()
        self.repeated = {answer.place for answer in self.answers.values() if answer.repeat}
        self.open: dict[str, dict[Place, Question]] = {}
        for place, question in self.questions.items():
            if place not in self.said:
                self.open.setdefault(question.image, {})[place] = question

    def add(self, answer: Answer) -> None:
        """Write an answer; it is safe when this returns. StoreError when it cannot be."""
        self._book.append(answer)
        self.answers[answer.id] = answer
        if answer.repeat:
            self.repeated.add(answer.place)
        else:
            self.said[answer.place] = answer
            self._close(answer.place)

    def _close(self, place: Place) -> None:
        self.open.get(place[0], {}).pop(place, None)
        if not self.open.get(place[0]):
            self.open.pop(place[0], None)

    def take_back(self, answer: Answer, now: float) -> None:
        """Write that an answer does not count. StoreError when it cannot be."""
        self._book.append(Undo(undone=answer.id, annotator=answer.annotator, time=now))
        self._index()

    def was_undone(self, answer: str) -> bool:
        """Whether the answer of this id was taken back."""
        return answer in self._book.undone

    def is_used(self, place: Place) -> bool:
        """Whether a training has gone on with the answer of a pixel, as far as this process knows."""
        picks = [pick for pick, (_, questions) in self._asked.items() if place in questions]
        return any(self._store.has("pick", pick) for pick in picks)

    def question_of(self, answer: Answer) -> Question:
        """What was answered, which must be asked now."""
        question = self.questions[answer.place]
        return question.again() if answer.repeat else question

    def asks(self, question: Question) -> bool:
        """Whether a question is to be answered now: a repeat while the pixel has just one answer."""
        place = question.place
        if question.repeat:
            return place in self.questions and place in self.said and place not in self.repeated
        return place in self.open.get(question.image, {})

    def images(self) -> list[str]:
        """The images with open questions; those that were begun come first."""
        begun = {place[0] for place in self.questions if place in self.said}
        return sorted(self.open, key=lambda image: (image not in begun, image))


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
        self._clock = clock
        self.piles: dict[str, Pile] = {}
        self._by_id: dict[str, Question] = {}
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
        asks: dict[str, dict[str, Ask]] = {key: {} for key in self.piles}
        for chain in self._chains:
            ask = open_ask(self._store, self._experiment, chain.id)
            if ask is not None and ask.is_whole(self._store):
                if ask.book not in self.piles:
                    self.piles[ask.book] = Pile(self._store, ask.book, chain, self._data_path)
                asks.setdefault(ask.book, {})[ask.pick] = ask
        for key, pile in self.piles.items():
            pile.ask(list(asks[key].values()))
            pile.refresh()
        self._by_id = {one.id: one for pile in self.piles.values() for one in pile.questions.values()}

    def find(self, question: str) -> Question | None:
        """The question of an id; None when it is not asked now."""
        return self._by_id.get(question)

    def find_answer(self, answer: str) -> tuple[Pile, Answer] | None:
        """The answer of an id with its pile; None when there is none, or it was taken back."""
        return next(((pile, pile.answers[answer]) for pile in self.piles.values() if answer in pile.answers), None)

    def was_undone(self, answer: str) -> bool:
        """Whether the answer of this id was taken back."""
        return any(pile.was_undone(answer) for pile in self.piles.values())

    def counts(self) -> tuple[int, int]:
        """How many of the pixels that are asked now have an answer, and how many they are."""
        total = sum(len(pile.questions) for pile in self.piles.values())
        return total - sum(len(places) for pile in self.piles.values() for places in pile.open.values()), total

    def is_done(self) -> bool:
        """Whether every chain has been trained to its end."""
        folder = f"{experiment_folder(self._experiment)}/chains"
        records = (self._store.read_record(f"{folder}/{chain.id}.json") for chain in self._chains)
        return all(
            len((record or {}).get("stages", ())) >= len(chain.fits)
            for record, chain in zip(records, self._chains, strict=True)
        )
