"""What a page does, without a browser, and time that passes when a test says so."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.annotate.desk import Desk, Reply
from pixelpick_ray.annotate.rota import Refusal
from pixelpick_ray.data.answers import Answer
from pixelpick_ray.data.questions import Place, Questions
from pixelpick_ray.planning import Plan
from pixelpick_ray.store import Store
from tests.support.questions import answers_in, ask, finish, go_on, plan_of, questions_of

NUMBERS = itertools.count()
Item = dict[str, Any]


class Clock:
    """Time that passes when a test says so, and a little with each look."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


class Page:
    """What a page does: keeps the questions that it has, answers the first one."""

    def __init__(self, desk: Desk, annotator: str) -> None:
        self.desk, self.annotator = desk, annotator
        self.items: list[Item] = []
        self.state = ""
        self.sent: list[tuple[str, Item]] = []  # identity of the answer and what it answers
        self.progress: Item = {}

    def fetch(self) -> None:
        found = self.desk.next(self.annotator, [item["id"] for item in self.items])
        self.items = [item for item in self.items if item["id"] not in found["dropped"]] + found["items"]
        self.state, self.progress = found["state"], found

    def reply(self, item: Item, label: str | None = "road", **other: Any) -> Reply:
        fields = {"id": f"answer-{next(NUMBERS)}", "annotator": self.annotator, "question": item["id"], "seconds": 1.5}
        return Reply(**(fields | {"kind": "class" if label else "unknown", "label": label} | other))

    def answer(self, label: str | None = "road", **other: Any) -> Reply:
        item = self.items.pop(0)
        reply = self.reply(item, label, **other)
        self.progress = self.desk.answer(reply)
        self.sent.append((reply.id, item))
        return reply

    def work(self, count: int = 10**6) -> int:
        """Answer until so many answers are given or nothing is left; how many were given."""
        for done in range(count):
            if len(self.items) < 3:
                self.fetch()
            if not self.items:
                return done
            self.answer()
        return count


class Office:
    """A store in which a chain asks, a clock, and desks, each opened as by a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.store, self.clock, self.plan = Store(folder), Clock(), plan_of()
        self._opened: list[Desk] = []

    def ask(self, images: int | Sequence[str], pixels: int, *overrides: str, seed: int = 0, **how: Any) -> Questions:
        """Have the chain ask for so many pixels of each image; with overrides, that of another plan from now on."""
        self.plan = plan_of(*overrides) if overrides else self.plan
        return ask(self.store, self.plan, questions_of(images, pixels, seed=seed), **how)

    def train(self, pick: str = "first", *, ends: bool = False) -> None:
        """Have the training take the answers, or end with that; the desks look at the store again."""
        go_on(self.store, pick)
        if ends:
            finish(self.store, self.plan)
        self.clock.now += 2

    def desk(self, plan: Plan | None = None) -> Desk:
        self._opened.append(Desk(plan or self.plan, self.store, Path("nowhere"), clock=self.clock))
        return self._opened[-1]

    def page(self, annotator: str = "ann", desk: Desk | None = None) -> Page:
        """Somebody's page that has fetched questions, at this desk or one of its own."""
        page = Page(desk or self.desk(), annotator)
        page.fetch()
        return page

    def answers(self) -> Sequence[Answer]:
        return answers_in(self.store)

    def places(self, *, repeat: bool = False) -> list[Place]:
        """Where answers are; those that are no repeats are of a pixel each, and so are repeats."""
        found = [answer.place for answer in self.answers() if answer.repeat == repeat]
        assert len(set(found)) == len(found)
        return found

    def close(self) -> None:
        for desk in self._opened:
            desk.close()


def place(item: Item) -> Place:
    return item["name"], item["y"], item["x"]


def images(items: Sequence[Item]) -> list[str]:
    return [item["name"] for item in items]


@contextmanager
def refused(message: str, reason: str = "") -> Iterator[None]:
    """What a desk refuses with this message, and for this reason where one is given."""
    with pytest.raises(Refusal, match=message) as caught:
        yield
    assert caught.value.reason == (reason or caught.value.reason)
