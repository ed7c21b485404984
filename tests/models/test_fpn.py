"""The feature pyramid network: published layers, published arithmetic."""

import math

import pytest
import torch
from torch import Tensor, nn

from pixelpick_ray.models.dropout import Dropout, stochastic
from tests.support.networks import model_of, spec

pytestmark = pytest.mark.training


def fpn(backbone: str = "resnet18", num_classes: int = 11, **fields: object) -> nn.Module:
    return model_of(spec(backbone, architecture="fpn", **fields), num_classes)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2_035"])
def test_the_gradient_reaches_every_parameter(backbone: str) -> None:
    torch.manual_seed(0)
    model = fpn(backbone, 3).train()
    model(torch.randn(2, 3, 32, 40)).square().mean().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []
    if backbone.startswith("resnet"):
        assert [name for name, value in model.named_parameters() if not value.grad.any()] == []
    model.eval().zero_grad()
    logits = model(torch.zeros(0, 3, 32, 40))  # of a rank without images
    assert logits.shape == (0, 3, 32, 40)
    (logits.sum() * 0.0).backward()
    assert all(value.grad is not None and not value.grad.any() for value in model.parameters())


def test_new_layers_are_he_normal_and_their_biases_torchs() -> None:
    """And the norms of the encoder begin as in torchvision; test_published.py compares what all of it computes."""
    model = fpn()
    norms = [norm for norm in model.backbone.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)  # the last of a block too
    for layer in [*model.laterals.modules(), *model.branches.modules(), model.classifier]:
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.in_channels * layer.kernel_size[0] ** 2
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.06)
            assert 0 < layer.bias.abs().max() <= 1 / math.sqrt(fan_in)
        elif isinstance(layer, nn.GroupNorm):
            assert (layer.num_groups, layer.num_channels, layer.eps) == (32, 128, 1e-5)
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()


def test_whole_channels_of_every_feature_are_dropped_in_passes_by_chance_only() -> None:
    model = fpn(num_classes=3, feature_dropout=0.25).eval()
    assert [(layer.rate, layer.of) for layer in model.modules() if isinstance(layer, Dropout)] == [(0.25, "channels")]
    images, seen = torch.randn(1, 3, 32, 40, generator=torch.Generator().manual_seed(0)), list[Tensor]()
    for layer in model.laterals:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(images)
        with stochastic(model, [torch.Generator().manual_seed(5)]):
            model(images)
    for before, after in zip(seen[:4], seen[4:], strict=True):
        alive = before.flatten(2).any(dim=2)
        kept = after.flatten(2).any(dim=2)
        share = kept[alive].float().mean().item()
        assert 0.55 < share < 0.95
        torch.testing.assert_close(after[kept], before[kept] / 0.75)
