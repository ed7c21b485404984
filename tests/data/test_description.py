"""What a report tells of a prepared split."""

import json
from pathlib import Path

import numpy as np

from pixelpick_ray.config.trial import DatasetSpec
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.data.datasets import open_dataset
from pixelpick_ray.data.description import LONG_SIDE, VOID_COLOUR, shown, write_description, write_label_map
from tests.support.data_folders import loaded, opened, write_folder

SPEC = DatasetSpec(name="scenes", size=(48, 64))
FACTS = open_dataset(SPEC, Path()).facts


def test_a_description_counts_the_labels_and_shows_small_pictures(tmp_path: Path) -> None:
    """Equal splits give equal bytes."""
    prepared = prepare(open_dataset(SPEC, tmp_path), "val", SPEC, tmp_path / "cache")
    folder, positions = tmp_path / "out", list(range(1, len(prepared)))
    for place in (folder, tmp_path / "again"):
        place.mkdir()
        write_description(place, prepared, positions, FACTS)
    found = json.loads((folder / "description.json").read_text())
    labels = np.concatenate([prepared.label(position).ravel() for position in positions])
    assert found["class_counts"] == [int((labels == index).sum()) for index in range(FACTS.num_classes)]
    assert found["images"] == len(positions)
    assert found["names"] == [prepared.names[position] for position in shown(positions)]
    assert found["shapes"] == [[48, 64]] * len(found["names"])
    assert 0.0 < found["border_distance"] < 64
    for number, name in enumerate(found["names"]):
        position = prepared.index[name]
        label, image = (loaded(folder / file) for file in (f"labels/{number}.png", f"images/{number}.jpg"))
        np.testing.assert_array_equal(np.asarray(label), prepared.label(position))
        assert np.abs(np.asarray(image, dtype=float) - prepared.image(position)).mean() < 12
    files = [path.relative_to(folder) for path in folder.rglob("*.*")]
    assert len(files) == 1 + 2 * len(found["names"])
    assert all((folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
    assert (shown(range(10)), shown([7, 9])) == ([0, 3, 6, 9], [7, 9])


def test_a_large_label_map_is_made_small_and_void_is_grey(tmp_path: Path) -> None:
    label = np.full((300, 600), 255, dtype=np.uint8)
    label[:, :300] = 1
    write_label_map(tmp_path / "map.png", label, [(0, 0, 0), (10, 20, 30)])
    colours = np.asarray(loaded(tmp_path / "map.png").convert("RGB"))
    assert colours.shape[:2] == (LONG_SIDE // 2, LONG_SIDE)
    assert colours[0, 0].tolist() == [10, 20, 30]
    assert tuple(colours[0, -1].tolist()) == VOID_COLOUR


def test_images_without_label_maps_have_grey_ones_and_no_counts(tmp_path: Path) -> None:
    write_folder(tmp_path, splits={"train": {"images": "train/images"}})
    dataset = opened("folder", tmp_path, path="leaves")
    bare = prepare(dataset, "train", DatasetSpec(name="folder", path="leaves"), tmp_path / "cache")
    (tmp_path / "out").mkdir()
    write_description(tmp_path / "out", bare, range(len(bare)), dataset.facts)
    found = json.loads((tmp_path / "out" / "description.json").read_text())
    assert (found["class_counts"], found["border_distance"], found["images"]) == ([0, 0, 0], None, 3)
    for number in range(3):
        picture = np.asarray(loaded(tmp_path / "out" / "labels" / f"{number}.png").convert("RGB"))
        assert {tuple(colour) for colour in picture.reshape(-1, 3)} == {VOID_COLOUR}
