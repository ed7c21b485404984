"""Cityscapes: the official layout, and the official map from ids to train ids."""

from pathlib import Path

import numpy as np
import pytest

from pixelpick_ray.data.datasets import known_facts
from pixelpick_ray.errors import DataError
from tests.support.data_folders import noise, opened, write_cityscapes, write_cityscapes_image

# id, name, train id (255: not evaluated), colour: as published with the data set.
OFFICIAL = """
0 unlabeled 255 0 0 0, 1 ego_vehicle 255 0 0 0, 2 rectification_border 255 0 0 0, 3 out_of_roi 255 0 0 0,
4 static 255 0 0 0, 5 dynamic 255 111 74 0, 6 ground 255 81 0 81, 7 road 0 128 64 128,
8 sidewalk 1 244 35 232, 9 parking 255 250 170 160, 10 rail_track 255 230 150 140, 11 building 2 70 70 70,
12 wall 3 102 102 156, 13 fence 4 190 153 153, 14 guard_rail 255 180 165 180, 15 bridge 255 150 100 100,
16 tunnel 255 150 120 90, 17 pole 5 153 153 153, 18 polegroup 255 153 153 153, 19 traffic_light 6 250 170 30,
20 traffic_sign 7 220 220 0, 21 vegetation 8 107 142 35, 22 terrain 9 152 251 152, 23 sky 10 70 130 180,
24 person 11 220 20 60, 25 rider 12 255 0 0, 26 car 13 0 0 142, 27 truck 14 0 0 70,
28 bus 15 0 60 100, 29 caravan 255 0 0 90, 30 trailer 255 0 0 110, 31 train 16 0 80 100,
32 motorcycle 17 0 0 230, 33 bicycle 18 119 11 32
"""
ROWS = [row.split() for row in OFFICIAL.split(",")]
TRAIN_IDS = np.asarray([int(row[2]) for row in ROWS], dtype=np.uint8)
NAME = "aachen_000000_000019"


def test_classes_and_colours_are_the_official_ones() -> None:
    facts = known_facts("cityscapes")
    assert facts is not None
    evaluated = sorted((row for row in ROWS if row[2] != "255"), key=lambda row: int(row[2]))
    assert list(facts.class_names) == [row[1].replace("_", " ") for row in evaluated]
    assert list(facts.palette) == [tuple(int(value) for value in row[3:]) for row in evaluated]
    assert (facts.num_classes, facts.void_index, facts.splits) == (19, 19, ("train", "val"))
    assert facts.mean == (0.28689554, 0.32513303, 0.28389177)
    assert facts.std == (0.18696375, 0.19017339, 0.18720214)


def test_every_id_becomes_its_train_id_and_all_others_void_of_the_images_of_all_cities(tmp_path: Path) -> None:
    write_cityscapes(tmp_path)
    ids = (np.arange(40 * 50) // 7 % 34).astype(np.uint8).reshape(40, 50)
    picture = np.zeros((40, 50, 3), np.uint8)
    picture[:, :, 1] = ids
    write_cityscapes_image(tmp_path, "val", NAME, picture, ids)
    dataset = opened("cityscapes", tmp_path)
    wanted = ("aachen_000000_000019", "aachen_000000_000039", "ulm_000000_000019")
    assert dataset.names("train") == dataset.names("val") == wanted
    image, label = dataset.read("val", NAME)
    assert (image == picture).all()
    assert (label == np.where(TRAIN_IDS == 255, 19, TRAIN_IDS)[ids]).all()


def test_train_ids_give_the_same_labels(tmp_path: Path) -> None:
    picture, ids = noise((40, 50), range(34), seed=0)
    write_cityscapes_image(tmp_path / "ids", "train", NAME, picture, ids)
    write_cityscapes_image(tmp_path / "train", "train", NAME, picture, TRAIN_IDS[ids], kind="labelTrainIds")
    wanted = opened("cityscapes", tmp_path / "ids").read("train", NAME)[1]
    assert set(np.unique(wanted)) == set(range(20))
    assert (opened("cityscapes", tmp_path / "train").read("train", NAME)[1] == wanted).all()
    # Where both files are there, the ids count.
    write_cityscapes_image(tmp_path / "ids", "train", NAME, picture, TRAIN_IDS[ids[::-1]], kind="labelTrainIds")
    assert (opened("cityscapes", tmp_path / "ids").read("train", NAME)[1] == wanted).all()
    signature = opened("cityscapes", tmp_path / "ids").signature("train")
    (tmp_path / "ids/cityscapes/gtFine/train/aachen" / f"{NAME}_gtFine_labelIds.png").unlink()
    assert opened("cityscapes", tmp_path / "ids").signature("train") != signature


@pytest.mark.parametrize(
    ("kind", "value", "allowed"),
    [("labelIds", 34, r"0\.\.33 \(label ids\)"), ("labelTrainIds", 19, r"0\.\.18 and 255 \(train ids\)")],
)
def test_a_wrong_id_is_told_with_its_place(tmp_path: Path, kind: str, value: int, allowed: str) -> None:
    picture, ids = noise((12, 16), range(19), seed=0)
    ids[5, 3] = ids[6, 1] = value
    write_cityscapes_image(tmp_path, "train", NAME, picture, ids, kind)
    told = rf"{NAME}_gtFine_{kind}\.png: label value {value} at \(y=5, x=3\); allowed are {allowed}"
    with pytest.raises(DataError, match=told):
        opened("cityscapes", tmp_path).read("train", NAME)


def test_what_is_missing_is_told_with_where_to_get_it_and_where_it_belongs(tmp_path: Path) -> None:
    dataset = opened("cityscapes", tmp_path)
    dataset.fetch(lambda done, total: None)  # it cannot be fetched: nothing happens
    for kind in ("leftImg8bit", "gtFine"):
        with pytest.raises(DataError) as caught:
            dataset.names("train")
        told = f"cityscapes: no folder {tmp_path}/cityscapes/{kind}/train; get leftImg8bit_trainvaltest.zip and gtFine_"
        assert str(caught.value).startswith(told)
        assert f"unpack both in {tmp_path}/cityscapes, or give the folder" in str(caught.value)
        (tmp_path / "cityscapes" / kind / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"leftImg8bit/train holds no CITY/NAME_leftImg8bit\.png; unpack leftImg8bit_"):
        dataset.names("train")
