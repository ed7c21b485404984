"""Ranks: slices, collectives, and batch norm over the global batch."""

from functools import partial
from itertools import chain, product

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from pixelpick_ray.engine.world import World, interface_to
from tests.support.ranks import ALONE, Ranks, collectives, normalise_slice

pytestmark = pytest.mark.training


def test_slices_cover_everything_once_in_order_and_differ_by_one_at_most() -> None:
    for size, count in product((1, 2, 3, 8), (0, 1, 2, 7, 8, 100)):
        parts = [list(range(count))[World(rank, size, ALONE.device).slice_of(count)] for rank in range(size)]
        assert list(chain.from_iterable(parts)) == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_ranks_sum_gather_and_broadcast(ranks: Ranks) -> None:
    """A world of one without a process group."""
    both = {"in_place": True, "broadcast": "from 0"}
    assert collectives(ALONE) == {"sum": [1, 10], "gather": [{"rank": 0}], **both}
    first, second = ranks.run(collectives)
    assert first == {"sum": [3, 30], "gather": [{"rank": 0}, {"rank": 1}], **both}
    assert second == {"sum": [3, 30], "gather": [], **both}
    layer = nn.Sequential(nn.BatchNorm2d(3))
    assert ALONE.share_batch_norm(layer) is layer
    assert ALONE.distribute(layer) is layer


def test_the_interface_is_that_of_the_route_and_not_that_of_a_name() -> None:
    loopback = interface_to("127.0.0.1")
    assert loopback.startswith("lo")
    assert interface_to("127.0.1.1") == loopback  # which has another address
    assert interface_to("no-such-host.invalid") is None


def fresh_layer(kind: type[nn.BatchNorm2d], **options: object) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(5)
    layer = kind(6, **options).double()
    for name in ("weight", "bias", "running_mean"):
        getattr(layer, name).data = torch.randn(6, dtype=torch.float64, generator=generator)
    return layer


@pytest.mark.parametrize("sizes", [[3, 2], [1, 4], [5, 0], [0, 2]], ids=str)
@pytest.mark.parametrize(
    ("kind", "options"),
    [(nn.BatchNorm2d, {"eps": 1e-3, "momentum": 0.3}), (BatchNormAct2d, {"act_layer": nn.ReLU6})],
    ids=["torch", "timm"],
)
def test_batch_norm_over_slices_equals_batch_norm_over_the_whole_batch(
    ranks: Ranks, kind: type[nn.BatchNorm2d], options: dict[str, object], sizes: list[int]
) -> None:
    generator = torch.Generator().manual_seed(1)
    batch = 4 * torch.randn(sum(sizes), 6, 3, 5, dtype=torch.float64, generator=generator) + 2
    weight = torch.rand(batch.shape, dtype=torch.float64, generator=generator)
    whole = normalise_slice(ALONE, fresh_layer(kind, **options), batch, weight, [sum(sizes)])
    parts = ranks.run(normalise_slice, fresh_layer(kind, **options), batch, weight, sizes)
    same = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    for name in ("output", "input_gradient", "in_eval"):
        same(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    for name in ("weight_gradient", "bias_gradient"):
        same(getattr(parts[0], name) + getattr(parts[1], name), getattr(whole, name))
    for part in parts:
        same(part.running_mean, whole.running_mean)
        same(part.running_var, whole.running_var)
        assert part.num_batches_tracked == whole.num_batches_tracked == 1


def test_a_shared_network_keeps_its_parameters_and_their_names() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sequential(BatchNormAct2d(6), nn.BatchNorm2d(6)), nn.BatchNorm2d(6))
    before = list(network.state_dict())
    shared = World(0, 2, torch.device("cpu")).share_batch_norm(network)
    assert not [layer for layer in shared.modules() if type(layer) in (nn.BatchNorm2d, BatchNormAct2d)]
    assert list(shared.state_dict()) == before
