"""Oracles, which label queried pixels, by name in ``ORACLES``.

An external oracle is a function of an `OracleRequest` and of the options that the experiment passes as keywords.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelpick_ray.config import parts
from pixelpick_ray.config.trial import ErringSpec, ExternalOracleSpec, GroundTruthSpec, HumanSpec
from pixelpick_ray.data.answers import Book
from pixelpick_ray.data.labels import IntArray
from pixelpick_ray.data.questions import UNSAID, Questions
from pixelpick_ray.data.streams import stream
from pixelpick_ray.errors import SpecError

LabelArray = npt.NDArray[np.int64]
AnyOracle = GroundTruthSpec | ErringSpec | HumanSpec | ExternalOracleSpec


class Unanswered(Exception):
    """Raised while people have not answered all questions: `missing` out of `asked`."""

    def __init__(self, missing: int, asked: int) -> None:
        super().__init__(missing, asked)
        self.missing, self.asked = missing, asked


@dataclass(frozen=True)
class OracleRequest:
    """The questions for an oracle, with class names and seed; people's answers are in `book`."""

    questions: Questions
    class_names: Sequence[str]
    seed: int
    book: Book | None = None


def answer(oracle: AnyOracle, asked: OracleRequest) -> LabelArray:
    """The oracle's labels (k,): class indices, and from people also VOID or UNKNOWN.

    Raises Unanswered if people have not answered every question, SpecError for invalid answers of external oracles.
    """
    return ORACLES[oracle.name].answer(oracle, asked) if oracle.name in ORACLES else _external(oracle, asked)


def _ground_truth(oracle: GroundTruthSpec, asked: OracleRequest) -> LabelArray:
    return asked.questions.truth.astype(np.int64)


def _erring(oracle: ErringSpec, asked: OracleRequest) -> LabelArray:
    """Answers are determined by a random number for every pixel of the image, so they do not depend on the queries."""
    questions = asked.questions
    truth = questions.truth.astype(np.int64)
    if oracle.redrawn or (oracle.starts == "queries" and questions.stage == 0):
        return truth
    chance = np.empty(len(questions))
    for index, (name, size) in enumerate(zip(questions.names, questions.shapes.tolist(), strict=True)):
        here = questions.image == index
        chance[here] = _chance(asked.seed, name, size, questions.y[here], questions.x[here])
    return _called(_confusion(oracle, asked.class_names), truth, chance)


@dataclass(frozen=True)
class ImagePixels:
    """Labelled pixels of one image of `size` (height, width): coordinates, true classes and stages (k,)."""

    name: str
    size: tuple[int, int]
    y: IntArray
    x: IntArray
    truth: LabelArray
    stage: IntArray


def redrawn(
    oracle: ErringSpec, pixels: ImagePixels, class_names: Sequence[str], seed: int, rng: np.random.Generator
) -> LabelArray:
    """Labels (k,) for one training step: `seed` fixes which pixels are wrong, `rng` draws their classes."""
    truth = pixels.truth
    wrong = _confusion(oracle, class_names)
    np.fill_diagonal(wrong, 0.0)
    share = wrong.sum(axis=1)[truth]
    errs = _chance(seed, pixels.name, pixels.size, pixels.y, pixels.x) < share
    if oracle.starts == "queries":
        errs &= pixels.stage > 0
    return np.where(errs, _called(wrong, truth, rng.random(len(truth)) * share), truth)


def _chance(seed: int, name: str, size: Sequence[int], y: IntArray, x: IntArray) -> npt.NDArray[np.float64]:
    """Random numbers (k,) in 0..1 that determine the answers at pixels of an image of `size` (height, width)."""
    draws = stream(seed, "oracle", name).random(size[0] * size[1])
    chosen: npt.NDArray[np.float64] = draws[y * size[1] + x]
    return chosen


def _called(confusion: npt.NDArray[np.float64], truth: LabelArray, chance: npt.NDArray[np.float64]) -> LabelArray:
    """Classes (k,) by inverse transform sampling from the rows of the true classes, with `chance` (k,) in 0..1."""
    said: LabelArray = (chance[:, None] >= np.cumsum(confusion, axis=1)[truth]).sum(axis=1)
    return np.minimum(said, len(confusion) - 1)  # a row may sum to slightly less than 1


def _confusion(oracle: ErringSpec, class_names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Probability (C, C) of each answer (column) by true class (row)."""
    count = len(class_names)
    wrong = (1 - np.eye(count)) * (oracle.rate or 0.0) / (count - 1)
    for truth, said in (oracle.confusion or {}).items():
        for name, probability in said.items():
            wrong[class_names.index(truth), class_names.index(name)] = probability
    return wrong + np.diag(1 - wrong.sum(axis=1))


def _human(oracle: HumanSpec, asked: OracleRequest) -> LabelArray:
    if asked.book is None:
        raise AssertionError("people answer into a book")
    labels = asked.book.labels(asked.questions, asked.class_names)
    missing = int((labels == UNSAID).sum())
    if missing:
        raise Unanswered(missing, len(labels))
    return labels


def _external(oracle: Any, asked: OracleRequest) -> LabelArray:
    """Answers of an external function. Raises SpecError unless there is one class index per question."""
    said = np.asarray(parts.load("oracle", oracle.name)(asked, **oracle.options))
    count = len(asked.class_names)
    if said.shape != (len(asked.questions),) or said.dtype.kind not in "iu" or not ((said >= 0) & (said < count)).all():
        raise SpecError(
            f"{oracle.name}: returned {said.dtype} {list(said.shape)} for {len(asked.questions)} questions; expected "
            f"{len(asked.questions)} integers from 0 to {count - 1}"
        )
    return said.astype(np.int64)


@dataclass(frozen=True)
class Oracle:
    """An oracle's function. Increment `version` when its answers change: its picks are then recomputed."""

    answer: Callable[[Any, OracleRequest], LabelArray]
    version: int = 1


ORACLES: Mapping[str, Oracle] = {
    "ground_truth": Oracle(_ground_truth),
    "erring": Oracle(_erring),
    "human": Oracle(_human),
}


def oracle_version(name: str) -> int:
    """The version of a built-in oracle; 1 for an external one, whose resolved name identifies its code."""
    return ORACLES[name].version if name in ORACLES else 1


def check_oracle(oracle: AnyOracle, class_names: Sequence[str]) -> None:
    """Raise SpecError if an oracle's confusion matrix names classes that are not in the data set."""
    if isinstance(oracle, ErringSpec):
        for name in [name for truth, said in (oracle.confusion or {}).items() for name in (truth, *said)]:
            if name not in class_names:
                raise SpecError(f"oracle.confusion: unknown class {name!r}; the data set has {', '.join(class_names)}")
