"""Backbones: pyramids of features, widths, pretrained weights and where they come from."""

import os
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pixelpick_ray.data.weights import weights_digest, weights_path
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.models import backbones
from pixelpick_ray.models.backbones import Pyramid, build_pyramid, fetch_weights, load_pretrained
from tests.support.networks import count, model_of, randomise_norms, same_state, spec

pytestmark = pytest.mark.training

BACKBONES = ("mobilenetv2_100", "resnet18", "efficientnet_lite0", "test_convnext")


# Pyramids


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


def test_of_several_levels_of_a_stride_the_deepest_is_taken() -> None:
    assert Pyramid(nn.Identity(), (8, 8, 8), (4, 4, 8)).level_at(4) == 1


# Width


@pytest.mark.parametrize(
    ("backbone", "width"), [("resnet18", 0.5), ("resnet18", 0.3), ("resnet50", 0.25), ("resnet50", 1.25)]
)
def test_a_width_multiplies_the_channels_of_stem_and_stages(backbone: str, width: float) -> None:
    """PixelPick's `width_multiplier`: int(64 * width) in the stem, int(64 * width) to int(512 * width) in the stages.

    Here the stem's number is even.
    """
    expansion = {"resnet18": 1, "resnet50": 4}[backbone]
    stem = int(64 * width) // 2 * 2
    planes = [int(channels * width) for channels in (64, 128, 256, 512)]
    pyramid = build_pyramid(spec(backbone, width=width, output_stride=8))
    assert pyramid.channels == (stem, *(channels * expansion for channels in planes))
    assert pyramid.strides == (2, 4, 8, 8, 8)
    assert channels_of(pyramid) == list(pyramid.channels)
    assert [pyramid.network.get_submodule(f"layer{at}.1.conv1").out_channels for at in (1, 2, 3, 4)] == planes


def channels_of(pyramid: Pyramid) -> list[int]:
    with torch.inference_mode():
        return [feature.shape[1] for feature in pyramid.network.eval()(torch.randn(1, 3, 32, 40))]


def test_width_one_is_the_network_itself() -> None:
    one, own = (build_pyramid(spec("resnet18", width=width)).network for width in (1.0, None))
    own.load_state_dict(one.state_dict())
    images = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        assert all(map(torch.equal, one.eval()(images), own.eval()(images)))


@pytest.mark.parametrize("architecture", ["deeplabv3plus", "fpn"])
def test_both_architectures_take_a_width(architecture: str) -> None:
    narrow, normal = (model_of(spec("resnet18", architecture=architecture, width=width)) for width in (0.5, None))
    assert narrow.eval()(torch.zeros(1, 3, 32, 48)).shape[1] == 11
    again, other = (model_of(spec("resnet18", architecture=architecture, width=0.5), seed=seed) for seed in (0, 1))
    assert same_state(narrow, again)
    assert not torch.equal(narrow.backbone.conv1.weight, other.backbone.conv1.weight)
    assert 0.2 * count(normal.backbone) < count(narrow.backbone) < 0.3 * count(normal.backbone)
    fan_out = 32 * 7 * 7  # the stem is initialised as the rest: normal, by its outputs
    assert narrow.backbone.conv1.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_stems_of_three_convolutions_take_a_width_too() -> None:
    pyramid = build_pyramid(spec("resnet18d", width=0.5))
    assert channels_of(pyramid) == list(pyramid.channels) == [32, 32, 64, 128, 256]


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


def test_what_is_wrong_with_a_file_is_told(weights_file: Path, tmp_path: Path) -> None:
    def refused(told: str, backbone: str = "mobilenetv2_035", pretrained: str = "imagenet") -> None:
        with pytest.raises(DataError, match=told):
            model_of(spec(backbone, pretrained=pretrained), data_path=tmp_path)

    refused(r"has no tensor .*are these weights of resnet18\?", "resnet18", f"file:weights/{weights_file.name}")
    rewrite(weights_file, {"conv_stem.weight": torch.zeros(4, 3, 3, 3)})
    refused(r"conv_stem.weight is \(4, 3, 3, 3\), mobilenetv2_035 needs \(16, 3, 3, 3\)")
    rewrite(weights_file, {"blocks.3.1.conv_dw.weight": None})
    refused(r"has no tensor 'blocks.3.1.conv_dw.weight'; are these weights of mobilenetv2_035\?")
    for length in (1000, 0):
        weights_file.write_bytes(weights_file.read_bytes()[:length])
        refused(rf"{weights_file.name}: is not a readable file of tensors.*copy it again")
    weights_file.unlink()
    refused(r"mobilenetv2_035.imagenet.safetensors.*(copy|put|set)")


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


# Files of other kinds


PREFIXES = ("", "module.", "module.encoder_q.")
CASES = [
    *((name, wrapper, "") for name in ("w.pt", "w.pth", "w.pth.tar") for wrapper in (None, "state_dict", "model")),
    *((name, wrapper, prefix) for name in ("w.pt",) for wrapper in (None, "state_dict") for prefix in PREFIXES[1:]),
    *(("w.safetensors", None, prefix) for prefix in PREFIXES),
]


@pytest.mark.parametrize(("name", "wrapper", "prefix"), CASES)
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


def test_a_file_without_tensors_by_name_is_refused(tmp_path: Path) -> None:
    for content in ({"epoch": 3}, [torch.zeros(1)], torch.zeros(2)):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(DataError, match=r"w\.pt: holds no tensors by name"):
            model_of(spec("test_resnet", pretrained="file:w.pt"), data_path=tmp_path)


@pytest.mark.parametrize("inside", ["../w.pt", "weights/../../w.pt", "/etc/w.pt"])
def test_a_file_outside_the_data_folder_is_refused(inside: str, tmp_path: Path) -> None:
    outside = spec(pretrained=f"file:{inside}")
    for ask in (weights_path, weights_digest, fetch_weights):
        with pytest.raises(SpecError, match=rf"model\.pretrained: 'file:{re.escape(inside)}' leaves the data folder"):
            ask(outside, tmp_path)


def test_an_absent_file_and_an_unknown_tag_cannot_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no weights at .*w\.pt; put the file there"):
        fetch_weights(spec(pretrained="file:w.pt"), tmp_path)
    told = r"test_resnet\.nonsense\.safetensors and none downloaded .*nonsense.*put the file"
    with pytest.raises(DataError, match=told):
        fetch_weights(spec("test_resnet", pretrained="nonsense"), tmp_path)
    assert list((tmp_path / "weights").iterdir()) == []


# Fetching


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


# MoCo v2


MOCO = spec("resnet50", architecture="fpn", pretrained="moco_v2")
FILE = "moco_v2_800ep_pretrain.pth.tar"


def moco_file(path: Path, network: nn.Module, **changed: Tensor | None) -> None:
    """A checkpoint as MoCo writes it, from a network with torchvision's names (the ones that MoCo trains)."""
    state = {f"module.encoder_q.{name}": value for name, value in network.state_dict().items()}
    state |= {f"module.encoder_q.fc.{layer}.weight": torch.zeros(4, 4) for layer in (0, 2)}
    state |= {"module.queue": torch.zeros(128, 8), "module.queue_ptr": torch.zeros(1)} | changed
    state = {name: value for name, value in state.items() if value is not None}
    torch.save({"epoch": 800, "arch": "resnet50", "state_dict": OrderedDict(state)}, path)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """torchvision's ResNet-50, dilated as in the published encoder, with weights of its own."""
    torch.manual_seed(5)
    network = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    network.fc = nn.Identity()
    return randomise_norms(network).eval()


def test_moco_weights_are_taken_from_the_file_that_was_put_there(trained: nn.Module, tmp_path: Path) -> None:
    """But not from a wrong one."""
    (tmp_path / "weights").mkdir()
    moco_file(tmp_path / "weights" / FILE, trained, **{"module.encoder_q.layer3.5.bn2.bias": None})
    told = rf"{re.escape(FILE)}: has no tensor 'layer3\.5\.bn2\.bias'.*MoCo v2 ResNet-50\?"
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
    monkeypatch.setattr(backbones, "MOCO_V2_URL", f"{tmp_path.as_uri()}/server.pth.tar")
    with pytest.raises(DataError, match=r"resnet50\.moco_v2\.safetensors and none downloaded.*put the file there"):
        fetch_weights(MOCO, tmp_path / "data")
    moco_file(tmp_path / "server.pth.tar", trained)
    with pytest.raises(DataError, match=r"came with MD5 [0-9a-f]{8}, published is a04e12f8; run again"):
        fetch_weights(MOCO, tmp_path / "data")
    assert list((tmp_path / "data" / "weights").iterdir()) == []
    monkeypatch.setattr(backbones, "MOCO_V2_MD5", "")
    fetch_weights(MOCO, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data" / "weights").iterdir()] == ["resnet50.moco_v2.safetensors"]


def test_moco_weights_exist_for_one_backbone(tmp_path: Path) -> None:
    for ask in (weights_path, weights_digest, fetch_weights):
        with pytest.raises(SpecError, match=r"moco_v2 weights exist for resnet50 only; resnet18 needs others"):
            ask(spec("resnet18", pretrained="moco_v2"), tmp_path)
