"""A scripted person who answers what chains ask, as quickly as they are asked."""

import time
from itertools import count

from pixelpick_ray.data.answers import Answer, Book
from pixelpick_ray.data.questions import Place, Questions, open_ask
from pixelpick_ray.plan import Plan
from pixelpick_ray.runner.people import People
from pixelpick_ray.spec.execution import Execution
from pixelpick_ray.spec.experiment import Experiment
from pixelpick_ray.store import Store, experiment_folder


def nobody(plan: Plan, execution: Execution) -> People:
    """Whoever is waited for by a run that does not wait, and ends when it has to."""
    return People(plan, execution, "the page", lambda text: None, lambda: False)


class Person:
    """Knows the truth, and says of every so-manieth pixel (by its place alone) that they cannot tell."""

    def __init__(self, store: Store, experiment: Experiment, *, refuse_every: int = 0, name: str = "ann") -> None:
        self.store, self.experiment, self.name = store, experiment, name
        self.refuse_every, self.said, self._numbers = refuse_every, list[Answer](), count()

    def asked(self) -> list[tuple[str, Questions]]:
        """The book and the questions of everything that is asked now; what chains ask together comes once."""
        folder = f"{experiment_folder(self.experiment)}/chains"
        asks = [open_ask(self.store, self.experiment, chain) for chain in self.store.records(folder)]
        return [(ask.book, ask.load(self.store)) for ask in {ask.pick: ask for ask in asks if ask}.values()]

    def refuses(self, place: Place) -> bool:
        """Whether they cannot tell the class of a pixel."""
        return self.refuse_every > 0 and (7 * place[1] + 3 * place[2]) % self.refuse_every == 0

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
        number = f"{self.name}-{next(self._numbers)}"
        answer = Answer(id=number, image=image, y=y, x=x, annotator=self.name, time=time.time(), seconds=1.5, **told)
        book.append(answer)
        self.said.append(answer)

    def _names(self, chain: str) -> tuple[str, ...]:
        record = self.store.read_record(f"{experiment_folder(self.experiment)}/chains/{chain}.json")
        return tuple(record["class_names"])
