"""Files that a stranger may have made: code in them is never run, and none leads out of the data folder or store."""

import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from safetensors.torch import save_file

from pixelpick_ray.data.image_files import read_image, read_label_file
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.errors import DataError, StoreError
from pixelpick_ray.models.tensors import read_tensors
from pixelpick_ray.report.evaluations import read_evaluations
from pixelpick_ray.store import Store
from tests.support.data_folders import write_folder
from tests.support.experiments import TWO_PIXELS, experiment_text
from tests.support.launch import launch
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


def test_the_bomb_goes_off_where_it_is_unpickled(marker: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.is_dir()


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
    with pytest.raises(DataError, match=rf"{name}: is not a readable file of tensors \(.*store its tensors\s+alone as"):
        read_tensors(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["bomb.pt", "bomb.safetensors"])
def test_a_run_and_an_evaluation_refuse_weights_with_code(place: Path, marker: Path, name: str) -> None:
    path = place / "data" / "weights" / name
    path.parent.mkdir()
    by_torch(path, Bomb(marker))
    told = rf"weights/{name}: is not a readable file of tensors .*copy it again, or store its tensors alone"
    options = ["--dataset", "folder", "--path", "leaves", "--split", "val"]
    assert re.search(told, refused(place, "run", "own.yaml", "--set", f"model.pretrained=file:weights/{name}"))
    published = place / "bomb.pt"
    by_torch(published, Bomb(marker))
    assert re.search(r"bomb\.pt: is not a readable file of tensors", refused(place, "evaluate", "bomb.pt", *options))
    assert not marker.exists()


def test_weights_of_tensors_alone_are_read(tmp_path: Path) -> None:
    """So what is refused above is refused for its code."""
    tensors = {"conv.weight": torch.arange(3.0)}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "a.pt")
    save_file(tensors, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        assert torch.equal(read_tensors(tmp_path / name)["conv.weight"], tensors["conv.weight"])


# The store


def objects(bomb: Bomb, *names: str) -> bytes:
    """An .npz file whose arrays hold objects."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **{name: np.array([bomb], dtype=object) for name in names})
    return file.getvalue()


PIXELS = ("names", "image", "y", "x", "label", "stage")


@pytest.mark.parametrize("kind", ["arrays of objects", "a pickle"])
def test_code_in_labelled_pixels_is_not_run(tmp_path: Path, marker: Path, kind: str) -> None:
    bomb = Bomb(marker)
    path = tmp_path / "pixels.npz"
    path.write_bytes(objects(bomb, *PIXELS) if kind == "arrays of objects" else pickle.dumps(bomb))
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(StoreError, match=r"pixels\.npz.*: holds no labelled pixels \(.*remove its folder and run"):
            LabelledPixels.read(source)
    assert not marker.exists()


def test_a_store_whose_results_hold_code_is_refused(tmp_path: Path, marker: Path, write_camvid: WriteCamVid) -> None:
    """Made whole, with right digests, by whoever has made the store."""
    plan = tiny_plan()
    execution = execution_at(tmp_path, write_camvid(splits=("train", "test")))
    keys = do_steps(plan, plan.chains[0], execution)
    store = Store(execution.store)
    content = objects(Bomb(marker), *PIXELS, "epochs", "confusion")
    for step, file in (("pick", "pixels.npz"), ("evaluation 0", "confusion.npz")):
        kind, key = step.split()[0], keys[step]
        inputs = store.files(kind, key, ["input.json"])
        assert inputs is not None
        shutil.rmtree(Path(execution.store) / kind / key)

        def write(folder: Path, file: str = file) -> None:
            (folder / file).write_bytes(content)

        published = store.publish(kind, json.loads(inputs["input.json"]), write, {"seconds": 1.0})
        assert store.files(kind, key, [file]) == {file: content}, published
    (tmp_path / "tiny.yaml").write_text(TEXT)
    done = launch(tmp_path, "plan", "tiny.yaml", "--cache", str(execution.cache_path))
    assert (done.status, marker.exists()) == (1, False), done
    assert "holds no labelled pixels (Object arrays cannot be loaded" in done.err
    told = r"confusion\.npz: holds no confusion matrices \(an array of objects\); who wrote it\? remove it and run"
    with pytest.raises(StoreError, match=told):
        read_evaluations(store, {keys["evaluation 0"]: ("a", "b")}, processes=1)
    assert not marker.exists()


# YAML

CODE = ["!!python/object/apply:os.mkdir [{marker}]", "!!python/object/new:os.mkdir [{marker}]"]
CODE += ["!!python/name:os.mkdir ", "!!python/module:os ", "!!python/object:tests.test_untrusted_files.Bomb {{}}"]


@pytest.mark.parametrize("code", CODE)
def test_code_in_yaml_is_not_run(place: Path, marker: Path, code: str) -> None:
    text = code.format(marker=marker)
    told = r": line \d+, column \d+ is not YAML: could not determine a constructor for the tag"
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
    with pytest.raises(DataError, match=r"picture\.png: is a PDF or PostScript document, .*PNG, .* are read"):
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
    message = rf"{told}: leads out of the data folder, to {place}/outside.*; put the file or folder itself there"
    assert re.search(message, refused(place, "run", "own.yaml", "--local", "--set", f"dataset.path={path}"))
    assert not (place / "data" / ".cache").exists()


def test_links_inside_the_data_folder_and_the_owners_own_right_in_it_are_followed(place: Path) -> None:
    images = place / "data" / "leaves" / "train" / "images"
    images.rename(place / "data" / "pictures")
    images.symlink_to(place / "data" / "pictures")
    assert launch(place, "plan", "own.yaml").status == 0
    (place / "data" / "leaves").rename(place / "elsewhere")
    (place / "elsewhere" / "train" / "images").unlink()
    (place / "data" / "pictures").rename(place / "elsewhere" / "train" / "images")
    (place / "data" / "leaves").symlink_to(place / "elsewhere")
    (place / "data").rename(place / "moved")
    (place / "data").symlink_to(place / "moved")
    done = launch(place, "plan", "own.yaml")
    assert done.status == 0
    assert "not known" not in done.out


def test_a_link_of_weights_does_not_lead_out_of_the_data_folder(place: Path) -> None:
    (place / "outside").write_text("secret")
    (place / "data" / "weights").mkdir()
    for name in ("mine.safetensors", "test_resnet.imagenet.safetensors"):
        (place / "data" / "weights" / name).symlink_to(place / "outside")
    for pretrained in ("file:weights/mine.safetensors", "imagenet"):
        told = refused(place, "run", "own.yaml", "--local", "--set", f"model.pretrained={pretrained}")
        assert re.search(rf"safetensors: leads out of the data folder, to {place}/outside; put the file", told)


def test_the_path_of_an_evaluation_stays_inside_too(place: Path) -> None:
    (place / "weights.safetensors").write_bytes(b"")
    options = ["--dataset", "folder", "--path", "../secret", "--split", "val"]
    assert "--path: '../secret' leaves the data folder" in refused(place, "evaluate", "weights.safetensors", *options)
