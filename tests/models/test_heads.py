"""Heads on frozen features, against scikit-learn and by their properties."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from pixelpick_ray.config.model import PIXEL_HEADS, KnnSpec, LinearSpec, MlpSpec, PrototypeSpec
from pixelpick_ray.models import heads
from pixelpick_ray.models.heads import LabelledVectors, fit_head, head_of

pytestmark = pytest.mark.training

CLASSES, WIDTH = 4, 12
ZERO = torch.zeros(CLASSES, WIDTH), torch.zeros(CLASSES)
SPECS = [
    LinearSpec(l2=0.03),
    LinearSpec(),
    MlpSpec(hidden=(16,), lr=0.02, batch_size=32),
    MlpSpec(hidden=(), lr=0.02, batch_size=32),
    KnnSpec(k=5),
    PrototypeSpec(),
]


def labelled(number: int = 400, *, seed: int = 0, half: bool = False) -> LabelledVectors:
    """Vectors of classes that overlap, with features of other scales, from twenty images."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(CLASSES, size=number)
    centres = rng.normal(size=(CLASSES, WIDTH))
    vectors = (centres[classes] + rng.normal(size=(number, WIDTH))) * np.geomspace(0.1, 30, WIDTH) + 5
    kept = vectors.astype(np.float16 if half else np.float32)
    return LabelledVectors(kept, np.eye(CLASSES, dtype=np.float32)[classes], np.arange(number) % 20)


def standardised(data: LabelledVectors) -> np.ndarray:
    values = data.vectors.astype(np.float64)
    return (values - values.mean(axis=0)) / values.std(axis=0)


def fitted(spec: object, data: LabelledVectors, seed: int = 0) -> nn.Module:
    return fit_head(spec, data, num_classes=CLASSES, seed=seed, stage=0)


def shares(head: nn.Module, data: LabelledVectors) -> np.ndarray:
    with torch.inference_mode():
        logits = head(torch.from_numpy(data.vectors).float().T[None, :, :, None])
    found: np.ndarray = logits.softmax(dim=1)[0, :, :, 0].T.numpy()
    return found


@pytest.mark.parametrize("l2", [0.3, 0.003])
def test_linear_is_the_logistic_regression_of_scikit_learn(l2: float) -> None:
    data = labelled()
    reference = LogisticRegression(C=1 / (l2 * len(data.vectors)), tol=1e-8, max_iter=5000)
    reference.fit(standardised(data), data.counts.argmax(axis=1))
    expected = reference.predict_proba(standardised(data))
    np.testing.assert_allclose(shares(fitted(LinearSpec(l2=l2), data), data), expected, atol=1e-2)


def test_knn_is_that_of_scikit_learn() -> None:
    data, spec = labelled(), KnnSpec(k=7, temperature=0.2)
    reference = KNeighborsClassifier(7, metric="cosine", weights=lambda distance: np.exp(-distance / 0.2))
    reference.fit(standardised(data), data.counts.argmax(axis=1))
    expected = reference.predict_proba(standardised(data))
    np.testing.assert_allclose(shares(fitted(spec, data), data), expected, atol=5e-3)  # kept as float16


def test_a_prototype_is_the_mean_direction_of_its_class() -> None:
    data = labelled()
    unit = standardised(data)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    means = data.counts.T @ unit
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    powers = np.exp(unit @ means.T / 0.07)
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares(fitted(PrototypeSpec(), data), data), expected, atol=1e-4)
    known = data.where(data.counts.argmax(axis=1) != 2)  # a class without pixels is the least likely
    assert (shares(fitted(PrototypeSpec(), known), data).argmin(axis=1) == 2).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_head_learns_and_comes_back_from_its_tensors(spec: object) -> None:
    """It depends on the data, which stay as they were, and one that draws on the seed; an image on no other one."""
    assert {one.name for one in SPECS} == PIXEL_HEADS.keys()
    data = labelled()
    torch.manual_seed(1)
    head = fitted(spec, data)
    found = shares(head, data)
    right = (found.argmax(axis=1) == data.counts.argmax(axis=1)).mean()
    assert right > 0.6  # by chance 0.25
    again = head_of(spec, dict(reversed(head.state_dict().items())))  # safetensors gives them in any order
    np.testing.assert_array_equal(shares(again, data), found)
    np.testing.assert_array_equal(data.vectors, labelled().vectors)
    torch.manual_seed(2)
    np.testing.assert_array_equal(shares(fitted(spec, data), data), found)
    draws = isinstance(spec, MlpSpec)
    assert np.array_equal(shares(fitted(spec, data, seed=1), data), found) != draws
    maps = torch.randn(3, WIDTH, 6, 5, generator=torch.Generator().manual_seed(0)) * 3
    with torch.inference_mode():
        together, apart = head(maps), torch.cat([head(one[None]) for one in maps])
    assert together.shape == (3, CLASSES, 6, 5)
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, apart, **({} if draws else {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("spec", [LinearSpec(l2=0.1), KnnSpec(k=3), PrototypeSpec()], ids=str)
def test_a_vector_that_stands_for_several_pixels_counts_as_often(spec: object) -> None:
    data = labelled(120)
    heavy = shares(fitted(spec, LabelledVectors(data.vectors, data.counts * 2, data.images)), data)
    if isinstance(spec, KnnSpec):
        np.testing.assert_allclose(heavy, shares(fitted(spec, data), data))
    else:
        twice = data.where(np.tile(np.arange(120), 2))
        np.testing.assert_allclose(heavy, shares(fitted(spec, twice), data), atol=2e-3)


def test_cross_validation_leaves_whole_images_out() -> None:
    """Vectors of an image that are all alike: a weak penalty that learns them by heart is worse on other images."""
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(30), 20)
    marks = rng.normal(size=(30, WIDTH)) * 3
    classes = rng.integers(2, size=30)[images]
    vectors = (marks[images] + rng.normal(size=(600, WIDTH)) * 0.01).astype(np.float32)
    data = LabelledVectors(vectors, np.eye(CLASSES, dtype=np.float32)[classes], images)
    by_image = float(fitted(LinearSpec(), data).penalty)
    apart = LabelledVectors(vectors, data.counts, np.arange(600))
    assert by_image > float(fitted(LinearSpec(), apart).penalty)


def test_the_minimum_is_the_same_whatever_way_leads_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """From vectors in half precision, in several blocks, and where no axes are found."""
    data, half, spec = labelled(), labelled(half=True), LinearSpec(l2=0.1)
    usual = shares(fitted(spec, data), data)
    np.testing.assert_allclose(shares(fitted(spec, half), half), usual, rtol=0, atol=0.02)

    def fail(_: torch.Tensor) -> None:
        raise torch.linalg.LinAlgError("no convergence")

    with monkeypatch.context() as patch:
        patch.setattr(heads, "BLOCK", 64)
        np.testing.assert_allclose(shares(fitted(spec, data), data), usual, atol=2e-3)
    monkeypatch.setattr(torch.linalg, "eigh", fail)
    np.testing.assert_allclose(shares(fitted(spec, data), data), usual, atol=1e-2)


def test_of_many_vectors_cross_validation_looks_at_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "BLOCK", 100)
    looked_at = []
    monkeypatch.setattr(heads, "_regression", lambda some, *_: looked_at.append(len(some.vectors)) or ZERO)
    fitted(LinearSpec(), labelled(400))
    folds, whole = looked_at[:-1], looked_at[-1]
    assert whole == 400
    assert sum(folds[:3]) == 2 * 100  # each of three folds is fitted to the other two
