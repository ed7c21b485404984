"""What a run refuses is refused by `plan` and `submit` too, so that no job waits for hours to end with status 2; and
overrides that would change nothing are refused.
"""

from pathlib import Path

import pytest

from pixelpick_ray.config.experiment import parse_experiment
from pixelpick_ray.errors import SpecError
from tests.support.data_folders import write_folder
from tests.support.experiments import WRONG, experiment_text
from tests.support.launch import launch
from tests.test_wrong_inputs import FOLDER, SCENES

COMMANDS = {"plan": ("plan", "mine.yaml"), "submit": ("submit", "mine.yaml", "--to", "slurm", "--dry-run")}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(SCENES)
    return tmp_path


@pytest.mark.parametrize("command", [*COMMANDS, "run"])
def test_a_split_without_labels_is_refused_where_the_data_are(place: Path, command: str) -> None:
    write_folder(place / "data")
    description = place / "data" / "leaves" / "dataset.yaml"
    (place / "mine.yaml").write_text(FOLDER)
    arguments = COMMANDS.get(command, ("run", "mine.yaml", "--local"))
    if command != "run":
        assert launch(place, *arguments).status == 0
    text = description.read_text()
    assert "    labels: val/labels\n" in text
    description.write_text(text.replace("    labels: val/labels\n", ""))
    done = launch(place, *arguments)
    assert done.status == 2
    assert "evaluate.splits: split 'val' of folder has no label maps, nothing can be measured on it" in done.err


def test_no_data_refuse_nothing_before_a_run(place: Path) -> None:
    (place / "mine.yaml").write_text(FOLDER)
    for arguments in COMMANDS.values():
        assert launch(place, *arguments).status == 0


# Overrides of what a grid varies

VARIED = experiment_text(
    "varied",
    dataset="{name: scenes, size: [32, 48]}",
    train="{epochs: 2, optimizer: {name: adam, lr: 2e-3}, augment: {hflip: 0.5}}",
    evaluate="{splits: {val: {}}, report: val}",
    grid="""
  - {acquire.strategy: [margin, random], dataset.images: [4, 5], train.augment: [null, {}], budget: [10]}
  - {seed: [0], budget: [full]}""",
)


@pytest.mark.parametrize("case", WRONG["varied"], ids=lambda case: case["override"])
def test_an_override_of_what_a_grid_varies_is_refused_with_the_way_out(case: dict[str, str]) -> None:
    with pytest.raises(SpecError) as caught:
        parse_experiment(VARIED, where="varied.yaml", overrides=[case["override"]])
    assert str(caught.value) == f"varied.yaml: {case['told']}"


@pytest.mark.parametrize(
    "overrides",
    [
        ["dataset={name: scenes, size: [16, 24]}"],  # says nothing of what is varied
        ["acquire={initial_pixels: 5, pixels_per_stage: 5}"],
        ["train.epochs=3"],
        ["grid=[{acquire.strategy: [margin], budget: [10]}]", "train.augment.hflip=0.25"],
        ["acquire.strategy=entropy", "grid=[{budget: [10]}]"],
    ],
    ids=str,
)
def test_other_overrides_are_taken(overrides: list[str]) -> None:
    before = parse_experiment(VARIED, where="varied.yaml")
    assert parse_experiment(VARIED, where="varied.yaml", overrides=overrides).trials() != before.trials()


# Numbers of things


def test_one_is_not_plural(place: Path) -> None:
    done = launch(place, "plan", "mine.yaml", "--set", "grid=[{seed: [0], budget: [10]}]")
    assert "1 stage for budget 10" in done.out
    assert "1 trial in 1 chain: 1 stage; run one by one, the trials would train 1; 0 are shared" in done.out
    assert "0 of 1 stage stored, 1 to train, 2 epochs" in done.out
