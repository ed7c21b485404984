"""Stores for every test of reports."""

from pathlib import Path

import pytest

from tests.support.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """An empty store to fill."""
    return Study(tmp_path / "store")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A store that a fixture of a module fills and its tests read."""
    return Study(tmp_path_factory.mktemp("kept") / "store")
