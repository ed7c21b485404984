"""Stores filled by hand, step by step as the loop fills them, without training: tiny CamVid, two strategies."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixelpick_ray.checks import ReportDecoding, check_data
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import parse_experiment
from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.trial import EvaluateSpec, Trial
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.loop import walk
from pixelpick_ray.planning import Chain, Plan, Sources, make_plan
from pixelpick_ray.store import Store
from pixelpick_ray.store.records import ChainRecord, StageRecord, write_chain
from pixelpick_ray.tasks import Evaluate, FirstPixels, Fit, Pick, Task
from tests.support.experiments import TWO_PIXELS, experiment_text

TEXT = experiment_text(
    dataset="{name: camvid, size: [8, 10]}",
    train="{epochs: 2, batch_size: 2, optimizer: {name: adam, lr: 1e-3}}",
    acquire=TWO_PIXELS,
    grid="[{acquire.strategy: [margin, random], seed: [0], budget: [2, 4, 6]}]",
)


def tiny_plan(*overrides: str) -> Plan:
    """Two chains of three stages that share the first fit."""
    return make_plan(parse_experiment(TEXT, where="tiny.yaml", overrides=overrides))


def execution_at(place: Path, data: Path) -> Execution:
    return Execution(data, str(place / "store"), place / "cache", runs_path=place / "runs")


def do_steps(plan: Plan, chain: Chain, execution: Execution, count: int | None = None) -> dict[str, str]:
    """Store the first `count` results of a chain (all) and its record; returns keys by result, such as ``fit 0``.

    They are: pick (the first pixels), then fit, evaluation and pick of each stage, without the last pick.
    """
    store = Store(execution.store)
    source = Sources(plan.experiment, execution).of(chain.trial)
    assert source is not None
    fill = Fill(store, 99 if count is None else count)
    with contextlib.suppress(Filled):
        walk(chain.trial, source, plan.experiment.evaluate, fill)
    record = record_of(chain.trial, source=source, stages=tuple(fill.stages), initial=fill.done.get("pick"))
    write_chain(store, plan.experiment, chain.id, record)
    return fill.done


class Filled(Exception):
    """As much is stored as was asked for."""


class Fill:
    """The visitor that stores results without computing them; lets nothing through once `count` are stored."""

    def __init__(self, store: Store, count: int) -> None:
        self.store, self.count = store, count
        self.done: dict[str, str] = {}
        self.stages: list[StageRecord] = []

    def _publish(self, name: str, task: Task[Any], pixels: LabelledPixels | None = None) -> None:
        if len(self.done) == self.count:
            raise Filled

        def write(folder: Path) -> None:
            if pixels is not None:
                pixels.write(folder / "pixels.npz")
            else:
                (folder / "result").write_text(name)

        self.store.publish(task.kind, task.inputs, write, {"seconds": 2.0})
        self.done[name] = task.key

    def pixels(self, task: FirstPixels | Pick) -> LabelledPixels:
        x = 3 if task.stage and task.trial.acquire.strategy == "random" else 0
        pixels = row_of_pixels(task.stage, x=x)
        self._publish("pick" if task.stage == 0 else f"pick {task.stage - 1}", task, pixels)
        if task.stage:
            self.stages[-1] = self.stages[-1].model_copy(update={"pick": task.key})
        return pixels

    def make(self, task: Fit | Evaluate) -> None:
        if isinstance(task, Fit):
            self._publish(f"fit {task.stage}", task)
            keys = {one.split: one.key for one in task.evaluations}
            self.stages.append(StageRecord(budget=task.budget, fit=task.key, evaluations=keys))
        else:
            self._publish(f"evaluation {task.fit.stage}", task)

    def stage_done(self, fit: Fit) -> None:
        """Nothing to do."""

    def release(self, fit: Fit) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class Named:
    """Labels of which only this is known."""

    identity: str

    def digest(self) -> str:
        return self.identity

    def add(self, other: "Named") -> "Named":
        return Named(f"{self.identity} {other.identity}")


def keys_of(
    trial: Trial, evaluate: EvaluateSpec, source: Source, *, stage: int = 1, labels: str = "ee", split: str = "test"
) -> dict[str, str]:
    """The keys of the results of a stage, and of the first pixels."""
    fit = Fit(trial, source, evaluate, stage, None if labels == "full" else Named(labels))
    tasks = {"initial": FirstPixels(trial, source), "fit": fit, "pick": Pick(fit), "evaluation": Evaluate(fit, split)}
    return {name: task.key for name, task in tasks.items()}


def check_plan(plan: Plan, execution: Execution, report: ReportDecoding | None = None) -> None:
    """As a run checks what its trials read."""
    check_data(plan.experiment, [chain.trial for chain in plan.chains], execution, report)


def record_of(trial: Trial, **fields: Any) -> ChainRecord:
    """The record of a trial's chain with plausible fields, but for those given."""
    usual: dict[str, Any] = {
        "trial": trial.model_dump(mode="json", exclude={"budget"}, exclude_none=True),
        "full": trial.is_fully_supervised,
        "class_names": (),
        "num_images": 3,
        "pixels_per_image": 172800.0,
        "source": Source({"train": "a", "test": "b"}, "train", None),
    }
    return ChainRecord(**(usual | fields))


def row_of_pixels(y: int, x: int = 0) -> LabelledPixels:
    """Two labelled pixels, (y, x) and (y, x + 1), in each of three images."""
    names = np.repeat([f"train_{index:03d}.png" for index in range(3)], 2)
    return LabelledPixels.of(names=names, y=np.full(6, y), x=[x, x + 1] * 3, label=[3, 8, 0, 1, 2, 10], stage=y)
