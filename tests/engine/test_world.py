"""Ranks: slices, collectives, and batch norm over the global batch."""

from itertools import chain

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from pixelpick_ray.engine.world import World
from tests.support.ranks import ALONE, NormResult, Ranks, collectives, normalise_slice

pytestmark = pytest.mark.training


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 100])
def test_slices_cover_everything_once_in_order_and_differ_by_one_at_most(size: int, count: int) -> None:
    worlds = [World(rank, size, torch.device("cpu")) for rank in range(size)]
    parts = [list(range(count))[world.slice_of(count)] for world in worlds]
    assert list(chain.from_iterable(parts)) == list(range(count))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_a_world_of_one_needs_no_process_group() -> None:
    assert collectives(ALONE) == {
        "sum": [1, 10],
        "in_place": True,
        "gather": [{"rank": 0}],
        "broadcast": "from 0",
    }
    layer = nn.Sequential(nn.BatchNorm2d(3))
    assert ALONE.share_batch_norm(layer) is layer
    assert ALONE.distribute(layer) is layer


def test_two_ranks_sum_gather_and_broadcast(ranks: Ranks) -> None:
    first, second = ranks.run(collectives)
    assert first["sum"] == second["sum"] == [3, 30]
    assert first["in_place"]
    assert second["in_place"]
    assert first["gather"] == [{"rank": 0}, {"rank": 1}]
    assert second["gather"] == []
    assert first["broadcast"] == second["broadcast"] == "from 0"


def fresh_layer(kind: type[nn.BatchNorm2d], **options: object) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(5)
    layer = kind(6, **options).double()
    layer.weight.data = torch.randn(6, dtype=torch.float64, generator=generator)
    layer.bias.data = torch.randn(6, dtype=torch.float64, generator=generator)
    layer.running_mean = torch.randn(6, dtype=torch.float64, generator=generator)
    return layer


@pytest.mark.parametrize("sizes", [[3, 2], [1, 4], [5, 0], [0, 2]], ids=str)
@pytest.mark.parametrize(
    ("kind", "options"),
    [(nn.BatchNorm2d, {}), (nn.BatchNorm2d, {"eps": 1e-3, "momentum": 0.3}), (BatchNormAct2d, {"act_layer": nn.ReLU6})],
    ids=["torch", "torch-momentum", "timm-relu6"],
)
def test_batch_norm_over_slices_equals_batch_norm_over_the_whole_batch(
    ranks: Ranks, kind: type[nn.BatchNorm2d], options: dict[str, object], sizes: list[int]
) -> None:
    generator = torch.Generator().manual_seed(1)
    batch = 4 * torch.randn(sum(sizes), 6, 3, 5, dtype=torch.float64, generator=generator) + 2
    weight = torch.rand(batch.shape, dtype=torch.float64, generator=generator)
    whole = normalise_slice(ALONE, fresh_layer(kind, **options), batch, weight, [sum(sizes)])
    parts: list[NormResult] = ranks.run(normalise_slice, fresh_layer(kind, **options), batch, weight, sizes)

    def same(actual: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)

    same(torch.cat([part.output for part in parts]), whole.output)
    same(torch.cat([part.input_gradient for part in parts]), whole.input_gradient)
    same(parts[0].weight_gradient + parts[1].weight_gradient, whole.weight_gradient)
    same(parts[0].bias_gradient + parts[1].bias_gradient, whole.bias_gradient)
    same(torch.cat([part.in_eval for part in parts]), whole.in_eval)
    for part in parts:
        same(part.running_mean, whole.running_mean)
        same(part.running_var, whole.running_var)
        assert part.batches_tracked == whole.batches_tracked == 1


def test_a_shared_network_keeps_its_parameters_and_their_names() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sequential(BatchNormAct2d(6), nn.BatchNorm2d(6)), nn.BatchNorm2d(6))
    shared = World(0, 2, torch.device("cpu")).share_batch_norm(network)
    assert not [layer for layer in shared.modules() if type(layer) in (nn.BatchNorm2d, BatchNormAct2d)]
    before, after = fresh_state(), shared.state_dict()
    assert list(after) == list(before)


def fresh_state() -> dict[str, Tensor]:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Sequential(BatchNormAct2d(6), nn.BatchNorm2d(6)), nn.BatchNorm2d(6)
    ).state_dict()
