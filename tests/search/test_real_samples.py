"""Samples with real trainings: what a level reports is what the store has, and what is stored is not trained again."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pixelpick_ray.active.metrics import miou
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.engine.world import World
from pixelpick_ray.events import Event, StageDone
from pixelpick_ray.running import run_chain
from pixelpick_ray.search.design import make_search
from pixelpick_ray.search.journal import LevelReport
from pixelpick_ray.search.sample import run_sample
from pixelpick_ray.store import Store
from tests.support.experiments import TWO_PIXELS, experiment_of, experiment_text
from tests.support.tiny_data import place_at

pytestmark = pytest.mark.training

VALUES = {"acquire.strategy": "margin", "acquire.pool_fraction": 0.5}
SPACE = "{acquire.strategy: {choice: [margin, entropy]}, acquire.pool_fraction: {choice: [0.05, 0.5]}}"
TEXT = experiment_text(
    "real",
    dataset="{name: scenes, size: [24, 32], images: 4}",
    model="{backbone: mobilenetv2_035, pretrained: none, dropout: [0.0, 0.0, 0.0]}",
    train="{epochs: 3, batch_size: 4, optimizer: {name: adam, lr: 1e-3}}",
    acquire=TWO_PIXELS,
    evaluate="{splits: {test: {}}, when: every_epoch, report: test}",
    grid="[{seed: [0], budget: [2, 4]}]",
    search=f"{{space: {SPACE}, num_samples: 4, epochs: [1, 2]}}",
)


class Bench:
    """Runs samples in this process, and counts trainings that were computed."""

    def __init__(self, place: Path, cache_path: Path) -> None:
        self.search, self.store = make_search(experiment_of(TEXT, where="real.yaml")), Store(place / "store")
        self.place = place_at(place / "store", place / "data", cache_path)
        self.trained: Counter[tuple[int, int]] = Counter()

    def run_trial(self, trial: Trial, keep_stages: frozenset[int], on_event: object) -> None:
        def hear(event: Event) -> None:
            self.trained[trial.seed, getattr(event, "stage", 0)] += isinstance(event, StageDone) and event.trained
            on_event(event)  # type: ignore[operator]

        world = World(0, 1, torch.device("cpu"))
        run_chain(self.search.judged, trial, self.place, world, hear, keep_stages=keep_stages)

    def sample(self, values: dict[str, object], known: tuple[LevelReport, ...] = ()) -> list[LevelReport]:
        reports: list[LevelReport] = []
        run_sample(self.search, values, known, run=self.run_trial, on_report=lambda at, report: reports.append(report))
        return reports

    def stored(self, fit: str, epoch: int) -> float:
        """mIoU on the split of the search, read from the store."""
        for folder in (self.store.path / "evaluation").iterdir():
            inputs = (folder / "input.json").read_text()
            if fit in inputs:
                assert '"split": "val"' in inputs  # nothing else is ever evaluated
                with np.load(folder / "confusion.npz") as file:
                    return miou(file["confusion"][list(file["epochs"]).index(epoch)])
        raise AssertionError(f"fit {fit} was not evaluated")


def test_levels_report_what_is_stored_and_samples_share_it(tmp_path: Path, cache_path: Path, one_thread: None) -> None:
    bench = Bench(tmp_path, cache_path)
    reports = bench.sample(VALUES)
    assert [len(report.fits["0"]) for report in reports] == [1, 1, 1, 2]
    first, second = reports[-1].fits["0"]
    expected = [bench.stored(first, 1), bench.stored(first, 2), bench.stored(first, 3), bench.stored(second, 3)]
    assert [report.score for report in reports] == pytest.approx(expected, abs=0)
    assert [report.seconds for report in reports] == sorted(report.seconds for report in reports)
    again = bench.sample(VALUES)  # a repeated configuration
    assert [(one.score, one.mious) for one in again] == [(one.score, one.mious) for one in reports]
    assert bench.trained == {(0, 0): 1, (0, 1): 1}
    assert bench.sample(VALUES, tuple(reports[:3]))[0].score == reports[3].score
    *shared, last = bench.sample(VALUES | {"acquire.strategy": "entropy"})
    assert bench.trained == {(0, 0): 1, (0, 1): 2}  # the first stage once for both
    assert [(one.mious, one.fits) for one in shared] == [(one.mious, one.fits) for one in reports[:3]]
    assert last.fits["0"][1] != second
