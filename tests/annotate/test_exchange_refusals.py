"""Files of exchange formats that are wrong: each is refused as a whole, with what is wrong and where."""

import functools
import json
import operator
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelpick_ray.annotate import exchange
from pixelpick_ray.annotate.exchange import FORMATS, export, label_config
from pixelpick_ray.annotate.formats import queries
from pixelpick_ray.errors import DataError, SpecError
from tests.support.exchange_files import IMAGES, PALETTE, WHOLE, back, entry, point


def told(content: bytes, format_name: str) -> str:
    with pytest.raises(DataError) as error:
        back(content, format_name)
    assert "nothing was imported" in str(error.value)
    assert len(str(error.value)) < 5000
    return str(error.value)


def line(**fields: Any) -> str:
    return json.dumps({"image": "a b.png", "y": 0, "x": 0, "kind": "class", "label": "road"} | fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nnope\n", "line 3: is not JSON (line 1, column 1"),
        ('{"y": NaN}', "line 1: is JSON that cannot be read (NaN is not a number in JSON)"),
        (line(time=1).replace('"time": 1', '"time": 1e999'), "line 1: time inf: Input should be a finite number"),
        (line(y=1).replace('"y": 1', f'"y": {"9" * 5000}'), "line 1: is JSON that cannot be read (Exceeds the limit"),
        ("[" * 100_000, "line 1: is JSON that cannot be read (it is nested more than 50 deep"),
        (
            f"{line()}\n{line(label='дерево')}",
            "line 2: pixel (y=0, x=0) of a b.png is дерево here but road in line 1; keep",
        ),
        (f"{line(id='i')}\n{line(id='i', y=1)}", "line 2: has the id 'i' of another answer, in line 1"),
        ({"image": "b.png"}, "line 1: image: is 'b.png'; expected one of the 3 images, as 'a b.png'"),
        ({"y": 4}, "line 1: y: is 4; expected 0..3, inside of a b.png"),
        ({"x": 6}, "line 1: x: is 6; expected 0..5, inside of a b.png"),
        ({"label": "Road"}, "line 1: label: is 'Road'; expected one of road, sky & <cloud>, дерево"),
        ({"suggestion": "Road"}, "line 1: suggestion: is 'Road'; expected one of road,"),
        ({"label": None}, "label: must be the class name if kind is class, and absent otherwise"),
    ],
)
def test_wrong_lines_are_refused(text: str | dict[str, Any], message: str) -> None:
    content = line(**text) if isinstance(text, dict) else text
    assert message in told(content.encode(), "jsonl")


def test_encodings_other_than_utf_8_are_refused_and_marks_of_it_read_over() -> None:
    for format_name in ("jsonl", "coco", "label-studio", "cvat"):
        assert told(b'{"image": "\xe4.png"}', format_name) == (
            f"{format_name}: nothing was imported because of 1 problem(s); correct the file\n"
            "  byte 11: is not UTF-8; save the file as UTF-8"
        )
    assert len(back(b"\xef\xbb\xbf" + line().encode(), "jsonl")) == 1
    content = export(WHOLE, "cvat")
    other = content.replace(b'encoding="utf-8"', b'encoding="latin-1"')
    assert other != content
    assert back(b"\xef\xbb\xbf" + content, "cvat") == back(other, "cvat") == back(content, "cvat")


def test_at_most_ten_problems_are_listed_and_one_keeps_all_lines_out() -> None:
    message = told("\n".join([line(x=9)] * 12 + [line()]).encode(), "jsonl")
    assert message.startswith(
        "jsonl: nothing was imported because of 12 problem(s); correct the file\n  line 1: x: is 9;"
    )
    assert len(message.splitlines()) == 12
    assert message.endswith("\n  and 2 more")


@pytest.mark.parametrize("format_name", FORMATS)
def test_files_of_another_format_and_too_large_ones_are_refused(
    format_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in FORMATS.keys() - {format_name}:
        told(export(WHOLE, other), format_name)
    assert exchange.MAX_BYTES == 256 * 1024 * 1024
    monkeypatch.setattr(exchange, "MAX_BYTES", 3)  # and unread
    with pytest.raises(DataError, match=f"{format_name}: the file has 4 bytes, more than the limit of 3; split it"):
        back(b"null", format_name)
    for act in (lambda: export(WHOLE, "yolo"), lambda: back(b"", "yolo")):
        with pytest.raises(SpecError, match="format 'yolo': is unknown; choose one of jsonl, coco"):
            act()


Change = Callable[[Any], Any]
LACKING = object()


def put(*path_and_value: Any) -> Change:
    """A change that puts the last argument where the others lead; nothing is left there if that is LACKING."""
    *path, last, value = path_and_value

    def change(tree: Any) -> Any:
        place = functools.reduce(operator.getitem, path, tree)
        place[last] = value
        if value is LACKING:
            del place[last]
        return tree

    return change


A = "annotations"


WRONG_COCO = [
    (lambda tree: [tree], "the file: is a list of 1; expected an object"),
    (put("images", LACKING), "images: is None; expected a list"),
    (put("images", 0, "id", "1"), "images[0].id: is '1'; expected a whole number"),
    (put("images", 1, "id", 1), "images[1]: has the id 1 of images[0]; ids are unique"),
    (put("images", 0, "file_name", "b.png"), "images[0].file_name: is 'b.png'; expected one of the 3 images"),
    (put("images", 0, "width", 6), "images[0].width: is 6; expected 18, the size of the image"),
    (put("categories", 0, "name", "Road"), "annotations[0]: categories[0].name: is 'Road'; expected one of road,"),
    (put("categories", 1, "id", 1), "categories[1]: has the id 1 of categories[0]; ids are unique"),
    (put(A, 0, "image_id", 77), "annotations[0].image_id: is 77; expected an id of the file's images"),
    (put(A, 0, "category_id", 77), "annotations[0].category_id: is 77; expected an id of the file's categories"),
    (put(A, 3, "keypoints", [0, 0, 0]), "annotations[3].keypoints: is [0, 0, 0]; expected [x, y, visibility]"),
    (put(A, 3, "keypoints", 0, 18.01), "annotations[3].keypoints: x: is 18.01; expected a number in 0..18"),
    (put(A, 3, "keypoints", 0, 10**400), "annotations[3].keypoints: x: is 10000"),
    (put(A, 0, "attributes", []), "annotations[0].attributes: is []; expected an object"),
    (put(A, 2, "keypoints", [16.5, 1.0, 2]), "annotations[2]: pixel (y=0, x=5) of a b.png is void here but road in"),
]
R = (0, A, 0, "result")
WRONG_TASKS = [
    (lambda tree: {"tasks": tree}, "the file: is an object of 1; expected a list"),
    (put(0, "data", LACKING), "tasks[0].image: is None; expected one of the 3 images"),
    (put(0, "data", "image", "s3://x/b.png"), "tasks[0].data.image: is 's3://x/b.png'; expected one of the 3"),
    (put(0, "data", "image", "/" * 10**6), "tasks[0].data.image: is '////"),
    (put(0, A, 5), "tasks[0].annotations: is 5; expected a list"),
    (put(*R, 5), "tasks[0].annotations[0].result: is 5; expected a list"),
    (put(*R, 0, "type", "rectanglelabels"), "result[0].type: is 'rectanglelabels'; expected 'keypointlabels'"),
    (put(*R, 0, "meta", []), "tasks[0].annotations[0].result[0].meta: is []; expected an object"),
    (put(*R, 0, "original_width", 6), "result[0].original_width: is 6; expected 18, the size of the image"),
    (put(*R, 0, "image_rotation", 90), "result[0].image_rotation: is 90; expected 0"),
    (put(*R, 0, "value", "x", 100.5), "result[0]: x: is 100.5; expected a number in 0..100, inside of the image"),
    (put(*R, 0, "value", "keypointlabels", ["a"]), "result[0].keypointlabels: is 'a'; expected one of road,"),
    (put(*R, 0, "value", "keypointlabels", []), "result[0].keypointlabels: is []; expected a list of one label"),
    (put(*R, 1, "meta", {}), "result[1]: pixel (y=0, x=5) of a b.png is дерево here but road in tasks[0]"),
]


@pytest.mark.parametrize(
    ("format_name", "change", "message"),
    [("coco", *case) for case in WRONG_COCO] + [("label-studio", *case) for case in WRONG_TASKS],
)
def test_wrong_json_is_refused(format_name: str, change: Change, message: str) -> None:
    tree = change(json.loads(export(WHOLE, format_name)))
    assert message in told(json.dumps(tree).encode(), format_name)


ENTITIES = '<!DOCTYPE a [<!ENTITY a "x"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<annotations>", f"{ENTITIES}<annotations>", "the file: declares a document type, <!DOCTYPE a ...>"),
        ("a b.png", "&b;", "the file: is not XML (undefined entity"),
        ("</annotations>", "", "the file: is not XML (no element found"),
        ("1.1", "2.0", "the file: is <annotations> of version 2.0; expected <annotations> of version 1.1"),
        ("annotations>", "boxes>", "the file: is <boxes> of version 1.1; expected <annotations> of version 1.1"),
        ("<meta>", '<track id="4"/><meta>', "<track id=4>: is not supported; only <image> with <points>"),
        ('name="a b.png"', 'name="b.png"', "<image id=0> name: is 'b.png'; expected one of the 3 images"),
        ('width="18"', 'width="6"', "<image id=0> width: is 6.0; expected 18, the size of the image"),
        ('label="road"', 'label="Road"', "<image id=0> <points> 1 label: is 'Road'; expected one of road,"),
        ('points="16.5,1.0"', 'points="18.1,1.0"', "<points> 1 points: x: is 18.1; expected a number in 0..18"),
        ('points="16.5,1.0"', 'points="16.5,nan"', "<points> 1 points: y: is nan; expected a number in 0..8"),
        ('points="16.5,1.0"', 'points="16.5"', "<points> 1 points: y: is ''; expected a number in 0..8"),
        ("<points label", "<polygon/><points label", "<image id=0> <polygon> 1: is not supported; only <points> is"),
        ("<points label", "<a>" * 40 + "</a>" * 40 + "<points label", "the file: is nested more than 32 deep"),
        ('name="seconds">0.1', 'name="seconds">long', "<points> 1: seconds 'long': Input should be a valid number"),
        ('name="repeat">true', 'name="repeat">', "<points> 2: pixel (y=0, x=5) of a b.png is дерево here but road in"),
    ],
)
def test_wrong_xml_is_refused(old: str, new: str, message: str) -> None:
    text = export(WHOLE, "cvat").decode()
    assert old in text
    count = -1 if old in ("annotations>", "</annotations>") else 1
    assert message in told(text.replace(old, new, count).encode(), "cvat")


@pytest.mark.parametrize("character", ["\uffff", "\x07"])
def test_what_xml_cannot_hold_is_refused_when_it_is_written(character: str) -> None:
    whole = replace(WHOLE, class_names=(f"road{character}",), palette=PALETTE[:1], points=())
    with pytest.raises(DataError, match=r"cvat: XML cannot hold the character '\\[xu]"):
        export(whole, "cvat")
    with pytest.raises(DataError, match=r"label-studio: XML cannot hold the character '\\[xu]"):
        label_config(whole.class_names, whole.palette)
    assert back(export(whole, "coco"), "coco", whole) == ()


WHOLE_NUMBERS = "expected a list or an array of whole"


def pixels(xs: Any, ys: Any, **more: Any) -> dict[str, Any]:
    """A file of one image."""
    return {"a b.png": entry(4, 6, xs, ys, **more)}


AT = "['a b.png']"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "the file: is [1]; expected a dictionary from paths of images"),
        ({"b.png": {}}, "['b.png']: is 'b.png'; expected one of the 3 images"),
        ({"a b.png": []}, f"{AT}: is []; expected an object"),
        ({"a b.png": entry(8, 6, [], [])}, f"{AT}['height']: is 8; expected 4, the size of the image"),
        ({"a b.png": entry(4, np.int64(18), [], [])}, f"{AT}['width']: is 18; expected 6, the size of the image"),
        ({"a b.png": {"height": 4, "width": 6}}, f"{AT}['x_coords']: is None; {WHOLE_NUMBERS}"),
        (pixels([True], [1]), f"{AT}['x_coords']: is [True]; {WHOLE_NUMBERS}"),
        (pixels(np.array([1.5]), [1]), f"{AT}['x_coords']: is of type ndarray; {WHOLE_NUMBERS}"),
        (pixels([1, 2], [1]), f"{AT}: has x_coords and y_coords of different lengths"),
        (pixels([1], [1], category_id=[]), f"{AT}: has x_coords and y_coords and category_id of different lengths"),
        (pixels([1], [4]), f"{AT} pixel 0: y: is 4; expected 0..3, inside of a b.png"),
        (pixels(np.zeros(25, int), [1]), f"{AT}['x_coords']: has 25 entries, but the image has only 24 pixels"),
        (pixels([1], [1], category_id=[3]), f"{AT}['category_id'][0]: is 3; expected 0..2 (road, sky"),
        (pixels([1], [1], category_id=[-1]), f"{AT}['category_id'][0]: is -1; expected 0..2"),
        (pixels([1], [1], category=["road"]), f"{AT}: has 'category' without 'category_id'"),
        (
            pixels([1], [1], category_id=[1], category=["road"]),
            f"{AT}['category'][0]: is 'road'; expected 'sky & <cloud>', which is category_id 1",
        ),
        (
            {f"/{folder}/a b.png": entry(4, 6, [1], [2], category_id=[folder]) for folder in (0, 1)},
            "['/1/a b.png'] pixel 0: pixel (y=2, x=1) of a b.png is sky & <cloud> here but road in ['/0/a b.png']",
        ),
    ],
)
def test_wrong_queries_are_refused(value: Any, message: str) -> None:
    assert message in told(pickle.dumps(value), "queries")


def test_more_pixels_than_a_file_may_have_and_code_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps(pixels([1, 2], [1, 2]) | {"city_1": entry(3, 2, [0], [0])})
    assert len(back(content, "queries")) == 3
    monkeypatch.setattr(queries, "MAX_POINTS", 2)
    assert "['city_1']: more than 2 pixels; split the file" in told(content, "queries")
    message = told(b"cos\nsystem\n(Vtouch sentinel\ntR.", "queries")
    assert "the file: byte 0 of the pickle: calls os.system: rejected" in message


@pytest.mark.parametrize("format_name", ["jsonl", "coco", "label-studio", "cvat"])
@settings(max_examples=60)
@given(data=st.data())
def test_damaged_files_raise_nothing_but_data_errors(format_name: str, data: st.DataObject) -> None:
    content = bytearray(export(WHOLE, format_name))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from(b'0-9e.,;"[]{}<>&/ax\xff'))
    try:
        found = back(bytes(content), format_name)
    except DataError as error:
        assert re.match(f"{format_name}: nothing was imported because of [0-9]+ problem", str(error))  # noqa: PT017
    else:
        assert all(point.image in {picture.name for picture in IMAGES} for point in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": (point(0, 0, image="b.png"),)}, "points[0]: image: is 'b.png'; expected one of the 3 images"),
        ({"points": (point(4, 0),)}, "points[0]: y: is 4; expected 0..3"),
        ({"class_names": ("road",)}, "label: is 'дерево'; expected one of road"),
        ({"images": (*IMAGES, replace(IMAGES[0], name="c", file="a b.png"))}, "images: 2 have the file name 'a b.png'"),
    ],
)
@pytest.mark.parametrize("format_name", FORMATS)
def test_points_that_contradict_are_not_exported(format_name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match="nothing was exported") as error:
        export(replace(WHOLE, **change), format_name)
    assert message in str(error.value)
