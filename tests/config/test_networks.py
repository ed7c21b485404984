"""The list of timm's networks that planning reads, against the installed timm."""

import random

import pytest
import timm

from pixelpick_ray.config.model import ModelSpec, NormaliseSpec
from pixelpick_ray.config.networks import OUTPUT_STRIDES, check_network, networks, weights_normalisation
from pixelpick_ray.errors import SpecError
from pixelpick_ray.models.backbones import build_pyramid
from pixelpick_ray.models.network_list import channels_of, maps_of, normalisation_of, pyramids_of

pytestmark = pytest.mark.training

ADVICE = "run python -m pixelpick_ray.models.network_list"


def spec(backbone: str, **fields: object) -> ModelSpec:
    return ModelSpec(backbone=backbone, pretrained="none", **fields)  # type: ignore[arg-type]


def as_listed(name: str) -> str:
    """The strides of a network in the words of the generator."""
    strides = networks()[name].strides
    known = [stride for stride in OUTPUT_STRIDES if stride in strides]
    return ", ".join(f"{stride}: {' '.join(map(str, strides[stride]))}" for stride in known)


def maps_as_listed(name: str) -> str:
    """The maps of a network in the words of the generator."""
    maps = networks()[name].maps
    if maps is None:
        return ""
    order = ["NHWC" if maps.is_channels_last else "NCHW", *(["dynamic"] if maps.is_dynamic else [])]
    return " ".join([*order, *map(str, maps.strides)])


def test_the_list_has_the_names_of_the_installed_timm() -> None:
    assert sorted(networks()) == sorted(timm.list_models()), ADVICE
    resnets = sorted(name for name, one in networks().items() if one.is_resnet)
    assert resnets == sorted(timm.list_models(module="resnet"))


USED = [
    "swin_tiny_patch4_window7_224",
    "vit_small_patch14_dinov2",
    "tf_efficientnet_lite0",
    "mobilenetv2_100",
    "resnet18",
    "resnet50",
    "test_resnet",
    "efficientnet_lite0",
    "vit_tiny_patch16_224",
    "vgg11",
]
SOME = [*USED, *random.Random(0).sample(timm.list_models(), 30)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOME)
def test_the_list_says_what_the_installed_timm_gives(name: str) -> None:
    network = networks()[name]
    assert as_listed(name) == pyramids_of(name), ADVICE
    assert " ".join(map(str, network.channels)) == channels_of(name), ADVICE
    assert maps_as_listed(name) == ("" if network.strides else maps_of(name)), ADVICE
    mean, std = ([float(value) for value in part.split()] for part in normalisation_of(name).split(", "))
    model = ModelSpec(backbone=name)
    assert weights_normalisation(model) == NormaliseSpec(mean=tuple(mean), std=tuple(std)), ADVICE  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_whole_list_says_what_the_installed_timm_gives() -> None:
    """Two minutes and a half."""
    assert {name: as_listed(name) for name in networks()} == {name: pyramids_of(name) for name in timm.list_models()}


@pytest.mark.parametrize(
    ("backbone", "fields", "told"),
    [
        ("resnet5O", {}, r"timm has no network 'resnet5O'; did you mean resnet50"),
        ("zzz", {}, r"timm has no network 'zzz'; timm\.list_models\(\) lists the known ones"),
        (
            "vit_small_patch14_dinov2",
            {},
            r"vit_small_patch14_dinov2 gives no feature pyramid at output stride 16; take a head on frozen features "
            r"\(linear, mlp, knn, prototype\), or a convolutional one such as mobilenetv2_100 or resnet50",
        ),
        ("vgg11", {}, r"vgg11 gives no feature pyramid at output stride 16; set model\.output_stride to 32"),
        (
            "sedarknet21",
            {"architecture": "fpn"},
            r"fpn needs features at strides 4, 8, 8, 8; sedarknet21 has them at \[1, 2, 4, 8, 8\]; take resnet18, "
            r"resnet34, resnet50 or resnet101",
        ),
        ("mobilenetv2_050", {"width": 0.5}, r"model\.width: only ResNets take a width, mobilenetv2_050"),
        ("resnet50", {"width": 0.01}, r"model\.width: 0\.01 leaves resnet50 no channels; take a larger"),
    ],
)
def test_what_a_head_cannot_use_is_refused(backbone: str, fields: dict[str, object], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        check_network(spec(backbone, **fields))


@pytest.mark.parametrize(
    ("backbone", "fields"),
    [
        ("mobilenetv2_100", {}),
        ("resnet50", {"architecture": "fpn"}),
        ("convnext_atto", {}),
        ("vgg11", {"output_stride": 32}),
        ("resnet50", {"width": 0.5}),
    ],
)
def test_what_a_head_can_use_passes_and_is_built(backbone: str, fields: dict[str, object]) -> None:
    model = spec(backbone, **fields)
    check_network(model)
    expected = networks()[model.backbone].strides[model.output_stride]
    assert build_pyramid(model).strides == expected
