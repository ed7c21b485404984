"""Questions and answers of people written by hand, in a store that a study has filled."""

import math
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.data.answers import Answer, Book
from pixelpick_ray.data.questions import Place, Questions
from pixelpick_ray.store import Store
from tests.support.study import Study, chain_path

BOOK = "0123456789abcdef"
Truths = Mapping[Place, int]

_ids = count()


def ask(study: Study, spec: Experiment, rounds: Sequence[tuple[int, Truths]], *, book: str = BOOK) -> None:
    """Let every recorded chain have asked these questions, each a stage and the truths of its pixels."""
    keys = [_publish(study.store, stage, truths) for stage, truths in rounds]
    for path in {chain_path(spec, trial) for trial in spec.trials() if trial.budget != "full"}:
        record = study.store.read_record(path)
        assert record is not None
        study.store.write_record(path, record | {"book": book, "questions": keys})


def _publish(store: Store, stage: int, truths: Truths) -> str:
    (names, y, x), count = zip(*truths, strict=True), len(truths)
    unknown = {"predicted": [-1] * count, "entropy": [math.nan] * count, "distance": [math.inf] * count}
    where = {"names": names, "shapes": [(360, 480)] * count, "y": y, "x": x, "truth": list(truths.values())}
    questions = Questions.of(**where, **unknown, stage=stage)
    inputs = {"step": "question", "stage": stage, "truths": [[*place, truth] for place, truth in truths.items()]}
    store.publish("question", inputs, lambda folder: questions.write(folder / "questions.npz"), {})
    return digest(inputs)


def answer(annotator: str, place: Place, said: str | None, seconds: float | None = 2.0, **more: Any) -> Answer:
    """An answer, later than those made before; `said` None is "none of the classes", "?" is "cannot tell"."""
    number = next(_ids)
    kind = "void" if said is None else "unknown" if said == "?" else "class"
    image, y, x = place
    fields = {"id": f"answer-{number:06d}", "time": 1_700_000_000.0 + number, "kind": kind, "seconds": seconds}
    label = said if kind == "class" else None
    return Answer(**(fields | {"image": image, "y": y, "x": x, "label": label, "annotator": annotator} | more))


def write(study: Study, answers: Sequence[Answer], *, book: str = BOOK) -> None:
    """Append answers to a book, in a journal of their own."""
    Book(study.store, book).append(*answers)


def places(number: int, image: str = "a.png") -> list[Place]:
    """The first pixels of a row of an image."""
    return [(image, 0, x) for x in range(number)]
