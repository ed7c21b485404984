"""Making fits and evaluations with the one model that picks use too. Runs on every rank."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load, save
from torch import Tensor, nn

from pixelpick_ray.active.metrics import Counts, miou
from pixelpick_ray.config.model import HeadSpec
from pixelpick_ray.context import Context
from pixelpick_ray.data.description import write_label_map
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.engine.batches import FitJob
from pixelpick_ray.engine.fit import Epoch, fit
from pixelpick_ray.engine.frozen import FrozenModel, labelled_vectors, loss_of
from pixelpick_ray.engine.provenance import provenance_of
from pixelpick_ray.engine.resume import FitProgress, Unfinished, pack, unpack
from pixelpick_ray.engine.score import evaluate
from pixelpick_ray.errors import DataError, DivergedError
from pixelpick_ray.events import EpochDone, FitResumed, FitTrained
from pixelpick_ray.models.heads import fit_head, head_of
from pixelpick_ray.models.segmentation import build_model
from pixelpick_ray.store.paths import WEIGHTS, WEIGHTS_OF_RUN
from pixelpick_ray.store.records import DivergedRecord, read_diverged, write_diverged
from pixelpick_ray.tasks import CONFUSION, PREDICTIONS, TRAINING, Evaluate, Fit, prediction_file

SAME = ("torch", "numpy", "device", "world_size", "threads")  # must stay the same throughout a fit


class Trainer:
    """Trains and evaluates. Holds at most one model in memory: that of the fit trained or requested last."""

    def __init__(self, context: Context) -> None:
        self._context, self._world, self._store = context, context.world, context.store
        self._model: nn.Module | None = None
        self.weights_digest: str | None = None

    def make_fit(self, task: Fit) -> None:
        """Train, and publish the fit along with what only training can measure; the caller holds the fit's lease.

        Raises DivergedError if the training diverges, or is recorded to have done so.
        """
        is_first = self._world.is_first
        known = self._world.broadcast(read_diverged(self._store, task.key) if is_first else None)
        if known is not None:
            raise DivergedError(known.message)
        is_trained = self._world.broadcast(is_first and self._store.has(task.kind, task.key))
        missing = []
        for evaluation in task.evaluations:
            if is_first and not is_trained:  # left by a killed training; to be measured anew
                self._store.discard(evaluation.kind, evaluation.key)
            if not is_trained or self._context.find(evaluation) is None:
                missing.append(evaluation)
        try:
            self._train(task, missing)
        except DivergedError as error:
            if is_first and not is_trained:
                write_diverged(self._store, DivergedRecord(fit=task.key, stage=task.stage, message=str(error)))
                self._store.drop_unfinished(task.key)
            raise

    def make_evaluation(self, task: Evaluate) -> None:
        """Evaluate the trained model on a split, and publish the result."""
        model = self.model(task.fit)
        confusion, examples = self._evaluate(task, model)
        self._publish_evaluation(task, {task.fit.trial.epochs: confusion}, examples)

    def model(self, task: Fit) -> nn.Module:
        """Return the trained model: from memory, from stored weights, or trained again if these are gone."""
        if self._model is None and not self._load(task):
            with self._context.hold(task, lambda: self._store.weights(task.key) is not None):
                if not self._load(task):
                    self._train(task, [])
        if self._model is None:
            raise AssertionError("training leaves a model")
        return self._model

    def keep_weights(self, task: Fit) -> None:
        """Make sure that the weights are stored for good, training again if they are gone."""
        found = self._store.weights(task.key) if self._world.is_first else None
        if not self._world.broadcast(found is not None):
            self.forget()
            self.model(task)
        if self._world.is_first:
            self._store.keep_weights(task.key)

    def forget(self) -> None:
        """Release the model, so that a GPU never holds two."""
        self._model = None

    def _load(self, task: Fit) -> bool:
        """Load the stored weights, read by the first rank for all; return whether there were any."""
        found = self._store.weights(task.key) if self._world.is_first else None
        content, digest = self._world.broadcast((found[0].read_bytes(), found[1]) if found else (None, None))
        if content is None:
            return False
        context, trial = self._context, task.trial
        if trial.model.fitted_head is not None:
            model = self._frozen(trial.model.fitted_head, load(content))
        else:
            model = build_model(
                trial.model.model_copy(update={"pretrained": "none"}),
                num_classes=context.data.facts.num_classes,
                data_path=context.execution.data_path,
                seed=trial.seed,
                stage=task.stage,
            )
            model.load_state_dict(load(content))
        self._model, self.weights_digest = self._world.place(model), digest
        return True

    def _frozen(self, spec: HeadSpec, tensors: dict[str, Tensor]) -> nn.Module:
        """Build a fitted head on this chain's features from the tensors it is stored as."""
        named = {name.removeprefix("head."): tensor for name, tensor in tensors.items()}
        return FrozenModel(head_of(spec, named), self._context.features)

    def _train(self, task: Fit, missing: list[Evaluate]) -> None:
        """Train, do the missing evaluations on the way, and publish; the fit comes last, which completes its stage."""
        context, trial, store = self._context, task.trial, self._store
        labels, training = _supervision(task), trial.training
        if training is None:
            self._fit_head(task, labels, missing)
            return
        data_path, oracle = context.execution.data_path, trial.oracle
        job = FitJob(trial.model, training, trial.seed, task.stage, context.data, labels, data_path, oracle)
        start = time.perf_counter()
        before = self._unfinished(task, missing)
        progress = before.progress if before else FitProgress(self._made_by())
        earlier_seconds, saved = progress.seconds, time.monotonic()
        examples: dict[str, dict[str, Any]] = {one.key: {} for one in missing}

        def is_due() -> bool:
            return time.monotonic() - saved >= context.execution.checkpoint_seconds or context.is_leaving()

        def on_epoch(epoch: Epoch) -> None:
            nonlocal saved
            progress.losses.append(epoch.loss)
            is_last, reported = epoch.number == trial.epochs, None
            if is_last or task.evaluate.when == "every_epoch":
                for one in missing:
                    confusion, examples[one.key] = self._evaluate(one, epoch.model)
                    progress.confusions.setdefault(one.key, {})[epoch.number] = confusion
                    if one.split == task.evaluate.report:
                        reported = miou(confusion)
            progress.seconds = earlier_seconds + time.perf_counter() - start
            if self._world.is_first and not is_last and is_due():
                store.write_unfinished(task.key, pack(progress, epoch.model, epoch.optimizer))
                saved = time.monotonic()
            numbers = epoch.number, trial.epochs, epoch.loss, reported, progress.seconds
            context.emit(EpochDone(context.chain, task.stage, *numbers, fit=task.key))

        with context.phase("fit", task.key):
            self._model = fit(job, self._world, on_epoch, before)
        self._publish(task, missing, labels, progress, examples, start)

    def _fit_head(self, task: Fit, labels: LabelledPixels | None, missing: list[Evaluate]) -> None:
        """Fit a head to frozen features, on the first rank for all, do the missing evaluations, and publish."""
        context, trial, head = self._context, task.trial, task.trial.model.fitted_head
        if head is None:
            raise AssertionError("only a head is fitted to features")
        start, progress = time.perf_counter(), FitProgress(self._made_by())
        tensors: dict[str, Tensor] = {}
        with context.phase("fit", task.key):
            if self._world.is_first:
                labelled = labelled_vectors(context.data, context.training_features, labels)
                num_classes = context.facts.num_classes
                found = fit_head(head, labelled, num_classes=num_classes, seed=trial.seed, stage=task.stage)
                progress.losses.append(loss_of(found, labelled))
                tensors = found.state_dict()
            tensors = self._world.broadcast(tensors)
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise DivergedError(
                    f"stage {task.stage}: the head's weights are not finite; raise model.head.l2 (linear), "
                    "or lower model.head.lr (mlp)"
                )
            self._model = self._world.place(self._frozen(head, tensors))
        examples: dict[str, dict[str, Any]] = {}
        reported = None
        for one in missing:
            confusion, examples[one.key] = self._evaluate(one, self._model)
            progress.confusions[one.key] = {trial.epochs: confusion}
            if one.split == task.evaluate.report:
                reported = miou(confusion)
        progress.seconds = time.perf_counter() - start
        loss = progress.losses[-1] if progress.losses else 0.0
        context.emit(EpochDone(context.chain, task.stage, 1, 1, loss, reported, progress.seconds, fit=task.key))
        self._publish(task, missing, labels, progress, examples, start)

    def _publish(
        self,
        task: Fit,
        missing: list[Evaluate],
        labels: LabelledPixels | None,
        progress: FitProgress,
        examples: dict[str, dict[str, Any]],
        start: float,
    ) -> None:
        """Publish the model's evaluations, then the fit."""
        context, store, model = self._context, self._store, self._model
        if model is None:
            raise AssertionError("training leaves a model")
        weights = _weights_of(model) if self._world.is_first else b""
        self.weights_digest = self._world.broadcast(hashlib.sha256(weights).hexdigest())
        for one in missing:
            self._publish_evaluation(one, progress.confusions[one.key], examples[one.key])
        if self._world.is_first:
            self._publish_fit(task, labels, progress, weights, start)
            store.drop_unfinished(task.key)
        context.emit(FitTrained(context.chain, task.stage, task.key))

    def _made_by(self) -> dict[str, Any]:
        provenance = provenance_of(self._world, time.perf_counter())
        return {name: provenance[name] for name in SAME}

    def _unfinished(self, task: Fit, missing: list[Evaluate]) -> Unfinished | None:
        """Progress that an earlier process left of this training, on every rank; None if it cannot be continued.

        It must come from the same versions, ranks and device, and include the missing evaluations.
        """
        content = self._store.unfinished(task.key) if self._world.is_first else None
        content = self._world.broadcast(content)
        found = unpack(content) if content is not None else None
        if found is None or found.progress.made_by != self._made_by():
            return None
        progress = found.progress
        if task.evaluate.when == "every_epoch" and any(
            len(progress.confusions.get(one.key, {})) < progress.epoch for one in missing
        ):
            return None
        progress.processes += 1
        self._context.emit(FitResumed(self._context.chain, task.stage, progress.epoch, task.trial.epochs))
        return found

    def _publish_fit(
        self, task: Fit, labels: LabelledPixels | None, progress: FitProgress, weights: bytes, start: float
    ) -> None:
        """Publish a fit with its weights, or only these if the fit is stored and was trained again."""
        store, execution = self._store, self._context.execution
        run = None if execution.keeps_weights(task.trial, task.stage) else execution.run

        def write_weights(path: Path) -> None:
            path.write_bytes(weights)

        if store.has(task.kind, task.key):
            store.write_weights(task.key, write_weights, run=run)
            return

        def write(folder: Path) -> None:
            values = {"losses": progress.losses, "labelled_pixels": "full" if labels is None else len(labels)}
            (folder / TRAINING).write_text(json.dumps(values) + "\n")
            write_weights(folder / WEIGHTS)
            if run is not None:
                (folder / WEIGHTS_OF_RUN).write_text(run)

        facts = self._context.facts
        told = {
            "seconds": round(progress.seconds, 3),
            "processes": progress.processes,
            "classes": facts.class_names,
            "normalise": {"mean": facts.mean, "std": facts.std},
        }
        self._context.publish(task, write, start, **told)

    def _evaluate(self, task: Evaluate, model: nn.Module) -> tuple[Counts, dict[str, Any]]:
        """Confusion matrix (C, C) of a split, and predictions for a few of its images."""
        context = self._context
        with context.phase("evaluate", task.key):
            confusion, examples = evaluate(model, context.split(task.split), context.facts, self._world)
            merged: dict[str, Any] = {}
            for part in self._world.gather(examples):
                merged |= part
        return confusion, merged

    def _publish_evaluation(self, task: Evaluate, by_epoch: dict[int, Counts], examples: dict[str, Any]) -> None:
        """Publish confusion matrices by epoch, and the last one's examples; acts on the first rank only."""
        if not self._world.is_first:
            return

        def write(folder: Path) -> None:
            matrices = np.stack(list(by_epoch.values())).astype(np.int64)
            np.savez(folder / CONFUSION, epochs=np.asarray(list(by_epoch)), confusion=matrices)
            (folder / PREDICTIONS).mkdir()
            for name, predicted in examples.items():
                path = folder / prediction_file(name)
                write_label_map(path, predicted, self._context.dataset.facts.palette)

        self._context.publish(task, write, time.perf_counter(), fit_weights=self.weights_digest)


def _supervision(task: Fit) -> LabelledPixels | None:
    """Labels that a fit trains on, None for all. Raises DataError if there are none."""
    if task.labels is None:
        return None
    if not isinstance(task.labels, LabelledPixels):
        raise AssertionError("a fit is trained on labelled pixels")
    labels = task.labels.with_class()
    if not len(labels):
        raise DataError(
            f"stage {task.stage}: people gave no pixel a class, so there is nothing to train on; set oracle.replace: "
            "true to ask about other pixels"
        )
    return labels


def _weights_of(model: nn.Module) -> bytes:
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return bytes(save(state))
