"""What is surely or probably wrong with a data set, found before anything starts and told by `check`, `plan`, `run`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pixelpick_ray.checks import data_warnings
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import parse_experiment
from pixelpick_ray.data.dataset import DatasetFacts
from pixelpick_ray.data.findings import SplitFacts, find
from pixelpick_ray.errors import DataError
from pixelpick_ray.planning import keep_warnings, make_plan
from pixelpick_ray.report.files import write_report
from pixelpick_ray.store import Store
from tests.support.data_folders import loaded, noise, save
from tests.support.experiments import experiment_text
from tests.support.launch import launch

FACTS = DatasetFacts("x", ("a", "b", "c"), 255, (0.5,) * 3, (0.5,) * 3, ((1, 1, 1), (2, 2, 2), (3, 3, 3)), ("t", "v"))
OWN = experiment_text("mine", evaluate="{splits: {val: {}}, report: val}").replace(
    "name: scenes, size: [32, 48], images: 4", "name: folder, path: leaves"
)


def split(name: str, *values: int, seed: int = 0, void: int = 0, **more: Any) -> SplitFacts:
    """Two images whose label maps have these values, and so many pixels of void in each."""
    label = np.resize(np.asarray(values or [255], np.uint8), (12, 14))
    label.ravel()[:void] = 255
    images = [(f"{name}{at}.png", noise((12, 14), (0,), seed=seed + at)[0], label) for at in range(2)]
    return SplitFacts.of(name, images, **({"has_labels": True, "left_out": ()} | more))


def told(*splits: SplitFacts, facts: DatasetFacts = FACTS) -> list[str]:
    return [str(one) for one in find("x", facts, splits)]


WRONG = {
    "nothing": ([split("t", 0, 1, 2, 255), split("v", 0, 1, seed=9), split("bare", seed=20, has_labels=False)], []),
    "all void": ([split("t", 255), split("v", 0, 1, 2, seed=9)], ["error: x t: all pixels of 2 label maps are void"]),
    "one class and void": (
        [split("t", 0, 255), split("v", 0, 255, seed=9)],
        [
            "error: x t: the label maps contain only the class 'a', and 50.0 % is void; if 255 marks the object in "
            "masks of 0 and 255, set classes: {background: 0, object: 255} in dataset.yaml",
            "error: x v: the label maps contain only the class 'a'",
        ],
    ),
    "begin at 1": (
        [split("t", 1, 2), split("v", 1, 2, seed=9)],
        ["warning: x: no label map of t, v contains a; if values start at 1, give classes as a mapping"],
    ),
    "the last never occurs": (
        [split("t", 0, 1), split("v", 0, 1, seed=9)],
        ["warning: x: no label map of t, v contains c"],
    ),
    "not in training": ([split("t", 0, 1), split("v", 0, 1, 2, seed=9)], ["warning: x: c occurs in v but not in t"]),
    "much void": (
        [split("t", 0, 1, 2, void=155), split("v", 0, 1, 2, seed=9)],
        ["warning: x t: 92.3 % of all pixels are void; check that they belong to no class"],
    ),
    "left out": (
        [split("t", 0, 1, 2, left_out=["2 files .gif, which is not supported, e.g. a.gif"])],
        ["warning: x t: 2 files .gif, which is not supported, e.g. a.gif, left out"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_found(case: str) -> None:
    splits, expected = WRONG[case]
    for text, begins in zip(told(*splits), expected, strict=True):
        assert text.startswith(begins)


def test_splits_without_a_class_in_common_are_an_error() -> None:
    facts = replace(FACTS, class_names=tuple("abcd"), palette=((0, 0, 0),) * 4)
    (found,) = told(split("t", 0, 1), split("v", 2, 3, seed=9), facts=facts)
    assert found.startswith("error: x: t (a, b) and v (c, d) have no class in common; check that their label maps")


def picture(seed: int) -> np.ndarray[Any, Any]:
    """Something like a photo: smooth, with edges."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((160, 120), Image.Resampling.BICUBIC))


def test_copies_are_found_at_another_size_stored_anew_and_a_little_later(tmp_path: Path) -> None:
    label = np.resize(np.array([0, 1, 2], np.uint8), (120, 160))
    train = SplitFacts.of("t", [(str(at), picture(at), label) for at in range(8)], has_labels=True, left_out=())
    smaller = Image.fromarray(picture(3)).resize((80, 60), Image.Resampling.BILINEAR)
    Image.fromarray(picture(4)).save(tmp_path / "a.jpg", quality=70)
    lossy = np.asarray(loaded(tmp_path / "a.jpg"))
    others = {"smaller": np.asarray(smaller), "lossy": lossy, "later": np.roll(picture(5), 2, axis=1)}
    images = [(name, one, label[: len(one), : one.shape[1]]) for name, one in (others | {"new": picture(99)}).items()]
    assert told(train, SplitFacts.of("v", images, has_labels=True, left_out=())) == [
        "warning: x: 2 of 4 images of v are also in t, e.g. smaller (3), lossy (4); remove them from one of the "
        "two, as results on them would be too optimistic",
        "warning: x: 1 of 4 images of v look nearly like images of t, e.g. later (5); remove them from one of the "
        "two, as results on them would be too optimistic",
    ]


def write_masks(data: Path, values: dict[str, list[int]], same: bool = False, **description: Any) -> None:
    """Four images a split whose label maps have these values."""
    for at, (name, of_split) in enumerate(values.items()):
        for index in range(4):
            image = noise((24, 28), (0,), seed=index + (0 if same else 10 * at))[0]
            save(data / "leaves" / name / "images" / f"{index}.png", image)
            label = np.resize(np.asarray(of_split, np.uint8), (24, 28))
            save(data / "leaves" / name / "labels" / f"{index}.png", label)
    splits = {name: {"images": f"{name}/images", "labels": f"{name}/labels"} for name in values}
    tree = {"classes": ["soil", "leaf"], "splits": splits} | description
    (data / "leaves" / "dataset.yaml").write_text(yaml.safe_dump(tree))


def test_binary_masks_with_the_object_at_255_are_refused_with_the_remedy_which_helps(tmp_path: Path) -> None:
    """They gave an mIoU of 100 % of the one class that was left."""
    write_masks(tmp_path, {"train": [0, 255], "val": [0, 0, 255]})
    experiment = parse_experiment(OWN, where="mine.yaml")
    trials, execution = make_plan(experiment).trials, Execution(tmp_path, str(tmp_path / "store"), tmp_path / "cache")
    with pytest.raises(
        DataError,
        match=r"leaves train: the label maps contain only the class 'soil'.*classes: \{background: 0, object: 25",
    ):
        data_warnings(experiment, trials, execution)
    write_masks(tmp_path, {"train": [0, 255], "val": [0, 0, 255]}, classes={"background": 0, "object": 255})
    assert data_warnings(experiment, trials, execution) == []
    kept = sorted((tmp_path / "cache").glob("facts-*.json"))
    for damage in (b"", b"{", kept[0].read_bytes().replace(b"1", b"2", 1)):
        kept[0].write_bytes(damage)
        assert data_warnings(experiment, trials, execution) == []  # damage is no warning, and is made again


@pytest.mark.usefixtures("undrawn")
def test_warnings_are_the_first_lines_of_a_plan_and_stand_in_the_report(tmp_path: Path) -> None:
    write_masks(tmp_path / "data", {"train": [0, 1], "val": [0, 1]}, same=True)
    (tmp_path / "mine.yaml").write_text(OWN)
    done = launch(tmp_path, "plan", "mine.yaml")
    expected = (
        "leaves: 4 of 4 images of val are also in train, e.g. 0.png, 1.png, 2.png; remove them from one of the two, "
        "as results on them would be too optimistic"
    )
    assert (done.status, done.out.splitlines()[0]) == (0, f"warning: {expected}")
    assert json.loads(launch(tmp_path, "plan", "mine.yaml", "--json").out)["warnings"] == [expected]
    experiment, store = parse_experiment(OWN, where="mine.yaml"), Store(str(tmp_path / "store"))
    for warnings in ([expected], []):
        keep_warnings(experiment, store, warnings)
        write_report(store, [experiment], tmp_path / "report")
        for file in ("table.md", "index.html"):
            assert (expected in (tmp_path / "report" / file).read_text()) == bool(warnings)


def test_check_says_what_is_there_and_draws_it(tmp_path: Path) -> None:
    write_masks(tmp_path / "data", {"train": [0, 1, 1, 255], "val": [0, 1]})
    done = launch(tmp_path, "check", "data/leaves")
    assert done.status == 0, done
    assert done.out.splitlines() == [
        "train: 4 images, 24x28 (height x width); label files have values 0..1, 255",
        "val: 4 images, 24x28 (height x width); label files have values 0..1",
        "share of pixels       train         val",
        "soil                25.00 %     50.00 %",
        "leaf                50.00 %     50.00 %",
        "void                25.00 %       never",
        "no problems found",
        "contact sheet: leaves-check.png",
    ]
    pixels = np.asarray(loaded(tmp_path / "leaves-check.png").convert("RGB")).reshape(-1, 3)
    for colour in ((128, 0, 0), (0, 128, 0), (128, 128, 128)):  # the legend
        assert (pixels == colour).all(axis=1).sum() > 100
    found = json.loads(launch(tmp_path, "check", "leaves", "--json").out)
    assert (found["ok"], found["splits"]["train"]["shares"]) == (True, {"soil": 0.25, "leaf": 0.5, "void": 0.25})


def test_check_tells_all_that_is_wrong_with_status_2(tmp_path: Path) -> None:
    write_masks(tmp_path / "data", {"train": [0, 255], "val": [0, 0]})
    done = launch(tmp_path, "check", "leaves")
    assert (done.status, "error: leaves train: the label maps contain only the class 'soil'" in done.out) == (2, True)
    for name in ("train", "val"):
        (tmp_path / "data" / "leaves" / name / "images" / "2.png").write_text(
            "version https://git-lfs.github.com/spec/v1"
        )
    done = launch(tmp_path, "check", "leaves")
    assert (done.status, done.err.count("is a Git LFS pointer")) == (2, 2)
    (tmp_path / "data" / "other").mkdir()
    told = launch(tmp_path, "check", "other").err
    assert "has no dataset.yaml; write one, or generate a proposal with `init other`" in told
