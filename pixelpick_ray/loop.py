"""The method: fit, evaluate, pick, until the budget is reached (PixelPick, Shin, Xie and Albanie 2021, section 3).

One walk serves all: a visitor runs it (`running.py`), another looks at how much of it is stored, and a third names its
steps without any data (`planning.py`).
"""

from typing import Protocol

from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.trial import EvaluateSpec, Trial
from pixelpick_ray.tasks import Evaluate, FirstPixels, Fit, Labels, Pick


class Visitor(Protocol):
    """What a walk does with the tasks of a chain, in order."""

    def pixels(self, task: FirstPixels | Pick) -> Labels:
        """New labelled pixels, on which everything after them depends."""

    def make(self, task: Fit | Evaluate) -> None:
        """A result that nothing after it depends on."""

    def stage_done(self, fit: Fit) -> None:
        """A stage is trained and measured."""

    def release(self, fit: Fit) -> None:
        """Nothing needs the model of a fit any more."""


def walk(trial: Trial, source: Source, evaluate: EvaluateSpec, visitor: Visitor) -> None:
    """Visit the tasks of a trial, and so of all the trials that are prefixes of it."""
    labels = None if trial.is_fully_supervised else visitor.pixels(FirstPixels(trial, source))
    for stage in range(trial.num_stages):
        fit = Fit(trial, source, evaluate, stage, labels)
        visitor.make(fit)
        for evaluation in fit.evaluations:
            visitor.make(evaluation)
        visitor.stage_done(fit)
        if labels is not None and not fit.is_last:
            labels = labels.add(visitor.pixels(Pick(fit)))
        visitor.release(fit)
