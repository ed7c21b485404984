"""What was asked: every stage of a chain once, from the first pixels to the largest budget, and shares of classes."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.report.cells import line_of
from pixelpick_ray.report.overlap import overlap_table
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.points import Point
from pixelpick_ray.report.queries import (
    StageQuery,
    class_share_tables,
    load_queries,
    queries_csv,
    query_table,
)
from tests.support.study import NO_PIXELS, Study, chain_path, csv_lines, experiment, matrix

GRID = "grid=[{acquire.strategy: [margin, random], seed: [0, 1], budget: [10, 30]}, {seed: [0], budget: [full]}]"


def tell(trial: Trial, stage: int) -> dict[str, Any]:
    """Entropy 0.5 and 1.5 for the seeds where a network is asked, spread twice the stage, 3 and 7 pixels a class."""
    asked = stage > 0 and trial.acquire.strategy == "margin"
    known = {"pixels": 10, "images": 2, "class_counts": [3, 7], "entropy": trial.seed + 0.5 if asked else None}
    return known | {"distinct_classes": 1.25, "spread": 2.0 * stage, "border_distance": 3.0 + stage}


def queries_of(study: Study, spec: Experiment) -> tuple[StageQuery, ...]:
    return load_queries(study.store, study.chains(spec))


def test_every_stage_of_a_chain_is_there_once_and_every_value_a_line(study: Study) -> None:
    spec = experiment(GRID)
    study.fill(spec, lambda trial: matrix(50))
    study.ask(spec, tell)
    queries = queries_of(study, spec)
    found = [(one.point.strategy, one.point.seed, one.stage, one.point.budget) for one in queries]
    stages = [(0, 10), (1, 20), (2, 30)]
    assert found == [(name, seed, *stage) for name in ("margin", "random") for seed in (0, 1) for stage in stages]
    shorter = experiment("grid=[{acquire.strategy: [margin], seed: [0], budget: [20]}]")
    assert [one.point.budget for one in queries_of(study, shorter)] == [10, 20]
    table = query_table(queries_of(study, spec), {})
    start = table.header.index("strategy")
    assert table.header[start:] == (
        *("strategy", "pixels per image", "entropy (nats)", "classes per image", "spread (pixels)"),
        *("distance to a border (pixels)", "n"),
    )
    assert [row[start:] for row in table.rows] == [
        (name, budget, entropy if budget != "10" else "-", "1.25", *rest, "2")
        for name, entropy in (("margin", "1.000"), ("random", "-"))
        for budget, *rest in (("10", "0.0", "3.0"), ("20", "2.0", "4.0"), ("30", "4.0", "5.0"))
    ]
    margin, random = dict.fromkeys(line_of(query.point) for query in queries)
    told = {"7.2": {margin: 7.25, random: 7.25}, "8.0 to 9.0": {margin: 9.0, random: 8.0}, "": {margin: None}}
    for text, distances in told.items():
        notes = [note.split(" pixels from")[0] for note in query_table(queries, distances).notes]
        assert notes == ([f"Any labelled pixel of the training images lies {text}"] if text else [])

    found = csv_lines(queries_csv(queries_of(study, spec)))
    told = "experiment,dataset,architecture,backbone,strategy,setting,seed,stage,budget,statistic,class_name,value,"
    assert ",".join(found[0]).startswith(told)
    wanted = {"strategy": "margin", "seed": "1", "stage": "2", "budget": "30"}
    own = [line for line in found if line | wanted == line]
    assert [(line["statistic"], line["class_name"], line["value"]) for line in own] == [
        *(("pixels", "", "10"), ("images", "", "2"), ("class_count", "sky", "3"), ("class_count", "road", "7")),
        *(("entropy", "", "1.5"), ("distinct_classes", "", "1.25")),
        *(("spread", "", "4.0"), ("border_distance", "", "5.0")),
    ]
    assert {len(line["pick_key"]) for line in found} == {64}
    asked = {(line["strategy"], line["stage"]) for line in found if line["statistic"] == "entropy" and line["value"]}
    assert asked == {("margin", "1"), ("margin", "2")}


def test_pixels_stored_before_there_were_statistics_are_counted_out(study: Study) -> None:
    spec = experiment(GRID)
    assert query_table(queries_of(study, spec), {}) is None  # never run
    study.fill(spec, lambda trial: matrix(50))  # records without picks
    queries = queries_of(study, spec)
    assert (query_table(queries, {}), csv_lines(queries_csv(queries))) == (None, [])
    study.ask(spec, lambda trial, stage: None if (trial.seed, stage) == (0, 1) else tell(trial, stage))
    table = query_table(queries_of(study, spec), {})
    assert [row[-1] for row in table.rows] == ["2", "1/2", "2"] * 2
    assert [row[table.header.index("entropy (nats)")] for row in table.rows[:3]] == ["-", "1.500", "1.000"]


NAMES = ("sky", "road", "car")
POINT = Point("study", "camvid", "deeplabv3plus", "small", "none", "margin", "", 0, 10)
MARGIN, RANDOM = line_of(POINT), line_of(replace(POINT, strategy="random"))


def query(point: Point, stage: int, counts: Sequence[int] | None) -> StageQuery:
    return StageQuery(point, stage, "key", NAMES, None if counts is None else {"class_counts": list(counts)})


# 10 + 10 pixels of seed 0 and 20 of seed 1: 8, 22 and 10 of the classes; the other strategy asked for none of a class.
QUERIES = (
    *(query(POINT, stage, counts) for stage, counts in enumerate([(1, 9, 0), (2, 3, 5)])),
    *(query(replace(POINT, seed=1), stage, counts) for stage, counts in enumerate([(5, 10, 5), None])),
    query(replace(POINT, strategy="random"), 0, (8, 2, 0)),
)


def test_shares_are_of_all_stages_and_seeds_beside_those_in_the_training_images() -> None:
    (table,) = class_share_tables(QUERIES, {})
    assert (table.header, table.alignment) == (("class", "margin", "random"), "lrr")
    assert table.rows == (("sky", "20.0", "80.0"), ("road", "55.0", "20.0"), ("car", "25.0", "0.0"))
    (table,) = class_share_tables(QUERIES, {MARGIN: (500, 400, 100), RANDOM: (500, 400, 100)})
    assert table.header == ("class", "training images", "margin", "random", "margin, ratio", "random, ratio")
    assert table.alignment == "lrrrrr"
    # 0.2 / 0.5, 0.55 / 0.4 and 0.25 / 0.1.
    assert table.rows == (
        ("sky", "50.0", "20.0", "80.0", "0.40", "1.60"),
        ("road", "40.0", "55.0", "20.0", "1.38", "0.50"),
        ("car", "10.0", "25.0", "0.0", "2.50", "0.00"),
    )
    assert table.caption == (
        "study, camvid, deeplabv3plus small, pretrained none: share of each class in percent among the pixels asked "
        "for at all stages and seeds, among all labelled pixels of the training images, and the ratio of the two."
    )
    assert class_share_tables(QUERIES, {RANDOM: (500, 400, 100)}) == (table,)


def test_what_the_training_images_lack_has_no_ratio_and_no_pixels_have_no_shares() -> None:
    (table,) = class_share_tables(QUERIES[-1:], {RANDOM: (1, 1, 0)})
    assert table.rows == (("sky", "50.0", "80.0", "1.60"), ("road", "50.0", "20.0", "0.40"), ("car", "0.0", "0.0", "-"))
    (nothing,) = class_share_tables([query(POINT, 0, (0, 0, 0))], {MARGIN: (0, 0, 0)})
    assert nothing.rows == tuple((name, "-", "-", "-") for name in NAMES)
    assert class_share_tables([query(POINT, 0, None)], {MARGIN: (1, 1, 1)}) == ()
    settings = [replace(POINT, setting=f"dataset.images={number}") for number in (5, 9)]
    queries = [query(point, 0, (number, 1, 1)) for number, point in enumerate(settings)]
    first, second = class_share_tables(queries, {line_of(settings[1]): (1, 1, 2)})  # each with its own images
    assert (first.rows[0], second.rows[0]) == (("sky", "0.0"), ("sky", "25.0", "33.3", "1.33"))
    assert "pretrained none, dataset.images=9: share" in second.caption


# Whether strategies and seeds fill for the same pixels, against distances worked out by hand

Place = tuple[str, int, int]  # image, y, x
Asked = Mapping[tuple[str, int], Sequence[Place]]  # by strategy and seed, after the first stage

FIRST = [("a.png", 200, 200), ("b.png", 300, 300)]  # by chance, the same for all strategies


def labelled(places: Sequence[Place]) -> LabelledPixels:
    names, y, x = zip(*places, strict=True)
    return LabelledPixels.of(names=names, y=y, x=x, label=0, stage=0)


def fill(study: Study, asked: Asked, *more: str) -> Experiment:
    """Store a first stage and what is asked for after it; `more` goes into the grid."""
    strategies, seeds = dict.fromkeys(name for name, _ in asked), sorted({seed for _, seed in asked})
    varied = (f"acquire.strategy: [{', '.join(strategies)}]", f"seed: {seeds}", "budget: [20]", *more)
    spec = experiment(f"grid=[{{{', '.join(varied)}}}]")

    def mark(trial: Trial, stage: int) -> LabelledPixels:
        return labelled(asked[trial.acquire.strategy, trial.seed] if stage else FIRST)

    study.fill(spec, lambda trial: matrix(50) if (trial.acquire.strategy, trial.seed) in asked else None)
    study.ask(spec, lambda trial, stage: None, mark)
    return spec


def overlap_of(study: Study, spec: Experiment) -> Table | None:
    return overlap_table(study.store, study.chains(spec))


def overlap_rows(study: Study, asked: Asked) -> list[tuple[str, ...]]:
    """One, other, seeds, near (%), same (%) and n of each row."""
    found = overlap_of(study, fill(study, asked))
    assert found.header == ("model", "pretrained", "one", "other", "seeds", "near (%)", "same (%)", "n")
    return [row[2:] for row in found.rows]


HERE, NEAR, FAR = ("a.png", 40, 50), ("a.png", 42, 50), ("a.png", 90, 90)
NINETY_NINE = [f"{number:02d}.png" for number in range(99)]


@pytest.mark.parametrize(
    ("ours", "theirs", "near", "same"),
    [
        ([HERE], [("a.png", 43, 54)], "100.0", "0.00"),  # 5 pixels away
        ([HERE], [("a.png", 45, 51)], "0.0", "0.00"),  # the square root of 26
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
    assert overlap_rows(study, asked) == [("margin", "random", "the same", near, same, "1")]


def test_seeds_of_a_strategy_are_compared_too_of_which_three_are_enough(study: Study, tmp_path: Path) -> None:
    asked = {("margin", 0): [HERE], ("margin", 1): [NEAR], ("random", 0): [HERE], ("random", 1): [("b.png", 9, 9)]}
    assert overlap_rows(study, asked) == [
        ("margin", "random", "the same", "50.0", "50.00", "2"),
        ("margin", "margin", "different", "100.0", "0.00", "1"),
        ("random", "random", "different", "0.0", "0.00", "1"),
    ]
    four = {("margin", seed): [("a.png", 40, 50 if seed < 3 else 90)] for seed in range(4)}
    assert overlap_rows(Study(tmp_path / "four"), four) == [("margin", "margin", "different", "100.0", "100.00", "3")]


def test_the_first_pixels_alone_and_none_are_not_compared(study: Study) -> None:
    for budget in (10, 20):
        spec = experiment(f"grid=[{{acquire.strategy: [margin, random], seed: [0], budget: [{budget}]}}]")
        study.fill(spec, lambda trial: matrix(50))
        study.ask(spec, lambda trial, stage: None, lambda trial, stage: NO_PIXELS if stage else labelled(FIRST))
        assert overlap_of(study, spec) is None
    assert overlap_of(study, fill(study, {("margin", 0): [HERE]}, "train.batch_size: [1]")) is None  # one chain alone


def test_chains_whose_pixels_are_not_stored_are_left_out_and_settings_stay_apart(study: Study) -> None:
    spec = fill(study, {(name, seed): [HERE] for name in ("margin", "random", "entropy") for seed in (0, 1)})
    lost = {(trial.acquire.strategy, trial.seed): chain_path(spec, trial) for trial in spec.trials()}
    record = study.store.read_record(lost["margin", 0])
    shutil.rmtree(study.store.folder("pick", record["stages"][0]["pick"]))
    (study.store.path / lost["random", 1]).unlink()
    assert [(*row[2:5], row[-1]) for row in overlap_of(study, spec).rows] == [
        ("margin", "entropy", "the same", "1"),
        ("random", "entropy", "the same", "1"),
        ("entropy", "entropy", "different", "1"),
    ]
    asked = {("margin", 0): [HERE], ("random", 0): [HERE]}  # settings are not compared with each other
    found = overlap_of(study, fill(study, asked, "acquire.pool_fraction: [0.1, 0.2]"))
    assert [row[2] for row in found.rows] == [f"acquire.pool_fraction={fraction}" for fraction in (0.1, 0.2)]
