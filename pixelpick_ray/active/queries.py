"""What was asked: statistics of the new pixels of one stage (protocol of PixelPick, section 4), never cumulative."""

import math
from typing import Any

import numpy as np

from pixelpick_ray.data.labels import LabelledPixels


def query_statistics(
    pixels: LabelledPixels, *, num_classes: int, entropies: list[float] | None, border_distance: float | None
) -> dict[str, Any]:
    """JSON-ready statistics of new pixels.

    ``class_counts`` of the answers; ``entropy``: mean entropy of the prediction at the pixels in nats (None: the
    network was not asked); ``distinct_classes``: mean number of classes an image; ``spread``: mean over images of the
    mean Euclidean distance between two new pixels of the image, in pixels (None: no image has two);
    ``border_distance``: mean distance to a border of classes in pixels (`data/borders.py`), as given.
    """
    spreads, distinct = [], []
    for name in pixels.names:
        at = pixels.of_image(name)
        distinct.append(len(np.unique(pixels.label[at])))
        if (count := at.stop - at.start) > 1:
            place = np.stack([pixels.y[at], pixels.x[at]], axis=1).astype(np.float64)
            distance = np.sqrt(((place[:, None] - place[None]) ** 2).sum(axis=2))
            spreads.append(math.fsum(distance.ravel()) / (count * (count - 1)))
    return {
        "pixels": len(pixels),
        "images": len(pixels.names),
        "class_counts": np.bincount(pixels.label, minlength=num_classes).tolist(),
        "entropy": None if entropies is None else _mean(entropies),
        "distinct_classes": _mean(distinct),
        "spread": _mean(spreads),
        "border_distance": border_distance,
    }


def _mean(values: list[Any]) -> float | None:
    return math.fsum(values) / len(values) if values else None
