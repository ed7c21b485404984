"""The published numbers, written here a second time by hand, and a reader that refuses damage."""

import tomllib
from collections import Counter
from pathlib import Path

import pytest

from pixelpick_ray.errors import DataError
from pixelpick_ray.report import published
from pixelpick_ray.report.published import OtherResult, PublishedCell, other_results, published_cells

ROOT = Path(__file__).resolve().parents[2]
FEW, MANY = [20, 40, 60, 80, 100, "full"], [10, 20, 30, 40, 50, "full"]

# mIoU and standard deviation in percent by budget, typed from the tables of the original's README.
TABLES = {
    ("camvid", "deeplabv3plus", "mobilenetv2_100"): "50.8 0.2, 53.9 0.7, 55.3 0.5, 55.2 0.7, 55.9 0.1, 58.2 0.6",
    ("camvid", "fpn", "resnet50"): "59.7 0.9, 62.3 0.5, 64.0 0.3, 64.4 0.6, 65.1 0.3, 67.8 0.3",
    ("cityscapes", "deeplabv3plus", "mobilenetv2_100"): "52.0 0.6, 54.7 0.4, 55.5 0.6, 56.1 0.3, 56.5 0.3, 61.4 0.5",
    ("cityscapes", "fpn", "resnet50"): "56.1 0.4, 60.0 0.3, 61.6 0.4, 62.3 0.4, 62.8 0.4, 68.5 0.3",
    ("voc", "deeplabv3plus", "mobilenetv2_100"): "51.7 0.2, 53.9 0.8, 56.7 0.3, 56.9 0.7, 57.2 0.3, 57.9 0.5",
    ("voc", "fpn", "resnet50"): "59.7 0.8, 65.6 0.5, 66.4 0.2, 67.2 0.1, 67.4 0.5, 69.4 0.3",
}


@pytest.mark.parametrize("key", TABLES)
def test_the_numbers_are_those_of_the_original(key: tuple[str, str, str]) -> None:
    cells = [cell for found, cell in published_cells().items() if found[:3] == key]
    found = ", ".join(f"{cell.miou_percent} {cell.std_percent}" for cell in cells)
    assert found == TABLES[key]
    assert [cell.budget for cell in cells] == (MANY if key[0] == "voc" else FEW)
    assert {cell.n for cell in cells} == {3 if key[0] == "voc" else 5}


def test_there_are_thirty_six_cells_and_every_file_is_packaged() -> None:
    assert len(published_cells()) == 36
    assert {key[:3] for key in published_cells()} == set(TABLES)
    assert {cell.strategy for cell in published_cells().values() if cell.budget != "full"} == {"margin"}
    pixels = {"camvid": 360 * 480, "cityscapes": 256 * 512}
    compared = [one for one in published_cells().values() if one.budget != "full" and one.dataset in pixels]
    assert len(compared) == 20
    for cell in compared:
        assert cell.share_percent == pytest.approx(100 * cell.budget / pixels[cell.dataset], abs=6e-4)
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = ROOT / "pixelpick_ray"
    packaged = {path for pattern in patterns["pixelpick_ray"] for path in package.glob(pattern)}
    assert {path.name for path in packaged} >= {"pixelpick.csv", "others.csv", "protocols.yaml"}
    assert set((package / "report" / "published").iterdir()) <= packaged


def test_numbers_of_other_papers_say_why_they_are_no_counterparts() -> None:
    found = {(one.work, one.dataset, one.miou_percent, one.std_percent, one.n) for one in other_results()}
    others = {("A2LC", "cityscapes", 60.8, 0.7, 3), ("A2LC", "cityscapes", 70.5, 0.3, 3), ("A2LC", "voc", 68.4, 0.9, 3)}
    others |= {("RIPU, pixel mode", "cityscapes", miou, None, None) for miou in (65.5, 66.1)}
    others |= {("EquAL+", "camvid", 66.3, None, None), ("DEAL", "camvid", 51.6, None, None)}
    others |= {("CEREALS", "cityscapes", 59.9, None, None), ("ScribbleSup", "voc", 63.1, None, None)}
    assert found > others
    assert Counter(one.dataset for one in other_results()) == {"camvid": 33, "cityscapes": 50, "voc": 9}
    text = published._packaged("others.csv").replace(other_results()[2].caveat, "", 1)
    with pytest.raises(DataError, match="line 4: caveat"):
        published._read("others.csv", text, OtherResult)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("50.8", "508", r"line 2: miou_percent: .* less than or equal to 100"),
        (",n,", ",runs,", r"line 2: n: Field required; runs: Extra inputs are not permitted"),
        (",margin,20,", ",,20,", r"line 2: .*budget 20 with strategy ''"),
        (",margin,40,", ",margin,many,", r"line 3: budget"),
        (",5,best epoch", ",1,best epoch", r"line 2: n: .* greater than or equal to 2"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(old: str, new: str, message: str) -> None:
    text = published._packaged("pixelpick.csv").replace(old, new, 1)
    with pytest.raises(DataError, match=message):
        published._read("pixelpick.csv", text, PublishedCell)
