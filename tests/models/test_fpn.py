"""The feature pyramid network: published layers, published arithmetic."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pixelpick_ray.models.dropout import Dropout, stochastic
from tests.support.networks import model_of, spec

pytestmark = pytest.mark.training


def fpn(backbone: str = "resnet18", num_classes: int = 11, **fields: object) -> nn.Module:
    return model_of(spec(backbone, architecture="fpn", **fields), num_classes)


def test_the_norms_of_the_encoder_begin_as_in_torchvision() -> None:
    """Its layers and those of the decoder are compared with the published ones in test_published.py."""
    norms = [norm for norm in fpn().backbone.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)  # the last of a block too


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "mobilenetv2_035"])
def test_the_gradient_reaches_every_parameter(backbone: str) -> None:
    torch.manual_seed(0)
    model = fpn(backbone, 3).train()
    model(torch.randn(2, 3, 32, 40)).square().mean().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []
    if backbone.startswith("resnet"):
        assert [name for name, value in model.named_parameters() if not value.grad.any()] == []


def test_a_rank_without_images_has_logits_and_gradients() -> None:
    model = fpn(num_classes=3).eval()
    logits = model(torch.zeros(0, 3, 32, 40))
    assert logits.shape == (0, 3, 32, 40)
    (logits.sum() * 0.0).backward()
    assert all(value.grad is not None and not value.grad.any() for value in model.parameters())


def test_new_layers_are_he_normal_and_their_biases_torchs() -> None:
    model = fpn()
    for layer in [*model.laterals.modules(), *model.branches.modules(), model.classifier]:
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.in_channels * layer.kernel_size[0] ** 2
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.06)
            assert 0 < layer.bias.abs().max() <= 1 / math.sqrt(fan_in)
        elif isinstance(layer, nn.GroupNorm):
            assert (layer.num_groups, layer.num_channels, layer.eps) == (32, 128, 1e-5)
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()


def features_seen(model: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    """What the laterals get while `run` runs."""
    seen: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for layer in model.laterals]
    run()
    for hook in hooks:
        hook.remove()
    return seen


def test_whole_channels_of_every_feature_are_dropped_in_passes_by_chance_only() -> None:
    model = fpn(num_classes=3, feature_dropout=0.25).eval()
    assert [(layer.rate, layer.of) for layer in model.modules() if isinstance(layer, Dropout)] == [(0.25, "channels")]
    images = torch.randn(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))

    def by_chance() -> None:
        with stochastic(model, [torch.Generator().manual_seed(5)]):
            model(images)

    with torch.inference_mode():
        plain = features_seen(model, lambda: model(images))
        dropped = features_seen(model, by_chance)
    for before, after in zip(plain, dropped, strict=True):
        alive = before.flatten(2).any(dim=2)
        kept = after.flatten(2).any(dim=2)
        share = kept[alive].float().mean().item()
        assert 0.55 < share < 0.95
        torch.testing.assert_close(after[kept], before[kept] / 0.75)
