"""Scenes must be the same everywhere, contain what an active learner needs, and not be solvable by colour alone."""

import hashlib
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from pixelpick_ray.data import canvas, scenes

NUM_CLASSES = len(scenes.CLASS_NAMES)
RARE = ("pedestrian", "sign", "pole")
# If this fails because pixels were meant to change, raise scenes.VERSION and put the new digests here.
GOLDEN = {
    ("train", (0, 1, 63)): "b48aea736e319c4a",
    ("val", (0, 1, 23)): "aa3c0420795cc8bf",
    ("test", (0, 1, 63)): "0abb3a6c6056c3dd",
}


@cache
def load(split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return all images (N, H, W, 3) and labels (N, H, W) of a split."""
    images, labels = zip(*(scenes.scene(split, index) for index in range(scenes.SPLIT_SIZES[split])), strict=True)
    return np.stack(images), np.stack(labels)


def test_pixels_are_those_of_this_version() -> None:
    """Stored results are keyed by VERSION: other pixels under the same number would be mixed with them."""
    assert scenes.VERSION == 1
    for (split, indices), wanted in GOLDEN.items():
        pieces = (array.tobytes() for index in indices for array in scenes.scene(split, index))
        assert hashlib.sha256(b"".join(pieces)).hexdigest()[:16] == wanted


@pytest.mark.parametrize("split", scenes.SPLIT_SIZES)
def test_pictures_have_the_declared_form_and_hard_classes(split: str) -> None:
    """Choosing pixels pays where some classes are seldom met by chance, but none may be too seldom to be learnt.

    Void in each picture exercises its exclusion; budgets of the examples stay below 200 pixels per image.
    """
    images, labels = load(split)
    assert images.shape == (scenes.SPLIT_SIZES[split], *canvas.SIZE, 3)
    assert labels.shape == images.shape[:3]
    assert images.dtype == labels.dtype == np.uint8
    assert set(np.unique(labels)) == {*range(NUM_CLASSES), scenes.VOID}
    counts = np.bincount(labels[labels != scenes.VOID], minlength=NUM_CLASSES)
    share = counts / counts.sum()
    assert share.min() > 0.002
    assert all(share[scenes.CLASS_NAMES.index(name)] < 0.02 for name in RARE)
    blank = (labels == scenes.VOID).mean(axis=(1, 2))
    assert 0.01 < blank.min() <= blank.max() < 0.15


def test_no_picture_occurs_twice() -> None:
    """A picture shared by two splits would leak labels into the test."""
    pictures = [image.tobytes() for split in scenes.SPLIT_SIZES for image in load(split)[0]]
    assert len(set(pictures)) == len(pictures) == sum(scenes.SPLIT_SIZES.values())


def test_colour_alone_does_not_tell_the_classes() -> None:
    """A network must use texture, shape and place, else every strategy would look alike."""
    images, labels = load("train")
    means = np.stack([images[labels == label].mean(axis=0) for label in range(NUM_CLASSES)])
    images, labels = load("test")
    known = labels != scenes.VOID
    distance = [((images[known] - mean) ** 2).sum(axis=-1) for mean in means]
    guess, truth = np.argmin(distance, axis=0), labels[known].astype(np.int64)
    confusion = np.bincount(truth * NUM_CLASSES + guess, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)
    hits = np.diag(confusion)
    assert hits.sum() / confusion.sum() < 0.75
    assert (hits / (confusion.sum(axis=0) + confusion.sum(axis=1) - hits)).mean() < 0.45


def test_an_unknown_split_or_an_index_outside_of_it_is_refused() -> None:
    """A negative index would otherwise name a picture that no split counts."""
    with pytest.raises(KeyError, match=r"'dev'; it has train, val, test"):
        scenes.scene("dev", 0)
    for index in (-1, 24):
        with pytest.raises(IndexError, match=rf"scenes/val has no picture {index}; it has 0 to 23"):
            scenes.scene("val", index)
