"""Fixtures of the tests that kill."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fault_cluster import MARK


@pytest.fixture
def mark() -> Iterator[dict[str, str]]:
    """Variables of all processes of a test: a mark, and how Ray runs: its folder needs a short path."""
    folder = tempfile.mkdtemp(prefix="pixelpick-")
    yield {MARK: Path(folder).name, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
    shutil.rmtree(folder, ignore_errors=True)
