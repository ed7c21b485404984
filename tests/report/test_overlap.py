"""Whether strategies and seeds ask for the same pixels, against distances worked out by hand and by brute force."""

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.report.overlap import overlap_table
from pixelpick_ray.report.parts import Table
from tests.support.study import NO_PIXELS, Study, chain_path, experiment, matrix

Place = tuple[str, int, int]  # image, y, x
Asked = Mapping[tuple[str, int], Sequence[Place]]  # by strategy and seed, after the first stage

FIRST = [("a.png", 200, 200), ("b.png", 300, 300)]  # by chance, the same for all strategies


def labelled(places: Sequence[Place]) -> LabelledPixels:
    names, y, x = zip(*places, strict=True)
    return LabelledPixels.of(names=names, y=y, x=x, label=0, stage=0)


def ask(study: Study, asked: Asked, *more: str) -> Experiment:
    """Store a first stage and what is asked for after it; `more` goes into the grid."""
    strategies, seeds = dict.fromkeys(name for name, _ in asked), sorted({seed for _, seed in asked})
    varied = (f"acquire.strategy: [{', '.join(strategies)}]", f"seed: {seeds}", "budget: [20]", *more)
    spec = experiment(f"grid=[{{{', '.join(varied)}}}]")

    def mark(trial: Trial, stage: int) -> LabelledPixels:
        return labelled(asked[trial.acquire.strategy, trial.seed] if stage else FIRST)

    study.fill(spec, lambda trial: matrix(50) if (trial.acquire.strategy, trial.seed) in asked else None)
    study.ask(spec, lambda trial, stage: None, mark)
    return spec


def table(study: Study, spec: Experiment) -> Table | None:
    return overlap_table(study.store, study.chains(spec))


def rows(study: Study, asked: Asked) -> list[tuple[str, ...]]:
    """One, other, seeds, near (%), same (%) and n of each row."""
    found = table(study, ask(study, asked))
    assert found.header == ("model", "pretrained", "one", "other", "seeds", "near (%)", "same (%)", "n")
    return [row[2:] for row in found.rows]


HERE, NEAR, FAR = ("a.png", 40, 50), ("a.png", 42, 50), ("a.png", 90, 90)
NINETY_NINE = [f"{number:02d}.png" for number in range(99)]


@pytest.mark.parametrize(
    ("ours", "theirs", "near", "same"),
    [
        ([HERE], [HERE], "100.0", "100.00"),
        ([HERE], [("a.png", 40, 53)], "100.0", "0.00"),
        ([HERE], [("a.png", 43, 54)], "100.0", "0.00"),  # 5 pixels away
        ([HERE], [("a.png", 45, 51)], "0.0", "0.00"),  # the square root of 26
        ([HERE], [("b.png", 40, 50)], "0.0", "0.00"),
        ([HERE, ("b.png", 1, 1)], [("b.png", 40, 50)], "0.0", "0.00"),
        ([HERE, FAR], [HERE], "75.0", "75.00"),  # the mean over both directions
        # Of 99 images every second one is looked at; on the others the strategies do not agree.
        (
            [(name, 40, 50) for name in NINETY_NINE],
            [(name, 40, 50 + 40 * (number % 2)) for number, name in enumerate(NINETY_NINE)],
            *("100.0", "100.00"),
        ),
    ],
)
def test_strategies_meet_with_the_same_seed(study: Study, ours: Any, theirs: Any, near: str, same: str) -> None:
    asked = {("margin", 0): ours, ("random", 0): theirs}
    assert rows(study, asked) == [("margin", "random", "the same", near, same, "1")]


def test_seeds_of_a_strategy_are_compared_too(study: Study) -> None:
    asked = {("margin", 0): [HERE], ("margin", 1): [NEAR], ("random", 0): [HERE], ("random", 1): [("b.png", 9, 9)]}
    assert rows(study, asked) == [
        ("margin", "random", "the same", "50.0", "50.00", "2"),
        ("margin", "margin", "different", "100.0", "0.00", "1"),
        ("random", "random", "different", "0.0", "0.00", "1"),
    ]


def test_three_seeds_are_enough(study: Study) -> None:
    asked = {("margin", seed): [("a.png", 40, 50 if seed < 3 else 90)] for seed in range(4)}
    assert rows(study, asked) == [("margin", "margin", "different", "100.0", "100.00", "3")]


@pytest.mark.parametrize(("budget", "pixels"), [(10, FIRST), (20, [])])
def test_the_first_pixels_alone_and_none_are_not_compared(study: Study, budget: int, pixels: list[Place]) -> None:
    spec = experiment(f"grid=[{{acquire.strategy: [margin, random], seed: [0], budget: [{budget}]}}]")
    study.fill(spec, lambda trial: matrix(50))
    study.ask(spec, lambda trial, stage: None, lambda trial, stage: labelled(pixels) if pixels else NO_PIXELS)
    assert table(study, spec) is None
    assert table(study, ask(study, {("margin", 0): [HERE]}, "train.batch_size: [1]")) is None  # one chain alone


def test_chains_whose_pixels_are_not_stored_are_left_out(study: Study) -> None:
    spec = ask(study, {(name, seed): [HERE] for name in ("margin", "random", "entropy") for seed in (0, 1)})
    lost = {(trial.acquire.strategy, trial.seed): chain_path(spec, trial) for trial in spec.trials()}
    record = study.store.read_record(lost["margin", 0])
    shutil.rmtree(study.store.folder("pick", record["stages"][0]["pick"]))
    (study.store.path / lost["random", 1]).unlink()
    assert [(*row[2:5], row[-1]) for row in table(study, spec).rows] == [
        ("margin", "entropy", "the same", "1"),
        ("random", "entropy", "the same", "1"),
        ("entropy", "entropy", "different", "1"),
    ]


def test_settings_are_not_compared_with_each_other(study: Study) -> None:
    asked = {("margin", 0): [HERE], ("random", 0): [HERE]}
    found = table(study, ask(study, asked, "acquire.pool_fraction: [0.1, 0.2]"))
    assert [row[found.header.index("setting") :] for row in found.rows] == [
        (f"acquire.pool_fraction={fraction}", "margin", "random", "the same", "100.0", "100.00", "1")
        for fraction in (0.1, 0.2)
    ]


def test_shares_are_those_of_brute_force(study: Study) -> None:
    rng = np.random.default_rng(0)

    def some(count: int) -> list[Place]:
        places = {(f"{image}.png", int(y), int(x)) for image, y, x in rng.integers(0, [3, 40, 40], (count, 3))}
        return sorted(places)

    asked = {("margin", 0): some(80), ("random", 0): some(120)}
    ours, theirs = asked.values()
    apart = np.asarray(
        [[np.hypot(y - v, x - u) if name == other else np.inf for other, v, u in theirs] for name, y, x in ours]
    )
    near, same = (50 * ((apart <= limit).any(1).mean() + (apart <= limit).any(0).mean()) for limit in (5, 0))
    assert 0 < same < near < 100
    assert rows(study, asked) == [("margin", "random", "the same", f"{near:.1f}", f"{same:.2f}", "1")]
