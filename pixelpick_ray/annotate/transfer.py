"""The answers of an experiment out to a file and in from one: what other tools did counts as if the page had."""

import time
from pathlib import Path
from typing import Any

from pixelpick_ray.annotate.exchange import (
    Exchanged,
    Picture,
    Point,
    answers_of,
    export,
    label_config,
    points_of,
    read,
)
from pixelpick_ray.data.answers import Answer, Book
from pixelpick_ray.data.dataset import FileDataset
from pixelpick_ray.data.datasets import open_dataset, training_split
from pixelpick_ray.data.questions import Place, read_questions
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.plan import Chain, Plan
from pixelpick_ray.store import Store, experiment_folder


def write_answers(plan: Plan, store: Store, data_path: Path, format_name: str, out: Path) -> list[str]:
    """Write what an experiment has asked people so far, with their answers, to a file; lines that say what was written.

    Label Studio needs its labelling interface, too, which is written beside it. SpecError as in `_Transfer`, and when
    the file cannot be written.
    """
    transfer = _Transfer(plan, store, data_path)
    exchanged = transfer.exchanged()
    files = {out: export(exchanged, format_name)}
    if format_name == "label-studio":
        config = label_config(exchanged.class_names, exchanged.palette)
        files[out.with_suffix(".labels.xml")] = config.encode("utf-8")
    for path, content in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise SpecError(f"--out {path}: cannot be written ({error}); give a file that you may write") from error
    answered = sum(point.kind is not None for point in exchanged.points)
    written = f"{len(exchanged.points)} pixels, {answered} of them answered"
    return [f"written to {out}: {written}", *(f"written to {path}" for path in list(files)[1:])]


def read_answers(plan: Plan, store: Store, data_path: Path, format_name: str, file: Path, *, annotator: str) -> str:
    """Add the answers of a file to those of an experiment, all or, when one is wrong, none; says how many there were.

    `annotator` is the name of who gave those that name nobody. SpecError as in `_Transfer`, DataError for the file.
    """
    transfer = _Transfer(plan, store, data_path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}); give a file that you may read") from error
    try:
        new, known, unasked = transfer.take(content, format_name, annotator=annotator)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    return f"{new} answers imported, {known} were there before; {unasked} of the new ones are of pixels not asked for"


class _Transfer:
    """All that an experiment has asked people so far, with their answers, as files of other tools hold it."""

    def __init__(self, plan: Plan, store: Store, data_path: Path) -> None:
        """SpecError when nothing was asked, or about several sets of images."""
        records = {chain.id: _record(store, plan, chain) for chain in plan.chains}
        asking = [chain for chain in plan.chains if records[chain.id].get("questions")]
        books = {records[chain.id]["book"] for chain in asking}
        if not asking:
            raise SpecError(
                "oracle: people have not been asked anything; take oracle: {name: human} and run the experiment first"
            )
        if len(books) > 1:
            raise SpecError(
                "oracle: people are asked about several sets of images, or both with and without suggestions; choose "
                "one of them with --set, e.g. --set oracle.suggestions=false"
            )
        keys = dict.fromkeys(key for chain in asking for key in records[chain.id]["questions"])
        self._questions = [read_questions(store, key) for key in keys]
        self._book = Book(store, books.pop())
        self._dataset = open_dataset(asking[0].trial.dataset, data_path)
        self._split = training_split(self._dataset, asking[0].trial.dataset)

    def exchanged(self) -> Exchanged:
        """All questions, each with its answer if it has one, and the hidden repeats."""
        facts, said = self._dataset.facts, self._book.said()
        points: dict[Place, Point] = {}
        for questions in self._questions:
            points |= {point.place: point for point in points_of(questions, said, facts.class_names)}
        repeats = [one for one in self._book.answers if one.repeat and one.place in points]
        again = [Point.model_validate(one.model_dump()) for one in repeats]
        return Exchanged(facts.class_names, facts.palette, self._pictures(), (*points.values(), *again))

    def take(self, content: bytes, format_name: str, *, annotator: str) -> tuple[int, int, int]:
        """Add the answers of a file: how many were new, how many known, and how many of the new ones not asked for.

        An answer without an id, as other tools give it back, is known when the pixel has just this answer.
        """
        facts, said = self._dataset.facts, self._book.said()
        points = read(content, format_name, class_names=facts.class_names, images=self._pictures())
        new = [point for point in points if point.id is not None or not _says(said.get(point.place), point)]
        answers = answers_of(new, annotator=annotator, time=time.time(), known=self._book.ids)
        asked = {place for questions in self._questions for place in questions.places()}
        if answers:
            self._book.append(*answers)
        given = sum(point.kind is not None for point in points)
        return len(answers), given - len(answers), sum(answer.place not in asked for answer in answers)

    def _pictures(self) -> tuple[Picture, ...]:
        """The images that are asked about."""
        shapes = {
            name: (height, width)
            for questions in self._questions
            for name, (height, width) in zip(questions.names, questions.shapes.tolist(), strict=True)
        }
        return tuple(self._picture(name, *shape) for name, shape in sorted(shapes.items()))

    def _picture(self, name: str, height: int, width: int) -> Picture:
        dataset = self._dataset
        native_height, native_width = dataset.read(self._split, name)[1].shape
        file = dataset.paths(self._split, name)[0].name if isinstance(dataset, FileDataset) else ""
        return Picture(name, height, width, native_height, native_width, file)


def _says(answer: Answer | None, point: Point) -> bool:
    return answer is not None and (answer.kind, answer.label) == point.said


def _record(store: Store, plan: Plan, chain: Chain) -> dict[str, Any]:
    return store.read_record(f"{experiment_folder(plan.experiment)}/chains/{chain.id}.json") or {}
