"""The active-learning loop: every rank of a trial runs `run_chain`."""

import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors.torch import load, save
from torch import nn

from pixelpick_ray.active.acquisition import needs_model
from pixelpick_ray.active.metrics import Counts, miou
from pixelpick_ray.active.oracle import Unanswered
from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.keys import evaluation_input, fit_input, pick_input
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.data.description import write_label_map
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.questions import Questions
from pixelpick_ray.engine.batches import FitJob
from pixelpick_ray.engine.fit import Epoch, fit
from pixelpick_ray.engine.provenance import provenance_of
from pixelpick_ray.engine.resume import FitProgress, Unfinished, pack, unpack
from pixelpick_ray.engine.score import Again, evaluate, pick
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import DataError, StoreError
from pixelpick_ray.models.segmentation import build_model
from pixelpick_ray.steps import Event, Steps, Workplace
from pixelpick_ray.store import WEIGHTS

SAME = ("torch", "numpy", "device", "world_size", "threads")  # what one fit must be made by from begin to end


def run_chain(
    experiment: Experiment, trial: Trial, place: Workplace, world: World, on_event: Callable[[Event], None]
) -> None:
    """Run a trial with all the trials that are prefixes of it; what is stored is not computed again.

    The last event is ``done``, or ``waits`` when people have to answer before it can go on.
    """
    steps, stage = Steps(experiment, trial, place, world, on_event), 0
    steps.describe_splits()
    try:
        labels = None if trial.budget == "full" else steps.initial_pixels()
        for stage in range(trial.num_stages):
            current = Stage(steps, stage, labels)
            current.evaluate()
            if labels is not None and stage + 1 < trial.num_stages:
                labels = labels.add(current.pick())
            current.finish()
    except Unanswered as waiting:
        steps.emit("waits", stage, computed=False, missing=waiting.missing, asked=waiting.asked)
    else:
        steps.emit("done", stage, computed=False)


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
            with steps.hold("fit", self.fit_key, lambda: not self._look()[0]):
                must_train, missing = self._state()  # another chain may have trained it while this one waited
                if must_train:
                    self._train(missing)
                    computed, missing = True, []
        if missing:
            self._measure(missing)
        self._record()
        steps.emit("stage", self.number, computed=computed, **self._summary())

    def pick(self) -> LabelledPixels:
        """The next labelled pixels. Unanswered when people have to label them first."""
        steps, trial = self.steps, self.steps.trial
        labels = self.labels
        if labels is None:
            raise AssertionError("full supervision picks nothing")

        def ask(new: LabelledPixels | None, again: Again | None) -> Questions:
            model = self.model() if needs_model(trial.acquire.strategy) else None
            place = steps.data, labels if new is None else labels.add(new), trial.acquire, steps.world
            return pick(model, *place, seed=trial.seed, stage=self.number, again=again)

        pixels, computed = steps.pixels(
            self.pick_input, ask, lambda: {"fit_weights": self._weights_digest}, budget=self._budget(self.number + 1)
        )
        self._picked = True
        self._record()
        steps.emit("pick", self.number, computed=computed, pick=digest(self.pick_input))
        return pixels

    def finish(self) -> None:
        """Remove weights that nothing needs any more, and what a process killed while publishing left unfinished."""
        steps = self.steps
        if steps.world.is_first:
            steps.place.store.drop_unfinished(self.fit_key)
        last = self.number + 1 == steps.trial.num_stages
        keep = steps.place.keep_weights == "all" or (steps.place.keep_weights == "last" and last)
        if steps.world.is_first and not keep and self.number not in steps.place.keep_stages:
            steps.place.store.drop_weights(self.fit_key)

    def model(self) -> nn.Module:
        """The trained model: in memory, from the stored weights, or trained again when these are gone."""
        store = self.steps.place.store
        if self._model is None and not self._load():
            with self.steps.hold("fit", self.fit_key, lambda: store.weights(self.fit_key) is not None):
                if not self._load():
                    self._train([])
        if self._model is None:
            raise AssertionError("training leaves a model")
        return self._model

    def _load(self) -> bool:
        """Whether the stored weights are there and are now the model; the first rank reads them for all."""
        steps, trial = self.steps, self.steps.trial
        found = steps.place.store.weights(self.fit_key) if steps.world.is_first else None
        content, weights_digest = steps.world.broadcast((found[0].read_bytes(), found[1]) if found else (None, None))
        if content is None:
            return False
        model = build_model(
            trial.model.model_copy(update={"pretrained": "none"}),
            num_classes=steps.data.facts.num_classes,
            data_path=steps.place.data_path,
            seed=trial.seed,
            stage=self.number,
        )
        model.load_state_dict(load(content))
        self._model, self._weights_digest = steps.world.place(model), weights_digest
        return True

    def _train(self, missing: list[str]) -> None:
        """Train, evaluate the missing splits on the way, and publish: the fit last, so that its stage is whole then."""
        steps, trial, world = self.steps, self.steps.trial, self.steps.world
        labels = None if self.labels is None else self.labels.with_class()
        if labels is not None and not len(labels):
            raise DataError(
                f"stage {self.number}: people gave no pixel a class, there is nothing to train on; have other pixels "
                "asked for, with oracle.replace: true"
            )
        job = FitJob(trial.model, trial.training, trial.seed, self.number, steps.data, labels, steps.place.data_path)
        start = time.perf_counter()
        self._discard_leftovers(missing)
        before = self._unfinished(missing)
        progress = before.progress if before else FitProgress(self._made_by())
        earlier_seconds, saved = progress.seconds, time.monotonic()
        examples: dict[str, dict[str, Any]] = {split: {} for split in missing}

        def on_epoch(epoch: Epoch) -> None:
            nonlocal saved
            progress.losses.append(epoch.loss)
            is_last = epoch.number == trial.train.epochs
            values: dict[str, Any] = {"epoch": epoch.number, "epochs": trial.train.epochs, "loss": epoch.loss}
            if is_last or steps.experiment.evaluate.when == "every_epoch":
                for split in missing:
                    confusion, examples[split] = self._evaluate(split, epoch.model)
                    progress.confusions.setdefault(digest(self.evaluation_inputs[split]), {})[epoch.number] = confusion
                    if split == steps.experiment.evaluate.report:
                        values["miou"] = miou(confusion)
            progress.seconds = earlier_seconds + time.perf_counter() - start
            if world.is_first and not is_last and time.monotonic() - saved >= steps.place.checkpoint_seconds:
                steps.place.store.write_unfinished(self.fit_key, pack(progress, epoch.model, epoch.optimizer))
                saved = time.monotonic()
            steps.emit("epoch", self.number, **values, seconds=progress.seconds, fit=self.fit_key)

        with steps.phase("fit", self.fit_key):
            self._model = fit(job, world, on_epoch, before)
        weights = self._weights_of(self._model) if world.is_first else b""
        self._weights_digest = world.broadcast(hashlib.sha256(weights).hexdigest())
        confusions = {split: progress.confusions[digest(self.evaluation_inputs[split])] for split in missing}
        self._store_evaluations({s: (by_epoch, examples[s]) for s, by_epoch in confusions.items()})
        if world.is_first:
            self._publish_fit(progress, weights, start)
            steps.place.store.drop_unfinished(self.fit_key)

    def _discard_leftovers(self, missing: list[str]) -> None:
        store = self.steps.place.store
        if self.steps.world.is_first and not store.has("fit", self.fit_key):
            for split in missing:
                store.discard("evaluation", digest(self.evaluation_inputs[split]))

    def _made_by(self) -> dict[str, Any]:
        provenance = provenance_of(self.steps.world, time.perf_counter())
        return {name: provenance[name] for name in SAME}

    def _unfinished(self, missing: list[str]) -> Unfinished | None:
        """What an earlier process left of this training, on every rank; None when it cannot be continued as it was.

        It must be made by the same versions, ranks and device, and have measured what is missing.
        """
        steps = self.steps
        content = steps.place.store.unfinished(self.fit_key) if steps.world.is_first else None
        content = steps.world.broadcast(content)
        found = unpack(content) if content is not None else None
        if found is None or found.progress.made_by != self._made_by():
            return None
        progress = found.progress
        if steps.experiment.evaluate.when == "every_epoch":
            keys = [digest(self.evaluation_inputs[split]) for split in missing]
            if any(len(progress.confusions.get(key, {})) < progress.epoch for key in keys):
                return None
        progress.processes += 1
        epochs = {"epoch": progress.epoch, "epochs": steps.trial.train.epochs}
        steps.emit("resume", self.number, computed=False, **epochs)
        return found

    @staticmethod
    def _weights_of(model: nn.Module) -> bytes:
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        return bytes(save(state))

    def _publish_fit(self, progress: FitProgress, weights: bytes, start: float) -> None:
        steps, store = self.steps, self.steps.place.store
        supervised = "full" if self.labels is None else len(self.labels.with_class())

        def write_weights(path: Path) -> None:
            path.write_bytes(weights)

        if store.has("fit", self.fit_key):  # trained again for its weights, or for measurements of its epochs
            store.write_weights(self.fit_key, write_weights)
            return

        def write(folder: Path) -> None:
            values = {"losses": progress.losses, "labelled_pixels": supervised}
            (folder / "training.json").write_text(json.dumps(values) + "\n")
            write_weights(folder / WEIGHTS)

        cost = {"seconds": round(progress.seconds, 3), "processes": progress.processes}
        steps.publish("fit", self.fit_input, write, provenance_of(steps.world, start) | cost)

    def _measure(self, missing: list[str]) -> None:
        """Evaluate the trained model on splits that lack it."""
        last, model = self.steps.trial.train.epochs, self.model()
        found = {split: self._evaluate(split, model) for split in missing}
        self._store_evaluations({split: ({last: confusion}, shown) for split, (confusion, shown) in found.items()})

    def _evaluate(self, split: str, model: nn.Module) -> tuple[Any, dict[str, Any]]:
        steps = self.steps
        with steps.phase("evaluate", digest(self.evaluation_inputs[split])):
            confusion, examples = evaluate(model, steps.split(split), steps.dataset.facts, steps.world)
            merged: dict[str, Any] = {}
            for part in steps.world.gather(examples):
                merged |= part
        return confusion, merged

    def _store_evaluations(self, found: dict[str, tuple[dict[int, Counts], dict[str, Any]]]) -> None:
        """Publish confusion matrices by epoch, and the examples of the last, of each split."""
        steps = self.steps
        if not steps.world.is_first:
            return
        for split, (by_epoch, examples) in found.items():

            def write(folder: Path, by_epoch: Any = by_epoch, examples: Any = examples) -> None:
                matrices = np.stack(list(by_epoch.values())).astype(np.int64)
                np.savez(folder / "confusion.npz", epochs=np.asarray(list(by_epoch)), confusion=matrices)
                (folder / "predictions").mkdir()
                for name, predicted in examples.items():
                    path = folder / "predictions" / f"{Path(name).stem}.png"
                    write_label_map(path, predicted, steps.dataset.facts.palette)

            provenance = provenance_of(steps.world, time.perf_counter()) | {"fit_weights": self._weights_digest}
            steps.publish("evaluation", self.evaluation_inputs[split], write, provenance)

    def _state(self) -> tuple[bool, list[str]]:
        """Whether training is necessary, and the splits that lack their evaluation, as the first rank sees it."""
        world = self.steps.world
        return cast(tuple[bool, list[str]], world.broadcast(self._look() if world.is_first else None))

    def _look(self) -> tuple[bool, list[str]]:
        """Evaluations without their fit are of a training that was killed; its end is measured anew."""
        steps, store = self.steps, self.steps.place.store
        trained = store.read("fit", self.fit_input) is not None
        missing = [
            split
            for split, inputs in self.evaluation_inputs.items()
            if not trained or store.read("evaluation", inputs) is None
        ]
        by_epoch = bool(missing) and steps.experiment.evaluate.when == "every_epoch"
        return not trained or by_epoch, missing

    def _summary(self) -> dict[str, Any]:
        """Numbers for progress: mIoU on the reported split at the last and at every measured epoch, and of the fit."""
        steps, store = self.steps, self.steps.place.store
        if not steps.world.is_first:
            return {}
        key = digest(self.evaluation_inputs[steps.experiment.evaluate.report])
        measured = store.files("evaluation", key, ["confusion.npz"])
        training = store.files("fit", self.fit_key, ["training.json", "provenance.json"])
        if measured is None or training is None:
            raise StoreError(f"{store.address}: fit {self.fit_key} or evaluation {key} vanished; run again")
        with np.load(io.BytesIO(measured["confusion.npz"])) as file:
            by_epoch = [(int(epoch), miou(one)) for epoch, one in zip(file["epochs"], file["confusion"], strict=True)]
        return {
            "budget": self._own_budget(),
            "fit": self.fit_key,
            "miou": by_epoch[-1][1],
            "miou_by_epoch": by_epoch,
            "losses": json.loads(training["training.json"])["losses"],
            "seconds": json.loads(training["provenance.json"])["seconds"],
        }

    def _budget(self, stage: int) -> int:
        """Pixels an image that a stage of active learning trains on."""
        acquire = self.steps.trial.acquire
        return acquire.initial_pixels + stage * acquire.pixels_per_stage

    def _own_budget(self) -> int | str:
        return "full" if self.labels is None else self._budget(self.number)

    def _record(self) -> None:
        entry = {
            "budget": self._own_budget(),
            "fit": self.fit_key,
            "evaluations": {split: digest(inputs) for split, inputs in self.evaluation_inputs.items()},
            "pick": digest(self.pick_input) if self._picked else None,
        }
        self.steps.record["stages"][self.number :] = [entry]
        self.steps.write_record()
