"""What a page does, without a browser, and time that passes when a test says so."""

import itertools
from typing import Any

from pixelpick_ray.annotate.desk import Desk, Reply
from pixelpick_ray.store import Store
from tests.support.questions import answers_in

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


def places(store: Store, *, repeat: bool = False) -> list[tuple[str, int, int]]:
    return [answer.place for answer in answers_in(store) if answer.repeat == repeat]
