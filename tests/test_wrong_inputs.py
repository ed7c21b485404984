"""Wrong experiments, options, data sets and weights: each is refused with its exact message and status 2, before
anything is started and with the store as it was.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from pixelpick_ray.config.trial import SizeSpec
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.errors import DataError
from pixelpick_ray.runner import session
from tests.support.data_folders import (
    noise,
    opened,
    save,
    write_cityscapes,
    write_cityscapes_image,
    write_folder,
    write_voc,
)
from tests.support.experiments import experiment_text
from tests.support.launch import ROOT, launch

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
WRONG: dict[str, list[Case]] = yaml.safe_load(Path(__file__).with_name("wrong_inputs.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an experiment, a data set of the user's own, and a store that somebody uses."""
    for start in ("run", "run_search"):
        monkeypatch.setattr(session, start, lambda *values, **options: pytest.fail("it has started"))
    (tmp_path / "mine.yaml").write_text(SCENES)
    write_folder(tmp_path / "data")
    for name in ("fit/0123/manifest.json", "experiments/other-0123/experiment.json"):
        (tmp_path / "store" / name).parent.mkdir(parents=True)
        (tmp_path / "store" / name).write_text("{}")
    return tmp_path


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


def test_there_are_many() -> None:
    assert sum(len(cases) for cases in WRONG.values()) > 250
    assert all(len({str(case) for case in cases}) == len(cases) for cases in WRONG.values())


# Experiment files


@pytest.mark.parametrize("case", WRONG["files"], ids=lambda case: case["by"][-40:] or "empty")
def test_a_wrong_experiment_file(place: Path, case: Case) -> None:
    old = case.get("replace", SCENES)
    assert SCENES.count(old) == 1
    (place / "mine.yaml").write_text(SCENES.replace(old, case["by"]))
    assert told(place, "run", "mine.yaml", "--local") == case["told"]


# Data sets of the user's own


def at(place: Path, part: str = "images", name: str = "leaf.v1.jpg", split: str = "train") -> Path:
    return place / "data" / "leaves" / split / part / name


def label(place: Path, values: object, split: str = "train", name: str = "leaf.v1.png") -> None:
    """Write a label map of 9x11 pixels with one value, or these values."""
    save(at(place, "labels", name, split), np.broadcast_to(np.asarray(values, dtype=np.uint8), (9, 11)).copy())


def described(place: Path, text: str) -> None:
    path = place / "data" / "leaves" / "dataset.yaml"
    path.write_text(path.read_text() + text)


def without_label(place: Path) -> None:
    at(place, "labels", "leaf.v1.png").unlink()


def unknown_class(place: Path) -> None:
    label(place, [0] * 10 + [3])


def void_of_another_value(place: Path) -> None:
    described(place, "void: 254\n")


def label_of_another_size(place: Path) -> None:
    save(at(place, "labels", "leaf.v0.png", "val"), np.zeros((11, 9), np.uint8))


def label_in_colour(place: Path) -> None:
    save(at(place, "labels", "leaf.v1.png"), np.zeros((9, 11, 3), np.uint8))


def label_of_16_bits(place: Path) -> None:
    save(at(place, "labels", "leaf.v1.png"), np.zeros((9, 11), np.uint16))  # type: ignore[arg-type]


def label_that_loses(place: Path) -> None:
    """JPEG changes values."""
    Image.fromarray(np.zeros((9, 11), np.uint8)).save(at(place, "labels", "leaf.v1.png"), format="jpeg")


def truncated_image(place: Path) -> None:
    path = at(place, name="leaf.v0.png")
    path.write_bytes(path.read_bytes()[:200])


def empty_image(place: Path) -> None:
    at(place).write_bytes(b"")


def page_instead_of_image(place: Path) -> None:
    at(place).write_text("<html>404 not found</html>")


def image_of_16_bits(place: Path) -> None:
    save(at(place, name="leaf.v0.png"), np.full((9, 11), 700, np.uint16))  # type: ignore[arg-type]


def huge_image(place: Path) -> None:
    Image.new("1", (20000, 10000)).save(at(place, name="leaf.v0.png"))


def turned_image(place: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise((9, 11), (0,), seed=0)[0]).save(at(place), exif=exif)


def folder_instead_of_image(place: Path) -> None:
    at(place).unlink()
    at(place).mkdir()


def two_of_a_stem(place: Path) -> None:
    save(at(place, name="leaf.v1.png"), noise((9, 11), (0,), seed=0)[0])


def name_that_is_no_text(place: Path) -> None:
    for part, name in (("images", "leaf.v1.jpg"), ("labels", "leaf.v1.png")):
        at(place, part, name).rename(os.fsdecode(os.fsencode(at(place, part, name)).replace(b"v1", b"\xff")))


def name_of_two_lines(place: Path) -> None:
    for part, name in (("images", "leaf.v1.jpg"), ("labels", "leaf.v1.png")):
        at(place, part, name).rename(at(place, part, name.replace("v1", "v\n1")))


def one_image(place: Path) -> None:
    for index, suffix in ((1, "jpg"), (2, "jpeg")):
        at(place, name=f"leaf.v{index}.{suffix}").unlink()
        at(place, "labels", f"leaf.v{index}.png").unlink()


def no_image(place: Path) -> None:
    one_image(place)
    at(place, name="leaf.v0.png").unlink()
    at(place, "labels", "leaf.v0.png").unlink()


def no_folder_of_labels(place: Path) -> None:
    (place / "data" / "leaves" / "val" / "labels").rename(place / "data" / "leaves" / "val" / "masks")


def all_void(place: Path) -> None:
    label(place, 255)


def repeated_key(place: Path) -> None:
    described(place, "classes: [leaf, stem, soil]\n")


def repeated_inner_key(place: Path) -> None:
    described(place, "palette: {a: 1, a: 2}\n")


def description_that_is_no_text(place: Path) -> None:
    (place / "data" / "leaves" / "dataset.yaml").write_bytes(b"classes: [\xff, b]\n")


def folder_instead_of_description(place: Path) -> None:
    (place / "data" / "leaves" / "dataset.yaml").unlink()
    (place / "data" / "leaves" / "dataset.yaml").mkdir()


def description_with_a_code(place: Path) -> None:
    described(place, "void: 2\n")


def mean_in_bytes(place: Path) -> None:
    described(place, "mean: [123.7, 116.3, 103.5]\n")


def class_twice(place: Path) -> None:
    path = place / "data" / "leaves" / "dataset.yaml"
    path.write_text(path.read_text().replace("stem", "soil"))


def no_data(place: Path) -> None:
    (place / "data").rename(place / "elsewhere")


def cache_is_a_file(place: Path) -> None:
    (place / "data" / ".cache").write_text("")


@pytest.mark.parametrize("case", WRONG["data"], ids=lambda case: case.get("damage") or case["options"][1])
def test_a_wrong_data_set(place: Path, case: Case) -> None:
    (place / "mine.yaml").write_text(FOLDER)
    if "damage" in case:
        globals()[case["damage"]](place)
    assert told(place, "run", "mine.yaml", "--local", *case.get("options", [])) == case["told"]


# Published data sets, as somebody may have unpacked them


def voc_without_an_image(place: Path) -> None:
    write_voc(place / "data")
    (place / "data" / "voc" / "VOCdevkit" / "VOC2012" / "JPEGImages" / "c.jpg").unlink()


def voc_list(place: Path, content: bytes) -> None:
    write_voc(place / "data")
    (place / "data" / "voc" / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").write_bytes(content)


def voc_list_that_is_empty(place: Path) -> None:
    voc_list(place, b"\n")


def voc_list_that_is_no_text(place: Path) -> None:
    voc_list(place, b"\xff\n")


def voc_of_many_sizes(place: Path) -> None:
    write_voc(place / "data")


def cityscapes_with_a_wrong_id(place: Path) -> None:
    write_cityscapes(place / "data")
    picture, ids = noise((12, 16), (7, 40), seed=0)
    write_cityscapes_image(place / "data", "val", "ulm_000000_000019", picture, ids)


def cityscapes_in_another_folder(place: Path) -> None:
    write_cityscapes(place / "data")
    folder = place / "data" / "cityscapes" / "leftImg8bit" / "train"
    (folder / "ulm").rename(folder / "bonn")


@pytest.mark.parametrize("case", WRONG["published"], ids=lambda case: case["damage"])
def test_a_published_data_set_that_is_not_as_published(place: Path, case: Case) -> None:
    name = case["damage"].partition("_")[0]
    (place / "mine.yaml").write_text(FOLDER.replace("name: folder, path: leaves", f"name: {name}"))
    globals()[case["damage"]](place)
    assert told(place, "run", "mine.yaml", "--local") == case["told"]


# Weights


def no_tensors(path: Path) -> None:
    torch.save([1, 2], path)


def of_another_network(path: Path) -> None:
    save_file({"conv.weight": torch.zeros(3)}, path)


def cut_short(path: Path) -> None:
    save_file({"conv.weight": torch.zeros(3)}, path)
    path.write_bytes(path.read_bytes()[:40])


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("case", WRONG["weights"], ids=lambda case: case["made"])
def test_wrong_weights(place: Path, case: Case) -> None:
    name = case["name"]
    globals()[case["made"]](place / "data" / name)
    assert told(place, "run", "mine.yaml", "--local", "--set", f"model.pretrained=file:{name}") == case["told"]


# Overrides and options


@pytest.mark.parametrize("case", WRONG["options"], ids=lambda case: " ".join(case["options"]))
def test_a_wrong_override_or_option(place: Path, case: Case) -> None:
    assert told(place, "run", "mine.yaml", *case["options"]) == case["told"]


# Searches


def search_text(case: Case) -> str:
    """The file of a search with what is wrong in it."""
    text = SEARCH
    for old, new in case.get("change", {}).items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    text = text.replace(SPACE, case.get("space", SPACE).replace("\n", "\n    "))
    return text + "".join(f"  {line}\n" for line in case.get("add", "").splitlines())


def test_the_file_that_wrong_searches_are_made_of_is_right(place: Path) -> None:
    (place / "mine.yaml").write_text(SEARCH)
    with pytest.raises(pytest.fail.Exception, match="it has started"):
        launch(place, "run", "mine.yaml")


@pytest.mark.parametrize(
    "case", WRONG["searches"], ids=lambda case: " ".join(str(case[key]) for key in case if key != "told")[:60]
)
def test_a_wrong_search(place: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    (place / "mine.yaml").write_text(search_text(case))
    assert told(place, "run", "mine.yaml", *case.get("options", [])) == case["told"]


@pytest.mark.parametrize(("same", "told_of_it"), [("train", "trained on"), ("val", "reported")])
def test_a_split_of_images_that_stand_in_another_one_too(place: Path, same: str, told_of_it: str) -> None:
    splits = {"train": "train", "val": "val", "dev": same}
    write_folder(
        place / "data",
        splits={name: {"images": f"{at}/images", "labels": f"{at}/labels"} for name, at in splits.items()},
    )
    own = {
        "name: scenes, size: [32, 48], images: 4": "name: folder, path: leaves",
        "test: {}}, report: test": "val: {}}, report: val",
    }
    (place / "mine.yaml").write_text(search_text({"change": own, "add": "split: dev"}))
    assert told(place, "run", "mine.yaml") == (
        f"mine.yaml: search.split: 3 images of dev are {told_of_it}, in {same}, too, e.g. "
        f"PLACE/data/leaves/{same}/images/leaf.v0.png; take another split, or "
        "search.held_out: 0.2 for a share of the training images"
    )


@pytest.mark.parametrize("case", WRONG["search_commands"], ids=lambda case: " ".join(case["command"]))
def test_a_wrong_command_on_a_search(place: Path, case: Case) -> None:
    (place / "mine.yaml").write_text(SEARCH)
    (place / "other.yaml").write_text(SCENES)
    assert told(place, *case["command"]) == case["told"]
    assert not (place / "report").exists()


# People who answer


@pytest.mark.parametrize("case", WRONG["people"], ids=lambda case: " ".join(case["command"])[-60:])
def test_a_wrong_wish_of_people(place: Path, case: Case) -> None:
    (place / "mine.yaml").write_text(f"{SCENES}\n{case.get('add', '')}\n")
    if "unlabelled" in case:
        description = yaml.safe_load((place / "data" / "leaves" / "dataset.yaml").read_text())
        del description["splits"][case["unlabelled"]]["labels"]
        (place / "data" / "leaves" / "dataset.yaml").write_text(yaml.safe_dump(description))
    assert told(place, *case["command"]) == case["told"]


# Files that cannot be read


@pytest.mark.parametrize("command", ["plan", "run"])
def test_an_experiment_file_that_is_none(place: Path, command: str) -> None:
    (place / "folder.yaml").mkdir()
    (place / "binary.yaml").write_bytes(b"name: \xff\n")
    remedy = "give the path of an experiment file"
    assert told(place, command, "folder.yaml") == (
        f"folder.yaml: cannot be read ([Errno 21] Is a directory: 'folder.yaml'); {remedy}"
    )
    why = "'utf-8' codec can't decode byte 0xff in position 6: invalid start byte"
    assert told(place, command, "binary.yaml") == f"binary.yaml: cannot be read ({why}); {remedy}"


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read everything: be nobody for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize(
    ("closed", "message"),
    [
        ("train/images/leaf.v1.jpg", "cannot be read (Permission denied); make it a file that the user who runs this"),
        ("train/images", "cannot be read (Permission denied); make it readable for the user who runs this"),
        ("dataset.yaml", "cannot be read ([Errno 13] Permission denied: "),
    ],
)
def test_data_that_may_not_be_read(closed: str, message: str) -> None:
    """In this process, whose modules nobody might not find either."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        write_folder(Path(folder))
        path = Path(folder) / "leaves" / closed
        path.chmod(0)
        with unprivileged(), pytest.raises(DataError) as caught:
            prepare(opened("folder", Path(folder), path="leaves"), "train", SizeSpec(), Path(folder))
        path.chmod(0o755)
        assert f"{path}: {message}" in str(caught.value)


# In a process of its own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "train.epoch=3"], "error: mine.yaml: train.epoch: unknown key; allowed here: epochs, batch_size, "),
        (["--store", "mine.yaml"], "Error: Invalid value for '--store'"),
        (["--data", "mine.yaml"], "Error: Invalid value for '--data'"),
        (["--epochs", "3"], "Error: No such option: --epochs"),
    ],
)
def test_the_exit_status_is_that_of_the_process(place: Path, options: list[str], message: str) -> None:
    before = snapshot(place)
    command = [sys.executable, str(ROOT / "launch.py"), "plan", "mine.yaml", *options]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(place) == before
