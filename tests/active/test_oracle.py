"""Oracles: the truth, and annotators who err as often and in the way that the spec says."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelpick_ray.active.oracle import ORACLES, ImagePixels, OracleRequest, answer, check_oracle, redrawn
from pixelpick_ray.config.trial import ErringSpec, GroundTruthSpec
from pixelpick_ray.data.questions import Questions
from pixelpick_ray.errors import SpecError

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
    oracle: GroundTruthSpec | ErringSpec,
    label: npt.NDArray[np.uint8],
    indices: list[int],
    *,
    seed: int = 0,
    image: str = "a.png",
    stage: int = 0,
) -> npt.NDArray[np.int64]:
    """The answers in the order of the indices."""
    order = np.argsort(indices, kind="stable")
    y, x = np.divmod(np.asarray(indices, dtype=np.int64)[order], label.shape[1])
    count = len(indices)
    repeated = {"names": image, "shapes": label.shape, "predicted": -1, "entropy": np.nan, "distance": 0.0}
    columns = {name: [value] * count for name, value in repeated.items()}
    questions = Questions.of(y=y, x=x, truth=label[y, x], stage=stage, **columns)
    said = np.empty(count, dtype=np.int64)
    said[order] = answer(oracle, OracleRequest(questions, NAMES, seed))
    return said


def label_map(height: int = 40, width: int = 50) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, CLASSES, (height, width), dtype=np.uint8)


@pytest.mark.parametrize("kind", EVERY)
class TestEveryOracle:
    """The contract of an oracle."""

    def test_answers_each_asked_pixel_with_a_class_in_the_order_asked(self, kind: str) -> None:
        answers = ask(EVERY[kind], label_map(), [7, 3, 1999, 50])
        assert answers.shape == (4,)
        assert set(answers.tolist()) <= set(range(CLASSES))
        assert answers.tolist() == ask(EVERY[kind], label_map(), [50, 1999, 3, 7])[::-1].tolist()
        assert len(ask(EVERY[kind], label_map(), [])) == 0
        assert EVERY[kind].name in ORACLES

    def test_says_the_same_of_a_pixel_whatever_is_asked_beside_it(self, kind: str) -> None:
        everything = ask(EVERY[kind], label_map(), list(range(2000)))
        assert ask(EVERY[kind], label_map(), list(range(0, 2000, 7))).tolist() == everything[::7].tolist()


@given(height=st.integers(1, 9), width=st.integers(1, 9), data=st.data())
def test_the_ground_truth_answers_with_the_label_under_the_pixel(height: int, width: int, data: st.DataObject) -> None:
    label = label_map(height, width)
    indices = data.draw(st.lists(st.integers(0, height * width - 1), unique=True, max_size=9))
    assert ask(GroundTruthSpec(), label, indices).tolist() == [label[divmod(index, width)] for index in indices]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_errors_come_at_the_rate_and_evenly_among_the_other_classes(rate: float) -> None:
    label = label_map(200, 200)
    said = ask(ErringSpec(name="erring", rate=rate), label, list(range(40000)))
    truth = label.ravel()
    assert np.mean(said != truth) == pytest.approx(rate, abs=0.01 if 0 < rate < 1 else 0)
    for true in range(CLASSES):
        wrong = said[(truth == true) & (said != truth)]
        if rate:
            shares = np.bincount(wrong, minlength=CLASSES) / len(wrong)
            assert np.delete(shares, true) == pytest.approx([1 / 3] * 3, abs=0.03)


def test_a_confusion_matrix_says_how_each_class_is_called() -> None:
    label = label_map(200, 200)
    said = ask(EVERY["erring by a matrix"], label, list(range(40000)))
    for true, row in enumerate(CONFUSION):
        called = said[label.ravel() == true]
        shares = np.bincount(called, minlength=CLASSES) / len(called)
        assert shares == pytest.approx(row, abs=0.02)
        assert (shares[np.asarray(row) == 0] == 0).all()


def test_annotators_of_other_seeds_and_images_err_elsewhere() -> None:
    label, oracle = label_map(), EVERY["erring at a rate"]
    one, other_seed, other_image = (
        ask(oracle, label, list(range(2000)), seed=seed, image=image).tolist()
        for seed, image in ((0, "a.png"), (1, "a.png"), (0, "b.png"))
    )
    assert one != other_seed != other_image != one


def test_an_annotator_may_err_on_queries_only() -> None:
    label, everything = label_map(), list(range(2000))
    oracle = ErringSpec(name="erring", rate=0.3, **{"from": "queries"})
    assert (ask(oracle, label, everything) == label.ravel()).all()
    asked = ask(oracle, label, everything, stage=1)
    assert asked.tolist() == ask(EVERY["erring at a rate"], label, everything).tolist()


def redraw(oracle: ErringSpec, label: npt.NDArray[np.uint8], draw: int, stage: int = 1) -> npt.NDArray[np.int64]:
    """What all pixels of a label map are called in a training step."""
    y, x = (column.astype(np.int32) for column in np.divmod(np.arange(label.size), label.shape[1]))
    pixels = ImagePixels("a.png", label.shape, y, x, label.ravel().astype(np.int64), np.full(label.size, stage))
    return redrawn(oracle, pixels, NAMES, 0, np.random.default_rng(draw))


@pytest.mark.parametrize("how", [{"rate": 0.1}, {"confusion": MISTAKES}], ids=str)
def test_redrawn_mistakes_are_of_the_same_pixels_and_called_anew(how: dict[str, Any]) -> None:
    label = label_map(200, 200)
    truth = label.ravel()
    oracle = ErringSpec(name="erring", redrawn=True, **how)
    assert (ask(oracle, label, list(range(2000)), stage=1) == truth[:2000]).all()  # the truth is stored
    said = [redraw(oracle, label, draw) for draw in range(4)]
    wrong = said[0] != truth
    for one in said[1:]:
        assert ((one != truth) == wrong).all()
    lasting = ask(ErringSpec(name="erring", **how), label, list(range(len(truth))))
    assert wrong.mean() == pytest.approx((lasting != truth).mean(), abs=0.01)
    shares = [np.bincount(one[truth == 2], minlength=CLASSES) / (truth == 2).sum() for one in (said[0], lasting)]
    assert shares[0] == pytest.approx(shares[1], abs=0.02)
    several = (said[0] != said[1])[wrong & (truth == 2)].mean()
    assert several == pytest.approx(2 / 3, abs=0.05)  # one of three other classes, each time anew
    first = redraw(ErringSpec(name="erring", redrawn=True, **how, **{"from": "queries"}), label, 0, stage=0)
    assert (first == truth).all()


def test_classes_that_the_data_set_does_not_have_are_refused() -> None:
    check_oracle(EVERY["erring by a matrix"], NAMES)
    with pytest.raises(SpecError, match=r"oracle\.confusion: no class 'tree'; the data set has sky, road, car"):
        check_oracle(EVERY["erring by a matrix"], NAMES[:3])
