"""Exchange formats: nothing is lost that a format holds, and what other tools write is understood."""

import json
import pickle
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pixelpick_ray.annotate.exchange import (
    FORMATS,
    Exchanged,
    ExchangedPoint,
    answers_of,
    export,
    label_config,
    points_of,
    read,
)
from pixelpick_ray.annotate.formats.points import centre, pixel_at
from pixelpick_ray.data.answers import Answer, Book
from pixelpick_ray.data.questions import Questions
from pixelpick_ray.errors import DataError
from pixelpick_ray.store import Store
from tests.support.exchange_files import CLASSES, IMAGES, PALETTE, POINTS, WHOLE, back, entry, picture, point


def as_held(points: tuple[ExchangedPoint, ...], format_name: str) -> tuple[ExchangedPoint, ...]:
    """The points with the fields that the documentation of a format says that it holds."""
    if format_name != "queries":
        return points
    classes = [one for one in points if one.kind == "class" and not one.repeat]
    kept = classes if classes else [one for one in points if one.kind is None]
    unique = {one.place: one for one in kept}
    return tuple(point(y, x, image=image, kind=one.kind, label=one.label) for (image, y, x), one in unique.items())


# XML has no such characters, names in the package neither; U+FFFE and U+FFFF have a test of their own.
LETTERS = st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff")
NAMES = st.text(LETTERS, min_size=1, max_size=8) | st.sampled_from(
    ["none of the classes", "cannot tell", "open question", "a b", '"&<', "a/b=c.png", "0a1b2c3d-a.png", "%41", " x "]
)
LINES = st.text(LETTERS, min_size=1, max_size=8).map(str.strip).filter(bool)
SECONDS = st.none() | st.floats(0, 1e12)
SIDES = st.integers(1, 4000)


PICTURES = st.builds(picture, NAMES, SIDES, SIDES, SIDES, SIDES)


@st.composite
def exchanges(draw: st.DrawFn) -> Exchanged:
    classes = tuple(draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)))
    images = tuple(draw(st.lists(PICTURES, min_size=1, max_size=4, unique_by=lambda image: image.name)))
    ids = iter(draw(st.lists(LINES, min_size=8, max_size=8, unique=True)))
    points = {}
    for _ in range(draw(st.integers(0, 8))):
        image, kind = draw(st.sampled_from(images)), draw(st.sampled_from([None, "class", "class", "void", "unknown"]))
        one = point(
            *(draw(st.integers(0, image.height - 1)), draw(st.integers(0, image.width - 1))),
            image=image.name,
            kind=kind,
            label=draw(st.sampled_from(classes)) if kind == "class" else None,
            annotator=draw(st.none() | LINES),
            **{name: draw(SECONDS) for name in ("time", "seconds", "idle_seconds")},
            suggestion=draw(st.none() | st.sampled_from(classes)),
            repeat=kind is not None and draw(st.booleans()),
            id=draw(st.none() | st.just(next(ids))),
        )
        points[one.place, one.repeat] = one
    return Exchanged(classes, ((1, 2, 3),) * len(classes), images, tuple(points.values()))


@pytest.mark.parametrize("format_name", FORMATS)
@settings(max_examples=50)
@given(whole=exchanges())
@example(replace(WHOLE, points=POINTS[::-1]))
@example(replace(WHOLE, points=(point(3, 3), point(0, 0, image="city_1"))))
def test_a_round_trip_loses_nothing_that_the_format_holds(format_name: str, whole: Exchanged) -> None:
    if format_name == "label-studio":  # it shows a question only where nobody has answered
        said = {one.place for one in whole.points if one.kind is not None}
        whole = replace(whole, points=tuple(one for one in whole.points if one.kind or one.place not in said))
    found = back(export(whole, format_name), format_name, whole)
    there, kept = (
        sorted(one.model_dump_json() for one in some) for some in (found, as_held(whole.points, format_name))
    )
    assert there == kept
    assert [one.place for one in found] == sorted(one.place for one in found)  # reading order
    assert back(export(replace(whole, points=found), format_name), format_name, whole) == found


@given(st.integers(1, 10**6), st.integers(1, 10**6) | st.just(99.5), st.integers(1, 2000), st.data())
def test_every_pixel_comes_back_through_any_frame(
    prepared: int, extent: float, small: int, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, prepared - 1))
    assert pixel_at(centre(position, prepared, extent), prepared, extent) == position
    # Some tools round places to two decimals: enough for images that were not shrunk in the file.
    native = small + min(extent, 2000)
    assert pixel_at(round(centre(position % small, small, native), 2), small, native) == position % small


def test_coco_has_the_structure_of_coco() -> None:
    tree = json.loads(export(WHOLE, "coco"))
    for name in ("images", "annotations", "categories"):
        assert len({entry["id"] for entry in tree[name]}) == len(tree[name])
    image = {"file_name": "a b.png", "width": 18, "height": 8}
    assert tree["images"][0] == image | {"id": tree["images"][0]["id"]}
    assert {one["image_id"] for one in tree["annotations"]} <= {image["id"] for image in tree["images"]}
    names = {category["id"]: category["name"] for category in tree["categories"]}
    assert list(names.values()) == [*CLASSES, "none of the classes", "cannot tell", "open question"]
    assert {(*one["keypoints"], *one["skeleton"]) for one in tree["categories"]} == {("pixel",)}
    first, _, void, question, *_ = tree["annotations"]
    # 5.5 of 6 columns in 18, half of 4 rows in 8; a box of the pixel.
    place = {"keypoints": [16.5, 1.0, 2], "bbox": [15.0, 0.0, 3.0, 2.0], "area": 6.0, "num_keypoints": 1}
    assert first.items() >= (place | {"segmentation": [], "iscrowd": 0}).items()
    assert {frozenset(one) for one in tree["annotations"]} == {frozenset(first)}
    said = [names[one["category_id"]] for one in (first, void, question)]
    assert (said, question["keypoints"][2]) == (["road", "none of the classes", "open question"], 1)


def test_label_studio_gets_a_task_for_each_image_and_an_interface_that_fits_them() -> None:
    tasks = json.loads(export(WHOLE, "label-studio"))
    assert [task["data"]["image"] for task in tasks] == ["a b.png", """q"'&<é>.png""", "city_1_leftImg8bit.png"]
    first, empty, _ = tasks
    assert (empty["annotations"], empty["predictions"]) == ([], [])
    region = first["annotations"][0]["result"][0]
    assert (region["type"], region["value"]["keypointlabels"]) == ("keypointlabels", ["road"])
    assert (region["value"]["x"], region["value"]["y"]) == pytest.approx((100 * 5.5 / 6, 12.5))
    assert (region["original_width"], region["original_height"]) == (18, 8)
    (question,) = first["predictions"][0]["result"]
    assert question["value"]["keypointlabels"] == ["open question"]
    view = ElementTree.fromstring(label_config(CLASSES, PALETTE))
    (image,), (labels,) = view.findall("Image"), view.findall("KeyPointLabels")
    assert labels.get("toName") == image.get("name")
    assert (region["from_name"], region["to_name"]) == (labels.get("name"), image.get("name"))
    assert image.get("value") == "$image"
    rows = labels.findall("Label")
    assert [row.get("value") for row in rows] == [*CLASSES, "none of the classes", "cannot tell", "open question"]
    assert [row.get("background") for row in rows[:3]] == ["#804080", "#4682b4", "#00ff01"]
    assert [row.get("hotkey") for row in rows] == list("123456")
    many = ElementTree.fromstring(label_config([f"class {number}" for number in range(60)], [(1, 2, 3)] * 60))
    keys = [row.get("hotkey") for row in many.iter("Label")]
    assert (len(keys), len({*keys} - {None}), keys.count(None)) == (63, 25, 63 - 25)  # no two have the same


def test_cvat_has_the_structure_of_cvat() -> None:
    root = ElementTree.fromstring(export(WHOLE, "cvat"))
    assert (root.tag, root.findtext("version")) == ("annotations", "1.1")
    labels = [label.findtext("name") for label in root.iterfind("meta/task/labels/label")]
    assert labels == [*CLASSES, "none of the classes", "cannot tell", "open question"]
    assert root.findtext("meta/task/labels/label/color") == "#804080"
    images = root.findall("image")
    assert [image.attrib for image in images] == [
        {"id": "0", "name": "a b.png", "width": "18", "height": "8"},
        {"id": "1", "name": """q"'&<é>.png""", "width": "5", "height": "5"},
        {"id": "2", "name": "city_1_leftImg8bit.png", "width": "3", "height": "7"},
    ]
    first = images[0][0]
    assert (first.get("label"), first.get("points")) == ("road", "16.5,1.0")
    facts = {attribute.get("name"): attribute.text for attribute in first}
    assert facts["annotator"] == "Ann A"
    known = {attribute.findtext("name") for attribute in root.iterfind("meta/task/labels/label/attributes/attribute")}
    assert facts.keys() <= known


def test_queries_are_plain_values_as_the_published_code_has_them() -> None:
    assert pickle.loads(export(WHOLE, "queries")) == {
        "a b.png": entry(4, 6, [5], [0], category_id=[0], category=["road"]),
        """q"'&<é>.png""": entry(5, 5, [], [], category_id=[], category=[]),
        "city_1_leftImg8bit.png": entry(3, 2, [1], [2], category_id=[1], category=["sky & <cloud>"]),
    }
    # Open questions where nothing has a class, in reading order.
    places = [(3, 0), (0, 5), (1, 2), (1, 1)]
    asked = replace(WHOLE, points=(*(point(*place) for place in places), *POINTS[2:3]))
    assert pickle.loads(export(asked, "queries"))["a b.png"] == entry(4, 6, [5, 1, 2, 0], [0, 1, 1, 3])


def test_jsonl_has_the_fields_of_an_answer() -> None:
    lines = [json.loads(line) for line in export(WHOLE, "jsonl").splitlines()]
    assert Answer.model_validate(lines[0]).label == "road"
    assert lines[3] == {"image": "a b.png", "y": 3, "x": 3, "repeat": False}


def test_what_label_studio_exports_is_read() -> None:
    place = {"original_width": 18, "original_height": 8, "image_rotation": 0}
    value = {"x": 50.0, "y": 49.9, "width": 0.3, "keypointlabels": ["road"]}
    more = {"id": "Ab3", "from_name": "label", "to_name": "image", "type": "keypointlabels", "origin": "manual"}
    region = place | {"value": value} | more
    whole = {"result": [region], "completed_by": 1, "was_cancelled": False, "lead_time": 3.2}
    skipped = {"result": [region | {"type": "unread"}], "was_cancelled": True}
    task = {"id": 7, "data": {"image": "/data/upload/1/0a1b2c3d-a_b.png"}, "annotations": [whole, skipped]}
    assert back(json.dumps([task]).encode(), "label-studio") == (point(1, 3, "road"),)
    minimal = {"image": "s3://bucket/city/a%20b.png", "id": 7, "label": [place | value], "annotator": 1}
    assert back(json.dumps([minimal]).encode(), "label-studio") == back(json.dumps([task]).encode(), "label-studio")
    # A prediction counts only where nobody has answered.
    (first, *_) = json.loads(export(replace(WHOLE, points=POINTS[3:4]), "label-studio"))
    answered = json.loads(json.dumps(first["predictions"][0]["result"]))
    answered[0]["value"]["keypointlabels"] = ["road"]
    first["annotations"] = [{"result": answered}]
    assert back(json.dumps([first]).encode(), "label-studio") == (point(3, 3, "road"),)


def test_cvat_rounds_places_and_may_have_several_in_an_element() -> None:
    text = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><!-- x --><meta/>
    <image id="3" name="some/folder/a b.png" subset="train" task_id="1" width="18" height="8">
      <points label="road" source="manual" occluded="0" points="1.50,1.00;18.00,8.00" z_order="0">
        <attribute name="annotator"></attribute><attribute name="colour">red</attribute></points>
    </image></annotations>"""
    # The very edge belongs to the last pixel.
    assert back(text.encode(), "cvat") == (point(0, 0, "road"), point(3, 5, "road"))


def test_queries_with_arrays_and_absolute_paths_are_read() -> None:
    xs, ys, classes = np.array([5, 0]), np.array([0, 3]), np.array([0, 2])
    own = entry(4, np.int64(6), xs, ys, category_id=classes, category=["ROAD", "T"])
    found = back(pickle.dumps({"/home/me/camvid/train/a b.png": own}), "queries")
    assert found == (point(0, 5, "road"), point(3, 0, "дерево"))


def named(reference: str, names: Iterable[str] | None = None) -> str:
    """The image that a task with this reference is of; of images of these names, or those of the example."""
    images = [picture(one.name, 4, 4, 4, 4, one.file) for one in IMAGES]
    images = images if names is None else [picture(name, 4, 4, 4, 4) for name in names]
    region = {"type": "keypointlabels", "value": {"x": 1, "y": 1, "keypointlabels": ["road"]}}
    task = {"data": {"image": reference}, "predictions": [{"result": [region]}]}
    (found,) = read(json.dumps([task]).encode(), "label-studio", class_names=CLASSES, images=tuple(images))
    return found.image


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("a b.png", "a b.png"),
        (r"C:\data\a b.png", "a b.png"),
        ("https://host:8080/x/a%20b.png", "a b.png"),
        ("/data/local-files/?d=train/a b.png", "a b.png"),
        ("/data/local-files/?d=a%20b.png", "a b.png"),
        ("/data/upload/12/0f1e2d3c-a_b.png", "a b.png"),
        ("/data/upload/12/0f1e2d3c-qé.png", """q"'&<é>.png"""),
        ("city_1", "city_1"),
        ("x/0f1e2d3c-city_1_leftImg8bit.png", "city_1"),
    ],
)
def test_images_are_known_by_the_end_of_their_place(reference: str, name: str) -> None:
    assert named(reference) == name


@pytest.mark.parametrize("path", ["data/upload/1/0a1b2c3d-a.png", "data/upload/1/11111111-x_y.png", "x/city/a.png"])
def test_a_place_that_may_mean_two_images_is_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"tasks\[0\]\.data\.image: .* is ambiguous: image '.*' or '.*'; use the exact"):
        named(f"/{path}", ["a.png", "0a1b2c3d-a.png", "x y.png", "x_y.png", "city/a.png"])


def test_an_answer_that_was_changed_elsewhere_is_a_new_one(book: Book) -> None:
    book.append(Answer.model_validate(POINTS[0].model_dump()))
    tree = json.loads(export(WHOLE, "coco"))
    annotations = tree["annotations"]
    annotations[0]["category_id"], annotations[0]["keypoints"][1] = annotations[4]["category_id"], 6.9
    expected = point(3, 5, "sky & <cloud>")
    found = back(json.dumps(tree).encode(), "coco")
    assert expected in found
    assert "i1" not in {one.id for one in found}
    (new,) = answers_of([expected], book, annotator="Cy", time=9.0)
    assert (new.annotator, new.time, new.label) == ("Cy", 9.0, expected.label)
    annotations[0]["attributes"] = {"occluded": False, "annotator": "Di"}  # the former is another tool's
    found = back(json.dumps(tree | {"annotations": annotations[:1]}).encode(), "coco")
    assert found == (expected.model_copy(update={"annotator": "Di"}),)


def answer(image: str, y: int, x: int, **fields: Any) -> Answer:
    own = {"id": f"{image}{y}{x}", "kind": "class", "label": "road", "annotator": "Ann", "time": 3.0}
    return Answer.model_validate({"image": image, "y": y, "x": x} | own | fields)


def test_questions_become_points_with_what_was_said_and_answers_come_back_as_they_were(book: Book) -> None:
    where = {"names": ["b", "a", "a"], "shapes": [(9, 9), (4, 5), (4, 5)], "y": [8, 1, 0], "x": [7, 2, 4]}
    facts = {"truth": [0, 1, 0], "predicted": [1, 1, 1], "entropy": [0.1, 0.2, 0.3], "distance": [1.0, 2.0, 3.0]}
    questions = Questions.of(**where, **facts, stage=0)
    said = {
        ("a", 1, 2): answer("a", 1, 2, seconds=2.5, suggestion="sky"),
        ("b", 8, 7): answer("b", 8, 7, kind="unknown", label=None),
    }
    others = {("b", 0, 0): answer("b", 0, 0)}  # of another question
    points = points_of(questions, said | others, ("road", "sky"))
    ann = {"annotator": "Ann", "time": 3.0}
    assert points == (
        point(0, 4, image="a"),
        point(1, 2, "road", "a", seconds=2.5, suggestion="sky", id="a12", **ann),
        point(8, 7, "unknown", "b", id="b87", **ann),
    )
    assert answers_of(points, book, annotator="Bo", time=9.0) == tuple(said.values())
    book.append(said["a", 1, 2])
    assert answers_of(points, book, annotator="Bo", time=9.0) == (said["b", 8, 7],)
    with pytest.raises(DataError, match=r"pixel \('a', 1, 2\) is labelled 'road', .*not a class .*\(sky"):
        points_of(questions, said, ("sky",))


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(Store(tmp_path), "book")


def test_who_gave_a_file_without_ids_and_how_often_it_has_an_answer_makes_no_other_one(book: Book) -> None:
    points = back(export(WHOLE, "queries"), "queries")
    first = answers_of(points, book, annotator="Bo", time=1.0)
    assert [(one.label, one.annotator, one.time) for one in first] == [(name, "Bo", 1.0) for name in CLASSES[:2]]
    book.append(*first)
    assert answers_of(points, book, annotator="Cy", time=2.0) == ()
    for now, label in enumerate(("sky", "road", "sky", "road")):  # changing one's mind gives an answer each time
        book.append(*answers_of([point(0, 0, label)], book, annotator="Bo", time=now))
        assert book.said()["a b.png", 0, 0].label == label
        assert answers_of([point(0, 0, label)], book, annotator="Cy", time=now + 0.5) == ()
    assert len(book.answers) == len(first) + 4
    # One that the file has twice is one, an open question none.
    (only,) = answers_of([point(1, 0, "void"), point(1, 0, "void"), point(0, 1)], book, annotator="Bo", time=1.0)
    assert (only.kind, only.label, only.repeat) == ("void", None, False)


def test_different_answers_have_different_ids(book: Book) -> None:
    changes: list[dict[str, Any]] = [{}, {"image": "b"}, {"y": 1}, {"x": 0}, {"label": "sky"}, {"repeat": True}]
    changes += [{"kind": kind, "label": None} for kind in ("void", "unknown")] + [{"annotator": "Cy"}, {"time": 0.5}]
    others = [point(0, 1, "road", "a").model_copy(update=change) for change in changes]
    assert len({one.id for one in answers_of(others, book, annotator="Bo", time=1.0)}) == len(others)
