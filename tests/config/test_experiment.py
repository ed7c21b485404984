"""Experiment files: what is accepted, what it expands to, and what a wrong one is told."""

import re
from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.config.experiment import Experiment, dump_experiment, load_experiment, parse_experiment
from pixelpick_ray.config.trial import EvaluatedSpec, MultistepSpec, SizeSpec
from pixelpick_ray.errors import SpecError
from tests.support.experiments import WRONG


def parse(text: str, *overrides: str) -> Experiment:
    return parse_experiment(text, where="camvid.yaml", overrides=overrides)


def problem(text: str, *overrides: str) -> str:
    """What the user is told."""
    with pytest.raises(SpecError) as caught:
        parse(text, *overrides)
    return str(caught.value)


def test_the_file_of_the_interface_is_read_as_written_and_has_30_trials(camvid_yaml: str) -> None:
    experiment = parse(camvid_yaml)
    assert experiment.dataset.size == (360, 480)
    optimizer, schedule, augment = (getattr(experiment.train, name) for name in ("optimizer", "schedule", "augment"))
    assert (optimizer.lr, optimizer.weight_decay) == (0.0005, 0.0002)
    assert schedule == MultistepSpec(name="multistep", milestones=(21, 41), gamma=0.1)
    assert (augment.jitter.brightness, augment.jitter.hue, augment.blur.sigma) == (0.8, 0.2, (0.1, 2.0))
    assert experiment.evaluate.splits == {"test": EvaluatedSpec(size=(360, 480)), "val": EvaluatedSpec()}
    trials = experiment.trials()
    wanted: list[tuple[int, int | str]] = [(seed, budget) for seed in range(5) for budget in (20, 40, 60, 80, 100)]
    wanted += [(seed, "full") for seed in range(5)]
    assert [(trial.seed, trial.budget) for trial in trials] == wanted
    assert [trial.num_stages for trial in trials[:5]] == [2, 4, 6, 8, 10]
    assert trials[-1].num_stages == 1
    assert len(parse(camvid_yaml, "train.epochs=42").trials()) == 30  # the last epoch may follow the last milestone


def test_every_way_to_write_a_number_is_a_number(camvid_yaml: str) -> None:
    for written in ("5e-4", "5E-4", "0.5e-3", ".5e-3", "+5e-4", "5.e-4", "0.0005"):
        assert parse(camvid_yaml, f"train.optimizer.lr={written}").train.optimizer.lr == 0.0005
    whole, fraction = (parse(camvid_yaml, f"train.optimizer.lr={lr}") for lr in ("1", "1.0"))
    assert whole.trials() == fraction.trials()
    assert dump_experiment(whole) == dump_experiment(fraction)


@pytest.mark.parametrize("case", WRONG["camvid"], ids=lambda case: case["override"])
def test_what_is_wrong_is_told_in_one_line(camvid_yaml: str, case: dict[str, str]) -> None:
    assert problem(camvid_yaml, case["override"]) == f"camvid.yaml: {case['told']}"


def test_a_file_is_read_as_yaml_has_it_and_overrides_replace_values_in_order(camvid_yaml: str, tmp_path: Path) -> None:
    """Its own keys win over those of an anchor; code and what is no text are refused, with the name of the file."""
    path = tmp_path / "mine.yaml"
    path.write_text(camvid_yaml.replace("train:\n", "train:\n  <<: {epochs: 7, precision: bf16}\n"), encoding="utf-8")
    overrides = ["train.batch_size=2", "train.schedule={name: constant}", "train.batch_size=3", "train.augment=null"]
    train = load_experiment(path, overrides).train
    assert (train.epochs, train.precision, train.batch_size) == (50, "fp32", 3)
    assert (train.schedule.name, train.augment) == ("constant", None)
    plain = camvid_yaml.replace("  precision: fp32 ", "  ").replace("train:\n", "train:\n  <<: {precision: bf16}\n")
    assert parse(plain).train.precision == "bf16"
    for content in (b"\xff\xfe\x00", b"a: !!python/name:os.system", b"a: \x00"):
        path.write_bytes(content)
        with pytest.raises(SpecError, match=r"mine\.yaml: "):
            load_experiment(path)
    with pytest.raises(SpecError, match=r"absent\.yaml.*give the path"):
        load_experiment(tmp_path / "absent.yaml")


def test_grids_reach_any_field_and_seeds_default_to_zero(camvid_yaml: str) -> None:
    grid = (
        "grid=[{budget: [10], train.optimizer: [{name: sgd, lr: 1}, {name: adam, lr: 1}], dataset.images: [null, 5]},"
        "{budget: [20], acquire.pixels_per_stage: [5], model.backbone: [resnet50], train.augment.blur: [null]}]"
    )
    trials = parse(camvid_yaml, grid).trials()
    seen = [(trial.train.optimizer.name, trial.dataset.images, trial.num_stages, trial.seed) for trial in trials]
    first_grid = [(name, images, 1, 0) for name in ("sgd", "adam") for images in (None, 5)]
    assert seen == [*first_grid, ("adam", None, 3, 0)]
    assert trials[-1].model.backbone == "resnet50"
    assert trials[-1].train.augment.blur is None
    both = parse(camvid_yaml, "grid=[{budget: [20], train.decoder: [dense, sparse]}]").trials()
    assert [trial.train.decoder for trial in both] == ["dense", "sparse"]


def test_what_is_dumped_is_read_back_equal(camvid_yaml: str) -> None:
    quoted = ["name='1e5'", "title='5e-4: \"ü\" #'"]
    for overrides in ([], quoted, ["train.optimizer.lr=1e-9", "train.augment=null", "train.decoder=sparse"]):
        experiment = parse(camvid_yaml, *overrides)
        again = parse(dump_experiment(experiment))
        assert again == experiment
        assert again.trials() == experiment.trials()
        assert dump_experiment(again) == dump_experiment(experiment)
    assert "decoder" not in dump_experiment(parse(camvid_yaml, "train.decoder=dense"))  # the usual one


def test_identity_ignores_grid_and_title_only(camvid_yaml: str) -> None:
    identity = parse(camvid_yaml).identity()
    for same in ("title=other", "grid=[{seed: [9], budget: [10]}]", "train.decoder=dense"):
        assert parse(camvid_yaml, same).identity() == identity
    others = ["name=other", "dataset.size=[180, 240]", "model.backbone=resnet50", "train.epochs=51"]
    others += ["acquire.strategy=entropy", "evaluate.when=last", "evaluate.report=val"]
    others += ["evaluate.splits.val={scale: 0.5}", "train.decoder=sparse"]
    identities = {parse(camvid_yaml, other).identity() for other in others}
    assert len(identities | {identity}) == len(others) + 1


def test_distinct_points_of_all_grids_are_the_trials(camvid_yaml: str) -> None:
    lr = "train.optimizer.lr: [1, 1.0]"
    grids = f"grid=[{{budget: [10, 20, 10], {lr}}}, {{seed: [1, 0, 1], budget: [20, full], {lr}}}, {{budget: [10]}}]"
    trials = parse(camvid_yaml, grids).trials()
    found = [(trial.seed, trial.budget, trial.train.optimizer.lr) for trial in trials]
    wanted = [(0, 10, 1.0), (0, 20, 1.0), (1, 20, 1.0), (1, "full", 1.0), (0, "full", 1.0), (0, 10, 5e-4)]
    assert found == wanted


@pytest.mark.parametrize(
    ("size", "native", "prepared"),
    [
        ({}, (360, 480), (360, 480)),
        ({"size": (90, 120)}, (360, 480), (90, 120)),
        ({"scale": 0.25}, (1024, 2048), (256, 512)),
        ({"scale": 0.1}, (30, 70), (3, 7)),  # 70 * 0.1 is a little more than 7, 30 * 0.1 is 3
        ({"scale": 0.29}, (100, 100), (29, 29)),  # 100 * 0.29 is a little less than 29 in binary
        ({"scale": 0.001}, (100, 100), (1, 1)),
        ({"long_side": 400}, (375, 500), (300, 400)),
        ({"long_side": 400}, (500, 334), (400, 267)),
        ({"long_side": 400}, (281, 500), (224, 400)),
    ],
)
def test_sizes_are_floored_and_never_zero(size: dict[str, Any], native: Any, prepared: Any) -> None:
    assert SizeSpec.model_validate(size).prepared_size(*native) == prepared


FPN = "model={architecture: fpn, backbone: resnet50}"


def test_what_fpn_has_by_default_and_cannot_have(camvid_yaml: str) -> None:
    deeplab, fpn = parse(camvid_yaml), parse(camvid_yaml, FPN)
    assert (deeplab.model.output_stride, deeplab.model.dropout) == (16, (0.5, 0.5, 0.2))
    assert (fpn.model.output_stride, fpn.model.dropout) == (8, ())
    assert parse(dump_experiment(fpn)).model == fpn.model
    for change, told in {
        "acquire.stochastic={}": r"acquire\.stochastic: needs dropout, without which.*model\.feature_dropout, e\.g",
        "train.decoder=sparse": r"train\.decoder: sparse is not supported for fpn.*use architecture deeplabv3plus",
    }.items():
        assert re.search(rf"camvid\.yaml: {told}", problem(camvid_yaml, FPN, change, "grid=[{budget: [20]}]"))
        full = parse(camvid_yaml, FPN, change, "grid=[{budget: [full]}]")  # which picks nothing and is trained densely
        assert len(full.trials()) == 1
    spec = parse(camvid_yaml, FPN, "model.feature_dropout=0.2", "acquire.stochastic={}", "grid=[{budget: [20]}]")
    assert (spec.acquire.stochastic.passes, spec.acquire.stochastic.vote) == (20, "soft")


def test_one_split_can_be_evaluated_under_several_names(camvid_yaml: str) -> None:
    splits = "{test: {}, test_half: {split: test, scale: 0.5}, val: {}}"
    evaluate = parse(camvid_yaml, f"evaluate.splits={splits}").evaluate
    assert [evaluate.split_of(name) for name in evaluate.splits] == ["test", "test", "val"]
    assert evaluate.held_out == ("val",)
