"""Networks: sizes, initialisation, logits at points, pretrained weights."""

import math
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.models.backbones import Pyramid, build_pyramid, load_pretrained
from pixelpick_ray.models.segmentation import MODELS, build_model, logits_at, parameter_groups, upsample
from pixelpick_ray.spec.experiment import ModelSpec

BACKBONES = ("mobilenetv2_100", "resnet18", "efficientnet_lite0", "test_convnext")
NOWHERE = Path("no-data")


def spec(backbone: str = "mobilenetv2_035", **fields: object) -> ModelSpec:
    return ModelSpec(**({"backbone": backbone, "pretrained": "none"} | fields))


def model_of(
    model: ModelSpec, num_classes: int = 11, seed: int = 0, stage: int = 0, data_path: Path = NOWHERE
) -> nn.Module:
    return build_model(model, num_classes=num_classes, data_path=data_path, seed=seed, stage=stage)


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


# Size and shape


def test_the_published_network_has_its_published_number_of_parameters() -> None:
    """DeepLabv3+ MobileNetV2 at 11 classes (protocol.md section 3: 5.81 M), counted by hand from the published layers.

    Backbone: torchvision's MobileNetV2 has 3,504,872; without classifier (1280 * 1000 + 1000) and last convolution
    (320 * 1280 + 2 * 1280) that is 1,811,712. A convolution without bias and its batch norm: in * out * k^2 + 2 * out.
    """

    def conv(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + 2 * outputs

    backbone = 3_504_872 - (1280 * 1000 + 1000) - conv(320, 1280, 1)
    aspp = conv(320, 256, 1) + 3 * conv(320, 256, 3) + conv(320, 256, 1) + conv(5 * 256, 256, 1)
    decoder = conv(48 + 256, 256, 3) + conv(256, 256, 3)
    low, classifier = conv(24, 48, 1), 256 * 11 + 11
    model = model_of(spec("mobilenetv2_100"))
    assert count(model.backbone) == backbone == 1_811_712
    assert [count(model.aspp), count(model.low), count(model.decoder), count(model.classifier)] == [
        aspp,
        low,
        decoder,
        classifier,
    ]
    assert count(model) == backbone + aspp + low + decoder + classifier == 5_813_483


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_have_the_strides_and_channels_they_say(backbone: str, output_stride: int) -> None:
    pyramid = build_pyramid(spec(backbone, output_stride=output_stride))
    assert max(pyramid.strides) == output_stride
    with torch.inference_mode():
        features = pyramid.network.eval()(torch.zeros(1, 3, 64, 96))
    assert [feature.shape[1] for feature in features] == list(pyramid.channels)
    for feature, stride in zip(features, pyramid.strides, strict=True):
        assert feature.shape[2:] == (64 // stride, 96 // stride)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", [(90, 120), (33, 47)], ids=str)
def test_any_input_size_gives_logits_at_a_quarter(backbone: str, size: tuple[int, int]) -> None:
    if backbone == "test_convnext":  # its stem has no padding
        expected = size[0] // 4, size[1] // 4
    else:
        expected = math.ceil(size[0] / 4), math.ceil(size[1] / 4)
    model = model_of(spec(backbone), num_classes=5).train()
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5, *expected)
    logits.square().mean().backward()
    assert all(value.grad is not None for value in model.parameters())  # DDP needs every parameter in every step


@pytest.mark.parametrize("backbone", ["mobilenetv2_100", "resnet18", "efficientnet_lite0"])
def test_dilation_keeps_what_the_strided_backbone_computes(backbone: str) -> None:
    """Removing strides and dilating what follows leaves every second (fourth) feature as it was, borders included."""
    torch.manual_seed(0)
    strided = build_pyramid(spec(backbone, output_stride=32)).network.eval().double()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        expected = strided(images)[-1]
        for output_stride, step in ((16, 2), (8, 4)):
            dilated = build_pyramid(spec(backbone, output_stride=output_stride)).network.eval().double()
            dilated.load_state_dict(strided.state_dict())
            torch.testing.assert_close(dilated(images)[-1][:, :, ::step, ::step], expected, rtol=1e-10, atol=1e-10)


def test_the_rates_of_the_atrous_pyramid_follow_the_output_stride() -> None:
    for output_stride, rates in ((16, [6, 12, 18]), (8, [12, 24, 36]), (32, [3, 6, 9])):
        model = model_of(spec(output_stride=output_stride))
        convs = [branch[0] for branch in model.aspp.branches]
        assert convs[0].kernel_size == (1, 1)
        assert [conv.dilation[0] for conv in convs[1:]] == rates
        assert [conv.padding[0] for conv in convs[1:]] == rates


def test_dropout_rates_are_those_of_the_spec_in_their_order() -> None:
    model = model_of(spec(dropout=(0.1, 0.2, 0.3)))
    rates = {name: layer.p for name, layer in model.named_modules() if isinstance(layer, nn.Dropout) and layer.p > 0}
    assert rates == {"aspp.dropout": 0.1, "decoder.1": 0.2, "decoder.3": 0.3}


# What cannot be built


def test_an_unknown_backbone_is_answered_with_near_names() -> None:
    with pytest.raises(SpecError, match=r"model.backbone: .*'mobilenetv2_10'.*mobilenetv2_100"):
        build_pyramid(spec("mobilenetv2_10"))
    with pytest.raises(SpecError, match=r"timm.list_models\(\)"):
        build_pyramid(spec("qqqqqqqqqqqq"))


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_transformer_is_refused_with_a_remedy(backbone: str) -> None:
    with pytest.raises(SpecError, match=r"no feature pyramid at output stride 16.*such as mobilenetv2_100"):
        build_pyramid(spec(backbone))


def test_a_missing_stride_is_named() -> None:
    with pytest.raises(SpecError, match=r"no features at stride 4, only at \[2, 8\]"):
        Pyramid(nn.Identity(), (8, 8), (2, 8)).level_at(4)
    assert Pyramid(nn.Identity(), (8, 8, 8), (4, 4, 8)).level_at(4) == 1


# Initialisation


def test_weights_follow_the_seed_and_the_stage_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    one, again = model_of(spec()), None
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(100)
    again = model_of(spec())
    assert same_state(one, again)
    assert not same_state(one, model_of(spec(), seed=1))
    assert not same_state(one, model_of(spec(), stage=1))


def same_state(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


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


def test_parameter_groups_split_at_the_backbone() -> None:
    model = model_of(spec())
    backbone, rest = parameter_groups(model, lr=0.5, backbone_lr_factor=0.1)
    assert (backbone["lr"], backbone["base_lr"]) == pytest.approx((0.05, 0.05))
    assert (rest["lr"], rest["base_lr"]) == (0.5, 0.5)
    assert sum(value.numel() for value in backbone["params"]) == count(model.backbone)
    assert sum(value.numel() for group in (backbone, rest) for value in group["params"]) == count(model)


def test_the_architectures_of_the_spec_are_those_that_exist() -> None:
    assert set(MODELS) == set(ModelSpec.model_fields["architecture"].annotation.__args__)


# Logits


@pytest.mark.parametrize("size", [(33, 47), (32, 48), (9, 12), (1, 12)], ids=str)
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
    gradients = [
        torch.autograd.grad((values * weight).sum(), coarse, retain_graph=True)[0] for values in (sampled, read)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


def test_logits_between_pixels_are_interpolated() -> None:
    coarse = torch.randn(1, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = logits_at(coarse, torch.tensor([[[8.0, 4.0], [8.0, 5.0]]], dtype=torch.float64), (17, 17))
    middle = logits_at(coarse, torch.tensor([[[8.0, 4.25]]], dtype=torch.float64), (17, 17))
    torch.testing.assert_close(middle[0, 0], 0.75 * ends[0, 0] + 0.25 * ends[0, 1])


def test_no_points_are_no_logits() -> None:
    assert logits_at(torch.zeros(2, 5, 3, 4), torch.zeros(2, 0, 2), (12, 16)).shape == (2, 0, 5)


# Pretrained weights


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    """Weights of a whole timm network under the data folder, classifier included."""
    torch.manual_seed(7)
    network = timm.create_model("mobilenetv2_035", pretrained=False, num_classes=3)
    path = tmp_path / "weights" / "mobilenetv2_035.imagenet.safetensors"
    path.parent.mkdir()
    save_file(network.state_dict(), path)
    return path


def test_pretrained_weights_are_the_files_and_the_rest_is_the_seeds(weights_file: Path, tmp_path: Path) -> None:
    stored = load_file(weights_file)
    model = model_of(spec(pretrained="imagenet"), data_path=tmp_path)
    assert all(torch.equal(value, stored[name]) for name, value in model.backbone.state_dict().items())
    by_path = model_of(spec(pretrained=f"file:weights/{weights_file.name}"), data_path=tmp_path)
    assert same_state(model, by_path)
    untrained = model_of(spec())
    assert same_state(model.aspp, untrained.aspp)
    assert same_state(model.decoder, untrained.decoder)


def test_pyramids_with_joined_names_load_the_weights_of_the_whole_network(tmp_path: Path) -> None:
    torch.manual_seed(7)
    whole = timm.create_model("test_convnext", pretrained=False)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    model = model_of(spec("test_convnext", pretrained="file:w.safetensors"), data_path=tmp_path)
    assert torch.equal(model.backbone.stem_0.weight, whole.stem[0].weight)
    assert torch.equal(model.backbone.stages_2.blocks[1].mlp.fc1.weight, whole.stages[2].blocks[1].mlp.fc1.weight)


def rewrite(path: Path, change: dict[str, Tensor | None]) -> None:
    state = {**load_file(path), **change}
    save_file({name: value for name, value in state.items() if value is not None}, path)


def test_a_missing_tensor_is_named(weights_file: Path, tmp_path: Path) -> None:
    rewrite(weights_file, {"blocks.3.1.conv_dw.weight": None})
    with pytest.raises(DataError, match=r"blocks.3.1.conv_dw.weight.*1 missing.*weights of mobilenetv2_035\?"):
        model_of(spec(pretrained="imagenet"), data_path=tmp_path)


def test_a_tensor_of_another_shape_is_named(weights_file: Path, tmp_path: Path) -> None:
    rewrite(weights_file, {"conv_stem.weight": torch.zeros(4, 3, 3, 3)})
    with pytest.raises(DataError, match=r"conv_stem.weight is \(4, 3, 3, 3\), mobilenetv2_035 needs \(16, 3, 3, 3\)"):
        model_of(spec(pretrained="imagenet"), data_path=tmp_path)


def test_weights_of_another_network_are_refused(weights_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no tensor .*are these weights of resnet18\?"):
        model_of(spec("resnet18", pretrained=f"file:weights/{weights_file.name}"), data_path=tmp_path)


def test_a_damaged_file_is_named_with_a_remedy(weights_file: Path, tmp_path: Path) -> None:
    weights_file.write_bytes(weights_file.read_bytes()[:1000])
    with pytest.raises(DataError, match=rf"{weights_file.name}: is not a readable safetensors file.*copy it again"):
        model_of(spec(pretrained="imagenet"), data_path=tmp_path)


def test_an_absent_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mobilenetv2_035.imagenet.safetensors.*(copy|put|set)"):
        model_of(spec(pretrained="imagenet"), data_path=tmp_path)


def imagenet_weights(folder: Path) -> Path:
    """The data folder with the weights of mobilenetv2_100: the real ones beside the repository, or made up ones."""
    given = os.environ.get("PIXELPICK_TEST_DATA")
    real = Path(given) if given else Path(__file__).parents[3] / "shared" / "data"
    name = "mobilenetv2_100.imagenet.safetensors"
    if (real / "weights" / name).is_file():
        return real
    (folder / "weights").mkdir()
    torch.manual_seed(7)
    save_file(timm.create_model("mobilenetv2_100", pretrained=False).state_dict(), folder / "weights" / name)
    return folder


def test_the_pretrained_backbone_computes_what_timms_network_computes(tmp_path: Path) -> None:
    data_path = imagenet_weights(tmp_path)
    model = spec("mobilenetv2_100", pretrained="imagenet", output_stride=32)
    pyramid = build_pyramid(model)
    load_pretrained(pyramid.network, model, data_path)
    whole = timm.create_model("mobilenetv2_100", pretrained=False).eval()
    state = load_file(data_path / "weights" / "mobilenetv2_100.imagenet.safetensors")
    missing = whole.load_state_dict(state, strict=False).missing_keys
    assert all(name.startswith(("classifier", "conv_head", "bn2")) or "num_batches" in name for name in missing)
    rows = torch.linspace(-2, 2, 224)
    image = torch.stack([rows[:, None] * scale + rows[None, :] for scale in (0.3, 0.6, 1.0)])[None]
    with torch.inference_mode():
        found = pyramid.network.eval()(image)[-1]
        expected = whole.blocks(whole.bn1(whole.conv_stem(image)))
    assert found.shape == (1, 320, 7, 7)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected)
