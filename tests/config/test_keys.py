"""Keys: results that would differ have different keys, others share one, and no key moves by accident."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.active import acquisition, oracle
from pixelpick_ray.config import keys, networks
from pixelpick_ray.config.canonical import canonical_json
from pixelpick_ray.config.experiment import Experiment, parse_experiment
from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.data.datasets import DATASETS, open_dataset
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.tasks import FirstPixels, Fit, evaluation_size
from tests.support import stores as by_hand
from tests.support.experiments import experiment_of, experiment_text

SOURCE = Source({"train": "aa", "test": "bb", "val": "cc"}, "train", "dd")
STEPS = ("initial", "fit", "pick", "evaluation")
ALL, TRAINED = set(STEPS), set(STEPS[1:])


def keys_of(
    experiment: Experiment, source: Source = SOURCE, *, stage: int = 1, labels_digest: str = "ee", split: str = "test"
) -> dict[str, str]:
    """The keys of every step of the last trial."""
    trial, evaluate = experiment.trials()[-1], experiment.evaluate
    return by_hand.keys_of(trial, evaluate, source, stage=stage, labels=labels_digest, split=split)


def parse(text: str, *overrides: str) -> Experiment:
    return parse_experiment(text, where="x", overrides=["grid=[{seed: [3], budget: [20]}]", *overrides])


def moved(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {step for step in STEPS if before[step] != after[step]}


MOVED: list[tuple[set[str], list[str]]] = [
    (ALL, ["dataset.size=[90, 120]", "dataset.images=5", "dataset.split=trainval", "grid=[{seed: [4], budget: [20]}]"]),
    (TRAINED, ["model.backbone=resnet50", "model.dropout=[0, 0, 0]", "model.output_stride=8"]),
    (TRAINED, ["model.feature_dropout=0.2", "model={architecture: fpn, backbone: mobilenetv2_100}"]),
    (TRAINED, ["train.epochs=51", "train.batch_size=8", "train.optimizer.weight_decay=0", "train.precision=bf16"]),
    (TRAINED, ["train.augment=null", "train.augment.blur=null", "train.decoder=sparse"]),
    (TRAINED, ["train.exact_labels=false"]),
    ({"pick"}, ["acquire.strategy=entropy", "acquire.pool_fraction=0.1", "acquire.pixels_per_stage=5"]),
    ({"pick"}, ["acquire.precision=bf16", "acquire.pool=chance", "acquire.stochastic={passes: 20}"]),
    ({"initial"}, ["acquire.initial_pixels=20"]),  # the fit sees it by its labels
    ({"initial", "pick"}, ["oracle={name: erring, rate: 0.1}"]),  # so it does this
    ({"initial", "pick"}, ["oracle={name: erring, rate: 0.1, from: queries}"]),
    (ALL, ["oracle={name: erring, rate: 0.1, redrawn: true}"]),  # training draws the mistakes
    ({"evaluation"}, ["evaluate.when=last", "evaluate.splits.test={scale: 0.5}"]),
    ({"evaluation"}, ["evaluate.splits.test={split: val, size: [360, 480]}"]),
    (set(), ["train.decoder=dense", "train.exact_labels=true"]),
    (set(), ["grid=[{seed: [3], budget: [30]}]", "name=other", "title=other"]),
    (set(), ["evaluate.splits.val={scale: 0.5}", "evaluate.report=val"]),
    (set(), ["evaluate.splits.test={split: test, size: [360, 480]}"]),
    (set(), ["dataset.path=elsewhere"]),  # what lies there is in the fingerprint
]


def test_a_field_moves_the_keys_of_what_depends_on_it_only(camvid_yaml: str) -> None:
    before = keys_of(parse(camvid_yaml))
    for changed, overrides in MOVED:
        for override in overrides:
            assert moved(before, keys_of(parse(camvid_yaml, override))) == changed, override


def test_contents_of_data_and_weights_are_in_the_keys(camvid_yaml: str) -> None:
    experiment = parse(camvid_yaml)
    for split, changed in {"train": ALL, "test": {"evaluation"}, "val": set()}.items():
        source = Source({**SOURCE.fingerprints, split: "x"}, "train", "dd")
        assert moved(keys_of(experiment), keys_of(experiment, source)) == changed
    for weights in ("x", None):
        assert moved(keys_of(experiment), keys_of(experiment, Source(SOURCE.fingerprints, "train", weights))) == TRAINED


def test_stage_labels_and_split_are_in_the_keys(camvid_yaml: str) -> None:
    experiment = parse(camvid_yaml)
    before = keys_of(experiment)
    assert moved(before, keys_of(experiment, stage=2)) == TRAINED
    assert moved(before, keys_of(experiment, labels_digest="full")) == TRAINED
    same_pictures = Source({**SOURCE.fingerprints, "val": "bb"}, "train", "dd")
    same_size = parse(camvid_yaml, "evaluate.splits.val={size: [360, 480]}")
    assert moved(keys_of(same_size, same_pictures), keys_of(same_size, same_pictures, split="val")) == {"evaluation"}
    assert keys_of(experiment, split="val") == keys_of(same_size, split="val")  # without a size that of the training
    assert evaluation_size(experiment.evaluate, experiment.trials()[0], "val").as_input() == {"size": [360, 480]}


def test_a_raised_version_moves_the_keys_of_what_it_decides_alone(
    camvid_yaml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a step, of a built-in part, and of a data set, which is prepared anew; only raised ones are in keys."""
    tables = acquisition.STRATEGIES, oracle.ORACLES, DATASETS, networks.HEADS
    raised = {name: one.version for table in tables for name, one in table.items() if one.version != 1}
    assert raised == {"mlp": 3}
    before = keys_of(parse(camvid_yaml))
    for step in STEPS:
        with monkeypatch.context() as patch:
            patch.setitem(keys.VERSIONS, step, keys.VERSIONS[step] + 1)
            assert moved(before, keys_of(parse(camvid_yaml))) == (TRAINED if step == "fit" else {step})
    parts: list[tuple[dict[str, Any], str, str, set[str]]] = [
        (acquisition.STRATEGIES, "entropy", "acquire.strategy=entropy", {"pick"}),
        (oracle.ORACLES, "erring", "oracle={name: erring, rate: 0.5}", {"initial", "pick"}),
        (networks.HEADS, "fpn", "model={architecture: fpn, backbone: resnet18}", TRAINED),
    ]
    for table, name, override, decides in parts:
        chosen = keys_of(parse(camvid_yaml, override))
        with monkeypatch.context() as patch:
            patch.setitem(table, name, replace(table[name], version=2))
            assert moved(chosen, keys_of(parse(camvid_yaml, override))) == decides
            assert keys_of(parse(camvid_yaml)) == before
    trial, fingerprints = experiment_of(experiment_text()).trials()[0], []
    for version in (1, 2, 1):
        monkeypatch.setattr(DATASETS["scenes"], "version", version)
        dataset = open_dataset(trial.dataset, tmp_path)
        fingerprints.append(prepare(dataset, "test", trial.dataset, tmp_path).fingerprint)
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_trials_of_one_chain_differ_in_the_budget_only(camvid_yaml: str) -> None:
    for grid, number in {
        "{budget: [10, 20, 30]}": 1,
        "{budget: [10, full]}": 2,
        "{budget: [10], seed: [0, 1], acquire.strategy: [margin, random]}": 4,
        "{budget: [full], seed: [0, 1], acquire.strategy: [margin, random]}": 2,
        "{budget: [full], train.epochs: [50, 60]}": 2,
    }.items():
        assert len({trial.chain_id for trial in parse(camvid_yaml, f"grid=[{grid}]").trials()}) == number, grid
    for option in ("train.decoder: [dense, sparse]", "train.exact_labels: [true, false]"):  # of few labels alone
        one, other = parse(camvid_yaml, f"grid=[{{budget: [full], {option}}}]").trials()
        assert one.chain_id == other.chain_id
        assert other.training == one.training == one.train
        evaluate = parse(camvid_yaml).evaluate
        assert len({Fit(trial, SOURCE, evaluate, stage=0, labels=None).key for trial in (one, other)}) == 1


def test_an_annotator_who_errs_on_queries_has_the_first_fit_of_the_truth(camvid_yaml: str) -> None:
    (old,) = parse(camvid_yaml, "oracle={name: erring, rate: 0.1, redrawn: false, from: first}").trials()
    assert old.oracle.as_input() == {"name": "erring", "rate": 0.1}
    truth = parse(camvid_yaml)
    (trial,), evaluate = truth.trials(), truth.evaluate
    labels = LabelledPixels.of(names=[], y=[], x=[], label=[], stage=0)
    (late,) = parse(camvid_yaml, "oracle={name: erring, rate: 0.1, redrawn: true, from: queries}").trials()
    keys = [[Fit(one, SOURCE, evaluate, stage, labels).key for stage in (0, 1)] for one in (trial, late)]
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]


def test_keys_are_hashes_of_the_written_input_and_those_of_this_version(camvid_yaml: str) -> None:
    """If this fails, stored results are lost to everyone: change a digest only together with its version."""
    experiment = parse(camvid_yaml)
    trial = experiment.trials()[0]
    written = (
        '{"data":{"fingerprint":"aa","name":"camvid","size":[360,480]},"initial_pixels":10,'
        '"oracle":{"name":"ground_truth"},"seed":3,"step":"initial","version":2}'
    )
    again = Trial.model_validate_json(canonical_json(trial.as_input()))  # as read from a record
    for first in (FirstPixels(trial, SOURCE), FirstPixels(again, SOURCE)):
        assert canonical_json(first.inputs) == written
        assert first.key == hashlib.sha256(written.encode()).hexdigest()
    assert again.chain_id == trial.chain_id
    plain = parse(camvid_yaml, "train.augment=null")
    inputs = Fit(plain.trials()[0], SOURCE, plain.evaluate, stage=0, labels=by_hand.Named("ee")).inputs
    assert not {"images", "augment", None} & {*inputs["data"], *inputs["train"]}  # so that new options move no keys
    assert "null" not in canonical_json(inputs)
    assert {**keys_of(experiment), "chain": experiment.trials()[-1].chain_id} == {
        "initial": "aeecfcdf620432aa193d230349e307e298fdf0642d2442a8cb1f5b2fd845203a",
        "fit": "40f8b63945a9984257d1b3da076da23da98f2b7766b7e75d576cfa4af1552056",
        "pick": "2ffbd65d78b8dd751bdaee2b91508b0b0cde4b3905f404bae7c42965439badf7",
        "evaluation": "f78fbb708158493a39dcd23d0125a4e2ef69120f53e4a65dc180a9ba1f249299",
        "chain": "42b8f8636c549070372dc800d0c024a5eca93cc71f9baf28a11cd961c00169c5",
    }


def test_canonical_text_is_sorted_ascii_without_spaces_and_without_what_is_no_number() -> None:
    for value in ({"b": 1, "a": [1.5, None, True, "ü"]}, {"a": [1.5, None, True, "ü"], "b": 1}):
        assert canonical_json(value) == '{"a":[1.5,null,true,"\\u00fc"],"b":1}'
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json({"a": [value]})
