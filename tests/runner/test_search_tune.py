"""Searches on real Ray with instant fits: every pair of searcher and scheduler, stopped halfway and run again."""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.errors import StoreError
from pixelpick_ray.events import Event, LevelReached
from pixelpick_ray.runner import search as runner
from pixelpick_ray.runner.cluster import joined
from pixelpick_ray.search.design import Search, make_search
from pixelpick_ray.search.journal import Journal
from pixelpick_ray.store import Store
from tests.support.experiments import experiment_of, experiment_text

pytestmark = pytest.mark.ray

SAMPLES = 12


def instant() -> Callable[..., None]:
    """What takes the place of a sample's work; a function in a function travels to workers whole."""

    def work(config: dict[str, Any], search: Any, execution: Any) -> None:
        from ray import tune

        from pixelpick_ray.events import ChainDone, encode

        final = math.exp(-((math.log10(config["values"]["train.optimizer.lr"] / 1e-3)) ** 2))
        for level in range(config["heard"], len(search.levels)):
            score = final * (level + 1) / 10
            report = {"score": score, "mious": {"0": score}, "fits": {"0": [f"key{level}"]}, "seconds": level + 1.0}
            resource = search.levels[level].resource
            tune.report({"report": json.dumps(report), "level": level, "resource": resource, "score": score})
        tune.report({"event": encode(ChainDone(config["name"]))})

    return work


class Reports:
    """Hears what is reported; after so many new ones it asks to stop."""

    def __init__(self, most: float = math.inf) -> None:
        self.most, self.new, self.known = most, 0, 0
        self.full = threading.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, LevelReached):
            self.new += event.computed
            self.known += not event.computed
            if self.new >= self.most:
                self.full.set()


def search_of(searcher: str, scheduler: str, samples: int) -> Search:
    block = f"""
  space:
    train.optimizer.lr: {{loguniform: [1e-5, 1e-1]}}
    acquire.pool_fraction: {{uniform: [0.01, 1]}}
    acquire.strategy: {{choice: [margin, entropy]}}
    acquire.stochastic: {{choice: [null, {{passes: 5}}]}}
    train.batch_size: {{randint: [2, 16]}}
  searcher: {searcher}
  scheduler: {scheduler}
  num_samples: {samples}"""
    train = "{epochs: 1, optimizer: {name: adam, lr: 1e-1}}"
    budgets = list(range(10, 100, 10))
    return make_search(
        experiment_of(experiment_text("instant", train=train, grid=f"[{{seed: [0], budget: {budgets}}}]", search=block))
    )


@pytest.mark.slow
@pytest.mark.parametrize(("searcher", "scheduler"), [("optuna", "asha"), ("random", "asha"), ("random", "none")])
def test_a_search_that_is_stopped_and_extended_keeps_its_history(
    searcher: str, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_trial", instant())
    execution = Execution(tmp_path, str(tmp_path / "store"), tmp_path, runs_path=tmp_path, device="cpu")
    new = 0
    for samples, most in ((SAMPLES, 9), (SAMPLES, math.inf), (SAMPLES + 3, math.inf)):
        search, reports = search_of(searcher, scheduler, samples), Reports(most)
        journal = Journal(Store(tmp_path / "store"), search)
        before = list(journal.samples)
        with joined(execution):
            assert runner.run(search, journal, execution, reports, reports.full.is_set) == {}
        new += reports.new
        assert journal.is_complete(samples) == (most == math.inf)
        known = sum(len(one.reports) for one in before)
        assert reports.known == known
        for old, now in zip(before, journal.samples, strict=False):
            assert now.values == old.values
            assert now.reports[: len(old.reports)] == old.reports
            assert now == old or not journal.is_over(old)
    assert len(journal.samples) == SAMPLES + 3
    assert new == sum(len(one.reports) for one in journal.samples)  # nothing was judged twice
    values = [json.dumps(dict(one.values)) for one in journal.samples]
    assert len(set(values)) == len(values)
    for one in journal.samples:
        assert all(search.spec.space[path].contains(value) for path, value in one.values.items())
        search.check(one.values)
    assert any(one.stopped for one in journal.samples) == (scheduler != "none")
    assert journal.best() is not None


def test_a_journal_that_cannot_be_written_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_trial", instant())
    execution = Execution(tmp_path, str(tmp_path / "store"), tmp_path, runs_path=tmp_path, device="cpu")
    search = search_of("random", "asha", SAMPLES)
    journal, write, left = Journal(Store(tmp_path / "store"), search), Store.write_record, [5]

    def write_record(store: Store, relative: str, value: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StoreError(f"{relative}: the disk is full")
        write(store, relative, value)

    monkeypatch.setattr(Store, "write_record", write_record)
    with joined(execution), pytest.raises(StoreError, match=r"samples/0000[0-9].json: the disk is full"):
        runner.run(search, journal, execution, Reports(), lambda: False)
    monkeypatch.setattr(Store, "write_record", write)
    assert Journal(Store(tmp_path / "store"), search).samples == journal.samples  # what is known is what is stored
