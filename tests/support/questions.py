"""Stores in which chains wait for answers, filled by hand, without training: scenes, whole or made smaller."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.experiment import parse_experiment
from pixelpick_ray.data.answers import Answer, Book
from pixelpick_ray.data.questions import Questions
from pixelpick_ray.planning import Plan, make_plan
from pixelpick_ray.store import Store, experiment_folder
from tests.support.experiments import experiment_text
from tests.support.stores import record_of

TEXT = experiment_text(
    "asked",
    title="Scenes, labelled by people",
    dataset="{name: scenes, size: [32, 40]}",
    train="{epochs: 1, optimizer: {name: adam, lr: 1e-3}}",
    oracle="{name: human}",
    grid="[{seed: [0], budget: [20]}]",
)
BOOK = digest("a book")
HEIGHT, WIDTH = 32, 40


def plan_of(*overrides: str) -> Plan:
    """One chain of two stages that asks people, unless overrides say otherwise."""
    return make_plan(parse_experiment(TEXT, where="asked.yaml", overrides=overrides))


def questions_of(images: int | Sequence[str], pixels: int, *, seed: int = 0) -> Questions:
    """As many pixels of each of the first scenes to train on, or of images by name, by chance; the network predicts one
    of four classes.
    """
    rng = np.random.default_rng(seed)
    names = [f"train_{index:04d}" for index in range(images)] if isinstance(images, int) else images
    flat = np.concatenate([rng.choice(HEIGHT * WIDTH, pixels, replace=False) for _ in names])
    count = len(flat)
    return Questions.of(
        names=np.repeat(names, pixels).tolist(),
        shapes=[(HEIGHT, WIDTH)] * count,
        y=flat // WIDTH,
        x=flat % WIDTH,
        truth=rng.integers(0, 9, count),
        predicted=rng.integers(0, 4, count),
        entropy=rng.random(count),
        distance=rng.random(count),
        stage=0,
    )


def ask(
    store: Store, plan: Plan, questions: Questions, *, pick: str = "first", chain: int = 0, stages: int = 0
) -> Questions:
    """Have a chain of the plan ask, as one that has trained so many stages; what it asked before stays on record."""
    inputs = {"asked for": pick, "pixels": len(questions)}

    def write(folder: Path) -> None:
        questions.write(folder / "questions.npz")

    store.publish("question", inputs, write, {})
    asked = {"pick": digest(pick), "book": BOOK, "budget": 10, "questions": [digest(inputs)]}
    earlier = questions_on_record(store, plan, chain)
    known = {"book": BOOK, "questions": [*earlier, digest(inputs)]}
    write_record(store, plan, chain, {"asks": asked, "stages": [STAGE] * stages} | known)
    return questions


def go_on(store: Store, pick: str = "first") -> None:
    """Store the pick, as a training does that has taken the answers."""
    store.publish("pick", pick, lambda folder: None, {})  # type: ignore[arg-type]


def finish(store: Store, plan: Plan, chain: int = 0) -> None:
    """Record a chain that has trained all its stages."""
    known = {"book": BOOK, "questions": questions_on_record(store, plan, chain)}
    write_record(store, plan, chain, {"stages": [STAGE] * len(plan.chains[chain].fits)} | known)


def questions_on_record(store: Store, plan: Plan, chain: int) -> list[str]:
    return (store.read_record(record_path(plan, chain)) or {}).get("questions", [])


STAGE = {"budget": 10, "fit": "none", "evaluations": {}}


def record_path(plan: Plan, chain: int) -> str:
    return f"{experiment_folder(plan.experiment)}/chains/{plan.chains[chain].id}.json"


def write_record(store: Store, plan: Plan, chain: int, fields: dict[str, Any]) -> None:
    """Replace the record of a chain: these fields, and plausible others."""
    usual = record_of(plan.chains[chain].trial).model_dump(mode="json")
    store.write_record(record_path(plan, chain), usual | fields)


def answers_in(store: Store) -> Sequence[Answer]:
    """What the book has, read anew."""
    return Book(store, BOOK).answers
