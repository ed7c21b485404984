"""The method: fit, evaluate and pick until the budget is reached (PixelPick: Shin, Xie and Albanie, 2021, section 3).

There is one walk and three visitors: one runs it (`running.py`), one checks how much of it is stored, and one names
its steps without any data (both in `planning.py`).
"""

from typing import Protocol

from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.trial import EvaluateSpec, Trial
from pixelpick_ray.tasks import Evaluate, FirstPixels, Fit, Labels, Pick


class Visitor(Protocol):
    """Handler of the tasks of a chain, called in order by `walk`."""

    def pixels(self, task: FirstPixels | Pick) -> Labels:
        """Return new labelled pixels, on which all later tasks depend."""

    def make(self, task: Fit | Evaluate) -> None:
        """Handle a result that no later task depends on."""

    def stage_done(self, fit: Fit) -> None:
        """Handle the end of a stage's training and evaluation."""

    def release(self, fit: Fit) -> None:
        """Handle the end of a stage, after which nothing needs the fit's model."""


def walk(trial: Trial, source: Source, evaluate: EvaluateSpec, visitor: Visitor) -> None:
    """Visit the tasks of a trial in order, and thereby those of all trials that are prefixes of it."""
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
