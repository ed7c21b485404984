"""The sparse decoder: the dense one read at points, but for the statistics that batch norm trains with."""

from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from pixelpick_ray.models.dropout import Dropout
from pixelpick_ray.models.segmentation import conv_norm_act, logits_at, upsample
from pixelpick_ray.models.sparse import decode_at, spread_points
from tests.support.networks import model_of, randomise_norms, spec

pytestmark = pytest.mark.training

SIZE = 64, 96


class Head(NamedTuple):
    """A narrow decoder in float64, norms as after a training, and what it reads."""

    high: Tensor
    low: Tensor
    decoder: nn.Sequential
    classifier: nn.Module

    def dense(self, points: Tensor, frame: tuple[int, int]) -> Tensor:
        """Logits of the whole map, read at points."""
        high = upsample(self.high, (self.low.shape[2], self.low.shape[3]))
        return logits_at(self.classifier(self.decoder(torch.cat([high, self.low], dim=1))), points, frame)

    def sparse(self, points: Tensor, frame: tuple[int, int]) -> Tensor:
        """Logits at points."""
        return decode_at(points, frame, **self._asdict())

    def gradients(self, logits: Tensor) -> list[Tensor]:
        """Of a weighted sum of logits, for the inputs and all parameters."""
        weight = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
        wanted = [self.high, self.low, *self.decoder.parameters(), *self.classifier.parameters()]
        return list(torch.autograd.grad((logits * weight).sum(), wanted))


def head(low: tuple[int, int] = (16, 24), high: tuple[int, int] = (4, 6), *, count: int = 2) -> Head:
    """For `count` images, with maps of these sizes."""
    torch.manual_seed(3)
    decoder = nn.Sequential(conv_norm_act(14, 9, 3), Dropout(0.0), conv_norm_act(9, 7, 3), Dropout(0.0))
    maps = [torch.randn(count, c, *size, dtype=torch.float64) for c, size in ((8, high), (6, low))]
    classifier = nn.Conv2d(7, 5, 1).double()
    return Head(*(value.requires_grad_() for value in maps), randomise_norms(decoder).double(), classifier)


def points_of(count: int, frame: tuple[int, int]) -> Tensor:
    """Corners, borders, neighbours whose patches overlap, the same pixel twice, and any places."""
    bottom, right = frame[0] - 1, frame[1] - 1
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    borders = [(0, right // 2), (bottom // 2, 0), (bottom, right // 3), (bottom // 3, right)]
    near = [(bottom // 2, right // 2), (bottom // 2, right // 2), (bottom // 2 + 1, right // 2), (1, 1), (2, 1)]
    fixed = torch.tensor(corners + borders + near, dtype=torch.float64).expand(count, -1, -1)
    anywhere = torch.rand(count, 20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return torch.cat([fixed, anywhere * torch.tensor([bottom, right])], dim=1)


def assert_same(ours: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize(
    ("low", "high", "frame"),
    [
        ((8, 11), (2, 3), (33, 47)),  # maps that do not end where the image does
        ((23, 30), (12, 15), (90, 120)),  # output stride 8
        ((23, 30), (3, 4), (90, 120)),  # output stride 32
        ((4, 6), (4, 6), (16, 24)),
        ((4, 2), (1, 1), (16, 8)),  # maps smaller than a patch
        ((3, 1), (1, 1), (12, 1)),
    ],
    ids=str,
)
def test_logits_and_gradients_are_the_dense_ones(
    low: tuple[int, int], high: tuple[int, int], frame: tuple[int, int]
) -> None:
    made, points = head(low, high), points_of(2, frame)
    made.decoder.eval()
    dense, sparse = made.dense(points, frame), made.sparse(points, frame)
    assert sparse.shape == (2, points.shape[1], 5)
    torch.testing.assert_close(sparse, dense, rtol=0, atol=1e-10)
    assert_same(made.gradients(sparse), made.gradients(dense))


@pytest.mark.parametrize("backbone", ["mobilenetv2_035", "resnet18"])
def test_a_network_gives_its_logits_at_points(backbone: str) -> None:
    """And has dropout in training."""
    size = 33, 47
    model = randomise_norms(model_of(spec(backbone, dropout=(0.0, 0.5, 0.0)))).double().eval()
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    points = points_of(2, size)
    with torch.no_grad():
        dense = logits_at(model(images), points, size)
        torch.testing.assert_close(model(images, points), dense, rtol=0, atol=1e-10)
        model.train()
        assert not torch.equal(model(images, points), model(images, points))


def windows(points: Tensor, maps: Tensor, reach: int) -> Tensor:
    """(K, C) values at the positions around each point, `reach` beyond its cell, moved into the maps as a whole."""
    values = []
    for features, of_image in zip(maps, points, strict=True):
        for point in of_image:
            cut = features
            for axis, length in enumerate(maps.shape[2:]):
                first = min(int(point[axis] * (length - 1) / (SIZE[axis] - 1)), length - 2) - reach
                cut = cut.narrow(1 + axis, min(max(first, 0), length - 2 - 2 * reach), 2 + 2 * reach)
            values.append(cut.flatten(1).T)
    return torch.cat(values)


def normalised(maps: Tensor, norm: nn.Module, mean: Tensor, variance: Tensor) -> Tensor:
    scale, middle = norm.weight * torch.rsqrt(variance + norm.eps), mean[:, None, None]
    return F.relu((maps - middle) * scale[:, None, None] + norm.bias[:, None, None])


def test_training_normalises_by_the_patches_within_the_borders() -> None:
    made, points = head(), points_of(2, SIZE)
    made.decoder.train()
    norms = made.decoder[0][1], made.decoder[2][1]
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    maps, found = torch.cat([upsample(made.high, (16, 24)), made.low], dim=1), []
    for block, reach in ((made.decoder[0], 1), (made.decoder[2], 0)):
        maps = block[0](maps)
        values = windows(points, maps, reach)
        found.append((values.mean(dim=0), values.var(dim=0)))
        maps = normalised(maps, block[1], values.mean(dim=0), values.var(dim=0, unbiased=False))
    expected, logits = logits_at(made.classifier(maps), points, SIZE), made.sparse(points, SIZE)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    assert_same(made.gradients(logits), made.gradients(expected))
    for norm, old, new in zip(norms, before, found, strict=True):
        torch.testing.assert_close(norm.running_mean, 0.9 * old[0] + 0.1 * new[0])
        torch.testing.assert_close(norm.running_var, 0.9 * old[1] + 0.1 * new[1])


def test_every_parameter_gets_a_gradient() -> None:
    """DDP needs every parameter in every step, of a rank without images too."""
    model = model_of(spec())
    model(torch.randn(2, 3, 32, 48), points_of(2, (32, 48)).float()).square().sum().backward()
    assert all(value.grad is not None for value in model.parameters())
    nobody = head(count=0)
    nobody.decoder.eval()  # torch's own batch norm refuses an empty batch in training; the one over all ranks does not
    logits = nobody.sparse(torch.zeros(0, 7, 2), SIZE)
    assert logits.shape == (0, 7, 5)
    assert [float(gradient.abs().sum()) for gradient in nobody.gradients(logits)] == [0.0] * 10


def test_bfloat16_changes_the_logits_by_its_rounding_only() -> None:
    made, points = head(), points_of(2, SIZE)
    made.decoder.eval()
    exact = made.sparse(points, SIZE)
    half = Head(made.high.float(), made.low.float(), made.decoder.float(), made.classifier.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dense, sparse = half.dense(points.float(), SIZE), half.sparse(points.float(), SIZE)
    assert sparse.dtype == torch.float32
    assert 0 < (sparse - exact).abs().mean() < 1.5 * (dense - exact).abs().mean()


def test_no_value_decides_what_is_computed() -> None:
    """Reading a value would make the host wait for a GPU, and end the recording of its work; fake tensors have none."""
    made = head()
    with FakeTensorMode(allow_non_fake_inputs=True):
        points = torch.zeros(2, 9, 2)
        assert made.sparse(points, SIZE).shape == (2, 9, 5)
        with pytest.raises(DataDependentOutputException):
            bool(points.any())


def test_points_are_spread_evenly_whatever_their_number() -> None:
    many = spread_points(200, (33, 47))
    for count in (0, 1, 4, 16, 100):
        points = spread_points(count, (33, 47))
        assert points.tolist() == many[:count].tolist()  # the first are always the same
        halves = np.floor(2 * points / [32, 46])
        assert set(halves.flatten()) <= {0.0, 1.0}
        for corner in product((0, 1), (0, 1)):
            assert abs((halves == corner).all(axis=1).sum() - count / 4) <= 1.5
