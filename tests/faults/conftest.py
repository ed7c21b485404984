"""Fixtures of the tests that kill."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fault_cluster import MARK, Nodes
from tests.support.launch import ROOT


@pytest.fixture
def mark() -> Iterator[dict[str, str]]:
    """Variables of all processes of a test: a mark, and how Ray runs: its folder needs a short path."""
    folder = tempfile.mkdtemp(prefix="pixelpick-")
    yield {MARK: Path(folder).name, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nodes(mark: dict[str, str]) -> Iterator[Nodes]:
    """Two nodes with room for a trial of two ranks each, whose GPUs are only counted."""
    mark["PYTHONPATH"] = str(ROOT)
    cluster = Nodes(mark, {"num_cpus": 0}, {"num_cpus": 2, "num_gpus": 2})
    cluster.join_worker()
    yield cluster
    cluster.stop()
