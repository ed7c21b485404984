"""Ranks for the engine's tests; one thread a process, so that results do not depend on the machine."""

from collections.abc import Iterator

import pytest

from tests.support.ranks import Ranks


@pytest.fixture(autouse=True)
def _always(one_thread: None) -> None:
    """On one thread."""


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Two processes that run a function together."""
    both = Ranks(2)
    yield both
    both.stop()
