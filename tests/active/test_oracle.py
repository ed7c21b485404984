"""Oracles: the truth, and annotators who err as often and in the way that the spec says."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pixelpick_ray.active.oracle import ORACLES, ImagePixels, OracleRequest, answer, redrawn
from pixelpick_ray.config.trial import ErringSpec, GroundTruthSpec
from pixelpick_ray.data.questions import Questions

NAMES = ("sky", "road", "car", "tree")
CLASSES = len(NAMES)
CONFUSION = ((0.7, 0.3, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.25, 0.25, 0.25, 0.25), (1.0, 0.0, 0.0, 0.0))
MISTAKES = {"sky": {"road": 0.3}, "car": {"sky": 0.25, "road": 0.25, "tree": 0.25}, "tree": {"sky": 1.0}}
EVERY = {
    "ground_truth": GroundTruthSpec(),
    "erring at a rate": ErringSpec(name="erring", rate=0.3),
    "erring by a matrix": ErringSpec(name="erring", confusion=MISTAKES),
}


def ask(
    oracle: Any, label: npt.NDArray[np.uint8], indices: list[int], *, seed: int = 0, image: str = "a", stage: int = 0
) -> npt.NDArray[np.int64]:
    """The answers at ascending indices."""
    y, x = np.divmod(np.asarray(indices, dtype=np.int64), label.shape[1])
    repeated = {"names": image, "shapes": label.shape, "predicted": -1, "entropy": np.nan, "distance": 0.0}
    columns = {name: [value] * len(indices) for name, value in repeated.items()}
    questions = Questions.of(y=y, x=x, truth=label[y, x], stage=stage, **columns)
    return answer(oracle, OracleRequest(questions, NAMES, seed))


def label_map(height: int = 40, width: int = 50) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, CLASSES, (height, width), dtype=np.uint8)


@pytest.mark.parametrize("kind", EVERY)
def test_every_oracle_says_the_same_of_a_pixel_whatever_is_asked_beside_it(kind: str) -> None:
    """Of the ground truth it is the label under the pixel."""
    everything = ask(EVERY[kind], label_map(), list(range(2000)))
    assert set(everything.tolist()) <= set(range(CLASSES))
    for indices in ([3, 7, 50, 1999], list(range(0, 2000, 7)), []):
        assert ask(EVERY[kind], label_map(), indices).tolist() == everything[indices].tolist()
    assert EVERY[kind].name in ORACLES
    assert (everything == label_map().ravel()).all() == (kind == "ground_truth")


def evenly(rate: float) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(1 - rate if true == called else rate / 3 for called in range(4)) for true in range(4))


@pytest.mark.parametrize(
    ("oracle", "shares"),
    [
        *((ErringSpec(name="erring", rate=rate), evenly(rate)) for rate in (0.0, 0.3, 1.0)),
        (EVERY["erring by a matrix"], CONFUSION),
    ],
    ids=["never", "at a rate", "always", "by a matrix"],
)
def test_errors_come_as_often_as_said(oracle: ErringSpec, shares: tuple[tuple[float, ...], ...]) -> None:
    label = label_map(200, 200)
    said = ask(oracle, label, list(range(40000)))
    for true, row in enumerate(shares):
        called = said[label.ravel() == true]
        found = np.bincount(called, minlength=CLASSES) / len(called)
        assert found == pytest.approx(row, abs=0.02)
        assert (found[np.asarray(row) == 0] == 0).all()


def test_annotators_of_other_seeds_and_images_err_elsewhere_and_some_on_queries_only() -> None:
    label, oracle, everything = label_map(), EVERY["erring at a rate"], list(range(2000))
    others = ({}, {"seed": 1}, {"image": "b"})
    one, other_seed, other_image = (ask(oracle, label, everything, **other).tolist() for other in others)
    assert one != other_seed != other_image != one
    late = ErringSpec(name="erring", rate=0.3, **{"from": "queries"})
    assert (ask(late, label, everything) == label.ravel()).all()
    assert ask(late, label, everything, stage=1).tolist() == one


def redraw(oracle: ErringSpec, label: npt.NDArray[np.uint8], draw: int, stage: int = 1) -> npt.NDArray[np.int64]:
    """What all pixels of a label map are called in a training step."""
    y, x = (column.astype(np.int32) for column in np.divmod(np.arange(label.size), label.shape[1]))
    pixels = ImagePixels("a", label.shape, y, x, label.ravel().astype(np.int64), np.full(label.size, stage))
    return redrawn(oracle, pixels, NAMES, 0, np.random.default_rng(draw))


@pytest.mark.parametrize("how", [{"rate": 0.1}, {"confusion": MISTAKES}], ids=str)
def test_redrawn_mistakes_are_of_the_same_pixels_and_called_anew(how: dict[str, Any]) -> None:
    label = label_map(200, 200)
    truth = label.ravel()
    oracle = ErringSpec(name="erring", redrawn=True, **how)
    assert (ask(oracle, label, list(range(2000)), stage=1) == truth[:2000]).all()  # the truth is stored
    said = [redraw(oracle, label, draw) for draw in range(2)]
    wrong = said[0] != truth
    assert ((said[1] != truth) == wrong).all()
    lasting = ask(ErringSpec(name="erring", **how), label, list(range(len(truth))))
    assert wrong.mean() == pytest.approx((lasting != truth).mean(), abs=0.01)
    shares = [np.bincount(one[truth == 2], minlength=CLASSES) / (truth == 2).sum() for one in (said[0], lasting)]
    assert shares[0] == pytest.approx(shares[1], abs=0.02)
    several = (said[0] != said[1])[wrong & (truth == 2)].mean()
    assert several == pytest.approx(2 / 3, abs=0.05)  # one of three other classes, each time anew
    first = redraw(ErringSpec(name="erring", redrawn=True, **how, **{"from": "queries"}), label, 0, stage=0)
    assert (first == truth).all()
