"""Layouts of folders: recognised, described so that they are read as they mean, and planned without a line edited."""

import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from pixelpick_ray.data.dataset import FileDataset
from pixelpick_ray.data.folder_layouts import recognise, values_of
from pixelpick_ray.data.folder_proposal import propose
from pixelpick_ray.data.voc import colour_map
from pixelpick_ray.errors import DataError
from tests.support.data_folders import (
    REAL,
    UInt8,
    loaded,
    noise,
    opened,
    save,
    write_camvid,
    write_cityscapes,
    write_voc,
)
from tests.support.launch import launch

SIZE = (24, 32)
INDICES = np.resize(np.array([0, 1, 2, 2], np.uint8), SIZE)  # of three classes
COLOURED = np.array([(0, 0, 0), (10, 200, 30), (250, 50, 83)], np.uint8)[INDICES]


def described(folder: Path) -> FileDataset:
    """The data set of a folder after what is proposed for it."""
    (folder / "dataset.yaml").write_text(propose(folder, "mine").description)
    found = opened("folder", folder.parent, path=folder.name)
    assert isinstance(found, FileDataset)
    return found


def photo(path: Path, seed: int = 0) -> None:
    save(path, noise(SIZE, (0,), seed)[0])


def palette_mask(path: Path, indices: UInt8, colours: Sequence[tuple[int, int, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette([value for colour in colours for value in colour])
    picture.save(path)


VOC_COLOURS = [colour_map(at) for at in range(256)]


def moved_up(write: Callable[[Path], object], name: str) -> Callable[[Path], None]:
    """What writes a published data set into a folder itself, not into a folder of its name in there."""

    def moved(folder: Path) -> None:
        write(folder)
        for path in (folder / name).iterdir():
            path.rename(folder / path.name)

    return moved


def as_voc(folder: Path) -> None:
    moved_up(write_voc, "voc")(folder)
    for path in (folder / "VOCdevkit" / "VOC2012" / "SegmentationClass").iterdir():
        palette_mask(path, np.asarray(loaded(path)), VOC_COLOURS)


def as_cvat(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nleaf:10,200,30::\nstem:250,50,83::\n"
    )
    for name in "abc":
        photo(folder / "JPEGImages" / f"{name}.jpg", seed=ord(name))
        save(folder / "SegmentationClass" / f"{name}.png", COLOURED)
        save(folder / "SegmentationObject" / f"{name}.png", COLOURED)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "default.txt").write_text("a\nb\nc\n")


def as_cvat_camvid(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "label_colors.txt").write_text("0 0 0 background\n10 200 30 leaf\n250 50 83 stem\n")
    for name in "abc":
        photo(folder / "default" / f"{name}.png", seed=ord(name))
        save(folder / "defaultannot" / f"{name}.png", COLOURED)


def as_labelme(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "class_names.txt").write_text("__ignore__\n_background_\nleaf\nstem\n")
    for name in "abc":
        photo(folder / "JPEGImages" / f"{name}.jpg", seed=ord(name))
        palette_mask(folder / "SegmentationClassPNG" / f"{name}.png", INDICES, VOC_COLOURS)
        photo(folder / "SegmentationClassVisualization" / f"{name}.jpg")


def as_labelme_folders(folder: Path) -> None:
    for name in "abc":
        photo(folder / f"{name}_json" / "img.png", seed=ord(name))
        palette_mask(folder / f"{name}_json" / "label.png", INDICES, VOC_COLOURS)
        photo(folder / f"{name}_json" / "label_viz.png")
        (folder / f"{name}_json" / "label_names.txt").write_text("_background_\nleaf\nstem\n")


def as_roboflow(folder: Path) -> None:
    for at, split in enumerate(("train", "valid", "test")):
        for name in "ab":
            photo(folder / split / f"{name}{at}_jpg.rf.0123.jpg", seed=10 * at + ord(name))
            save(folder / split / f"{name}{at}_jpg.rf.0123_mask.png", INDICES)
        (folder / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, leaf\n2, stem\n")


def beside(masks: str, suffix: str = "", ids: tuple[int, int, int] = (0, 1, 2)) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for at, split in enumerate(("train", "val")):
            for name in "abcd":
                photo(folder / "images" / split / f"{name}.png", seed=10 * at + ord(name))
                save(folder / masks.format(split) / f"{name}{suffix}.png", np.array(ids, np.uint8)[INDICES])

    return write


def side_by_side(folder: Path) -> None:
    for name in "abc":
        photo(folder / f"{name}.jpg", seed=ord(name))
        save(folder / f"{name}.png", INDICES)


NAMED = ["background", "leaf", "stem"]
LAYOUTS: dict[str, tuple[Callable[[Path], None], str, list[str]]] = {
    "CVAT": (as_cvat, "CVAT", NAMED),
    "CVAT as CamVid": (as_cvat_camvid, "CamVid", NAMED),
    "labelme": (as_labelme, "labelme", NAMED),
    "labelme, a folder an image": (as_labelme_folders, "labelme", NAMED),
    "Roboflow": (as_roboflow, "Roboflow", NAMED),
    "masks beside": (beside("masks/{}"), "folders", ["background", "class_1", "class_2"]),
    "masks beside with a suffix": (beside("labels/{}", "_mask"), "folders", ["background", "class_1", "class_2"]),
    "masks in the same folder": (beside("images/{}", "_label"), "one folder", ["background", "class_1", "class_2"]),
    "photos and masks of one stem": (side_by_side, "one folder", ["background", "class_1", "class_2"]),
    "ids with gaps": (beside("masks/{}", ids=(3, 7, 200)), "folders", ["class_3", "class_7", "class_200"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognised_and_read_as_it_means(tmp_path: Path, layout: str) -> None:
    write, name, classes = LAYOUTS[layout]
    write(tmp_path / "pets")
    assert recognise(tmp_path / "pets").name == name
    dataset = described(tmp_path / "pets")
    assert list(dataset.facts.class_names) == classes
    for split in dataset.facts.splits:
        assert len(dataset.names(split)) >= 2
        for one in dataset.names(split):
            assert (dataset.read(split, one)[1] == INDICES).all()


def test_published_data_sets_are_read_as_under_their_own_names(tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    for write, name in (
        (as_voc, "voc"),
        (moved_up(write_cityscapes, "cityscapes"), "cityscapes"),
        (moved_up(write_camvid, "camvid"), "camvid"),
    ):
        write(folder := tmp_path / f"my {name}")
        assert recognise(folder).name.lower() == name
        dataset = described(folder)
        (tmp_path / "published" / name).symlink_to(folder)
        published = opened(name, tmp_path / "published")
        assert dataset.facts.class_names == published.facts.class_names
        for split in dataset.facts.splits:
            for mine, theirs in zip(dataset.names(split), published.names(split), strict=True):
                label = dataset.read(split, mine)[1]
                label = np.where(label == dataset.facts.void_index, published.facts.void_index, label)
                assert (label == published.read(split, theirs)[1]).all()


def test_binary_masks_and_16_bits_are_seen(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / "pets" / "images").mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(ord(name)).integers(0, 4000, (*SIZE, 3), dtype=np.uint16)
        values[0, 0] = 3999
        cv2.imwrite(str(tmp_path / "pets" / "images" / f"{name}.png"), values)
        save(tmp_path / "pets" / "masks" / f"{name}.png", np.array([0, 255, 255], np.uint8)[INDICES])
    dataset = described(tmp_path / "pets")
    assert dataset.facts.class_names == ("background", "object")
    assert (dataset.read("train", "a.png")[1] == (INDICES > 0)).all()
    assert dataset.white == 4095


@pytest.mark.parametrize(("bits", "values"), [(2, {0: 2, 85: 1, 255: 1}), (4, {0: 2, 17: 1, 51: 1})])
def test_greys_of_few_bits_are_counted_as_programs_show_them(tmp_path: Path, bits: int, values: dict[int, int]) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0))  # 4 x 1 pixels, grey
    row = sum(value << bits * place for place, value in enumerate((3, 1, 0, 0))).to_bytes(bits // 2, "big")
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    assert values_of(iter([tmp_path / "a.png"])).numbers == values


def test_masks_that_are_photos_and_folders_without_an_image_are_told(tmp_path: Path) -> None:
    for name in "ab":
        photo(tmp_path / "pets" / "images" / f"{name}.jpg")
        photo(tmp_path / "pets" / "masks" / f"{name}.jpg")
    with pytest.raises(DataError, match=r"no mask could be read; .*JPEG alters them"):
        propose(tmp_path / "pets", "pets")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="contains no images"):
        propose(tmp_path / "none", "none")


def test_init_writes_both_files_once_and_a_plan_needs_no_line_edited(tmp_path: Path) -> None:
    as_roboflow(tmp_path / "data" / "Pets (new)")
    done = launch(tmp_path, "init", "data/Pets (new)")
    assert done.status == 0, done
    assert done.out.splitlines()[-1] == "      python launch.py plan pets-new.yaml"
    plan = launch(tmp_path, "plan", "pets-new.yaml")
    assert plan.status == 0, plan
    assert "margin" in plan.out
    before = (tmp_path / "data" / "Pets (new)" / "dataset.yaml").read_bytes()
    again = launch(tmp_path, "init", "data/Pets (new)")
    assert (again.status, "already exists and was not overwritten" in again.err) == (2, True)
    assert (tmp_path / "data" / "Pets (new)" / "dataset.yaml").read_bytes() == before


@pytest.mark.parametrize("place", ["{split}/images {split}/masks", "images/{split} masks/{split}"])
def test_a_training_split_without_masks_is_labelled_by_people_and_measured_on_others(
    tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "data" / "pets"
    for split in ("train", "val", "test"):
        images, masks = place.format(split=split).split()
        for name in ("a", "b"):
            photo(folder / images / f"{split}{name}.jpg")
            if split == "val":
                save(folder / masks / f"{split}{name}.png", np.eye(24, 32, dtype=np.uint8))
    done = launch(tmp_path, "init", "data/pets")
    assert done.status == 0, done
    expected = {split: {"images": place.format(split=split).split()[0]} for split in ("train", "val", "test")}
    expected["val"]["labels"] = place.format(split="val").split()[1]
    description = yaml.safe_load((folder / "dataset.yaml").read_text())
    assert (description["splits"], description["classes"]) == (expected, ["background", "class_1"])
    plan = launch(tmp_path, "plan", "pets.yaml")
    assert (plan.status, "people label 20 pixels of each image" in plan.out) == (0, True), plan


def test_images_alone_are_described_and_what_is_missing_is_said(tmp_path: Path) -> None:
    for name in "ab":
        photo(tmp_path / "pets" / f"{name}.jpg")
    proposal = propose(tmp_path / "pets", "pets")
    tree: dict[str, Any] = yaml.safe_load(proposal.description)
    assert tree["splits"] == {"train": {"images": "."}}
    assert "oracle: {name: human}" in proposal.experiment
    assert len(proposal.missing) == 2


if (REAL / "voc").is_dir():  # a machine without the files has fewer tests, not skipped ones

    def test_a_copy_of_real_data_under_another_name_is_read_as_published(tmp_path: Path) -> None:
        shutil.copytree(REAL / "voc", tmp_path / "pets")
        dataset, published = described(tmp_path / "pets"), opened("voc", REAL)
        assert dataset.facts.class_names == published.facts.class_names
        for one in dataset.names("val")[:6]:
            assert all(map(np.array_equal, dataset.read("val", one), published.read("val", Path(one).stem)))

    @pytest.mark.slow
    @pytest.mark.training
    def test_init_check_plan_and_run_on_a_copy_of_real_data_need_no_line_edited(tmp_path: Path) -> None:
        shutil.copytree(REAL / "voc", tmp_path / "data" / "pets")
        tiny = ["--set", "grid=[{seed: [0], budget: [5, 10]}]", "--set", "dataset.long_side=160"]
        tiny += ["--set", "dataset.images=6"]
        for words in ("init data/pets", "check data/pets", "plan pets.yaml", "run pets.yaml --local"):
            done = launch(tmp_path, *words.split(), *(tiny if "run" in words else []))
            assert done.status == 0, done
        assert "trained now: 2" in done.out
