"""What the steps of a chain have in common: its data, its results in the store, its record, its events."""

import contextlib
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

from pixelpick_ray.data.cache import PreparedSplit, prepare, training_names
from pixelpick_ray.data.datasets import Dataset, open_dataset, training_split
from pixelpick_ray.data.description import write_description
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.weights import weights_digest
from pixelpick_ray.engine.batches import TrainingData
from pixelpick_ray.engine.provenance import provenance_of
from pixelpick_ray.engine.score import Query, pick_initial
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import StoreError
from pixelpick_ray.spec.canonical import digest
from pixelpick_ray.spec.experiment import Experiment
from pixelpick_ray.spec.keys import Source, evaluation_size, initial_input, split_input
from pixelpick_ray.spec.trial import SizeSpec, Trial
from pixelpick_ray.store import Store, experiment_folder

TURN_SECONDS = 0.5  # how long ranks wait for another holder of a lease before they look again


@dataclass(frozen=True)
class Event:
    """What a chain reports while it runs: ``kind`` is resume, epoch, stage or pick; ``values`` are plain numbers."""

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
        """The first pixels, by chance."""
        inputs = initial_input(self.trial, self.source)
        trial = self.trial

        def compute() -> Query:
            return pick_initial(self.data, trial.acquire.initial_pixels, trial.oracle, seed=trial.seed)

        labels, _ = self.pixels(inputs, compute, dict)
        self.record["initial"] = digest(inputs)
        return labels

    def emit(self, kind: str, stage: int, *, computed: bool = True, **values: Any) -> None:
        """Report an event from the first rank."""
        if self.world.is_first:
            self._on_event(Event(kind, self.chain, stage, computed, values))

    def pixels(
        self, inputs: dict[str, Any], compute: Callable[[], Query], facts: Callable[[], dict[str, Any]]
    ) -> tuple[LabelledPixels, bool]:
        """Pixels from the store, or computed and stored; and whether they were computed."""
        key = digest(inputs)

        def read() -> LabelledPixels | None:
            folder = self.place.store.read("pick", inputs) if self.world.is_first else None
            stored = LabelledPixels.read(folder / "pixels.npz") if folder else None
            return cast(LabelledPixels | None, self.world.broadcast(stored))

        if (found := read()) is not None:
            return found, False
        with self.hold("pick", key, lambda: self.place.store.has("pick", key)):
            if (found := read()) is not None:  # another chain may have picked while this one waited
                return found, False
            start = time.perf_counter()
            with self.phase("score", key):
                query = compute()

            def write(folder: Path) -> None:
                query.pixels.write(folder / "pixels.npz")
                (folder / "statistics.json").write_text(json.dumps(query.statistics) + "\n")

            if self.world.is_first:
                self.publish("pick", inputs, write, provenance_of(self.world, start) | facts())
            found = read()
        if found is None:
            raise StoreError(f"pick {key}: was published and cannot be read back; is the disk of the store sound?")
        return found, True

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
        before = self.place.store.read_record(relative) or {"stages": []}
        mine = self.record["stages"]
        goes_on = len(before["stages"]) >= len(mine) > 0 and before["stages"][len(mine) - 1]["fit"] == mine[-1]["fit"]
        later = before["stages"][len(mine) :] if goes_on else []  # of an earlier run to a larger budget
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
                "stages": mine + later,
            },
        )
