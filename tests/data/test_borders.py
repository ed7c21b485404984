"""Distances to borders of classes, against another distance transform and by hand."""

import math

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from pixelpick_ray.data.borders import border_distances, border_mask, mean_distance


def test_borders_by_hand() -> None:
    label = np.array([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 255]], dtype=np.uint8)
    label.setflags(write=False)
    assert border_mask(label).tolist() == [[False, False, True, True]] * 3
    assert border_distances(label, np.array([0, 2, 3, 5])).tolist() == [2.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("shape", [(42, 45), (7, 500), (300, 400)])
def test_distances_are_exactly_those_to_every_border_pixel(shape: tuple[int, int]) -> None:
    """Roots of whole numbers in float64, up to 500 pixels from a border; farther away to a millionth."""
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 3, (6, 5)), np.ones((shape[0] // 6 + 1, shape[1] // 5 + 1), dtype=np.int64))
    corner = np.zeros(shape, dtype=np.uint8)
    corner[0, 0] = 1
    for one in (label[: shape[0], : shape[1]].astype(np.uint8), corner):
        indices = rng.integers(0, one.size, 300)
        y, x = np.nonzero(border_mask(one))
        squares = (y - indices[:, None] // shape[1]) ** 2 + (x - indices[:, None] % shape[1]) ** 2
        found = border_distances(one, indices)
        assert found.dtype == np.float64
        assert (found == np.sqrt(squares.min(axis=1))).all()
    far = np.zeros((3, 2000), dtype=np.uint8)
    far[0, 0] = 1
    expected = distance_transform_edt(~border_mask(far)).ravel()
    np.testing.assert_allclose(border_distances(far, np.arange(far.size)), expected, rtol=1e-6)


def test_a_map_of_one_label_has_no_border_and_does_not_count_in_the_mean() -> None:
    flat = border_distances(np.zeros((4, 5), dtype=np.uint8), np.array([0, 19]))
    assert np.isinf(flat).all()
    assert mean_distance([flat, np.array([1.0, 4.0])]) == pytest.approx(2.5)
    assert mean_distance([flat]) is mean_distance([]) is None
    parts = [np.array([math.sqrt(number)]) for number in range(1, 9)]
    assert mean_distance(parts) == mean_distance(parts[::-1])
