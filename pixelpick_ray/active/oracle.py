"""Who answers: the labels of asked pixels. Dispatch by name is ``ORACLES``."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelpick_ray.data.streams import stream
from pixelpick_ray.errors import SpecError
from pixelpick_ray.spec.trial import ErringSpec, GroundTruthSpec

Labels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
Draw = Callable[[], np.random.Generator]  # the generator of an image, made when asked for


def answer(
    oracle: GroundTruthSpec | ErringSpec,
    label: Labels,
    indices: Indices,
    *,
    class_names: Sequence[str],
    image: str,
    seed: int,
) -> npt.NDArray[np.int64]:
    """What the oracle says of the pixels at flat `indices` (k,) of an image whose label map (H, W) is `label`: (k,)."""
    draw = partial(stream, seed, "oracle", image)
    return ORACLES[oracle.name](oracle, label, indices, class_names, draw).astype(np.int64)


def _ground_truth(
    oracle: GroundTruthSpec, label: Labels, indices: Indices, class_names: Sequence[str], draw: Draw
) -> Labels:
    said: Labels = label.reshape(-1)[indices]
    return said


def _erring(
    oracle: ErringSpec, label: Labels, indices: Indices, class_names: Sequence[str], draw: Draw
) -> npt.NDArray[np.int64]:
    """A number in 0..1 for every pixel of the image, asked or not, decides its answer: so it never changes."""
    truth = label.reshape(-1)[indices].astype(np.int64)
    cumulative = np.cumsum(_confusion(oracle, class_names), axis=1)
    chance = draw().random(label.size)[indices]
    said: npt.NDArray[np.int64] = (chance[:, None] >= cumulative[truth]).sum(axis=1)
    return np.minimum(said, len(class_names) - 1)  # a row may end a rounding error below 1


def _confusion(oracle: ErringSpec, class_names: Sequence[str]) -> npt.NDArray[np.float64]:
    """(C, C) probability of each answer by true class."""
    count = len(class_names)
    wrong = (1 - np.eye(count)) * (oracle.rate or 0.0) / (count - 1)
    for truth, said in (oracle.confusion or {}).items():
        for name, probability in said.items():
            wrong[class_names.index(truth), class_names.index(name)] = probability
    return wrong + np.diag(1 - wrong.sum(axis=1))


ORACLES: dict[str, Callable[[Any, Labels, Indices, Sequence[str], Draw], npt.NDArray[Any]]] = {
    "ground_truth": _ground_truth,
    "erring": _erring,
}


def check_oracle(oracle: GroundTruthSpec | ErringSpec, class_names: Sequence[str]) -> None:
    """SpecError when an oracle speaks of classes that the data set does not have."""
    if isinstance(oracle, ErringSpec):
        for name in [name for truth, said in (oracle.confusion or {}).items() for name in (truth, *said)]:
            if name not in class_names:
                raise SpecError(f"oracle.confusion: no class {name!r}; the data set has {', '.join(class_names)}")
