"""Answers out to files and in from files: what counts afterwards, what other tools call the images, what is refused."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pixelpick_ray.annotate.exchange import FORMATS
from pixelpick_ray.annotate.transfer import read_answers, write_answers
from pixelpick_ray.data.answers import Answer, Book, Undo
from pixelpick_ray.data.questions import Place
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.store import Store
from tests.support.data_folders import TREES, noise, save
from tests.support.launch import launch
from tests.support.questions import (
    BOOK,
    TEXT,
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


def asked_of_folder(place: Path, name: str, *overrides: str, images: tuple[str, ...]) -> Asked:
    spec = {"name": name, "size": [32, 40], **TREES[name][1]}
    report = "evaluate={splits: {val: {}}, report: val}"
    return Asked(place, f"dataset={json.dumps(spec)}", report, *overrides, images=images)


@pytest.fixture
def scenes(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


def answer(place: Place, label: str | None, /, **fields: Any) -> dict[str, Any]:
    return {"image": place[0], "y": place[1], "x": place[2], "kind": "class", "label": label} | fields


def line(place: Place, label: str | None, /, **fields: Any) -> bytes:
    """An answer in our own format."""
    return json.dumps(answer(place, label, **fields)).encode() + b"\n"


def told(new: int, known: int) -> str:
    return f"{new} answers imported, {known} were there before; 0 of the new ones are of pixels not asked for"


OVERRULED = (
    "; 1 pixels keep a later answer that says otherwise: remove id and time of their answers from the file to have "
    "these count"
)

# What counts after an import


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
        ({"label": "sky"}, "label is 'sky' here and 'road' there"),
        ({"kind": "void", "label": None}, "kind is 'void' here and 'class' there, label is None here and 'road' there"),
        ({"kind": None, "label": None}, "kind is None here and 'class' there, label is None here and 'road' there"),
        ({"annotator": "cy"}, "annotator is 'cy' here and 'ann' there"),
        ({"repeat": True}, "repeat is True here and False there"),
        ({"time": 6.0}, "time is 6.0 here and 5.0 there"),
        ({"seconds": 2.0}, "seconds is 2.0 here and 1.5 there"),
        ({"x": 3, "y": 3}, "y is 3 here and "),
    ],
)
def test_a_stored_answer_that_a_file_tells_otherwise_is_refused(
    scenes: Asked, fields: dict[str, Any], difference: str
) -> None:
    first, second = scenes.first, scenes.second
    stored = {"id": "one", "time": 5.0, "annotator": "ann", "seconds": 1.5}
    scenes.take(line(first, "road", **stored))
    assert scenes.take(line(first, "road", id="one")) == told(0, 1)
    with pytest.raises(DataError) as error:
        scenes.take(line(second, "sky") + line(first, "road", **(stored | fields)))
    problem = f"line 2: has the id 'one' of an answer that is stored otherwise: {difference}"
    assert f"given: jsonl: nothing was imported, 1 problem(s); correct the file\n  {problem}" in str(error.value)
    assert str(error.value).endswith("; remove id and time to give another answer")
    assert scenes.said() == {first: "road"}
    # As where another tool keeps the facts of an answer, but not of what it is.
    tree = json.loads(scenes.export("coco"))
    (at,) = [number for number, one in enumerate(tree["annotations"]) if "id" in one["attributes"]]
    del tree["annotations"][at]["attributes"]["of"]
    (sky,) = [category["id"] for category in tree["categories"] if category["name"] == "sky"]
    tree["annotations"][at]["category_id"] = sky
    with pytest.raises(DataError, match=rf"annotations\[{at}\]: has the id 'one' .*label is 'sky' here and 'road' the"):
        scenes.take(json.dumps(tree).encode(), "coco")


@pytest.mark.parametrize("fields", [{}, {"id": "one", "time": 5.0}, {"id": "one"}, {"time": 5.0}])
def test_an_answer_that_was_taken_back_is_taken_from_a_file_again(scenes: Asked, fields: dict[str, Any]) -> None:
    """As often as it is taken back, and each time once."""
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


def test_a_repeat_that_agrees_with_the_first_answer_is_kept(scenes: Asked) -> None:
    """It says how often people agree with themselves."""
    scenes.take(line(scenes.first, "road"))
    for expected in (told(1, 0), told(0, 1)):
        assert scenes.take(line(scenes.first, "road", repeat=True)) == expected
    assert [answer.repeat for answer in answers_in(scenes.store)] == [False, True]


@pytest.mark.parametrize("format_name", FORMATS)
def test_what_was_exported_is_there_when_it_is_imported(scenes: Asked, format_name: str) -> None:
    first, second, third, _ = scenes.questions.places()
    facts = {"annotator": "ann", "time": 1792182345.1234567, "seconds": 0.1 + 0.2, "suggestion": "sky"}
    answers = [answer(place, "road", id=f"{place}", **facts) for place in (first, second)]
    answers.append(answer(first, "sky", id="again", repeat=True, **facts))
    answers.append(answer(third, None, kind="unknown", id="none", annotator="ann", time=3.0))
    scenes.book.append(*map(Answer.model_validate, answers))
    kept = 2 if format_name == "queries" else 4  # it cannot say that nobody can tell, nor hold repeats
    assert scenes.take(scenes.export(format_name), format_name) == told(0, kept)


# Files of images


@pytest.mark.parametrize("held_out", ["null", "0.3"])
@pytest.mark.parametrize(
    ("name", "images", "suffix"),
    [
        ("voc", ("a", "b"), ".jpg"),
        ("cityscapes", ("aachen_000000_000019", "ulm_000000_000019"), "_leftImg8bit.png"),
        ("camvid", ("train_0.png", "train_1.png"), ""),
        ("folder", ("leaf.v0.png", "leaf.v1.jpg"), ""),
    ],
)
def test_other_tools_get_the_names_of_the_files(
    tmp_path: Path, name: str, images: tuple[str, ...], suffix: str, held_out: str
) -> None:
    TREES[name][0](tmp_path)
    one = asked_of_folder(tmp_path, name, f"dataset.held_out={held_out}", images=images)
    coco, tasks = one.export("coco"), one.export("label-studio")
    names = {image + suffix for image in images}
    assert {image["file_name"] for image in json.loads(coco)["images"]} == names
    assert {task["data"]["image"] for task in json.loads(tasks)} == names
    assert names <= {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert one.take(coco, "coco") == one.take(tasks, "label-studio") == told(0, 0)


@pytest.fixture
def pictures(tmp_path: Path) -> Asked:
    """Two pictures of a folder, of 64 x 80 pixels as the files have them."""
    TREES["folder"][0](tmp_path)
    for image in ("leaf.v0.png", "leaf.v1.jpg"):
        picture, label = noise((64, 80), (0, 1, 2), seed=3)
        save(tmp_path / "leaves" / "train" / "images" / image, picture)
        save(tmp_path / "leaves" / "train" / "labels" / f"{Path(image).stem}.png", label)
    return asked_of_folder(tmp_path, "folder", images=("leaf.v0.png", "leaf.v1.jpg"))


def image_files(one: Asked) -> list[Path]:
    return [one.place / "leaves" / "train" / "images" / name for name in one.questions.names]


def test_images_are_read_as_little_as_a_format_needs(pictures: Asked) -> None:
    """The size of those that a file names, from the beginning of theirs; formats of prepared pixels need none."""
    for path in image_files(pictures):
        path.write_bytes(path.read_bytes()[:1000])
        (path.parent.parent / "labels" / f"{path.stem}.png").write_bytes(b"")
    tree, tasks = json.loads(pictures.export("coco")), json.loads(pictures.export("label-studio"))
    assert {(image["width"], image["height"]) for image in tree["images"]} == {(80, 64)}
    assert pictures.take(json.dumps(tree).encode(), "coco") == told(0, 0)
    first, second = image_files(pictures)
    second.write_bytes(b"")
    assert pictures.take(json.dumps(tasks[:1]).encode(), "label-studio") == told(0, 0)
    with pytest.raises(DataError, match=r"leaf\.v1\.jpg: is empty; copy it again"):
        pictures.take(json.dumps(tasks).encode(), "label-studio")
    first.write_bytes(b"")
    for format_name in ("jsonl", "queries"):
        assert pictures.take(pictures.export(format_name), format_name) == told(0, 0)


def test_an_image_that_viewers_turn_is_not_handed_to_other_tools(pictures: Asked) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in image_files(pictures):
        before = path.read_bytes()
        with Image.open(path) as image:
            image.save(path, exif=exif)
        with pytest.raises(DataError, match=rf"{path}: its EXIF orientation 6 turns or mirrors it in viewers"):
            pictures.export("cvat")
        path.write_bytes(before)
    pictures.export("cvat")


# Who answered


def test_an_annotator_without_a_proper_name_is_refused_the_command_ends_with_status_2(scenes: Asked) -> None:
    content = line(scenes.first, "road")
    for name in (" ada", "ada ", "", "a" * 81, "a\nb", "\udcff"):
        with pytest.raises(SpecError) as error:
            scenes.take(content, annotator=name)
        assert str(error.value) == (
            f"--annotator {name!r}: is not a valid name; give one line of 1 to 80 characters without spaces around it"
        )
    assert scenes.said() == {}
    (scenes.place / "asked.yaml").write_text(TEXT)
    (scenes.place / "given.jsonl").write_bytes(content)
    words = "import", "asked.yaml", "given.jsonl", "--format", "jsonl", "--annotator"
    done = launch(scenes.place, *words, " ada")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: asked.yaml: --annotator ' ada': is not a valid name; give one line of 1 to")
    assert launch(scenes.place, *words, "é" * 80).out == told(1, 0) + "\n"
