"""Running a chain: the walk of `loop.py` with a visitor that makes whatever is missing. Runs on every rank."""

import contextlib
from collections.abc import Callable

from pixelpick_ray.active.metrics import Counts, miou
from pixelpick_ray.asking import Annotator, PeopleAsked
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.context import Context
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import DivergedError
from pixelpick_ray.events import AnswersAwaited, ChainDone, Diverged, Event, PixelsPicked, StageDone
from pixelpick_ray.loop import walk
from pixelpick_ray.store.records import DivergedRecord, StageRecord, write_diverged
from pixelpick_ray.tasks import Evaluate, FirstPixels, Fit, Pick, Trained
from pixelpick_ray.training import Trainer


def run_chain(
    experiment: Experiment,
    trial: Trial,
    execution: Execution,
    world: World,
    on_event: Callable[[Event], None],
    *,
    keep_stages: frozenset[int] = frozenset(),
    is_leaving: Callable[[], bool] = lambda: False,
) -> None:
    """Run a trial and all trials that are prefixes of it, computing only what is not stored.

    `keep_stages` keep their weights for other chains of this run; while the node `is_leaving`, training saves its
    progress after every epoch. The last event is ChainDone, AnswersAwaited if people have to answer first, or Diverged.
    Errors get an attribute ``where``: the stage, and what was being done.
    """
    context = Context(experiment, trial, execution, world, on_event, is_leaving)
    visitor = _MakeMissing(context, keep_stages)
    try:
        context.describe_splits()
        walk(trial, context.source, experiment.evaluate, visitor)
    except PeopleAsked as waiting:
        context.note_questions(waiting.ask.questions)
        context.note(asks=waiting.ask)
        context.write_record()
        context.emit(AnswersAwaited(context.chain, visitor.stage, waiting.missing, waiting.asked))
    except DivergedError as error:
        stage = visitor.stage + int(visitor.is_trained)  # the first stage without a result
        record = DivergedRecord(fit=visitor.fit, stage=stage, message=str(error))
        if world.is_first and visitor.is_trained:
            write_diverged(context.store, record)
        context.note(diverged=record)
        context.write_record()
        context.emit(Diverged(context.chain, visitor.stage, str(error)))
    except Exception as error:
        with contextlib.suppress(AttributeError):  # some exceptions accept no attributes
            error.where = f"stage {visitor.stage}, {context.doing}"  # type: ignore[attr-defined]
        raise
    else:
        context.emit(ChainDone(context.chain))


class _MakeMissing:
    """Visitor that makes every task that is not stored, and reports and records the chain's progress."""

    def __init__(self, context: Context, keep_stages: frozenset[int]) -> None:
        self._context, self._keep_stages = context, keep_stages
        self._trainer = Trainer(context)
        self._annotator = Annotator(context, self._trainer)
        self.stage, self.fit, self.is_trained = 0, "", False
        self._labels: LabelledPixels | None = None
        self._trained: tuple[Trained, bool] | None = None  # of this stage, and whether it is new
        self._measured: dict[str, dict[int, Counts]] = {}  # of this stage, by split

    def pixels(self, task: FirstPixels | Pick) -> LabelledPixels:
        """Return new labelled pixels. Raises PeopleAsked if people have to label them first."""
        context = self._context
        if isinstance(task, FirstPixels):
            context.note(initial=task.key)
        picked, is_new = context.cached(task, lambda: self._annotator.make(task, self._labels))
        if picked.questions:
            context.note_questions(picked.questions)
        self._labels = picked.pixels if self._labels is None else self._labels.add(picked.pixels)
        if isinstance(task, Pick):
            stage = task.fit.stage
            context.note_stage(stage, context.record.stages[stage].model_copy(update={"pick": task.key}))
            context.write_record()
            context.emit(PixelsPicked(context.chain, stage, is_new, task.key))
        return picked.pixels

    def make(self, task: Fit | Evaluate) -> None:
        """Train or evaluate, unless stored."""
        if isinstance(task, Fit):
            self.stage, self.fit, self.is_trained = task.stage, task.key, False
            self._trained = self._context.cached(task, lambda: self._trainer.make_fit(task))
        else:
            make = self._trainer.make_evaluation
            self._measured[task.split], _ = self._context.cached(task, lambda: make(task), lease=False)

    def stage_done(self, fit: Fit) -> None:
        """Record and report the stage."""
        self.is_trained = True
        context = self._context
        entry = StageRecord(budget=fit.budget, fit=fit.key, evaluations={one.split: one.key for one in fit.evaluations})
        context.note_stage(fit.stage, entry)
        context.write_record()
        if context.world.is_first and self._trained is not None:
            trained, is_new = self._trained
            by_epoch = self._measured[fit.evaluate.report]
            mious = tuple((epoch, miou(confusion)) for epoch, confusion in by_epoch.items())
            told = is_new, fit.budget, fit.key, mious[-1][1], mious, trained.losses, trained.seconds
            context.emit(StageDone(context.chain, fit.stage, *told))

    def release(self, fit: Fit) -> None:
        """Drop the model, weights that nothing needs any more, and leftovers of a process killed while publishing."""
        context, store = self._context, self._context.store
        if context.world.is_first:
            store.drop_unfinished(fit.key)
        if context.execution.keeps_weights(context.trial, fit.stage):
            self._trainer.keep_weights(fit)
        elif context.world.is_first and fit.stage not in self._keep_stages:
            store.drop_weights(fit.key, context.execution.run)
        self._trainer.forget()
