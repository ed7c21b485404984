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


def written(dataset: str) -> str:
    """The keys of a data set's classes, one after the other."""
    return "".join(class_keys(names_of(dataset), {}).values())


def refusal(names: tuple[str, ...], wanted: dict[str, str]) -> str:
    with pytest.raises(SpecError) as caught:
        class_keys(names, wanted)
    message = str(caught.value)
    assert message.startswith("annotate.keys: ")
    assert len(message.splitlines()) == 1
    return message


SHARED = {"sky": "s", "building": "b", "pole": "p", "road": "r", "pavement": "a", "tree": "t"}


def test_classes_have_the_letters_that_one_would_guess() -> None:
    camvid = {"sign symbol": "i", "fence": "f", "car": "c", "pedestrian": "e", "bicyclist": "y"}
    assert class_keys(names_of("camvid"), {}) == SHARED | camvid
    assert class_keys(names_of("scenes"), {}) == SHARED | {"sign": "i", "car": "c", "pedestrian": "e"}


def test_no_class_takes_the_first_letter_of_another_in_cityscapes_and_voc() -> None:
    assert written("cityscapes") == "rsbwfptavekoicudnmy"  # of bus all letters are taken
    assert written("voc") == "bairolucjkwdghmpesftv"  # so they are of cat and chair
    for dataset in ("cityscapes", "voc"):
        keys = class_keys(names_of(dataset), {})
        firsts = {name[0] for name in keys}
        assert {key for name, key in keys.items() if name[0] == key} == firsts


def test_a_word_in_the_middle_gives_its_first_letter() -> None:
    assert class_keys(("sky", "stop-sign 2nd_light"), {}) == {"sky": "s", "stop-sign 2nd_light": "n"}
    assert class_keys(("lane", "Light", "traffic Light post"), {})["traffic Light post"] == "t"
    assert class_keys(("tree", "lane", "traffic Light post"), {})["traffic Light post"] == "p"


def test_names_without_letters_get_what_is_left_and_a_wanted_key_is_not_given_to_another_class() -> None:
    assert class_keys(("天", "12", "ant", "ß"), {}) == {"天": "b", "12": "c", "ant": "a", "ß": "d"}
    assert class_keys(("sky", "road", "rail"), {"rail": "r", "sky": "9"}) == {"sky": "9", "road": "o", "rail": "r"}
    assert class_keys(("sky", "road"), {"road": "S"}) == {"sky": "s", "road": "S"}


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


@given(NAMES)
def test_a_letter_of_the_name_is_only_passed_over_when_it_is_taken(names: list[str]) -> None:
    keys = class_keys(names, {})
    for name, key in keys.items():
        letters = {letter.lower() for letter in name if letter.isascii() and letter.isalpha()}
        assert key in letters or letters <= set(keys.values())


@pytest.mark.parametrize("case", WRONG["keys"], ids=lambda case: " ".join(case["wanted"]))
def test_clashes_forbidden_keys_and_unknown_classes_are_answered_with_keys_that_work(case: dict[str, Any]) -> None:
    assert refusal(tuple(case["names"]), case["wanted"]) == f"annotate.keys: {case['told']}"


def test_keys_of_the_page_are_refused() -> None:
    for key in ("0", ".", "?", "+", "-", " "):
        assert f"annotate.keys: {key!r} of b is a command of the page, allowed are" in refusal(("a", "b"), {"b": key})


@given(NAMES.filter(lambda names: len(names) > 1), st.data())
def test_a_proposal_is_accepted_and_keeps_the_first_owners(names: list[str], data: st.DataObject) -> None:
    wanted = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from("abc0."), min_size=1))
    allowed = [wanted[name] for name in names if wanted.get(name, "0") in KEYS]
    if len(allowed) == len(wanted) == len(set(allowed)):
        assert class_keys(names, wanted).items() >= wanted.items()
        return
    proposal = read_yaml(refusal(tuple(names), wanted).partition("one that works: ")[2], "proposal")
    assert class_keys(names, proposal) == proposal
    for key in set(allowed):
        assert proposal[next(name for name in names if wanted.get(name) == key)] == key


def test_more_classes_than_keys_are_refused_with_what_to_do() -> None:
    names = tuple(f"class {number}" for number in range(62))
    assert refusal(names, {}) == (
        "annotate.keys: 62 classes, and 61 keys (a-z, 1-9 and A-Z), so that one key cannot name each; merge classes "
        "in the label maps and the description of the data set"
    )
    assert set(class_keys(names[:61], {}).values()) == set(KEYS)
