"""ReLU6 and the convolution of the decoders: torch's values, with another way to the same gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelpick_ray.models.activation import ReLU6, replace_relu6
from pixelpick_ray.models.convolution import Conv3x3, conv3x3

pytestmark = pytest.mark.training


def test_relu6_has_the_values_and_gradients_of_torch() -> None:
    torch.manual_seed(0)
    inputs = torch.cat([torch.randn(500) * 6, torch.tensor([0.0, 6.0, -1.0, 7.0, float("nan")])]).double()
    upstream = torch.randn_like(inputs)

    def of(activation: nn.Module) -> tuple[Tensor, Tensor]:
        start = inputs.clone().requires_grad_()
        result = activation(start * 1.0)
        return result.detach(), torch.autograd.grad(result, start, upstream)[0]

    for found, expected in zip(of(ReLU6()), of(nn.ReLU6()), strict=True):
        torch.testing.assert_close(found[:-1], expected[:-1], rtol=0, atol=0)
    assert of(ReLU6())[0][-1].isnan()


def test_the_gradient_needs_only_what_the_next_layer_keeps_too() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(inplace=True), nn.Conv2d(8, 4, 3))

    def kept() -> int:
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = network(torch.randn(2, 3, 12, 12))
        assert result.requires_grad
        return sum(numel >= 2 * 8 * 100 for numel in found.values())

    before = kept()
    replace_relu6(network)
    assert (before, kept()) == (3, 2)  # the norm's input and the next convolution's


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (2, 9), (1, 4)], ids=str)
@pytest.mark.parametrize("number", [2, 0])
def test_a_convolution_has_the_values_and_gradients_of_torch(size: tuple[int, int], number: int) -> None:
    torch.manual_seed(0)
    images = torch.randn(number, 5, *size).double().requires_grad_()
    weight = torch.randn(4, 5, 3, 3).double().requires_grad_()
    found, expected = conv3x3(images, weight), F.conv2d(images, weight, padding=1)
    assert torch.equal(found, expected)
    upstream = torch.randn_like(expected)
    ours, reference = (torch.autograd.grad(value, [images, weight], upstream) for value in (found, expected))
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


def test_bfloat16_trains_and_channels_last_stay_so() -> None:
    conv = Conv3x3(8, 6).to(memory_format=torch.channels_last)
    images = torch.randn(2, 8, 9, 12).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = conv(images)
    assert result.dtype == torch.bfloat16
    result.float().square().sum().backward()
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in (result, images.grad))
    reference = torch.autograd.grad(conv3x3(images, conv.weight).square().sum(), conv.weight)[0]
    assert (conv.weight.grad - reference).norm() < 0.05 * reference.norm()
