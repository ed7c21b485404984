"""Answers out to files and in from files: what counts afterwards, what other tools call the images, what is refused."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.annotate.exchange import FORMATS
from pixelpick_ray.annotate.transfer import read_answers, write_answers
from pixelpick_ray.data.answers import Book, Undo
from pixelpick_ray.data.questions import Place
from pixelpick_ray.errors import DataError
from pixelpick_ray.store import Store
from tests.support.data_folders import TREES, noise, save
from tests.support.questions import (
    BOOK,
    answers_in,
    ask,
    plan_of,
    questions_of,
    questions_on_record,
    write_record,
)


class Asked:
    """An experiment that asks about two pixels of each of some images, and what is done with its answers."""

    def __init__(self, place: Path, *overrides: str, images: tuple[str, ...] = ("train_0000", "train_0001")) -> None:
        self.place, self.plan, self.questions = place, plan_of(*overrides), questions_of(images, 2)
        self.store = Store(place / "store")
        self.book, self.first, self.second = Book(self.store, BOOK), *self.questions.places()[:2]
        ask(self.store, self.plan, self.questions)
        keys = questions_on_record(self.store, self.plan, 0)
        write_record(self.store, self.plan, 0, {"book": BOOK, "questions": keys})

    def export(self, format_name: str) -> bytes:
        out = self.place / f"answers.{format_name}"
        write_answers(self.plan, self.store, self.place, format_name, out)
        return out.read_bytes()

    def take(self, content: bytes, format_name: str = "jsonl", annotator: str = "bob") -> str:
        """What is told of an import."""
        file = self.place / "given"
        file.write_bytes(content)
        return read_answers(self.plan, self.store, self.place, format_name, file, annotator=annotator)

    def said(self) -> dict[Place, str | None]:
        self.book.refresh()
        return {place: answer.label for place, answer in self.book.said().items()}


def asked_of_files(place: Path, name: str, *images: str, **fields: Any) -> Asked:
    """About a data set of files."""
    spec = {"name": name, "size": [32, 40], **TREES[name][1], **fields}
    return Asked(place, f"dataset={json.dumps(spec)}", "evaluate={splits: {val: {}}, report: val}", images=images)


@pytest.fixture
def scenes(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


def line(place: Place, label: str | None, /, **fields: Any) -> bytes:
    """An answer in our own format."""
    answer = {"image": place[0], "y": place[1], "x": place[2], "kind": "class", "label": label} | fields
    return json.dumps(answer).encode() + b"\n"


def told(new: int, known: int) -> str:
    return f"{new} answers imported, {known} already known; 0 of the new ones are for pixels that were not asked for"


OVERRULED = "; 1 pixels keep a later, different answer; to replace it, remove id and time of their answers in the file"


def test_a_correction_counts_where_the_clock_that_stamped_the_answer_before_is_fast(scenes: Asked) -> None:
    first, second = scenes.first, scenes.second
    scenes.take(line(first, "road", id="1", time=time.time() + 3600))
    assert scenes.take(line(first, "sky")) == told(1, 0)
    scenes.take(line(second, "road", id="z", time=5.0))
    for content in (line(second, "sky", time=5.0),) * 2:  # without its id, with its time
        scenes.take(content)
        assert scenes.said() == {first: "sky", second: "sky"}
    assert len(answers_in(scenes.store)) == 4


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"kind": None, "label": None}, "kind is None here and 'class' there, label is None here and 'road' there"),
        ({"annotator": "cy"}, "annotator is 'cy' here and 'ann' there"),
        ({"time": 6.0}, "time is 6.0 here and 5.0 there"),
        ({"x": 3, "y": 3}, "y is 3 here and "),
    ],
)
def test_a_stored_answer_that_a_file_changes_is_refused(scenes: Asked, fields: dict[str, Any], difference: str) -> None:
    first, second = scenes.first, scenes.second
    stored = {"id": "one", "time": 5.0, "annotator": "ann", "seconds": 1.5}
    scenes.take(line(first, "road", **stored))
    assert scenes.take(line(first, "road", id="one")) == told(0, 1)
    with pytest.raises(DataError) as error:
        scenes.take(line(second, "sky") + line(first, "road", **(stored | fields)))
    problem = f"line 2: has the id 'one' of a stored answer that differs ({difference}"
    assert f"given: jsonl: nothing was imported because of 1 problem(s); correct the file\n  {problem}" in str(
        error.value
    )
    assert str(error.value).endswith("; to change the answer, remove id and time")
    assert scenes.said() == {first: "road"}


@pytest.mark.parametrize("fields", [{}, {"id": "one", "time": 5.0}, {"id": "one"}, {"time": 5.0}])
def test_an_answer_that_was_taken_back_is_taken_from_a_file_again(scenes: Asked, fields: dict[str, Any]) -> None:
    ids = set()
    for _ in range(3):
        assert scenes.take(line(scenes.first, "road", **fields)) == told(1, 0)
        assert scenes.take(line(scenes.first, "road", **fields)) == told(0, 1)
        (answer,) = answers_in(scenes.store)
        assert (answer.place, answer.label, answer.annotator) == (scenes.first, "road", "bob")
        ids.add(answer.id)
        scenes.book.append(Undo(undone=answer.id, annotator="bob", time=9.0))
        assert scenes.said() == {}
    assert len(ids) == 3


def test_an_answer_that_another_one_came_after_is_kept_does_not_count_and_says_so(scenes: Asked) -> None:
    first, second = scenes.first, scenes.second
    one = line(first, "road", id="one", time=5.0)
    scenes.take(one + line(second, "road", id="two", time=5.0))
    before = scenes.export("jsonl")
    scenes.take(line(first, "sky"))
    assert scenes.take(before) == told(0, 2) + OVERRULED  # an own file from before a correction
    assert scenes.said() == {first: "sky", second: "road"}
    scenes.book.append(Undo(undone="two", annotator="bob", time=6.0))
    scenes.take(line(second, "sky", id="new", time=7.0))
    assert scenes.take(line(second, "road", id="two", time=5.0)) == told(0, 1) + OVERRULED  # taken back
    for expected in (told(1, 0), told(0, 1)):  # dated before
        assert scenes.take(line(second, "tree", time=6.5)) == expected + OVERRULED
    assert scenes.said() == {first: "sky", second: "sky"}
    assert scenes.take(line(second, "road")) == told(1, 0)
    assert scenes.said() == {first: "sky", second: "road"}


@pytest.mark.parametrize("format_name", FORMATS)
def test_what_was_exported_is_there_when_it_is_imported(scenes: Asked, format_name: str) -> None:
    """Also a repeat that agrees with the first answer: it says how often people agree with themselves."""
    first, second, third, _ = scenes.questions.places()
    facts = {"annotator": "ann", "time": 1792182345.1234567, "seconds": 0.1 + 0.2, "suggestion": "sky"}
    given = [line(place, "road", id=f"{place}", **facts) for place in (first, second)]
    given += [line(first, "road", id="again", repeat=True, **facts), line(second, "sky", repeat=True)]
    given.append(line(third, None, kind="unknown", id="none", annotator="ann", time=3.0))
    assert scenes.take(b"".join(given)) == told(5, 0)
    assert sum(answer.repeat for answer in answers_in(scenes.store)) == 2
    kept = 2 if format_name == "queries" else 5  # it cannot say that nobody can tell, nor hold repeats
    assert scenes.take(scenes.export(format_name), format_name) == told(0, kept)


def test_other_tools_get_the_names_of_files(tmp_path: Path) -> None:
    TREES["cityscapes"][0](tmp_path)
    images = "aachen_000000_000019", "ulm_000000_000019"
    one = asked_of_files(tmp_path, "cityscapes", *images, held_out=0.3)
    coco, tasks = one.export("coco"), one.export("label-studio")
    names = {f"{image}_leftImg8bit.png" for image in images}
    assert {image["file_name"] for image in json.loads(coco)["images"]} == names
    assert {task["data"]["image"] for task in json.loads(tasks)} == names
    assert one.take(coco, "coco") == one.take(tasks, "label-studio") == told(0, 0)


@pytest.fixture
def pictures(tmp_path: Path) -> Asked:
    """Two pictures of a folder, of 64 x 80 pixels as the files have them."""
    TREES["folder"][0](tmp_path)
    for image in ("leaf.v0.png", "leaf.v1.jpg"):
        picture, label = noise((64, 80), (0, 1, 2), seed=3)
        save(tmp_path / "leaves" / "train" / "images" / image, picture)
        save(tmp_path / "leaves" / "train" / "labels" / f"{Path(image).stem}.png", label)
    return asked_of_files(tmp_path, "folder", "leaf.v0.png", "leaf.v1.jpg")


def test_images_are_read_as_little_as_a_format_needs(pictures: Asked) -> None:
    """The size of those that a file names, from the beginning of theirs; formats of prepared pixels need none."""
    first, second = paths = [pictures.place / "leaves" / "train" / "images" / name for name in pictures.questions.names]
    for path in paths:
        path.write_bytes(path.read_bytes()[:1000])
        (path.parent.parent / "labels" / f"{path.stem}.png").write_bytes(b"")
    tree, tasks = json.loads(pictures.export("coco")), json.loads(pictures.export("label-studio"))
    assert {(image["width"], image["height"]) for image in tree["images"]} == {(80, 64)}
    assert pictures.take(json.dumps(tree).encode(), "coco") == told(0, 0)
    second.write_bytes(b"")
    assert pictures.take(json.dumps(tasks[:1]).encode(), "label-studio") == told(0, 0)
    with pytest.raises(DataError, match=r"leaf\.v1\.jpg: is empty; copy it again"):
        pictures.take(json.dumps(tasks).encode(), "label-studio")
    first.write_bytes(b"")
    for format_name in ("jsonl", "queries"):
        assert pictures.take(pictures.export(format_name), format_name) == told(0, 0)
