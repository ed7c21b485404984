"""Small stores written by hand: what a run would leave, without a run."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelpick_ray.spec.canonical import digest
from pixelpick_ray.spec.experiment import Experiment, parse_experiment
from pixelpick_ray.spec.keys import chain_id
from pixelpick_ray.spec.trial import Trial
from pixelpick_ray.store import Store, experiment_folder

TEXT = """
name: study
title: A study
dataset: {name: camvid, size: [360, 480]}
model: {backbone: small, pretrained: none}
train: {epochs: 2, optimizer: {name: adam, lr: 1e-3}}
acquire: {initial_pixels: 10, pixels_per_stage: 10}
evaluate: {splits: {test: {}}, report: test}
grid:
  - {acquire.strategy: [margin], seed: [0, 1, 2], budget: [10, 20]}
"""

Matrix = Sequence[Sequence[int]]
Measured = Matrix | Sequence[Matrix]
Measure = Callable[[Trial], Measured | Mapping[str, Measured] | None]


def experiment(*overrides: str) -> Experiment:
    """The experiment above with overrides."""
    return parse_experiment(TEXT, where="study.yaml", overrides=overrides)


def matrix(percent: int) -> Matrix:
    """Confusion with IoU `percent` for the first of two classes and 0 for the second: mIoU is half of it."""
    return [[percent, 0], [100 - percent, 0]]


def exact(thousandths: int) -> Matrix:
    """Confusion of two classes with this IoU, and therefore mIoU, in thousandths; even numbers only."""
    wrong = (1000 - thousandths) // 2
    return [[thousandths, wrong], [wrong, thousandths]]


class Study:
    """Fills a store with hand-made results."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)

    def fill(self, experiment: Experiment, measure: Measure, **provenance: Any) -> None:
        """Store the confusion that `measure` gives for each trial: one matrix or one an epoch, for all splits or for
        each by name; None, or a split that is not named, is left out.
        """
        for trial in experiment.trials():
            found = measure(trial)
            if found is not None:
                by_split = found if isinstance(found, Mapping) else dict.fromkeys(experiment.evaluate.splits, found)
                stacks = {split: np.asarray(each, dtype=np.int64) for split, each in by_split.items()}
                self.add(experiment, trial, {k: v[None] if v.ndim == 2 else v for k, v in stacks.items()}, provenance)

    def add(self, experiment: Experiment, trial: Trial, by_split: dict[str, Any], provenance: dict[str, Any]) -> None:
        made = {"device": "cpu", "torch": "2.0", "version": "1", "seconds": 1.5, "world_size": 1} | provenance
        fit = {"step": "fit", "version": 1, "data": {"fingerprint": "f"}, "trial": trial.as_input()}
        self.store.publish("fit", fit, lambda folder: None, made)
        keys = {}
        for split, confusion in by_split.items():
            data = {"fingerprint": split}
            inputs = {"step": "evaluation", "version": 1, "fit": digest(fit), "split": split, "data": data}

            def write(folder: Path, confusion: Any = confusion) -> None:
                np.savez(folder / "confusion.npz", epochs=np.arange(1, len(confusion) + 1), confusion=confusion)

            self.store.publish("evaluation", inputs, write, made)
            keys[split] = digest(inputs)
        stage = {"budget": trial.budget, "fit": digest(fit), "evaluations": keys}
        self.record(experiment, trial, stage, next(iter(by_split.values())))

    def ask(self, experiment: Experiment, tell: Callable[[Trial, int], dict[str, Any] | None]) -> None:
        """Store the picks of every recorded trial's chain, with the statistics that `tell` gives for each stage."""
        for trial in experiment.trials():
            path = f"{experiment_folder(experiment)}/chains/{chain_id(trial)}.json"
            record = self.store.read_record(path)
            if trial.budget == "full" or record is None:
                continue
            keys = [self._pick(trial, stage, tell(trial, stage)) for stage in range(trial.num_stages)]
            for stage, key in zip(record["stages"], keys[1:], strict=False):
                stage["pick"] = key
            self.store.write_record(path, record | {"initial": keys[0]})

    def _pick(self, trial: Trial, stage: int, statistics: dict[str, Any] | None) -> str:
        inputs = {"step": "pick", "chain": chain_id(trial), "stage": stage}

        def write(folder: Path) -> None:
            (folder / "pixels.npz").write_bytes(b"")
            if statistics is not None:
                (folder / "statistics.json").write_text(json.dumps(statistics))

        self.store.publish("pick", inputs, write, {})
        return digest(inputs)

    def record(self, experiment: Experiment, trial: Trial, stage: dict[str, Any], confusion: Any) -> None:
        path = f"{experiment_folder(experiment)}/chains/{chain_id(trial)}.json"
        before = self.store.read_record(path) or {"stages": []}
        first, step = trial.acquire.initial_pixels, trial.acquire.pixels_per_stage
        between = range(len(before["stages"]), trial.num_stages)
        stages = before["stages"] + [{"budget": first + number * step, "evaluations": {}} for number in between]
        stages[trial.num_stages - 1] = stage
        names = ["sky", "road", "car"][: confusion.shape[-1]]
        self.store.write_record(path, {"class_names": names, "pixels_per_image": 172800.0, "stages": stages})
