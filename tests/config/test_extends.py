"""Experiments that extend others: what is merged and what is replaced, and what is refused, with file and line."""

from pathlib import Path

import pytest

from pixelpick_ray.config.experiment import dump_experiment, load_experiment, parse_experiment
from pixelpick_ray.config.extends import whole_text
from pixelpick_ray.errors import SpecError
from tests.support.experiments import SHIPPED_EXPERIMENTS

BASE = """
dataset: {name: scenes, size: [32, 48], images: 4}
model: {architecture: deeplabv3plus, backbone: test_resnet, pretrained: none}
train:
  epochs: 3
  batch_size: 4
  optimizer: {name: adam, lr: 1e-3, weight_decay: 1e-4}
  augment: {scale: [0.5, 2.0], hflip: 0.25}
evaluate: {splits: {test: {}}, report: test}
grid:
  - {seed: [0, 1], budget: [10]}
"""
OWN = "extends: base/all.yaml\nname: own\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "all.yaml").write_text(BASE)
    return tmp_path


def own(folder: Path, text: str = "") -> Path:
    (folder / "own.yaml").write_text(OWN + text)
    return folder / "own.yaml"


def test_mappings_are_merged_and_lists_replaced(folder: Path) -> None:
    text = "dataset: {size: [64, 96]}\ntrain: {epochs: 5, augment: {hflip: 0.5}}\ngrid: [{seed: [2], budget: [20]}]\n"
    experiment = load_experiment(own(folder, text))
    assert experiment.dataset.as_input() == {"name": "scenes", "size": [64, 96], "images": 4}
    assert (experiment.train.epochs, experiment.train.batch_size) == (5, 4)
    assert (experiment.train.augment.hflip, experiment.train.augment.scale) == (0.5, (0.5, 2.0))
    assert [(trial.seed, trial.budget) for trial in experiment.trials()] == [(2, 20)]
    same = load_experiment(own(folder, "train: {optimizer: {name: adam, lr: 1e-2}}\n")).train.optimizer
    other = load_experiment(own(folder, "train: {optimizer: {name: sgd, lr: 1e-2}}\n")).train.optimizer
    assert (same.lr, same.weight_decay) == (1e-2, 1e-4)
    assert (other.name, other.weight_decay) == ("sgd", 0.0)  # a mapping of another name is replaced, too
    headed = load_experiment(own(folder, "model: {head: linear}\n"))
    assert headed.model.architecture == "linear"  # as the base calls it


def test_a_base_may_extend_another_relative_to_itself(folder: Path) -> None:
    (folder / "base" / "small.yaml").write_text("extends: all.yaml\ndataset: {images: 2}\n")
    (folder / "own.yaml").write_text("extends: base/small.yaml\nname: own\n")
    experiment = load_experiment(folder / "own.yaml", ["train.epochs=7"])
    assert (experiment.dataset.images, experiment.train.epochs) == (2, 7)


def test_it_is_the_experiment_that_one_whole_file_is(folder: Path) -> None:
    whole = folder / "whole.yaml"
    whole.write_text(f"name: own\n{BASE}")
    extending = own(folder)
    assert load_experiment(extending).identity() == load_experiment(whole).identity()
    assert dump_experiment(load_experiment(extending)) == dump_experiment(load_experiment(whole))
    submitted = folder / "submitted.yaml"  # what a batch job has
    submitted.write_text(whole_text(extending))
    assert "extends" not in submitted.read_text()
    assert load_experiment(submitted) == load_experiment(whole)
    assert whole_text(whole) == whole.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: base/none.yaml\n", r"^own.yaml line 1: extends: base/none.yaml cannot be read"),
        ("# first\nname: own\nextends: /base/all.yaml\n", r"^own.yaml line 3: extends: /base/all.yaml is absolute"),
        ("extends: [base/all.yaml]\n", r"^own.yaml line 1: extends: should be the path"),
        ("name: own\nextends: own.yaml\n", r"^own.yaml line 2: extends: own.yaml extends this file in turn"),
        ("extends: base/list.yaml\n", r"^own.yaml line 1: extends: base/list.yaml is not a mapping"),
        ("extends: base/one.yaml\n", r"^(one|two).yaml line 2: extends: (one|two).yaml extends this file in turn"),
    ],
)
def test_a_wrong_base_is_refused_with_file_and_line(folder: Path, text: str, message: str) -> None:
    (folder / "base" / "list.yaml").write_text("[1, 2]")
    (folder / "base" / "one.yaml").write_text("\nextends: two.yaml\n")
    (folder / "base" / "two.yaml").write_text("\nextends: one.yaml\n")
    (folder / "own.yaml").write_text(text)
    with pytest.raises(SpecError, match=message):
        load_experiment(folder / "own.yaml")
    with pytest.raises(SpecError, match="is relative to the experiment file, but this text"):
        parse_experiment(OWN + BASE, where="text")


def test_a_message_names_the_file_that_says_it(folder: Path) -> None:
    (folder / "base" / "all.yaml").write_text(BASE.replace("epochs: 3", "epochs: 0"))
    for text, overrides, file in (
        ("", [], "base/all.yaml"),
        ("train: {epochs: -1}\n", [], "own.yaml"),
        ("", ["train.epochs=-1"], "own.yaml"),
    ):
        with pytest.raises(SpecError, match=rf"^{file}: train.epochs: "):
            load_experiment(own(folder, text), overrides)


def test_what_is_extended_is_no_experiment_by_itself() -> None:
    bases = [*(SHIPPED_EXPERIMENTS[0].parents[0] / "base").glob("*.yaml")]
    assert bases
    for base in bases:
        with pytest.raises(SpecError, match="name: is required"):
            load_experiment(base)
