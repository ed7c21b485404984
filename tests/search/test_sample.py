"""One sample, with a stand-in for training: what is run, in which order, and what is reported when."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pixelpick_ray.config.trial import Trial
from pixelpick_ray.errors import SpecError
from pixelpick_ray.events import Diverged, Event, FitResumed, PixelsPicked
from pixelpick_ray.search.design import Search
from pixelpick_ray.search.journal import LevelReport
from pixelpick_ray.search.sample import run_sample
from tests.support.chain_events import epoch_done, stage_done
from tests.support.searches import BY_EPOCH, LR_ALONE, OWN, THREE_SEEDS, search_of

EPOCHS = 8


def miou_of(seed: int, stage: int, epoch: int = EPOCHS) -> float:
    """What the stand-in measures: more with every stage and epoch, a little more with every seed."""
    return (10 * (stage + 1) + seed) / 100 * epoch / EPOCHS


class Trainer:
    """Runs trials as a chain does, without training: an epoch takes a second, and what was trained is stored.

    `done` are epochs of trainings that an earlier process left unfinished, by seed and stage.
    """

    def __init__(self, search: Search, *, stored: Sequence[tuple[int, int]] = (), done: dict[Any, int] | None = None):
        self._by_epoch = search.judged.evaluate.when == "every_epoch"
        self.stored, self._done = set(stored), done or {}
        self.trials: list[Trial] = []
        self.runs: list[tuple[int, int | str, frozenset[int]]] = []
        self.epochs: list[tuple[int, int, int]] = []  # trained: seed, stage, epoch

    def __call__(self, trial: Trial, keep_stages: frozenset[int], on_event: Callable[[Event], None]) -> None:
        self.trials.append(trial)
        self.runs.append((trial.seed, trial.budget, keep_stages))
        for stage in range(trial.num_stages):
            computed = (trial.seed, stage) not in self.stored
            if computed:
                self._train(trial, stage, on_event)
            on_event(self._summary(trial, stage, computed))
            on_event(PixelsPicked(trial.chain_id, stage, computed, "..."))

    def _train(self, trial: Trial, stage: int, on_event: Callable[[Event], None]) -> None:
        first = self._done.get((trial.seed, stage), 0) + 1
        if first > 1:
            on_event(FitResumed(trial.chain_id, stage, first - 1, EPOCHS))
        for epoch in range(first, EPOCHS + 1):
            self.epochs.append((trial.seed, stage, epoch))
            miou = miou_of(trial.seed, stage, epoch) if self._by_epoch or epoch == EPOCHS else None
            fit = f"fit {trial.seed} {stage}"
            on_event(epoch_done(trial.chain_id, stage, epoch, epochs=EPOCHS, miou=miou, fit=fit))
        self.stored.add((trial.seed, stage))

    def _summary(self, trial: Trial, stage: int, trained: bool) -> Event:
        measured = range(1, EPOCHS + 1) if self._by_epoch else [EPOCHS]
        by_epoch = tuple((epoch, miou_of(trial.seed, stage, epoch)) for epoch in measured)
        known = {"trained": trained, "fit": f"fit {trial.seed} {stage}", "miou_by_epoch": by_epoch}
        seconds = EPOCHS + 0.50001  # the fit with its end; reports round to milliseconds
        return stage_done(trial.chain_id, stage, miou_of(trial.seed, stage), seconds=seconds, **known)


def fits(*seeds: int, stages: int) -> dict[str, tuple[str, ...]]:
    return {str(seed): tuple(f"fit {seed} {stage}" for stage in range(stages)) for seed in seeds}


def run(
    search: Search, trainer: Trainer, reports: Sequence[LevelReport] = (), *, stop_at: int | None = None
) -> list[tuple[int, LevelReport]]:
    """What is reported of a sample; at the level `stop_at` its scheduler ends it."""
    found: list[tuple[int, LevelReport]] = []

    def on_report(position: int, report: LevelReport) -> None:
        found.append((position, report))
        if position == stop_at:
            raise SystemExit

    try:
        run_sample(search, OWN, reports, run=trainer, on_report=on_report)
    except SystemExit:
        assert stop_at is not None
    return found


def scores(found: Sequence[tuple[int, LevelReport]]) -> list[tuple[int, float]]:
    return [(position, report.score) for position, report in found]


def test_a_sample_ends_where_a_training_of_one_seed_diverges_or_its_values_are_wrong() -> None:
    search, found = search_of(THREE_SEEDS), []
    trainer = Trainer(search)

    def run(trial: Trial, keep_stages: frozenset[int], on_event: Callable[[Event], None]) -> None:
        if trial.num_stages > 1 and trial.seed == 1:
            on_event(Diverged(trial.chain_id, 1, "the loss is nan"))
        else:
            trainer(trial, keep_stages, on_event)

    whole = run_sample(search, OWN, [], run=run, on_report=lambda position, report: found.append(position))
    assert (whole, found) == (False, [0])
    assert {seed for seed, budget, _ in trainer.runs if budget == 20} == {0}
    values, before = OWN | {"acquire.strategy": "best"}, len(trainer.runs)
    with pytest.raises(SpecError, match=r"^acquire\.strategy: unknown strategy 'best'"):
        run_sample(search, values, [], run=trainer, on_report=lambda position, report: pytest.fail("was measured"))
    assert len(trainer.runs) == before


def test_one_seed_is_reported_at_every_level_with_all_trainings_up_to_there() -> None:
    search = search_of("search.held_out=0.25")
    trainer, stored = Trainer(search), Trainer(search, stored=[(0, 0), (0, 1)])
    found = run(search, trainer)
    assert found == [
        (0, LevelReport(0.1, {"0": 0.1}, fits(0, stages=1), 8.5)),
        (1, LevelReport(0.2, {"0": 0.2}, fits(0, stages=2), 17.0)),
        (2, LevelReport(0.4, {"0": 0.4}, fits(0, stages=4), 34.0)),
    ]
    assert trainer.trials == [search.trial(OWN, seed=0, budget=budget) for budget in (10, 20, 40)]
    assert len(trainer.epochs) == 4 * EPOCHS  # each stage once
    assert run(search, stored) == found  # what another sample has trained is reported like one's own
    assert {stage for _, stage, _ in stored.epochs} == {2, 3}


def test_all_seeds_reach_a_level_before_any_goes_on() -> None:
    search = search_of(THREE_SEEDS)
    trainer = Trainer(search)
    found = run(search, trainer)
    kept = {10: frozenset({0}), 20: frozenset({0, 1}), 40: frozenset({0})}  # the first training is shared
    assert trainer.runs == [(seed, budget, kept[budget]) for budget in (10, 20, 40) for seed in (0, 1, 2)]
    reports = [report for _, report in found]
    mious = [(0.1, 0.11, 0.12), (0.2, 0.21, 0.22), (0.4, 0.41, 0.42)]
    assert [report.mious for report in reports] == [dict(zip("012", each, strict=True)) for each in mious]
    assert [report.score for report in reports] == pytest.approx([0.11, 0.21, 0.41])
    assert [report.fits for report in reports] == [fits(0, 1, 2, stages=stages) for stages in (1, 2, 4)]
    assert [report.seconds for report in reports] == [3 * 8.5, 6 * 8.5, 12 * 8.5]
    by_area = search_of(THREE_SEEDS, "search.metric={name: area}")
    areas = [0.11, (0.11 + 0.21) / 2, (10 * (0.11 + 0.21) / 2 + 20 * (0.21 + 0.41) / 2) / 30]  # of means over seeds
    assert [report.score for _, report in run(by_area, Trainer(by_area))] == pytest.approx(areas)


def test_nothing_is_trained_behind_the_metric_s_budget_and_weights_are_kept_to_the_last_level() -> None:
    search = search_of("search.metric={budget: 20}")
    trainer = Trainer(search)
    assert [position for position, _ in run(search, trainer)] == [0, 1]
    assert {stage for _, stage, _ in trainer.epochs} == {0, 1}
    search = search_of("grid=[{seed: [4], budget: [full]}]")
    trainer = Trainer(search)
    assert run(search, trainer) == [(0, LevelReport(0.14, {"4": 0.14}, fits(4, stages=1), 8.5))]
    assert trainer.runs == [(4, "full", frozenset({0}))]


@pytest.mark.parametrize("known", [1, 2, 3])
def test_a_sample_goes_on_behind_its_reports_and_reports_the_same(known: int) -> None:
    search = search_of(THREE_SEEDS, "search.metric={name: area}")
    whole, before = run(search, Trainer(search)), Trainer(search)
    run(search, before, stop_at=known - 1)
    after = Trainer(search, stored=sorted(before.stored))
    assert run(search, after, [report for _, report in whole[:known]]) == whole[known:]
    assert set(before.epochs).isdisjoint(after.epochs)
    levels = [10, 20, 40][known:]
    assert [(seed, budget) for seed, budget, _ in after.runs] == [(s, b) for b in levels for s in search.seeds]


EPOCH_SCORES = [(0, 0.1 * 2 / 8), (1, 0.1 * 4 / 8), (2, 0.1), (3, 0.2), (4, 0.4)]
WITH_EPOCHS = search_of(LR_ALONE, *BY_EPOCH)


def test_epochs_of_the_first_stage_that_are_levels_are_reported_when_they_end() -> None:
    trainer = Trainer(WITH_EPOCHS)
    found = run(WITH_EPOCHS, trainer)
    assert scores(found) == EPOCH_SCORES
    assert [report for _, report in found[:3]] == [
        LevelReport(0.025, {"0": 0.025}, fits(0, stages=1), 2.0),  # its training goes on
        LevelReport(0.05, {"0": 0.05}, fits(0, stages=1), 4.0),
        LevelReport(0.1, {"0": 0.1}, fits(0, stages=1), 8.5),
    ]
    assert trainer.runs == [(0, 10, frozenset({0})), (0, 20, frozenset({1})), (0, 40, frozenset())]
    # Epochs of later stages and without a level are not reported.
    search = search_of(LR_ALONE, *BY_EPOCH, "grid=[{seed: [0], budget: [20]}]")
    found = run(search, Trainer(search))
    assert [report.score for _, report in found] == pytest.approx([0.025, 0.05, 0.2])
    assert found[2][1].fits == fits(0, stages=2)
    search = search_of("evaluate.when=every_epoch")
    assert [position for position, _ in run(search, Trainer(search))] == [0, 1, 2]


@pytest.mark.parametrize("position", [0, 1])
def test_nothing_more_is_trained_once_a_report_or_an_epoch_ends_the_sample(position: int) -> None:
    search = search_of(THREE_SEEDS)
    trainer, by_epoch = Trainer(search), Trainer(WITH_EPOCHS)
    assert [at for at, _ in run(search, trainer, stop_at=position)] == [*range(position + 1)]
    assert [budget for _, budget, _ in trainer.runs] == [10] * 3 + [20] * 3 * position
    run(WITH_EPOCHS, by_epoch, stop_at=position)
    assert by_epoch.epochs == [(0, 0, epoch) for epoch in range(1, (2, 4)[position] + 1)]


def test_epochs_of_a_stage_from_the_store_are_reported_as_they_were_measured() -> None:
    trainer = Trainer(WITH_EPOCHS, stored=[(0, 0)])
    found = run(WITH_EPOCHS, trainer)
    assert scores(found) == EPOCH_SCORES
    assert found[2][1] == LevelReport(0.1, {"0": 0.1}, fits(0, stages=1), 8.5)
    assert {stage for _, stage, _ in trainer.epochs} == {1, 2, 3}
    trainer = Trainer(WITH_EPOCHS, stored=[(0, 0)])
    assert [position for position, _ in run(WITH_EPOCHS, trainer, stop_at=1)] == [0, 1]  # they may end it too
    assert trainer.epochs == []
    went_on = run(WITH_EPOCHS, Trainer(WITH_EPOCHS, done={(0, 0): 3}))  # those before are reported at the end
    assert scores(went_on) == EPOCH_SCORES


@pytest.mark.parametrize("known", [1, 2, 4])
@pytest.mark.parametrize("stored", [(), ((0, 0),)])
def test_an_epoch_is_reported_once_however_often_it_is_trained(known: int, stored: tuple[tuple[int, int], ...]) -> None:
    whole = run(WITH_EPOCHS, Trainer(WITH_EPOCHS))
    found = run(WITH_EPOCHS, Trainer(WITH_EPOCHS, stored=stored), [report for _, report in whole[:known]])
    assert scores(found) == EPOCH_SCORES[known:]
