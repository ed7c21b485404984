"""Stores filled by hand, step by step as the loop fills them, without training: tiny CamVid, two strategies."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import parse_experiment
from pixelpick_ray.config.keys import evaluation_input, fit_input, initial_input, pick_input
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.plan import Chain, Plan, Sources, make_plan
from pixelpick_ray.store import Store, experiment_folder

TEXT = """
name: tiny
dataset: {name: camvid, size: [8, 10]}
model: {backbone: test_resnet, pretrained: none}
train: {epochs: 2, batch_size: 2, optimizer: {name: adam, lr: 1e-3}}
acquire: {initial_pixels: 2, pixels_per_stage: 2}
evaluate: {splits: {test: {}}, report: test}
grid:
  - {acquire.strategy: [margin, random], seed: [0], budget: [2, 4, 6]}
"""


def tiny_plan(*overrides: str) -> Plan:
    """Two chains of three stages that share the first fit."""
    return make_plan(parse_experiment(TEXT, where="tiny.yaml", overrides=overrides))


def execution_at(place: Path, data: Path) -> Execution:
    """A store, runs and cache in a folder."""
    return Execution(data, str(place / "store"), place / "cache", runs_path=place / "runs")


def do_steps(plan: Plan, chain: Chain, execution: Execution, count: int | None = None) -> dict[str, str]:
    """Store the first `count` steps of a chain (all) and its record; returns keys by step, such as ``fit 0``.

    The steps are: pick (the initial pixels), then fit, evaluation and pick of each stage, without the last pick.
    """
    done: dict[str, str] = {}
    source = Sources(plan.experiment, execution).of(chain.trial)
    assert source is not None
    for _, (name, key) in zip(range(count if count is not None else 99), _steps(plan, chain, execution), strict=False):
        done[name] = key
    stages = [{"fit": key} for name, key in done.items() if name.startswith("fit")]
    record = {"source": asdict(source), "stages": stages}
    Store(execution.store).write_record(f"{experiment_folder(plan.experiment)}/chains/{chain.id}.json", record)
    return done


def _steps(plan: Plan, chain: Chain, execution: Execution) -> Iterator[tuple[str, str]]:
    store, trial = Store(execution.store), chain.trial
    source = Sources(plan.experiment, execution).of(trial)
    assert source is not None

    def publish(name: str, inputs: dict[str, object], pixels: LabelledPixels | None = None) -> tuple[str, str]:
        store.publish(
            name.split()[0],
            inputs,
            lambda folder: pixels.write(folder / "pixels.npz") if pixels else (folder / "result").write_text(name),
            {"seconds": 2.0},
        )
        return name, digest(inputs)

    labels: LabelledPixels | None = None
    if trial.budget != "full":
        labels = row_of_pixels(0)
        yield publish("pick", initial_input(trial, source), labels)
    for stage in range(len(chain.fits)):
        inputs = fit_input(trial, source, stage=stage, labels_digest=labels.digest() if labels else "full")
        yield publish(f"fit {stage}", inputs)
        key = digest(inputs)
        evaluation = evaluation_input(plan.experiment.evaluate, trial, source, split="test", fit_key=key)
        yield publish(f"evaluation {stage}", evaluation)
        if labels and stage + 1 < len(chain.fits):
            new = row_of_pixels(stage + 1, x=3 if trial.acquire.strategy == "random" else 0)
            yield publish(f"pick {stage}", pick_input(trial, fit_key=key, stage=stage), new)
            labels = labels.add(new)


def row_of_pixels(y: int, x: int = 0) -> LabelledPixels:
    """Two labelled pixels, (y, x) and (y, x + 1), in each of three images."""
    names = np.repeat([f"train_{index:03d}.png" for index in range(3)], 2)
    return LabelledPixels.of(names=names, y=np.full(6, y), x=[x, x + 1] * 3, label=[3, 8, 0, 1, 2, 10], stage=y)
