"""Files that a stranger may have made: code in them is never run, and none leads out of the data folder or store."""

import io
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from pixelpick_ray.data.image_files import read_image, read_label_file
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.errors import DataError, StoreError
from pixelpick_ray.models.tensors import read_tensors
from pixelpick_ray.report.evaluations import read_evaluations
from pixelpick_ray.store import Store
from tests.support.data_folders import write_folder
from tests.support.experiments import TWO_PIXELS, experiment_text
from tests.support.launch import launch
from tests.support.results import puts
from tests.support.stores import TEXT, do_steps, execution_at, tiny_plan

pytestmark = pytest.mark.long

WriteCamVid = Callable[..., Path]
OWN = experiment_text(
    "own",
    dataset="{name: folder, path: leaves}",
    train="{epochs: 1, batch_size: 2, optimizer: {name: adam, lr: 1e-3}}",
    acquire=TWO_PIXELS,
    evaluate="{splits: {val: {}}, report: val}",
    grid="[{budget: [2]}]",
)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Is there when code of a file has run."""
    return tmp_path / "marker"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an experiment on the user's own images."""
    (tmp_path / "own.yaml").write_text(OWN)
    write_folder(tmp_path / "data")
    return tmp_path


def refused(place: Path, *arguments: str) -> str:
    """The message of a command that is refused, with neither a store nor logs."""
    done = launch(place, *arguments)
    assert done.status == 2, done
    assert not (place / "store").exists()
    assert not (place / "runs").exists()
    return done.err


# Weights


class Rebuilt(torch.nn.Parameter):
    """A parameter that is rebuilt by a function of the file's choice."""

    bomb: Bomb

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.bomb.__reduce__()


def by_torch(path: Path, bomb: Bomb, **options: Any) -> None:
    torch.save({"state_dict": {"conv.weight": torch.zeros(1)}, "epoch": bomb}, path, **options)


def write_tensor(path: Path, bomb: Bomb) -> None:
    rebuilt = Rebuilt(torch.zeros(1))
    rebuilt.bomb = bomb
    torch.save({"conv.weight": rebuilt}, path)


WRITERS: dict[str, Callable[[Path, Bomb], object]] = {
    "torch": by_torch,
    "torch of old": lambda path, bomb: by_torch(path, bomb, _use_new_zipfile_serialization=False),
    "pickle": lambda path, bomb: path.write_bytes(pickle.dumps(bomb)),
    "a tensor": write_tensor,
}


@pytest.mark.parametrize("name", ["mine.pt", "mine.pth.tar", "mine.safetensors"])
@pytest.mark.parametrize("writer", WRITERS)
def test_code_in_weights_is_not_run(tmp_path: Path, marker: Path, writer: str, name: str) -> None:
    WRITERS[writer](tmp_path / name, Bomb(marker))
    with pytest.raises(
        DataError, match=rf"{name}: cannot be read as a file of tensors \(.*save its tensors\s+alone as"
    ):
        read_tensors(tmp_path / name)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.is_dir()  # so whoever unpickles runs the code


def test_a_run_and_an_evaluation_refuse_weights_with_code(place: Path, marker: Path) -> None:
    (place / "data" / "weights").mkdir()
    by_torch(place / "data" / "weights" / "bomb.pt", Bomb(marker))
    for words in (
        ["run", "own.yaml", "--set", "model.pretrained=file:weights/bomb.pt"],
        ["evaluate", "data/weights/bomb.pt", "--dataset", "folder", "--path", "leaves", "--split", "val"],
    ):
        told = r"weights/bomb\.pt: cannot be read as a file of tensors .*copy it again, or save its tensors alone"
        assert re.search(told, refused(place, *words))
    assert not marker.exists()


# The store


def objects(bomb: Bomb, *names: str) -> bytes:
    """An .npz file whose arrays hold objects."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **{name: np.array([bomb], dtype=object) for name in names})
    return file.getvalue()


PIXELS = ("names", "image", "y", "x", "label", "stage")


def test_a_store_whose_results_hold_code_is_refused(tmp_path: Path, marker: Path, write_camvid: WriteCamVid) -> None:
    """Made whole, with right digests, by whoever has made the store."""
    plan = tiny_plan()
    execution = execution_at(tmp_path, write_camvid(splits=("train", "test")))
    keys = do_steps(plan, plan.chains[0], execution)
    store = Store(execution.store)
    content = objects(Bomb(marker), *PIXELS, "epochs", "confusion")
    for step, file in (("pick", "pixels.npz"), ("evaluation 0", "confusion.npz")):
        kind, key = step.split()[0], keys[step]
        inputs = json.loads((store.folder(kind, key) / "input.json").read_bytes())
        store.discard(kind, key)
        store.publish(kind, inputs, lambda folder, name=file: puts(content)(folder / name), {"seconds": 1.0})  # type: ignore[misc]
        assert store.files(kind, key, [file]) == {file: content}
    (tmp_path / "tiny.yaml").write_text(TEXT)
    done = launch(tmp_path, "plan", "tiny.yaml", "--cache", str(execution.cache_path))
    assert done.status == 1, done
    assert "contains no labelled pixels (Object arrays cannot be loaded" in done.err
    with pytest.raises(StoreError, match=r"contains no labelled pixels \(.*remove its folder and run"):
        LabelledPixels.read(io.BytesIO(pickle.dumps(Bomb(marker))))
    told = r"confusion\.npz: contains no confusion matrices \(an array of objects\); remove the folder and run"
    with pytest.raises(StoreError, match=told):
        read_evaluations(store, {keys["evaluation 0"]: ("a", "b")}, processes=1)
    assert not marker.exists()


# YAML

CODE = ["!!python/object/apply:os.mkdir [{marker}]", "!!python/object/new:os.mkdir [{marker}]"]
CODE += ["!!python/name:os.mkdir ", "!!python/module:os ", "!!python/object:tests.test_untrusted_files.Bomb {{}}"]


@pytest.mark.parametrize("code", CODE)
def test_code_in_yaml_is_not_run(place: Path, marker: Path, code: str) -> None:
    text = code.format(marker=marker)
    told = r": line \d+, column \d+ is not valid YAML: could not determine a constructor for the tag"
    (place / "evil.yaml").write_text(f"{OWN}title: {text}\n")
    (place / "costs.yaml").write_text(f"seconds: {text}\n")
    for where, *command in (
        (r"evil\.yaml", "run", "evil.yaml"),
        ("--set title", "run", "own.yaml", "--set", f"title={text}"),
        (r"costs\.yaml", "report", "own.yaml", "--out", "out", "--costs", "costs.yaml"),
    ):
        assert re.search(rf"{where}{told}", refused(place, *command))
    description = place / "data" / "leaves" / "dataset.yaml"
    description.write_text(f"{description.read_text()}mean: {text}\n")
    assert re.search(rf"leaves/dataset\.yaml{told}", refused(place, "run", "own.yaml"))
    assert not marker.exists()


# Pictures


@pytest.mark.parametrize("read", [read_image, read_label_file])
def test_a_picture_that_another_program_would_have_to_draw_is_not_drawn(
    tmp_path: Path, read: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow gives PostScript, whatever the file's name, to Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *values, **options: pytest.fail("Ghostscript was run"))
    path = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(path, format="eps")
    with Image.open(path) as picture:
        assert picture.format == "EPS"
    with pytest.raises(DataError, match=r"picture\.png: is a PDF or PostScript document, .*supported: .*PNG"):
        read(path)


# Paths


@pytest.mark.parametrize(
    ("moved", "link", "told"),
    [
        ("leaves", "mine/leaves", r"data/mine/leaves/dataset\.yaml"),
        ("leaves/dataset.yaml", "leaves/dataset.yaml", r"data/leaves/dataset\.yaml"),
        ("leaves/train/images", "leaves/train/images", "data/leaves/train/images"),
        ("leaves/train/labels/leaf.v1.png", "leaves/train/labels/leaf.v1.png", r"train/labels/leaf\.v1\.png"),
    ],
)
def test_links_of_a_data_set_do_not_lead_out_of_the_data_folder(place: Path, moved: str, link: str, told: str) -> None:
    (place / "data" / moved).rename(place / "outside")
    (place / "data" / link).parent.mkdir(exist_ok=True)
    (place / "data" / link).symlink_to(place / "outside")
    path = "mine/leaves" if link == "mine/leaves" else "leaves"
    message = rf"{told}: links out of the data folder, to {place}/outside.*; copy it into the data folder"
    assert re.search(message, refused(place, "run", "own.yaml", "--local", "--set", f"dataset.path={path}"))
    assert not (place / "data" / ".cache").exists()


def test_links_inside_the_data_folder_and_the_owners_own_right_in_it_are_followed(place: Path) -> None:
    data, images = place / "data", place / "data" / "leaves" / "train" / "images"
    images.rename(data / "pictures")
    images.symlink_to(data / "pictures")
    assert launch(place, "plan", "own.yaml").status == 0
    images.unlink()
    (data / "pictures").rename(images)
    (data / "leaves").rename(place / "elsewhere")
    (data / "leaves").symlink_to(place / "elsewhere")
    data.rename(place / "moved")
    data.symlink_to(place / "moved")
    done = launch(place, "plan", "own.yaml")
    assert (done.status, "unknown until" in done.out) == (0, False)


def test_neither_a_link_of_weights_nor_the_path_of_an_evaluation_leads_out_of_the_data_folder(place: Path) -> None:
    (place / "outside").write_text("secret")
    (place / "data" / "weights").mkdir()
    for name, pretrained in (
        ("mine.safetensors", "file:weights/mine.safetensors"),
        ("test_resnet.imagenet.safetensors", "imagenet"),
    ):
        (place / "data" / "weights" / name).symlink_to(place / "outside")
        told = refused(place, "run", "own.yaml", "--local", "--set", f"model.pretrained={pretrained}")
        assert re.search(rf"safetensors: links out of the data folder, to {place}/outside; copy it", told)
    options = ["--dataset", "folder", "--path", "../secret", "--split", "val"]
    assert "--path: '../secret' leaves the data folder" in refused(place, "evaluate", "outside", *options)
