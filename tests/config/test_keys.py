"""Keys: results that would differ have different keys, others share one, and no key moves by accident."""

import hashlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelpick_ray.config import keys
from pixelpick_ray.config.canonical import canonical_json, digest
from pixelpick_ray.config.experiment import Experiment, parse_experiment
from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.tasks import FirstPixels, Fit, evaluation_size
from tests.support import stores as by_hand

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


def test_a_raised_version_moves_the_key_of_its_step(camvid_yaml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys_of(parse(camvid_yaml))
    for step in STEPS:
        with monkeypatch.context() as patch:
            patch.setitem(keys.VERSIONS, step, keys.VERSIONS[step] + 1)
            assert moved(before, keys_of(parse(camvid_yaml))) == (TRAINED if step == "fit" else {step})


def test_a_split_without_size_is_evaluated_at_the_training_size(camvid_yaml: str) -> None:
    own = keys_of(parse(camvid_yaml, "evaluate.splits.val={size: [360, 480]}"), split="val")
    inherited = keys_of(parse(camvid_yaml, "dataset.images=100"), split="val")
    assert keys_of(parse(camvid_yaml), split="val") == own
    trial, evaluate = parse(camvid_yaml).trials()[0], parse(camvid_yaml).evaluate
    assert evaluation_size(evaluate, trial, "val").as_input() == {"size": [360, 480]}
    assert inherited["evaluation"] != own["evaluation"]  # another fit


def test_trials_of_one_chain_differ_in_the_budget_only(camvid_yaml: str) -> None:
    def chains(grid: str) -> list[str]:
        return [trial.chain_id for trial in parse(camvid_yaml, f"grid=[{grid}]").trials()]

    assert len(set(chains("{budget: [10, 20, 30]}"))) == 1
    assert len(set(chains("{budget: [10, full]}"))) == 2
    assert len(set(chains("{budget: [10], seed: [0, 1], acquire.strategy: [margin, random]}"))) == 4
    assert len(set(chains("{budget: [full], seed: [0, 1], acquire.strategy: [margin, random]}"))) == 2
    assert len(set(chains("{budget: [full], train.epochs: [50, 60]}"))) == 2


@pytest.mark.parametrize("option", ["train.decoder: [dense, sparse]", "train.exact_labels: [true, false]"])
def test_full_supervision_is_the_same_whatever_is_said_of_few_labels(camvid_yaml: str, option: str) -> None:
    dense, sparse = parse(camvid_yaml, f"grid=[{{budget: [full], {option}}}]").trials()
    assert sparse.chain_id == dense.chain_id
    assert sparse.training == dense.training == dense.train
    evaluate = parse(camvid_yaml).evaluate
    assert len({Fit(trial, SOURCE, evaluate, stage=0, labels=None).key for trial in (dense, sparse)}) == 1


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


def test_the_key_is_the_hash_of_the_written_input(camvid_yaml: str) -> None:
    trial = parse(camvid_yaml).trials()[0]
    written = (
        '{"data":{"fingerprint":"aa","name":"camvid","size":[360,480]},"initial_pixels":10,'
        '"oracle":{"name":"ground_truth"},"seed":3,"step":"initial","version":2}'
    )
    first = FirstPixels(trial, SOURCE)
    assert canonical_json(first.inputs) == written
    assert first.key == hashlib.sha256(written.encode()).hexdigest()


def test_keys_are_those_of_this_version(camvid_yaml: str) -> None:
    """If this fails, stored results are lost to everyone: change a digest only together with its version."""
    experiment = parse(camvid_yaml)
    assert {**keys_of(experiment), "chain": experiment.trials()[-1].chain_id} == {
        "initial": "aeecfcdf620432aa193d230349e307e298fdf0642d2442a8cb1f5b2fd845203a",
        "fit": "40f8b63945a9984257d1b3da076da23da98f2b7766b7e75d576cfa4af1552056",
        "pick": "2ffbd65d78b8dd751bdaee2b91508b0b0cde4b3905f404bae7c42965439badf7",
        "evaluation": "f78fbb708158493a39dcd23d0125a4e2ef69120f53e4a65dc180a9ba1f249299",
        "chain": "42b8f8636c549070372dc800d0c024a5eca93cc71f9baf28a11cd961c00169c5",
    }


def test_options_that_are_absent_are_not_in_the_key(camvid_yaml: str) -> None:
    """So that a new option does not move the keys of experiments that do not use it."""
    trial = parse(camvid_yaml, "train.augment=null").trials()[0]
    fields = Fit(trial, SOURCE, parse(camvid_yaml).evaluate, stage=0, labels=by_hand.Named("ee")).inputs
    assert "images" not in fields["data"]
    assert "augment" not in fields["train"]
    assert all(value is not None for value in _leaves(fields))


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    return [leaf for value in tree for leaf in _leaves(value)] if isinstance(tree, list) else [tree]


def test_a_trial_read_back_from_its_record_has_the_same_keys(camvid_yaml: str) -> None:
    trial = parse(camvid_yaml).trials()[0]
    again = Trial.model_validate_json(canonical_json(trial.as_input()))
    assert FirstPixels(again, SOURCE).key == FirstPixels(trial, SOURCE).key
    assert again.chain_id == trial.chain_id


def test_canonical_text_is_sorted_ascii_without_spaces_and_without_what_is_no_number() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None, True, "ü"]}) == '{"a":[1.5,null,true,"\\u00fc"],"b":1}'
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json({"a": [value]})


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()))
def test_order_of_insertion_does_not_matter(value: dict[str, Any]) -> None:
    assert digest(dict(reversed(value.items()))) == digest(value)
