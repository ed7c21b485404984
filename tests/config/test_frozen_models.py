"""Frozen backbones and their heads in experiment files: names, defaults, keys, refusals."""

from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.config.experiment import Experiment, dump_experiment, parse_experiment
from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.model import PIXEL_HEADS, KnnSpec, LinearSpec, ModelSpec, NormaliseSpec
from pixelpick_ray.config.networks import IMAGENET, weights_normalisation
from pixelpick_ray.data.datasets import DATASETS
from pixelpick_ray.data.weights import normalisation
from pixelpick_ray.errors import SpecError
from pixelpick_ray.planning import claim_name, make_plan
from pixelpick_ray.store import Store
from pixelpick_ray.store.records import as_stored
from pixelpick_ray.tasks import Fit
from tests.support.experiments import WRONG, experiment_of, experiment_text

FROZEN = "{backbone: test_resnet, pretrained: none, frozen: true, head: linear}"
HALF = NormaliseSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def frozen(*overrides: str, model: str = FROZEN, train: str = "null") -> Experiment:
    return experiment_of(experiment_text(model=model, train=train), *overrides)


def fit_of(experiment: Experiment, seed: int = 0, **source: object) -> Fit:
    trial = experiment.trials()[0].model_copy(update={"seed": seed})
    fields = {"fingerprints": {"train": "a", "test": "b"}, "training_split": "train", "weights_digest": "w"} | source
    return Fit(trial, Source(**fields), experiment.evaluate, 0, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PIXEL_HEADS)
def test_a_head_by_name_is_one_with_its_defaults(name: str) -> None:
    said = [f"head: {name}", f"head: {{name: {name}}}", f"architecture: {name}", f"head: {name}, architecture: {name}"]
    (model,) = {frozen(model=FROZEN.replace("head: linear", one)).trials()[0].model for one in said}
    assert (model.architecture, model.head, model.output_stride) == (name, PIXEL_HEADS[name](), 32)
    spec = frozen(f"model.head={name}", "model.normalise={mean: [0, 0, 0], std: [1, 1, 1]}")
    assert parse_experiment(dump_experiment(spec), where="again.yaml") == spec


def test_head_and_architecture_may_not_differ_and_one_overrides_the_other(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"model\.head: is 'linear', but model\.architecture is 'fpn'"):
        frozen(model=FROZEN.replace("head: linear", "head: linear, architecture: fpn"))
    (tmp_path / "mine.py").write_text("def Head(channels, strides, num_classes, spec): ...\n")
    for word in ("head", "architecture"):
        for model in (FROZEN, FROZEN.replace("head: linear", "architecture: linear")):
            assert frozen(f"model.{word}=knn", model=model).trials()[0].model.head == KnnSpec()
        text = experiment_text(model=f"{{backbone: test_resnet, pretrained: none, {word}: 'file:mine.py:Head'}}")
        own = parse_experiment(text, where="a.yaml", folder=tmp_path).trials()[0].model
        assert own.architecture.startswith("file:mine.py:Head@")


def test_a_grid_may_vary_the_head_its_options_and_the_backbone() -> None:
    for varied, heads in {
        "head: [linear, {name: knn, k: 3}]": [LinearSpec(), KnnSpec(k=3)],
        "architecture: [knn, linear]": [KnnSpec(), LinearSpec()],
        "head.l2: [0.1, 0.2]": [LinearSpec(l2=0.1), LinearSpec(l2=0.2)],
    }.items():
        assert [trial.model.head for trial in frozen(f"grid=[{{budget: [10], model.{varied}}}]").trials()] == heads


def test_a_frozen_head_stands_beside_a_network_that_is_trained() -> None:
    own = "model.frozen: [true], model.head: [linear], model.output_stride: [32], model.dropout: [[]]"
    text = experiment_text(model="{backbone: test_resnet, pretrained: none}")
    trained, light = experiment_of(text, f"grid=[{{budget: [10]}}, {{budget: [10], {own}}}]").trials()
    assert trained.training is not None
    assert light.training is None
    assert (trained.epochs, light.epochs) == (1, 1)
    assert "train" not in fit_of(frozen()).inputs
    spec = frozen("model.frozen=false", train="{epochs: 2, optimizer: {name: adam, lr: 1e-3, layer_decay: 0.7}}")
    (trial,) = spec.trials()  # a pixel head that is trained with its backbone
    assert (trial.epochs, trial.model.fitted_head, trial.model.output_stride) == (2, None, 32)
    assert {"train", "seed"} <= fit_of(spec).inputs.keys()
    with pytest.raises(SpecError, match=r"input_scale: does not apply to deeplabv3plus"):
        experiment_of(experiment_text(model="{backbone: test_resnet, input_scale: 2.0}"))


@pytest.mark.parametrize("case", WRONG["frozen"], ids=lambda case: " ".join(case["overrides"]))
def test_what_cannot_be_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        frozen(*case["overrides"])
    assert str(caught.value) == f"tiny.yaml: {case['told']}"


def test_what_decides_a_fit_is_in_its_key() -> None:
    usual = fit_of(frozen())
    for override in (
        "model.head={name: linear, l2: 0.5}",
        "model.layers=[-1]",
        "model.input_scale=1.5",
        "model.feature_stride=4",
        "model.views=[{flip: true}]",
    ):
        assert fit_of(frozen(override)).key != usual.key, override
    exact = frozen("model.pretrained=imagenet")
    assert fit_of(exact, 0).key == fit_of(exact, 1).key
    for random in (frozen(), frozen("model.pretrained=imagenet", "model.head=mlp")):
        assert fit_of(random, 0).key != fit_of(random, 1).key
    same = frozen("model.normalise=dataset")
    assert fit_of(frozen("model.normalise=weights")).key == fit_of(same).key  # by what the source says alone
    assert fit_of(same, normalise=HALF).inputs["model"]["normalise"] == HALF.as_input()
    assert "normalise" not in fit_of(same).inputs["model"]


def test_a_frozen_backbone_takes_the_weights_own_and_a_trained_one_the_data_sets() -> None:
    facts = DATASETS["camvid"].facts
    fields = {"backbone": "tf_efficientnet_lite0", "architecture": "linear", "head": LinearSpec(), "frozen": True}
    frozen_model, trained = ModelSpec(**fields), ModelSpec(backbone="tf_efficientnet_lite0")
    for model, own in (
        (frozen_model, HALF),
        (ModelSpec(backbone="mobilenetv2_100"), IMAGENET),
        (ModelSpec(backbone="resnet50", pretrained="moco_v2"), IMAGENET),
        (ModelSpec(backbone="test_resnet", pretrained="none"), None),
    ):
        assert weights_normalisation(model) == own
    assert normalisation(frozen_model, facts) == HALF
    assert normalisation(trained, facts) is None
    assert normalisation(trained.model_copy(update={"normalise": "weights"}), facts) is not None
    own = NormaliseSpec(mean=facts.mean, std=facts.std)
    assert normalisation(frozen_model.model_copy(update={"normalise": own}), facts) is None


def test_a_file_that_says_nothing_means_the_weights_own(camvid_yaml: str) -> None:
    """In every grid; where they are the data set's, no key moves."""
    silent = camvid_yaml.replace(", normalise: dataset", "").replace("mobilenetv2_100", "tf_efficientnet_lite0")
    grid = "grid=[{budget: [10], model: [{backbone: resnet50}]}, {budget: [10], model.normalise: [null, dataset]}]"
    models = [trial.model for trial in parse_experiment(silent, where="x", overrides=[grid]).trials()]
    assert [model.normalised_by for model in models] == ["weights", "weights", "dataset"]
    camvid, voc = DATASETS["camvid"].facts, DATASETS["voc"].facts
    assert [normalisation(model, camvid) for model in models] == [IMAGENET, HALF, None]
    assert normalisation(models[0], voc) is None


def test_what_was_begun_before_keeps_the_data_sets(camvid_yaml: str, tmp_path: Path) -> None:
    """It is the experiment of the same identity and chains; one that says what it means is taken at its word."""
    store = Store(tmp_path)
    silent = parse_experiment(camvid_yaml.replace(", normalise: dataset", ""), where="x")
    said = parse_experiment(camvid_yaml, where="x")
    assert as_stored(store, silent).model.normalised_by == "weights"
    claim_name(make_plan(said), store)
    begun = as_stored(store, silent)
    assert begun.model.normalised_by == "dataset"
    assert begun.identity() == said.identity()
    assert [trial.chain_id for trial in begun.trials()] == [trial.chain_id for trial in said.trials()]
    explicit = parse_experiment(camvid_yaml.replace("normalise: dataset", "normalise: weights"), where="x")
    assert as_stored(store, explicit) is explicit
    assert parse_experiment(dump_experiment(begun), where="x").model.normalised_by == "dataset"
