"""ReLU6: torch's values and gradients, and no copy of its input."""

import pytest
import torch
from torch import Tensor, nn

from pixelpick_ray.models.activation import ReLU6, replace_relu6

pytestmark = pytest.mark.training


def test_values_and_gradients_are_those_of_torch() -> None:
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


def test_it_runs_without_gradients() -> None:
    with torch.inference_mode():
        assert ReLU6()(torch.tensor([-1.0, 3.0, 9.0])).tolist() == [0.0, 3.0, 6.0]
