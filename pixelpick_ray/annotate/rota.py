"""The rota: a queue of questions for each person, filled by whole images."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from pixelpick_ray.annotate.board import Board
from pixelpick_ray.annotate.claims import Claims, Key
from pixelpick_ray.annotate.order import Question, by_image, by_prediction
from pixelpick_ray.config.annotate import AnnotateSpec
from pixelpick_ray.data.questions import Place
from pixelpick_ray.errors import PixelPickError
from pixelpick_ray.store.leases import LEASE_SECONDS

IMAGES = {"image": 2, "predicted": 8}  # handed out together
LOW = 10  # queue length below which more questions are fetched
BETWEEN = 10  # other answers before somebody is asked about a pixel again
SILENT_SECONDS = 120.0


class Refusal(PixelPickError):
    """A request that cannot be fulfilled, with a sentence for the person at the page.

    The reason is "wrong" for an invalid request, "taken" while somebody else has the image, and "gone" for what is no
    longer asked.
    """

    def __init__(self, reason: Literal["wrong", "taken", "gone"], sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass
class Person:
    """Somebody at one or more pages: their queue of questions, and their number of answers."""

    name: str
    seen: float
    queue: list[Question] = field(default_factory=list)
    count: int = 0

    @property
    def queued(self) -> set[str]:
        """Ids of the questions in the queue."""
        return {one.id for one in self.queue}

    def finds(self, question: str) -> Question | None:
        """Return the question with this id in the queue, or None."""
        return next((one for one in self.queue if one.id == question), None)


class Rota:
    """The people at the desk of one process; not thread-safe."""

    def __init__(self, board: Board, claims: Claims, spec: AnnotateSpec, clock: Callable[[], float]) -> None:
        self._board, self._claims, self._spec, self._clock = board, claims, spec, clock
        self._arrange = by_prediction if spec.order == "predicted" else by_image
        self._people: dict[str, Person] = {}
        self._swept = clock()

    # People

    def greet(self, name: str) -> Person:
        """Return the person of a name, and note that they are active."""
        person = self._people.setdefault(name, Person(name, self._clock()))
        person.seen = self._clock()
        self.sweep()
        return person

    def sweep(self) -> None:
        """Release what inactive people were working on; after a standstill everything, because leases have expired."""
        now = self._clock()
        stood_still = now - self._swept > LEASE_SECONDS
        self._swept = now
        for person in self._people.values():
            if stood_still or now - person.seen > SILENT_SECONDS:
                person.queue.clear()
                for key in self._claims.of(person.name):
                    self._claims.release(key)

    def asked_again(self) -> set[Question]:
        """Return all repeats in queues."""
        return {one for person in self._people.values() for one in person.queue if one.repeat}

    def close(self) -> None:
        """Release everything."""
        self._people.clear()
        self._claims.release_all()

    # Queues

    def tidy(self) -> None:
        """Drop questions that are no longer asked."""
        for person in self._people.values():
            person.queue = [one for one in person.queue if self._board.asks(one)]
            self._release_finished(person)

    def _release_finished(self, person: Person) -> None:
        working = {_claim(question) for question in person.queue}
        for key in self._claims.of(person.name):
            book, image, *pixel = key
            if key not in working and (pixel or str(image) not in self._board.piles[str(book)].open):
                self._claims.release(key)

    def keep(self, person: Person, questions: Iterable[str]) -> None:
        """Let somebody keep the questions that their page has, unless others have taken or answered them meanwhile.

        They may have been inactive, or the page may have the questions from another process.
        """
        queued = person.queued
        found = [one for question in questions if question not in queued and (one := self._board.find(question))]
        asked = [one for one in found if self._board.asks(one)]
        mine = {key: self._claims.take(key, person.name) for key in dict.fromkeys(map(_claim, asked))}
        self._add(person, [one for one in asked if mine[_claim(one)]])
        self._release_finished(person)

    def refill(self, person: Person) -> None:
        """Fetch more questions if somebody's queue runs low. Raises StoreError if the store cannot be read."""
        if len(person.queue) >= LOW:
            return
        new: list[Question] = []
        while len(person.queue) + len(new) < LOW and (taken := self._take(person, new)):
            new += self._arrange(taken)
        new += self._take_again(person)
        if not person.queue and not new:
            new += self._take_sooner(person)
        self._add(person, new)
        self._release_finished(person)

    def _add(self, person: Person, claimed: Sequence[Question]) -> None:
        """Queue questions that somebody has just claimed."""
        self._board.refresh(one.book for one in claimed)  # answers by other processes before they released them
        person.queue += [one for one in claimed if self._board.asks(one)]

    def _take(self, person: Person, new: Sequence[Question]) -> list[Question]:
        """Open questions of further images that nobody else is working on, if any."""
        found: list[Question] = []
        queued, left = person.queued | {one.id for one in new}, IMAGES[self._spec.order]
        for pile in self._board.piles.values():
            for image in pile.images():
                if not left:
                    break
                more = [one for one in pile.open[image].values() if one.id not in queued]
                if more and self._claims.take((pile.key, image), person.name):
                    found += more
                    left -= 1
        return found

    def _take_again(self, person: Person) -> list[Question]:
        """Due repeats, half of them only for the first annotator, once enough other answers lie in between."""
        recent = {_pixel(pile.key, one.place) for pile, one in self._board.last_answers(person.name, BETWEEN)}
        late = (one for one in self._due(person) if _pixel(one.book, one.place) not in recent)
        return list(islice((one for one in late if self._claims.take(_claim(one), person.name)), LOW))

    def _take_sooner(self, person: Person) -> list[Question]:
        """Repeats after fewer other answers, for somebody with nothing else to do, earliest answers first.

        Never the pixel answered last, because that would measure nothing.
        """
        due = {_pixel(one.book, one.place): one for one in self._due(person)}
        recent = [_pixel(pile.key, one.place) for pile, one in self._board.last_answers(person.name, BETWEEN)]
        soon = (due[pixel] for pixel in recent[:-1] if pixel in due)
        return [one for one in soon if self._claims.take(_claim(one), person.name)]

    def _due(self, person: Person) -> Iterator[Question]:
        queued = person.queued
        piles = self._board.piles.values() if self._spec.repeats else ()
        return (one for pile in piles for one in pile.due(person.name) if one.id not in queued)

    def claim(self, person: Person, question: str) -> Question:
        """Return the question with an id for somebody to answer, from the queue or one that the page had before.

        Raises Refusal with the reason if it is not theirs.
        """
        found = person.finds(question) or self._board.find(question)
        if found is None:
            self._board.look()
            found = self._board.find(question)
        if found is None:
            raise Refusal("gone", "This question is no longer asked.")
        if found not in person.queue:
            self._take_in(person, found)
        self._check_asked(found)
        return found

    def _take_in(self, person: Person, question: Question) -> None:
        self._check_asked(question)
        self.put_first(person, question)
        self._board.refresh([question.book])  # answers by other processes before they released the image

    def _check_asked(self, question: Question) -> None:
        if not self._board.asks(question):
            self.forget(question)
            raise Refusal("gone", "This question has been answered already.")

    def put_first(self, person: Person, question: Question) -> None:
        """Put a question first in somebody's queue. Raises Refusal while somebody else has the image."""
        if not self._claims.take(_claim(question), person.name):
            raise Refusal("taken", "Somebody else is working on this image now.")
        person.queue.insert(0, question)

    def forget(self, question: Question) -> None:
        """Remove a question from all queues, and release what is finished with it."""
        for person in self._people.values():
            if question in person.queue:
                person.queue.remove(question)
                self._release_finished(person)


def _claim(question: Question) -> Key:
    """Claim needed to be asked a question."""
    return _pixel(question.book, question.place) if question.repeat else (question.book, question.image)


def _pixel(book: str, place: Place) -> Key:
    return book, *place
