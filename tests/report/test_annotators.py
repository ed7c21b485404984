"""What people answered: times, rightness and agreement against numbers worked out by hand, and the files of it."""

import math
import shutil
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.data.answers import Answer, Book, Undo
from pixelpick_ray.data.questions import UNSAID, Place, Questions
from pixelpick_ray.errors import SpecError
from pixelpick_ray.report.annotator_tables import annotation_tables
from pixelpick_ray.report.annotators import Annotations, answers_csv, costs_yaml, load_annotations, measured_costs
from pixelpick_ray.report.costs import CostModel, read_cost_model
from pixelpick_ray.report.files import write_report
from pixelpick_ray.report.parts import Table
from tests.support.study import Described, Study, chain_path, exact, experiment

pytestmark = pytest.mark.whole_report

HUMAN = "oracle={name: human}"
ONE = "grid=[{seed: [0], budget: [10]}]"
THREE = [[5, 0, 0], [0, 5, 0], [0, 0, 5]]  # a confusion of sky, road and car
SKY, ROAD, CAR = range(3)
BOOK = "0123456789abcdef"
NUMBERS = count()
Reported = tuple[Study, Experiment, Path]


@pytest.fixture
def spec(study: Study) -> Experiment:
    """One chain that asks people, with one stage."""
    return filled(study, HUMAN, ONE)


def filled(study: Study, *overrides: str) -> Experiment:
    spec = experiment(*overrides)
    study.fill(spec, lambda trial: THREE)
    return spec


def loaded(study: Study, *specs: Experiment) -> Annotations:
    return load_annotations(study.store, study.chains(*specs))


def tables(study: Study, *specs: Experiment) -> dict[str, Table]:
    """Tables by their captions."""
    return {table.caption: table for table in annotation_tables(loaded(study, *specs))}


def table(study: Study, start: str, *specs: Experiment) -> Table:
    """The one table whose caption begins so."""
    (found,) = [one for caption, one in tables(study, *specs).items() if caption.startswith(start)]
    assert len(found.header) == len(found.alignment)
    assert {len(row) for row in found.rows} == {len(found.header)}
    return found


def ask(study: Study, spec: Experiment, rounds: Sequence[tuple[int, Mapping[Place, int]]], *, book: str = BOOK) -> None:
    """Let every recorded chain have asked these questions, each a stage and the truths of its pixels."""
    keys = []
    for stage, truths in rounds:
        (names, y, x), number = zip(*truths, strict=True), len(truths)
        unknown = {"predicted": [-1] * number, "entropy": [math.nan] * number, "distance": [math.inf] * number}
        where = {"names": names, "shapes": [(360, 480)] * number, "y": y, "x": x, "truth": list(truths.values())}
        questions = Questions.of(**where, **unknown, stage=stage)
        inputs = {"step": "question", "stage": stage, "truths": [[*place, truth] for place, truth in truths.items()]}
        study.store.publish("question", inputs, lambda folder, one=questions: one.write(folder / "questions.npz"), {})  # type: ignore[misc]
        keys.append(digest(inputs))
    for path in {chain_path(spec, trial) for trial in spec.trials() if trial.budget != "full"}:
        study.store.write_record(path, study.store.read_record(path) | {"book": book, "questions": keys})


def answer(annotator: str, place: Place, said: str | None, seconds: float | None = 2.0, **more: Any) -> Answer:
    """An answer, later than those made before; `said` None is "none of the classes", "?" is "cannot tell"."""
    number, (image, y, x) = next(NUMBERS), place
    kind = "void" if said is None else "unknown" if said == "?" else "class"
    fields = {"id": f"answer-{number:06d}", "time": 1_700_000_000.0 + number, "kind": kind, "seconds": seconds}
    label = said if kind == "class" else None
    return Answer(**(fields | {"image": image, "y": y, "x": x, "label": label, "annotator": annotator} | more))


def write(study: Study, answers: Sequence[Answer], *, book: str = BOOK) -> None:
    """Append answers to a book, in a journal of their own."""
    Book(study.store, book).append(*answers)


def places(number: int) -> list[Place]:
    """The first pixels of a row of an image."""
    return [("a.png", 0, x) for x in range(number)]


def said(annotator: str, words: str, seconds: Any = 2.0, **more: Any) -> list[Answer]:
    """Answers to the pixels of the first row, by the first letters of classes; "-" is none of them, "." no answer;
    `seconds` of all or of each.
    """
    names: dict[str, str | None] = {"s": "sky", "r": "road", "c": "car", "?": "?", "-": None}
    asked = [(place, letter) for place, letter in zip(places(len(words)), words, strict=True) if letter != "."]
    each = seconds if isinstance(seconds, list) else [seconds] * len(asked)
    return [
        answer(annotator, place, names[letter], took, **more) for (place, letter), took in zip(asked, each, strict=True)
    ]


def truths(words: str) -> dict[Any, int]:
    labels = {"s": SKY, "r": ROAD, "c": CAR, ".": UNSAID}
    return dict(zip(places(len(words)), (labels[letter] for letter in words), strict=True))


def answered(study: Study, spec: Experiment, words: str, answers: Sequence[Answer]) -> None:
    """Let the chain have asked for pixels of these classes, and people have answered."""
    ask(study, spec, [(0, truths(words))])
    write(study, answers)


def test_answers_count_that_stand_and_that_these_experiments_asked_for(study: Study, spec: Experiment) -> None:
    ask(study, spec, [(0, truths("ss"))])
    for nothing in (filled(study, ONE, "name=nobody"), spec):  # without people, and before any answer
        assert (loaded(study, nothing).given, tables(study, nothing)) == ((), {})
    right, wrong, foreign = said("ann", "srr")
    write(study, [right, wrong, foreign])
    Book(study.store, BOOK).append(Undo(undone=wrong.id, annotator="ann", time=2e9))
    assert [one.answer for one in loaded(study, spec).given] == [right]
    shutil.rmtree(study.store.path / "question")  # which takes its answers along
    assert loaded(study, spec).given == ()


def test_an_answer_to_two_experiments_is_one_and_equal_pixels_of_two_books_are_two(study: Study) -> None:
    first = filled(study, HUMAN, ONE)
    other, apart = (filled(study, HUMAN, ONE, f"name={name}", "train.epochs=3") for name in ("other", "apart"))
    answered(study, first, "ss", said("ann", "rss"))
    ask(study, other, [(0, truths("sss"))])
    found = loaded(study, first, other)
    assert [one.experiments for one in found.given] == [("study", "other")] * 2 + [("other",)]
    assert [one.is_right for one in found.given] == [False, True, True]
    ask(study, apart, [(0, truths("rr"))], book="fedc")
    write(study, said("bea", "sr"), book="fedc")
    found = loaded(study, first, apart)
    assert [(one.book, one.truth, one.is_right) for one in found.given] == [
        *((BOOK, "sky", False), (BOOK, "sky", True), ("fedc", "road", False), ("fedc", "road", True))
    ]
    assert not any("Agreement" in caption for caption in tables(study, first, apart))


def test_seconds_are_told_by_answer_and_annotator(study: Study, spec: Experiment) -> None:
    answered(study, spec, "ssrrrs", said("ann", "ssr-rs", [1.0, 2.0, 6.0, 30.0, None, 5.0], idle_seconds=20.0))
    write(study, said("ann", "r", 500.0, repeat=True, idle_seconds=60.0))
    found = table(study, "Seconds per answer", spec)
    assert found.header == ("answer", "answers", "median (s)", "mean (s)", "total (min)")
    assert found.rows == (
        ("sky", "3", "2.00", "2.67", "0.1"),  # 1, 2, 5
        ("road", "2", "6.00", "6.00", "0.1"),
        ("car", "0", "-", "-", "-"),
        ("none of the classes", "1", "30.00", "30.00", "0.5"),
        ("cannot tell", "0", "-", "-", "-"),
        ("all", "6", "5.00", "8.80", "0.7"),  # 44 s
    )
    assert found.notes == ("Not timed: 1 of 6 answers.",)
    write(study, [*said("bea", "s?", 3.0), *said("cy", "s", repeat=True)])
    found = table(study, "Seconds per answer", spec)
    assert found.header[-3:] == ("ann", "bea", "cy")
    assert [row[1:2] + row[-3:] for row in found.rows[::5]] == [
        ("4", "2.00 (3)", "3.00 (1)", "-"),
        ("8", "5.00 (5)", "3.00 (2)", "-"),
    ]
    found = table(study, "Answers of each annotator", spec)
    assert found.header == (
        *("annotator", "answers", "median (s)", "mean (s)", "total (min)", "pauses (min)"),
        *("none (%)", "cannot tell (%)", "repeats"),
    )
    assert found.rows == (
        ("ann", "6", "5.00", "8.80", "0.7", "2.0", "16.7", "0.0", "1"),
        ("bea", "2", "3.00", "3.00", "0.1", "0.0", "0.0", "50.0", "0"),
        ("cy", "0", "-", "-", "-", "0.0", "-", "-", "1"),
    )


def test_accuracy_is_of_the_last_answers_by_true_class_with_its_interval(study: Study, spec: Experiment) -> None:
    answered(study, spec, "ssssssssssrrr.", said("ann", "rssssssssr?-rc"))
    write(study, [*said("ann", "s"), *said("ann", "r", repeat=True)])  # the first pixel is answered again
    found = table(study, "Answers that agree", spec)
    assert found.header == ("class", "answers", "right (%)")
    # 9 of 10: Wilson's interval is [0.5958, 0.9821]; 1 of 2: [0.0945, 0.9055].
    assert found.rows == (
        *(("sky", "10", "90.0 [59.6, 98.2]"), ("road", "2", "50.0 [9.5, 90.5]")),
        *(("car", "0", "-"), ("all", "12", "83.3 [55.2, 95.3]")),
    )
    write(study, said("bea", "s"))
    found = table(study, "Answers that agree", spec)
    assert found.header[-2:] == ("ann", "bea")
    assert found.rows[0][-2:] == ("90.0 [59.6, 98.2] (10)", "100.0 [20.7, 100.0] (1)")
    assert found.rows[1][-1] == "-"
    unknown = filled(study, HUMAN, ONE, "name=unknown", "train.epochs=3")  # without label maps nobody is judged
    ask(study, unknown, [(0, truths("..."))], book="fedc")
    write(study, said("ann", "src", suggestion="sky"), book="fedc")
    assert [caption.split()[0] for caption in tables(study, unknown)] == ["Seconds", "Answers", "Suggested"]
    assert table(study, "Suggested", unknown).rows == (("ann", "3", "-", "33.3 [6.1, 79.2]", "-", "-"),)


def test_answers_with_a_suggestion_stand_apart(study: Study, spec: Experiment) -> None:
    answered(study, spec, "ssssrrrr", said("ann", "sr"))
    suggested = zip(said("ann", "..ssrr-r"), ("sky", "road", "sky", "road", "road", "sky"), strict=True)
    write(study, [one.model_copy(update={"suggestion": each}) for one, each in suggested])
    bare, helped = (table(study, f"Answers to questions {how} a suggestion", spec) for how in ("without", "with"))
    for found, numbers, start in ((bare, "2002", "50.0 ["), (helped, "2406", "83.3 [")):
        assert [row[:2] for row in found.rows] == list(zip(("sky", "road", "car", "all"), numbers, strict=True))
        assert found.rows[-1][2].startswith(start)
    # Right: pixels 2, 5 and 6. Taken: 2 and 5, of the wrong ones none.
    shares = ("50.0 [18.8, 81.2]", "33.3 [9.7, 70.0]", "66.7 [20.8, 93.9]", "0.0 [0.0, 56.1]")
    assert table(study, "Suggested", spec).rows == (("ann", "6", *shares),)
    write(study, [*said("bea", "rr", suggestion="road"), *said("dee", "s", suggestion="sky", repeat=True)])
    rows = table(study, "Suggested", spec).rows
    assert [row[:2] for row in rows] == [("ann", "6"), ("bea", "2"), ("all", "8")]
    assert rows[-1][3].startswith("50.0 [")


# They agree on 6 of 10. By chance: sky 5 x 7, road 3 x 1, none 1 x 1, cannot tell 1 x 1: 40 of 100.
TWO_OF_TEN = [*said("ann", "sssssrrr-?"), *said("bea", "sssssssr?-")]
# A hidden repeat, with 3 of 4; by chance sky 2 x 1 and road 2 x 3: 8 of 16.
REPEAT = [*said("ann", "ssrr"), *said("ann", "srrr", repeat=True)]
# A repeat is a first look of who had not seen the pixel. One said the same of everything, so that chance agrees fully;
# 2 of 3 against 2 x 1 + 1 x 2 of 9.
FIRST_LOOK = [*said("ann", "ssr"), *said("bea", "srr", repeat=True), *said("bea", "s", repeat=True)]


@pytest.mark.parametrize(
    ("words", "answers", "rows"),
    [
        ("ssssssssrr", TWO_OF_TEN, ["ann, bea, 10, 60.0 [31.3, 83.2], 0.333"]),
        ("ssrr", REPEAT, ["ann, ann, asked again, 4, 75.0 [30.1, 95.4], 0.500"]),
        (
            "ssr",
            FIRST_LOOK,
            ["bea, bea, asked again, 1, 100.0 [20.7, 100.0], -", "ann, bea, 3, 66.7 [20.8, 93.9], 0.400"],
        ),
    ],
)
def test_agreement_is_over_the_same_pixels(study: Study, spec: Experiment, words: str, answers: Any, rows: Any) -> None:
    answered(study, spec, words, answers)
    found = table(study, "Agreement", spec)
    assert found.header == ("one", "other", "pixels", "agreement (%)", "kappa")
    assert [", ".join(row) for row in found.rows] == rows


def test_pixels_without_a_class_are_counted_by_stage_until_the_last_answer_has_one(
    study: Study, spec: Experiment
) -> None:
    answered(study, spec, "ss", said("ann", "s?"))
    found = table(study, "Pixels that people gave no class", spec)
    assert [row[-6:] for row in found.rows] == [("10", "2", "0", "1", "-", "0")]
    write(study, [*said("bea", ".s"), *said("bea", "-", repeat=True)])
    assert not any("no class" in caption for caption in tables(study, spec))
    more = "oracle={name: human, replace: true}", "grid=[{seed: [0, 1], budget: [20]}]"
    spec = filled(study, "name=replaced", *more)
    first, again, last = truths("ssss"), {("b.png", 1, x): SKY for x in range(2)}, {("b.png", 2, 0): SKY}
    ask(study, spec, [(0, first), (0, again), (1, last)], book="fedc")
    given = [answer("ann", ("b.png", 1, 0), "sky"), answer("ann", ("b.png", 2, 0), "road")]
    write(study, [*said("ann", "s-?s"), *given], book="fedc")
    found = table(study, "Pixels that people gave no class", spec)
    assert found.header[-6:] == (*("pixels per image", "asked", "none", "cannot tell", "replacements", "open"),)
    # Both seeds asked the same.
    assert [row[-6:] for row in found.rows] == [("10", "12", "2", "2", "4", "2"), ("20", "2", "0", "0", "0", "0")]


@pytest.mark.parametrize("name", ["ann\u2028seconds_per_pixel: 9", "\ufeff# x", "ann\u200bé"])
def test_measured_times_are_a_cost_model_whatever_the_name(
    study: Study, spec: Experiment, tmp_path: Path, name: str
) -> None:
    answered(study, spec, "s" * 11, said(name, "s", None))
    assert measured_costs(loaded(study, spec)) is costs_yaml(loaded(study, spec)) is None
    write(study, said(name, "sssssrrrr?r", [1, 1, 1, 1, 2, 5, 5, 5, 5, 34, None]))
    write(study, said(name, "s", 1000.0, repeat=True))
    # 60 s in 10 answers; road has four timed ones only.
    model = CostModel(seconds_per_pixel=6.0, seconds_per_class={"sky": 1.2})
    assert measured_costs(loaded(study, spec)) == model
    (tmp_path / "costs.yaml").write_text(costs_yaml(loaded(study, spec)) or "", encoding="utf-8")
    assert read_cost_model(tmp_path / "costs.yaml") == model


def counted(study: Study, spec: Experiment, classes: int = 3) -> None:
    """Every stage asked for 4 pixels of sky and 6 of road."""
    counts = [4, 6, 0][:classes]
    known = {"pixels": 10, "images": 1, "class_counts": counts, "entropy": None, "distinct_classes": 2.0}
    study.ask(spec, lambda trial, stage: known | {"spread": None, "border_distance": None})


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """A store with answers, and the folder of its report."""
    folder = tmp_path_factory.mktemp("reported")
    study = Study(folder / "store")
    spec = filled(study, HUMAN, "grid=[{seed: [0], budget: [10, 20]}]")
    counted(study, spec)
    answered(study, spec, "s" * 10, [*said("ann", "sssss", 36.0), *said("<b>bea</b>", "....." + "rrrrr", 72.0)])
    write_report(study.store, [spec], folder / "out")
    return study, spec, folder / "out"


def test_a_report_is_laid_over_its_own_measured_times(reported: Reported) -> None:
    study, spec, out = reported
    text, page = ((out / name).read_text(encoding="utf-8") for name in ("table.md", "index.html"))
    # A stage is 4 x 36 + 6 x 72 = 576 s, or 0.16 hours. Of the picked pixels 60 % are road.
    by = "Measured in 10 answers of <b>bea</b> (5) and ann (5)"
    for told in ("| 20 | 20 | 0.32 | 100.0 | 1 |", "| road | 60.0 |", *tables(study, spec)):
        assert told in text
    assert f"{by}: 1 click and 54 s per pixel (sky 36 s, road 72 s)." in text
    for told in ('data-axis="hours of annotation"', "<h2>Annotation<", "&lt;b&gt;bea&lt;/b&gt;"):
        assert told in page
    assert ("Assumed" in text, "<b>bea" in page) == (False, False)


@pytest.mark.usefixtures("undrawn")
def test_files_of_an_earlier_report_go_unless_they_may_be_given(reported: Reported, tmp_path: Path) -> None:
    study, spec, before = reported
    out, store = (Path(shutil.copytree(path, tmp_path / path.name)) for path in (before, study.store.path))
    study, costs = Study(store), out / "costs.yaml"
    assert (out / "answers.csv").read_text() == answers_csv(loaded(study, spec))
    assert costs.read_text().splitlines()[:2] == [
        "# Measured in 10 answers of <b>bea</b> (5) and ann (5); experiments: study.",
        "# Pauses and hidden repeats are left out. Classes that are not named have fewer than 5 timed answers and cost "
        "the mean of all.",
    ]
    model = read_cost_model(costs)
    assert model == measured_costs(loaded(study, spec))
    other = filled(study, ONE, "name=other", "acquire.strategy=random")
    counted(study, other)
    write_report(study.store, [other], out, cost_model=model)
    assert "| 10 | 10 | 0.16 | 100.0 | 1 |" in (out / "table.md").read_text()
    assert ((out / "answers.csv").exists(), costs.exists()) == (False, True)
    write_report(study.store, [other], out)
    assert not costs.exists()
    write_report(study.store, [spec], out, cost_model=CostModel(seconds_per_pixel=360))
    assert "Assumed: 1 click and 360 s per pixel." in (out / "table.md").read_text()  # before the measured one
    assert read_cost_model(costs) == model


def test_every_answer_is_a_line(study: Study, spec: Experiment) -> None:
    first, second = places(2)
    answered(study, spec, "s.", [answer("ann", first, "road", 1.25, idle_seconds=31.5, suggestion="sky", time=1.5)])
    write(study, [answer("Bea, M.", second, None, None, time=2.5)])
    write(study, [answer("ann", first, "?", repeat=True, time=3.5)])
    assert answers_csv(loaded(study, spec)).splitlines() == [
        "experiment,book,image,y,x,kind,label,truth,annotator,time,seconds,idle_seconds,suggestion,repeat",
        f"study,{BOOK},a.png,0,0,class,road,sky,ann,1.5,1.25,31.5,sky,0",
        f'study,{BOOK},a.png,0,1,void,,,"Bea, M.",2.5,,,,0',
        f"study,{BOOK},a.png,0,0,unknown,,sky,ann,3.5,2.0,,,1",
    ]


@pytest.mark.usefixtures("undrawn")
def test_images_without_label_maps_are_no_measure_of_what_was_asked(study: Study, tmp_path: Path) -> None:
    spec = experiment(HUMAN, ONE)
    study.fill(spec, lambda trial: exact(500))
    counted(study, spec, classes=2)
    for value, is_told in ((SKY, True), (254, False)):
        described = Described({"a.png": (9, 9, 9)}, {"a.png": np.full((4, 6), value, dtype=np.uint8)})
        study.describe(spec, described, {"test": described})
        write_report(study.store, [spec], tmp_path, picture_settings=1)
        text = (tmp_path / "table.md").read_text()
        assert ("| class | training images | margin | margin, ratio |" in text) == is_told
        assert ("| class | margin |\n" in text) == (not is_told)


@pytest.mark.usefixtures("undrawn")
def test_a_cost_model_of_ones_own_is_neither_removed_nor_replaced(study: Study, spec: Experiment) -> None:
    out = study.store.path.parent / "out"
    out.mkdir()
    (out / "costs.yaml").write_text("seconds_per_pixel: 3\n")
    ask(study, spec, [(0, truths("s"))])
    summary = write_report(study.store, [spec], out)  # without an answer yet
    assert {"answers.csv", "costs.yaml"}.isdisjoint(path.name for path in summary.files)
    assert "hours of annotation" not in (out / "index.html").read_text()
    write(study, said("ann", "s"))
    refused = r"--out .*out: its costs\.yaml was not written by a report and would be overw"
    with pytest.raises(SpecError, match=refused):
        write_report(study.store, [spec], out)
    assert (out / "costs.yaml").read_text() == "seconds_per_pixel: 3\n"
