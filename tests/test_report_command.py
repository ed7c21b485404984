"""The command `report`: one number explained, labels priced, pictures left out, and what is refused."""

import shutil
from pathlib import Path

import pytest

from tests.support.experiments import experiment_text
from tests.support.launch import launch, launch_without_torch

pytestmark = pytest.mark.whole_report

TEXT = experiment_text(
    model="{backbone: test_resnet, pretrained: none, dropout: [0.0, 0.0, 0.0]}",
    train="{epochs: 1, batch_size: 4, optimizer: {name: adam, lr: 2e-3, backbone_lr_factor: 1.0}}",
    evaluate="{splits: {val: {}}, report: val}",
    grid="[{acquire.strategy: [margin, random], budget: [10, 20]}]",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small study that was run."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yaml").write_text(TEXT)
    assert launch(folder, "run", "tiny.yaml", "--local").status == 0
    return folder


def test_one_number_is_explained_without_torch(place: Path) -> None:
    told = launch_without_torch(place, "report", "tiny.yaml", "--explain", "strategy=margin,budget=20")
    assert told.startswith("tiny: margin at 20 pixels per image, mIoU ")
    folders = [Path(word) for word in told.split() if word.startswith("store/")]
    assert [folder.parts[1] for folder in folders] == ["fit", "evaluation", "pick", "pick"]
    assert all((place / folder / "manifest.json").is_file() for folder in folders)


def test_labels_are_priced_and_pictures_are_as_many_as_asked_for(place: Path) -> None:
    (place / "costs.yaml").write_text("{seconds_per_pixel: 90, money_per_hour: 20, currency: EUR}")
    launch_without_torch(place, "report", "tiny.yaml", "--out", "with", "--costs", "costs.yaml")
    launch_without_torch(place, "report", "tiny.yaml", "--out", "without", "--pictures", "0")
    shown, hidden = ((place / name / "index.html").read_text(encoding="utf-8") for name in ("with", "without"))
    assert 'data-axis="money (EUR)"' in shown
    assert 'data-axis="money (EUR)"' not in hidden
    assert "data:image/jpeg" in shown
    assert "data:image/jpeg" not in hidden
    assert "| margin | 20 | 80 | 2 | 40 |" in (place / "with" / "table.md").read_text(encoding="utf-8")


def test_a_damaged_pick_is_named_on_the_terminal_and_in_the_report(place: Path) -> None:
    shutil.copytree(place / "store", place / "harmed")
    path = next((place / "harmed" / "pick").glob("*/statistics.json"))
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    done = launch(place, "report", "tiny.yaml", "--store", "harmed", "--out", "named", "--pictures", "0")
    where = f"pick/{path.parent.name}"
    assert done.status == 1
    how = "statistics.json: other content than was published"
    assert f"DAMAGED {where}: {how} (the next run makes it again)" in done.out
    assert done.err.startswith("error: the report lacks what is damaged; run the experiment again")
    text = (place / "named" / "table.md").read_text(encoding="utf-8")
    assert f"| {where} | {how} |" in text


def test_a_store_without_the_experiment_is_pointed_out(place: Path) -> None:
    outcome = launch(place, "report", "tiny.yaml", "--store", "elsewhere", "--out", "nothing")
    assert outcome.status == 0
    assert "nothing of it is stored in elsewhere; give the folder of the results with --store DIR" in outcome.out
    assert "missing 0/1" in (place / "nothing" / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "report: give --out DIR for the report, or --explain CELL"),
        ("--explain strategy=margin", "2 cells are meant; say which by budget: 10, 20"),
        ("--explain strategy=margni", "there is no such cell"),
        ("--explain margin", "'margin' is no NAME=VALUE with one of the names experiment, dataset"),
        ("--out out --costs nowhere.yaml", "nowhere.yaml: cannot be read"),
        ("--out tiny.yaml", "--out"),
    ],
)
def test_what_cannot_be_reported_is_refused(words: str, told: str, place: Path) -> None:
    outcome = launch(place, "report", "tiny.yaml", *words.split())
    assert outcome.status == 2
    assert told in outcome.err
    assert not (place / "out").exists()
