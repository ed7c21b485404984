"""DeepLabv3+ and what all networks share: sizes, initialisation, dropout, logits at points."""

import math
import re

import pytest
import torch
from torch import nn

from pixelpick_ray.config.model import PIXEL_HEADS, MlpSpec, ModelSpec
from pixelpick_ray.config.networks import HEADS
from pixelpick_ray.models import heads
from pixelpick_ray.models.dropout import Dropout, stochastic
from pixelpick_ray.models.segmentation import MODELS, conv_of_upsampled, logits_at, parameter_groups, upsample
from tests.support.networks import model_of, same_state, spec

pytestmark = pytest.mark.training


@pytest.mark.parametrize("backbone", ["mobilenetv2_100", "resnet18", "test_convnext"])
def test_any_input_size_gives_logits_at_a_quarter(backbone: str) -> None:
    model = model_of(spec(backbone), num_classes=5).train()
    rounded = math.floor if backbone == "test_convnext" else math.ceil  # its stem has no padding
    for size in ((42, 56), (33, 47)):
        logits = model(torch.randn(2, 3, *size))
        assert logits.shape == (2, 5, rounded(size[0] / 4), rounded(size[1] / 4))
    logits.square().mean().backward()
    assert all(value.grad is not None for value in model.parameters())  # DDP needs every parameter in every step


def test_the_rates_of_the_atrous_pyramid_follow_the_output_stride() -> None:
    for output_stride, rates in ((16, [6, 12, 18]), (8, [12, 24, 36]), (32, [3, 6, 9])):
        model = model_of(spec(output_stride=output_stride))
        convs = [branch[0] for branch in model.aspp.branches]
        assert convs[0].kernel_size == (1, 1)
        assert [conv.dilation[0] for conv in convs[1:]] == [conv.padding[0] for conv in convs[1:]] == rates


def test_dropout_rates_are_those_of_the_spec_and_features_are_dropped_at_both_levels_of_the_decoder() -> None:
    model = model_of(spec(dropout=(0.1, 0.2, 0.3)))
    rates = {name: (layer.rate, layer.of) for name, layer in model.named_modules() if isinstance(layer, Dropout)}
    values = {"aspp.dropout": (0.1, "values"), "decoder.1": (0.2, "values"), "decoder.3": (0.3, "values")}
    assert rates == {**values, "drop_features": (0.0, "channels")}
    model = model_of(spec(dropout=(0.0, 0.0, 0.0), feature_dropout=1.0)).eval()
    with torch.inference_mode(), stochastic(model, [torch.Generator()]):
        one, other = (model(torch.randn(1, 3, 32, 48)) for _ in range(2))
    assert torch.equal(one, other)  # nothing of the image is left


def test_weights_follow_the_seed_and_the_stage_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    one = model_of(spec())
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(100)
    same = [same_state(one, model_of(spec(), **how)) for how in ({}, {"seed": 1}, {"stage": 1})]
    assert same == [True, False, False]


def test_new_layers_are_he_normal_with_unit_batch_norm() -> None:
    model = model_of(spec())
    for part in (model.aspp, model.low, model.decoder):
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d):
                fan_in = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
                assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.06)
                assert layer.bias is None
            elif isinstance(layer, nn.BatchNorm2d):
                assert (layer.weight == 1).all()
                assert (layer.bias == 0).all()
    assert model.classifier.weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.06)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_a_pixel_head_is_trained_with_its_backbone_whose_layers_may_have_rates_of_their_own(backbone: str) -> None:
    head = MlpSpec(hidden=(4,))
    model = model_of(ModelSpec(backbone=backbone, pretrained="none", architecture="mlp", head=head)).train()
    logits = model(torch.rand(2, 3, 37, 61))
    assert logits.shape == (2, 11, *model.backbone.grid((37, 61)))
    logits.square().mean().backward()
    assert all(value.grad is not None for value in model.layers.parameters())
    assert any(value.grad is not None and value.grad.any() for value in model.backbone.parameters())
    *layers, rest = parameter_groups(model, lr=1.0, backbone_lr_factor=0.1, layer_decay=0.5)
    names = {id(value): name for name, value in model.named_parameters()}
    assert [layer["lr"] for layer in layers] == [0.1 * 0.5**above for above in reversed(range(len(layers)))]
    assert rest["lr"] == 1.0
    held = [id(value) for group in (*layers, rest) for value in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    blocks = [{re.sub(r"(.*?\.\d+)\..*", r"\1", names[id(value)]) for value in layer["params"]} for layer in layers]
    found = [block for block in blocks if all(name[-1].isdigit() for name in block)]
    assert len(found) >= 4
    assert all(len(block) == 1 for block in found)
    assert any("conv1" in name or "patch_embed" in name for name in blocks[0])


def test_the_architectures_of_the_spec_are_those_that_exist() -> None:
    assert {*MODELS, *PIXEL_HEADS} == HEADS.keys()
    assert PIXEL_HEADS.keys() == heads.HEADS.keys()
    trainable = {name for name, head in PIXEL_HEADS.items() if head.trainable is not None}
    assert trainable == MODELS.keys() & PIXEL_HEADS.keys()


@pytest.mark.parametrize("size", [(33, 47), (9, 12), (1, 12)], ids=str)
def test_logits_at_points_equal_full_size_logits_read_there(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(3, 5, 9, 12, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.randint(0, size[0], (3, 40), generator=generator)
    x = torch.randint(0, size[1], (3, 40), generator=generator)
    y[:, 0], x[:, 0], y[:, 1], x[:, 1] = 0, 0, size[0] - 1, size[1] - 1
    weight = torch.randn(3, 40, 5, dtype=torch.float64, generator=generator)
    sampled = logits_at(coarse, torch.stack([y, x], dim=2).double(), size)
    full = upsample(coarse, size)
    read = torch.stack([full[index][:, y[index], x[index]].T for index in range(3)])
    torch.testing.assert_close(sampled, read, rtol=0, atol=1e-12)
    ours, same = (torch.autograd.grad((got * weight).sum(), coarse, retain_graph=True) for got in (sampled, read))
    torch.testing.assert_close(ours, same, rtol=0, atol=1e-12)
    assert torch.equal(upsample(full, size), full)
    assert logits_at(coarse, torch.zeros(3, 0, 2), size).shape == (3, 0, 5)
    ends, middle = torch.tensor([[0.0, 4.0], [0.0, 5.0]]), torch.tensor([[0.0, 4.25]])  # between pixels
    of_ends, of_middle = (logits_at(coarse, at.double().expand(3, -1, -1), (1, 12)) for at in (ends, middle))
    torch.testing.assert_close(of_middle[:, 0], 0.75 * of_ends[:, 0] + 0.25 * of_ends[:, 1])


@pytest.mark.parametrize(
    ("coarse", "size"),
    [((5, 6), (17, 21)), ((1, 1), (4, 4)), ((2, 1), (2, 9)), ((3, 4), (3, 4)), ((1, 3), (1, 1))],
    ids=str,
)
def test_a_convolution_of_interpolated_features(coarse: tuple[int, int], size: tuple[int, int]) -> None:
    """Values and all gradients against torch's interpolation, concatenation and convolution, in float64."""
    torch.manual_seed(0)
    conv = nn.Conv2d(5 + 3, 7, 3, padding=1, bias=False).double()
    high, low = (torch.randn(2, n, *shape).double().requires_grad_() for n, shape in ((5, coarse), (3, size)))
    found = conv_of_upsampled(conv, high, low)
    expected = conv(torch.cat([upsample(high, size), low], dim=1))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(expected)
    inputs = [high, low, conv.weight]
    ours, reference = (torch.autograd.grad(values, inputs, weight) for values in (found, expected))
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-11)


def test_in_bfloat16_the_weights_of_interpolation_still_add_up_to_one() -> None:
    conv = nn.Conv2d(2 + 1, 1, 3, padding=1, bias=False)
    conv.weight.data.zero_()[:, :2, 1, 1] = 0.5
    high, low = torch.ones(1, 2, 7, 5), torch.zeros(1, 1, 40, 33)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conv_of_upsampled(conv, high, low).float(), torch.ones(1, 1, 40, 33))
