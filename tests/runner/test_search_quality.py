"""Whether searching pays, and whether a killed search goes on as it was: the real searchers, schedulers and journal
with instant fits whose mIoU is a known function of two settings.
"""

import heapq
import json
import math
import statistics
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from pixelpick_ray.runner.search import Decisions, Proposals
from pixelpick_ray.search.design import Search, make_search
from pixelpick_ray.search.journal import Journal, LevelReport
from pixelpick_ray.store import Store
from tests.support.experiments import experiment_of, experiment_text

pytestmark = pytest.mark.long

SAMPLES, WORKERS = 40, 4


def miou(values: dict[str, float], stage: int) -> float:
    """Best at a learning rate of 2e-3 and a weight decay of 1e-4; large learning rates are ahead at the start."""
    away = (math.log10(values["train.optimizer.lr"] / 2e-3)) ** 2
    away += (math.log10(values["train.optimizer.weight_decay"] / 1e-4) / 2) ** 2
    speed = 0.5 + 0.1 * (math.log10(values["train.optimizer.lr"]) + 5) / 4
    return 0.7 * math.exp(-away / 3) * (1 - math.exp(-speed * (stage + 1)))


def search_of(searcher: str, scheduler: str, seed: int, samples: int = SAMPLES) -> Search:
    space = "{train.optimizer.lr: {loguniform: [1e-5, 1e-1]}, train.optimizer.weight_decay: {loguniform: [1e-7, 1e-1]}}"
    settings = f"searcher: {searcher}, scheduler: {scheduler}, num_samples: {samples}, seed: {seed}"
    return search_in(f"{{space: {space}, {settings}}}")


def search_in(block: str) -> Search:
    """The search of nine stages with this block."""
    train = "{epochs: 1, optimizer: {name: adam, lr: 5e-2, weight_decay: 9e-2}}"
    budgets = list(range(10, 100, 10))
    text = experiment_text("quality", train=train, grid=f"[{{seed: [0], budget: {budgets}}}]", search=block)
    return make_search(experiment_of(text))


class Killed(Exception):
    """The process is no more."""


class Trial(SimpleNamespace):
    """What schedulers know of a Tune trial."""

    def __hash__(self) -> int:
        return hash(self.trial_id)


class Machine:
    """Runs samples on a few workers, a stage a unit of time, as Ray Tune would; `cost` counts stages."""

    def __init__(self, search: Search, place: Path, *, kill_after: int | None = None) -> None:
        self.search, self.journal = search, Journal(Store(place), search)
        self.kill_after, self.cost, self.steps = kill_after, 0, 0
        samples = max(search.spec.size, len(self.journal.samples))
        self.proposals = Proposals(search, self.journal, samples, lambda: WORKERS)
        self.decisions = Decisions(search, self.journal, lambda event: None)
        self.running: list[tuple[float, int, Any]] = []

    def run(self) -> "Machine":
        now, number = 0.0, 0
        while True:
            while len(self.running) < WORKERS:
                settings = self.proposals.suggest(f"trial{number}")
                if not isinstance(settings, dict):
                    break
                trial = Trial(trial_id=f"trial{number}", config=settings)
                self.decisions.on_trial_add(None, trial)
                self.start(now, number, trial)
                number += 1
            if not self.running:
                return self
            now, of, trial = heapq.heappop(self.running)
            self.end_stage(now, of, trial)

    def start(self, now: float, number: int, trial: Any) -> None:
        """A stage that the journal knows takes no time."""
        known = trial.config["heard"] < len(trial.config["reports"])
        # Of two that end at the same time, the order is by number: ties must not depend on anything else.
        heapq.heappush(self.running, (now if known else now + 1 + 1e-6 * number, number, trial))

    def end_stage(self, now: float, number: int, trial: Any) -> None:
        self.steps += 1
        if self.kill_after is not None and self.steps > self.kill_after:
            raise Killed
        level, sample = trial.config["heard"], self.journal.samples[trial.config["sample"]]
        if level < len(sample.reports):
            report = sample.reports[level]
        else:
            self.cost += 1
            value = miou(dict(sample.values), level)
            report = LevelReport(value, {"0": value}, {"0": ("key",)}, 1.0)
        resource = self.search.levels[level].resource
        result = {"report": json.dumps(asdict(report)), "level": level, "resource": resource, "score": report.score}
        decision = self.decisions.on_trial_result(None, trial, result)
        if decision != TrialScheduler.STOP:
            self.proposals.on_trial_result(trial.trial_id, result)
        if decision == TrialScheduler.STOP or level + 1 == len(self.search.levels):
            self.proposals.on_trial_complete(trial.trial_id, result)
            self.decisions.on_trial_complete(None, trial, {})
        else:
            self.start(now, number, trial)

    @property
    def best(self) -> float:
        best = self.journal.best()
        assert best is not None
        return best.reports[-1].score


def test_the_searcher_that_learns_finds_more_than_chance_on_average(tmp_path: Path) -> None:
    found = {
        searcher: [
            Machine(search_of(searcher, "none", seed, 25), tmp_path / f"{searcher}{seed}").run().best
            for seed in range(3)
        ]
        for searcher in ("optuna", "random")
    }
    assert statistics.mean(found["optuna"]) > statistics.mean(found["random"])


def test_asha_reaches_the_best_of_chance_at_less_than_half_of_its_cost(tmp_path: Path) -> None:
    """It stops bad samples, and never the file's own."""
    chance = Machine(search_of("random", "none", 0), tmp_path / "chance").run()
    assert chance.cost == SAMPLES * 9
    asha = Machine(search_of("random", "asha", 0), tmp_path / "asha").run()
    assert asha.cost < chance.cost / 2
    assert asha.best >= chance.best
    journal = asha.journal
    stopped = [one for one in journal.samples if one.stopped]
    finished = [one for one in journal.samples if journal.is_finished(one)]
    assert len(stopped) + len(finished) == SAMPLES
    assert len(stopped) >= SAMPLES / 4
    assert journal.samples[0].is_own
    assert journal.samples[0] in finished
    assert journal.samples[0].reports[-1].score < 0.2  # it would have been stopped
    middle = statistics.median(miou(dict(one.values), 8) for one in journal.samples)
    assert statistics.mean(miou(dict(one.values), 8) < middle for one in stopped) > 0.6
    assert all(one.stopped.startswith("asha: rank ") for one in stopped)


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_a_search_killed_again_and_again_ends_with_its_samples_none_repeated_and_can_be_extended(
    searcher: str, tmp_path: Path
) -> None:
    cost, lives, before = 0, 0, dict[int, Any]()
    for kill_after, samples in ((3, 14), (17, 14), (30, 14), (41, 14), (56, 14), (None, 14), (None, 18)):
        search = search_of(searcher, "asha", 1, samples=samples)
        machine = Machine(search, tmp_path, kill_after=kill_after)
        assert {one.index: one for one in machine.journal.samples} == before  # nothing is lost
        try:
            machine.run()
        except Killed:
            lives += 1
        cost += machine.cost
        for old in before.values():
            now = machine.journal.samples[old.index]
            assert now.values == old.values
            assert now.reports[: len(old.reports)] == old.reports
            assert now == old or not machine.journal.is_over(old)
        before = {one.index: one for one in Journal(Store(tmp_path), search).samples}
        assert kill_after is not None or (len(before) == samples and machine.journal.is_complete(samples))
    assert lives >= 3
    assert len({json.dumps(dict(one.values)) for one in before.values()}) == 18
    assert cost == sum(len(one.reports) for one in before.values())  # no stage was computed twice


def test_chance_draws_the_same_whether_it_was_killed_or_not(tmp_path: Path) -> None:
    search = search_of("random", "none", 3, samples=6)
    with pytest.raises(Killed):
        Machine(search, tmp_path / "killed", kill_after=20).run()
    killed = Machine(search, tmp_path / "killed").run()
    whole = Machine(search, tmp_path / "whole").run()
    assert killed.journal.samples == whole.journal.samples


def test_what_diverged_is_the_worst_to_the_searcher_and_is_handed_out_only_to_be_told(tmp_path: Path) -> None:
    search, told = search_of("optuna", "asha", seed=0, samples=3), []
    for _ in range(2):
        journal = Journal(Store(tmp_path), search)
        proposals = Proposals(search, journal, 3, lambda: WORKERS)
        proposals._proposer.conclude = lambda *values: told.append(values)  # type: ignore[method-assign]
        handed = [proposals.suggest(f"trial{index}") for index in range(3)]
        if not told:
            journal.diverge(1, "the loss is nan")
        proposals.on_trial_complete("trial1", {})
        assert isinstance(handed[1], dict)
    assert handed[1]["diverged"] == "the loss is nan"
    assert told == [("trial1", 0.0, {"score": 0.0, "training_iteration": 0})] * 2


def test_a_grid_is_tried_point_by_point(tmp_path: Path) -> None:
    space = "{train.optimizer.lr: {grid: [1e-3, 1e-2]}, train.optimizer.weight_decay: {grid: [0, 1e-4, 1e-3]}}"
    search = search_in(f"{{space: {space}, searcher: grid, scheduler: none, seed: 0}}")
    proposals = Proposals(search, Journal(Store(tmp_path), search), search.spec.size, lambda: 10)
    tried = [proposals.suggest(str(index)) for index in range(7)]
    assert [tuple(one["values"].values()) for one in tried[:6] if isinstance(one, dict)] == [
        *((1e-3, 0), (1e-3, 1e-4), (1e-3, 1e-3)),
        *((1e-2, 0), (1e-2, 1e-4), (1e-2, 1e-3)),
    ]
    assert tried[6] == "FINISHED"
