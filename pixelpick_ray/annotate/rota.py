"""Who is asked what next: a queue of questions for each person, whole images at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pixelpick_ray.annotate.board import Board, Pile
from pixelpick_ray.annotate.claims import Claims, Key
from pixelpick_ray.annotate.order import Question, by_image, by_prediction, is_for_the_same, is_repeated
from pixelpick_ray.errors import PixelPickError
from pixelpick_ray.leases import LEASE_SECONDS
from pixelpick_ray.spec.annotate import AnnotateSpec

IMAGES = {"image": 2, "predicted": 8}  # that are handed out together
LOW = 10  # questions in a queue below which more are fetched
BETWEEN = 10  # other answers before somebody is asked a pixel again
SILENT_SECONDS = 120.0


class Refusal(PixelPickError):
    """What cannot be done now, in a sentence for the person at the page.

    The reason is "wrong" for a request that never fits, "taken" while somebody else has the image, "gone" for what is
    not asked any more.
    """

    def __init__(self, reason: Literal["wrong", "taken", "gone"], sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass
class Person:
    """Somebody at a page, or at several: what they are asked in turn, and how many answers they gave."""

    name: str
    seen: float
    queue: list[Question] = field(default_factory=list)
    count: int = 0

    def finds(self, question: str) -> Question | None:
        """The question of this id in the queue."""
        return next((one for one in self.queue if one.id == question), None)


class Rota:
    """The people at the desk of one process; one thread at a time may call."""

    def __init__(self, board: Board, claims: Claims, spec: AnnotateSpec, clock: Callable[[], float]) -> None:
        self._board, self._claims, self._spec, self._clock = board, claims, spec, clock
        self._arrange = by_prediction if spec.order == "predicted" else by_image
        self._people: dict[str, Person] = {}
        self._swept = clock()

    # People

    def greet(self, name: str) -> Person:
        """Somebody who has just asked for something."""
        self.sweep()
        person = self._people.setdefault(name, Person(name, self._clock()))
        person.seen = self._clock()
        return person

    def sweep(self) -> None:
        """Let others have what silent people worked on; after a standstill everything, for the leases are dead."""
        now = self._clock()
        stood_still = now - self._swept > LEASE_SECONDS
        self._swept = now
        for person in self._people.values():
            if stood_still or now - person.seen > SILENT_SECONDS:
                person.queue.clear()
                for key in self._claims.of(person.name):
                    self._claims.release(key)

    def asked_again(self) -> set[Question]:
        """What somebody is being asked for the second time."""
        return {one for person in self._people.values() for one in person.queue if one.repeat}

    def close(self) -> None:
        """Let others have everything."""
        self._people.clear()
        self._claims.release_all()

    # Queues

    def tidy(self) -> None:
        """Drop what is not asked any more."""
        for person in self._people.values():
            person.queue = [one for one in person.queue if self._board.piles[one.book].asks(one)]
            self._release_finished(person)

    def _release_finished(self, person: Person) -> None:
        working = {_claim(question) for question in person.queue}
        for key in self._claims.of(person.name):
            book, image, *pixel = key
            if key not in working and (pixel or str(image) not in self._board.piles[str(book)].open):
                self._claims.release(key)

    def keep(self, person: Person, question: str) -> None:
        """Leave somebody a question that the page has, though they were silent, or it had it from another process."""
        found = self._board.find(question)
        if found is None or person.finds(question) is not None or not self._board.piles[found.book].asks(found):
            return
        if self._claims.take(_claim(found), person.name):
            person.queue.append(found)

    def refill(self, person: Person) -> None:
        """Fetch more for somebody whose queue runs low. StoreError when the store cannot be read."""
        if len(person.queue) >= LOW:
            return
        while len(person.queue) < LOW and (taken := self._take(person)):
            person.queue += self._arrange(taken)
        if self._spec.repeats:
            person.queue += self._take_again(person)
        self._release_finished(person)

    def _take(self, person: Person) -> list[Question]:
        """The open questions of further images that nobody else works on; none when there are none."""
        queued, found = set(person.queue), []
        left = IMAGES[self._spec.order]
        for pile in self._board.piles.values():
            mine: list[str] = []
            for image in pile.images():
                if len(mine) == left:
                    break
                is_new = any(question not in queued for question in pile.open[image].values())
                if is_new and self._claims.take((pile.key, image), person.name):
                    mine.append(image)
            if mine:
                pile.refresh()  # what another process answered before it gave them back
            questions = [question for image in mine for question in pile.open.get(image, {}).values()]
            found += [question for question in questions if question not in queued]
            left -= len(mine)
        return found

    def _take_again(self, person: Person) -> list[Question]:
        """Pixels that are asked a second time now: half of them only of who answered them, some answers later."""
        found: list[Question] = []
        for pile in self._board.piles.values():
            mine = [answer.id for answer in pile.answers.values() if answer.annotator == person.name]
            recent, own = set(mine[-BETWEEN:]), set(mine)
            first = [(question, pile.said[question.place].id) for question in self._marked(pile)]
            wanted = [
                question
                for question, answer in first
                if answer not in recent and (answer in own or not is_for_the_same(pile.key, question.place))
            ]
            taken = [one for one in wanted[: LOW - len(found)] if self._claims.take(_claim(one), person.name)]
            if taken:
                pile.refresh()  # what another process asked again before it gave them back
            found += [question for question in taken if pile.asks(question)]
        return found

    def _marked(self, pile: Pile) -> list[Question]:
        """The pixels of a pile that are to be asked a second time and that nobody is being asked now."""
        asked, share = self.asked_again(), self._spec.repeats
        marked = [one.again() for place, one in pile.questions.items() if is_repeated(pile.key, place, share)]
        return [question for question in marked if pile.asks(question) and question not in asked]

    def claim(self, person: Person, question: str) -> Question:
        """The question of an id, for them to answer now: from the queue, or one that the page had before.

        Refusal says why it is not theirs.
        """
        found = person.finds(question) or self._board.find(question)
        if found is None:
            self._board.look()
            found = self._board.find(question)
        if found is None:
            raise Refusal("gone", "This question is not asked any more.")
        if found not in person.queue:
            self._take_in(person, found)
        self._check_asked(found)
        return found

    def _take_in(self, person: Person, question: Question) -> None:
        self._check_asked(question)
        self.put_first(person, question)
        self._board.piles[question.book].refresh()  # what another process answered before it gave the image back

    def _check_asked(self, question: Question) -> None:
        if not self._board.piles[question.book].asks(question):
            self.forget(question)
            raise Refusal("gone", "This question has its answer already.")

    def put_first(self, person: Person, question: Question) -> None:
        """Ask somebody this before anything else. Refusal while somebody else has the image."""
        if not self._claims.take(_claim(question), person.name):
            raise Refusal("taken", "Somebody else works on this image now.")
        person.queue.insert(0, question)

    def forget(self, question: Question) -> None:
        """Take a question out of the queues, and give back what is finished with it."""
        for person in self._people.values():
            if question in person.queue:
                person.queue.remove(question)
                self._release_finished(person)


def _claim(question: Question) -> Key:
    """What somebody must have to be asked this."""
    return (question.book, *question.place) if question.repeat else (question.book, question.image)
