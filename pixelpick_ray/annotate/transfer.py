"""Export and import of an experiment's answers; answers from other tools count like those from the page."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pixelpick_ray.annotate.exchange import (
    AskedImage,
    Exchanged,
    ExchangedPoint,
    answers_of,
    export,
    label_config,
    points_of,
    read,
)
from pixelpick_ray.config.yaml_text import file_bytes
from pixelpick_ray.data.answers import Book, OneLine
from pixelpick_ray.data.datasets import open_dataset, training_split
from pixelpick_ray.data.questions import Place, read_questions
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.planning import Plan
from pixelpick_ray.store import Store
from pixelpick_ray.store.outputs import replace_files
from pixelpick_ray.store.records import read_chain


def write_answers(plan: Plan, store: Store, data_path: Path, format_name: str, out: Path) -> list[str]:
    """Write all questions to people so far, with their answers, to a file; return lines that say what was written.

    For Label Studio, its labelling interface is written next to the file. Raises SpecError if nothing was asked, if
    several sets of images were, or if the file cannot be written.
    """
    transfer = _Transfer(plan, store, data_path)
    exchanged = transfer.exchanged()
    files = {out: export(exchanged, format_name)}
    if format_name == "label-studio":
        config = label_config(exchanged.class_names, exchanged.palette)
        files[out.with_suffix(".labels.xml")] = config.encode("utf-8")
    try:
        replace_files(files)
    except OSError as error:
        raise SpecError(f"--out {out}: cannot be written ({error}); give a writable path") from error
    answered = sum(point.kind is not None for point in exchanged.points)
    written = f"{len(exchanged.points)} pixels, {answered} of them answered"
    return [f"written to {out}: {written}", *(f"written to {path}" for path in list(files)[1:])]


def read_answers(plan: Plan, store: Store, data_path: Path, format_name: str, file: Path, *, annotator: str) -> str:
    """Add the answers of a file to those of an experiment, or none if any is wrong; return a sentence with counts.

    `annotator` is the name for answers without one. Raises SpecError if nothing was asked, if several sets of images
    were, or for an invalid name; DataError for an invalid file.
    """
    _check_annotator(annotator)
    transfer = _Transfer(plan, store, data_path)
    try:
        content = file_bytes(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}); give a file that you may read") from error
    try:
        return transfer.take(content, format_name, annotator=annotator).sentence()
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


def _check_annotator(annotator: str) -> None:
    """Raise SpecError for a name that no answer can have."""
    try:
        TypeAdapter(OneLine).validate_python(annotator)
    except ValidationError as error:
        raise SpecError(
            f"--annotator {annotator!r:.100}: is not a valid name; give one line of 1 to 80 characters "
            "without spaces around it"
        ) from error


@dataclass(frozen=True)
class _Taken:
    """Counts of a file's new and known answers, new ones not asked for, and pixels with a later, other answer."""

    new: int
    known: int
    unasked: int
    overruled: int

    def sentence(self) -> str:
        """Return the summary for users."""
        told = (
            f"{self.new} answers imported, {self.known} already known; {self.unasked} of the new ones are for pixels "
            "that were not asked for"
        )
        if not self.overruled:
            return told
        return (
            f"{told}; {self.overruled} pixels keep a later, different answer; to replace it, remove id and time of "
            "their answers in the file"
        )


class _Transfer:
    """All questions to people in an experiment so far, with their answers, for exchange with files."""

    def __init__(self, plan: Plan, store: Store, data_path: Path) -> None:
        """Read the questions. Raises SpecError if nothing was asked, or about several sets of images."""
        records = ((chain, read_chain(store, plan.experiment, chain.id)) for chain in plan.chains)
        asking = [(chain, record) for chain, record in records if record is not None and record.questions]
        books = {str(record.book) for _, record in asking}
        if not asking:
            raise SpecError(
                "oracle: people have not been asked anything yet; set oracle: {name: human}, and run the experiment "
                "first"
            )
        if len(books) > 1:
            raise SpecError(
                "oracle: people are asked about several sets of images, or both with and without suggestions; choose "
                "one of them with --set, e.g. --set oracle.suggestions=false"
            )
        keys = dict.fromkeys(key for _, record in asking for key in record.questions)
        self._questions = [read_questions(store, key) for key in keys]
        self._book = Book(store, books.pop())
        spec = asking[0][0].trial.dataset
        self._dataset = open_dataset(spec, data_path)
        self._split = training_split(self._dataset, spec)

    def exchanged(self) -> Exchanged:
        """Return all questions, with their answers, if any, and the hidden repeats."""
        facts, said = self._dataset.facts, self._book.said()
        points: dict[Place, ExchangedPoint] = {}
        for questions in self._questions:
            points |= {point.place: point for point in points_of(questions, said, facts.class_names)}
        repeats = [one for one in self._book.answers if one.repeat and one.place in points]
        again = [ExchangedPoint.model_validate(one.model_dump()) for one in repeats]
        return Exchanged(facts.class_names, facts.palette, self._pictures(), (*points.values(), *again))

    def take(self, content: bytes, format_name: str, *, annotator: str) -> _Taken:
        """Add the new answers of a file, as determined by `answers_of`."""
        names, book = self._dataset.facts.class_names, self._book
        points = read(content, format_name, class_names=names, images=self._pictures(), answers=book.answers)
        answers = answers_of(points, book, annotator=annotator, time=time.time())
        if answers:
            book.append(*answers)
        asked = {place for questions in self._questions for place in questions.places()}
        given = sum(point.kind is not None for point in points)
        unasked = sum(answer.place not in asked for answer in answers)
        return _Taken(len(answers), given - len(answers), unasked, self._overruled(points))

    def _overruled(self, points: Sequence[ExchangedPoint]) -> int:
        """Number of pixels whose answer differs from these points."""
        told = {point.place: point.said for point in points if point.kind is not None and not point.repeat}
        said = self._book.said()
        return sum(said[place].said != answer for place, answer in told.items())

    def _pictures(self) -> tuple[AskedImage, ...]:
        """Images that people are asked about."""
        shapes = {
            name: (height, width)
            for questions in self._questions
            for name, (height, width) in zip(questions.names, questions.shapes.tolist(), strict=True)
        }
        return tuple(self._picture(name, *shape) for name, shape in sorted(shapes.items()))

    def _picture(self, name: str, height: int, width: int) -> AskedImage:
        native = partial(self._dataset.native_size, self._split, name)
        return AskedImage(name, height, width, native, self._dataset.file_name(self._split, name))
