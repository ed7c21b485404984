"""Wrong experiments, options, data sets and weights: each is refused with its exact message and status 2, before
anything is started and with the store as it was.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from pixelpick_ray.cli.shared import asked_of
from pixelpick_ray.config.experiment import parse_experiment
from pixelpick_ray.config.trial import SizeSpec
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.runner import session
from tests.support.data_folders import noise, opened, save, write_cityscapes, write_folder, write_voc
from tests.support.experiments import WRONG, experiment_text
from tests.support.launch import ROOT, launch, unprivileged

pytestmark = pytest.mark.long

SCENES = experiment_text(
    "mine",
    train="{epochs: 2, batch_size: 4, optimizer: {name: adam, lr: 2e-3}}",
    evaluate="{splits: {val: {}}, report: val}",
    grid="\n  - {acquire.strategy: [margin, random], seed: [0, 1], budget: [10, 20]}",
)
FOLDER = SCENES.replace("name: scenes, size: [32, 48], images: 4", "name: folder, path: leaves")
SPACE = "train.optimizer.lr: {loguniform: [1e-4, 1e-1]}"
SEARCH = experiment_text(
    "mine",
    train="{epochs: 4, batch_size: 4, optimizer: {name: adam, lr: 2e-3}}",
    grid="\n  - {seed: [0], budget: [10, 20]}",
    search=f"\n  space:\n    {SPACE}\n  num_samples: 4",
)
Case = dict[str, Any]  # what is wrong, and what is told
EACH = ("run", "plan", "status", "doctor", "annotate")
PARTS = ("images", "labels")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an experiment and a store that somebody uses."""
    for start in ("run", "run_search"):
        monkeypatch.setattr(session, start, lambda *values, **options: pytest.fail("it has started"))
    (tmp_path / "mine.yaml").write_text(SCENES)
    for name in ("fit/0123/manifest.json", "experiments/other-0123/experiment.json"):
        (tmp_path / "store" / name).parent.mkdir(parents=True)
        (tmp_path / "store" / name).write_text("{}")
    (tmp_path / "data").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("made"))


@pytest.fixture
def leaves(place: Path, made: Path) -> Path:
    """The folder, with a data set of the user's own."""
    shutil.copytree(made, place / "data" / "leaves")
    return place


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the content of files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def told(place: Path, *arguments: str) -> str:
    """What a refused command says; it leaves the store, and no logs."""
    before = snapshot(place / "store")
    done = launch(place, *arguments)
    assert (done.status, done.out) == (2, ""), done
    assert snapshot(place / "store") == before
    assert not (place / "runs").exists()
    assert done.err.startswith("error: ")
    message = done.err.removeprefix("error: ").removesuffix("\n").replace(str(place), "PLACE")
    return re.sub(r"-[0-9a-f]{20}", "-DIGEST", message)


def told_of(place: Path, case: Case, text: str, *options: str) -> str:
    """What is told of an experiment file with options: by reading it, or, `late`, by a run alone."""
    (place / "mine.yaml").write_text(text)
    if case.get("late"):
        return told(place, "run", "mine.yaml", *options)
    with pytest.raises(SpecError) as caught:
        asked_of(place / "mine.yaml", [option for option in options if option != "--set"], str(place / "store"))
    return str(caught.value)


# Experiment files


@pytest.mark.parametrize("case", WRONG["files"], ids=lambda case: case["by"][-40:] or "empty")
def test_a_wrong_experiment_file(place: Path, case: Case) -> None:
    old = case.get("replace", SCENES)
    assert SCENES.count(old) == 1
    options = ["--local"] if case.get("late") else []
    assert told_of(place, case, SCENES.replace(old, case["by"]), *options) == case["told"]


@pytest.mark.parametrize("text", [SCENES, SEARCH], ids=["experiment", "search"])
@pytest.mark.parametrize("words", [*EACH, "run --local", "submit --to slurm --dry-run", "report --out report"])
def test_every_command_reads_the_file_first_and_stops_there(place: Path, words: str, text: str) -> None:
    command, *options = words.split()
    (place / "mine.yaml").write_text(text)
    wrong = told(place, command, "mine.yaml", *options, "--set", "train.epochs=0")
    assert wrong == "mine.yaml: train.epochs: Input should be greater than or equal to 1; got 0"
    missing = told(place, command, "mine.yaml", *options, "--set", "model.backbone=resnet5")
    assert missing.startswith("mine.yaml: model.backbone: timm has no network 'resnet5'; did you mean resnet50")


# Data sets of the user's own


def leaf(place: Path, part: str = "images", name: str = "leaf.v1.jpg", split: str = "train") -> Path:
    return place / "data" / "leaves" / split / part / name


def description(place: Path) -> Path:
    return place / "data" / "leaves" / "dataset.yaml"


def save_label(place: Path, values: object, dtype: type = np.uint8, name: str = "leaf.v1.png", **split: str) -> None:
    """Write a label map with these values, those of a row or one for all of 9x11 pixels, or a whole map."""
    values = np.asarray(values, dtype=dtype)
    save(leaf(place, "labels", name, **split), values if values.ndim > 1 else np.broadcast_to(values, (9, 11)).copy())


def rename(place: Path, name: bytes) -> None:
    """Give an image and its label map another stem."""
    for part, suffix in zip(PARTS, (".jpg", ".png"), strict=True):
        path = leaf(place, part, f"leaf.v1{suffix}")
        path.rename(path.parent / os.fsdecode(name + suffix.encode()))


def remove(place: Path, pattern: str) -> None:
    """Remove images and their label maps."""
    for path in leaf(place, "", "").glob(f"*/{pattern}"):
        path.unlink()


def folder_instead_of(path: Path) -> None:
    path.unlink()
    path.mkdir()


TURNED = Image.Exif()
TURNED[0x0112] = 6
DAMAGES: dict[str, Callable[[Path], object]] = {
    "without_label": lambda place: leaf(place, "labels", "leaf.v1.png").unlink(),
    "unknown_class": lambda place: save_label(place, [0] * 10 + [3]),
    "label_of_another_size": lambda place: save_label(place, np.zeros((11, 9)), name="leaf.v0.png", split="val"),
    "label_in_colour": lambda place: save_label(place, noise((9, 11), (0,), seed=0)[0] // 200 * 80),
    "label_of_16_bits": lambda place: save_label(place, 700, np.uint16),
    "label_that_loses": lambda place: Image.new("L", (11, 9)).save(leaf(place, "labels", "leaf.v1.png"), format="jpeg"),
    "truncated_image": lambda place: os.truncate(leaf(place, name="leaf.v0.png"), 200),
    "empty_image": lambda place: leaf(place).write_bytes(b""),
    "page_instead_of_image": lambda place: leaf(place).write_text("<html>404 not found</html>"),
    "image_of_16_bits": lambda place: save(leaf(place, name="leaf.v0.png"), np.full((9, 11), 700, np.uint16)),
    "huge_image": lambda place: Image.new("1", (20000, 12501)).save(leaf(place, name="leaf.v0.png")),
    "turned_image": lambda place: Image.new("RGB", (11, 9)).save(leaf(place), exif=TURNED),
    "folder_instead_of_image": lambda place: folder_instead_of(leaf(place)),
    "two_of_a_stem": lambda place: save(leaf(place, name="leaf.v1.png"), noise((9, 11), (0,), seed=0)[0]),
    "name_that_is_no_text": lambda place: rename(place, b"leaf.\xff"),
    "name_of_two_lines": lambda place: rename(place, b"leaf.v\n1"),
    "one_image": lambda place: remove(place, "leaf.v[12].*"),
    "no_image": lambda place: remove(place, "leaf.*"),
    "no_folder_of_labels": lambda place: leaf(place, "labels", "", "val").rename(leaf(place, "masks", "", "val")),
    "all_void": lambda place: save_label(place, 255),
    "description_that_is_no_text": lambda place: description(place).write_bytes(b"classes: [\xff, b]\n"),
    "folder_instead_of_description": lambda place: folder_instead_of(description(place)),
    "class_twice": lambda place: write_folder(place / "data", classes=["soil", "soil", "leaf"]),
    "no_data": lambda place: (place / "data").rename(place / "elsewhere"),
    "cache_is_a_file": lambda place: (place / "data" / ".cache").write_text(""),
}


@pytest.mark.parametrize("case", WRONG["data"], ids=lambda case: case.get("damage") or str(case))
def test_a_wrong_data_set(leaves: Path, case: Case) -> None:
    (leaves / "mine.yaml").write_text(FOLDER)
    with open(description(leaves), "a", encoding="utf-8") as file:
        file.write(case.get("describe", ""))
    if "damage" in case:
        DAMAGES[case["damage"]](leaves)
    assert told(leaves, "run", "mine.yaml", "--local", *case.get("options", [])) == case["told"]


def test_a_published_data_set_that_is_not_as_published(place: Path) -> None:
    write_voc(place / "data")
    write_cityscapes(place / "data")
    (place / "data/voc/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text("\n")
    train = place / "data" / "cityscapes" / "leftImg8bit" / "train"
    (train / "ulm").rename(train / "bonn")
    wrong = {
        "voc": "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt names no image; copy the official list there",
        "cityscapes": "leftImg8bit/train/bonn/ulm_000000_000019_leftImg8bit.png is not in its city's folder; "
        "move it to ulm/",
    }
    for name, expected in wrong.items():
        (place / "mine.yaml").write_text(FOLDER.replace("name: folder, path: leaves", f"name: {name}"))
        assert told(place, "run", "mine.yaml", "--local") == f"{name}: PLACE/data/{name}/{expected}"


# Weights


OTHER_WEIGHTS = safetensors.torch.save({"conv.weight": torch.zeros(3)})
WEIGHTS: dict[str, Callable[[Path], object]] = {
    "no_tensors": lambda path: torch.save([1, 2], path),
    "of_another_network": lambda path: path.write_bytes(OTHER_WEIGHTS),
    "cut_short": lambda path: path.write_bytes(OTHER_WEIGHTS[:40]),
    "a_folder": Path.mkdir,
}


@pytest.mark.parametrize("case", WRONG["weights"], ids=lambda case: case["made"])
def test_wrong_weights(place: Path, case: Case) -> None:
    name = case["name"]
    WEIGHTS[case["made"]](place / "data" / name)
    assert told(place, "run", "mine.yaml", "--local", "--set", f"model.pretrained=file:{name}") == case["told"]


# Overrides and options


@pytest.mark.parametrize("case", WRONG["options"], ids=lambda case: " ".join(case["options"]))
def test_a_wrong_override_or_option(place: Path, case: Case) -> None:
    assert told_of(place, case, SCENES, *case["options"]) == case["told"]


@pytest.mark.parametrize("case", WRONG["paths"], ids=lambda case: case["override"])
def test_an_override_that_leads_elsewhere(leaves: Path, case: Case) -> None:
    """Neither out of the data folder, where what it names is, nor out of the store."""
    (leaves / "mine.yaml").write_text(FOLDER)
    (leaves / "secret.safetensors").write_text("secret")
    shutil.copytree(leaves / "data" / "leaves", leaves / "secret")
    before = set(leaves.rglob("*"))
    assert told(leaves, "run", "mine.yaml", "--local", "--set", case["override"]) == f"mine.yaml: {case['told']}"
    assert set(leaves.rglob("*")) == before


# Searches


def search_text(case: Case) -> str:
    """The file of a search with what is wrong in it."""
    text = SEARCH
    for old, new in case.get("change", {}).items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    text = text.replace(SPACE, case.get("space", SPACE).replace("\n", "\n    "))
    return text + "".join(f"  {line}\n" for line in case.get("add", "").splitlines())


@pytest.mark.parametrize(
    "case",
    WRONG["searches"],
    ids=lambda case: " ".join(str(case[key]) for key in case if key not in ("late", "told"))[:60],
)
def test_a_wrong_search(leaves: Path, case: Case) -> None:
    assert told_of(leaves, case, search_text(case), *case.get("options", [])) == case["told"]


@pytest.mark.parametrize(("same", "told_of_it"), [("train", "trained on"), ("val", "reported")])
def test_a_split_of_images_that_stand_in_another_one_too(place: Path, same: str, told_of_it: str) -> None:
    splits = {"train": "train", "val": "val", "dev": same}
    write_folder(place / "data", splits={name: {part: f"{at}/{part}" for part in PARTS} for name, at in splits.items()})
    own = {
        "name: scenes, size: [32, 48], images: 4": "name: folder, path: leaves",
        "test: {}}, report: test": "val: {}}, report: val",
    }
    (place / "mine.yaml").write_text(search_text({"change": own, "add": "split: dev"}))
    assert told(place, "run", "mine.yaml") == (
        f"mine.yaml: search.split: 3 images of dev are also in {same}, which is {told_of_it}, e.g. "
        f"PLACE/data/leaves/{same}/images/leaf.v0.png; use another split, or search.held_out: 0.2 for a share of the "
        "training images"
    )


@pytest.mark.parametrize("case", WRONG["search_commands"], ids=lambda case: " ".join(case["command"]))
def test_a_wrong_command_on_a_search(place: Path, case: Case) -> None:
    (place / "mine.yaml").write_text(SEARCH)
    (place / "other.yaml").write_text(SCENES)
    assert told(place, *case["command"]) == case["told"]
    assert not (place / "report").exists()


# People who answer


def remove_labels(leaves: Path, split: str) -> None:
    tree = yaml.safe_load(description(leaves).read_text())
    del tree["splits"][split]["labels"]
    description(leaves).write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize("case", WRONG["people"], ids=lambda case: " ".join(case["command"])[-60:])
def test_a_wrong_wish_of_people(leaves: Path, case: Case) -> None:
    (leaves / "mine.yaml").write_text(f"{SCENES}\n{case.get('add', '')}\n")
    if "unlabelled" in case:
        remove_labels(leaves, case["unlabelled"])
    assert told(leaves, *case["command"]) == case["told"]


def test_people_need_no_labels_of_training_images(leaves: Path) -> None:
    (leaves / "mine.yaml").write_text(f"{FOLDER}\noracle: {{name: human}}\n")
    remove_labels(leaves, "train")
    with pytest.raises(pytest.fail.Exception, match="it has started"):
        launch(leaves, "run", "mine.yaml", "--local")


# Files that cannot be read


@pytest.mark.parametrize("command", ["plan", "run", "status"])
def test_an_experiment_file_that_is_none(place: Path, command: str) -> None:
    (place / "folder.yaml").mkdir()
    (place / "binary.yaml").write_bytes(b"name: \xff\n")
    for name, why in (
        ("folder.yaml", "[Errno 21] Is a directory: 'folder.yaml'"),
        ("none.yaml", "[Errno 2] No such file or directory: 'none.yaml'"),
        ("binary.yaml", "'utf-8' codec can't decode byte 0xff in position 6: invalid start byte"),
    ):
        wrong = told(place, command, name)
        assert wrong == f"{name}: cannot be read ({why}); give the path of an experiment file"


@pytest.mark.parametrize(
    ("closed", "message"),
    [
        ("train/images/leaf.v1.jpg", "cannot be read (Permission denied); make it readable for the current user"),
        ("train/images", "cannot be read (Permission denied); make it readable for the current user"),
        ("dataset.yaml", "cannot be read ([Errno 13] Permission denied: "),
    ],
)
def test_data_that_may_not_be_read(closed: str, message: str) -> None:
    """In this process, whose modules nobody might not find either."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        path = write_folder(Path(folder)) / closed
        path.chmod(0)
        with unprivileged(), pytest.raises(DataError) as caught:
            prepare(opened("folder", Path(folder), path="leaves"), "train", SizeSpec(), Path(folder))
        path.chmod(0o755)
        assert f"{path}: {message}" in str(caught.value)


# What the command line itself refuses


def test_the_exit_status_is_that_of_the_process(place: Path) -> None:
    before = snapshot(place)
    command = [sys.executable, str(ROOT / "launch.py"), "plan", "mine.yaml", "--set", "train.epoch=3"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False), done
    assert done.stderr.startswith("error: mine.yaml: train.epoch: unknown key; allowed here: epochs, batch_size, ")
    for options, message in (
        (["--store", "mine.yaml"], "Error: Invalid value for '--store'"),
        (["--data", "mine.yaml"], "Error: Invalid value for '--data'"),
        (["--rank", "2"], "Error: No such option: --rank (Possible options: "),
    ):
        refused = launch(place, "plan", "mine.yaml", *options)
        assert (refused.status, refused.out, message in refused.err) == (2, "", True)
    assert snapshot(place) == before


@pytest.mark.parametrize("words", ["plan mine.yaml", "submit mine.yaml --to slurm --dry-run"])
def test_what_a_run_refuses_of_data_is_refused_wherever_they_are_there(place: Path, made: Path, words: str) -> None:
    """So that no job waits for hours to end with status 2."""
    (place / "mine.yaml").write_text(FOLDER)
    assert launch(place, *words.split()).status == 0
    shutil.copytree(made, place / "data" / "leaves")
    assert launch(place, *words.split()).status == 0
    remove_labels(place, "val")
    assert told(place, *words.split()).startswith("evaluate.splits: split 'val' of folder has no label maps")


VARIED = experiment_text(
    "varied",
    dataset="{name: scenes, size: [32, 48]}",
    train="{epochs: 2, optimizer: {name: adam, lr: 2e-3}, augment: {hflip: 0.5}}",
    evaluate="{splits: {val: {}}, report: val}",
    grid="""
  - {acquire.strategy: [margin, random], dataset.images: [4, 5], train.augment: [null, {}], budget: [10]}
  - {seed: [0], budget: [full]}""",
)


@pytest.mark.parametrize("case", WRONG["varied"], ids=lambda case: case["override"])
def test_an_override_of_what_a_grid_varies_is_refused_with_the_way_out(case: Case) -> None:
    with pytest.raises(SpecError) as caught:
        parse_experiment(VARIED, where="varied.yaml", overrides=[case["override"]])
    assert str(caught.value) == f"varied.yaml: {case['told']}"
