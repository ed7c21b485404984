"""Frozen backbones and their heads in experiment files: names, defaults, keys, refusals."""

from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.config.experiment import Experiment, dump_experiment, parse_experiment
from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.model import PIXEL_HEADS, KnnSpec, LinearSpec, MlpSpec, ModelSpec, NormaliseSpec
from pixelpick_ray.config.networks import IMAGENET, networks, weights_normalisation
from pixelpick_ray.data.datasets import DATASETS
from pixelpick_ray.data.weights import normalisation
from pixelpick_ray.errors import SpecError
from pixelpick_ray.planning import claim_name, make_plan
from pixelpick_ray.store import Store
from pixelpick_ray.store.records import as_stored
from pixelpick_ray.tasks import Fit
from tests.support.experiments import WRONG, experiment_of, experiment_text

FROZEN = "{backbone: test_resnet, pretrained: none, frozen: true, head: linear}"


def frozen(*overrides: str, model: str = FROZEN, **blocks: str) -> Experiment:
    text = "".join(
        line
        for line in experiment_text(model=model, **blocks).splitlines(keepends=True)
        if not line.startswith("train:") or "train" in blocks
    )
    return experiment_of(text, *overrides)


def fit_of(experiment: Experiment, seed: int = 0, **source: object) -> Fit:
    trial = experiment.trials()[0].model_copy(update={"seed": seed})
    fields = {"fingerprints": {"train": "a", "test": "b"}, "training_split": "train", "weights_digest": "w"} | source
    return Fit(trial, Source(**fields), experiment.evaluate, 0, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PIXEL_HEADS)
def test_a_head_by_name_is_one_with_its_defaults(name: str) -> None:
    said = [f"head: {name}", f"head: {{name: {name}}}", f"architecture: {name}", f"head: {name}, architecture: {name}"]
    models = {frozen(model=FROZEN.replace("head: linear", one)).trials()[0].model for one in said}
    (model,) = models
    assert model.architecture == name
    assert model.head == PIXEL_HEADS[name]()
    assert model.output_stride == 32


def test_a_grid_may_vary_the_head_its_options_and_the_backbone() -> None:
    spec = frozen("grid=[{seed: [0], budget: [10], model.head: [linear, {name: knn, k: 3}, {name: mlp, hidden: [4]}]}]")
    assert [trial.model.head for trial in spec.trials()] == [LinearSpec(), KnnSpec(k=3), MlpSpec(hidden=(4,))]
    spec = frozen("grid=[{seed: [0], budget: [10], model.architecture: [knn, prototype]}]")
    assert [trial.model.head.name for trial in spec.trials() if trial.model.head] == ["knn", "prototype"]
    spec = frozen("grid=[{seed: [0], budget: [10], model.head.l2: [0.1, 0.2]}]")
    assert [trial.model.head for trial in spec.trials()] == [LinearSpec(l2=0.1), LinearSpec(l2=0.2)]


def test_a_frozen_head_stands_beside_a_network_that_is_trained() -> None:
    spec = experiment_of(
        experiment_text(model="{backbone: test_resnet, pretrained: none}"),
        "grid=[{seed: [0], budget: [10]}, {seed: [0], budget: [10], model.frozen: [true], model.head: [linear], "
        "model.output_stride: [32], model.dropout: [[]]}]",
    )
    trained, light = spec.trials()
    assert trained.training is not None
    assert light.training is None
    assert (trained.epochs, light.epochs) == (1, 1)
    assert "train" not in fit_of(frozen()).inputs


def test_reading_what_was_written_gives_the_same() -> None:
    spec = frozen("model.head={name: mlp, hidden: [8, 4]}", "model.normalise={mean: [0, 0, 0], std: [1, 1, 1]}")
    again = parse_experiment(dump_experiment(spec), where="again.yaml")
    assert again == spec


@pytest.mark.parametrize("case", WRONG["frozen"], ids=lambda case: " ".join(case["overrides"]))
def test_what_cannot_be_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        frozen(*case["overrides"])
    assert str(caught.value) == f"tiny.yaml: {case['told']}"


def test_head_and_architecture_may_not_differ_and_one_overrides_the_other() -> None:
    with pytest.raises(SpecError, match=r"model\.head: is 'linear', and model\.architecture 'fpn'; they name the same"):
        frozen(model=FROZEN.replace("head: linear", "head: linear, architecture: fpn"))
    for override in ("model.head=knn", "model.architecture=knn"):
        assert frozen(override).trials()[0].model.head == KnnSpec()
        other = FROZEN.replace("head: linear", "architecture: linear")
        assert frozen(override, model=other).trials()[0].model.head == KnnSpec()


def test_a_network_that_is_trained_needs_to_know_how_and_takes_no_layers() -> None:
    with pytest.raises(SpecError, match=r"train: is required, deeplabv3plus is trained by gradient descent"):
        frozen(model="{backbone: test_resnet, pretrained: none}")
    with pytest.raises(SpecError, match=r"input_scale: deeplabv3plus takes the features that it was made for"):
        experiment_of(experiment_text(model="{backbone: test_resnet, input_scale: 2.0}"))


def test_most_networks_of_timm_can_be_frozen() -> None:
    usable = [name for name, one in networks().items() if one.maps or one.strides]
    assert len(usable) / len(networks()) > 0.84
    for family in (
        "vit_small_patch14_dinov2",
        "vit_small_patch16_dinov3",
        "swin_tiny_patch4_window7_224",
        "convnext_tiny",
    ):
        assert family in usable


def test_a_head_from_a_file_may_be_named_by_either_word(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def Head(channels, strides, num_classes, spec): ...\n")
    names = set()
    for word in ("head", "architecture"):
        text = experiment_text(model=f"{{backbone: test_resnet, pretrained: none, {word}: 'file:mine.py:Head'}}")
        names.add(parse_experiment(text, where="a.yaml", folder=tmp_path).trials()[0].model.architecture)
    (name,) = names
    assert name.startswith("file:mine.py:Head@")


def test_a_pixel_head_may_be_trained_with_its_backbone() -> None:
    spec = frozen("model.frozen=false", train="{epochs: 2, optimizer: {name: adam, lr: 1e-3, layer_decay: 0.7}}")
    (trial, *_) = spec.trials()
    assert (trial.epochs, trial.model.fitted_head, trial.model.output_stride) == (2, None, 32)
    assert {"train", "seed"} <= fit_of(spec).inputs.keys()


# Keys


def test_the_key_of_an_exact_head_has_no_seed_where_the_weights_are_given() -> None:
    exact = frozen("model.pretrained=imagenet")
    assert fit_of(exact, 0).key == fit_of(exact, 1).key
    for random in (frozen(), frozen("model.pretrained=imagenet", "model.head=mlp")):
        assert fit_of(random, 0).key != fit_of(random, 1).key


@pytest.mark.parametrize(
    "override",
    [
        "model.head={name: linear, l2: 0.5}",
        "model.layers=[-1]",
        "model.input_scale=1.5",
        "model.feature_stride=4",
        "model.views=[{flip: true}]",
    ],
)
def test_what_decides_a_fit_is_in_its_key(override: str) -> None:
    assert fit_of(frozen(override)).key != fit_of(frozen()).key


# Normalisation


def test_weights_are_normalised_as_they_were_made() -> None:
    half = NormaliseSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    model = frozen("model.pretrained=imagenet").trials()[0].model
    assert weights_normalisation(model.model_copy(update={"backbone": "tf_efficientnet_lite0"})) == half
    assert weights_normalisation(model.model_copy(update={"backbone": "mobilenetv2_100"})) == IMAGENET
    assert weights_normalisation(model.model_copy(update={"backbone": "resnet50", "pretrained": "moco_v2"})) == IMAGENET
    assert weights_normalisation(model.model_copy(update={"pretrained": "none"})) is None


def test_a_frozen_backbone_takes_the_weights_own_and_a_trained_one_the_data_sets() -> None:
    facts = DATASETS["camvid"].facts
    fields = {"backbone": "tf_efficientnet_lite0", "architecture": "linear", "head": LinearSpec(), "frozen": True}
    frozen_model, trained = ModelSpec(**fields), ModelSpec(backbone="tf_efficientnet_lite0")
    assert normalisation(frozen_model, facts) == weights_normalisation(frozen_model)
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
    half = NormaliseSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    camvid, voc = DATASETS["camvid"].facts, DATASETS["voc"].facts
    assert [normalisation(model, camvid) for model in models] == [IMAGENET, half, None]
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


def test_the_key_holds_the_values_and_is_unmoved_where_they_are_the_data_sets() -> None:
    usual = frozen("model.normalise=dataset")
    values = NormaliseSpec(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    assert fit_of(frozen("model.normalise=weights")).key == fit_of(usual).key  # by what the source says alone
    assert fit_of(usual, normalise=values).inputs["model"]["normalise"] == values.as_input()
    assert "normalise" not in fit_of(usual).inputs["model"]
