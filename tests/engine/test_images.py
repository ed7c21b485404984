"""A split as tensors: the same pixels whether they live on the device or are copied batch by batch."""

import numpy as np
import pytest
import torch

from pixelpick_ray.data.cache import PreparedSplit
from pixelpick_ray.engine.images import SplitImages
from tests.support.tiny_data import tiny_split

pytestmark = pytest.mark.training

CPU = torch.device("cpu")
SHAPES = ((32, 48), (40, 24))


def resident(prepared: PreparedSplit, device: torch.device) -> SplitImages:
    """The whole split on the device, as a GPU has it."""
    tensors = [torch.from_numpy(np.array(flat)).to(device) for flat in (prepared.images, prepared.labels)]
    return SplitImages(prepared, device, (tensors[0], tensors[1]))


@pytest.mark.parametrize("make", [SplitImages.on, resident], ids=["copied", "resident"])
def test_images_and_labels_are_those_of_the_split(make: type) -> None:
    """Smaller images of a batch are padded with zeros right and bottom; one without images has the smallest size."""
    prepared = tiny_split(6, SHAPES)
    source = make(prepared, CPU)
    assert source.images([4, 0]).shape == (2, 3, 32, 48)
    assert source.images([4, 0]).is_contiguous(memory_format=torch.channels_last)
    assert source.images([0, 1], (8, 8)).shape == (2, 3, 40, 48)
    for positions in ((4, 0), (0, 1)):
        for image, position in zip(source.images([*positions], (8, 8)), positions, strict=True):
            height, width = prepared.shape(position)
            assert np.array_equal(image[:, :height, :width].permute(1, 2, 0).numpy(), prepared.image(position))
            assert not image[:, height:].any()
            assert not image[:, :, width:].any()
    assert np.array_equal(source.labels([1, 5, 1]).numpy(), np.stack([prepared.label(p) for p in (1, 5, 1)]))
    assert source.images([], (16, 24)).shape == (0, 3, 16, 24)


@pytest.mark.gpu
def test_a_gpu_holds_a_split_once_and_gives_the_same_pixels() -> None:
    prepared, device = tiny_split(6, SHAPES), torch.device("cuda")
    source = SplitImages.on(prepared, device)
    assert source.resident is not None
    assert SplitImages.on(tiny_split(6, SHAPES), device).resident is source.resident
    for positions in ([4, 0, 2], [0, 1]):
        expected = SplitImages.on(prepared, CPU).images(positions)
        assert torch.equal(source.images(positions).cpu(), expected)
    assert torch.equal(source.labels([1, 3]).cpu(), SplitImages.on(prepared, CPU).labels([1, 3]))
