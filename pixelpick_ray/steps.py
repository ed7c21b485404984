"""What the steps of a chain have in common: its data, its results in the store, its record, its events."""

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pixelpick_ray.active.oracle import Asked, Labels, Unanswered, answer
from pixelpick_ray.active.queries import answered
from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.keys import (
    Source,
    book_input,
    evaluation_size,
    initial_input,
    question_input,
    split_input,
)
from pixelpick_ray.config.trial import HumanSpec, SizeSpec, Trial
from pixelpick_ray.data.answers import Book, check_images
from pixelpick_ray.data.cache import PreparedSplit, prepare, training_names
from pixelpick_ray.data.datasets import Dataset, open_dataset, training_split
from pixelpick_ray.data.description import write_description
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.questions import Questions
from pixelpick_ray.data.weights import weights_digest
from pixelpick_ray.engine.batches import TrainingData
from pixelpick_ray.engine.provenance import provenance_of
from pixelpick_ray.engine.score import Again, pick_initial, replace_initial
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import StoreError
from pixelpick_ray.store import Store, experiment_folder

# Finds pixels to ask about: those of the stage, or others for labels of this stage that are no class.
REPLACEMENTS = 5  # rounds of pixels for those without a class: an image that shows no class at all must come to an end
AskPixels = Callable[[LabelledPixels | None, Again | None], Questions]
Facts = Callable[[], dict[str, Any]]
QUESTIONS = "questions.json"  # of a pick that people answered: the keys of what they were asked
TURN_SECONDS = 0.5  # how long ranks wait for another holder of a lease before they look again


@dataclass(frozen=True)
class Event:
    """What a chain reports while it runs: ``kind`` is resume, epoch, stage, pick, waits or done; ``values`` are plain
    numbers.
    """

    kind: str
    chain: str
    stage: int
    computed: bool = True
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workplace:
    """Where a chain finds its inputs and leaves its results. `keep_stages` keep their weights for other chains.

    A fit in training is saved at the end of the first epoch that ends `checkpoint_seconds` after the last time. Each
    process writes what it does to a file of its own in `log_path`.
    """

    store: Store
    data_path: Path
    cache_path: Path
    keep_weights: str = "needed"
    keep_stages: frozenset[int] = frozenset()
    checkpoint_seconds: float = 300.0
    log_path: Path | None = None


class Steps:
    """The steps of one chain, each answered from the store or computed by all ranks and published by the first."""

    def __init__(
        self, experiment: Experiment, trial: Trial, place: Workplace, world: World, on_event: Callable[[Event], None]
    ) -> None:
        self.experiment, self.trial, self.place, self.world = experiment, trial, place, world
        self.chain = trial.chain_id
        self._on_event = on_event
        self.record: dict[str, Any] = {"stages": []}

    @cached_property
    def dataset(self) -> Dataset:
        """The opened data set."""
        return open_dataset(self.trial.dataset, self.place.data_path)

    @cached_property
    def data(self) -> TrainingData:
        """The training images."""
        spec = self.trial.dataset
        prepared = prepare(self.dataset, training_split(self.dataset, spec), spec, self.place.cache_path)
        names = training_names(prepared.names, spec.images, self.trial.seed)
        return TrainingData(
            self.dataset.facts, prepared, np.asarray([prepared.index[name] for name in names], dtype=np.int64)
        )

    def split(self, split: str) -> PreparedSplit:
        """An evaluated split, by the name that the experiment gives it."""
        evaluate = self.experiment.evaluate
        size = evaluation_size(evaluate, self.trial, split)
        return prepare(self.dataset, evaluate.split_of(split), size, self.place.cache_path)

    @cached_property
    def source(self) -> Source:
        """Contents that keys depend on."""
        evaluate, training = self.experiment.evaluate, self.data.prepared
        prints = {evaluate.split_of(name): self.split(name).fingerprint for name in evaluate.splits}
        prints[training.split] = training.fingerprint
        return Source(prints, training.split, weights_digest(self.trial.model, self.place.data_path))

    def describe_splits(self) -> None:
        """Make sure that what a report tells of the images is stored: small pictures, and statistics of the labels."""
        if not self.world.is_first:
            return
        evaluate, data = self.experiment.evaluate, self.data
        images = list(data.names) if self.trial.dataset.images else None
        splits = {name: self.split(name) for name in evaluate.splits}
        evaluated = {
            name: self._describe(split, range(len(split)), evaluation_size(evaluate, self.trial, name), None)
            for name, split in splits.items()
        }
        training = self._describe(data.prepared, data.positions.tolist(), self.trial.dataset, images)
        self.record["descriptions"] = {"training": training, "evaluated": evaluated}

    def _describe(
        self, prepared: PreparedSplit, positions: Sequence[int], size: SizeSpec, images: list[str] | None
    ) -> str:
        inputs = split_input(size, fingerprint=prepared.fingerprint, images=images)

        def write(folder: Path) -> None:
            write_description(folder, prepared, positions, self.dataset.facts)

        if self.place.store.read("split", inputs) is None:
            self.publish("split", inputs, write, provenance_of(self.world, time.perf_counter()))
        return digest(inputs)

    def initial_pixels(self) -> LabelledPixels:
        """The first pixels, by chance. Unanswered as in `pixels`."""
        inputs, trial = initial_input(self.trial, self.source), self.trial
        self.record["initial"] = digest(inputs)

        def ask(labels: LabelledPixels | None, again: Again | None) -> Questions:
            if labels is None or again is None:
                return pick_initial(self.data, trial.acquire.initial_pixels, seed=trial.seed)
            return replace_initial(self.data, labels, again, seed=trial.seed)

        return self.pixels(inputs, ask, dict, budget=trial.acquire.initial_pixels)[0]

    @cached_property
    def book_key(self) -> str | None:
        """The key of the book that people's answers are in; None where no people are asked."""
        if not isinstance(self.trial.oracle, HumanSpec):
            return None
        identity = self.dataset.identity(training_split(self.dataset, self.trial.dataset))
        return digest(book_input(self.trial, identity))

    def _record_questions(self, keys: list[str]) -> None:
        before = self.record.get("questions", [])
        self.record |= {"book": self.book_key, "questions": [*before, *(key for key in keys if key not in before)]}

    def emit(self, kind: str, stage: int, *, computed: bool = True, **values: Any) -> None:
        """Report an event from the first rank."""
        if self.world.is_first:
            self._on_event(Event(kind, self.chain, stage, computed, values))

    def pixels(
        self, inputs: dict[str, Any], ask: AskPixels, facts: Facts, *, budget: int
    ) -> tuple[LabelledPixels, bool]:
        """Pixels from the store, or asked for, answered and stored; and whether they were stored now.

        `ask` finds new pixels; `facts` go with their provenance; `budget` is what the answers lead to. Unanswered, on
        every rank, when people have not answered yet: what they are asked is stored and recorded then.
        """
        key = digest(inputs)

        def read() -> LabelledPixels | None:
            folder = self.place.store.read("pick", inputs) if self.world.is_first else None
            stored = LabelledPixels.read(folder / "pixels.npz") if folder else None
            if folder and (folder / QUESTIONS).is_file():
                self._record_questions(json.loads((folder / QUESTIONS).read_text(encoding="utf-8")))
            return cast(LabelledPixels | None, self.world.broadcast(stored))

        if (found := read()) is not None:
            return found, False
        with self.hold("pick", key, lambda: self.place.store.has("pick", key)):
            if (found := read()) is not None:  # another chain may have picked while this one waited
                return found, False
            self._talk(inputs, ask, facts, budget)
            found = read()
        if found is None:
            raise StoreError(f"pick {key}: was published and cannot be read back; is the disk of the store sound?")
        return found, True

    def _talk(self, inputs: dict[str, Any], ask: AskPixels, facts: Facts, budget: int) -> None:
        """Ask for pixels, have them answered, and publish them. Unanswered when people have yet to answer some."""
        start, talk = time.perf_counter(), _Talk(self, inputs, ask, facts)
        try:
            questions, labels = talk.answers()
        except Unanswered:
            self._record_questions(talk.keys)
            self.record["asks"] = {
                "pick": digest(inputs),
                "book": self.book_key,
                "budget": budget,
                "questions": talk.keys,
            }
            self.write_record()
            raise
        query = answered(questions, labels, num_classes=self.data.facts.num_classes)

        def write(folder: Path) -> None:
            query.pixels.write(folder / "pixels.npz")
            (folder / "statistics.json").write_text(json.dumps(query.statistics) + "\n")
            if self.book_key is not None:
                (folder / QUESTIONS).write_text(json.dumps(talk.keys) + "\n")

        if self.world.is_first:
            self.publish("pick", inputs, write, provenance_of(self.world, start) | facts())

    def publish(
        self, kind: str, inputs: dict[str, Any], write: Callable[[Path], None], provenance: dict[str, Any]
    ) -> None:
        """Publish a result; the first rank's duty."""
        with self.phase("publish", digest(inputs)):
            self.place.store.publish(kind, inputs, write, provenance)

    @contextlib.contextmanager
    def hold(self, kind: str, key: str, is_done: Callable[[], bool]) -> Iterator[None]:
        """The first rank's lease on a result for all ranks; or none, when another holder has done the work meanwhile.

        Ranks wait in short turns, so that a long wait for another driver is no collective that lasts.
        """
        lease = None
        while True:
            if self.world.is_first:
                lease = self.place.store.take(kind, key)
            if self.world.broadcast(lease is not None or (self.world.is_first and is_done())):
                break
            time.sleep(TURN_SECONDS)
        with lease or contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def phase(self, name: str, key: str = "") -> Iterator[None]:
        """Write to this process's log that a phase of work on a result begins, and that it has ended well."""
        self._log(phase=name, key=key, event="begin")
        yield
        self._log(phase=name, key=key, event="end")

    def _log(self, **values: str) -> None:
        folder = self.place.log_path
        if folder is None:
            return
        who = {"time": time.time(), "chain": self.chain, "rank": self.world.rank}
        with contextlib.suppress(OSError):  # a log that cannot be written stops nobody
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / f"{socket.gethostname()}-{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(who | values) + "\n")

    def write_record(self) -> None:
        """Record the keys reached, so that a report needs neither data nor torch."""
        if not self.world.is_first:
            return
        relative = f"{experiment_folder(self.experiment)}/chains/{self.chain}.json"
        before = self.place.store.read_record(relative) or {}
        shapes = self.data.prepared.shapes[self.data.positions]
        self.place.store.write_record(
            relative,
            {
                "trial": self.trial.model_dump(mode="json", exclude={"budget"}, exclude_none=True),
                "full": self.trial.budget == "full",
                "class_names": list(self.data.facts.class_names),
                "num_images": len(self.data.positions),
                "pixels_per_image": float(shapes.prod(axis=1).mean()),
                "source": asdict(self.source),
                **self.record,
                **self._kept_of(before),
            },
        )

    def _kept_of(self, before: dict[str, Any]) -> dict[str, Any]:
        """What stays of an earlier record of the chain, which went the same way, perhaps further: its later stages, and
        what it has asked people.
        """
        mine, theirs = self.record["stages"], before.get("stages", [])
        same = all(one["fit"] == other["fit"] for one, other in zip(mine, theirs, strict=False))
        if not same or before.get("initial") != self.record.get("initial"):
            return {}
        kept: dict[str, Any] = {"stages": [*mine, *theirs[len(mine) :]]}
        if "questions" in before:
            asked = before["questions"]
            new = [key for key in self.record.get("questions", []) if key not in asked]
            kept |= {"book": self.book_key, "questions": [*asked, *new]}
        asks = before.get("asks")
        if asks is not None and "asks" not in self.record and not self.place.store.has("pick", asks["pick"]):
            kept["asks"] = asks
        return kept


class _Talk:
    """The questions of one pick and the answers to them: one round, and more where pixels without a class are replaced.

    What people are asked is stored before they are asked, and stays while they think about it. Questions and labels are
    the same on every rank.
    """

    def __init__(self, steps: Steps, inputs: dict[str, Any], ask: AskPixels, facts: Facts) -> None:
        self._steps, self._inputs, self._ask, self._facts = steps, inputs, ask, facts
        self._world, self._oracle = steps.world, steps.trial.oracle
        self.keys: list[str] = []  # of what people were asked

    def answers(self) -> tuple[Questions, Labels]:
        """All questions of the pick and their labels (k,). Unanswered when people have not answered them all."""
        questions = self._questions(None, None, [])
        labels = self._labels(questions)
        wanted = _per_image(questions, np.ones(len(questions), dtype=np.bool_))
        rounds: list[tuple[str, str]] = []
        while isinstance(self._oracle, HumanSpec) and self._oracle.replace and len(rounds) < REPLACEMENTS:
            so_far, have = questions.answered(labels), _per_image(questions, labels >= 0)
            rounds.append((self.keys[-1], so_far.digest()))
            lacking = {name: count - have[name] for name, count in wanted.items() if count > have[name]}
            if not lacking:
                break
            more = self._questions(so_far, Again(len(rounds), lacking), rounds)
            if not len(more):
                break
            questions = questions.add(more)
            labels = self._labels(questions)
        return questions, labels

    def _questions(
        self, labels: LabelledPixels | None, again: Again | None, rounds: list[tuple[str, str]]
    ) -> Questions:
        """The next questions; those of people from the store if they are there, else into it."""
        steps, store = self._steps, self._steps.place.store
        inputs = question_input(self._inputs, answered=rounds)
        found = None
        if isinstance(self._oracle, HumanSpec):
            folder = store.read("question", inputs) if self._world.is_first else None
            found = self._world.broadcast(Questions.read(folder / "questions.npz") if folder else None)
        if found is None:
            start = time.perf_counter()
            with steps.phase("score", digest(self._inputs)):
                found = self._world.broadcast(self._ask(labels, again))
            if isinstance(self._oracle, HumanSpec):
                self._publish(inputs, found, start)
        self.keys += [digest(inputs)] if len(found) else []
        return cast(Questions, found)

    def _publish(self, inputs: dict[str, Any], questions: Questions, start: float) -> None:
        """Store what people are asked. DataError for an image that has changed since people were asked about it."""
        steps, prepared = self._steps, self._steps.data.prepared
        if steps.book_key is None or not self._world.is_first:
            return
        looks = {name: prepared.image(prepared.index[name]).tobytes() for name in questions.names}
        check_images(
            steps.place.store, steps.book_key, {name: hashlib.sha256(look).hexdigest() for name, look in looks.items()}
        )

        def write(folder: Path) -> None:
            questions.write(folder / "questions.npz")

        steps.publish("question", inputs, write, provenance_of(self._world, start) | self._facts())

    def _labels(self, questions: Questions) -> Labels:
        """What the oracle says of the questions. Unanswered when people have not answered them all."""
        steps = self._steps
        said: Labels | Unanswered | None = None
        if self._world.is_first:
            try:
                names, seed = steps.dataset.facts.class_names, steps.trial.seed
                book = None if steps.book_key is None else Book(steps.place.store, steps.book_key)
                said = answer(self._oracle, Asked(questions, names, seed, book))
            except Unanswered as error:
                said = error
        said = self._world.broadcast(said)
        if isinstance(said, Unanswered):
            raise said
        return cast(Labels, said)


def _per_image(questions: Questions, counted: npt.NDArray[np.bool_]) -> dict[str, int]:
    """How many of the counted (k,) questions each image has."""
    counts = np.bincount(questions.image[counted], minlength=len(questions.names))
    return dict(zip(questions.names, counts.tolist(), strict=True))
