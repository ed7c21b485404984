"""Distances to borders of classes, against a distance transform and by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from pixelpick_ray.data import borders
from pixelpick_ray.data.borders import border_distances, border_masks, distances_to_borders, mean_distance


def test_borders_by_hand() -> None:
    label = np.array([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 255]], dtype=np.uint8)
    label.setflags(write=False)
    assert border_masks(torch.from_numpy(label.copy())[None])[0].tolist() == [[False, False, True, True]] * 3
    assert border_distances(label, np.array([0, 2, 3, 5])).tolist() == [2.0, 0.0, 0.0, 1.0]


def some_maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Label maps (4, 42, 45) in blocks, the last without a border, and 200 pixels in each."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (4, 6, 5)), np.ones((7, 9), dtype=np.int64)).astype(np.uint8)
    labels[3] = 2
    return torch.from_numpy(labels), torch.from_numpy(rng.integers(0, 42 * 45, (4, 200)))


@pytest.mark.parametrize("chunk", [1, 30_000, 2**25], ids=["pixel by pixel", "a few pixels", "at once"])
def test_distances_are_exactly_those_to_every_border_pixel(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borders, "CHUNK", chunk)
    labels, indices = some_maps()
    found = distances_to_borders(labels, indices).numpy()
    assert found.dtype == np.float64
    for label, at, distances in zip(labels[:3], indices[:3], found[:3], strict=True):
        border = border_masks(label[None])[0].numpy()
        y, x = np.nonzero(border)
        squares = (y - at.numpy()[:, None] // 45) ** 2 + (x - at.numpy()[:, None] % 45) ** 2
        expected = np.sqrt(squares.min(axis=1))
        np.testing.assert_array_max_ulp(distances, expected, maxulp=1)  # CPUs round roots differently
        np.testing.assert_allclose(distances, distance_transform_edt(~border).ravel()[at.numpy()])
        assert np.array_equal(border_distances(label.numpy(), at.numpy()), distances)
    assert np.isinf(found[3]).all()


def test_the_host_reads_nothing_back_from_the_device() -> None:
    """Tensors on the meta device have no values, so whoever asks for one fails."""
    labels, indices = some_maps()
    assert distances_to_borders(labels.to("meta"), indices.to("meta")).shape == indices.shape


@pytest.mark.gpu
def test_a_gpu_measures_the_same_distances_and_the_host_never_waits() -> None:
    labels, indices = some_maps()
    on_gpu = labels.cuda(), indices.cuda()
    distances_to_borders(*on_gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = distances_to_borders(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), distances_to_borders(labels, indices), rtol=1e-15, atol=0)


def test_a_map_of_one_label_has_no_border_and_does_not_count_in_the_mean() -> None:
    flat = border_distances(np.zeros((4, 5), dtype=np.uint8), np.array([0, 19]))
    assert np.isinf(flat).all()
    assert mean_distance([flat, np.array([1.0, 4.0])]) == pytest.approx(2.5)
    assert mean_distance([flat]) is mean_distance([]) is None
    parts = [np.array([math.sqrt(number)]) for number in range(1, 9)]
    assert mean_distance(parts) == mean_distance(parts[::-1])
