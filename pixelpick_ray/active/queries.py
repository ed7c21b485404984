"""Statistics of the newly queried pixels of one stage, not cumulative (PixelPick, section 4)."""

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
    """Newly labelled pixels and their statistics."""

    pixels: LabelledPixels
    statistics: dict[str, Any]


def answered(questions: Questions, labels: npt.NDArray[np.int64], *, num_classes: int) -> Query:
    """The questions with their labels (k,), and statistics of those that got a class.

    ``refused`` is the number of questions without a class; it is omitted if zero.
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

    ``class_counts``: answers per class; ``entropy``: mean entropy of the predictions there in nats (None: the network
    was not used); ``distinct_classes``: mean number of classes per image; ``spread``: mean over images of the mean
    pairwise Euclidean distance of new pixels, in pixels (None: no image has two); ``border_distance``: mean distance to
    a class border in pixels (`data/borders.py`), as given.
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
    """Mean pairwise Euclidean distance of the places (k, 2); k must be at least 2."""
    squares = np.square(places[:, None] - places[None])
    distances = np.sqrt(squares[..., 0] + squares[..., 1])
    return math.fsum(distances.ravel()) / (len(places) * (len(places) - 1))


def _mean(values: list[Any]) -> float | None:
    return math.fsum(values) / len(values) if values else None
