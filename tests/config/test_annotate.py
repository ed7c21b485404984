"""Keys of classes: every class has one of its own, people's wishes come first, and what cannot be is answered."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelpick_ray.config.annotate import KEYS, class_keys
from pixelpick_ray.config.trial import DatasetSpec
from pixelpick_ray.config.yaml_text import read_yaml
from pixelpick_ray.data.datasets import open_dataset
from pixelpick_ray.errors import SpecError
from tests.support.experiments import WRONG

LINE = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=12)
NAMES = st.lists(LINE, min_size=1, max_size=len(KEYS), unique=True)


def names_of(dataset: str) -> tuple[str, ...]:
    return open_dataset(DatasetSpec(name=dataset), Path("nowhere")).facts.class_names


def refusal(names: tuple[str, ...], wanted: dict[str, str]) -> str:
    with pytest.raises(SpecError) as caught:
        class_keys(names, wanted)
    message = str(caught.value)
    assert message.startswith("annotate.keys: ")
    assert len(message.splitlines()) == 1
    return message


SHARED = {"sky": "s", "building": "b", "pole": "p", "road": "r", "pavement": "a", "tree": "t"}


def test_classes_have_the_letters_that_one_would_guess() -> None:
    """None takes the first letter of another."""
    camvid = {"sign symbol": "i", "fence": "f", "car": "c", "pedestrian": "e", "bicyclist": "y"}
    assert class_keys(names_of("camvid"), {}) == SHARED | camvid
    assert class_keys(names_of("scenes"), {}) == SHARED | {"sign": "i", "car": "c", "pedestrian": "e"}
    # Of bus and tree in Cityscapes, and of cat and chair in VOC, all letters are taken.
    for dataset, letters in (("cityscapes", "rsbwfptavekoicudnmy"), ("voc", "bairolucjkwdghmpesftv")):
        assert "".join(class_keys(names_of(dataset), {}).values()) == letters


@pytest.mark.parametrize(
    ("names", "wanted", "keys"),
    [
        ("sky, stop-sign 2nd_light", {}, "s n"),  # the first letter of a word in the middle
        ("lane, Light, traffic Light post", {}, "l i t"),
        ("tree, lane, traffic Light post", {}, "t l p"),
        ("天, 12, ant, ß", {}, "b c a d"),  # without letters: what is left
        ("sky, road, rail", {"rail": "r", "sky": "9"}, "9 o r"),  # a wanted key is of no other class
        ("sky, road", {"road": "S"}, "s S"),
    ],
)
def test_keys_by_hand(names: str, wanted: dict[str, str], keys: str) -> None:
    assert " ".join(class_keys(names.split(", "), wanted).values()) == keys


@given(NAMES, st.data())
def test_every_class_has_a_key_of_its_own_and_a_wanted_one_stays(names: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True))
    order = data.draw(st.permutations(KEYS))
    wanted = dict(zip(chosen, order, strict=False))
    keys = class_keys(names, wanted)
    assert list(keys) == names
    assert len(set(keys.values())) == len(names)
    assert set(keys.values()) <= set(KEYS)
    assert {name: keys[name] for name in wanted} == wanted
    assert class_keys(names, dict(reversed(wanted.items()))) == keys
    for name, key in class_keys(names, {}).items():  # a letter of the name is passed over when it is taken
        letters = {letter.lower() for letter in name if letter.isascii() and letter.isalpha()}
        assert key in letters or letters <= set(class_keys(names, {}).values())


@pytest.mark.parametrize("case", WRONG["keys"], ids=lambda case: " ".join(case["wanted"]))
def test_clashes_forbidden_keys_and_unknown_classes_are_answered_with_keys_that_work(case: dict[str, Any]) -> None:
    told, names = refusal(tuple(case["names"]), case["wanted"]), tuple(case["names"])
    assert told == f"annotate.keys: {case['told']}"
    proposal = read_yaml(told.partition("for example, use ")[2] or "{}", "proposal")
    assert class_keys(names, proposal).items() >= proposal.items()
    for key in ("0", ".", "?", "+", "-", " "):
        assert f"annotate.keys: {key!r} for b is reserved by the page (allowed are" in refusal(("a", "b"), {"b": key})


def test_more_classes_than_keys_are_refused_with_what_to_do() -> None:
    names = tuple(f"class {number}" for number in range(62))
    assert refusal(names, {}) == (
        "annotate.keys: 62 classes, but only 61 keys (a-z, 1-9 and A-Z); merge classes in the label maps and in "
        "dataset.yaml"
    )
    assert set(class_keys(names[:61], {}).values()) == set(KEYS)
