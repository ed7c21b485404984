"""Evaluating checkpoints: a stored fit made by hand, a file as the authors write it, and what is told otherwise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.config.trial import DatasetSpec
from pixelpick_ray.data.datasets import CamVid
from pixelpick_ray.engine.checkpoint import evaluate_checkpoint
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.models.published import read_checkpoint
from pixelpick_ray.models.segmentation import build_model
from pixelpick_ray.store import Store
from pixelpick_ray.tasks import Fit
from tests.models.test_published import deeplab_state
from tests.support.data_folders import loaded, noise, save
from tests.support.experiments import TWO_PIXELS, experiment_of, experiment_text
from tests.support.networks import confusion_by_hand, predicted_by_hand
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
Stored = tuple[Path, nn.Module]  # a weights file and its network


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three test images of 18x26."""
    data = tmp_path_factory.mktemp("data")
    for index in range(3):
        picture, label = noise(SIZE, range(12), seed=index)
        save(data / "camvid" / "test" / f"{index}.png", picture)
        save(data / "camvid" / "testannot" / f"{index}.png", label)
    return data


@pytest.fixture
def run(data: Path, cache_path: Path) -> Evaluate:
    """Evaluate a file on the test split."""

    def call(weights: Path, split: str = "test", name: str = "camvid", **options: object) -> object:
        said = {option: options.pop(option) for option in ("renamed", "note") if option in options}
        dataset = DatasetSpec(name=name, **options)
        return evaluate_checkpoint(weights, dataset, split, data_path=data, cache_path=cache_path, device=CPU, **said)

    return call


def sharpened(model: nn.Module) -> nn.Module:
    """A network that answers with several classes: random classifiers prefer one."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.randn(model.classifier.weight.shape, generator=generator))
        model.classifier.weight.sub_(model.classifier.weight.mean(dim=1, keepdim=True))
    return model


def store_fit(folder: Path, *overrides: str) -> Stored:
    """Publish a fit as the loop does."""
    experiment = experiment_of(EXPERIMENT, *overrides)
    trial, source = experiment.trials()[0], Source({"train": "0" * 64}, "train", "1" * 64)
    inputs = Fit(trial, source, experiment.evaluate, stage=0, labels=Named("2" * 64)).inputs
    store = Store(folder)
    store.publish("fit", inputs, lambda place: (place / "training.json").write_text("{}"), {})
    spec = ModelSpec.model_validate_json(json.dumps(trial.model.as_input() | {"pretrained": "none"}))
    model = sharpened(build_model(spec, num_classes=11, data_path=folder, seed=4, stage=0)).eval()
    store.write_weights(digest(inputs), lambda path: save_file(model.state_dict(), path))
    return store.folder("fit", digest(inputs)) / "weights.safetensors", model


def counted(model: nn.Module, data: Path, size: tuple[int, int] = SIZE) -> npt.NDArray[np.int64]:
    """The confusion matrix of the test images, one image after another."""
    pairs = []
    for path in sorted((data / "camvid" / "test").glob("*.png")):
        image = loaded(path).resize(size[::-1], Image.Resampling.BILINEAR)
        label = loaded(path.parents[1] / "testannot" / path.name).resize(size[::-1], Image.Resampling.NEAREST)
        pairs.append((np.asarray(label), predicted_by_hand(model, np.asarray(image), CamVid.facts)))
    return confusion_by_hand(pairs, CamVid.facts)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """A stored fit that is not to be changed."""
    return store_fit(tmp_path_factory.mktemp("store"))


@pytest.fixture
def mine(stored: Stored, tmp_path: Path) -> Path:
    """The weights of a copy of the stored fit outside of its store."""
    return shutil.copytree(stored[0].parent, tmp_path / "mine") / stored[0].name


def test_a_stored_fit_is_evaluated_at_the_size_asked_for(stored: Stored, mine: Path, run: Evaluate, data: Path) -> None:
    """Also outside of its store."""
    path, model = stored
    names, confusion = run(path)
    assert names == CamVid.facts.class_names
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, counted(model, data))
    assert (confusion.sum(axis=0) > 0).sum() > 3
    np.testing.assert_array_equal(run(path, size=(16, 24))[1], counted(model, data, (16, 24)))
    assert run(path, scale=0.5)[1].sum() < 3 * 9 * 13 < confusion.sum()
    np.testing.assert_array_equal(run(mine)[1], confusion)


def test_a_network_is_rebuilt_as_it_was(run: Evaluate, data: Path, tmp_path: Path) -> None:
    """A narrow one, one with dropout, and one that the authors stored."""
    narrow = store_fit(tmp_path / "narrow", "model.width=0.25", "model.pretrained=none")
    assert narrow[1].backbone.conv1.out_channels == 16
    deeplab = "model={backbone: mobilenetv2_035, pretrained: none, dropout: [0.1, 0.0, 0.2]}"
    published = tmp_path / "best_miou_model.pt"
    torch.save({"model": deeplab_state()}, published)
    theirs = published, read_checkpoint(published, 11).eval()
    for path, model in (narrow, store_fit(tmp_path / "deeplab", deeplab), theirs):
        names, confusion = run(path)
        assert names == CamVid.facts.class_names
        np.testing.assert_array_equal(confusion, counted(model, data))


def told(path: Path, **facts: object) -> None:
    """Say with a fit what it was trained with."""
    before = json.loads(path.with_name("provenance.json").read_text())
    path.with_name("provenance.json").write_text(json.dumps(before | facts))


def folder_of(data: Path, classes: list[str], void: int = 11, **facts: object) -> None:
    """CamVid's test images as a folder of the user's own."""
    if not (data / "mine").exists():
        shutil.copytree(data / "camvid", data / "mine")
    text = {"classes": classes, "void": void, "splits": {"test": {"images": "test", "labels": "testannot"}}}
    (data / "mine" / "dataset.yaml").write_text(json.dumps(text | {"train_split": "test"} | facts))


def test_a_fit_is_normalised_as_it_was_trained(mine: Path, run: Evaluate, data: Path) -> None:
    """The same pixels, described with another mean; a fit that says nothing is of the CamVid that it names."""
    facts = CamVid.facts
    expected = run(mine)[1]
    folder_of(data, list(facts.class_names), mean=[0.9, 0.9, 0.9])
    np.testing.assert_array_equal(run(mine, name="folder", path="mine")[1], expected)
    told(mine, classes=facts.class_names, normalise={"mean": [0.9, 0.9, 0.9], "std": [0.1, 0.1, 0.1]})
    assert (run(mine)[1] != expected).any()
    told(mine, normalise={"mean": facts.mean, "std": facts.std})
    np.testing.assert_array_equal(run(mine)[1], expected)


def test_classes_are_compared_by_name(mine: Path, run: Evaluate, data: Path) -> None:
    """In another order, with other names, and with several of the weights for one of the data set."""
    names, notes = CamVid.facts.class_names, list[str]()
    expected, order = run(mine)[1], [1, 0, *range(2, 11)]
    folder_of(data, [names[at] for at in order])
    found = run(mine, name="folder", path="mine", note=notes.append)[1]
    np.testing.assert_array_equal(found[:, order], expected)  # the label maps have the old order
    assert "in a different order; they are matched by name" in "".join(notes)
    folder_of(data, ["Sky", *names[1:]])
    with pytest.raises(DataError, match=r"has the classes sky, .*, but folder has Sky.*--map sky=Sky"):
        run(mine, name="folder", path="mine")
    np.testing.assert_array_equal(run(mine, name="folder", path="mine", renamed={"sky": "Sky"})[1], expected)
    with pytest.raises(SpecError, match=r"--map: folder have no class 'Skies'; choose one of Sky"):
        run(mine, name="folder", path="mine", renamed={"sky": "Skies"})
    together = run(mine, renamed={names[0]: names[1]}, note=notes.append)[1]
    np.testing.assert_array_equal(together[:, 1], expected[:, 0] + expected[:, 1])
    assert not together[:, 0].any()
    assert f"has no class for {names[0]}, which are never predicted" in notes[-2]
    assert "deviation" in notes[-1]


def test_a_damaged_fit_and_weights_of_none_are_told(stored: Stored, mine: Path, run: Evaluate) -> None:
    alone = shutil.copy(mine, mine.parents[1] / "alone.safetensors")
    with pytest.raises(DataError, match=r"input\.json: does not describe the network.*fit/<key>/weights\.safetensors"):
        run(alone)
    state = stored[1].state_dict()
    save_file({name: value for name, value in state.items() if name != "laterals.2.bias"}, mine)
    with pytest.raises(DataError, match=r"has no tensor 'laterals\.2\.bias'; give weights of fpn resnet18"):
        run(mine)
    mine.write_bytes(mine.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"weights\.safetensors: cannot be read as a file of tensors"):
        run(mine)
    for content in ("{", "[]", '{"model": {"backbone": "x", "depth": 3}}'):
        mine.with_name("input.json").write_text(content)
        with pytest.raises(DataError, match=r"input\.json: does not describe the network"):
            run(mine)
