"""The list of timm's networks that planning reads, against the installed timm."""

import json
import random
from typing import Any

import pytest
import timm

from pixelpick_ray.config.model import ModelSpec, NormaliseSpec
from pixelpick_ray.config.networks import OUTPUT_STRIDES, check_network, networks, weights_normalisation
from pixelpick_ray.errors import SpecError
from pixelpick_ray.models.network_list import channels_of, maps_of, normalisation_of, pyramids_of
from tests.support.experiments import WRONG

pytestmark = pytest.mark.training

ADVICE = "run python -m pixelpick_ray.models.network_list"


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
    usable = {name for name, one in networks().items() if one.maps or one.strides}  # at least frozen
    assert len(usable) / len(networks()) > 0.84
    assert {"vit_small_patch16_dinov3", "vit_small_patch14_dinov2", "convnext_tiny"} <= usable


USED = """swin_tiny_patch4_window7_224 vit_small_patch14_dinov2 tf_efficientnet_lite0 mobilenetv2_100 resnet50
    test_resnet efficientnet_lite0 vit_tiny_patch16_224 vgg11"""
SOME = [*USED.split(), *random.Random(0).sample(timm.list_models(), 28)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOME)
def test_the_list_says_what_the_installed_timm_gives(name: str) -> None:
    network = networks()[name]
    assert as_listed(name) == pyramids_of(name), ADVICE
    assert " ".join(map(str, network.channels)) == channels_of(name), ADVICE
    assert maps_as_listed(name) == ("" if network.strides else maps_of(name)), ADVICE
    mean, std = (tuple(map(float, part.split())) for part in normalisation_of(name).split(", "))
    assert weights_normalisation(ModelSpec(backbone=name)) == NormaliseSpec(mean=mean, std=std), ADVICE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_whole_list_says_what_the_installed_timm_gives() -> None:
    """Two minutes and a half."""
    assert {name: as_listed(name) for name in networks()} == {name: pyramids_of(name) for name in timm.list_models()}


@pytest.mark.parametrize("case", WRONG["networks"], ids=lambda case: " ".join(map(str, case["model"].values())))
def test_what_a_head_cannot_use_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        check_network(ModelSpec.model_validate_json(json.dumps({"pretrained": "none"} | case["model"])))
    assert str(caught.value) == case["told"]
