"""Selection against brute force: the right pool, the right number, never an excluded pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pixelpick_ray.active.selection import (
    POOLS,
    candidate_masks,
    pool_size,
    random_priority,
)


def best(scores: list[float], allowed: list[int], count: int) -> list[int]:
    """The best of these by sorting, ties by index."""
    return sorted(allowed, key=lambda index: (-np.float32(scores[index]), index))[:count]


def split_mix(seed: int, count: int) -> list[int]:
    """The generator SplitMix64 step by step, its outputs as signed numbers."""
    outputs, state = [], seed
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        mixed = state
        for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> shift)) * multiplier % 2**64
        mixed ^= mixed >> 31
        outputs.append(mixed - 2**64 if mixed >= 2**63 else mixed)
    return outputs


def chosen_by_sorting(
    by: str, scores: list[float], candidates: list[bool], num_pixels: int, pool: int, seed: int
) -> list[int]:
    """The picks by their definition, in plain Python."""
    chance, allowed = split_mix(seed, len(scores)), list(np.flatnonzero(candidates))
    if by == "chance":
        return sorted(best(scores, sorted(allowed, key=lambda index: -chance[index])[:pool], num_pixels))
    return sorted(sorted(best(scores, allowed, pool), key=lambda index: -chance[index])[:num_pixels])


@st.composite
def images(draw: st.DrawFn) -> tuple[list[float], list[bool], int, int]:
    """Scores with many ties, candidates, pixels wanted, and a pool."""
    size = draw(st.integers(1, 40))
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5]) | st.floats(-1e6, 1e6, width=32)
    scores = draw(st.lists(values, min_size=size, max_size=size))
    candidates = draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))
    num_pixels = draw(st.integers(1, sum(candidates)))
    return scores, candidates, num_pixels, draw(st.integers(num_pixels, 50))


@pytest.mark.parametrize("by", POOLS)
@given(image=images(), seed=st.integers(0, 2**63 - 1))
def test_picks_are_those_of_sorting(by: str, image: tuple[list[float], list[bool], int, int], seed: int) -> None:
    scores, candidates, num_pixels, pool = image
    rows = torch.tensor([scores], dtype=torch.float32), torch.tensor([candidates]), torch.tensor([seed])
    (chosen,) = POOLS[by](*rows, num_pixels, pool).tolist()
    assert chosen == chosen_by_sorting(by, scores, candidates, num_pixels, pool, seed)


def some_images(count: int, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores with ties, candidates and seeds; in the first image there are eight candidates."""
    rng = np.random.default_rng(7)
    scores = torch.from_numpy(rng.integers(-30, 30, (count, pixels)).astype(np.float32) / 8)
    candidates = torch.from_numpy(rng.random((count, pixels)) < 0.8)
    candidates[0] = torch.arange(pixels) % (pixels // 8) == 3
    return scores, candidates, torch.from_numpy(rng.integers(0, 2**63, count))


@pytest.mark.parametrize("by", POOLS)
def test_the_host_reads_nothing_back_from_the_device(by: str) -> None:
    """Tensors on the meta device have no values, so whoever asks for one fails."""
    labels = torch.zeros(3, 20, 20, dtype=torch.uint8, device="meta")
    candidates = candidate_masks(labels, 255, torch.zeros(7, dtype=torch.int64, device="meta"))
    scores, _, seeds = (part.to("meta") for part in some_images(3, 400))
    assert POOLS[by](scores, candidates, seeds, 8, 100).shape == (3, 8)


@pytest.mark.gpu
@pytest.mark.parametrize("by", POOLS)
def test_a_gpu_picks_what_a_cpu_picks_and_the_host_never_waits(by: str) -> None:
    pixels = 360 * 480
    images = some_images(16, pixels)
    expected = POOLS[by](*images, 8, pixels // 20)
    on_gpu = [part.cuda() for part in images]
    POOLS[by](*on_gpu, 8, pixels // 20)  # what is loaded at the first call may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = POOLS[by](*on_gpu, 8, pixels // 20)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), expected)
    every = torch.arange(pixels)
    on_cpu = random_priority(images[2][:, None], every)
    assert torch.equal(random_priority(on_gpu[2][:, None], every.cuda()).cpu(), on_cpu)


def test_priorities_are_the_published_generator() -> None:
    """Outputs for the seed 1234567 that implementations of SplitMix64 are commonly checked with."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    found = random_priority(torch.tensor(1234567), torch.arange(5)).tolist()
    assert [value % 2**64 for value in found] == known


def test_candidates_are_neither_void_nor_taken() -> None:
    labels = torch.tensor([[[0, 255, 2], [255, 4, 5]], [[255, 1, 1], [0, 0, 255]]], dtype=torch.uint8)
    before = labels.clone()
    masks = candidate_masks(labels, 255, torch.tensor([2, 4, 7]))
    assert masks.tolist() == [[True, False, False, False, False, True], [False, False, True, True, True, False]]
    untaken = candidate_masks(labels, 255, torch.zeros(0, dtype=torch.int64))
    assert torch.equal(untaken, (labels != 255).flatten(1))
    assert torch.equal(labels, before)


def test_pools_have_the_published_sizes() -> None:
    expected = {
        (360, 480, 0.05, 10): 8640,
        (256, 512, 0.05, 10): 6553,
        (10, 10, 0.05, 10): 10,
        (360, 480, 0.0, 10): 10,
        (4, 5, 1.0, 2): 20,
    }
    assert {case: pool_size(*case) for case in expected} == expected
