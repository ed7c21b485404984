"""What a hyperparameter search varies, how it chooses and stops, and what it judges by."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pixelpick_ray.config.spec import Count, Spec
from pixelpick_ray.config.yaml_text import write_yaml
from pixelpick_ray.errors import SpecError

SIGNIFICANT_DIGITS = 4  # of a drawn number: enough for any setting, and short enough to read
KINDS = ("uniform", "loguniform", "randint", "choice", "grid")
SEARCHED = ("model", "train", "acquire", "dataset.size", "dataset.scale", "dataset.long_side")

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


def may_vary(path: str) -> bool:
    """Whether a search may vary what is at a dotted path."""
    return any(f"{path}.".startswith(f"{allowed}.") for allowed in SEARCHED)


class DomainSpec(Spec):
    """The values that one setting may take, as exactly one of: a range of numbers (uniform, or uniform in the
    logarithm), a range of whole numbers, values to choose from, or values that are all tried.

    Both ends of a range are included.
    """

    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    randint: tuple[int, int] | None = None
    choice: tuple[Any, ...] | None = None
    grid: tuple[Any, ...] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}; got {' and '.join(given) or 'none'}")
        return self

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        if self.is_range and not self.values[0] < self.values[1]:
            raise ValueError(f"{self.kind}: must be [smallest, largest], and different; got {list(self.values)}")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform: only numbers above 0 have a logarithm; got {list(self.values)}")
        return self

    @model_validator(mode="after")
    def _values_differ(self) -> Self:
        repeated = any(value in self.values[:position] for position, value in enumerate(self.values))  # 1 is 1.0, too
        if repeated or not self.values:
            raise ValueError(f"{self.kind}: values must be given, each once; got {list(self.values)}")
        return self

    @property
    def kind(self) -> str:
        """Which of KINDS it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> tuple[Any, ...]:
        """The two ends of a range, else all values."""
        found: tuple[Any, ...] = getattr(self, self.kind)
        return found

    @property
    def is_range(self) -> bool:
        """Whether it is a range of numbers."""
        return self.kind in ("uniform", "loguniform", "randint")

    def contains(self, value: Any) -> bool:
        """Whether a value is in it."""
        if not self.is_range:
            return value in self.values
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and self.values[0] <= value <= self.values[1]

    def draw(self, chance: np.random.Generator) -> Any:
        """A value by chance."""
        if not self.is_range:
            return self.values[int(chance.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "randint":
            return int(chance.integers(low, high, endpoint=True))
        if self.kind == "loguniform":
            return self.rounded(math.exp(chance.uniform(math.log(low), math.log(high))))
        return self.rounded(chance.uniform(low, high))

    def rounded(self, value: Any) -> Any:
        """A number of the range with few digits, still in the range; anything else as it is."""
        if not isinstance(value, float):
            return value
        return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), self.values[0]), self.values[1])

    def in_words(self) -> str:
        """As a person reads it, e.g. "loguniform 0.0001 to 0.1"."""
        if self.is_range:
            return f"{self.kind} {self.values[0]:g} to {self.values[1]:g}"
        return f"{self.kind} of {', '.join(map(value_text, self.values))}"


def value_text(value: Any) -> str:
    """A value as YAML has it, on one line."""
    match value:
        case str():
            return " ".join(write_yaml([value]).split())[1:-1]
        case Mapping():
            return f"{{{', '.join(f'{value_text(key)}: {value_text(inner)}' for key, inner in value.items())}}}"
        case list() | tuple():
            return f"[{', '.join(map(value_text, value))}]"
        case _:
            return json.dumps(value)


class MetricSpec(Spec):
    """What configurations are judged by, on the split of the search: mIoU at a budget, or the normalised area under
    the budget curve up to it. The budget is by default the largest of the grid.
    """

    name: Literal["miou", "area"] = "miou"
    budget: Count | None = None


class SearchSpec(Spec):
    """A hyperparameter search: ``num_samples`` configurations from ``space``, each trained for every seed of the grid.

    ``searcher`` proposes configurations, ``scheduler`` stops bad ones at small budgets: it keeps about one in
    ``reduction_factor`` each time the budget has grown by that factor. With ``epochs`` a configuration is also judged
    after these epochs of its first stage. ``split`` is what they are judged on, a split that is neither trained on nor
    reported; ``held_out`` uses that share of the training images instead, which are then not trained on.
    """

    space: dict[str, DomainSpec]
    searcher: Literal["random", "grid", "optuna"] = "optuna"
    scheduler: Literal["none", "asha"] = "asha"
    reduction_factor: Annotated[float, Field(ge=2.0)] = 3.0
    metric: MetricSpec = MetricSpec()
    num_samples: Count | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    split: str | None = None
    held_out: Share | None = None
    epochs: tuple[Count, ...] = ()

    @model_validator(mode="after")
    def _paths_stand_apart(self) -> Self:
        if not self.space:
            raise ValueError("space: nothing is searched; give at least one, e.g. {train.optimizer.lr: {...}}")
        for path in self.space:
            if not may_vary(path):
                elsewhere = "; seeds and budgets belong in the grid" if path in ("seed", "budget") else ""
                raise ValueError(
                    f"space: {path!r} is not for a search; allowed are {', '.join(SEARCHED)} and below{elsewhere}"
                )
            if outer := next(
                (other for other in self.space if f"{path}.".startswith(f"{other}.") and other != path), ""
            ):
                raise ValueError(f"space: {path} is a part of {outer}, which is searched too; keep one of them")
        return self

    @model_validator(mode="after")
    def _searcher_fits(self) -> Self:
        gridded = [path for path, domain in self.space.items() if domain.kind == "grid"]
        drawn = [path for path in self.space if path not in gridded]
        if self.searcher == "grid":
            if drawn:
                kind = self.space[drawn[0]].kind
                raise ValueError(f"searcher: grid tries all values of kind grid; {drawn[0]} is of kind {kind}")
            if self.num_samples is not None:
                raise ValueError(
                    f"num_samples: searcher grid tries each of its {self.num_points} points once; leave it out"
                )
        elif gridded:
            raise ValueError(
                f"space: kind grid is for searcher grid; for {self.searcher} give {gridded[0]} its values with choice"
            )
        elif self.num_samples is None:
            raise ValueError("num_samples: is required; give the number of configurations to try, e.g. 40")
        return self

    @model_validator(mode="after")
    def _one_split(self) -> Self:
        if self.split is not None and self.held_out is not None:
            raise ValueError("split: either split or held_out says what is judged on; keep one of them")
        if list(self.epochs) != sorted(set(self.epochs)):
            raise ValueError(f"epochs: must ascend without repeats; got {list(self.epochs)}")
        return self

    @property
    def num_points(self) -> int:
        """Points of the product of all values that are chosen from."""
        return math.prod(len(domain.values) for domain in self.space.values())

    @property
    def size(self) -> int:
        """How many samples are asked for."""
        return self.num_points if self.num_samples is None else self.num_samples

    def point(self, index: int) -> dict[str, Any]:
        """A point of the grid, the last setting varying fastest."""
        found = {}
        for path, domain in reversed(self.space.items()):
            index, at = divmod(index, len(domain.values))
            found[path] = domain.values[at]
        return dict(reversed(found.items()))

    def ends(self) -> Iterator[tuple[str, int, Any]]:
        """Every value that stands in the space: path, position, value."""
        for path, domain in self.space.items():
            for position, value in enumerate(domain.values):
                yield path, position, value

    @contextmanager
    def naming(self, path: str, position: int) -> Iterator[None]:
        """Tell what is wrong with a value that stands in the space with its place there."""
        try:
            yield
        except SpecError as error:
            own = (f"{path}:", f"{path}.", f"{path}[")
            lines = [line if line.startswith(own) else f"{path}: {line}" for line in str(error).splitlines()]
            at = f" (value {position + 1} of {self.space[path].kind})"
            raise SpecError("\n".join(f"search.space.{line}{at}" for line in lines)) from None
