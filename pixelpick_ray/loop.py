"""The active-learning loop: every rank of a trial runs `run_chain`."""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors.torch import load_file, save_file
from torch import nn

from pixelpick_ray.active.acquisition import needs_model
from pixelpick_ray.active.metrics import miou
from pixelpick_ray.data.cache import PreparedSplit, prepare, training_names
from pixelpick_ray.data.datasets import Dataset, open_dataset, training_split
from pixelpick_ray.data.description import write_description, write_label_map
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.weights import weights_digest
from pixelpick_ray.engine.batches import FitJob, TrainingData
from pixelpick_ray.engine.fit import Epoch, fit
from pixelpick_ray.engine.provenance import provenance_of
from pixelpick_ray.engine.score import Query, evaluate, pick, pick_initial
from pixelpick_ray.engine.world import World
from pixelpick_ray.models.segmentation import build_model
from pixelpick_ray.spec.canonical import digest
from pixelpick_ray.spec.experiment import Experiment
from pixelpick_ray.spec.keys import (
    Source,
    evaluation_input,
    evaluation_size,
    fit_input,
    initial_input,
    pick_input,
    split_input,
)
from pixelpick_ray.spec.trial import SizeSpec, Trial
from pixelpick_ray.store import Store, experiment_folder


@dataclass(frozen=True)
class Event:
    """What a chain reports while it runs: ``kind`` is epoch, stage or pick; ``values`` are plain numbers."""

    kind: str
    chain: str
    stage: int
    computed: bool = True
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workplace:
    """Where a chain finds its inputs and leaves its results. `keep_stages` keep their weights for other chains."""

    store: Store
    data_path: Path
    cache_path: Path
    keep_weights: str = "needed"
    keep_stages: frozenset[int] = frozenset()


def run_chain(
    experiment: Experiment, trial: Trial, place: Workplace, world: World, on_event: Callable[[Event], None]
) -> None:
    """Run a trial with all the trials that are prefixes of it; what is stored is not computed again."""
    steps = Steps(experiment, trial, place, world, on_event)
    steps.describe_splits()
    labels = None if trial.budget == "full" else steps.initial_pixels()
    for stage in range(trial.num_stages):
        current = steps.stage(stage, labels)
        current.evaluate()
        if labels is not None and stage + 1 < trial.num_stages:
            labels = labels.add(current.pick())
        current.finish()


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
            self.place.store.publish("split", inputs, write, provenance_of(self.world, time.perf_counter()))
        return digest(inputs)

    def initial_pixels(self) -> LabelledPixels:
        """The first pixels, by chance."""
        inputs = initial_input(self.trial, self.source)
        trial = self.trial

        def compute() -> Query:
            return pick_initial(self.data, trial.acquire.initial_pixels, trial.oracle, seed=trial.seed)

        labels, _ = self._pixels(inputs, compute, dict)
        self.record["initial"] = digest(inputs)
        return labels

    def stage(self, stage: int, labels: LabelledPixels | None) -> "Stage":
        """The steps of one stage, given the labels so far (None: every pixel)."""
        return Stage(self, stage, labels)

    def emit(self, kind: str, stage: int, *, computed: bool = True, **values: Any) -> None:
        """Report an event from the first rank."""
        if self.world.is_first:
            self._on_event(Event(kind, self.chain, stage, computed, values))

    def _pixels(
        self, inputs: dict[str, Any], compute: Callable[[], Query], facts: Callable[[], dict[str, Any]]
    ) -> tuple[LabelledPixels, bool]:
        """Pixels from the store, or computed and stored; and whether they were computed."""

        def read() -> LabelledPixels | None:
            folder = self.place.store.read("pick", inputs)
            return LabelledPixels.read(folder / "pixels.npz") if folder else None

        found = self.world.broadcast(read() if self.world.is_first else None)
        if found is not None:
            return found, False
        with hold(self, "pick", digest(inputs)):
            start = time.perf_counter()
            query = compute()

            def write(folder: Path) -> None:
                query.pixels.write(folder / "pixels.npz")
                (folder / "statistics.json").write_text(json.dumps(query.statistics) + "\n")

            if self.world.is_first:
                self.place.store.publish("pick", inputs, write, provenance_of(self.world, start) | facts())
            return self.world.broadcast(read() if self.world.is_first else None), True

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


class Stage:
    """One stage: fit, evaluations, pick. The model is trained or loaded only when a missing result needs it."""

    def __init__(self, steps: Steps, stage: int, labels: LabelledPixels | None) -> None:
        self.steps, self.number, self.labels = steps, stage, labels
        trial, source = steps.trial, steps.source
        labels_digest = "full" if labels is None else labels.digest()
        self.fit_input = fit_input(trial, source, stage=stage, labels_digest=labels_digest)
        self.fit_key = digest(self.fit_input)
        spec = steps.experiment.evaluate
        self.evaluation_inputs = {
            split: evaluation_input(spec, trial, source, split=split, fit_key=self.fit_key) for split in spec.splits
        }
        self.pick_input = pick_input(trial, fit_key=self.fit_key, stage=stage)
        self._picked = False
        self._model: nn.Module | None = None
        self._weights_digest: str | None = None

    def evaluate(self) -> None:
        """Make sure that the fit and every evaluation are stored."""
        steps, computed = self.steps, False
        must_train, missing = self._state()
        if must_train:
            with hold(steps, "fit", self.fit_key):
                must_train, missing = self._state()  # another chain may have trained it while this one waited
                if must_train:
                    self._train(missing)
                    computed, missing = True, []
        if missing:
            self._store_evaluations({split: {0: self._evaluate(split, self.model())} for split in missing})
        self._record()
        steps.emit("stage", self.number, computed=computed, **self._summary())

    def pick(self) -> LabelledPixels:
        """The next labelled pixels."""
        steps, trial = self.steps, self.steps.trial
        labels = self.labels
        if labels is None:
            raise AssertionError("full supervision picks nothing")

        def compute() -> Query:
            model = self.model() if needs_model(trial.acquire.strategy) else None
            place = steps.data, labels, trial.acquire, trial.oracle, steps.world
            return pick(model, *place, seed=trial.seed, stage=self.number)

        pixels, computed = steps._pixels(self.pick_input, compute, lambda: {"fit_weights": self._weights_digest})
        self._picked = True
        self._record()
        steps.emit("pick", self.number, computed=computed, pick=digest(self.pick_input))
        return pixels

    def finish(self) -> None:
        """Remove weights that nothing needs any more."""
        steps = self.steps
        last = self.number + 1 == steps.trial.num_stages
        keep = steps.place.keep_weights == "all" or (steps.place.keep_weights == "last" and last)
        if steps.world.is_first and not keep and self.number not in steps.place.keep_stages:
            steps.place.store.drop_weights(self.fit_key)

    def model(self) -> nn.Module:
        """The trained model: in memory, from the stored weights, or trained again when these are gone."""
        if self._model is None:
            steps = self.steps
            found = steps.world.broadcast(steps.place.store.weights(self.fit_key) if steps.world.is_first else None)
            if found is None:
                self._train([])
            else:
                self._model, self._weights_digest = self._load(found[0]), found[1]
        if self._model is None:
            raise AssertionError("training leaves a model")
        return self._model

    def _load(self, path: Path) -> nn.Module:
        steps, trial = self.steps, self.steps.trial
        model = build_model(
            trial.model.model_copy(update={"pretrained": "none"}),
            num_classes=steps.data.facts.num_classes,
            data_path=steps.place.data_path,
            seed=trial.seed,
            stage=self.number,
        )
        model.load_state_dict(load_file(path))
        return steps.world.place(model)

    def _train(self, missing: list[str]) -> None:
        """Train, evaluate the missing splits on the way, and publish."""
        steps, trial = self.steps, self.steps.trial
        job = FitJob(
            trial.model, trial.training, trial.seed, self.number, steps.data, self.labels, steps.place.data_path
        )
        losses: list[float] = []
        found: dict[str, dict[int, Any]] = {split: {} for split in missing}
        start = time.perf_counter()

        def on_epoch(epoch: Epoch) -> None:
            losses.append(epoch.loss)
            values: dict[str, Any] = {"epoch": epoch.number, "epochs": trial.train.epochs, "loss": epoch.loss}
            if epoch.number == trial.train.epochs or steps.experiment.evaluate.when == "every_epoch":
                for split in missing:
                    found[split][epoch.number] = self._evaluate(split, epoch.model)
            steps.emit("epoch", self.number, **values, seconds=time.perf_counter() - start)

        self._model = fit(job, steps.world, on_epoch)
        if steps.world.is_first:
            self._publish_fit(losses, start)
        self._weights_digest = steps.world.broadcast(self._weights_digest)
        self._store_evaluations(found)

    def _publish_fit(self, losses: list[float], start: float) -> None:
        steps, store, model = self.steps, self.steps.place.store, self._model
        if model is None:
            raise AssertionError("published before training")
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        supervised = "full" if self.labels is None else len(self.labels)

        def write(folder: Path) -> None:
            (folder / "training.json").write_text(json.dumps({"losses": losses, "labelled_pixels": supervised}) + "\n")

        store.publish("fit", self.fit_input, write, provenance_of(steps.world, start))
        self._weights_digest = store.write_weights(self.fit_key, lambda path: save_file(state, path))

    def _evaluate(self, split: str, model: nn.Module) -> tuple[Any, dict[str, Any]]:
        prepared = self.steps.split(split)
        confusion, examples = evaluate(model, prepared, self.steps.dataset.facts, self.steps.world)
        merged: dict[str, Any] = {}
        for part in self.steps.world.gather(examples):
            merged |= part
        return confusion, merged

    def _store_evaluations(self, found: dict[str, dict[int, Any]]) -> None:
        """Publish confusion matrices by split and epoch; epoch 0 stands for the last one."""
        steps = self.steps
        if not steps.world.is_first:
            return
        for split, by_epoch in found.items():
            epochs = [epoch or steps.trial.train.epochs for epoch in by_epoch]
            matrices = np.stack([confusion for confusion, _ in by_epoch.values()]).astype(np.int64)
            _, examples = by_epoch[max(by_epoch)]

            def write(folder: Path, epochs: Any = epochs, matrices: Any = matrices, examples: Any = examples) -> None:
                np.savez(folder / "confusion.npz", epochs=np.asarray(epochs, dtype=np.int64), confusion=matrices)
                (folder / "predictions").mkdir()
                for name, predicted in examples.items():
                    path = folder / "predictions" / f"{Path(name).stem}.png"
                    write_label_map(path, predicted, steps.dataset.facts.palette)

            provenance = provenance_of(steps.world, time.perf_counter()) | {"fit_weights": self._weights_digest}
            steps.place.store.publish("evaluation", self.evaluation_inputs[split], write, provenance)

    def _state(self) -> tuple[bool, list[str]]:
        """Whether training is necessary, and the splits that lack their evaluation, as the first rank sees it."""
        steps, store = self.steps, self.steps.place.store
        if not steps.world.is_first:
            return cast(tuple[bool, list[str]], steps.world.broadcast(None))
        missing = [
            split for split, inputs in self.evaluation_inputs.items() if store.read("evaluation", inputs) is None
        ]
        by_epoch = bool(missing) and steps.experiment.evaluate.when == "every_epoch"
        state = store.read("fit", self.fit_input) is None or by_epoch, missing
        steps.world.broadcast(state)
        return state

    def _summary(self) -> dict[str, Any]:
        """Numbers for progress: mIoU of the last epoch on the reported split, and the fit's losses."""
        steps, store = self.steps, self.steps.place.store
        if not steps.world.is_first:
            return {}
        with np.load(
            store.folder("evaluation", digest(self.evaluation_inputs[steps.experiment.evaluate.report]))
            / "confusion.npz"
        ) as file:
            value = miou(file["confusion"][-1])
        losses = json.loads((store.folder("fit", self.fit_key) / "training.json").read_text())["losses"]
        return {"miou": value, "budget": self._budget(), "losses": losses}

    def _budget(self) -> int | str:
        acquire = self.steps.trial.acquire
        return "full" if self.labels is None else acquire.initial_pixels + self.number * acquire.pixels_per_stage

    def _record(self) -> None:
        entry = {
            "budget": self._budget(),
            "fit": self.fit_key,
            "evaluations": {split: digest(inputs) for split, inputs in self.evaluation_inputs.items()},
            "pick": digest(self.pick_input) if self._picked else None,
        }
        self.steps.record["stages"][self.number :] = [entry]
        self.steps.write_record()


def hold(steps: Steps, kind: str, key: str) -> contextlib.AbstractContextManager[None]:
    """The store's lease on a result, held by the first rank for all."""
    return steps.place.store.lease(kind, key) if steps.world.is_first else contextlib.nullcontext()
