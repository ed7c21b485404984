"""Experiments that extend others: what is merged and what is replaced, and what is refused, with file and line."""

from pathlib import Path

import pytest

from pixelpick_ray.config.experiment import dump_experiment, load_experiment
from pixelpick_ray.config.extends import whole_text
from pixelpick_ray.errors import SpecError
from tests.support.experiments import SHIPPED_EXPERIMENTS, experiment_text

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
    assert experiment.train is not None
    assert (experiment.train.epochs, experiment.train.batch_size) == (5, 4)
    assert experiment.train.augment is not None
    assert (experiment.train.augment.hflip, experiment.train.augment.scale) == (0.5, (0.5, 2.0))
    assert [(trial.seed, trial.budget) for trial in experiment.trials()] == [(2, 20)]


def test_a_mapping_of_another_name_is_replaced_and_one_of_the_same_is_merged(folder: Path) -> None:
    same = load_experiment(own(folder, "train: {optimizer: {name: adam, lr: 1e-2}}\n"))
    other = load_experiment(own(folder, "train: {optimizer: {name: sgd, lr: 1e-2}}\n"))
    assert same.train is not None
    assert other.train is not None
    assert (same.train.optimizer.lr, same.train.optimizer.weight_decay) == (1e-2, 1e-4)
    assert (other.train.optimizer.name, other.train.optimizer.weight_decay) == ("sgd", 0.0)


def test_a_head_replaces_what_the_base_calls_an_architecture(folder: Path) -> None:
    experiment = load_experiment(own(folder, "model: {head: linear}\n"))
    assert experiment.model.architecture == "linear"


def test_a_base_may_extend_another_relative_to_itself(folder: Path) -> None:
    (folder / "base" / "small.yaml").write_text("extends: all.yaml\ndataset: {images: 2}\n")
    (folder / "own.yaml").write_text("extends: base/small.yaml\nname: own\n")
    experiment = load_experiment(folder / "own.yaml", ["train.epochs=7"])
    assert experiment.dataset.images == 2
    assert experiment.train is not None
    assert experiment.train.epochs == 7


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
        ("extends: base\n", r"^own.yaml line 1: extends: base cannot be read"),
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


def test_a_file_that_extends_itself_is_refused(folder: Path) -> None:
    (folder / "own.yaml").write_text("name: own\nextends: own.yaml\n")
    with pytest.raises(SpecError, match=r"own.yaml line 2: extends: own.yaml extends this file in turn"):
        load_experiment(folder / "own.yaml")


def test_a_message_names_the_file_that_says_it(folder: Path) -> None:
    (folder / "base" / "all.yaml").write_text(BASE.replace("epochs: 3", "epochs: 0"))
    with pytest.raises(SpecError, match=r"^base/all.yaml: train.epochs: "):
        load_experiment(own(folder))
    with pytest.raises(SpecError, match=r"^own.yaml: train.epochs: "):
        load_experiment(own(folder, "train: {epochs: -1}\n"))
    with pytest.raises(SpecError, match=r"^own.yaml: train.epochs: "):
        load_experiment(own(folder), ["train.epochs=-1"])


def test_what_is_extended_is_no_experiment_by_itself() -> None:
    folder = SHIPPED_EXPERIMENTS[0].parents[0]
    bases = [*(folder / "base").glob("*.yaml")]
    assert bases
    for base in bases:
        with pytest.raises(SpecError, match="name: is required"):
            load_experiment(base)


def test_a_text_of_no_file_extends_nothing() -> None:
    from pixelpick_ray.config.experiment import parse_experiment

    with pytest.raises(SpecError, match="is relative to the file, but this text is in no file"):
        parse_experiment("extends: base/all.yaml\n" + experiment_text(), where="text")
