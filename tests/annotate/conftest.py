"""An office with desks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.annotation_page import Office


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """A store in which nothing is asked yet; its desks are closed at the end."""
    office = Office(tmp_path / "store")
    yield office
    office.close()
