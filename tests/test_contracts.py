"""What is built in, through the contracts that external parts are held to."""

from pathlib import Path

import pytest

from pixelpick_ray.active.acquisition import STRATEGIES, needs_model
from pixelpick_ray.annotate.exchange import FORMATS
from pixelpick_ray.models.segmentation import MODELS
from pixelpick_ray.testing import DatasetContract, FormatContract, HeadContract, OracleContract, StrategyContract
from tests.data.test_datasets import REAL

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def chosen(request: pytest.FixtureRequest) -> None:
    """Give the contract the part of the parameter."""
    for field, value in getattr(request, "param", {}).items():
        setattr(request.instance, field, value)


def each(*parts: dict[str, object]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("chosen", parts, indirect=True, ids=lambda part: str(part["name"]))


@each(*({"name": name} for name in STRATEGIES if needs_model(name)))
class TestStrategies(StrategyContract):
    """Those that ask the network."""


@each(*({"name": name, "backbone": "test_resnet" if name == "deeplabv3plus" else "resnet18"} for name in MODELS))
class TestHeads(HeadContract):
    """Both."""


@each({"name": "ground_truth"}, {"name": "erring", "options": {"rate": 0.5}})
class TestOracles(OracleContract):
    """People are asked otherwise."""


@each({"name": "scenes"}, *({"name": name} for name in ("camvid",) if (REAL / name).is_dir()))
class TestDatasets(DatasetContract):
    """Generated, and real where they are present."""

    data_path = Path(REAL)


@each(*({"name": name} for name in FORMATS))
class TestFormats(FormatContract):
    """All."""
