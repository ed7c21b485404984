"""What people answered: every answer of the reported experiments, beside what the label maps say, and what it cost."""

import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pixelpick_ray.config.trial import HumanSpec
from pixelpick_ray.config.yaml_text import write_yaml
from pixelpick_ray.data.answers import Answer, Book, Kind
from pixelpick_ray.data.questions import Place, Questions
from pixelpick_ray.report.cells import Line
from pixelpick_ray.report.chains import ReportedChain
from pixelpick_ray.report.costs import CostModel
from pixelpick_ray.report.rows import csv_text
from pixelpick_ray.report.statistics import mean
from pixelpick_ray.store import Store
from pixelpick_ray.store.records import ChainRecord

REFUSALS: dict[Kind, str] = {
    "void": "none of the classes",
    "unknown": "cannot tell",
}  # kinds of answers that are no class, in words
TIMED = 5  # answers of a class from which its own seconds are taken
COSTS_START = "# Measured in "  # of a cost model that a report wrote
CSV_COLUMNS = (
    *("experiment", "book", "image", "y", "x", "kind", "label", "truth", "annotator", "time", "seconds"),
    *("idle_seconds", "suggestion", "repeat"),
)


@dataclass(frozen=True)
class Given:
    """An answer that stands, and of what: a pixel of a book's images that these experiments asked about.

    `truth` is the class that the label map has there, None without a label map.
    """

    experiments: tuple[str, ...]
    book: str
    answer: Answer
    truth: str | None

    @property
    def pixel(self) -> tuple[str, Place]:
        """What two answers have in common that are of the same pixel."""
        return self.book, self.answer.place

    @property
    def is_right(self) -> bool:
        """Whether it is what the label map says."""
        return self.answer.label is not None and self.answer.label == self.truth


@dataclass(frozen=True)
class AskedInStage:
    """The pixels that a chain asked people about on the way to a budget, and how many of them got no class.

    `replacements` are those among them that were asked for because others got none; None where that is not wanted.
    """

    line: Line
    budget: int
    pixels: int
    open: int
    refused: Mapping[Kind, int]
    replacements: int | None


@dataclass(frozen=True)
class Annotations:
    """All that people answered for the experiments of a report, in the order of time; empty when nobody was asked."""

    given: tuple[Given, ...]
    asked: tuple[AskedInStage, ...]
    class_names: tuple[str, ...]

    @cached_property
    def labels(self) -> tuple[Given, ...]:
        """The answers without hidden repeats."""
        return tuple(one for one in self.given if not one.answer.repeat)

    @cached_property
    def annotators(self) -> tuple[str, ...]:
        """Who answered, by name."""
        return tuple(sorted({one.answer.annotator for one in self.given}))


def load_annotations(store: Store, chains: Sequence[ReportedChain]) -> Annotations:
    """What people answered to the questions of these chains. StoreError for a damaged answer."""
    human = [(chain, chain.record, chain.record.book) for chain in chains if chain.record and chain.record.book]
    keys = dict.fromkeys(key for _, record, _ in human for key in record.questions)
    questions = {key: found for key in keys if (found := _questions(store, key)) is not None}
    books = {key: Book(store, key) for key in dict.fromkeys(book for _, _, book in human)}
    experiments: defaultdict[tuple[str, Place], dict[str, None]] = defaultdict(dict)
    truths: dict[tuple[str, Place], str | None] = {}
    for chain, record, book in human:
        for place, truth in _truths(record, questions):
            experiments[book, place][chain.point.experiment] = None
            truths[book, place] = truth
    given = [
        Given(tuple(experiments[pixel]), key, answer, truths[pixel])
        for key, book in books.items()
        for answer in book.answers
        if (pixel := (key, answer.place)) in truths
    ]
    said = {key: book.said() for key, book in books.items()}
    return Annotations(
        tuple(sorted(given, key=lambda one: (one.answer.time, one.answer.id))),
        tuple(asked for chain, record, book in human for asked in _asked(chain, record, questions, said[book])),
        tuple(dict.fromkeys(name for _, record, _ in human for name in record.class_names)),
    )


def _questions(store: Store, key: str) -> Questions | None:
    files = store.files("question", key, ["questions.npz"])
    return None if files is None else Questions.read(io.BytesIO(files["questions.npz"]))


def _truths(record: ChainRecord, questions: Mapping[str, Questions]) -> Iterator[tuple[Place, str | None]]:
    names = record.class_names
    for key in record.questions:
        if key in questions:
            labels = questions[key].truth.tolist()
            yield from zip(questions[key].places(), (names[at] if at >= 0 else None for at in labels), strict=True)


def _asked(
    chain: ReportedChain, record: ChainRecord, questions: Mapping[str, Questions], said: Mapping[Place, Answer]
) -> Iterator[AskedInStage]:
    """What a chain asked at every stage; of the questions of one stage all but the first are replacements."""
    stages: defaultdict[int, list[Questions]] = defaultdict(list)
    for key in record.questions:
        if key in questions:
            stages[questions[key].stage].append(questions[key])
    acquire, oracle = chain.trial.acquire, chain.trial.oracle
    replaces = isinstance(oracle, HumanSpec) and oracle.replace
    for stage, rounds in sorted(stages.items()):
        answers = [said.get(place) for one in rounds for place in one.places()]
        yield AskedInStage(
            chain.line,
            acquire.initial_pixels + stage * acquire.pixels_per_stage,
            len(answers),
            answers.count(None),
            {kind: sum(one is not None and one.kind == kind for one in answers) for kind in REFUSALS},
            len(answers) - len(rounds[0]) if replaces else None,
        )


# Two answers to one pixel


def first_looks(given: Sequence[Given]) -> dict[str, dict[tuple[str, Place], Given]]:
    """What each annotator says of each pixel, unless asked again: their last answer that is no repeat.

    The hidden second question about a pixel that somebody else labelled is a first look of who answers it.
    """
    found: defaultdict[str, dict[tuple[str, Place], Given]] = defaultdict(dict)
    for one in given:
        known = found[one.answer.annotator].get(one.pixel)
        if known is None or not one.answer.repeat:
            found[one.answer.annotator][one.pixel] = one
    return dict(found)


def second_looks(given: Sequence[Given]) -> dict[str, dict[tuple[str, Place], Given]]:
    """What each annotator said when they were asked again, unmarked, about pixels that they had looked at before."""
    firsts = first_looks(given)
    found: defaultdict[str, dict[tuple[str, Place], Given]] = defaultdict(dict)
    for one in given:
        name = one.answer.annotator
        if one.answer.repeat and firsts[name][one.pixel] is not one:
            found[name].setdefault(one.pixel, one)
    return dict(found)


# Times and costs


def seconds_of(given: Sequence[Given]) -> list[float]:
    """How long the answers took whose time was measured, pauses left out."""
    return [one.answer.seconds for one in given if one.answer.seconds is not None]


def measured_costs(annotations: Annotations) -> CostModel | None:
    """The cost model that the times of the answers give, hidden repeats apart; None when no time was measured."""
    seconds = seconds_of(annotations.labels)
    if not seconds:
        return None
    by_class: dict[str, list[float]] = {name: [] for name in annotations.class_names}
    for one in annotations.labels:
        if one.answer.label in by_class and one.answer.seconds is not None:
            by_class[one.answer.label].append(one.answer.seconds)
    means = {name: round(mean(own), 3) for name, own in by_class.items() if len(own) >= TIMED}
    return CostModel(seconds_per_pixel=round(mean(seconds), 3), seconds_per_class=means)


def measured_basis(annotations: Annotations) -> str:
    """Where the measured times are from, as "Measured in 12 answers of ann (8) and bea (4)"."""
    counts = Counter(one.answer.annotator for one in annotations.labels if one.answer.seconds is not None)
    *others, last = (f"{name} ({counts[name]:,})" for name in sorted(counts))
    people = f"{', '.join(others)} and {last}" if others else last
    return f"Measured in {counts.total():,} answer{'s' * (counts.total() != 1)} of {people}"


def costs_yaml(annotations: Annotations) -> str | None:
    """The measured cost model as a file that `--costs` takes; None when no time was measured."""
    model = measured_costs(annotations)
    if model is None:
        return None
    experiments = ", ".join(dict.fromkeys(name for one in annotations.given for name in one.experiments))
    fields = model.model_dump(include={"clicks_per_pixel", "seconds_per_pixel", "seconds_per_class"})
    comment = (
        f"# {_printable(measured_basis(annotations))}; experiments: {experiments}.\n"
        "# Pauses and hidden repeats are left out. Classes that are not named have fewer than "
        f"{TIMED} timed answers and cost the mean of all.\n"
    )
    return comment + write_yaml(fields)


def _printable(text: str) -> str:
    """For a comment of YAML, which more characters end than one thinks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def answers_csv(annotations: Annotations) -> str:
    """One answer a line, hidden repeats among them; the experiments that asked about its pixel joined by spaces."""
    lines = []
    for one in annotations.given:
        values: dict[str, Any] = one.answer.model_dump() | {"book": one.book, "truth": one.truth}
        values |= {"experiment": " ".join(one.experiments), "repeat": int(one.answer.repeat)}
        lines.append([values[name] for name in CSV_COLUMNS])
    return csv_text(CSV_COLUMNS, lines)
