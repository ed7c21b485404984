"""What was asked: statistics of the new pixels of one stage (protocol of PixelPick, section 4), never cumulative."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelpick_ray.data.borders import mean_distance
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.questions import Questions


@dataclass(frozen=True)
class Query:
    """New labelled pixels and statistics of them."""

    pixels: LabelledPixels
    statistics: dict[str, Any]


def answered(questions: Questions, labels: npt.NDArray[np.int64], *, num_classes: int) -> Query:
    """The questions with their labels (k,), and statistics of those that got a class.

    ``refused`` is how many got none; it is absent where all did.
    """
    has_class = labels >= 0
    asked = has_class & ~np.isnan(questions.entropy)
    pixels = questions.answered(labels)
    statistics = query_statistics(
        pixels.with_class(),
        num_classes=num_classes,
        entropies=questions.entropy[asked].tolist() or None,
        border_distance=mean_distance([questions.distance[has_class]]),
    )
    refused = int((~has_class).sum())
    return Query(pixels, statistics | ({"refused": refused} if refused else {}))


def query_statistics(
    pixels: LabelledPixels, *, num_classes: int, entropies: list[float] | None, border_distance: float | None
) -> dict[str, Any]:
    """JSON-ready statistics of new pixels.

    ``class_counts`` of the answers; ``entropy``: mean entropy of the prediction at the pixels in nats (None: the
    network was not asked); ``distinct_classes``: mean number of classes an image; ``spread``: mean over images of the
    mean Euclidean distance between two new pixels of the image, in pixels (None: no image has two);
    ``border_distance``: mean distance to a border of classes in pixels (`data/borders.py`), as given.
    """
    counts = np.bincount(pixels.image, minlength=len(pixels.names))
    answers = np.unique(pixels.image.astype(np.int64) * num_classes + pixels.label)
    places = np.split(np.stack([pixels.y, pixels.x], axis=1).astype(np.float64), np.cumsum(counts)[:-1])
    return {
        "pixels": len(pixels),
        "images": len(pixels.names),
        "class_counts": np.bincount(pixels.label, minlength=num_classes).tolist(),
        "entropy": None if entropies is None else _mean(entropies),
        "distinct_classes": _mean(np.bincount(answers // num_classes).tolist()),
        "spread": _mean([_mean_distance(place) for place in places if len(place) > 1]),
        "border_distance": border_distance,
    }


def _mean_distance(places: npt.NDArray[np.float64]) -> float:
    """Mean Euclidean distance between two of the places (k, 2)."""
    squares = np.square(places[:, None] - places[None])
    distances = np.sqrt(squares[..., 0] + squares[..., 1])
    return math.fsum(distances.ravel()) / (len(places) * (len(places) - 1))


def _mean(values: list[Any]) -> float | None:
    return math.fsum(values) / len(values) if values else None
