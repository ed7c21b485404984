"""Cells of interpolated logits, against interpolating everything."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixelpick_ray.active.acquisition import STRATEGIES
from pixelpick_ray.engine.upsampled import argmax_of_upsampled, highest_of_upsampled
from pixelpick_ray.models.segmentation import upsample

GRIDS = [((5, 7), (33, 50)), ((2, 2), (9, 8)), ((12, 16), (96, 128)), ((20, 30), (10, 12)), ((6, 6), (6, 6))]


def logits_of(grid: tuple[int, int], *, seed: int = 0, images: int = 2, classes: int = 5) -> Tensor:
    """Smooth logits, as networks give them: regions, and cells on their borders."""
    noise = torch.randn(images, classes, 3, 3, generator=torch.Generator().manual_seed(seed)) * 8
    return F.interpolate(noise, grid, mode="bicubic", align_corners=True).contiguous()


@pytest.mark.parametrize(("grid", "size"), GRIDS)
def test_the_arg_max_is_that_of_all_logits(grid: tuple[int, int], size: tuple[int, int]) -> None:
    logits = logits_of(grid)
    full, found = upsample(logits, size), argmax_of_upsampled(logits, size)
    best = full.max(dim=1)
    chosen = full.gather(1, found[:, None])[:, 0]
    assert found.shape == (2, *size)
    torch.testing.assert_close(chosen, best.values, rtol=0, atol=1e-4)  # another class only where two are as large
    assert (found == best.indices).float().mean() > 0.999


BOUNDED = [name for name, one in STRATEGIES.items() if one.bound is not None]


def scored(name: str, logits: Tensor, size: tuple[int, int], candidates: Tensor, count: int) -> Tensor:
    strategy = STRATEGIES[name]
    return highest_of_upsampled(logits, size, candidates, count, strategy.score, strategy.bound)


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize(("grid", "size"), GRIDS)
def test_the_highest_scores_are_among_those_computed(name: str, grid: tuple[int, int], size: tuple[int, int]) -> None:
    logits, pixels = logits_of(grid, seed=3), size[0] * size[1]
    candidates = torch.rand(pixels, generator=torch.Generator().manual_seed(1)) < 0.8
    full = STRATEGIES[name].score(upsample(logits, size))[0].flatten().masked_fill(~candidates, -torch.inf)
    for count in (1, max(1, pixels // 20), int(candidates.sum())):
        found = scored(name, logits[0], size, candidates, count).masked_fill(~candidates, -torch.inf)
        wanted = full.topk(count).values
        torch.testing.assert_close(found.topk(count).values, wanted, rtol=0, atol=1e-4)


def test_most_pixels_of_a_confident_prediction_are_not_scored() -> None:
    logits = torch.zeros(1, 3, 20, 20)
    logits[:, 0, :, :10] = logits[:, 1, :, 10:] = 20.0
    every = torch.ones(160 * 160, dtype=torch.bool)
    found = scored("margin", logits[0], (160, 160), every, 100)
    assert found.isfinite().float().mean() < 0.2


@given(st.lists(st.floats(-12, 12), min_size=2, max_size=9))
@settings(max_examples=200, deadline=None)
@pytest.mark.parametrize("name", BOUNDED)
def test_no_score_is_above_its_bound(name: str, values: list[float]) -> None:
    """Of the probability of the likeliest class itself, and so of every smaller one."""
    logits, strategy = torch.tensor(values), STRATEGIES[name]
    least = logits.softmax(dim=0).max()
    score = strategy.score(logits[None, :, None, None])[0, 0, 0]
    for smaller in (least, least * 0.7, least * 0.0):
        assert strategy.bound(smaller, len(values)) >= score - 1e-4
