"""The papers' numbers, as data: `published/pixelpick.csv`, which ours are set beside, and `published/others.csv`."""

import csv
from functools import cache
from importlib import resources
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pixelpick_ray.config.spec import Count
from pixelpick_ray.config.trial import Budget
from pixelpick_ray.errors import DataError

Percent = Annotated[float, Field(ge=0.0, le=100.0)]
Text = Annotated[str, Field(min_length=1)]


def _numbers(text: str) -> list[str] | None:
    return text.split(" x ") if text else None


def _absent(text: str) -> str | None:
    return text or None


class _Line(BaseModel):
    """A line of a CSV file; unknown and missing columns are refused, numbers are read from text."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedCell(_Line):
    """A number of the original's tables and the protocol that it needs to be compared like for like.

    `protocol` has the columns whose names have a dot, paths in a trial or in `evaluate`, as text: sizes "360 x 480",
    and nothing where a field means nothing (full supervision asks for no pixels). `model.pretrained` is a kind, of
    which all supervised ImageNet weights are one. `native_size` (height, width) is None where images differ.
    `checkpoint` is a remark.
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
    n: Count
    checkpoint: Text
    native_size: Annotated[tuple[Count, Count] | None, BeforeValidator(_numbers)]
    protocol: dict[str, str]

    @model_validator(mode="after")
    def _full_supervision_picks_nothing(self) -> Self:
        if (self.budget == "full") != (self.strategy == ""):
            raise ValueError(f"budget {self.budget} with strategy {self.strategy!r}")
        return self

    @property
    def key(self) -> tuple[str, str, str, str, Budget]:
        """What a cell of ours must share for this one to be its counterpart."""
        return self.dataset, self.architecture, self.backbone, self.strategy, self.budget


class OtherResult(_Line):
    """A number of another paper, and why it is not like for like; spread and number of runs are None where not told."""

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
    """The original's cells by what they are of. DataError for a damaged file."""
    name = "pixelpick.csv"
    cells = _read(name, _packaged(name), PublishedCell)
    by_key = {cell.key: cell for cell in cells}
    if len(by_key) != len(cells):
        raise DataError(f"{name}: two lines are of the same cell; keep one")
    return by_key


@cache
def other_results() -> tuple[OtherResult, ...]:
    """The other papers' numbers. DataError for a damaged file."""
    return tuple(_read("others.csv", _packaged("others.csv"), OtherResult))


def _packaged(name: str) -> str:
    return resources.files(__package__).joinpath("published", name).read_text(encoding="utf-8")


L = TypeVar("L", bound=_Line)


def _read(name: str, text: str, kind: type[L]) -> list[L]:
    lines = []
    for number, row in enumerate(csv.DictReader(text.splitlines(), strict=True), start=2):
        try:
            lines.append(kind.model_validate(_nested(row)))
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise DataError(f"{name}, line {number}: {problems}; install the package again") from error
    return lines


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    """The columns with a dot as one field, where there are any."""
    protocol = {path: text for path, text in row.items() if path and "." in path}
    plain = {name: text for name, text in row.items() if name not in protocol}
    return plain | ({"protocol": protocol} if protocol else {})
