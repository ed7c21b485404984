"""Description of a prepared split for reports: thumbnails of a few images, and label statistics.

It is a folder with ``description.json`` and, numbered as in its ``names``, ``images/0.jpg`` and ``labels/0.png``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixelpick_ray.data.borders import border_distances, mean_distance
from pixelpick_ray.data.cache import PreparedSplit
from pixelpick_ray.data.dataset import Colour, DatasetFacts, UInt8Array
from pixelpick_ray.data.streams import stream
from pixelpick_ray.store import Store

SHOWN_IMAGES = 4
LONG_SIDE = 256  # of thumbnails, at most, in pixels
SAMPLED_IMAGES, SAMPLED_PIXELS = 100, 32  # for the mean border distance
VOID_COLOUR = (128, 128, 128)


def shown(positions: Sequence[int]) -> list[int]:
    """Up to SHOWN_IMAGES of the positions, evenly spaced, including the first and the last."""
    at = np.linspace(0, len(positions) - 1, num=min(SHOWN_IMAGES, len(positions)), dtype=int)
    return [int(positions[index]) for index in at]


def write_description(folder: Path, prepared: PreparedSplit, positions: Sequence[int], facts: DatasetFacts) -> None:
    """Write a description of the images at these positions of a split into `folder`.

    ``class_counts`` are pixels per class over all of them; ``border_distance`` is the mean distance in pixels from a
    labelled pixel to a class border (`borders`), estimated from a sample (None: there are no borders).
    """
    examples = shown(positions)
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for number, position in enumerate(examples):
        image = Image.fromarray(np.asarray(prepared.image(position)))
        image.resize(_small(prepared.shape(position)), Image.Resampling.BOX).save(
            folder / "images" / f"{number}.jpg", quality=88
        )
        write_label_map(folder / "labels" / f"{number}.png", prepared.label(position), facts.palette)
    text = {
        "names": [prepared.names[position] for position in examples],
        "shapes": [list(prepared.shape(position)) for position in examples],
        "palette": [list(colour) for colour in facts.palette],
        "images": len(positions),
        "class_counts": _class_counts(prepared, positions, facts.num_classes),
        "border_distance": _border_distance(prepared, positions, facts),
    }
    (folder / "description.json").write_text(json.dumps(text) + "\n", encoding="utf-8")


def write_label_map(path: Path, label: UInt8Array, palette: Sequence[Colour]) -> None:
    """Write a label map or prediction (H, W) as a small palette PNG; values beyond the palette are shown grey."""
    colours = [*palette, *[VOID_COLOUR] * (256 - len(palette))]
    picture = Image.fromarray(np.asarray(label), mode="P")
    picture.putpalette([value for colour in colours for value in colour])
    picture.resize(_small((label.shape[0], label.shape[1])), Image.Resampling.NEAREST).save(path, optimize=True)


def _small(shape: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the thumbnail of an image of `shape` (height, width)."""
    factor = min(1.0, LONG_SIDE / max(shape))
    return max(1, int(shape[1] * factor)), max(1, int(shape[0] * factor))


def _class_counts(prepared: PreparedSplit, positions: Sequence[int], classes: int) -> list[int]:
    counts: npt.NDArray[np.int64] = np.zeros(256, dtype=np.int64)
    for position in positions:
        counts += np.bincount(prepared.label(position).ravel(), minlength=256)
    return [int(count) for count in counts[:classes]]


def _border_distance(prepared: PreparedSplit, positions: Sequence[int], facts: DatasetFacts) -> float | None:
    sampled = np.linspace(0, len(positions) - 1, num=min(SAMPLED_IMAGES, len(positions)), dtype=int)
    distances = []
    for position in (positions[at] for at in sampled):
        label = prepared.label(position)
        labelled = np.flatnonzero(label.ravel() != facts.void_index)
        if len(labelled):
            rng = stream(0, "border_distance", prepared.names[position])
            distances.append(border_distances(label, rng.choice(labelled, size=SAMPLED_PIXELS)))
    return mean_distance(distances)


@dataclass(frozen=True)
class Description:
    """A stored description: its JSON fields, and the files of thumbnails and label maps."""

    facts: dict[str, Any]
    images: tuple[bytes, ...]
    labels: tuple[bytes, ...]

    @property
    def names(self) -> list[str]:
        """Names of the images with thumbnails."""
        return list(self.facts["names"])

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(height, width) of the prepared images with thumbnails."""
        return [(height, width) for height, width in self.facts["shapes"]]


def read_description(store: Store, key: str | None) -> Description | None:
    """Read a stored description; None if there is none."""
    first = store.files("split", key, ["description.json"]) if key else None
    if key is None or first is None:
        return None
    facts = json.loads(first["description.json"])
    numbers = range(len(facts["names"]))
    images, labels = [f"images/{number}.jpg" for number in numbers], [f"labels/{number}.png" for number in numbers]
    files = store.files("split", key, [*images, *labels])
    if files is None:
        return None
    return Description(facts, tuple(files[name] for name in images), tuple(files[name] for name in labels))
