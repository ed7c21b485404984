"""The command `evaluate`: stored weights measured again give what their experiment measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from pixelpick_ray.config.trial import DatasetSpec, SizeSpec
from tests.support.experiments import experiment_text
from tests.support.launch import launch

pytestmark = pytest.mark.training

TEXT = experiment_text(
    model="{backbone: test_resnet, pretrained: none, dropout: [0.0, 0.0, 0.0]}",
    train="{epochs: 1, batch_size: 4, optimizer: {name: adam, lr: 2e-3, backbone_lr_factor: 1.0}}",
    evaluate="{splits: {val: {}}, report: val}",
)


def test_stored_weights_measure_what_the_experiment_measured(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TEXT)
    assert launch(tmp_path, "run", "tiny.yaml", "--local", "--keep-weights", "all").status == 0
    assert launch(tmp_path, "report", "tiny.yaml", "--out", "report").status == 0
    rows = [line.split(",") for line in (tmp_path / "report" / "rows.csv").read_text().splitlines()]
    column = {name: at for at, name in enumerate(rows[0])}
    (reported,) = [float(row[column["value"]]) for row in rows[1:] if row[column["metric"]] == "miou"]
    (weights,) = (tmp_path / "store" / "fit").glob("*/weights.safetensors")
    where = [str(weights), "--dataset", "scenes", "--split", "val", "--size", "32x48"]
    measured = launch(tmp_path, "evaluate", *where, "--json")
    assert measured.status == 0, measured.err
    assert json.loads(measured.out)["miou"] == pytest.approx(reported, abs=1e-9)
    assert "images of scenes val at 32 x 48 pixels, normalised with mean" in measured.err
    assert "mIoU is over the classes that occur" in measured.err


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("--dataset cityscapes", {"size": (512, 1024)}),
        ("--dataset cityscapes --scale 0.25", {"scale": 0.25}),
        ("--dataset camvid", {}),
        ("--dataset voc", {}),
    ],
)
def test_a_data_set_is_measured_at_the_published_size_unless_another_is_given(
    words: str, size: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def spy(path: Path, dataset: DatasetSpec, split: str, **options: object) -> tuple[tuple[str, ...], object]:
        found.append(dataset.size_spec())
        return ("a", "b"), np.eye(2, dtype=np.int64)

    monkeypatch.setattr("pixelpick_ray.engine.checkpoint.evaluate_checkpoint", spy)
    assert launch(tmp_path, "evaluate", "x.zip", *words.split(), "--split", "val").status == 0
    assert found == [SizeSpec(**size)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--dataset scenes --split val", "x.pt: no such file; give the weights.safetensors"),
        ("--dataset scenes --split tset", "split: scenes has no 'tset'; it has"),
        ("--dataset scene --split val", "unknown data set 'scene'; known: camvid"),
        ("--dataset scenes --split val --size 48", "--size: '48' is no size; give HEIGHTx"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(words: str, told: str, tmp_path: Path) -> None:
    outcome = launch(tmp_path, "evaluate", "x.pt", *words.split())
    assert outcome.status == 2
    assert told in outcome.err
