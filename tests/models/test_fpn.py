"""The feature pyramid network: published layers, published arithmetic."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelpick_ray.models.dropout import Dropout, stochastic
from pixelpick_ray.models.segmentation import parameter_groups, upsample
from tests.support.networks import count, model_of, randomise_norms, spec

pytestmark = pytest.mark.training


def fpn(backbone: str = "resnet18", num_classes: int = 11, **fields: object) -> nn.Module:
    return model_of(spec(backbone, architecture="fpn", **fields), num_classes)


# torchvision's ResNets (their documented numbers of parameters, without the classifier of 1000 classes), and the
# channels of their stages.
RESNETS = {
    "resnet18": (11_689_512 - 513_000, (64, 128, 256, 512)),
    "resnet34": (21_797_672 - 513_000, (64, 128, 256, 512)),
    "resnet50": (25_557_032 - 2_049_000, (256, 512, 1024, 2048)),
    "resnet101": (44_549_160 - 2_049_000, (256, 512, 1024, 2048)),
}
TOTALS = {"resnet18": 13_640_779, "resnet34": 23_748_939, "resnet50": 26_709_579, "resnet101": 45_701_707}


@pytest.mark.parametrize("backbone", RESNETS)
def test_the_number_of_parameters_is_that_of_the_published_layers(backbone: str) -> None:
    """By hand for ResNet-50 at 11 classes: encoder 25,557,032 - 2,049,000 = 23,508,032.

    Laterals, 1x1 with bias: (256 + 512 + 1024 + 2048) * 256 + 4 * 256 = 984,064. A block is a 3x3 convolution with bias
    and group norm: from 256 channels 256 * 128 * 9 + 128 + 256 = 295,296, from 128 channels 147,840; levels have 3, 3,
    3 and 2 of them: 4 * 295,296 + 7 * 147,840 = 2,216,064. Classifier 128 * 11 + 11 = 1,419.
    In all 23,508,032 + 984,064 + 2,216,064 + 1,419 = 26,709,579.
    """
    encoder, channels = RESNETS[backbone]
    model = fpn(backbone)
    assert count(model.backbone) == encoder
    assert count(model.laterals) == sum(channels) * 256 + 4 * 256
    assert count(model.branches) == 4 * (256 * 128 * 9 + 3 * 128) + 7 * (128 * 128 * 9 + 3 * 128)
    assert count(model.classifier) == 128 * 11 + 11
    assert count(model) == TOTALS[backbone]
    own, rest = parameter_groups(model, lr=1.0, backbone_lr_factor=0.1)  # the encoder's learning rate is its own
    assert sum(value.numel() for value in own["params"]) == encoder
    assert sum(value.numel() for value in rest["params"]) == count(model) - encoder


def published_convolutions(blocks: tuple[int, ...], bottleneck: bool) -> dict[str, tuple[int, int, int, int]]:
    """Kernel, stride, dilation and padding of every encoder convolution, from the published description.

    7x7/2 stem. The second stage strides by its first 3x3 convolution and by the shortcut; the third and fourth do not
    stride: the 3x3 convolutions that did are dilated by 1 and 2, all others of their stage by 2 and 4.
    """
    found = {"conv1": (7, 2, 1, 3)}
    for stage, (repeats, once, dilation) in enumerate(zip(blocks, (1, 1, 1, 2), (1, 1, 2, 4), strict=True), 1):
        for block in range(repeats):
            name, stride = f"layer{stage}.{block}", 2 if (stage, block) == (2, 0) else 1
            rate = once if block == 0 else dilation
            if bottleneck:
                found |= {f"{name}.conv1": (1, 1, 1, 0), f"{name}.conv3": (1, 1, 1, 0)}
                found[f"{name}.conv2"] = (3, stride, rate, rate)
            else:
                found |= {f"{name}.conv1": (3, stride, rate, rate), f"{name}.conv2": (3, 1, dilation, dilation)}
            if block == 0 and (bottleneck or stage > 1):
                found[f"{name}.downsample.0"] = (1, stride, 1, 0)
    return found


@pytest.mark.parametrize(
    ("backbone", "blocks", "bottleneck"),
    [("resnet18", (2, 2, 2, 2), False), ("resnet34", (3, 4, 6, 3), False), ("resnet50", (3, 4, 6, 3), True)],
)
def test_every_convolution_of_the_encoder_is_the_published_one(
    backbone: str, blocks: tuple[int, ...], bottleneck: bool
) -> None:
    encoder = fpn(backbone).backbone
    found = {}
    for name, conv in encoder.named_modules():
        if isinstance(conv, nn.Conv2d):
            assert conv.bias is None
            found[name] = (conv.kernel_size[0], conv.stride[0], conv.dilation[0], conv.padding[0])
    assert found == published_convolutions(blocks, bottleneck)
    pool = encoder.maxpool
    assert (pool.kernel_size, pool.stride, pool.padding) == (3, 2, 1)
    norms = [norm for norm in encoder.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert len(norms) == len(found)
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)  # the last of a block too


def decoder_by_hand(model: nn.Module, features: list[Tensor]) -> Tensor:
    """The published decoder, level by level, everything at full size before the sum and the classifier."""

    def conv(module: nn.Module, values: Tensor, padding: int = 0) -> Tensor:
        return F.conv2d(values, module.weight, module.bias, padding=padding)

    def larger(values: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(values, size=size, mode="bilinear", align_corners=False)

    c2, c3, c4, p5 = (conv(lateral, level) for lateral, level in zip(model.laterals, features, strict=True))
    p4 = p5 + c4
    p3 = p4 + c3
    p2 = larger(p3, c2.shape[2:]) + c2
    total = torch.zeros(())
    for level, branch in zip((p2, p3, p4, p5), model.branches, strict=True):
        blocks = [block for block in branch if isinstance(block, nn.Sequential)]
        for convolution, norm, _ in blocks:
            level = conv(convolution, level, padding=1)
            grouped = level.reshape(len(level), 32, -1)  # 4 channels a group
            mean, variance = grouped.mean(dim=2, keepdim=True), grouped.var(dim=2, unbiased=False, keepdim=True)
            level = ((grouped - mean) / (variance + 1e-5).sqrt()).reshape(level.shape)
            level = torch.relu(level * norm.weight[:, None, None] + norm.bias[:, None, None])
            level = larger(level, (2 * level.shape[2], 2 * level.shape[3]))
        total = total + level
    return conv(model.classifier, total)


def test_the_decoder_computes_what_the_published_one_computes() -> None:
    model = randomise_norms(fpn(num_classes=5)).eval().double()
    images = torch.randn(2, 3, 40, 56, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = model(images)
        expected = decoder_by_hand(model, model.backbone(images)[-4:])
    assert logits.shape == (2, 5, 40, 56)
    assert upsample(logits, (40, 56)) is logits  # they have the size of the images
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


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
