"""People's answers in the reported experiments, along with the label maps' classes, and what they cost."""

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
}  # kinds of answers without a class, in words
TIMED = 5  # answers of a class from which on it has its own mean time
COSTS_START = "# Measured in "  # first words of cost models written by reports
CSV_COLUMNS = (
    *("experiment", "book", "image", "y", "x", "kind", "label", "truth", "annotator", "time", "seconds"),
    *("idle_seconds", "suggestion", "repeat"),
)


@dataclass(frozen=True)
class Given:
    """A current answer about a pixel, by book, and the experiments that asked about it.

    `truth` is the class in the label map, None if there is no label map.
    """

    experiments: tuple[str, ...]
    book: str
    answer: Answer
    truth: str | None

    @property
    def pixel(self) -> tuple[str, Place]:
        """Identity of the pixel."""
        return self.book, self.answer.place

    @property
    def is_right(self) -> bool:
        """Whether the answer agrees with the label map."""
        return self.answer.label is not None and self.answer.label == self.truth


@dataclass(frozen=True)
class AskedInStage:
    """Number of pixels that a chain asked people about on the way to a budget, and how many got no class.

    `replacements` counts pixels that replaced others without a class; None if the experiment does not replace any.
    """

    line: Line
    budget: int
    pixels: int
    open: int
    refused: Mapping[Kind, int]
    replacements: int | None


@dataclass(frozen=True)
class Annotations:
    """All answers of people in the experiments of a report, by time; empty if nobody was asked."""

    given: tuple[Given, ...]
    asked: tuple[AskedInStage, ...]
    class_names: tuple[str, ...]

    @cached_property
    def labels(self) -> tuple[Given, ...]:
        """Answers other than hidden repeats."""
        return tuple(one for one in self.given if not one.answer.repeat)

    @cached_property
    def annotators(self) -> tuple[str, ...]:
        """Names of those who answered, sorted."""
        return tuple(sorted({one.answer.annotator for one in self.given}))


def load_annotations(store: Store, chains: Sequence[ReportedChain]) -> Annotations:
    """Read people's answers to the questions of these chains. Raises StoreError for a damaged answer."""
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
    """What a chain asked at every stage; all but the first round of a stage are replacements."""
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
    """Return each annotator's own answer to each pixel: the last one that is not a hidden repeat.

    A hidden repeat of a question that somebody else answered is a first look for whoever answers it.
    """
    found: defaultdict[str, dict[tuple[str, Place], Given]] = defaultdict(dict)
    for one in given:
        known = found[one.answer.annotator].get(one.pixel)
        if known is None or not one.answer.repeat:
            found[one.answer.annotator][one.pixel] = one
    return dict(found)


def second_looks(given: Sequence[Given]) -> dict[str, dict[tuple[str, Place], Given]]:
    """Return each annotator's answers to hidden repeats of pixels that they had answered before."""
    firsts = first_looks(given)
    found: defaultdict[str, dict[tuple[str, Place], Given]] = defaultdict(dict)
    for one in given:
        name = one.answer.annotator
        if one.answer.repeat and firsts[name][one.pixel] is not one:
            found[name].setdefault(one.pixel, one)
    return dict(found)


# Times and costs


def seconds_of(given: Sequence[Given]) -> list[float]:
    """Return the seconds that timed answers took, without pauses."""
    return [one.answer.seconds for one in given if one.answer.seconds is not None]


def measured_costs(annotations: Annotations) -> CostModel | None:
    """Derive a cost model from the times of answers other than hidden repeats; None if no time was measured."""
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
    """Say where the measured times come from, as in "Measured in 12 answers of ann (8) and bea (4)"."""
    counts = Counter(one.answer.annotator for one in annotations.labels if one.answer.seconds is not None)
    *others, last = (f"{name} ({counts[name]:,})" for name in sorted(counts))
    people = f"{', '.join(others)} and {last}" if others else last
    return f"Measured in {counts.total():,} answer{'s' * (counts.total() != 1)} of {people}"


def costs_yaml(annotations: Annotations) -> str | None:
    """Return the measured cost model as a YAML file for `--costs`; None if no time was measured."""
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
    """Text safe in a YAML comment, which line separators other than newlines end too."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def answers_csv(annotations: Annotations) -> str:
    """Write answers as CSV, one per line, hidden repeats included; a pixel's experiments are joined by spaces."""
    lines = []
    for one in annotations.given:
        values: dict[str, Any] = one.answer.model_dump() | {"book": one.book, "truth": one.truth}
        values |= {"experiment": " ".join(one.experiments), "repeat": int(one.answer.repeat)}
        lines.append([values[name] for name in CSV_COLUMNS])
    return csv_text(CSV_COLUMNS, lines)
