"""A user's own folder: what it may hold, and what is told when its description or its files are wrong."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pixelpick_ray.config.trial import SizeSpec
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.errors import DataError, SpecError
from tests.support.data_folders import loaded, noise, opened, save, write_folder

GOOD = {"images": "train/images", "labels": "train/labels"}
BARE = {"train": {"images": "train/images"}, "val": {"images": "val/images", "labels": "val/labels"}}
NO_TEST = r"/dataset\.yaml: has no split 'test'; it describes train, val"


def leaves(data: Path) -> Any:
    """The data set that ``write_folder`` makes."""
    return opened("folder", data, path="leaves")


def fingerprint(data: Path, split: str = "train", **description: Any) -> str:
    """That of the data set, written anew with a description if one is given."""
    if description:
        write_folder(data, **description)
    return prepare(leaves(data), split, SizeSpec(), data / "cache").fingerprint


def told(data: Path, message: str, split: str = "train") -> None:
    with pytest.raises(DataError, match=message):
        leaves(data).names(split)


def test_images_of_every_kind_are_paired_with_labels_by_stem(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    for part in ("images/.hidden.png", "images/notes.txt", "labels/Thumbs.db"):
        (folder / "train" / part).write_text("no picture")
    (folder / "train" / "images" / "leaf.v1.jpg").rename(folder / "train" / "images" / "leaf.v1.JPG")
    dataset = leaves(tmp_path)
    assert dataset.names("train") == ("leaf.v0.png", "leaf.v1.JPG", "leaf.v2.jpeg")
    for name in dataset.names("train"):
        image, label = dataset.read("train", name)
        stem = name.rpartition(".")[0]
        assert (image == np.asarray(loaded(folder / "train" / "images" / name))).all()
        assert (label == np.asarray(loaded(folder / "train" / "labels" / f"{stem}.png"))).all()


def test_facts_are_those_of_the_description_or_usual(tmp_path: Path) -> None:
    splits = dict.fromkeys(("all", "2024"), GOOD)
    palette = [[1, 2, 3], [4, 5, 6], [255, 0, 0]]
    numbers = {"void": 7, "mean": [0, 0.5, 1], "std": [0.1, 0.2, 1]}
    write_folder(tmp_path, **numbers, splits=splits, train_split="all", palette=palette)
    facts = leaves(tmp_path).facts
    assert (facts.name, facts.class_names, facts.void_index) == ("folder", ("soil", "stem", "leaf"), 7)
    assert (facts.mean, facts.std) == ((0.0, 0.5, 1.0), (0.1, 0.2, 1.0))
    assert facts.palette == ((1, 2, 3), (4, 5, 6), (255, 0, 0))
    assert (facts.splits, facts.train_split) == (("all", "2024"), "all")
    write_folder(tmp_path)
    facts = leaves(tmp_path).facts
    assert (facts.void_index, facts.train_split) == (255, "train")
    assert (facts.mean, facts.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(("count", "apart"), [(2, 128), (20, 64), (63, 64), (255, 32)])
def test_colours_that_are_not_described_lie_far_apart(tmp_path: Path, count: int, apart: int) -> None:
    write_folder(tmp_path, classes=[f"class {index}" for index in range(count)])
    palette = leaves(tmp_path).facts.palette
    assert len(palette) == count
    assert (0, 0, 0) not in palette
    for one, other in itertools.combinations(palette, 2):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) >= apart


def test_a_missing_path_and_a_split_that_is_not_described_are_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"dataset\.path: .*folder under {tmp_path} that holds dataset\.yaml, e\.g\. "):
        opened("folder", tmp_path)
    folder = write_folder(tmp_path, splits=BARE)
    for ask in (leaves(tmp_path).names, leaves(tmp_path).has_labels):
        with pytest.raises(SpecError, match=str(folder) + NO_TEST):
            ask("test")
    assert [leaves(tmp_path).has_labels(split) for split in ("train", "val")] == [False, True]
    assert opened("scenes", tmp_path).has_labels("train")


def numbers(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def train(**changed: str) -> dict[str, object]:
    """A description whose split train is changed."""
    return {"splits": {"train": GOOD | changed}}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"clases": ["a", "b"]}, "clases: unknown key; allowed here: classes, void, splits, train_split, mean, std, pal"),
    (train(label="x"), "splits.train.label: unknown key; allowed here: images, labels"),
    ({"splits": {"train": {"labels": "x"}}}, "splits.train.images: is required; got {'labels': 'x'}"),
    (
        {"classes": numbers(255), "splits": {"train": GOOD, "new": {"images": "x"}}},
        "splits: new without labels needs a value that is neither a class nor void, and 255 classes with void take "
        "all of 0..255; give labels, or 254 classes at most",
    ),
    ({"splits": ["train"]}, "splits: should be a mapping, e.g. {name: value}; got ['train']"),
    ({"splits": {"": GOOD}}, "splits: '' is no name of a split; letters, digits, _ and - are allowed"),
    ({"splits": {"a/b": GOOD}}, "splits: 'a/b' is no name of a split; letters, digits, _ and - are allowed"),
    ({"splits": {}}, "train_split: 'train' is not described; described in splits: none"),
    ({"splits": {"fit": GOOD, "val": GOOD}}, "train_split: 'train' is not described; described in splits: fit, val"),
    (train(images="../x"), "splits.train.images: '../x' leaves the folder of the data"),
    (train(labels="/x"), "splits.train.labels: '/x' leaves the folder of the data set"),
    (train(images="x/", labels="x"), "splits.train: images and labels are the same folder"),
    ({"classes": "soil"}, "classes: should be a list, e.g. [1, 2]; got 'soil'"),
    ({"classes": ["soil"]}, "classes: 1 given; allowed are 2..255"),
    ({"classes": numbers(256)}, "classes: 256 given; allowed are 2..255"),
    ({"classes": ["no", False]}, "classes[1]: should be text, in quotes where YAML reads something else; got False"),
    ({"classes": ["b", "a", "b"]}, "classes: b given twice; give each class a name of its own"),
    ({"void": 2}, "void: 2 is the value of class 'leaf'; allowed are 3..255"),
    ({"void": 256}, "void: Input should be less than or equal to 255; got 256"),
    ({"void": "255"}, "void: Input should be a valid integer; got '255'"),
    ({"mean": [0.1, 0.2]}, "mean[2]: is required; got [0.1, 0.2]"),
    ({"mean": [0.1, 0.2, 123.7]}, "mean[2]: Input should be less than or equal to 1; got 123.7"),
    ({"mean": [0.1, 0.2, float("nan")]}, "mean[2]: Input should be less than or equal to 1; got nan"),
    ({"std": [0.1, 0, 0.1]}, "std[1]: Input should be greater than 0; got 0"),
    ({"palette": [[0, 0, 0], [1, 1, 1]]}, "palette: 2 colours, 2 different ones, for 3 classes; give each class a"),
    ({"palette": [[0, 0, 0], [1, 1, 1], [0, 0, 0]]}, "palette: 3 colours, 2 different ones, for 3 classes; give"),
    ({"palette": [[0, 0, 0], [1, 1, 1], [0, 0, 256]]}, "palette[2][2]: Input should be less than or equal to 255;"),
]


def test_a_wrong_description_is_told_with_file_key_and_what_is_allowed(tmp_path: Path) -> None:
    """All problems at once."""
    for wrong, message in WRONG:
        folder = write_folder(tmp_path, **wrong)
        with pytest.raises(DataError) as caught:
            leaves(tmp_path)
        assert f"{folder}/dataset.yaml: {message}" in str(caught.value)
    write_folder(tmp_path, void="x", mean=[2, 0, 0], unknown=1)
    with pytest.raises(DataError) as caught:
        leaves(tmp_path)
    lines = str(caught.value).splitlines()
    keys = [line.partition("dataset.yaml: ")[2].partition(":")[0] for line in lines]
    assert keys == ["void", "mean[0]", "unknown"]


UNREADABLE = {
    b"classes: [a, b": r"dataset\.yaml: line 1, column 15 is not YAML: .*; correct it",
    b"classes: !!python/name:os.system": r"line 1, column 10 is not YAML: could not determine a constructor",
    b"classes: [a, b]\nclasses: [b, a]": r"line 2, column 1 is not YAML: the key 'classes' appears twice",
    b"- a": r"dataset\.yaml: expected a mapping with classes, void, splits.*; got \['a'\]",
    b"": r"dataset\.yaml: expected a mapping with classes, void, splits.*; got None",
    b"classes: &x [*x]": r"dataset\.yaml: holds something that is neither number, text, list nor mapping",
    b"\xff\xfe\xfd": r"dataset\.yaml: cannot be read \(.*correct dataset\.path.*--data DIR.*classes: \[soil, leaf",
}


def test_a_description_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = write_folder(tmp_path) / "dataset.yaml"
    for content, message in UNREADABLE.items():
        path.write_bytes(content)
        told(tmp_path, message)
    path.unlink()
    told(tmp_path, r"leaves/dataset\.yaml: cannot be read \(.*No such file.*--data DIR")


def test_what_is_wrong_with_the_files_of_a_split_is_told(tmp_path: Path) -> None:
    folder = write_folder(tmp_path) / "train"
    images, labels = folder / "images", folder / "labels"
    (labels / "leaf.v1.png").unlink()
    one = rf"{images}: leaf\.v1\.jpg has no partner of the same stem in {labels} \(\.png\); add it or re"
    told(tmp_path, one)
    assert len(leaves(tmp_path).names("val")) == 3
    write_folder(tmp_path)
    (images / "leaf.v1.jpg").rename(images / "leaf.v1.tif")
    told(tmp_path, rf"{labels}: leaf\.v1\.png has no partner .*in {images} \(\.png, \.jpg, \.jpeg\); add it or re")
    (tmp_path / "leaves" / "val" / "labels").rename(tmp_path / "leaves" / "val" / "masks")
    labels = tmp_path / "leaves" / "val" / "labels"
    told(tmp_path, rf"dataset\.yaml: splits\.val\.labels: no folder {labels}; make it", "val")


@pytest.mark.parametrize("splits", [BARE, BARE | {"train": GOOD}], ids=["bare", "with labels"])
def test_two_images_of_one_stem_and_no_image_are_told_with_labels_or_without(tmp_path: Path, splits: Any) -> None:
    images = write_folder(tmp_path, splits=splits) / "train" / "images"
    save(images / "leaf.v1.png", noise((9, 11), (0,), seed=0)[0])
    told(tmp_path, rf"{images}: leaf\.v1\.jpg and leaf\.v1\.png have one stem; keep one of")
    for path in (*images.iterdir(), *(images.parent / "labels").iterdir()):
        path.unlink()
    told(tmp_path, rf"{images}: holds no image; copy the images of split train there")


def test_a_label_value_that_is_neither_class_nor_void_is_told(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, void=9)
    label = np.array(np.arange(99).reshape(9, 11) % 3, dtype=np.uint8)
    label[4, 2] = 255
    save(folder / "train" / "labels" / "leaf.v0.png", label)
    message = r"labels/leaf\.v0\.png: label value 255 at \(y=4, x=2\); allowed are 0\.\.2 and 9 \(void\)"
    with pytest.raises(DataError, match=message):
        leaves(tmp_path).read("train", "leaf.v0.png")


def test_the_content_covers_what_results_depend_on(tmp_path: Path) -> None:
    """Names and order of classes, void, mean and std change what is learnt or measured; colours do not."""
    first = fingerprint(tmp_path, classes=["soil", "stem", "leaf"])
    changes: list[dict[str, Any]] = [
        *({"classes": classes.split()} for classes in ("soil stem twig", "stem soil leaf", "soil stem leaf sky")),
        *({"mean": [0.5, 0.5, 0.5]}, {"std": [0.5, 0.5, 0.5]}),
    ]
    assert len({first, *(fingerprint(tmp_path, **change) for change in changes)}) == 1 + len(changes)
    colours = [[1, 1, 1], [2, 2, 2], [3, 3, 3]]
    assert fingerprint(tmp_path, palette=colours) == fingerprint(tmp_path, splits={"train": GOOD}, void=255) == first
    write_folder(tmp_path)
    val = fingerprint(tmp_path, "val")
    assert val not in {first, *(fingerprint(tmp_path, **change) for change in changes)}


def test_another_void_value_is_another_content_and_counted_anew(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    for path in folder.rglob("labels/*.png"):
        Image.fromarray(np.asarray(loaded(path)) % 4).save(path)  # 255 becomes 3
    prepared = []
    for description in ({"classes": ["a", "b", "c"], "void": 3}, {"classes": ["a", "b", "c", "d"], "void": 255}):
        tree = {"splits": {"train": GOOD}} | description
        (folder / "dataset.yaml").write_text(yaml.safe_dump(tree))
        prepared.append(prepare(leaves(tmp_path), "train", SizeSpec(), tmp_path / "cache"))
    assert prepared[0].fingerprint != prepared[1].fingerprint
    assert prepared[0].candidates.tolist() == [int((prepared[0].label(at) != 3).sum()) for at in range(3)]
    assert prepared[1].candidates.tolist() == [99, 99, 99]


def test_a_folder_that_moved_keeps_its_content(tmp_path: Path) -> None:
    write_folder(tmp_path)
    before = fingerprint(tmp_path)
    (tmp_path / "leaves").rename(tmp_path / "plants")
    (tmp_path / "plants" / "train" / "images").rename(tmp_path / "plants" / "pictures")
    path = tmp_path / "plants" / "dataset.yaml"
    path.write_text(path.read_text().replace("train/images", "pictures"))
    moved = opened("folder", tmp_path, path="plants")
    assert prepare(moved, "train", SizeSpec(), tmp_path / "cache").fingerprint == before


# Images without label maps


@pytest.mark.parametrize(
    ("classes", "void", "index"), [(3, 255, 254), (3, 254, 255), (3, 3, 255), (253, 254, 255), (254, 255, 254)]
)
def test_without_label_maps_every_pixel_has_a_value_that_is_neither_class_nor_void(
    tmp_path: Path, classes: int, void: int, index: int
) -> None:
    folder = write_folder(tmp_path, classes=[f"class {at}" for at in range(classes)], void=void, splits=BARE)
    dataset = leaves(tmp_path)
    assert dataset.facts.unlabelled_index == index
    assert dataset.names("train") == ("leaf.v0.png", "leaf.v1.jpg", "leaf.v2.jpeg")
    image, label = dataset.read("train", "leaf.v1.jpg")
    assert (image == np.asarray(loaded(folder / "train" / "images" / "leaf.v1.jpg"))).all()
    assert (label.dtype, label.shape, set(label.ravel().tolist())) == (np.uint8, (9, 11), {index})


def test_255_classes_leave_no_value_and_are_read_where_there_are_label_maps(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, classes=[str(index) for index in range(255)])
    dataset = leaves(tmp_path)
    assert dataset.facts.unlabelled_index == -1
    label = np.asarray(loaded(folder / "train" / "labels" / "leaf.v0.png"))
    assert (dataset.read("train", "leaf.v0.png")[1] == label).all()


def test_all_pixels_of_images_without_label_maps_are_candidates_at_every_size(tmp_path: Path) -> None:
    write_folder(tmp_path, splits=BARE)
    for size in (SizeSpec(), SizeSpec(size=(8, 20))):
        prepared = prepare(leaves(tmp_path), "train", size, tmp_path / "cache")
        assert prepared.candidates.tolist() == [int(np.prod(prepared.shape(at))) for at in range(3)]
        assert set(prepared.labels.tolist()) == {254}


def test_the_signature_of_images_without_label_maps_has_the_images_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, splits=BARE)
    shutil.rmtree(folder / "train" / "labels")
    described, *files = leaves(tmp_path).signature("train")
    assert described == ["leaves", 3, 255]
    assert [path for path, _, _ in files] == [f"train/images/leaf.v{at}" for at in ("0.png", "1.jpg", "2.jpeg")]
    (folder / "train" / "images" / "leaf.v1.jpg").unlink()
    left = [path for path, _, _ in leaves(tmp_path).signature("train")[1:]]
    assert left == ["train/images/leaf.v0.png", "train/images/leaf.v2.jpeg"]


def test_label_maps_that_come_later_make_another_content(tmp_path: Path) -> None:
    cases = itertools.product((GOOD, {"images": GOOD["images"]}), (["soil", "stem", "leaf"], ["stem", "soil", "leaf"]))
    found = {fingerprint(tmp_path, splits={"train": train}, classes=classes) for train, classes in cases}
    assert len(found) == 4


def test_the_content_of_a_split_with_labels_is_as_it_was_before_any_could_lack_them(tmp_path: Path) -> None:
    for data, more in ((tmp_path / "one", {}), (tmp_path / "other", {"new": {"images": "val/images"}})):
        folder = write_folder(data, splits={"train": GOOD} | more)
        for at, path in enumerate(sorted((folder / "train" / "images").iterdir())):
            path.unlink()
            save(path.with_suffix(".png"), noise((9, 11), (0,), seed=at)[0])
        assert fingerprint(data) == "47448ace59d63679991c9f5bc1935420ff04ff05ca7a956b2e17072e262ecaed"
