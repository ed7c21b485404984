"""Stores and desks."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pixelpick_ray.annotate.desk import Desk
from pixelpick_ray.plan import Plan
from pixelpick_ray.store import Store
from tests.support.annotation_page import Clock
from tests.support.questions import plan_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_desk(store: Store, clock: Clock) -> Iterator[Callable[..., Desk]]:
    """Open a desk, as one process does; all are closed at the end."""
    opened = []

    def open_one(plan: Plan | None = None) -> Desk:
        opened.append(Desk(plan or plan_of(), store, Path("nowhere"), clock=clock))
        return opened[-1]

    yield open_one
    for desk in opened:
        desk.close()
