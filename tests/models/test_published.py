"""The authors' checkpoints: files written here from their documented names, computed here layer by layer."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pixelpick_ray.errors import DataError
from pixelpick_ray.models.dropout import Dropout, stochastic
from pixelpick_ray.models.published import read_checkpoint
from pixelpick_ray.models.segmentation import upsample
from pixelpick_ray.models.tensors import read_tensors
from tests.test_untrusted_files import Bomb

pytestmark = pytest.mark.training

CLASSES = 11
SETTINGS = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
State = dict[str, Tensor]


class Layout:
    """Random tensors under documented names; He normal weights, norms as after a training."""

    def __init__(self) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(0)

    def conv(
        self, name: str, outputs: int, inputs: int, kernel: int = 1, *, bias: bool = False, norm: str = ""
    ) -> None:
        """A convolution, and the norm behind it if it has a name."""
        deviation = (2 / (inputs * kernel**2)) ** 0.5
        shape = (outputs, inputs, kernel, kernel)
        self.state[f"{name}.weight"] = torch.randn(shape, generator=self.generator) * deviation
        if bias:
            self.state[f"{name}.bias"] = torch.randn(outputs, generator=self.generator) * 0.1
        if norm:
            self.norm(norm, outputs)

    def norm(self, name: str, channels: int, *, statistics: bool = True) -> None:
        ranges = {"weight": (0.7, 1.3), "bias": (-0.3, 0.5), "running_mean": (-0.2, 0.2), "running_var": (0.8, 1.5)}
        for key, (low, high) in ranges.items():
            if statistics or not key.startswith("running"):
                self.state[f"{name}.{key}"] = low + (high - low) * torch.rand(channels, generator=self.generator)
        if statistics:
            self.state[f"{name}.num_batches_tracked"] = torch.tensor(4600)


def blocks_of_mobilenet() -> list[tuple[int, int, int, int, int]]:
    """(inputs, outputs, expansion, stride, dilation) of the 17 blocks at output stride 16."""
    blocks, inputs = [], 32
    for expansion, outputs, repeats, stride in SETTINGS:
        stride = 1 if outputs == 160 else stride  # this stride is removed, and only what follows its stage is dilated
        for block in range(repeats):
            blocks.append((inputs, outputs, expansion, stride if block == 0 else 1, 2 if outputs == 320 else 1))
            inputs = outputs
    return blocks


def deeplab_state(num_classes: int = CLASSES) -> State:
    """Every tensor of the authors' DeepLabv3+ MobileNetV2, the backbone's two times."""
    layout = Layout()
    layout.conv("backbone.features.0.0", 32, 3, 3, norm="backbone.features.0.1")
    for index, (inputs, outputs, expansion, _, _) in enumerate(blocks_of_mobilenet(), start=1):
        name, hidden, at = f"backbone.features.{index}.conv", inputs * expansion, 3 if expansion > 1 else 0
        if expansion > 1:
            layout.conv(f"{name}.0", hidden, inputs, norm=f"{name}.1")
        layout.conv(f"{name}.{at}", hidden, 1, 3, norm=f"{name}.{at + 1}")
        layout.conv(f"{name}.{at + 3}", outputs, hidden, norm=f"{name}.{at + 4}")
    for name, value in list(layout.state.items()):
        copy = "low_level_features" if int(name.split(".")[2]) < 4 else "high_level_features"
        layout.state[name.replace("features", copy, 1)] = value
    for index, kernel in enumerate((1, 3, 3, 3), start=1):
        layout.conv(f"aspp.aspp{index}.atrous_conv", 256, 320, kernel, norm=f"aspp.aspp{index}.bn")
    layout.conv("aspp.global_avg_pool.1", 256, 320, norm="aspp.global_avg_pool.2")
    layout.conv("aspp.conv1", 256, 1280, norm="aspp.bn1")
    layout.conv("low_level_conv.0", 48, 24, norm="low_level_conv.1")
    for conv, inputs in ((0, 304), (4, 256)):
        name = "seg_head.segment_head"
        layout.conv(f"{name}.{conv}", 256, inputs, 3, norm=f"{name}.{conv + 1}")
    layout.conv("seg_head.classifier", num_classes, 256, bias=True)
    return layout.state


def write(folder: Path, state: State) -> Path:
    torch.save({"model": state}, folder / "best_miou_model.pt")
    return folder / "best_miou_model.pt"


def conv(state: State, name: str, values: Tensor, norm: str = "", **options: int) -> Tensor:
    """A convolution, and the norm behind it if it has a name."""
    values = F.conv2d(values, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)
    if not norm:
        return values
    keys = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, variance = (state[f"{norm}.{key}"][:, None, None] for key in keys)
    return (values - mean) / (variance + 1e-5).sqrt() * weight + bias


def mobilenet_by_hand(state: State, images: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high level features; a block pads its input, not that of its depthwise convolution."""
    first = "backbone.features.0"
    values = conv(state, f"{first}.0", images, f"{first}.1", stride=2, padding=1).clamp(0, 6)
    for index, (inputs, outputs, expansion, stride, dilation) in enumerate(blocks_of_mobilenet(), start=1):
        name, at = f"backbone.features.{index}.conv", 0
        before, values = values, F.pad(values, (dilation,) * 4)
        if expansion > 1:
            values = conv(state, f"{name}.0", values, f"{name}.1").clamp(0, 6)
            at = 3
        depthwise = {"stride": stride, "dilation": dilation, "groups": inputs * expansion}
        values = conv(state, f"{name}.{at}", values, f"{name}.{at + 1}", **depthwise).clamp(0, 6)
        values = conv(state, f"{name}.{at + 3}", values, f"{name}.{at + 4}")
        if stride == 1 and inputs == outputs:
            values = values + before
        if index == 3:
            low = values
    return low, values


def deeplab_by_hand(state: State, images: Tensor) -> Tensor:
    """Logits at stride 4."""
    low, high = mobilenet_by_hand(state, images)
    branches = [conv(state, "aspp.aspp1.atrous_conv", high, "aspp.aspp1.bn").relu()]
    for index, rate in ((2, 6), (3, 12), (4, 18)):
        name = f"aspp.aspp{index}"
        branches.append(conv(state, f"{name}.atrous_conv", high, f"{name}.bn", padding=rate, dilation=rate).relu())
    pooled = high.mean(dim=(2, 3), keepdim=True)
    pooled = conv(state, "aspp.global_avg_pool.1", pooled, "aspp.global_avg_pool.2").relu()
    joined = torch.cat([*branches, pooled.expand_as(branches[0])], dim=1)
    high = conv(state, "aspp.conv1", joined, "aspp.bn1").relu()
    high = F.interpolate(high, size=low.shape[2:], mode="bilinear", align_corners=True)
    values = torch.cat([high, conv(state, "low_level_conv.0", low, "low_level_conv.1").relu()], dim=1)
    for at in (0, 4):
        name = "seg_head.segment_head"
        values = conv(state, f"{name}.{at}", values, f"{name}.{at + 1}", padding=1).relu()
    return conv(state, "seg_head.classifier", values)


@pytest.fixture(scope="module")
def state() -> State:
    return deeplab_state()


def images_of(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_authors_network_computes_what_its_description_says(state: State, tmp_path: Path) -> None:
    """5,813,483 parameters, as protocol and paper say; the backbone's second copies are not counted again."""
    model = read_checkpoint(write(tmp_path, state), CLASSES).eval().double()
    assert sum(value.numel() for value in model.parameters()) == 5_813_483
    images, double = images_of(64, 80), {name: value.double() for name, value in state.items()}
    with torch.inference_mode():
        logits = model(images)
        expected = deeplab_by_hand(double, images)
    assert logits.shape == (2, CLASSES, 16, 20)
    assert expected.std() > 0.05
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    rates = {name: layer.rate for name, layer in model.named_modules() if isinstance(layer, Dropout) and layer.rate}
    assert rates == {"aspp.dropout": 0.5, "decoder.1": 0.5, "decoder.3": 0.2}
    with torch.inference_mode(), stochastic(model, [torch.Generator().manual_seed(0)]):
        assert not torch.equal(model(images[:1]), model(images[:1]))


def test_what_is_wrong_with_a_file_is_told(state: State, tmp_path: Path) -> None:
    def refused(told: str, changed: State, classes: int = CLASSES) -> None:
        with pytest.raises(DataError, match=rf"best_miou_model\.pt: {told}"):
            read_checkpoint(write(tmp_path, changed), classes)

    for name in ("low_level_features.2.conv.3.weight", "high_level_features.17.conv.7.running_mean"):
        name, original = f"backbone.{name}", f"backbone.{name.partition('_level_')[2]}"
        refused(f"{name} and {original} should be identical copies", state | {name: state[name] + 0.1})
    refused(r"has an unexpected tensor 'mask_head\.weight'", state | {"mask_head.weight": torch.zeros(2)})
    refused("was trained with 11 classes, but the data set has 19; give the data set", state, 19)
    other = {"fc.weight": torch.zeros(3, 3)}
    refused(r"is not a PixelPick checkpoint .*first tensor is 'fc\.weight'; give a best_miou", other)


def fpn_state(blocks: tuple[int, ...], bottleneck: bool) -> State:
    """Every tensor of the authors' FPN, the deepest level first in the decoder."""
    layout = Layout()
    layout.conv("encoder.base.prefix.conv1", 64, 3, 7, norm="encoder.base.prefix.bn1")
    inputs, widths = 64, []
    for stage, repeats in enumerate(blocks, start=1):
        planes = 32 * 2**stage
        outputs = planes * (4 if bottleneck else 1)
        for block in range(repeats):
            name = f"encoder.base.layer{stage}.{block}"
            shapes = [(planes, inputs, 3), (planes, planes, 3)]
            if bottleneck:
                shapes = [(planes, inputs, 1), (planes, planes, 3), (outputs, planes, 1)]
            for index, shape in enumerate(shapes, start=1):
                layout.conv(f"{name}.conv{index}", *shape, norm=f"{name}.bn{index}")
            if block == 0 and inputs != outputs:
                layout.conv(f"{name}.downsample.0", outputs, inputs, norm=f"{name}.downsample.1")
            inputs = outputs
        widths.append(outputs)
    for index, width in enumerate(reversed(widths)):
        layout.conv(f"decoder.lat_layer_{index}", 256, width, bias=True)
        for step in range(2 if index == 3 else 3):
            name = f"decoder.upsample_blocks_{index}.{step}.block"
            layout.conv(f"{name}.0", 128, 128 if step else 256, 3, bias=True)
            layout.norm(f"{name}.1", 128, statistics=False)
    layout.conv("decoder.classifier", 3, 128, bias=True)
    return layout.state


def fpn_by_hand(state: State, images: Tensor) -> Tensor:
    """Logits at full size, for encoders of basic blocks."""
    prefix = "encoder.base.prefix"
    values = conv(state, f"{prefix}.conv1", images, f"{prefix}.bn1", stride=2, padding=3).relu()
    values, levels = F.max_pool2d(values, 3, 2, 1), []
    for stage, (once, rate) in enumerate(((1, 1), (1, 1), (1, 2), (2, 4)), start=1):
        for block in range(2):
            name, shortcut = f"encoder.base.layer{stage}.{block}", values
            stride, first = 2 if (stage, block) == (2, 0) else 1, once if block == 0 else rate
            if f"{name}.downsample.0.weight" in state:
                shortcut = conv(state, f"{name}.downsample.0", values, f"{name}.downsample.1", stride=stride)
            steps = {"stride": stride, "padding": first, "dilation": first}
            values = conv(state, f"{name}.conv1", values, f"{name}.bn1", **steps).relu()
            values = conv(state, f"{name}.conv2", values, f"{name}.bn2", padding=rate, dilation=rate)
            values = (values + shortcut).relu()
        levels.append(values)
    total, merged = torch.zeros(()), torch.zeros(())
    for index, level in enumerate(reversed(levels)):
        lateral = conv(state, f"decoder.lat_layer_{index}", level)
        merged = lateral + (F.interpolate(merged, size=lateral.shape[2:], mode="bilinear") if index else 0)
        branch = merged
        for step in range(2 if index == 3 else 3):
            name = f"decoder.upsample_blocks_{index}.{step}.block"
            branch = conv(state, f"{name}.0", branch, padding=1)
            branch = F.group_norm(branch, 32, state[f"{name}.1.weight"], state[f"{name}.1.bias"]).relu()
            branch = F.interpolate(branch, scale_factor=2, mode="bilinear")
        total = total + branch
    return conv(state, "decoder.classifier", total)


def test_the_authors_fpn_computes_what_its_description_says(tmp_path: Path) -> None:
    state = fpn_state((2, 2, 2, 2), bottleneck=False)
    model = read_checkpoint(write(tmp_path, state), 3).eval().double()
    images = images_of(32, 48)
    with torch.inference_mode():
        logits = model(images)
        expected = fpn_by_hand({name: value.double() for name, value in state.items()}, images)
    assert logits.shape == (2, 3, 32, 48)
    assert expected.std() > 0.05
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    assert upsample(logits, (32, 48)) is logits


DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


@pytest.mark.parametrize("kind", ["mobilenetv2", *DEPTHS])
def test_each_published_kind_is_built_from_its_list_of_tensors(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def conv(self: Layout, name: str, *shape: int, bias: bool = False, norm: str = "") -> None:
        outputs, inputs, kernel = (*shape, 1)[:3]
        self.state[f"{name}.weight"] = torch.zeros(()).expand(outputs, inputs, kernel, kernel)
        self.state |= {f"{name}.bias": torch.zeros(outputs)} if bias else {}
        if norm:
            self.norm(norm, outputs)

    monkeypatch.setattr(Layout, "conv", conv)  # shapes alone: the values of 45 million parameters take their time
    state = fpn_state(DEPTHS[kind], kind in ("resnet50", "resnet101")) if kind in DEPTHS else deeplab_state(3)
    monkeypatch.setattr("pixelpick_ray.models.published.read_tensors", lambda path: dict(state))
    model = read_checkpoint(Path("best_miou_model.pt"), 3)
    copies = (".low_level_features.", ".high_level_features.")
    listed = [tuple(value.shape) for name, value in state.items() if not any(copy in name for copy in copies)]
    assert sorted(tuple(value.shape) for value in model.state_dict().values()) == sorted(listed)
    if kind == "resnet50":
        assert sum(value.numel() for value in model.parameters()) == 26_709_579 - 8 * 129
        with pytest.raises(DataError, match=r"was trained with 3 classes"):
            read_checkpoint(Path("best_miou_model.pt"), 4)
        state = fpn_state((1, 1, 7, 1), bottleneck=False)
        with pytest.raises(DataError, match=r"encoder has 7 blocks in stage 3, unlike resnet18, .*resnet101; give"):
            read_checkpoint(Path("best_miou_model.pt"), 3)


def test_a_checkpoint_is_read_from_an_archive_and_runs_no_code(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "b": torch.zeros(3)}
    path, archive = write(tmp_path, state), tmp_path / "cv_deeplab.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(path, "cv_deeplab/best_miou_model.pt")
        file.writestr("cv_deeplab/args.txt", "seed 0")
    assert read_tensors(archive).keys() == state.keys()
    assert read_tensors(path.rename(tmp_path / "renamed.zip")).keys() == state.keys()  # which is an archive itself
    with zipfile.ZipFile(archive, "a") as file:
        file.write(tmp_path / "renamed.zip", "other.pt")
    with pytest.raises(
        DataError, match=r"contains several checkpoints \(cv_deeplab/best_miou_model\.pt, other\.pt\); unpack it"
    ):
        read_tensors(archive)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("best_miou_model.pt", pickle.dumps({"model": Bomb(tmp_path / "ran")}))
    with pytest.raises(DataError, match="cannot be read as a file of tensors"):
        read_tensors(archive)
    assert not (tmp_path / "ran").exists()
