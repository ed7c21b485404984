"""Classes among the pixels asked for, against shares worked out by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pixelpick_ray.report.cells import Line, line_of
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.points import Point
from pixelpick_ray.report.queries import StageQuery, class_share_tables

NAMES = ("sky", "road", "car")
POINT = Point("study", "camvid", "deeplabv3plus", "small", "none", "margin", "", 0, 10)
MARGIN, RANDOM = line_of(POINT), line_of(replace(POINT, strategy="random"))


def query(point: Point, stage: int, counts: Sequence[int] | None) -> StageQuery:
    return StageQuery(point, stage, "key", NAMES, None if counts is None else {"class_counts": list(counts)})


# 10 + 10 pixels of seed 0 and 20 of seed 1: 8, 22 and 10 of the classes; the other strategy asked for none of a class.
QUERIES = (
    query(POINT, 0, (1, 9, 0)),
    query(POINT, 1, (2, 3, 5)),
    query(replace(POINT, seed=1), 0, (5, 10, 5)),
    query(replace(POINT, seed=1), 1, None),
    query(replace(POINT, strategy="random"), 0, (8, 2, 0)),
)


def only(queries: Sequence[StageQuery], training: Mapping[Line, Sequence[int]]) -> Table:
    (table,) = class_share_tables(queries, training)
    return table


def test_shares_are_of_all_stages_and_seeds() -> None:
    table = only(QUERIES, {})
    assert table.header == ("class", "margin", "random")
    assert table.alignment == "lrr"
    assert table.rows == (("sky", "20.0", "80.0"), ("road", "55.0", "20.0"), ("car", "25.0", "0.0"))
    assert table.caption == (
        "study, camvid, deeplabv3plus small, pretrained none: share of each class in percent among the pixels asked "
        "for at all stages and seeds."
    )


def test_beside_them_stand_the_shares_in_the_training_images() -> None:
    table = only(QUERIES, {MARGIN: (500, 400, 100), RANDOM: (500, 400, 100)})
    assert table.header == ("class", "training images", "margin", "random", "margin, times", "random, times")
    assert table.alignment == "lrrrrr"
    # 0.2 / 0.5, 0.55 / 0.4 and 0.25 / 0.1.
    assert table.rows == (
        ("sky", "50.0", "20.0", "80.0", "0.40", "1.60"),
        ("road", "40.0", "55.0", "20.0", "1.38", "0.50"),
        ("car", "10.0", "25.0", "0.0", "2.50", "0.00"),
    )
    assert table.caption.endswith(
        "stages and seeds, among all labelled pixels of the training images, and how many times as many."
    )
    assert only(QUERIES, {RANDOM: (500, 400, 100)}) == only(QUERIES, {MARGIN: (500, 400, 100)})


def test_what_the_training_images_lack_has_no_ratio_and_no_pixels_have_no_shares() -> None:
    table = only(QUERIES[-1:], {RANDOM: (1, 1, 0)})
    assert table.rows == (("sky", "50.0", "80.0", "1.60"), ("road", "50.0", "20.0", "0.40"), ("car", "0.0", "0.0", "-"))
    nothing = only([query(POINT, 0, (0, 0, 0))], {MARGIN: (0, 0, 0)})
    assert nothing.rows == tuple((name, "-", "-", "-") for name in NAMES)
    assert class_share_tables([query(POINT, 0, None)], {MARGIN: (1, 1, 1)}) == ()


def test_every_setting_has_a_table_with_its_own_training_images() -> None:
    settings = [replace(POINT, setting=f"dataset.images={number}") for number in (5, 9)]
    queries = [query(point, 0, (number, 1, 1)) for number, point in enumerate(settings)]
    first, second = class_share_tables(queries, {line_of(settings[1]): (1, 1, 2)})
    assert first.rows == (("sky", "0.0"), ("road", "50.0"), ("car", "50.0"))
    rest = (("25.0", "33.3", "1.33"), ("25.0", "33.3", "1.33"), ("50.0", "33.3", "0.67"))
    assert second.rows == tuple((name, *texts) for name, texts in zip(NAMES, rest, strict=True))
    for table, number in ((first, 5), (second, 9)):
        begin = f"study, camvid, deeplabv3plus small, pretrained none, dataset.images={number}: share of"
        assert table.caption.startswith(begin)
