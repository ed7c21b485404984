"""A scripted person who answers what chains ask, as quickly as they are asked."""

import time
from itertools import count

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.data.answers import Answer, Book
from pixelpick_ray.data.questions import Place, Questions, all_questions, open_ask
from pixelpick_ray.planning import Plan
from pixelpick_ray.runner.people import People
from pixelpick_ray.store import Store, experiment_folder


def nobody(plan: Plan, execution: Execution) -> People:
    """Whoever is waited for by a run that does not wait, and ends when it has to."""
    return People(plan, execution, "the page", lambda text: None, lambda: False)


class Person:
    """Knows the truth, but says of every so-manieth pixel (by its place) that they cannot tell, save in one image."""

    def __init__(self, store: Store, experiment: Experiment, *, refuse_every: int = 0, but_in: str = "") -> None:
        self.store, self.experiment, self.said = store, experiment, list[Answer]()
        self._refuse_every, self._but_in, self._numbers = refuse_every, but_in, count()

    def asked(self) -> list[tuple[str, Questions]]:
        """The book and the questions of everything that is asked now; what chains ask together comes once."""
        folder = f"{experiment_folder(self.experiment)}/chains"
        asks = [open_ask(self.store, self.experiment, chain) for chain in self.store.records(folder)]
        return [(ask.book, all_questions(ask, self.store)) for ask in {ask.pick: ask for ask in asks if ask}.values()]

    def refuses(self, place: Place) -> bool:
        every = self._refuse_every
        return every > 0 and place[0] != self._but_in and (7 * place[1] + 3 * place[2]) % every == 0

    def answer_all(self, limit: int | None = None) -> int:
        """Answer everything that is asked and has no answer yet, at most `limit` of it; how many they were."""
        (names,) = {self._names(chain) for chain in self.store.records(f"{experiment_folder(self.experiment)}/chains")}
        before = len(self.said)
        for key, questions in self.asked():
            book = Book(self.store, key)
            known = book.said()
            for place, truth in zip(questions.places(), questions.truth.tolist(), strict=True):
                if place not in known and (limit is None or len(self.said) - before < limit):
                    self._answer(book, place, names[truth])
        return len(self.said) - before

    def _answer(self, book: Book, place: Place, label: str) -> None:
        image, y, x = place
        told = {"kind": "unknown"} if self.refuses(place) else {"kind": "class", "label": label}
        number = f"ann-{time.time_ns()}-{next(self._numbers)}"
        answer = Answer(id=number, image=image, y=y, x=x, annotator="ann", time=time.time(), seconds=1.5, **told)
        book.append(answer)
        self.said.append(answer)

    def _names(self, chain: str) -> tuple[str, ...]:
        record = self.store.read_record(f"{experiment_folder(self.experiment)}/chains/{chain}.json")
        return tuple(record["class_names"])
