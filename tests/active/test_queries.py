"""Statistics of new pixels against values worked out by hand."""

import math
from functools import partial

import pytest

from pixelpick_ray.active.queries import query_statistics
from pixelpick_ray.data.labels import LabelledPixels

statistics = partial(query_statistics, border_distance=None)


def pixels(*rows: tuple[str, int, int, int]) -> LabelledPixels:
    names, y, x, label = zip(*rows, strict=True)
    return LabelledPixels.of(names=names, y=y, x=x, label=label, stage=1)


def test_statistics_by_hand() -> None:
    """Image a: sides 3, 4 and 5 of a right triangle, classes 0 0 2; image b: two pixels 2 apart of class 2."""
    asked = pixels(("a", 0, 0, 0), ("a", 3, 0, 0), ("a", 3, 4, 2), ("b", 5, 5, 2), ("b", 5, 7, 2))
    found = query_statistics(asked, num_classes=4, entropies=[0.5, 1.0, 0.25, 0.25, 0.5], border_distance=2.5)
    assert found == {
        "pixels": 5,
        "images": 2,
        "class_counts": [2, 0, 3, 0],
        "entropy": pytest.approx(0.5),
        "distinct_classes": pytest.approx(1.5),
        "spread": pytest.approx((4.0 + 2.0) / 2),
        "border_distance": 2.5,
    }
    values = [math.sqrt(number) for number in range(1, 6)]
    one, other = (statistics(asked, num_classes=4, entropies=order) for order in (values, values[::-1]))
    assert one == other  # the order of the entropies does not matter


def test_an_image_with_one_pixel_has_no_spread() -> None:
    found = statistics(pixels(("a", 0, 0, 1), ("b", 0, 0, 1), ("b", 3, 4, 0)), num_classes=2, entropies=None)
    assert found["spread"] == pytest.approx(5.0)
    assert found["entropy"] is None
    assert statistics(pixels(("a", 0, 0, 1)), num_classes=2, entropies=None)["spread"] is None
