"""The commands `report` and `evaluate`: numbers explained and measured again, labels priced, and what is refused."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pixelpick_ray.config.trial import DatasetSpec, SizeSpec
from tests.support.experiments import experiment_text
from tests.support.launch import launch, launch_without_torch

pytestmark = [pytest.mark.training, pytest.mark.whole_report]

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
    assert launch(folder, "run", "tiny.yaml", "--local", "--keep-weights", "all").status == 0
    return folder


def test_one_number_is_explained_without_torch(place: Path) -> None:
    told = launch_without_torch(place, "report", "tiny.yaml", "--explain", "strategy=margin,budget=20")
    assert told.startswith("tiny: margin at 20 pixels per image, mIoU ")
    folders = [Path(word) for word in told.split() if word.startswith("store/")]
    assert [folder.parts[1] for folder in folders] == ["fit", "evaluation", "pick", "pick"]
    assert all((place / folder / "manifest.json").is_file() for folder in folders)


@pytest.mark.usefixtures("undrawn")
def test_labels_are_priced_and_pictures_are_as_many_as_asked_for(place: Path) -> None:
    (place / "costs.yaml").write_text("{seconds_per_pixel: 90, money_per_hour: 20, currency: EUR}")
    for out, *options in (("with", "--costs", "costs.yaml"), ("without", "--pictures", "0")):
        assert launch(place, "report", "tiny.yaml", "--out", out, *options).status == 0
    shown, hidden = ((place / name / "index.html").read_text(encoding="utf-8") for name in ("with", "without"))
    assert 'data-axis="money (EUR)"' in shown
    assert 'data-axis="money (EUR)"' not in hidden
    assert "data:image/jpeg" in shown
    assert "data:image/jpeg" not in hidden
    assert "| margin | 20 | 80 | 2 | 40 |" in (place / "with" / "table.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_pick_is_named_on_the_terminal_and_in_the_report(place: Path) -> None:
    shutil.copytree(place / "store", place / "harmed")
    path = next((place / "harmed" / "pick").glob("*/statistics.json"))
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    done = launch(place, "report", "tiny.yaml", "--store", "harmed", "--out", "named", "--pictures", "0")
    where = f"pick/{path.parent.name}"
    assert done.status == 1
    how = "statistics.json: other content than was published"
    assert f"DAMAGED {where}: {how} (the next run makes it again)" in done.out
    assert done.err.startswith("error: run the experiment again, which makes the damaged results anew")
    text = (place / "named" / "table.md").read_text(encoding="utf-8")
    assert f"| {where} | {how} |" in text


@pytest.mark.usefixtures("undrawn")
def test_a_store_without_the_experiment_is_pointed_out(place: Path) -> None:
    outcome = launch(place, "report", "tiny.yaml", "--store", "elsewhere", "--out", "nothing")
    assert outcome.status == 0
    assert "nothing of it is stored in elsewhere; give the folder of the results with --store DIR" in outcome.out
    assert "missing 0/1" in (place / "nothing" / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("report tiny.yaml", "report: give --out DIR for the report, or --explain CELL"),
        ("report tiny.yaml --explain strategy=margin", "2 cells are meant; say which by budget: 10, 20"),
        ("report tiny.yaml --explain strategy=margni", "there is no such cell"),
        ("report tiny.yaml --explain margin", "'margin' is not NAME=VALUE with one of the names experiment, dataset"),
        ("report tiny.yaml --out out --costs nowhere.yaml", "nowhere.yaml: cannot be read"),
        ("report tiny.yaml --out tiny.yaml", "--out"),
        ("evaluate x.pt --dataset scenes --split val", "x.pt: no such file; give the weights.safetensors"),
        ("evaluate x.pt --dataset scenes --split tset", "split: scenes has no 'tset'; it has"),
        ("evaluate x.pt --dataset scene --split val", "unknown data set 'scene'; known: camvid"),
        ("evaluate x.pt --dataset scenes --split val --size 48", "--size: '48' is not a size; give HEIGHTx"),
    ],
)
def test_what_cannot_be_reported_or_evaluated_is_refused(words: str, told: str, place: Path) -> None:
    outcome = launch(place, *words.split())
    assert outcome.status == 2
    assert told in outcome.err
    assert not (place / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_stored_weights_measure_what_the_experiment_measured(place: Path) -> None:
    assert launch(place, "report", "tiny.yaml", "--out", "report", "--pictures", "0").status == 0
    with open(place / "report" / "rows.csv", encoding="utf-8") as file:
        reported = next(row for row in csv.DictReader(file) if row["metric"] == "miou")
    weights = place / "store" / "fit" / reported["fit_key"] / "weights.safetensors"
    where = [str(weights), "--dataset", "scenes", "--split", "val", "--size", "32x48"]
    measured = launch(place, "evaluate", *where, "--json")
    assert measured.status == 0, measured.err
    assert json.loads(measured.out)["miou"] == pytest.approx(float(reported["value"]), abs=1e-9)
    assert "images of scenes val at 32 x 48 pixels, normalised with mean" in measured.err
    assert "mIoU is over the classes that occur" in measured.err


def test_a_data_set_is_measured_at_the_published_size_unless_another_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def spy(path: Path, dataset: DatasetSpec, split: str, **options: object) -> tuple[tuple[str, ...], object]:
        found.append(dataset.size_spec())
        return ("a", "b"), np.eye(2, dtype=np.int64)

    monkeypatch.setattr("pixelpick_ray.engine.checkpoint.evaluate_checkpoint", spy)
    for words in ("cityscapes", "cityscapes --scale 0.25", "camvid", "voc"):
        assert launch(tmp_path, "evaluate", "x.zip", "--dataset", *words.split(), "--split", "val").status == 0
    assert found == [SizeSpec(size=(512, 1024)), SizeSpec(scale=0.25), SizeSpec(), SizeSpec()]
