"""Selection against brute force: the right pool, the right number, never an excluded pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelpick_ray.active.selection import POOLS, candidate_mask, choose_initial, pool_size
from pixelpick_ray.errors import DataError


def choose(
    scores: list[float],
    candidates: list[bool],
    num_pixels: int,
    pool: int,
    rng: np.random.Generator | None = None,
    by: str = "score",
) -> list[int]:
    chosen = POOLS[by](
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(candidates, dtype=torch.bool),
        num_pixels,
        pool=pool,
        image="a.png",
        rng=rng or np.random.default_rng(0),
    )
    return [int(index) for index in chosen]


def best(scores: list[float], candidates: list[bool], count: int) -> list[int]:
    """The best candidates by sorting, ties by index."""
    allowed = [index for index, allow in enumerate(candidates) if allow]
    return sorted(sorted(allowed, key=lambda index: (-np.float32(scores[index]), index))[:count])


@st.composite
def images(draw: st.DrawFn) -> tuple[list[float], list[bool], int, int]:
    """Scores with many ties, candidates, pixels wanted, and a pool."""
    size = draw(st.integers(1, 40))
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5]) | st.floats(-1e6, 1e6, width=32)
    scores = draw(st.lists(values, min_size=size, max_size=size))
    candidates = draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))
    num_pixels = draw(st.integers(1, sum(candidates)))
    return scores, candidates, num_pixels, draw(st.integers(num_pixels, 50))


@given(image=images(), seed=st.integers(0, 5))
def test_picks_are_distinct_candidates_of_the_pool(image: tuple[list[float], list[bool], int, int], seed: int) -> None:
    scores, candidates, num_pixels, pool = image
    chosen = choose(scores, candidates, num_pixels, pool, np.random.default_rng(seed))
    assert len(chosen) == len(set(chosen)) == num_pixels
    assert set(chosen) <= set(best(scores, candidates, pool))
    assert all(candidates[index] for index in chosen)


@given(image=images())
def test_a_pool_of_the_picks_alone_gives_the_best(image: tuple[list[float], list[bool], int, int]) -> None:
    scores, candidates, num_pixels, _ = image
    assert choose(scores, candidates, num_pixels, pool=num_pixels) == best(scores, candidates, num_pixels)


@given(image=images(), seed=st.integers(0, 5))
def test_of_a_pool_by_chance_the_best_are_picked(image: tuple[list[float], list[bool], int, int], seed: int) -> None:
    """Against sorting: the picks are the best of some pool of candidates, and of all of them when the pool is all."""
    scores, candidates, num_pixels, pool = image
    chosen = choose(scores, candidates, num_pixels, pool, np.random.default_rng(seed), by="chance")
    assert len(chosen) == len(set(chosen)) == num_pixels
    assert all(candidates[index] for index in chosen)
    everything = sum(candidates)
    assert choose(scores, candidates, num_pixels, everything, by="chance") == best(scores, candidates, num_pixels)
    better = [index for index in best(scores, candidates, everything) if scores[index] > min(scores[i] for i in chosen)]
    left_out = set(better) - set(chosen)
    assert len(left_out) <= everything - min(pool, everything)  # what is better and was not picked was not in the pool


def test_a_pool_by_chance_is_uniform() -> None:
    """The best two of three of six candidates: of the 20 pools, 10 hold the best, 10 the second, 9 show the third..."""
    scores, candidates = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 9.0], [True] * 6 + [False]
    rng = np.random.default_rng(0)
    counts = np.zeros(7)
    for _ in range(4000):
        counts[choose(scores, candidates, 2, pool=3, rng=rng, by="chance")] += 1
    expected = [10 / 20, 10 / 20, 9 / 20, 7 / 20, 4 / 20, 0.0, 0.0]
    assert np.abs(counts / 4000 - expected).max() < 0.03


def test_every_pixel_of_the_pool_and_no_other_is_drawn_equally_often() -> None:
    scores = [0.1, 0.9, 0.5, 0.9, 0.5, 0.5, 0.0, 1.0]
    candidates = [True, True, True, True, True, True, True, False]
    rng = np.random.default_rng(0)
    counts = np.zeros(8, dtype=int)
    for _ in range(2000):
        counts[choose(scores, candidates, 2, pool=4, rng=rng)] += 1
    assert set(np.flatnonzero(counts)) == {1, 2, 3, 4}  # the tie of 2, 4 and 5 is cut by index
    assert np.abs(counts[[1, 2, 3, 4]] - 1000).max() < 120


def test_the_same_stream_gives_the_same_picks() -> None:
    scores = np.random.default_rng(3).random(500).tolist()
    first, again, other = (choose(scores, [True] * 500, 10, 100, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_excluded_pixels_are_never_picked_even_as_the_only_good_ones() -> None:
    scores, candidates = [9.0] * 5 + [-9.0] * 3, [False] * 5 + [True] * 3
    assert choose(scores, candidates, 3, pool=8) == [5, 6, 7]


@pytest.mark.parametrize("wanted", [3, 100])
def test_too_few_candidates_are_told_with_the_image(wanted: int) -> None:
    told = rf"image a\.png: {wanted} pixels wanted, only 2 are neither void nor already labelled; lower the budget"
    with pytest.raises(DataError, match=told):
        choose([0.0, 1.0, 2.0], [True, False, True], wanted, pool=wanted)
    with pytest.raises(DataError, match=told):
        choose_initial(np.array([True, False, True]), wanted, image="a.png", rng=np.random.default_rng(0))


@given(candidates=st.lists(st.booleans(), min_size=1, max_size=40).filter(any), data=st.data(), seed=st.integers(0, 5))
def test_first_pixels_are_distinct_candidates(candidates: list[bool], data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(1, sum(candidates)))
    chosen = choose_initial(np.asarray(candidates), count, image="a", rng=np.random.default_rng(seed))
    assert len(set(chosen.tolist())) == count
    assert all(candidates[index] for index in chosen)


def test_first_pixels_are_uniform() -> None:
    candidates, rng = np.array([True, False, True, True, True]), np.random.default_rng(0)
    counts = np.zeros(5, dtype=int)
    for _ in range(2000):
        counts[choose_initial(candidates, 2, image="a", rng=rng)] += 1
    assert counts[1] == 0
    assert np.abs(counts[[0, 2, 3, 4]] - 1000).max() < 120


def test_candidates_are_neither_void_nor_taken() -> None:
    label = np.array([[0, 255, 2], [255, 4, 5]], dtype=np.uint8)
    mask = candidate_mask(label, 255, np.array([2, 4]))
    assert mask.tolist() == [True, False, False, False, False, True]
    assert candidate_mask(label, 255, np.zeros(0, dtype=np.int64)).tolist() == [True, False, True, False, True, True]
    assert label.tolist() == [[0, 255, 2], [255, 4, 5]]


@pytest.mark.parametrize(
    ("height", "width", "fraction", "num_pixels", "pool"),
    [
        (360, 480, 0.05, 10, 8640),
        (256, 512, 0.05, 10, 6553),
        (10, 10, 0.05, 10, 10),
        (360, 480, 0.0, 10, 10),
        (4, 5, 1.0, 2, 20),
    ],
)
def test_pools_have_the_published_sizes(height: int, width: int, fraction: float, num_pixels: int, pool: int) -> None:
    assert pool_size(height, width, fraction, num_pixels) == pool
