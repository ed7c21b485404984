"""Published numbers: `published/pixelpick.csv`, to compare ours with, its `protocols.yaml`, and `others.csv`."""

import csv
import json
import math
from functools import cache
from importlib import resources
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.config.spec import Count
from pixelpick_ray.config.trial import AcquireSpec, Budget, DatasetSpec, EvaluateSpec, SizeSpec, TrainSpec, Trial
from pixelpick_ray.config.yaml_text import read_yaml
from pixelpick_ray.errors import DataError

Percent = Annotated[float, Field(ge=0.0, le=100.0)]
Text = Annotated[str, Field(min_length=1)]


def _absent(text: str) -> str | None:
    return text or None


class _Line(BaseModel):
    """A line of a file; unknown and missing fields are rejected, numbers are parsed from text."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Protocol(_Line):
    """Protocol of published numbers; `native_size` (height, width) in pixels is None if image sizes differ.

    `dataset.images` is the number of images in the training split.
    """

    native_size: tuple[Count, Count] | None = None
    dataset: DatasetSpec
    model: ModelSpec
    train: TrainSpec
    acquire: AcquireSpec
    evaluate: EvaluateSpec

    def trial(self, budget: Budget) -> Trial:
        """Return the published trial of a budget."""
        return Trial(
            dataset=self.dataset, model=self.model, train=self.train, acquire=self.acquire, seed=0, budget=budget
        )


class PublishedCell(_Line):
    """A number from the tables of PixelPick: mean and population standard deviation over `n` runs.

    `rule` says which epoch it is from and what the deviation is; `rule_source` says how that is known.
    """

    title: Text
    address: Text
    source: Text
    dataset: Text
    architecture: Text
    backbone: Text
    strategy: str
    budget: Budget
    share_percent: Percent
    miou_percent: Percent
    std_percent: Percent
    n: Annotated[int, Field(ge=2)]
    rule: Text
    rule_source: Text

    @model_validator(mode="after")
    def _full_supervision_picks_nothing(self) -> Self:
        if (self.budget == "full") != (self.strategy == ""):
            raise ValueError(
                f"budget {self.budget} does not go with strategy {self.strategy!r}; full supervision has no "
                "strategy, every other budget needs one"
            )
        return self

    @property
    def key(self) -> tuple[str, str, str, str, Budget]:
        """What a cell of ours must share to have this one as its counterpart."""
        return self.dataset, self.architecture, self.backbone, self.strategy, self.budget

    @property
    def protocol(self) -> Protocol:
        """The protocol it was obtained with."""
        return _protocols()[self.dataset, self.architecture, self.backbone]

    @property
    def sample_std_percent(self) -> float:
        """The sample standard deviation (n - 1), from the published population one (n)."""
        return self.std_percent * math.sqrt(self.n / (self.n - 1))


class OtherResult(_Line):
    """A number from another paper, and why it is not comparable; deviation and number of runs are None if not given."""

    work: Text
    source: Text
    address: Text
    dataset: Text
    split: Text
    backbone: Text
    asked: Text
    miou_percent: Percent
    std_percent: Annotated[Percent | None, BeforeValidator(_absent)]
    n: Annotated[Count | None, BeforeValidator(_absent)]
    caveat: Text


@cache
def published_cells() -> dict[tuple[str, str, str, str, Budget], PublishedCell]:
    """Read the cells of PixelPick's tables by `PublishedCell.key`. Raises DataError for a damaged file."""
    name = "pixelpick.csv"
    cells = _read(name, _packaged(name), PublishedCell)
    by_key = {cell.key: cell for cell in cells}
    if len(by_key) != len(cells):
        raise DataError(f"{name}: two lines describe the same cell; keep one")
    return by_key


@cache
def _protocols() -> dict[tuple[str, str, str], Protocol]:
    """Protocols of the published numbers, by data set, architecture and backbone."""
    trees = read_yaml(_packaged("protocols.yaml"), "protocols.yaml")
    found = [Protocol.model_validate_json(json.dumps(tree)) for tree in trees]
    return {(one.dataset.name, one.model.architecture, one.model.backbone): one for one in found}


def published_size(dataset: str) -> SizeSpec | None:
    """Return the size at which published networks are evaluated on a data set, unless it is the native one."""
    for protocol in _protocols().values():
        size = next(iter(protocol.evaluate.splits.values())).size_spec()
        if protocol.dataset.name == dataset and size.size not in (None, protocol.native_size):
            return size
    return None


@cache
def other_results() -> tuple[OtherResult, ...]:
    """Read the numbers of other papers. Raises DataError for a damaged file."""
    return tuple(_read("others.csv", _packaged("others.csv"), OtherResult))


def _packaged(name: str) -> str:
    return resources.files(__package__).joinpath("published", name).read_text(encoding="utf-8")


L = TypeVar("L", bound=_Line)


def _read(name: str, text: str, kind: type[L]) -> list[L]:
    lines = []
    for number, row in enumerate(csv.DictReader(text.splitlines(), strict=True), start=2):
        try:
            lines.append(kind.model_validate(row))
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise DataError(f"{name}, line {number}: {problems}; install the package again") from error
    return lines
