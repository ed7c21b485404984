"""The convolution of the decoders: torch's, with another way to the same gradients."""

import pytest
import torch
import torch.nn.functional as F

from pixelpick_ray.models.convolution import Conv3x3, conv3x3

pytestmark = pytest.mark.training


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (2, 9), (1, 4)], ids=str)
@pytest.mark.parametrize("number", [2, 0])
def test_values_and_gradients_are_those_of_torch(size: tuple[int, int], number: int) -> None:
    torch.manual_seed(0)
    images = torch.randn(number, 5, *size).double().requires_grad_()
    weight = torch.randn(4, 5, 3, 3).double().requires_grad_()
    found, expected = conv3x3(images, weight), F.conv2d(images, weight, padding=1)
    assert torch.equal(found, expected)
    upstream = torch.randn_like(expected)
    ours, reference = (torch.autograd.grad(value, [images, weight], upstream) for value in (found, expected))
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


def test_channels_last_inputs_stay_channels_last() -> None:
    conv = Conv3x3(8, 6).to(memory_format=torch.channels_last)
    images = torch.randn(2, 8, 9, 12).contiguous(memory_format=torch.channels_last).requires_grad_()
    result = conv(images)
    result.sum().backward()
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert images.grad is not None
    assert images.grad.is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_trains() -> None:
    conv, images = Conv3x3(8, 6), torch.randn(2, 8, 9, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = conv(images)
    assert result.dtype == torch.bfloat16
    result.float().square().sum().backward()
    reference = torch.autograd.grad(conv3x3(images, conv.weight).square().sum(), conv.weight)[0]
    assert conv.weight.grad is not None
    assert (conv.weight.grad - reference).norm() < 0.05 * reference.norm()
