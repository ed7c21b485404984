"""Images for the page: those of the training split at native size, without their label maps."""

import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from PIL import Image

from pixelpick_ray.config.trial import DatasetSpec
from pixelpick_ray.data.dataset import UInt8Array
from pixelpick_ray.data.datasets import open_dataset, training_split

KEPT = 32  # images in memory


@dataclass(frozen=True)
class ShownImage:
    """A PNG file and its size in pixels."""

    png: bytes
    height: int
    width: int


def reader(spec: DatasetSpec, data_path: Path) -> Callable[[str], UInt8Array]:
    """Return a function that reads a training image (H, W, 3) by name and raises DataError if it cannot."""
    dataset = open_dataset(spec, data_path)
    split = training_split(dataset, spec)
    return lambda name: dataset.read(split, name)[0]


class Gallery:
    """Thread-safe cache of the images viewed last."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pictures: OrderedDict[tuple[str, str], ShownImage] = OrderedDict()

    def look(self, shelf: str, name: str, read: Callable[[str], UInt8Array]) -> ShownImage:
        """Return an image by shelf and name, reading it if it is not in memory."""
        with self._lock:
            picture = self._pictures.get((shelf, name))
        if picture is None:
            picture = _encoded(read(name))
        with self._lock:
            self._pictures[shelf, name] = picture
            self._pictures.move_to_end((shelf, name))
            while len(self._pictures) > KEPT:
                self._pictures.popitem(last=False)
        return picture


def _encoded(pixels: UInt8Array) -> ShownImage:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
    return ShownImage(file.getvalue(), *pixels.shape[:2])
