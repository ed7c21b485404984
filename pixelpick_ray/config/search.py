"""Specification of a hyperparameter search: space, searcher, scheduler and metric."""

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

SIGNIFICANT_DIGITS = 4  # of sampled numbers: precise enough for any setting, and still readable
KINDS = ("uniform", "loguniform", "randint", "choice", "grid")
SEARCHED = ("model", "train", "acquire", "dataset.size", "dataset.scale", "dataset.long_side")

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


def may_vary(path: str) -> bool:
    """Whether a search may vary the value at a dotted path."""
    return any(f"{path}.".startswith(f"{allowed}.") for allowed in SEARCHED)


class DomainSpec(Spec):
    """The values of one setting, as exactly one kind.

    Ranges include both ends: ``uniform``, ``loguniform`` (uniform in the logarithm) and ``randint`` (whole numbers).
    ``choice`` lists values to sample from, ``grid`` values that are all tried.
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
            raise ValueError(
                f"{self.kind}: should be [smallest, largest] with smallest < largest; got {list(self.values)}"
            )
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform: both ends must be above 0; got {list(self.values)}")
        return self

    @model_validator(mode="after")
    def _values_differ(self) -> Self:
        repeated = any(value in self.values[:position] for position, value in enumerate(self.values))  # 1 == 1.0
        if repeated or not self.values:
            raise ValueError(f"{self.kind}: needs at least one value, without duplicates; got {list(self.values)}")
        return self

    @property
    def kind(self) -> str:
        """The kind given, one of KINDS."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> tuple[Any, ...]:
        """Both ends of a range, else all values."""
        found: tuple[Any, ...] = getattr(self, self.kind)
        return found

    @property
    def is_range(self) -> bool:
        """Whether it is a range of numbers."""
        return self.kind in ("uniform", "loguniform", "randint")

    def contains(self, value: Any) -> bool:
        """Whether the domain contains a value."""
        if not self.is_range:
            return value in self.values
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and self.values[0] <= value <= self.values[1]

    def draw(self, chance: np.random.Generator) -> Any:
        """Sample a value."""
        if not self.is_range:
            return self.values[int(chance.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "randint":
            return int(chance.integers(low, high, endpoint=True))
        if self.kind == "loguniform":
            return self.rounded(math.exp(chance.uniform(math.log(low), math.log(high))))
        return self.rounded(chance.uniform(low, high))

    def rounded(self, value: Any) -> Any:
        """A float rounded to SIGNIFICANT_DIGITS within the range; other values unchanged."""
        if not isinstance(value, float):
            return value
        return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), self.values[0]), self.values[1])

    def in_words(self) -> str:
        """Human-readable form, e.g. "loguniform 0.0001 to 0.1"."""
        if self.is_range:
            return f"{self.kind} {self.values[0]:g} to {self.values[1]:g}"
        return f"{self.kind} of {', '.join(map(value_text, self.values))}"


def value_text(value: Any) -> str:
    """A value as one line of YAML."""
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
    """The score of a configuration on the split of the search.

    Either mIoU at ``budget``, or the normalised area under the budget curve up to it; default: the grid's largest.
    """

    name: Literal["miou", "area"] = "miou"
    budget: Count | None = None


class SearchSpec(Spec):
    """A hyperparameter search: ``num_samples`` configurations from ``space``, each trained for every seed of the grid.

    ``searcher`` proposes configurations; ``scheduler`` stops poor ones at small budgets, keeping about one in
    ``reduction_factor`` each time the budget grows by that factor. With ``epochs``, configurations are also scored
    after these epochs of the first stage. They are scored on ``split``, which is neither trained on nor reported, or on
    the fraction ``held_out`` of the training images, which are then not trained on.
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
            raise ValueError("space: is empty; give at least one setting, e.g. {train.optimizer.lr: {...}}")
        for path in self.space:
            if not may_vary(path):
                elsewhere = "; seeds and budgets belong in the grid" if path in ("seed", "budget") else ""
                raise ValueError(
                    f"space: {path!r} cannot be searched; allowed are {', '.join(SEARCHED)} and their fields{elsewhere}"
                )
            if outer := next(
                (other for other in self.space if f"{path}.".startswith(f"{other}.") and other != path), ""
            ):
                raise ValueError(f"space: {path} is part of {outer}, which is also searched; keep one of them")
        return self

    @model_validator(mode="after")
    def _searcher_fits(self) -> Self:
        gridded = [path for path, domain in self.space.items() if domain.kind == "grid"]
        drawn = [path for path in self.space if path not in gridded]
        if self.searcher == "grid":
            if drawn:
                kind = self.space[drawn[0]].kind
                raise ValueError(
                    f"searcher: grid needs values of kind grid, but {drawn[0]} is of kind {kind}; make it a grid, or "
                    "use searcher: random"
                )
            if self.num_samples is not None:
                raise ValueError(
                    f"num_samples: does not apply to searcher grid, which tries each of its {self.num_points} points "
                    "once; leave it out"
                )
        elif gridded:
            raise ValueError(
                f"space: kind grid is for searcher grid only; with {self.searcher}, use choice for {gridded[0]}"
            )
        elif self.num_samples is None:
            raise ValueError("num_samples: is required; give the number of configurations to try, e.g. 40")
        return self

    @model_validator(mode="after")
    def _one_split(self) -> Self:
        if self.split is not None and self.held_out is not None:
            raise ValueError("split: cannot be combined with held_out; keep one of them")
        if list(self.epochs) != sorted(set(self.epochs)):
            raise ValueError(f"epochs: must ascend without repeats; got {list(self.epochs)}")
        return self

    @property
    def num_points(self) -> int:
        """Size of the Cartesian product of all listed values."""
        return math.prod(len(domain.values) for domain in self.space.values())

    @property
    def size(self) -> int:
        """Number of samples requested."""
        return self.num_points if self.num_samples is None else self.num_samples

    def point(self, index: int) -> dict[str, Any]:
        """The grid point of this index; the last setting varies fastest."""
        found = {}
        for path, domain in reversed(self.space.items()):
            index, at = divmod(index, len(domain.values))
            found[path] = domain.values[at]
        return dict(reversed(found.items()))

    def ends(self) -> Iterator[tuple[str, int, Any]]:
        """Yield (path, position, value) for every value listed in the space, including ends of ranges."""
        for path, domain in self.space.items():
            for position, value in enumerate(domain.values):
                yield path, position, value

    @contextmanager
    def naming(self, path: str, position: int) -> Iterator[None]:
        """Prefix SpecErrors about a value of the space with its location there."""
        try:
            yield
        except SpecError as error:
            own = (f"{path}:", f"{path}.", f"{path}[")
            lines = [line if line.startswith(own) else f"{path}: {line}" for line in str(error).splitlines()]
            at = f" (value {position + 1} of {self.space[path].kind})"
            raise SpecError("\n".join(f"search.space.{line}{at}" for line in lines)) from None
