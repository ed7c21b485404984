"""PASCAL VOC 2012: the official layout, the augmented training set, and fetching it."""

import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from pixelpick_ray.data.datasets import known_facts
from pixelpick_ray.data.voc import colour_map
from pixelpick_ray.errors import DataError
from tests.support.data_folders import REAL, loaded, opened, save, write_voc

CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
COLOURS = """
0 0 0, 128 0 0, 0 128 0, 128 128 0, 0 0 128, 128 0 128, 0 128 128, 128 128 128, 64 0 0, 192 0 0, 64 128 0,
192 128 0, 64 0 128, 192 0 128, 64 128 128, 192 128 128, 0 64 0, 128 64 0, 0 192 0, 128 192 0, 0 64 128
"""


def release(data: Path) -> Path:
    return data / "voc" / "VOCdevkit" / "VOC2012"


def told(data: Path, ask: str, *arguments: str) -> str:
    with pytest.raises(DataError) as caught:
        getattr(opened("voc", data), ask)(*arguments)
    return str(caught.value)


def test_classes_and_colours_are_the_official_ones() -> None:
    facts = known_facts("voc")
    assert facts is not None
    assert " ".join(facts.class_names) == CLASSES
    assert list(facts.palette) == [tuple(int(value) for value in text.split()) for text in COLOURS.split(",")]
    assert colour_map(255) == (224, 224, 192)  # the colour of borders in the label files
    assert (facts.num_classes, facts.void_index, facts.splits) == (21, 255, ("train", "val", "trainaug"))
    assert (facts.mean, facts.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("palette", ["official", "permuted"])
def test_splits_are_the_official_lists_and_colours_of_a_palette_win(tmp_path: Path, palette: str) -> None:
    write_voc(tmp_path)
    label_path = release(tmp_path) / "SegmentationClass" / "b.png"
    plain = np.asarray(loaded(label_path))
    order = np.random.default_rng(0).permutation(256) if palette == "permuted" else np.arange(256)
    coloured = Image.fromarray(np.argsort(order)[plain].astype(np.uint8), mode="P")
    coloured.putpalette([value for index in order for value in colour_map(index)])
    coloured.save(label_path)
    dataset = opened("voc", tmp_path)
    assert (dataset.names("train"), dataset.names("val")) == (("a", "b", "c"), ("d", "e"))
    image, label = dataset.read("train", "b")
    assert (label == plain).all()
    assert (image == np.asarray(loaded(release(tmp_path) / "JPEGImages" / "b.jpg"))).all()


@pytest.mark.parametrize(
    "line",
    [
        "/JPEGImages/{0}.jpg /SegmentationClass/{0}.png",
        "VOC2012/JPEGImages/{0}.jpg\tVOC2012/SegmentationClass/{0}.png",
        "JPEGImages/{0}.jpg",
    ],
)
def test_lists_may_have_paths_or_pairs_in_any_encoding(tmp_path: Path, line: str) -> None:
    write_voc(tmp_path)
    path = release(tmp_path) / "ImageSets" / "Segmentation" / "train.txt"
    path.write_bytes("".join(f"{line.format(name)}\r\n" for name in "cab").encode("utf-16"))
    assert opened("voc", tmp_path).names("train") == ("a", "b", "c")


@pytest.mark.parametrize("line", ["/JPEGImages/a.jpg /SegmentationClassAug/a.png", "/etc/passwd", "../a", ".", "x/a"])
def test_lines_that_name_other_files_are_told(tmp_path: Path, line: str) -> None:
    write_voc(tmp_path)
    (release(tmp_path) / "ImageSets" / "Segmentation" / "train.txt").write_text(f"a\n{line}\n")
    expected = f"train.txt: the line '{line}' names files other than JPEGImages/NAME.jpg"
    assert expected in told(tmp_path, "names", "train")


def test_trainaug_is_every_label_of_the_larger_set_that_is_not_in_val(tmp_path: Path) -> None:
    write_voc(tmp_path)
    dataset = opened("voc", tmp_path)
    assert dataset.names("trainaug") == ("a", "f", "g")
    image, label = dataset.read("trainaug", "a")
    assert (label == dataset.read("train", "a")[1][::-1]).all()
    assert (label != dataset.read("train", "a")[1]).any()
    assert (image == dataset.read("train", "a")[0]).all()


def test_what_is_wrong_with_the_files_is_told_with_what_to_put_where(tmp_path: Path) -> None:
    """What is wrong with lists is in tests/test_wrong_inputs.py."""
    write_voc(tmp_path)
    (release(tmp_path) / "ImageSets" / "Segmentation" / "val.txt").rename(kept := release(tmp_path) / "val.txt")
    for split in ("val", "trainaug"):
        assert "val.txt cannot be read (" in (missing := told(tmp_path, "names", split))
        assert f"in {tmp_path}/voc, or give" in missing
    kept.rename(release(tmp_path) / "ImageSets" / "Segmentation" / "val.txt")
    save(release(tmp_path) / "SegmentationClass" / "a.png", np.full((10, 14), 21, np.uint8))
    expected = "a.png: label value 21 at (y=0, x=0); allowed are 0..20 and 255 (void"
    assert expected in told(tmp_path, "read", "train", "a")
    (release(tmp_path) / "JPEGImages" / "g.jpg").unlink()
    assert "image g of split trainaug has no image file" in told(tmp_path, "signature", "trainaug")
    augmented = release(tmp_path) / "SegmentationClassAug"
    for file in augmented.iterdir():
        file.unlink()
    expected = f"voc: {augmented} contains no .png label maps outside val; copy them there"
    assert expected in told(tmp_path, "names", "trainaug")
    augmented.rmdir()
    assert told(tmp_path, "names", "trainaug").startswith(f"voc: no folder {augmented}; ")


def torchvision_whose_download(does: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torchvision's data set; the real one needs the network."""

    def constructed(*, root: Path, year: str, image_set: str, download: bool) -> None:
        assert (year, image_set, download) == ("2012", "train", True)
        does(root)

    module = ModuleType("torchvision.datasets")
    monkeypatch.setattr(module, "VOCSegmentation", constructed, raising=False)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


def test_the_archive_is_fetched_once_and_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpacks(root: Path) -> None:
        write_voc(root.parent)
        (root / "VOCtrainval_11-May-2012.tar").write_bytes(b"2 GB")

    torchvision_whose_download(unpacks, monkeypatch)
    dataset = opened("voc", tmp_path / "data")
    dataset.fetch(lambda done, total: None)
    assert dataset.names("val") == ("d", "e")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["voc"]
    assert [path.name for path in (tmp_path / "data" / "voc").iterdir()] == ["VOCdevkit"]
    torchvision_whose_download(lambda root: pytest.fail("it is there already"), monkeypatch)
    dataset.fetch(lambda done, total: None)


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("no route"), tarfile.ReadError("no route")])
def test_a_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(root: Path) -> None:
        root.mkdir()
        (root / "VOCtrainval_11-May-2012.tar").write_bytes(b"half")
        raise error

    torchvision_whose_download(fails, monkeypatch)
    told = (
        rf"voc: {tmp_path}/voc is missing and could not be downloaded from http.*no route.*unpack VOCtrainval.*--data"
    )
    with pytest.raises(DataError, match=told):
        opened("voc", tmp_path).fetch(lambda done, total: None)
    assert list(tmp_path.iterdir()) == []


if (REAL / "voc").is_dir():  # a machine without the files has fewer tests, not skipped ones

    def test_the_real_subset_has_its_counts_labels_and_colours() -> None:
        dataset = opened("voc", REAL)
        assert (len(dataset.names("train")), len(dataset.names("val"))) == (50, 30)
        assert not set(dataset.names("train")) & set(dataset.names("val"))
        for name in dataset.names("val"):
            picture = loaded(release(REAL) / "SegmentationClass" / f"{name}.png")
            assert (dataset.read("val", name)[1] == np.asarray(picture)).all()
        colours = [value for colour in dataset.facts.palette for value in colour]
        assert colours == (picture.getpalette() or [])[: 3 * 21]
