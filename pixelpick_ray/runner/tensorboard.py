"""TensorBoard files: hyperparameters, curves, picked pixels and predictions of each chain."""

import io
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from tensorboard.compat.proto.event_pb2 import Event as Entry
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, scalar
from torch.utils.tensorboard.summary import image as image_summary

from pixelpick_ray.config.canonical import brief, canonical_json
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.data.datasets import DatasetFacts, open_dataset, training_split
from pixelpick_ray.data.description import read_description, shown
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.events import ChainDone, EpochDone, Event, PixelsPicked, StageDone
from pixelpick_ray.planning import Chain, Plan
from pixelpick_ray.report.points import lookup
from pixelpick_ray.store import Store
from pixelpick_ray.store.records import ChainRecord, read_chain
from pixelpick_ray.tasks import PIXELS, prediction_file

Picture = npt.NDArray[np.uint8]

# Settings by which all chains are compared, besides those that the grid varies.
COMPARED = (
    "dataset.name",
    "model.architecture",
    "model.backbone",
    "model.pretrained",
    "acquire.strategy",
    "seed",
    "train.epochs",
    "train.batch_size",
    "train.optimizer.lr",
)


class TensorBoard:
    """Writes the events of each chain to ``runs/<experiment>/<chain>``.

    By epoch, counted over all stages: ``loss`` and, at the end of each stage, ``miou_by_epoch`` and
    ``pixels_per_image``. By pixels per image: ``miou_by_budget``, at 0 for full supervision. By stage:
    ``picked/<image>`` (new pixels that the stage trains on) and ``predicted/<image>`` (image, truth, prediction).
    """

    def __init__(self, plan: Plan, execution: Execution) -> None:
        self._plan, self._execution = plan, execution
        self._chains = {chain.id: chain for chain in plan.chains}
        self._store = Store(execution.store)
        self._runs: dict[str, _Run] = {}

    def __call__(self, event: Event) -> None:
        """Write an event."""
        chain = self._chains[event.chain]
        match event:
            case EpochDone():
                epoch = event.stage * chain.trial.epochs + event.epoch
                self._run(chain).add_scalar("loss", event.loss, epoch)
            case StageDone():
                self._write_stage(chain, event)
            case PixelsPicked():
                self._write_pick(chain, event)
            case ChainDone():
                self._run(chain).finish()

    def _write_pick(self, chain: Chain, event: PixelsPicked) -> None:
        files = self._store.files("pick", event.pick, [PIXELS])
        if files is not None:
            labels = LabelledPixels.read(io.BytesIO(files[PIXELS])).with_class()
            self._run(chain).add_images("picked", picked_pictures(chain, labels, self._execution), event.stage + 1)

    def _write_stage(self, chain: Chain, event: StageDone) -> None:
        run, before = self._run(chain), event.stage * chain.trial.epochs
        budget, miou, losses = event.budget, event.miou, event.losses
        for epoch, loss in enumerate(losses, start=before + 1):
            run.add_scalar("loss", loss, epoch)
        run.add_scalar("miou_by_epoch", miou, before + len(losses))
        run.add_scalar("miou_by_budget", miou, 0 if budget == "full" else budget)
        if budget != "full":
            run.add_scalar("pixels_per_image", budget, before + len(losses))
        experiment = self._plan.experiment
        record = read_chain(self._store, experiment, chain.id)
        if record is not None:
            pictures = predicted_pictures(self._store, record, event.stage, experiment.evaluate.report)
            run.add_images("predicted", pictures, event.stage)

    def _run(self, chain: Chain) -> "_Run":
        if chain.id not in self._runs:
            name = f"{re.sub(r'[^A-Za-z0-9._=-]+', '-', chain.label)[:120]}-{chain.id[:8]}"
            experiment = self._plan.experiment
            folder = self._execution.runs_path / experiment.name / name
            self._runs[chain.id] = _Run(folder, settings_of(experiment, chain.trial))
        return self._runs[chain.id]


class _Run:
    """The event file of a chain. Steps of a tag ascend: repetitions by a restarted chain are left out.

    The file is open only while writing, so that thousands of chains need neither threads nor descriptors.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a run in the order of their names.
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        # Without a list of columns, TensorBoard gathers them from all runs, which may be of several experiments; with
        # one, it would apply a single run's list to all.
        _, start, self._end = hparams(settings, {})  # type: ignore[no-untyped-call]
        self._steps: dict[str, int] = {}
        # Stored stages are reported again, so this file replaces everything that earlier processes wrote here.
        begin = {"step": 0, "session_log": SessionLog(status=SessionLog.START)}
        self._write({"file_version": "brain.Event:2"}, begin, {"summary": start})

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        if self._is_new(tag, step):
            self._write({"summary": scalar(tag, value), "step": step})  # type: ignore[no-untyped-call]

    def add_images(self, group: str, pictures: dict[str, Picture], step: int) -> None:
        for name, picture in pictures.items():
            if self._is_new(f"{group}/{name}", step):
                summary = image_summary(f"{group}/{name}", picture, dataformats="HWC")  # type: ignore[no-untyped-call]
                self._write({"summary": summary, "step": step})

    def _is_new(self, tag: str, step: int) -> bool:
        new = step > self._steps.get(tag, -1)
        if new:
            self._steps[tag] = step
        return new

    def finish(self) -> None:
        """Mark the run as a success."""
        self._write({"summary": self._end})

    def _write(self, *entries: dict[str, Any]) -> None:
        with open(self._path, "ab") as file:
            writer: Any = RecordWriter(file)
            for fields in entries:
                writer.write(Entry(wall_time=time.time(), **fields).SerializeToString())


def settings_of(experiment: Experiment, trial: Trial) -> dict[str, str | float]:
    """Return the settings by which a chain is compared, by path: the usual ones and those varied, except the budget.

    Numbers and strings are kept, anything else becomes JSON text; absent options are left out.
    """
    tree = trial.as_input()
    if trial.budget == "full":
        tree["acquire"] = {"strategy": "full supervision"}  # other fields do not apply
    varied = {path for grid in experiment.grid for path in grid} - {"budget"}
    found = ((path, *lookup(tree, path)) for path in dict.fromkeys((*COMPARED, *sorted(varied))))
    values = {path: _plain(value) for path, known, value in found if known}
    return {"experiment": experiment.name} | values


def _plain(value: Any) -> str | float:
    return value if isinstance(value, str | int | float) else brief(canonical_json(value))


# Pictures


def picked_pictures(chain: Chain, labels: LabelledPixels, execution: Execution) -> dict[str, Picture]:
    """Draw picked pixels, coloured by class, on a few enlarged training images; uint8 arrays (H, W, 3) by name."""
    spec = chain.trial.dataset
    dataset = open_dataset(spec, execution.data_path)
    prepared = prepare(dataset, training_split(dataset, spec), spec, execution.cache_path)
    return {
        Path(name).stem: _dotted(prepared.image(prepared.index[name]), labels, name, dataset.facts)
        for name in (labels.names[at] for at in shown(range(len(labels.names))))
    }


def _dotted(image: Any, labels: LabelledPixels, name: str, facts: DatasetFacts) -> Picture:
    factor = max(1, round(480 / max(image.shape)))
    picture = Image.fromarray(np.asarray(image)).resize(
        (image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.NEAREST
    )
    pen = ImageDraw.Draw(picture)
    at = labels.of_image(name)
    for y, x, label in zip(labels.y[at], labels.x[at], labels.label[at], strict=True):
        centre = ((int(x) + 0.5) * factor, (int(y) + 0.5) * factor)
        pen.circle(centre, 6, fill=facts.palette[int(label)], outline=(255, 255, 255), width=2)
    return np.asarray(picture)


def predicted_pictures(store: Store, record: ChainRecord, stage: int, split: str) -> dict[str, Picture]:
    """Return a split's example images next to truth and a stage's prediction; uint8 arrays (H, 3 W, 3) by name.

    Images with anything missing from the store are left out.
    """
    description = read_description(store, record.evaluated_description(split))
    if description is None:
        return {}
    evaluation = record.stages[stage].evaluations[split]
    pictures = {}
    for name, image, truth in zip(description.names, description.images, description.labels, strict=True):
        file = prediction_file(name)
        found = store.files("evaluation", evaluation, [file])
        if found is not None:
            pictures[Path(name).stem] = np.hstack([_rgb(part) for part in (image, truth, found[file])])
    return pictures


def _rgb(content: bytes) -> Picture:
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
        return np.asarray(picture.convert("RGB"))
