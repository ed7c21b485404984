"""Backbones: pyramids of features, widths, pretrained weights and where they come from."""

import re
from collections import OrderedDict
from itertools import product
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from pixelpick_ray.data.weights import weights_digest, weights_path
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.models import backbones
from pixelpick_ray.models.backbones import Pyramid, build_pyramid, fetch_weights, load_pretrained
from tests.support.networks import model_of, randomise_norms, same_state, spec

pytestmark = pytest.mark.training


def shapes_of(pyramid: Pyramid) -> list[tuple[int, ...]]:
    """Channels, height and width of the features of an image of 64x96."""
    with torch.inference_mode():
        return [tuple(feature.shape[1:]) for feature in pyramid.network.eval()(torch.zeros(1, 3, 64, 96))]


def shapes_said(pyramid: Pyramid) -> list[tuple[int, ...]]:
    pairs = zip(pyramid.channels, pyramid.strides, strict=True)
    return [(channels, 64 // stride, 96 // stride) for channels, stride in pairs]


@pytest.mark.parametrize("backbone", ["mobilenetv2_100", "resnet18", "efficientnet_lite0", "test_convnext"])
def test_features_have_the_strides_and_channels_they_say(backbone: str) -> None:
    for output_stride in (8, 16, 32):
        pyramid = build_pyramid(spec(backbone, output_stride=output_stride))
        assert max(pyramid.strides) == output_stride
        assert shapes_of(pyramid) == shapes_said(pyramid)
    assert Pyramid(nn.Identity(), (8, 8, 8), (4, 4, 8)).level_at(4) == 1  # of several of a stride the deepest


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


@pytest.mark.parametrize(
    ("backbone", "width"), [("resnet18", 0.3), ("resnet18d", 0.5), ("resnet50", 0.25), ("resnet50", 1.25)]
)
def test_a_width_multiplies_the_channels_of_stem_and_stages(backbone: str, width: float) -> None:
    """PixelPick's `width_multiplier`: int(64 * width) in the stem (here even), to int(512 * width) in the stages."""
    expansion = 4 if backbone == "resnet50" else 1
    stem = int(64 * width) // 2 * 2
    planes = [int(channels * width) for channels in (64, 128, 256, 512)]
    pyramid = build_pyramid(spec(backbone, width=width, output_stride=8))
    assert pyramid.channels == (stem, *(channels * expansion for channels in planes))
    assert pyramid.strides == (2, 4, 8, 8, 8)
    assert shapes_of(pyramid) == shapes_said(pyramid)
    assert [pyramid.network.get_submodule(f"layer{at}.1.conv1").out_channels for at in (1, 2, 3, 4)] == planes


def test_width_one_is_the_network_itself() -> None:
    one, own = (build_pyramid(spec("resnet18", width=width)).network for width in (1.0, None))
    own.load_state_dict(one.state_dict())
    images = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        assert all(map(torch.equal, one.eval()(images), own.eval()(images)))


@pytest.mark.parametrize("architecture", ["deeplabv3plus", "fpn"])
def test_both_architectures_take_a_width(architecture: str) -> None:
    half = spec("resnet18", architecture=architecture, width=0.5)
    narrow, again, other = (model_of(half, seed=seed) for seed in (0, 0, 1))
    assert narrow.eval()(torch.zeros(1, 3, 32, 48)).shape[1] == 11
    assert same_state(narrow, again)
    assert not torch.equal(narrow.backbone.conv1.weight, other.backbone.conv1.weight)
    fan_out = 32 * 7 * 7  # the stem is initialised as the rest: normal, by its outputs
    assert narrow.backbone.conv1.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_pretrained_weights_are_the_files_and_the_rest_is_the_seeds(tmp_path: Path) -> None:
    """Also where the pyramid joins names of the whole network."""
    whole = timm.create_model("mobilenetv2_035", pretrained=False, num_classes=3)
    (tmp_path / "weights").mkdir()
    save_file(whole.state_dict(), tmp_path / "weights" / "mobilenetv2_035.imagenet.safetensors")
    model, untrained = model_of(spec(pretrained="imagenet"), data_path=tmp_path), model_of(spec())
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in model.backbone.state_dict().items())
    by_path = spec(pretrained="file:weights/mobilenetv2_035.imagenet.safetensors")
    assert same_state(model, model_of(by_path, data_path=tmp_path))
    assert same_state(model.aspp, untrained.aspp)
    assert same_state(model.decoder, untrained.decoder)
    whole = timm.create_model("test_convnext", pretrained=False)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    model = model_of(spec("test_convnext", pretrained="file:w.safetensors"), data_path=tmp_path)
    assert torch.equal(model.backbone.stem_0.weight, whole.stem[0].weight)
    assert torch.equal(model.backbone.stages_2.blocks[1].mlp.fc1.weight, whole.stages[2].blocks[1].mlp.fc1.weight)


def test_what_is_wrong_with_a_file_is_told(tmp_path: Path) -> None:
    weights_file = tmp_path / "weights" / "mobilenetv2_035.imagenet.safetensors"
    weights_file.parent.mkdir()
    save_file(timm.create_model("mobilenetv2_035", pretrained=False).state_dict(), weights_file)

    def refused(told: str, backbone: str = "mobilenetv2_035", pretrained: str = "imagenet") -> None:
        with pytest.raises(DataError, match=told):
            model_of(spec(backbone, pretrained=pretrained), data_path=tmp_path)

    refused(r"has no tensor .*give weights of resnet18", "resnet18", f"file:weights/{weights_file.name}")
    save_file(load_file(weights_file) | {"conv_stem.weight": torch.zeros(4, 3, 3, 3)}, weights_file)
    refused(r"conv_stem.weight has shape \(4, 3, 3, 3\), but mobilenetv2_035 needs \(16, 3, 3, 3\)")
    for length in (1000, 0):
        weights_file.write_bytes(weights_file.read_bytes()[:length])
        refused(rf"{weights_file.name}: cannot be read as a file of tensors.*copy it again")
    weights_file.unlink()
    refused(r"mobilenetv2_035.imagenet.safetensors.*(copy|put|set)")
    for content in ([torch.zeros(1)], torch.zeros(2)):
        torch.save(content, tmp_path / "w.pt")
        refused(r"w\.pt: contains no named tensors", pretrained="file:w.pt")
    (tmp_path / "w.pt").unlink()
    with pytest.raises(DataError, match=r"no weights at .*w\.pt; put the file there"):
        fetch_weights(spec(pretrained="file:w.pt"), tmp_path)
    told = r"test_resnet\.nonsense\.safetensors and downloading failed .*nonsense.*put the file"
    with pytest.raises(DataError, match=told):
        fetch_weights(spec("test_resnet", pretrained="nonsense"), tmp_path)
    assert list((tmp_path / "weights").iterdir()) == []
    for inside, ask in product(("weights/../../w.pt", "/etc/w.pt"), (weights_path, weights_digest, fetch_weights)):
        with pytest.raises(SpecError, match=rf"model\.pretrained: 'file:{inside}' is outside the data folder"):
            ask(spec(pretrained=f"file:{inside}"), tmp_path)


@pytest.mark.parametrize(
    ("name", "wrapper", "prefix"),
    [
        ("w.pt", None, "module."),
        ("w.pt", "state_dict", "module.encoder_q."),
        ("w.pth", "model", ""),
        ("w.pth.tar", "state_dict", "module."),
        ("w.safetensors", None, "module.encoder_q."),
    ],
)
def test_weights_are_read_whatever_wraps_them(name: str, wrapper: str | None, prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = randomise_norms(timm.create_model("test_resnet", pretrained=False, num_classes=0))
    state = {prefix + key: value for key, value in network.state_dict().items()}
    if prefix.endswith("encoder_q."):
        state |= {"module.queue": torch.zeros(4, 4), "module.encoder_k.conv1.0.weight": torch.zeros(1)}
    if name.endswith(".safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save({"epoch": 3, "arch": "x", wrapper: OrderedDict(state)} if wrapper else state, tmp_path / name)
    given = spec("test_resnet", pretrained=f"file:{name}")
    pyramid = build_pyramid(given)
    load_pretrained(pyramid.network, given, tmp_path)
    assert same_state(pyramid.network, network)


def test_weights_of_timm_are_kept_under_their_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    create = timm.create_model

    def answer(name: str, *, pretrained: bool, **options: object) -> nn.Module:
        asked.append((name, pretrained))
        torch.manual_seed(len(asked))
        return create(name.partition(".")[0], pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", answer)
    for pretrained, name in (("imagenet", "test_resnet"), ("r160_in1k", "test_resnet.r160_in1k")):
        wanted = spec("test_resnet", pretrained=pretrained)
        fetch_weights(wanted, tmp_path)
        assert asked[-1] == (name, True)
        assert weights_path(wanted, tmp_path) == tmp_path / "weights" / f"test_resnet.{pretrained}.safetensors"
    assert len(list((tmp_path / "weights").iterdir())) == 2
    digests = {weights_digest(spec("test_resnet", pretrained=tag), tmp_path) for tag in ("imagenet", "r160_in1k")}
    assert len(digests) == 2
    fetch_weights(wanted, tmp_path)
    assert len(asked) == 2  # it is there


MOCO = spec("resnet50", architecture="fpn", pretrained="moco_v2")
FILE = "moco_v2_800ep_pretrain.pth.tar"


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """torchvision's ResNet-50, dilated as in the published encoder, with weights of its own."""
    torch.manual_seed(5)
    network = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    network.fc = nn.Identity()
    return randomise_norms(network).eval()


def moco_file(path: Path, network: nn.Module, without: str = "") -> None:
    """A checkpoint as MoCo writes it, from a network with torchvision's names (the ones that MoCo trains)."""
    path.parent.mkdir(exist_ok=True)
    state = {f"module.encoder_q.{name}": value for name, value in network.state_dict().items() if name != without}
    state |= {f"module.encoder_q.fc.{layer}.weight": torch.zeros(4, 4) for layer in (0, 2)}
    state |= {"module.queue": torch.zeros(128, 8), "module.queue_ptr": torch.zeros(1)}
    torch.save({"epoch": 800, "arch": "resnet50", "state_dict": OrderedDict(state)}, path)


def test_moco_weights_are_taken_from_the_file_that_was_put_there(trained: nn.Module, tmp_path: Path) -> None:
    """But not from a wrong one, nor for another backbone."""
    for ask in (weights_path, weights_digest, fetch_weights):
        with pytest.raises(
            SpecError, match=r"moco_v2 weights are available for resnet50 only; use other weights for resnet18"
        ):
            ask(spec("resnet18", pretrained="moco_v2"), tmp_path)
    moco_file(tmp_path / "weights" / FILE, trained, without="layer3.5.bn2.bias")
    told = rf"{re.escape(FILE)}: has no tensor 'layer3\.5\.bn2\.bias'.*MoCo v2 ResNet-50"
    with pytest.raises(DataError, match=told):
        fetch_weights(MOCO, tmp_path)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [FILE]
    moco_file(tmp_path / "weights" / FILE, trained)
    fetch_weights(MOCO, tmp_path)
    stored = load_file(tmp_path / "weights" / "resnet50.moco_v2.safetensors")
    assert stored.keys() == trained.state_dict().keys()
    assert all(torch.equal(stored[name], value) for name, value in trained.state_dict().items())
    pyramid = build_pyramid(MOCO)
    load_pretrained(pyramid.network, MOCO, tmp_path)
    pyramid.network.eval()
    images = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        values = trained.maxpool(trained.relu(trained.bn1(trained.conv1(images))))
        for stage, found in zip((1, 2, 3, 4), pyramid.network(images)[1:], strict=True):
            values = getattr(trained, f"layer{stage}")(values)
            torch.testing.assert_close(found, values)


def test_moco_weights_are_fetched_and_checked(
    trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "MOCO_V2_URL", f"{tmp_path.as_uri()}/server/{FILE}")
    with pytest.raises(DataError, match=r"resnet50\.moco_v2\.safetensors and downloading failed.*put the file there"):
        fetch_weights(MOCO, tmp_path)
    moco_file(tmp_path / "server" / FILE, trained)
    with pytest.raises(DataError, match=r"has MD5 [0-9a-f]{8}, expected a04e12f8; run again"):
        fetch_weights(MOCO, tmp_path)
    assert list((tmp_path / "weights").iterdir()) == []
    monkeypatch.setattr(backbones, "MOCO_V2_MD5", "")
    fetch_weights(MOCO, tmp_path)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["resnet50.moco_v2.safetensors"]
