"""State that the tasks of one chain share on every rank: its data, stored results, record and events.

>>> picked, is_new = context.cached(task, lambda: compute_and_publish(task))
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.model import ViewSpec
from pixelpick_ray.config.trial import SizeSpec, Trial
from pixelpick_ray.data.cache import PreparedSplit, prepare, training_names
from pixelpick_ray.data.datasets import Dataset, DatasetFacts, open_dataset, training_split
from pixelpick_ray.data.description import write_description
from pixelpick_ray.data.weights import normalisation, normalised_facts, weights_digest
from pixelpick_ray.engine.batches import TrainingData
from pixelpick_ray.engine.features import Features, prepare_features
from pixelpick_ray.engine.provenance import provenance_of
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import StoreError
from pixelpick_ray.events import EpochDone, Event
from pixelpick_ray.store import Store
from pixelpick_ray.store.records import ChainRecord, DescriptionKeys, StageRecord, read_chain, write_chain
from pixelpick_ray.tasks import Describe, Task, answers_key, evaluation_size

T = TypeVar("T")
DOING = {"evaluate": "measuring", "score": "choosing pixels", "publish": "storing a result"}  # phases in words
TURN_SECONDS = 0.5  # interval at which ranks check a lease that is held elsewhere


class Context:
    """One chain on one rank; `cached`, `find` and `hold` are collective: all ranks must call them together."""

    def __init__(
        self,
        experiment: Experiment,
        trial: Trial,
        execution: Execution,
        world: World,
        on_event: Callable[[Event], None],
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self.experiment, self.trial, self.execution, self.world = experiment, trial, execution, world
        self.chain, self.store = trial.chain_id, Store(execution.store)
        self._on_event, self.is_leaving = on_event, is_leaving
        self._features: dict[tuple[str, bytes, ViewSpec | None], Features] = {}
        self._doing, self._epoch = "", 0
        self._log_folder = execution.runs_path / experiment.name / "steps"

    # Data

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, opened."""
        return open_dataset(self.trial.dataset, self.execution.data_path)

    @cached_property
    def facts(self) -> DatasetFacts:
        """Facts of the data set, with the mean and standard deviation that normalise this trial's images."""
        return normalised_facts(self.dataset.facts, self.trial.model)

    @cached_property
    def data(self) -> TrainingData:
        """The training images."""
        spec = self.trial.dataset
        prepared = self._prepared(training_split(self.dataset, spec), spec)
        names = training_names(prepared.names, spec.images, self.trial.seed)
        return TrainingData(self.facts, prepared, np.asarray([prepared.index[name] for name in names], dtype=np.int64))

    def split(self, split: str) -> PreparedSplit:
        """Return an evaluated split, prepared, by the name that the experiment gives it."""
        evaluate = self.experiment.evaluate
        size = evaluation_size(evaluate, self.trial, split)
        return self._prepared(evaluate.split_of(split), size)

    def _prepared(self, split: str, size: SizeSpec) -> PreparedSplit:
        return prepare(self.dataset, split, size, self.execution.cache_path, run=self.execution.run or None)

    def prepare_features(self) -> None:
        """Compute the features that the chain reads, if any, unless they are already in the cache."""
        if self.trial.model.fitted_head is not None:
            for prepared in (self.data.prepared, *map(self.split, self.experiment.evaluate.splits)):
                self.features(prepared)
            _ = self.training_features

    @property
    def training_features(self) -> list[Features]:
        """Features of the training images that a head is fitted to, followed by those of their augmented views."""
        views = (None, *(self.trial.model.views or ()))
        return [self.features(self.data.prepared, view) for view in views]

    def features(self, prepared: PreparedSplit, view: ViewSpec | None = None) -> Features:
        """Return the frozen backbone's features of a split, computed jointly by all ranks and chains of this node."""
        key = prepared.fingerprint, prepared.shapes.tobytes(), view
        if key not in self._features:
            self._features[key] = prepare_features(
                prepared,
                self.trial.model,
                self.facts,
                self.world,
                data_path=self.execution.data_path,
                cache_path=self.execution.cache_path,
                seed=self.trial.seed,
                limit=self.execution.cache_limit,
                view=view,
            )
        return self._features[key]

    @cached_property
    def source(self) -> Source:
        """Fingerprints of the data and the weights, which keys depend on."""
        evaluate, training = self.experiment.evaluate, self.data.prepared
        prints = {evaluate.split_of(name): self.split(name).fingerprint for name in evaluate.splits}
        prints[training.split] = training.fingerprint
        model = self.trial.model
        weights = weights_digest(model, self.execution.data_path)
        return Source(prints, training.split, weights, normalisation(model, self.dataset.facts))

    @cached_property
    def answers_key(self) -> str | None:
        """The key of people's answers; None if no people are asked."""
        if not self.trial.asks_people:
            return None
        return answers_key(self.trial, self.dataset.identity(training_split(self.dataset, self.trial.dataset)))

    def describe_splits(self) -> None:
        """Store the descriptions of images that reports need, unless they are stored; acts on the first rank only."""
        if not self.world.is_first:
            return
        evaluate, data = self.experiment.evaluate, self.data
        images = data.names if self.trial.dataset.images else None
        splits = {name: self.split(name) for name in evaluate.splits}
        evaluated = {
            name: self._describe(split, range(len(split)), evaluation_size(evaluate, self.trial, name), None)
            for name, split in splits.items()
        }
        training = self._describe(data.prepared, data.positions.tolist(), self.trial.dataset, images)
        self.note(descriptions=DescriptionKeys(training=training, evaluated=evaluated))

    def _describe(
        self, prepared: PreparedSplit, positions: Sequence[int], size: SizeSpec, images: tuple[str, ...] | None
    ) -> str:
        task = Describe(size, prepared.fingerprint, images)
        if self.store.read(task.kind, task.inputs) is None:
            facts = self.dataset.facts
            self.publish(
                task, lambda folder: write_description(folder, prepared, positions, facts), time.perf_counter()
            )
        return task.key

    # Results

    def cached(self, task: Task[T], make: Callable[[], None], *, lease: bool = True) -> tuple[T, bool]:
        """Return the value of a result, and whether it is new: read from the store, or made and published by `make`.

        Without a lease, two processes may make it at the same time, and the first to publish wins. The value is read
        back from what was published, so another process's result is adopted; ranks that do not need it get None.
        """
        found = self.find(task)
        if found is not None:
            return found[0], False
        with self.hold(task, lambda: self._is_there(task)) if lease else contextlib.nullcontext():
            found = self.find(task) if lease else None  # another chain may have made it while this one waited
            if found is not None:
                return found[0], False
            make()
            found = self.find(task)
        if found is None:
            raise StoreError(
                f"{task.kind} {task.key}: was published but cannot be read back; check the store's disk, and run again"
            )
        return found[0], True

    def find(self, task: Task[T]) -> tuple[T] | None:
        """Return the value of a complete result as a 1-tuple, or None; sets damaged results aside."""
        found = self._read(task) if self.world.is_first else None
        if task.for_all_ranks:
            return cast(tuple[T] | None, self.world.broadcast(found))
        is_there = self.world.broadcast(found is not None)
        return (found or (cast(T, None),)) if is_there else None

    def _read(self, task: Task[T]) -> tuple[T] | None:
        folder = self.store.read(task.kind, task.inputs)
        if folder is None or any(self.store.read(one.kind, one.inputs) is None for one in task.by_training):
            return None
        return (task.read({name: (folder / name).read_bytes() for name in task.files}),)

    def _is_there(self, task: Task[Any]) -> bool:
        return all(self.store.has(one.kind, one.key) for one in (task, *task.by_training))

    def publish(self, task: Task[Any], write: Callable[[Path], None], start: float, **facts: Any) -> None:
        """Publish a result with its provenance and further `facts`; for the first rank only.

        `start` is the ``time.perf_counter()`` at which work on it began.
        """
        with self.phase("publish", task.key):
            self.store.publish(task.kind, task.inputs, write, provenance_of(self.world, start) | facts)

    @contextlib.contextmanager
    def hold(self, task: Task[Any], is_done: Callable[[], bool]) -> Iterator[None]:
        """Hold a lease on a result, taken by the first rank, unless another holder finishes the work meanwhile.

        Ranks poll, so that a long wait for another driver does not become one long-running collective.
        """
        lease = None
        while True:
            if self.world.is_first:
                lease = self.store.take(task.kind, task.key)
            if self.world.broadcast(lease is not None or (self.world.is_first and is_done())):
                break
            time.sleep(TURN_SECONDS)
        with lease or contextlib.nullcontext():
            yield

    # Reporting: events, this process's log, the chain's record

    def emit(self, event: Event) -> None:
        """Report an event from the first rank."""
        if isinstance(event, EpochDone):
            self._epoch = event.epoch
        if self.world.is_first:
            self._on_event(event)

    @contextlib.contextmanager
    def phase(self, name: str, key: str = "") -> Iterator[None]:
        """Log the beginning and the successful end of a phase of work on a result."""
        self._log(phase=name, key=key, event="begin")
        before, self._doing = self._doing, name
        self._epoch = 0 if name == "fit" else self._epoch
        yield
        self._doing = before
        self._log(phase=name, key=key, event="end")

    @property
    def doing(self) -> str:
        """What this rank is doing, in words; after an error, what it was doing."""
        if self._doing == "fit":
            return f"training epoch {self._epoch + 1}"
        return DOING.get(self._doing, "preparing")

    def _log(self, **values: str) -> None:
        who = {"time": time.time(), "chain": self.chain, "rank": self.world.rank}
        with contextlib.suppress(OSError):  # a log that cannot be written must not stop the run
            self._log_folder.mkdir(parents=True, exist_ok=True)
            with open(self._log_folder / f"{socket.gethostname()}-{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(who | values) + "\n")

    @cached_property
    def record(self) -> ChainRecord:
        """The chain's record, as far as this walk has got."""
        shapes = self.data.prepared.shapes[self.data.positions]
        return ChainRecord(
            trial=self.trial.model_dump(mode="json", exclude={"budget"}, exclude_none=True),
            full=self.trial.is_fully_supervised,
            class_names=tuple(self.data.facts.class_names),
            num_images=len(self.data.positions),
            pixels_per_image=float(shapes.prod(axis=1).mean()),
            source=self.source,
        )

    def note(self, **reached: Any) -> None:
        """Update fields of the record; `write_record` stores it."""
        self.record = self.record.model_copy(update=reached)

    def note_stage(self, stage: int, entry: StageRecord) -> None:
        """Set a stage of the record and drop all later stages."""
        self.note(stages=(*self.record.stages[:stage], entry))

    def note_questions(self, keys: Sequence[str]) -> None:
        """Add questions put to people to the record."""
        self.note(book=self.answers_key, questions=tuple(dict.fromkeys((*self.record.questions, *keys))))

    def write_record(self) -> None:
        """Store the record, so that reports need neither data nor torch; acts on the first rank only."""
        if self.world.is_first:
            before = read_chain(self.store, self.experiment, self.chain)
            record = self.record if before is None else self._with_kept(before)
            write_chain(self.store, self.experiment, self.chain, record)

    def _with_kept(self, before: ChainRecord) -> ChainRecord:
        """The record, plus later stages and questions of the one `before` it if the two agree so far."""
        mine, theirs = self.record, before
        same = all(one.fit == other.fit for one, other in zip(mine.stages, theirs.stages, strict=False))
        if not same or mine.initial != theirs.initial:
            return mine
        kept: dict[str, Any] = {"stages": (*mine.stages, *theirs.stages[len(mine.stages) :])}
        if theirs.questions:
            questions = tuple(dict.fromkeys((*theirs.questions, *mine.questions)))
            kept |= {"book": self.answers_key, "questions": questions}
        asks = theirs.asks
        if asks is not None and mine.asks is None and not self.store.has("pick", asks.pick):
            kept["asks"] = asks
        return mine.model_copy(update=kept)
