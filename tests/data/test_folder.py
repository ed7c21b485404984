"""A user's own folder: what it may hold, and what is told when its description or its files are wrong."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pixelpick_ray.config.trial import SizeSpec
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.data.folder import Folder
from pixelpick_ray.errors import DataError, SpecError
from tests.support.data_folders import loaded, noise, opened, save, write_folder
from tests.support.experiments import WRONG

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


def told(data: Path) -> str:
    """What is wrong with the files of the training split."""
    with pytest.raises(DataError) as caught:
        leaves(data).names("train")
    return str(caught.value)


def test_images_of_every_kind_are_paired_with_labels_by_stem(tmp_path: Path) -> None:
    images, labels = (write_folder(tmp_path) / "train" / part for part in ("images", "labels"))
    (labels / "Thumbs.db").write_text("no picture")
    (images / "leaf.v1.jpg").rename(images / "leaf.v1.JPG")
    for at, suffix in enumerate(("webp", "tif", "bmp"), start=3):
        picture, label = noise((9, 11), (0, 1, 2), seed=at)
        save(images / f"leaf.v{at}.{suffix}", picture)
        save(labels / f"leaf.v{at}.png", label)
    dataset = leaves(tmp_path)
    suffixes = ("png", "JPG", "jpeg", "webp", "tif", "bmp")
    assert dataset.names("train") == tuple(f"leaf.v{at}.{suffix}" for at, suffix in enumerate(suffixes))
    for name in dataset.names("train"):
        image, label = dataset.read("train", name)
        assert (image == np.asarray(loaded(images / name))).all()
        assert (label == np.asarray(loaded(labels / f"{name.rpartition('.')[0]}.png"))).all()


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


@pytest.mark.parametrize(("count", "apart"), [(20, 64), (255, 32)])
def test_colours_that_are_not_described_lie_far_apart(tmp_path: Path, count: int, apart: int) -> None:
    write_folder(tmp_path, classes=numbers(count))
    palette = leaves(tmp_path).facts.palette
    assert len(palette) == count
    assert (0, 0, 0) not in palette
    for one, other in itertools.combinations(palette, 2):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) >= apart


def test_a_split_that_is_not_described_is_told(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, splits=BARE)
    for ask in (leaves(tmp_path).names, leaves(tmp_path).has_labels):
        with pytest.raises(SpecError, match=str(folder) + NO_TEST):
            ask("test")
    assert [leaves(tmp_path).has_labels(split) for split in ("train", "val")] == [False, True]
    assert opened("scenes", tmp_path).has_labels("train")


def numbers(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def problems(data: Path, **description: Any) -> list[str]:
    """What is told of a description, without its path."""
    folder = write_folder(data, **description)
    with pytest.raises(DataError) as caught:
        leaves(data)
    return [line.removeprefix(f"{folder}/dataset.yaml: ") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize("case", WRONG["descriptions"], ids=lambda case: str(case["description"])[:60])
def test_a_wrong_description_is_told_with_file_key_and_what_is_allowed(tmp_path: Path, case: dict[str, Any]) -> None:
    assert case["told"] in problems(tmp_path, **case["description"])


def test_all_that_is_wrong_with_a_description_is_told_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, void="x", mean=[2, 0, 0], unknown=1)
    assert [line.partition(":")[0] for line in found] == ["void[0]", "mean[0]", "unknown"]
    assert problems(tmp_path, classes=numbers(256))[0].startswith("classes: must be 2 to 255 classes; got 256")
    assert problems(tmp_path, classes=numbers(255), splits={"train": GOOD, "new": {"images": "x"}}) == [
        "splits: new without labels needs a value that is neither a class nor void, but 255 classes and void use all "
        "of 0..255; add labels, or reduce the classes to 254"
    ]


def test_what_is_wrong_with_the_files_of_a_data_set_is_told(tmp_path: Path) -> None:
    """What is told of other files is in wrong_inputs.yaml."""
    for content, message in (
        ("- a", "should be a mapping with the keys"),
        ("classes: &x [*x]", "contains something other than numbers"),
    ):
        (write_folder(tmp_path) / "dataset.yaml").write_text(content)
        assert f"dataset.yaml: {message}" in told(tmp_path)
    labels = write_folder(tmp_path) / "train" / "labels"
    with pytest.raises(DataError, match=r"images/new\.png: is no longer an image of split train; restore it"):
        leaves(tmp_path).read("train", "new.png")
    (labels / "leaf.v1.png").rename(labels / "leaf.v1.jpg")
    assert told(tmp_path).startswith(f"{labels}/leaf.v1.jpg: is not .png, ")
    assert "since JPEG and WebP change their values; export it again" in told(tmp_path)
    assert len(leaves(tmp_path).names("val")) == 3


def test_the_content_covers_what_results_depend_on(tmp_path: Path) -> None:
    """Names and order of classes, void, mean and std change what is learnt or measured; colours and places do not."""
    first = fingerprint(tmp_path, classes=["soil", "stem", "leaf"])
    changes: list[dict[str, Any]] = [
        *({"classes": classes.split()} for classes in ("soil stem twig", "stem soil leaf", "soil stem leaf sky")),
        *({"mean": [0.5, 0.5, 0.5]}, {"std": [0.5, 0.5, 0.5]}),
    ]
    found = {first, *(fingerprint(tmp_path, **change) for change in changes)}
    assert len(found) == 1 + len(changes)
    colours = [[1, 1, 1], [2, 2, 2], [3, 3, 3]]
    assert fingerprint(tmp_path, palette=colours) == fingerprint(tmp_path, splits={"train": GOOD}, void=255) == first
    write_folder(tmp_path)
    assert fingerprint(tmp_path, "val") not in found
    before = leaves(tmp_path).identity("train")
    write_folder(tmp_path, void=7)
    assert leaves(tmp_path).identity("train") != before
    write_folder(tmp_path)
    (tmp_path / "leaves").rename(tmp_path / "plants")
    (tmp_path / "plants" / "train" / "images").rename(tmp_path / "plants" / "pictures")
    path = tmp_path / "plants" / "dataset.yaml"
    path.write_text(path.read_text().replace("train/images", "pictures"))
    moved = opened("folder", tmp_path, path="plants")
    assert prepare(moved, "train", SizeSpec(), tmp_path / "cache").fingerprint == first


@pytest.mark.parametrize(("classes", "void", "index"), [(3, 254, 255), (253, 254, 255), (254, 255, 254)])
def test_without_label_maps_all_pixels_have_an_own_value(tmp_path: Path, classes: int, void: int, index: int) -> None:
    """And all of them are candidates at every size."""
    folder = write_folder(tmp_path, classes=numbers(classes), void=void, splits=BARE)
    dataset = leaves(tmp_path)
    assert dataset.facts.unlabelled_index == index
    assert dataset.names("train") == ("leaf.v0.png", "leaf.v1.jpg", "leaf.v2.jpeg")
    assert [path for path, *_ in dataset.signature("train")[1:]] == [
        f"train/images/{name}" for name in dataset.names("train")
    ]
    image, label = dataset.read("train", "leaf.v1.jpg")
    assert (image == np.asarray(loaded(folder / "train" / "images" / "leaf.v1.jpg"))).all()
    assert (label.dtype, label.shape, set(label.ravel().tolist())) == (np.uint8, (9, 11), {index})
    for size in (SizeSpec(), SizeSpec(size=(8, 20))):
        prepared = prepare(dataset, "train", size, tmp_path / "cache")
        assert prepared.candidates.tolist() == [int(np.prod(prepared.shape(at))) for at in range(3)]
        assert set(prepared.labels.tolist()) == {index}
    write_folder(tmp_path, classes=numbers(255))  # which leave no value, and are read where there are label maps
    assert leaves(tmp_path).facts.unlabelled_index == -1
    label = np.asarray(loaded(folder / "train" / "labels" / "leaf.v0.png"))
    assert (leaves(tmp_path).read("train", "leaf.v0.png")[1] == label).all()


def test_the_content_of_a_split_with_labels_is_as_it_was_before_any_could_lack_them(tmp_path: Path) -> None:
    for data, more in ((tmp_path / "one", {}), (tmp_path / "other", {"new": {"images": "val/images"}})):
        folder = write_folder(data, splits={"train": GOOD} | more)
        for at, path in enumerate(sorted((folder / "train" / "images").iterdir())):
            path.unlink()
            save(path.with_suffix(".png"), noise((9, 11), (0,), seed=at)[0])
        assert fingerprint(data) == "47448ace59d63679991c9f5bc1935420ff04ff05ca7a956b2e17072e262ecaed"


def lay_out(data: Path, files: Iterable[str], **description: Any) -> Folder:
    """A data set of images and label maps of one pixel value a file, in the order of the files; masks by their name."""
    for at, name in enumerate(files):
        is_label = any(part in name for part in ("mask", "label", "Label"))
        pixels = np.full((8, 8) if is_label else (8, 8, 3), at % 3 if is_label else at, np.uint8)
        save(data / "leaves" / name, pixels)
    (data / "leaves" / "dataset.yaml").write_text(yaml.safe_dump({"classes": ["soil", "stem", "leaf"]} | description))
    found = leaves(data)
    assert isinstance(found, Folder)
    return found


def pairs(found: Folder, split: str = "train") -> dict[str, str]:
    """Names with the label maps of them, in the folder of the data set."""
    return {name: found.paths(split, name)[1].relative_to(found.path).as_posix() for name in found.names(split)}


def test_label_maps_beside_the_images_by_a_suffix(tmp_path: Path) -> None:
    files = ["train/a.png", "train/a_mask.png", "train/b.png", "train/b_mask.png"]
    same = {"train": {"images": "train", "labels": "train"}}
    found = lay_out(tmp_path, files, splits=same, masks={"suffix": "_mask"})
    assert pairs(found) == {"a.png": "train/a_mask.png", "b.png": "train/b_mask.png"}
    (tmp_path / "leaves" / "train" / "b_mask.png").unlink()
    folder = tmp_path / "leaves" / "train"
    assert f"{folder}: b.png has no counterpart, called *_mask, in {folder} (.png, .tif" in told(tmp_path)
    # Without a suffix photos and label maps of one stem are told apart by theirs.
    same = {"train": {"images": "x/", "labels": "x"}}
    found = lay_out(tmp_path, ["x/a.jpg", "x/a.png", "x/b.jpeg", "x/b.tif"], splits=same)
    assert pairs(found) == {"a.jpg": "x/a.png", "b.jpeg": "x/b.tif"}
    for path in (tmp_path / "leaves" / "x").glob("*.jp*g"):
        path.unlink()
    assert "splits.train: images and labels are both in 'x/' and cannot be distinguished" in told(tmp_path)


def test_label_maps_by_a_pattern_in_folders_inside_and_what_is_left_out(tmp_path: Path) -> None:
    files = [f"{kind}/ulm/{name}_{end}.png" for name in "ab" for kind, end in (("x", "photo"), ("masks", "Ids"))]
    split, masks = {"train": {"images": "x", "labels": "masks"}}, {"image": "*_photo", "label": "*_Ids"}
    found = lay_out(tmp_path, [*files, "x/ulm/other.png"], splits=split, masks=masks, recursive=True)
    assert pairs(found) == {f"ulm/{name}_photo.png": f"masks/ulm/{name}_Ids.png" for name in "ab"}
    assert found.left_out("train") == ("1 file not called *_photo, e.g. other.png",)
    assert found.file_name("train", "ulm/a_photo.png") == "ulm/a_photo.png"
    found = lay_out(tmp_path, ["x/a.png", "masks/a.png"], splits=split)
    for name in ("a.heic", "notes.txt", ".hidden.png"):
        (tmp_path / "leaves" / "x" / name).write_text("x")
    assert found.names("train") == ("a.png",)
    assert found.left_out("train") == (
        "1 file .heic, which is not supported, e.g. a.heic",
        "3 files in subfolders, which need recursive: true, e.g. a_photo.png",
    )


LISTS = {
    "names": "a\n\nc\n",
    "files": "a.png\nc.png",
    "paths": "photos/a.png\r\n./photos/c.png\r\n",
    "of another computer": "/home/ada/photos/a.png\nC:\\data\\photos\\c.png",
    "pairs": "/photos/a.png /masks/a.png\nphotos/c.png,masks/c.png\n",
    "pairs of other names": "a.png b.png\nc.png c.png",
}


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS)
def test_a_list_says_which_images_belong_to_a_split(tmp_path: Path, content: str) -> None:
    files = [f"{folder}/{name}.png" for name in "abc" for folder in ("photos", "masks")]
    found = lay_out(tmp_path, files, splits={"train": {"images": "photos", "labels": "masks", "list": "train.txt"}})
    first = "b" if content.startswith("a.png b") else "a"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "leaves" / "train.txt").write_bytes(content.encode(encoding))
        assert pairs(found) == {"a.png": f"masks/{first}.png", "c.png": "masks/c.png"}


def test_a_list_with_names_of_no_image_is_told_at_once(tmp_path: Path) -> None:
    files = [f"{folder}/{name}.png" for name in "ab" for folder in ("photos", "masks")]
    lay_out(tmp_path, files, splits={"train": {"images": "photos", "labels": "masks", "list": "l.txt"}})
    assert f"splits.train.list: {tmp_path}/leaves/l.txt cannot be read" in told(tmp_path)
    (tmp_path / "leaves" / "l.txt").write_text("a\n" + "".join(f"x{at}\n" for at in range(12)))
    lines = told(tmp_path).splitlines()
    assert len(lines) == 11
    assert lines[3].endswith("l.txt: the line 'x3' matches no image of this split; correct the list, or add the image")
    assert lines[10] == "and 2 more"


def test_links_out_of_the_data_folder_are_followed_where_it_says_so(tmp_path: Path) -> None:
    files = ["train/a.png", "masks/a.png"]
    split = {"train": {"images": "train", "labels": "masks"}}
    lay_out(tmp_path / "data", files, splits=split)
    for name in files:
        path = tmp_path / "data" / "leaves" / name
        path.rename(target := tmp_path / name.replace("/", "-"))
        path.symlink_to(target)
    with pytest.raises(DataError, match=r"links out of the data folder, .*if you trust the links, set follow_links"):
        leaves(tmp_path / "data").signature("train")
    found = lay_out(tmp_path / "data", (), splits=split, follow_links=True)
    assert len(found.signature("train")) == 3
    assert (found.read("train", "a.png")[1] == 1).all()
    (tmp_path / "train-a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: is a link to .*train-a\.png, which does not exist"):
        found.signature("train")


def test_another_reading_is_another_split_in_the_cache(tmp_path: Path) -> None:
    """And where nothing new is said, the one that it ever was."""
    write_folder(tmp_path, void=7)
    assert leaves(tmp_path).signature("train")[0] == ["leaves", 3, 7]
    described = [{"void": [7, 8]}, {"range": 4095}, {"classes": {"soil": 1, "stem": 0, "leaf": 2}}, {"recursive": True}]
    found = [str(write_folder(tmp_path, **one) and leaves(tmp_path).signature("train")[0]) for one in described]
    assert len(set(found)) == len(described)
    values = {"soil": 0, "stem": 1, "leaf": 2}
    assert fingerprint(tmp_path, classes=values) == fingerprint(tmp_path, classes=[*values])


def test_all_wrong_files_of_a_split_are_told_at_once(tmp_path: Path) -> None:
    for at in range(14):
        save(tmp_path / "leaves" / "x" / f"{at:02d}.png", noise((9, 11), (0,), seed=at)[0])
        save(tmp_path / "leaves" / "masks" / f"{at:02d}.png", np.full((9, 11), at // 2, np.uint8))
    (tmp_path / "leaves" / "x" / "03.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "leaves" / "dataset.yaml").write_text("{classes: [a, b], splits: {train: {images: x, labels: masks}}}")
    with pytest.raises(DataError) as caught:
        prepare(leaves(tmp_path), "train", SizeSpec(), tmp_path / "cache")
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert "03.png: is a Git LFS pointer" in lines[0]
    assert [line.partition(": ")[0][-6:-4] for line in lines[1:10]] == [f"{at:02d}" for at in range(4, 13)]
    assert lines[10] == "and 1 more"
