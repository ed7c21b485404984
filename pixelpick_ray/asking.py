"""Making picks: choosing pixels and having the oracle or people label them. Runs on every rank."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from pixelpick_ray.active.acquisition import needs_model
from pixelpick_ray.active.oracle import LabelArray, OracleRequest, Unanswered, answer
from pixelpick_ray.active.queries import answered
from pixelpick_ray.config.trial import HumanSpec
from pixelpick_ray.context import Context
from pixelpick_ray.data.answers import Book, check_images
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.questions import Questions
from pixelpick_ray.engine.score import Again, pick, pick_initial, replace_initial
from pixelpick_ray.store.records import AskRecord
from pixelpick_ray.tasks import ASKED, PIXELS, QUESTIONS, STATISTICS, Ask, FirstPixels, Pick
from pixelpick_ray.training import Trainer

REPLACEMENTS = 5  # rounds of replacement pixels, a limit for images that show no class at all


class PeopleAsked(Exception):
    """Raised when the chain has to wait for people: `missing` of the `asked` answers that `ask` records."""

    def __init__(self, ask: AskRecord, missing: int, asked: int) -> None:
        super().__init__(ask, missing, asked)
        self.ask, self.missing, self.asked = ask, missing, asked


class Annotator:
    """Chooses pixels and has them labelled; questions for people are stored before they are asked."""

    def __init__(self, context: Context, trainer: Trainer) -> None:
        self._context, self._trainer, self._world = context, trainer, context.world

    def make(self, task: FirstPixels | Pick, earlier: LabelledPixels | None) -> None:
        """Choose pixels in addition to the `earlier` ones, have them labelled, and publish them.

        The caller holds the task's lease. Raises PeopleAsked on every rank if people have not answered yet.
        """
        context, start = self._context, time.perf_counter()
        asked: list[str] = []
        try:
            questions, labels = self._answers(task, earlier, asked)
        except Unanswered as error:
            ask = AskRecord(pick=task.key, book=str(context.answers_key), budget=task.budget, questions=tuple(asked))
            raise PeopleAsked(ask, error.missing, error.asked) from None
        query = answered(questions, labels, num_classes=context.data.facts.num_classes)

        def write(folder: Path) -> None:
            query.pixels.write(folder / PIXELS)
            (folder / STATISTICS).write_text(json.dumps(query.statistics) + "\n")
            if context.answers_key is not None:
                (folder / ASKED).write_text(json.dumps(asked) + "\n")

        if self._world.is_first:
            context.publish(task, write, start, **self._facts(task))

    def _facts(self, task: FirstPixels | Pick) -> dict[str, str | None]:
        """Provenance fields that only picks have."""
        return {"fit_weights": self._trainer.weights_digest} if isinstance(task, Pick) else {}

    def _answers(
        self, task: FirstPixels | Pick, earlier: LabelledPixels | None, asked: list[str]
    ) -> tuple[Questions, LabelArray]:
        """Questions of a pick and their labels (k,), in further rounds while pixels without a class are to be replaced.

        Appends the keys of the questions put to people to `asked`.
        """
        oracle, rounds = task.trial.oracle, list[tuple[str, str]]()
        questions = self._questions(Ask(task), earlier, None, asked)
        labels = self._labels(task, questions)
        wanted = _per_image(questions, np.ones(len(questions), dtype=np.bool_))
        while isinstance(oracle, HumanSpec) and oracle.replace and len(rounds) < REPLACEMENTS:
            so_far, have = questions.answered(labels), _per_image(questions, labels >= 0)
            rounds.append((asked[-1], so_far.digest()))
            lacking = {name: count - have[name] for name, count in wanted.items() if count > have[name]}
            if not lacking:
                break
            known = so_far if earlier is None else earlier.add(so_far)
            more = self._questions(Ask(task, tuple(rounds)), known, Again(len(rounds), lacking), asked)
            if not len(more):
                break
            questions = questions.add(more)
            labels = self._labels(task, questions)
        return questions, labels

    def _questions(self, ask: Ask, labels: LabelledPixels | None, again: Again | None, asked: list[str]) -> Questions:
        """Next questions, in addition to the pixels in `labels`; those for people are kept in the store."""

        def choose() -> Questions:
            with self._context.phase("score", ask.pixels.key):
                return cast(Questions, self._world.broadcast(self._choose(ask, labels, again)))

        if not isinstance(ask.pixels.trial.oracle, HumanSpec):
            return choose()
        found, _ = self._context.cached(ask, lambda: self._publish_questions(ask, choose), lease=False)
        asked += [ask.key] if len(found) else []
        return found

    def _choose(self, ask: Ask, labels: LabelledPixels | None, again: Again | None) -> Questions:
        context, task = self._context, ask.pixels
        acquire, seed = task.trial.acquire, task.trial.seed
        if isinstance(task, Pick) and labels is not None:
            model = self._trainer.model(task.fit) if needs_model(acquire.strategy) else None
            where = context.data, labels, acquire, self._world
            return pick(model, *where, seed=seed, stage=task.fit.stage, again=again)
        if labels is None or again is None:
            return pick_initial(context.data, acquire.initial_pixels, seed=seed)
        return replace_initial(context.data, labels, again, seed=seed)

    def _publish_questions(self, ask: Ask, choose: Callable[[], Questions]) -> None:
        """Store questions for people. Raises DataError if an image has changed since people were asked about it."""
        context, start, questions = self._context, time.perf_counter(), choose()
        if not self._world.is_first:
            return
        prepared = context.data.prepared
        looks = {name: prepared.image(prepared.index[name]).tobytes() for name in questions.names}
        digests = {name: hashlib.sha256(look).hexdigest() for name, look in looks.items()}
        check_images(context.store, str(context.answers_key), digests)
        facts = self._facts(cast(FirstPixels | Pick, ask.pixels))
        context.publish(ask, lambda folder: questions.write(folder / QUESTIONS), start, **facts)

    def _labels(self, task: FirstPixels | Pick, questions: Questions) -> LabelArray:
        """The oracle's answers (k,). Raises Unanswered on every rank if people have not answered all questions."""
        context = self._context
        said: LabelArray | Unanswered | None = None
        if self._world.is_first:
            try:
                key, names = context.answers_key, context.dataset.facts.class_names
                book = None if key is None else Book(context.store, key)
                said = answer(task.trial.oracle, OracleRequest(questions, names, task.trial.seed, book))
            except Unanswered as error:
                said = error
        said = self._world.broadcast(said)
        if isinstance(said, Unanswered):
            raise said
        return cast(LabelArray, said)


def _per_image(questions: Questions, counted: npt.NDArray[np.bool_]) -> dict[str, int]:
    """Number of questions per image, of those selected by the mask `counted` (k,)."""
    counts = np.bincount(questions.image[counted], minlength=len(questions.names))
    return dict(zip(questions.names, counts.tolist(), strict=True))
