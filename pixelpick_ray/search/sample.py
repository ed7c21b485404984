"""Running one sample: its chains, seed by seed, level by level."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pixelpick_ray.config.trial import Trial
from pixelpick_ray.events import Diverged, EpochDone, Event, StageDone
from pixelpick_ray.search.design import Search
from pixelpick_ray.search.journal import LevelReport

OnEvent = Callable[[Event], None]
# Runs a trial and all trials that are prefixes of it, keeping the weights of the given stages.
RunTrial = Callable[[Trial, frozenset[int], OnEvent], None]
OnReport = Callable[[int, LevelReport], None]  # the level's position, and its measurements


def run_sample(
    search: Search, values: Mapping[str, Any], reports: Sequence[LevelReport], *, run: RunTrial, on_report: OnReport
) -> bool:
    """Train a configuration and score it at every level after those of `reports`; return False if a training diverged.

    All seeds reach a level before any starts the next; if `on_report` does not return, nothing more is trained. Raises
    SpecError if the values are incompatible.
    """
    search.check(values)
    course = _Course(search, reports, on_report)
    for position, level in enumerate(search.levels):
        if level.epoch is not None or position < len(reports):
            continue
        for seed in search.seeds:
            trial = search.trial(values, seed=seed, budget=level.budget)
            last = trial.num_stages - 1
            kept = {last} if position + 1 < len(search.levels) else set()
            run(trial, frozenset(kept | ({0} if search.shares_stages else set())), course.listener(seed))
            if course.has_diverged:
                return False
        course.end_level()
    return True


class _Course:
    """Measurements so far: mIoU by seed at the current level, and the trainings up to it."""

    def __init__(self, search: Search, reports: Sequence[LevelReport], on_report: OnReport) -> None:
        self._search, self._on_report = search, on_report
        self._means = [report.miou for report in reports]
        self._mious: dict[int, float] = {}
        self._fits: dict[int, dict[int, str]] = {}
        self._seconds: dict[tuple[int, int], float] = {}
        self.has_diverged = False

    def listener(self, seed: int) -> OnEvent:
        """Return a listener for the events of a seed's chain."""

        def hear(event: Event) -> None:
            self.has_diverged |= isinstance(event, Diverged)
            if isinstance(event, EpochDone | StageDone):
                self._fits.setdefault(seed, {})[event.stage] = event.fit
            if isinstance(event, EpochDone):
                self._seconds[seed, event.stage] = event.seconds
                self._reach(seed, event.stage, [(event.epoch, event.miou)])
            if isinstance(event, StageDone):
                self._reach(seed, event.stage, event.miou_by_epoch)
                self._seconds[seed, event.stage] = event.seconds
                self._mious[seed] = event.miou

        return hear

    def _reach(self, seed: int, stage: int, miou_by_epoch: Sequence[tuple[int, float | None]]) -> None:
        """Report each epoch of the first stage that is a level, once."""
        for epoch, miou in miou_by_epoch:
            level = self._search.levels[len(self._means)]
            if stage == 0 and miou is not None and level.epoch == epoch:
                self._mious = {seed: miou}
                self.end_level()

    def end_level(self) -> None:
        """Report the level that all seeds have now reached."""
        mious = {str(seed): miou for seed, miou in self._mious.items()}
        self._means.append(sum(mious.values()) / len(mious))
        fits = {str(seed): tuple(keys[stage] for stage in sorted(keys)) for seed, keys in self._fits.items()}
        seconds = round(sum(self._seconds.values()), 3)
        self._on_report(len(self._means) - 1, LevelReport(self._search.score(self._means), mious, fits, seconds))
