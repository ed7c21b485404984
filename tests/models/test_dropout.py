"""Dropout that can be switched on while scoring: masks come from each image's own generator."""

import pytest
import torch
from torch import Tensor, nn

from pixelpick_ray.models.dropout import Dropout, stochastic

pytestmark = pytest.mark.training


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def once(layer: nn.Module, features: Tensor, *seeds: int) -> Tensor:
    with stochastic(layer, generators(*seeds)):
        return layer(features)


FEATURES = torch.rand(3, 40, 8, 9, generator=torch.Generator().manual_seed(1)) + 1.0


@pytest.mark.parametrize("of", ["values", "channels"])
def test_an_image_is_dropped_the_same_in_any_batch(of: str) -> None:
    """Layers draw one after another from the generator of the image."""
    layer, second = Dropout(0.4, of=of).eval(), Dropout(0.4, of=of).eval()
    with stochastic(nn.ModuleList([layer, second]), generators(5, 6, 7)):
        together, then = layer(FEATURES), second(FEATURES)
    assert not torch.equal(together, then)
    for index, seed in enumerate((5, 6, 7)):
        assert torch.equal(once(layer, FEATURES[index : index + 1], seed)[0], together[index])
    assert not torch.equal(together[0] == 0, together[1] == 0)


@pytest.mark.parametrize("of", ["values", "channels"])
@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_the_rate_is_dropped_and_the_rest_makes_up_for_it(of: str, rate: float) -> None:
    features = torch.ones(1, 5000 if of == "channels" else 50, 8, 9)
    dropped = once(Dropout(rate, of=of).eval(), features, 3)
    assert (dropped == 0).float().mean() == pytest.approx(rate, abs=0.02)
    assert dropped.unique().tolist() == pytest.approx({0.0: [1.0], 0.2: [0.0, 1.25], 1.0: [0.0]}[rate])
    by_channel = (dropped == 0).float().mean(dim=(2, 3))
    whole = ((by_channel == 0) | (by_channel == 1)).all()
    assert bool(whole) == (of == "channels" or rate != 0.2)


def test_outside_it_is_torchs_dropout_while_training_and_nothing_else() -> None:
    for of, reference in (("values", nn.Dropout(0.3)), ("channels", nn.Dropout2d(0.3))):
        layer = Dropout(0.3, of=of)
        torch.manual_seed(0)
        mine = layer(FEATURES)
        torch.manual_seed(0)
        assert torch.equal(mine, reference(FEATURES))
        assert torch.equal(layer.eval()(FEATURES), FEATURES)
        with pytest.raises(RuntimeError, match="broken"), stochastic(layer, generators(1, 2, 3)):
            raise RuntimeError("broken")
        assert torch.equal(layer(FEATURES), FEATURES)  # off again
