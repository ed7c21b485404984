"""Versions of built-in parts: each is in the key of what it decides, and of nothing else."""

from dataclasses import replace

import pytest

from pixelpick_ray.active import acquisition, oracle
from pixelpick_ray.config import networks
from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.data.datasets import DATASETS, open_dataset
from tests.support.experiments import experiment_of, experiment_text
from tests.support.stores import keys_of

SOURCE = Source({"train": "a", "test": "b"}, "train", None)


def keys(*overrides: str) -> dict[str, str]:
    experiment = experiment_of(experiment_text(grid="[{seed: [0], budget: [10, 20]}]"), *overrides)
    return keys_of(experiment.trials()[-1], experiment.evaluate, SOURCE)


def moved(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_only_raised_versions_are_in_keys() -> None:
    assert {one.version for one in acquisition.STRATEGIES.values()} == {1}
    assert {one.version for one in oracle.ORACLES.values()} == {1}
    assert {name: one.version for name, one in networks.HEADS.items() if one.version > 1} == {"mlp": 3}
    assert {one.version for one in DATASETS.values()} == {1}


@pytest.mark.parametrize(
    ("table", "name", "override", "decides"),
    [
        (acquisition.STRATEGIES, "entropy", "acquire.strategy=entropy", {"pick"}),
        (oracle.ORACLES, "erring", "oracle={name: erring, rate: 0.5}", {"initial", "pick"}),
        (networks.HEADS, "fpn", "model={architecture: fpn, backbone: resnet18}", {"fit", "pick", "evaluation"}),
    ],
    ids=["strategy", "oracle", "head"],
)
def test_raising_one_moves_the_keys_of_what_it_decides_alone(
    table: dict[str, object], name: str, override: str, decides: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, others = keys(override), keys()
    monkeypatch.setitem(table, name, replace(table[name], version=2))  # type: ignore[type-var]
    assert moved(before, keys(override)) == decides
    assert keys() == others


def test_raising_a_data_set_prepares_it_anew(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    trial: Trial = experiment_of(experiment_text()).trials()[0]
    fingerprints = []
    for version in (1, 2, 1):
        monkeypatch.setattr(DATASETS["scenes"], "version", version)
        dataset = open_dataset(trial.dataset, tmp_path)
        fingerprints.append(prepare(dataset, "test", trial.dataset, tmp_path).fingerprint)
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2
