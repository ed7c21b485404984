"""Scenes must be the same everywhere and contain what an active learner needs."""

import hashlib

import numpy as np
import pytest

from pixelpick_ray.data import canvas, scenes

NUM_CLASSES = len(scenes.CLASS_NAMES)
# If this fails because pixels were meant to change, raise scenes.VERSION and put the new digests here.
GOLDEN = {
    ("train", (0, 1, 63)): "b48aea736e319c4a",
    ("val", (0, 1, 23)): "aa3c0420795cc8bf",
    ("test", (0, 1, 63)): "0abb3a6c6056c3dd",
}


def test_pixels_are_those_of_this_version() -> None:
    """Stored results are keyed by VERSION: other pixels under the same number would be mixed with them."""
    assert scenes.VERSION == 1
    for (split, indices), wanted in GOLDEN.items():
        pieces = (array.tobytes() for index in indices for array in scenes.scene(split, index))
        assert hashlib.sha256(b"".join(pieces)).hexdigest()[:16] == wanted


def test_pictures_have_the_declared_form_and_hard_classes_and_none_occurs_twice() -> None:
    """Choosing pixels pays where some classes are seldom met by chance, but none may be too seldom to be learnt.

    Void in each picture exercises its exclusion; budgets of the examples stay below 200 pixels per image. A picture
    shared by two splits would leak labels into the test.
    """
    pictures = set()
    for split, size in scenes.SPLIT_SIZES.items():
        images, labels = map(np.stack, zip(*(scenes.scene(split, index) for index in range(size)), strict=True))
        assert images.shape == (size, *canvas.SIZE, 3)
        assert labels.shape == images.shape[:3]
        assert images.dtype == labels.dtype == np.uint8
        assert set(np.unique(labels)) == {*range(NUM_CLASSES), scenes.VOID}
        counts = np.bincount(labels[labels != scenes.VOID], minlength=NUM_CLASSES)
        share = counts / counts.sum()
        assert share.min() > 0.002
        assert all(share[scenes.CLASS_NAMES.index(name)] < 0.02 for name in ("pedestrian", "sign", "pole"))
        blank = (labels == scenes.VOID).mean(axis=(1, 2))
        assert 0.01 < blank.min() <= blank.max() < 0.15
        pictures |= {image.tobytes() for image in images}
    assert len(pictures) == sum(scenes.SPLIT_SIZES.values())


def test_an_unknown_split_or_an_index_outside_of_it_is_refused() -> None:
    """A negative index would otherwise name a picture that no split counts."""
    with pytest.raises(KeyError, match=r"'dev'; it has train, val, test"):
        scenes.scene("dev", 0)
    for index in (-1, 24):
        with pytest.raises(IndexError, match=rf"scenes/val has no picture {index}; it has 0 to 23"):
            scenes.scene("val", index)
