"""Small stores written by hand: what a run would leave, without a run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelpick_ray.spec.canonical import digest
from pixelpick_ray.spec.experiment import Experiment, Trial, parse_experiment
from pixelpick_ray.spec.keys import chain_id
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
Measure = Callable[[Trial], Matrix | Sequence[Matrix] | None]


def experiment(*overrides: str) -> Experiment:
    """The experiment above with overrides."""
    return parse_experiment(TEXT, where="study.yaml", overrides=overrides)


def matrix(percent: int) -> Matrix:
    """Confusion with IoU `percent` for the first of two classes and 0 for the second: mIoU is half of it."""
    return [[percent, 0], [100 - percent, 0]]


class Study:
    """Fills a store with hand-made results."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)

    def fill(self, experiment: Experiment, measure: Measure, **provenance: Any) -> None:
        """Store the confusion that `measure` gives for each trial, one matrix or one an epoch; None leaves it out."""
        for trial in experiment.trials():
            found = measure(trial)
            if found is not None:
                stack = np.asarray(found, dtype=np.int64)
                self.add(experiment, trial, stack[None] if stack.ndim == 2 else stack, provenance)

    def add(self, experiment: Experiment, trial: Trial, confusion: Any, provenance: dict[str, Any]) -> None:
        made = {"device": "cpu", "torch": "2.0", "version": "1", "seconds": 1.5, "world_size": 1} | provenance
        fit = {"step": "fit", "version": 1, "data": {"fingerprint": "f"}, "trial": trial.as_input()}
        self.store.publish("fit", fit, lambda folder: None, made)
        keys = {}
        for split in experiment.evaluate.splits:
            data = {"fingerprint": split}
            inputs = {"step": "evaluation", "version": 1, "fit": digest(fit), "split": split, "data": data}

            def write(folder: Path) -> None:
                np.savez(folder / "confusion.npz", epochs=np.arange(1, len(confusion) + 1), confusion=confusion)

            self.store.publish("evaluation", inputs, write, made)
            keys[split] = digest(inputs)
        self.record(experiment, trial, {"budget": trial.budget, "fit": digest(fit), "evaluations": keys}, confusion)

    def record(self, experiment: Experiment, trial: Trial, stage: dict[str, Any], confusion: Any) -> None:
        path = f"{experiment_folder(experiment)}/chains/{chain_id(trial)}.json"
        before = self.store.read_record(path) or {"stages": []}
        first, step = trial.acquire.initial_pixels, trial.acquire.pixels_per_stage
        between = range(len(before["stages"]), trial.num_stages)
        stages = before["stages"] + [{"budget": first + number * step, "evaluations": {}} for number in between]
        stages[trial.num_stages - 1] = stage
        names = ["sky", "road", "car"][: confusion.shape[-1]]
        self.store.write_record(path, {"class_names": names, "pixels_per_image": 172800.0, "stages": stages})
