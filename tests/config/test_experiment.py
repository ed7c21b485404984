"""Experiment files: what is accepted, what it expands to, and what a wrong one is told."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    assert experiment.train.optimizer.lr == 0.0005
    assert experiment.train.optimizer.weight_decay == 0.0002
    assert experiment.train.schedule == MultistepSpec(name="multistep", milestones=(21, 41), gamma=0.1)
    augment = experiment.train.augment
    assert augment is not None
    assert augment.jitter is not None
    assert augment.blur is not None
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


def test_fields_that_a_grid_may_vary_are_listed(camvid_yaml: str) -> None:
    told = problem(camvid_yaml, "grid=[{budget: [10]}, {sed: [0], budget: [10]}]")
    assert told.startswith("camvid.yaml: grid[1].sed: no such field; allowed: budget, dataset.size, ")
    assert {"seed", "train.optimizer.lr", "train.optimizer"} <= set(re.split("; |, ", told))


def test_all_problems_are_told_at_once_each_with_the_file(camvid_yaml: str) -> None:
    lines = problem(camvid_yaml, "train.epochs=x", "model.output_stride=7", "acquire.pol=1").splitlines()
    where = ["model.output_stride", "train.epochs", "acquire.pol"]
    assert [line[: line.index(": ", 13)] for line in lines] == [f"camvid.yaml: {path}" for path in where]
    lines = problem("name: x").splitlines()
    assert lines == [f"camvid.yaml: {key}: is required" for key in ("dataset", "model", "evaluate", "grid")]


def test_parts_may_be_shared_by_anchors(camvid_yaml: str) -> None:
    anchored = camvid_yaml.replace("train:\n", "train:\n  <<: {epochs: 7, batch_size: 8}\n")
    train = parse(anchored).train
    assert (train.epochs, train.batch_size) == (50, 4)  # its own keys win, as YAML has it
    assert parse(anchored.replace("  batch_size: 4 ", "  ")).train.batch_size == 8


def test_text_that_is_no_experiment_is_refused_with_the_file(camvid_yaml: str, tmp_path: Path) -> None:
    recursive, code = "a: &a [*a]", "a: !!python/name:os.system"
    for text in ("", "[1]", "just words", "a: [", recursive, "? [1]\n: 2\n", "a: \x00", code):
        assert problem(text).startswith("camvid.yaml: ")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "mine.yaml").write_text(camvid_yaml.replace("epochs: 50", "epochs: many"), encoding="utf-8")
    for told in (r"absent\.yaml.*give the path", r"binary\.yaml", r"^mine\.yaml: train\.epochs: "):
        with pytest.raises(SpecError, match=told):
            load_experiment(tmp_path / (told[: told.index("\\")].strip("^") + ".yaml"))


def test_overrides_replace_values_in_order(camvid_yaml: str) -> None:
    overrides = ["train.epochs=2", "train.schedule={name: constant}", "train.epochs=3", "train.augment=null"]
    grid = "grid=[{seed: [0], budget: [10]}]"
    experiment = parse(camvid_yaml, *overrides, grid, "oracle.name=ground_truth")
    assert experiment.train.epochs == 3
    assert experiment.train.schedule.name == "constant"
    assert experiment.train.augment is None
    assert [(trial.seed, trial.budget) for trial in experiment.trials()] == [(0, 10)]


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
    assert trials[-1].train.augment is not None
    assert trials[-1].train.augment.blur is None


def test_what_is_dumped_is_read_back_equal(camvid_yaml: str) -> None:
    quoted = ["name='1e5'", "title='5e-4: \"ü\" #'"]
    for overrides in ([], quoted, ["train.optimizer.lr=1e-9", "train.augment=null", "train.decoder=sparse"]):
        experiment = parse(camvid_yaml, *overrides)
        again = parse(dump_experiment(experiment))
        assert again == experiment
        assert again.trials() == experiment.trials()
        assert dump_experiment(again) == dump_experiment(experiment)


def test_identity_ignores_grid_and_title_only(camvid_yaml: str) -> None:
    identity = parse(camvid_yaml).identity()
    for same in ("title=other", "grid=[{seed: [9], budget: [10]}]", "train.decoder=dense"):
        assert parse(camvid_yaml, same).identity() == identity
    others = ["name=other", "dataset.size=[180, 240]", "model.backbone=resnet50", "train.epochs=51"]
    others += ["acquire.strategy=entropy", "evaluate.when=last", "evaluate.report=val"]
    others += ["evaluate.splits.val={scale: 0.5}", "train.decoder=sparse"]
    identities = {parse(camvid_yaml, other).identity() for other in others}
    assert len(identities | {identity}) == len(others) + 1


GRIDS = st.lists(
    st.fixed_dictionaries(
        {"budget": st.lists(st.sampled_from([10, 20, 30, "full"]), min_size=1, max_size=4)},
        optional={
            "seed": st.lists(st.integers(0, 2), min_size=1, max_size=4),
            "acquire.strategy": st.lists(st.sampled_from(["margin", "random"]), min_size=1, max_size=3),
            "train.optimizer.lr": st.lists(st.sampled_from([5e-4, 1, 1.0]), min_size=1, max_size=2),
        },
    ),
    min_size=1,
    max_size=3,
)


@given(grids=GRIDS)
def test_distinct_points_of_all_grids_are_the_trials(grids: list[dict[str, list[Any]]]) -> None:
    text = (
        "name: x\ndataset: {name: scenes}\nmodel: {backbone: b}\nevaluate: {splits: {val: {}}, report: val}\n"
        "train: {epochs: 1, optimizer: {name: adam, lr: 5e-4}}\n"
    )
    default = {"budget": [None], "seed": [0], "acquire.strategy": ["margin"], "train.optimizer.lr": [5e-4]}
    points = [point for grid in grids for point in itertools.product(*{**default, **grid}.values())]
    trials = parse(text, f"grid={grids}").trials()
    found = [(trial.budget, trial.seed, trial.acquire.strategy, trial.train.optimizer.lr) for trial in trials]
    assert len(found) == len(set(found))
    assert set(found) == set(points)


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


def test_what_a_network_has_by_default_depends_on_its_architecture(camvid_yaml: str) -> None:
    deeplab, fpn = (
        parse(camvid_yaml, f"model={{architecture: {name}, backbone: resnet50}}").model
        for name in ("deeplabv3plus", "fpn")
    )
    assert (deeplab.output_stride, deeplab.dropout) == (16, (0.5, 0.5, 0.2))
    assert (fpn.output_stride, fpn.dropout) == (8, ())
    text = dump_experiment(parse(camvid_yaml, "model={architecture: fpn, backbone: resnet50}"))
    assert parse_experiment(text, where="again").model == fpn


FPN = "model={architecture: fpn, backbone: resnet50}"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "acquire.stochastic={}",
            r"acquire\.stochastic: every pass would be the same.*model\.feature_dropout, e\.g\. 0\.2",
        ),
        ("train.decoder=sparse", r"train\.decoder: fpn normalises over whole images.*use architecture deeplabv3plus"),
    ],
)
def test_what_fpn_cannot_have_is_refused(camvid_yaml: str, change: str, told: str) -> None:
    assert re.search(rf"camvid\.yaml: {told}", problem(camvid_yaml, FPN, change, "grid=[{budget: [20]}]"))
    parse(camvid_yaml, FPN, change, "grid=[{budget: [full]}]")  # which picks nothing and is trained densely
    spec = parse(camvid_yaml, FPN, "model.feature_dropout=0.2", "acquire.stochastic={}", "grid=[{budget: [20]}]")
    assert spec.acquire.stochastic is not None
    assert (spec.acquire.stochastic.passes, spec.acquire.stochastic.vote) == (20, "soft")


def test_dense_is_what_an_experiment_without_decoder_is(camvid_yaml: str) -> None:
    assert "decoder" not in dump_experiment(parse(camvid_yaml, "train.decoder=dense"))
    both = parse(camvid_yaml, "grid=[{budget: [20], train.decoder: [dense, sparse]}]").trials()
    assert [trial.train.decoder for trial in both] == ["dense", "sparse"]


def test_one_split_can_be_evaluated_under_several_names(camvid_yaml: str) -> None:
    splits = "{test: {}, test_half: {split: test, scale: 0.5}, val: {}}"
    evaluate = parse(camvid_yaml, f"evaluate.splits={splits}").evaluate
    assert [evaluate.split_of(name) for name in evaluate.splits] == ["test", "test", "val"]
    assert evaluate.held_out == ("val",)
