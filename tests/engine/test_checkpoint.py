"""Evaluating checkpoints: a stored fit made by hand, a file as the authors write it, and what is told otherwise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.experiment import parse_experiment
from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.trial import DatasetSpec, ModelSpec
from pixelpick_ray.data.datasets import CamVid
from pixelpick_ray.engine.checkpoint import evaluate_checkpoint
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.models.published import read_checkpoint
from pixelpick_ray.models.segmentation import build_model
from pixelpick_ray.store import Store
from pixelpick_ray.tasks import Fit
from tests.models.test_published import deeplab_state
from tests.support.data_folders import loaded
from tests.support.experiments import TWO_PIXELS, experiment_text
from tests.support.stores import Named

pytestmark = pytest.mark.training

CPU = torch.device("cpu")
SIZE = (18, 26)  # no multiple of 8: images are mirrored up to 24x32
EXPERIMENT = experiment_text(
    dataset="{name: camvid}",
    model="{architecture: fpn, backbone: resnet18, pretrained: imagenet, width: null}",
    acquire=TWO_PIXELS,
    grid="[{budget: [2]}]",
)

Evaluate = Callable[..., tuple[tuple[str, ...], npt.NDArray[np.int64]]]


@pytest.fixture
def data(write_camvid: Callable[..., Path]) -> Path:
    """Three test images of 18x26 and three training images."""
    return write_camvid(size=SIZE, splits=("train", "test"))


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Evaluate:
    """Evaluate a file on the test split."""

    def call(path: Path, split: str = "test", **size: object) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
        places = {"data_path": data, "cache_path": tmp_path / "cache"}
        return evaluate_checkpoint(path, DatasetSpec(name="camvid", **size), split, **places, device=CPU)

    return call


def sharpened(model: nn.Module) -> nn.Module:
    """A network that answers with several classes: random classifiers prefer one."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.randn(model.classifier.weight.shape, generator=generator))
        model.classifier.weight.sub_(model.classifier.weight.mean(dim=1, keepdim=True))
    return model


def store_fit(folder: Path, *overrides: str) -> tuple[Path, nn.Module]:
    """Publish a fit as the loop does; its weights file and its network."""
    experiment = parse_experiment(EXPERIMENT, where="tiny.yaml", overrides=overrides)
    trial, source = experiment.trials()[0], Source({"train": "0" * 64}, "train", "1" * 64)
    inputs = Fit(trial, source, experiment.evaluate, stage=0, labels=Named("2" * 64)).inputs
    store = Store(folder)
    store.publish("fit", inputs, lambda place: (place / "training.json").write_text("{}"), {})
    spec = ModelSpec.model_validate_json(json.dumps(trial.model.as_input() | {"pretrained": "none"}))
    model = sharpened(build_model(spec, num_classes=11, data_path=folder, seed=4, stage=0)).eval()
    store.write_weights(digest(inputs), lambda path: save_file(model.state_dict(), path))
    return store.folder("fit", digest(inputs)) / "weights.safetensors", model


def counted(model: nn.Module, data: Path, size: tuple[int, int] = SIZE) -> npt.NDArray[np.int64]:
    """The confusion matrix of the test images, one image and one pixel after another."""
    facts = CamVid.facts
    confusion = np.zeros((11, 11), dtype=np.int64)
    for path in sorted((data / "camvid" / "test").glob("*.png")):
        image = loaded(path).resize(size[::-1], Image.Resampling.BILINEAR)
        label = loaded(path.parents[1] / "testannot" / path.name).resize(size[::-1], Image.Resampling.NEAREST)
        values = (np.asarray(image) / 255 - np.asarray(facts.mean)) / np.asarray(facts.std)
        padded = np.pad(values, [(0, -size[0] % 8), (0, -size[1] % 8), (0, 0)], mode="reflect")
        with torch.inference_mode():
            logits = model(torch.from_numpy(padded).float().permute(2, 0, 1)[None])
            logits = F.interpolate(logits, size=padded.shape[:2], mode="bilinear", align_corners=True)
        predicted = logits[0].argmax(dim=0)[: size[0], : size[1]].numpy()
        for truth, answer in zip(np.asarray(label).flat, predicted.flat, strict=True):
            if truth != facts.void_index:
                confusion[truth, answer] += 1
    return confusion


@pytest.mark.parametrize(
    "overrides", [(), ("model={backbone: mobilenetv2_035, pretrained: none, dropout: [0.1, 0.0, 0.2]}",)], ids=str
)
def test_a_stored_fit_is_evaluated(overrides: tuple[str, ...], run: Evaluate, data: Path, tmp_path: Path) -> None:
    path, model = store_fit(tmp_path / "store", *overrides)
    names, confusion = run(path)
    assert names == CamVid.facts.class_names
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, counted(model, data))
    assert (confusion.sum(axis=0) > 0).sum() > 3


def test_the_size_is_the_data_sets(run: Evaluate, data: Path, tmp_path: Path) -> None:
    path, model = store_fit(tmp_path / "store")
    _, confusion = run(path, size=(16, 24))
    np.testing.assert_array_equal(confusion, counted(model, data, (16, 24)))
    assert run(path, scale=0.5)[1].sum() < 3 * 9 * 13 < run(path)[1].sum()


def test_a_narrow_network_is_rebuilt_as_it_was(run: Evaluate, data: Path, tmp_path: Path) -> None:
    path, model = store_fit(tmp_path / "store", "model.width=0.25", "model.pretrained=none")
    assert model.backbone.conv1.out_channels == 16
    np.testing.assert_array_equal(run(path)[1], counted(model, data))


def test_a_fit_may_be_evaluated_outside_of_its_store(run: Evaluate, tmp_path: Path) -> None:
    path, _ = store_fit(tmp_path / "store")
    moved = shutil.copytree(path.parent, tmp_path / "mine")
    np.testing.assert_array_equal(run(moved / path.name)[1], run(path)[1])


def test_a_published_file_is_evaluated(run: Evaluate, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "best_miou_model.pt"
    torch.save({"model": deeplab_state()}, path)
    names, confusion = run(path)
    assert names == CamVid.facts.class_names
    np.testing.assert_array_equal(confusion, counted(read_checkpoint(path, 11).eval(), data))


def test_another_file_or_split_is_told(run: Evaluate, data: Path, tmp_path: Path) -> None:
    path, model = store_fit(tmp_path / "store")
    with pytest.raises(DataError, match=r"nothing\.pt: no such file; give the weights\.safetensors of a stored fit or"):
        run(tmp_path / "nothing.pt")
    with pytest.raises(DataError, match=r"no such file"):
        run(path.parent)
    with pytest.raises(SpecError, match=r"split: camvid has no 'tset'; it has train, val, test"):
        run(path, split="tset")
    torch.save(model.state_dict(), tmp_path / "other.pt")
    with pytest.raises(
        DataError, match=r"other\.pt: is no checkpoint of PixelPick.*weights\.safetensors of a stored fit"
    ):
        run(tmp_path / "other.pt")
    alone = tmp_path / "alone.safetensors"
    shutil.copy(path, alone)
    with pytest.raises(DataError, match=r"input\.json: does not say which network.*fit/<key>/weights\.safetensors"):
        run(alone)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": 3}', '{"model": {"backbone": "x", "depth": 3}}'])
def test_a_damaged_description_is_told(content: str, run: Evaluate, tmp_path: Path) -> None:
    path, _ = store_fit(tmp_path / "store")
    path.with_name("input.json").write_text(content)
    with pytest.raises(DataError, match=r"input\.json: does not say which network"):
        run(path)


def test_other_classes_and_other_tensors_are_told(data: Path, run: Evaluate, tmp_path: Path) -> None:
    path, model = store_fit(tmp_path / "store")
    places = {"data_path": data, "cache_path": tmp_path / "cache", "device": CPU}
    with pytest.raises(DataError, match=r"weights\.safetensors: was trained for 11 classes, the data set has \d+"):
        evaluate_checkpoint(path, DatasetSpec(name="scenes"), "test", **places)
    state = model.state_dict()
    del state["laterals.2.bias"]
    save_file(state, path)
    with pytest.raises(DataError, match=r"has no tensor 'laterals\.2\.bias'; are these weights of fpn resnet18\?"):
        run(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"weights\.safetensors: is not a readable file of tensors"):
        run(path)
