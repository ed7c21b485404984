"""Ranks for the engine's tests; one thread a process, so that results do not depend on the machine."""

from collections.abc import Iterator

import pytest
import torch

from tests.engine.ranks import Ranks


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Two processes that run a function together."""
    both = Ranks(2)
    yield both
    both.stop()
