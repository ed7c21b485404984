"""Studies with pictures: images, picked pixels and predictions of two strategies."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.data.labels import LabelledPixels
from tests.support.study import Described, LabelMap, Study, experiment, matrix

GRID = "grid=[{acquire.strategy: [margin, random], seed: [0, 1], budget: [10, 20]}, {seed: [0], budget: [full]}]"

ONE = "grid=[{seed: [0], budget: [10]}]"


def label_map(*rows: str) -> LabelMap:
    """Digits are classes; "." is void."""
    return np.asarray([[255 if value == "." else int(value) for value in row] for row in rows], dtype=np.uint8)


TRAINING = Described(
    {"a.png": (250, 0, 0), "b.png": (0, 250, 0)},
    {"a.png": label_map("000111", "000111"), "b.png": label_map("01", "01", "01")},
)

TEST = Described({"t.png": (0, 0, 250)}, {"t.png": label_map("0011", "001.")})

PREDICTED = {
    ("margin", 10): label_map("0000", "0000"),  # 3 of 7 wrong
    ("margin", 20): label_map("0011", "0011"),
    ("random", 10): label_map("1111", "1111"),
    ("random", 20): label_map("1011", "0011"),  # 1 of 7 wrong
}


def mark(trial: Trial, stage: int) -> LabelledPixels:
    """A pixel of each image, one of an image that is not shown, and after the first stage another one of "a.png"."""
    places = [("a.png", stage, trial.seed + 1, 0), ("b.png", stage, 0, 1), ("hidden.png", 0, 0, 0)]
    names, y, x, label = zip(*places, *[("a.png", 0, 5, 1)] * (stage > 0), strict=True)
    return LabelledPixels.of(names=names, y=y, x=x, label=label, stage=stage)


def predict(trial: Trial) -> Mapping[str, LabelMap]:
    found = PREDICTED.get((trial.acquire.strategy, trial.budget))
    return {} if found is None else {"t.png": found}


def fill(
    study: Study, *overrides: str, mark: Any = mark, predict: Any = predict, shown: Any = (TRAINING, {"test": TEST})
) -> Experiment:
    spec = experiment(*overrides)
    study.fill(spec, lambda trial: matrix(50), predict=predict)
    study.ask(spec, lambda trial, stage: None, mark)
    if shown:
        study.describe(spec, *shown)
    return spec
