"""Ours beside the published: one protocol or not, and what the interval says."""

from pathlib import Path

import pytest
from scipy import stats

from pixelpick_ray.config.experiment import Experiment, load_experiment
from pixelpick_ray.report.cells import build_cells
from pixelpick_ray.report.published import published_cells
from pixelpick_ray.report.scoreboard import (
    Comparison,
    comparable_cells,
    compare,
    differences,
    elsewhere_table,
    scoreboard_csv,
    scoreboard_table,
)
from tests.support.study import Measure, Study, csv_lines, exact, experiment, matrix

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
CAMVID = "camvid-mobilenet"
ONE = "grid=[{seed: [0, 1, 2], budget: [20]}]"


def shipped(name: str, *overrides: str) -> Experiment:
    return load_experiment(EXPERIMENTS / f"{name}.yaml", overrides)


def compared(study: Study, spec: Experiment, measure: Measure) -> list[Comparison]:
    """The comparisons by the last epoch."""
    study.fill(spec, measure)
    results = study.results(spec)
    return [one for one in compare(results, build_cells(results)) if one.cell.checkpoint == "last"]


def differing(spec: Experiment) -> list[str]:
    """Where the trials differ from the published cells of the same model, strategy and budget."""
    found = {}
    for trial in spec.trials():
        strategy = "" if trial.budget == "full" else trial.acquire.strategy
        model = trial.dataset.name, trial.model.architecture, trial.model.backbone
        found |= dict.fromkeys(differences(trial, spec.evaluate, published_cells()[*model, strategy, trial.budget]))
    return list(found)


@pytest.mark.parametrize("dataset", ["camvid", "cityscapes", "voc"])
@pytest.mark.parametrize("model", ["mobilenet", "resnet50"])
def test_every_published_experiment_is_comparable_in_every_cell(dataset: str, model: str) -> None:
    spec = shipped(f"{dataset}-{model}")
    assert len({trial.budget for trial in spec.trials()}) == 6
    assert differing(spec) == []


FULL = "grid=[{seed: [0], budget: [full]}]"
PRETRAINED = "model.pretrained"
NO_WEIGHTS = "model.pretrained none, published supervised ImageNet"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            "dataset.size=[90, 120]",
            "dataset.size 90 x 120, published 360 x 480; evaluate.size 90 x 120, published 360 x 480",
        ),
        ("evaluate.splits.test={scale: 0.5}", "evaluate.size 180 x 240, published 360 x 480"),
        ("evaluate.report=val", "evaluate.split val, published test"),
        ("dataset.images=92", "dataset.images 92, published 367"),
        ("dataset.split=val", "dataset.split val, published train"),
        ("train.epochs=60", "train.epochs 60, published 50"),
        ("train.batch_size=8", "train.batch_size 8, published 4"),
        ("train.optimizer.lr=1e-3", "train.optimizer.lr 0.001, published 0.0005"),
        ("train.schedule={name: poly}", "train.schedule.name poly, published multistep"),
        (
            "train.augment=null",
            "train.augment.scale none, published 0.5 x 2; train.augment.crop_size none, published 360 x 480",
        ),
        (
            "acquire.initial_pixels=20; acquire.pixels_per_stage=20",
            "acquire.initial_pixels 20, published 10; acquire.pixels_per_stage 20, published 10",
        ),
        ("acquire.pool_fraction=0.1", "acquire.pool_fraction 0.1, published 0.05"),
        ("acquire.pool=chance", "acquire.pool chance, published score"),
        ("acquire.stochastic={passes: 20}", "acquire.stochastic passes 20 vote soft, published none"),
        ("model.pretrained=none", NO_WEIGHTS),
        ("model.pretrained=file:weights/a", "model.pretrained file:weights/a, published supervised ImageNet"),
        ("model.output_stride=8", "model.output_stride 8, published 16"),
        ("oracle={name: erring, rate: 0.1}", "oracle.name erring, published ground_truth"),
        # The same in other words.
        ("model.pretrained=in1k", ""),
        (
            "model.normalise=weights",
            "model.normalise mean 0.485 x 0.456 x 0.406 std 0.229 x 0.224 x 0.225, published dataset",
        ),
        ("dataset={name: camvid}", ""),
        ("dataset={name: camvid, scale: 1.0}", ""),
        ("dataset.images=367", ""),
        ("dataset.split=train", ""),
        ("oracle={name: erring, rate: 0}", ""),
        # How pixels are asked for means nothing to full supervision.
        (f"{FULL}; acquire={{pool_fraction: 0.5, initial_pixels: 3}}; oracle={{name: erring, rate: 0.5}}", ""),
        (f"{FULL}; train.batch_size=8", "train.batch_size 8, published 4"),
    ],
)
def test_every_field_of_the_protocol_is_compared(overrides: str, expected: str) -> None:
    assert "; ".join(differing(shipped(CAMVID, ONE, *overrides.split("; ")))) == expected


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("cityscapes-mobilenet", ["dataset={name: cityscapes, scale: 0.25}"], []),
        ("cityscapes-mobilenet", ["evaluate={splits: {half: {split: val, scale: 0.5}}, report: half}"], []),
        ("camvid-resnet50", [f"{PRETRAINED}=moco_v2"], [NO_WEIGHTS.replace("none", "moco_v2")]),
        (
            "camvid-resnet50",
            ["model.pretrained=none", "model.width=0.5"],
            [NO_WEIGHTS, "model.width 0.5, published none"],
        ),
    ],
)
def test_other_models_and_data_sets_are_compared_too(name: str, overrides: list[str], expected: list[str]) -> None:
    assert differing(shipped(name, ONE, *overrides)) == expected


@pytest.mark.parametrize(
    ("thousandths", "verdict"),
    [
        ((506, 508, 510), "agrees"),
        ((518, 520, 522), "higher"),
        ((486, 488, 490), "lower"),
        ((488,), "too few seeds"),
        ((), "too few seeds"),
    ],
)
def test_the_interval_decides(study: Study, thousandths: tuple[int, ...], verdict: str) -> None:
    measured = {seed: [exact(height)] * 50 for seed, height in enumerate(thousandths)}
    (one,) = compared(study, shipped(CAMVID, ONE), lambda trial: measured.get(trial.seed))
    assert one.verdict == verdict
    if len(thousandths) == 3:
        assert one.difference == pytest.approx(sum(thousandths) / 3000 - 0.508)
        # Both deviations are 0.002: degrees (1/3 + 1/5)^2 / ((1/3)^2 / 2 + (1/5)^2 / 4) = 4.339.
        half = stats.t.ppf(0.975, 4.339) * 0.002 * (1 / 3 + 1 / 5) ** 0.5
        assert (one.high - one.low) / 2 == pytest.approx(half, rel=1e-3)


def test_every_rule_that_chooses_an_epoch_is_compared(study: Study) -> None:
    spec = shipped(CAMVID, ONE)
    epochs = [exact(400), exact(508), *[exact(300)] * 48]
    study.fill(spec, lambda trial: {"test": epochs, "val": epochs[::-1]})
    results = study.results(spec)
    found = {one.cell.checkpoint: one.verdict for one in compare(results, build_cells(results))}
    assert found == {"last": "lower", "best": "agrees", "best_on_val": "lower"}


def test_other_protocols_are_named_and_not_judged(study: Study) -> None:
    (one,) = compared(study, shipped(CAMVID, ONE, "train.epochs=45"), lambda trial: exact(508))
    assert (one.verdict, one.differs_in) == ("not comparable", ("train.epochs 45, published 50",))
    (line,) = csv_lines(scoreboard_csv([one]))
    assert (line["verdict"], line["differs_in"]) == ("not comparable", "train.epochs 45, published 50")
    assert (line["difference"], line["low"], line["high"]) == ("", "", "")
    assert (float(line["published_mean"]), line["published_n"]) == (0.508, "5")


def test_nothing_is_published_for_other_strategies_and_budgets(study: Study) -> None:
    spec = shipped(CAMVID, "grid=[{acquire.strategy: [margin, random], seed: [0, 1], budget: [20, 30]}]")
    found = compared(study, spec, lambda trial: [exact(508)] * 50)
    nothing = [("margin", 30), ("random", 20), ("random", 30)]
    assert [(one.cell.line.strategy, one.cell.budget, one.verdict) for one in found] == [
        ("margin", 20, "agrees"),
        *((*place, "nothing published") for place in nothing),
    ]
    assert list(comparable_cells(found).values()) == [found[0].published]
    found = compared(study, experiment(), lambda trial: matrix(50))
    assert {one.verdict for one in found} == {"nothing published"}
    assert scoreboard_table(study.results(experiment()), found) is None


def test_the_table_says_all_of_it(study: Study) -> None:
    grids = "{seed: [0, 1, 2], budget: [20]}, {train.batch_size: [8], seed: [0], budget: [30, 40]}"
    spec = shipped(CAMVID, f"grid=[{grids}]")
    found = compared(study, spec, lambda trial: [exact(516 + 2 * trial.seed)] * 50)
    table = scoreboard_table(study.results(spec), found)
    assert "deeplabv3plus mobilenetv2_100 on camvid test" in table.caption
    assert "README of the original at 43c2981" in table.caption
    four, eight = (f"train.batch_size={number}, margin" for number in (4, 8))
    assert list(table.rows) == [
        (four, "20", "last", "51.8 ± 0.2", "3", "50.8 ± 0.2", "5", "+1.0", "+0.6 to +1.4", "higher"),
        (eight, "40", "last", "51.6", "1", "53.9 ± 0.7", "5", "-", "-", "not comparable"),
    ]
    assert table.notes[-1] == f"Not comparable, {eight}: train.batch_size 8, published 4."
    assert table.notes[0].startswith("The epoch of the published numbers: not stated")
    assert "Of 1 intervals at 95 %, about 0.05 miss 0 by chance" in table.notes[1]
    assert table.notes[2] == "Nothing is published for the other 1 of our 3 numbers."


def test_other_papers_are_listed_for_their_data_sets_alone(study: Study) -> None:
    table = elsewhere_table(study.results(experiment("dataset={name: voc, long_side: 400}")))
    assert [row[0] for row in table.rows] == ["A2LC"]
    assert table.rows[0][-2:] == ("68.4 ± 0.9", "3")
    assert "a question is a mask, not a pixel" in table.notes[0]
    assert elsewhere_table(study.results(experiment())) is None


def test_a_head_on_frozen_features_stands_beside_all_networks_and_is_comparable_to_none(study: Study) -> None:
    model = "model={backbone: mobilenetv2_100, frozen: true, head: linear}"
    spec = shipped(CAMVID, model, "train=null", "evaluate.when=last", "grid=[{seed: [0, 1], budget: [20]}]")
    study.fill(spec, lambda trial: exact(500 + 2 * trial.seed))
    results = study.results(spec)
    comparisons = compare(results, build_cells(results))
    networks = [(one.published.architecture, one.published.backbone) for one in comparisons if one.published]
    assert networks == [("deeplabv3plus", "mobilenetv2_100"), ("fpn", "resnet50")]
    assert {one.verdict for one in comparisons} == {"not comparable"}
    assert all(one.differs_in[0].startswith("linear head on a frozen mobilenetv2_100") for one in comparisons)
    assert not any("train." in reason for one in comparisons for reason in one.differs_in)
    table = scoreboard_table(results, comparisons)
    assert table is not None
    assert table.header[-1] == "published network"
    assert [row[-1] for row in table.rows] == ["deeplabv3plus mobilenetv2_100", "fpn resnet50"]
