"""A search on CamVid, and journals of it filled by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

from pixelpick_ray.config.experiment import parse_experiment
from pixelpick_ray.search.design import Search, make_search
from pixelpick_ray.search.journal import Journal, LevelReport, Sample
from tests.support.experiments import experiment_text

TEXT = experiment_text(
    "hunt",
    title="Street scenes",
    dataset="{name: camvid, size: [360, 480]}",
    model="{backbone: resnet18, pretrained: none}",
    train="{epochs: 8, batch_size: 4, optimizer: {name: adam, lr: 1e-3}}",
    acquire="{strategy: margin, initial_pixels: 10, pixels_per_stage: 10}",
    evaluate="{splits: {test: {size: [180, 240]}}, report: test}",
    grid="[{seed: [0], budget: [10, 20, 40]}]",
    search="""
  space:
    train.optimizer.lr: {loguniform: [1e-4, 1e-2]}
    acquire.strategy: {choice: [margin, random, entropy]}
  num_samples: 4""",
)
OWN = {"train.optimizer.lr": 0.001, "acquire.strategy": "margin"}
OTHER = {"train.optimizer.lr": 0.0025, "acquire.strategy": "random"}
LR_ALONE = "search.space={train.optimizer.lr: {loguniform: [1e-4, 1e-2]}}"
BY_EPOCH = ("evaluate.when=every_epoch", "search.epochs=[2, 4]")
THREE_SEEDS = "grid=[{seed: [0, 1, 2], budget: [10, 20, 40]}]"


def search_of(*overrides: str, text: str = TEXT) -> Search:
    """The search of the file above after overrides."""
    return make_search(parse_experiment(text, where="hunt.yaml", overrides=overrides))


def report_of(score: float, *, stage: int = 0, sample: int = 0) -> LevelReport:
    """A report of one seed, whose mIoU is the score, after the trainings up to a stage."""
    fits = tuple(f"fit {sample} {at}" for at in range(stage + 1))
    return LevelReport(score, {"0": score}, {"0": fits}, 1.5)


def add(journal: Journal, values: Mapping[str, Any], scores: Sequence[float], *, origin: str = "optuna") -> Sample:
    """A sample with a report a score."""
    index = journal.issue(values, origin).index
    for stage, score in enumerate(scores):
        journal.report(index, report_of(score, stage=stage, sample=index))
    return journal.samples[index]
