"""Shared fixtures and settings of all tests."""

import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from tests.support.ray_cluster import running_cluster

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run at a time; threads that wait for each other cost most
settings.register_profile("default", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile("default")


def pytest_sessionstart() -> None:
    """Signals are heard, whatever started the tests: shells and nohup have what they start ignore some."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files in which ``-m`` chooses nothing: importing them is what takes long in `make quick`."""
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    content, expression = collection_path.read_text(encoding="utf-8"), config.option.markexpr
    wanted = [term for term in expression.split(" and ") if re.fullmatch(r"\w+", term)]  # such as "not gpu and alone"
    if not all(f"mark.{mark}" in content for mark in wanted):
        return True
    inside = re.fullmatch(r"not \(([\w ]+)\)", expression)  # such as "not (slow or ray)"
    left_out = inside[1].split(" or ") if inside else []
    own = re.search(r"^pytestmark = .*$", content, re.M)
    return True if own and any(re.search(rf"mark\.{mark}\b", own[0]) for mark in left_out) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none; of several workers two begin with tests that wait for Ray clusters."""
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        waiting = [item for item in items if item.get_closest_marker("ray")]
        others = [item for item in items if not item.get_closest_marker("ray")]
        share = len(items) // workers  # of each worker, in order, before they take from each other
        first, second = waiting[::2], waiting[1::2]
        rest = others[share - len(first) :]
        items[:] = [*first, *others[: share - len(first)], *second, *rest]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Address of a Ray cluster of two CPUs that the tests of this process share; its workers find the package."""
    with running_cluster("--include-dashboard=false", PYTHONPATH=str(Path(__file__).resolve().parents[1])) as (
        address,
        _,
    ):
        yield address


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The address, with credentials, of a bucket on a loopback S3 server; `{}` in it is the place of a prefix."""
    server = pytest.importorskip("moto.server")
    from pyarrow.fs import FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        system, _ = FileSystem.from_uri(f"s3://reader:hush@bucket?{options}&allow_bucket_creation=true")
        system.create_dir("bucket")
        yield f"s3://reader:hush@bucket/{{}}?{options}"
    finally:
        running.stop()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch computes on one thread, so that equal work gives equal bytes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(one_thread: None) -> Iterator[None]:
    """The tiny data set of tests/support is known, and torch computes on one thread."""
    from pixelpick_ray.data.datasets import DATASETS
    from tests.support.tiny_data import TinyDataset

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "tiny", TinyDataset)
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without their drawings, which take nearly all of the time."""
    monkeypatch.setattr("pixelpick_ray.report.figures._drawn", lambda *how: b'<svg viewBox="0 0 1 1"></svg>')


@pytest.fixture
def camvid_yaml() -> str:
    """The experiment file of the interface, with the default colour jitter and blur."""
    return Path(__file__).with_name("camvid.yaml").read_text(encoding="utf-8")


@pytest.fixture
def write_camvid(tmp_path: Path) -> Callable[..., Path]:
    """Write a CamVid folder of small random images; returns the data folder that holds ``camvid/``."""

    def write(num_images: int = 3, size: tuple[int, int] = (8, 10), splits: tuple[str, ...] = ("train",)) -> Path:
        rng = np.random.default_rng(0)
        data = tmp_path / "data"
        for split in splits:
            for folder in (split, f"{split}annot"):
                (data / "camvid" / folder).mkdir(parents=True, exist_ok=True)
            for index in range(num_images):
                image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                label = rng.integers(0, 12, size, dtype=np.uint8)
                Image.fromarray(image).save(data / "camvid" / split / f"{split}_{index:03d}.png")
                Image.fromarray(label).save(data / "camvid" / f"{split}annot" / f"{split}_{index:03d}.png")
        return data

    return write


@pytest.fixture(scope="module")
def cache_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of decoded images that the tests of a module share."""
    return tmp_path_factory.mktemp("cache")
