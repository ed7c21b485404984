"""Samples with real trainings: what a level reports is what the store has, and what is stored is not trained again."""

from collections import Counter
from collections.abc import Callable, Sequence
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


def test_levels_report_what_is_stored_and_samples_share_it(tmp_path: Path, cache_path: Path, one_thread: None) -> None:
    search, place = make_search(experiment_of(TEXT)), place_at(tmp_path / "store", tmp_path / "data", cache_path)
    trained = Counter[int]()  # by stage

    def run_trial(trial: Trial, keep_stages: frozenset[int], on_event: Callable[[Event], None]) -> None:
        def hear(event: Event) -> None:
            trained[getattr(event, "stage", 0)] += isinstance(event, StageDone) and event.trained
            on_event(event)

        world = World(0, 1, torch.device("cpu"))
        run_chain(search.judged, trial, place, world, hear, keep_stages=keep_stages)

    def sample(values: dict[str, object], known: Sequence[LevelReport] = ()) -> list[LevelReport]:
        reports: list[LevelReport] = []
        run_sample(search, values, known, run=run_trial, on_report=lambda at, report: reports.append(report))
        return reports

    def stored(fit: str, epoch: int) -> float:
        """mIoU on the split of the search, the only one that is ever evaluated."""
        (inputs,) = [one for one in place.results.path.glob("evaluation/*/input.json") if fit in one.read_text()]
        assert '"split": "val"' in inputs.read_text()
        with np.load(inputs.with_name("confusion.npz")) as file:
            return miou(file["confusion"][list(file["epochs"]).index(epoch)])

    reports = sample(VALUES)
    assert [len(report.fits["0"]) for report in reports] == [1, 1, 1, 2]
    first, second = reports[-1].fits["0"]
    expected = [stored(first, 1), stored(first, 2), stored(first, 3), stored(second, 3)]
    assert [report.score for report in reports] == pytest.approx(expected, abs=0)
    assert [report.seconds for report in reports] == sorted(report.seconds for report in reports)
    again = sample(VALUES)  # a repeated configuration
    assert [(one.score, one.mious) for one in again] == [(one.score, one.mious) for one in reports]
    assert trained == {0: 1, 1: 1}
    assert sample(VALUES, reports[:3])[0].score == reports[3].score
    *shared, last = sample(VALUES | {"acquire.strategy": "entropy"})
    assert trained == {0: 1, 1: 2}  # the first stage once for both
    assert [(one.mious, one.fits) for one in shared] == [(one.mious, one.fits) for one in reports[:3]]
    assert last.fits["0"][1] != second
