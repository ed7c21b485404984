"""Distances to borders of classes, against a distance transform and by hand."""

import math

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from pixelpick_ray.data.borders import border_distances, border_mask, mean_distance


def test_borders_by_hand() -> None:
    label = np.array([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 255]], dtype=np.uint8)
    assert border_mask(label).tolist() == [
        [False, False, True, True],
        [False, False, True, True],
        [False, False, True, True],
    ]
    assert border_distances(label, np.array([0, 2, 3, 5])).tolist() == [2.0, 0.0, 0.0, 1.0]


def test_distances_are_those_of_a_distance_transform() -> None:
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 3, (6, 5)), np.ones((7, 9), dtype=np.int64)).astype(np.uint8)
    indices = rng.integers(0, label.size, 200)
    expected = distance_transform_edt(~border_mask(label)).ravel()[indices]
    np.testing.assert_allclose(border_distances(label, indices), expected)


def test_a_map_of_one_label_has_no_border_and_does_not_count_in_the_mean() -> None:
    flat = border_distances(np.zeros((4, 5), dtype=np.uint8), np.array([0, 19]))
    assert np.isinf(flat).all()
    assert mean_distance([flat, np.array([1.0, 4.0])]) == pytest.approx(2.5)
    assert mean_distance([flat]) is None
    assert mean_distance([]) is None


def test_the_order_of_the_images_does_not_matter() -> None:
    parts = [np.array([math.sqrt(number)]) for number in range(1, 9)]
    assert mean_distance(parts) == mean_distance(parts[::-1])
