"""Small stores written by hand: what a run would leave, without a run."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.experiment import Experiment, parse_experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.data.description import write_label_map
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.report.chains import ReportedChain, load_chains
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.rows import Results, load_results
from pixelpick_ray.store import Store, experiment_folder
from tests.support.experiments import experiment_text
from tests.support.stores import record_of

TEXT = experiment_text(
    "study",
    title="A study",
    dataset="{name: camvid, size: [360, 480]}",
    model="{backbone: small, pretrained: none}",
    train="{epochs: 2, optimizer: {name: adam, lr: 1e-3}}",
    grid="[{acquire.strategy: [margin], seed: [0, 1, 2], budget: [10, 20]}]",
)

Matrix = Sequence[Sequence[int]]
Measured = Matrix | Sequence[Matrix]
Measure = Callable[[Trial], Measured | Mapping[str, Measured] | None]
LabelMap = npt.NDArray[np.uint8]
PALETTE = ((10, 20, 30), (200, 100, 50))
NO_PIXELS = LabelledPixels.of(names=[], y=[], x=[], label=[], stage=0)


@dataclass(frozen=True)
class Described:
    """Images of one colour each, by name, with label maps (H, W) of two classes; `shapes` where they are not theirs."""

    colours: Mapping[str, tuple[int, int, int]]
    labels: Mapping[str, LabelMap]
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        for name in ("images", "labels"):
            (folder / name).mkdir()
        for number, (name, label) in enumerate(self.labels.items()):
            image = Image.new("RGB", (label.shape[1], label.shape[0]), self.colours[name])
            image.save(folder / "images" / f"{number}.jpg")
            write_label_map(folder / "labels" / f"{number}.png", label, PALETTE)
        shapes = [list(self.shapes.get(name, label.shape)) for name, label in self.labels.items()]
        values = np.concatenate([label.ravel() for label in self.labels.values()])
        counts = np.bincount(values, minlength=256)[: len(PALETTE)].tolist()
        facts = {"names": list(self.labels), "shapes": shapes, "class_counts": counts, "border_distance": 7.25}
        (folder / "description.json").write_text(json.dumps(facts | {"palette": [list(colour) for colour in PALETTE]}))


def experiment(*overrides: str) -> Experiment:
    return parse_experiment(TEXT, where="study.yaml", overrides=overrides)


def matrix(percent: int) -> Matrix:
    """Confusion with IoU `percent` for the first of two classes and 0 for the second: mIoU is half of it."""
    return [[percent, 0], [100 - percent, 0]]


def exact(thousandths: int) -> Matrix:
    """Confusion of two classes with this IoU, and therefore mIoU, in thousandths; even numbers only."""
    wrong = (1000 - thousandths) // 2
    return [[thousandths, wrong], [wrong, thousandths]]


def chain_path(experiment: Experiment, trial: Trial) -> str:
    return f"{experiment_folder(experiment)}/chains/{trial.chain_id}.json"


def csv_lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def column(table: Table, name: str) -> list[str]:
    return [row[table.header.index(name)] for row in table.rows]


def _write_evaluation(folder: Path, *, confusion: Any, predictions: Mapping[str, LabelMap]) -> None:
    by_epoch = confusion[None] if confusion.ndim == 2 else confusion
    np.savez(folder / "confusion.npz", epochs=np.arange(1, len(by_epoch) + 1), confusion=by_epoch)
    (folder / "predictions").mkdir()
    for name, predicted in predictions.items():
        write_label_map(folder / "predictions" / f"{Path(name).stem}.png", predicted, PALETTE)


class Study:
    """Fills a store with hand-made results."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)

    def results(self, *experiments: Experiment) -> Results:
        return load_results(self.store, experiments)

    def chains(self, *experiments: Experiment) -> tuple[ReportedChain, ...]:
        return load_chains(self.store, self.results(*experiments))

    def filled(self, measure: Measure, *overrides: str, **more: Any) -> Results:
        """The results of the experiment above with overrides, once it is filled so."""
        spec = experiment(*overrides)
        self.fill(spec, measure, **more)
        return self.results(spec)

    def fill(
        self,
        experiment: Experiment,
        measure: Measure,
        *,
        predict: Callable[[Trial], Mapping[str, LabelMap]] = lambda trial: {},
        **provenance: Any,
    ) -> None:
        """Store the confusion that `measure` gives for each trial: one matrix or one an epoch, for all splits or for
        each by name; None, or a split that is not named, is left out. `predict` gives predictions by image.
        """
        made = {"device": "cpu", "torch": "2.0", "version": "1", "seconds": 1.5, "world_size": 1} | provenance
        for trial in experiment.trials():
            found, predictions, keys = measure(trial), predict(trial), {}
            if found is None:
                continue
            fit = {"step": "fit", "version": 1, "data": {"fingerprint": "f"}, "trial": trial.as_input()}
            self.store.publish("fit", fit, lambda folder: None, made)
            by_split = found if isinstance(found, Mapping) else dict.fromkeys(experiment.evaluate.splits, found)
            for split, each in by_split.items():
                confusion = np.asarray(each, dtype=np.int64)
                inputs = {"step": "evaluation", "version": 1, "fit": digest(fit), "split": split}
                inputs |= {"data": {"fingerprint": split}}
                write = partial(_write_evaluation, confusion=confusion, predictions=predictions)
                self.store.publish("evaluation", inputs, write, made)
                keys[split] = digest(inputs)
            stage = {"budget": trial.budget, "fit": digest(fit), "evaluations": keys}
            self._record(experiment, trial, stage, num_classes=confusion.shape[-1])

    def ask(
        self,
        experiment: Experiment,
        tell: Callable[[Trial, int], dict[str, Any] | None],
        mark: Callable[[Trial, int], LabelledPixels] = lambda trial, stage: NO_PIXELS,
    ) -> None:
        """Store the picks of every recorded trial's chain, with the statistics that `tell` gives for each stage and the
        pixels that `mark` does.
        """
        for trial in experiment.trials():
            path = chain_path(experiment, trial)
            record = self.store.read_record(path)
            if trial.budget == "full" or record is None:
                continue
            stages = range(trial.num_stages)
            keys = [self._pick(trial, stage, tell(trial, stage), mark(trial, stage)) for stage in stages]
            for stage, key in zip(record["stages"], keys[1:], strict=False):
                stage["pick"] = key
            self.store.write_record(path, record | {"initial": keys[0]})

    def _pick(self, trial: Trial, stage: int, statistics: dict[str, Any] | None, pixels: LabelledPixels) -> str:
        inputs = {"step": "pick", "chain": trial.chain_id, "stage": stage}

        def write(folder: Path) -> None:
            pixels.write(folder / "pixels.npz")
            if statistics is not None:
                (folder / "statistics.json").write_text(json.dumps(statistics))

        self.store.publish("pick", inputs, write, {})
        return digest(inputs)

    def describe(self, experiment: Experiment, training: Described, evaluated: Mapping[str, Described]) -> None:
        """Store what is shown of splits, equal ones once, and name it in every chain's record."""
        keys = {name: self._description(each) for name, each in evaluated.items()}
        descriptions = {"training": self._description(training), "evaluated": keys}
        for path in {chain_path(experiment, trial) for trial in experiment.trials()}:
            if record := self.store.read_record(path):
                self.store.write_record(path, record | {"descriptions": descriptions})

    def _description(self, described: Described) -> str:
        inputs = {"step": "split", "fingerprint": repr(described)}
        self.store.publish("split", inputs, described.write, {})
        return digest(inputs)

    def _record(self, experiment: Experiment, trial: Trial, stage: dict[str, Any], num_classes: int) -> None:
        path = chain_path(experiment, trial)
        before = (self.store.read_record(path) or {"stages": []})["stages"]
        between = range(len(before), trial.num_stages)
        stages = before + [{"budget": trial.budget_of(number), "fit": "none", "evaluations": {}} for number in between]
        stages[trial.num_stages - 1] = stage
        record = record_of(trial, class_names=("sky", "road", "car")[:num_classes])
        self.store.write_record(path, record.model_dump(mode="json") | {"stages": stages})
