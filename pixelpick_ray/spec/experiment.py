"""Experiment files: YAML in, validated values or readable errors out; a grid becomes trials."""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pixelpick_ray.errors import SpecError
from pixelpick_ray.spec.canonical import digest

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Budget = Annotated[int, Field(ge=1)] | Literal["full"]


class Spec(BaseModel):
    """A frozen part of an experiment; unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def as_input(self) -> dict[str, Any]:
        """JSON-ready fields for a key; absent options are left out, so that new ones do not move old keys."""
        return self.model_dump(mode="json", exclude_none=True)


class SizeSpec(Spec):
    """The size that images are prepared to: at most one of the three; none means the native size."""

    size: tuple[Count, Count] | None = None
    scale: Positive | None = None
    long_side: Count | None = None

    @model_validator(mode="after")
    def _one_at_most(self) -> Self:
        given = [name for name in ("size", "scale", "long_side") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; keep one of size, scale, long_side")
        return self

    def prepared_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels that an image of this native size is resized to."""
        if self.size is not None:
            return self.size
        factor = self.scale if self.scale is not None else 1.0
        if self.long_side is not None:
            factor = self.long_side / max(height, width)
        return max(1, int(height * factor + 1e-9)), max(1, int(width * factor + 1e-9))


class DatasetSpec(SizeSpec):
    """The training images: data set, prepared size, and how many of them (a nested random subset by seed)."""

    name: str
    images: Count | None = None


class ModelSpec(Spec):
    """The network; ``dropout`` are the rates after ASPP, in the decoder, and before the classifier."""

    architecture: Literal["deeplabv3plus"] = "deeplabv3plus"
    backbone: str
    pretrained: str = "imagenet"
    output_stride: Literal[8, 16, 32] = 16
    dropout: tuple[Fraction, Fraction, Fraction] = (0.5, 0.5, 0.2)


class AdamSpec(Spec):
    """Adam with L2 weight decay, betas (0.9, 0.999), eps 1e-8."""

    name: Literal["adam"]
    lr: Positive
    backbone_lr_factor: NonNegative = 0.1
    weight_decay: NonNegative = 0.0


class SgdSpec(Spec):
    """Stochastic gradient descent with momentum and L2 weight decay."""

    name: Literal["sgd"]
    lr: Positive
    backbone_lr_factor: NonNegative = 0.1
    weight_decay: NonNegative = 0.0
    momentum: Fraction = 0.9


class ConstantSpec(Spec):
    """The learning rate stays."""

    name: Literal["constant"] = "constant"


class MultistepSpec(Spec):
    """The learning rate is multiplied by ``gamma`` once each of the ``milestones`` (finished epochs) is reached."""

    name: Literal["multistep"]
    milestones: tuple[Count, ...]
    gamma: Positive = 0.1

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones: must ascend without repeats; got {list(self.milestones)}")
        return self


class PolySpec(Spec):
    """The learning rate falls as (1 - t/N)^power over the N iterations of a stage."""

    name: Literal["poly"]
    power: Positive = 0.9


class JitterSpec(Spec):
    """Colour jitter in random order: strengths as in torchvision's ColorJitter."""

    probability: Fraction = 0.8
    brightness: NonNegative = 0.8
    contrast: NonNegative = 0.8
    saturation: NonNegative = 0.8
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.2


class BlurSpec(Spec):
    """Gaussian blur; the odd kernel size is int(kernel_fraction * short side // 2 * 2 + 1)."""

    probability: Fraction = 0.5
    sigma: tuple[Positive, Positive] = (0.1, 2.0)
    kernel_fraction: Fraction = 0.1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma[0] > self.sigma[1]:
            raise ValueError(f"sigma: must be [smallest, largest]; got {list(self.sigma)}")
        return self


class AugmentSpec(Spec):
    """Augmentation in this order: scale, pad and crop, flip, jitter, grayscale, blur."""

    scale: tuple[Positive, Positive] = (0.5, 2.0)
    crop_size: tuple[Count, Count] | None = None
    hflip: Fraction = 0.5
    jitter: JitterSpec | None = None
    grayscale: Fraction = 0.0
    blur: BlurSpec | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: must be [smallest, largest]; got {list(self.scale)}")
        return self


class TrainSpec(Spec):
    """How one stage is trained; ``batch_size`` is global, over all ranks."""

    epochs: Count
    batch_size: Count = 4
    optimizer: Annotated[AdamSpec | SgdSpec, Field(discriminator="name")]
    schedule: Annotated[ConstantSpec | MultistepSpec | PolySpec, Field(discriminator="name")] = ConstantSpec()
    augment: AugmentSpec | None = None
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"


class AcquireSpec(Spec):
    """How pixels are chosen; ``pool_fraction`` 0 takes the best pixels directly."""

    strategy: str = "margin"
    initial_pixels: Count = 10
    pixels_per_stage: Count = 10
    pool_fraction: Fraction = 0.05
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"


class OracleSpec(Spec):
    """Who answers."""

    name: Literal["ground_truth"] = "ground_truth"


class EvaluateSpec(Spec):
    """Which splits are evaluated, at which size, when, and which of them is reported."""

    splits: dict[str, SizeSpec]
    when: Literal["last", "every_epoch"] = "last"
    report: str

    @model_validator(mode="after")
    def _reported_is_evaluated(self) -> Self:
        if self.report not in self.splits:
            raise ValueError(f"report: {self.report!r} is not among the evaluated splits {sorted(self.splits)}")
        return self


class Trial(Spec):
    """One point of the grid: everything that changes the science."""

    dataset: DatasetSpec
    model: ModelSpec
    train: TrainSpec
    acquire: AcquireSpec = AcquireSpec()
    oracle: OracleSpec = OracleSpec()
    seed: Annotated[int, Field(ge=0)]
    budget: Budget

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_budget()
        if isinstance(self.train.schedule, MultistepSpec) and self.train.schedule.milestones:
            last = self.train.schedule.milestones[-1]
            if last >= self.train.epochs:
                raise ValueError(
                    f"train.schedule.milestones: {last} is never reached in {self.train.epochs} epochs; "
                    "lower it or use schedule {name: constant}"
                )
        return self

    def _check_budget(self) -> None:
        if self.budget == "full":
            return
        first, step = self.acquire.initial_pixels, self.acquire.pixels_per_stage
        if self.budget < first or (self.budget - first) % step:
            below = first + max(0, (self.budget - first) // step) * step
            raise ValueError(
                f"budget: the stages do not reach {self.budget} exactly: they start at {first} (initial_pixels) and "
                f"add {step} (pixels_per_stage); the nearest are {below} and {below + step}"
            )

    @property
    def num_stages(self) -> int:
        """Stages up to the budget; 1 for full supervision."""
        if self.budget == "full":
            return 1
        return 1 + (self.budget - self.acquire.initial_pixels) // self.acquire.pixels_per_stage


class Experiment(Spec):
    """An experiment file after overrides; ``trials()`` expands its grid."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]
    title: str = ""
    dataset: DatasetSpec
    model: ModelSpec
    train: TrainSpec
    acquire: AcquireSpec = AcquireSpec()
    oracle: OracleSpec = OracleSpec()
    evaluate: EvaluateSpec
    grid: tuple[dict[str, tuple[Any, ...]], ...]

    def trials(self) -> tuple[Trial, ...]:
        """The distinct trials of all grids, in the order of the file. Raises SpecError for a wrong point."""
        if not self.grid:
            raise SpecError("grid: an empty list; give at least one grid, e.g. grid: [{seed: [0], budget: [10, 20]}]")
        seen: dict[str, Trial] = {}
        for index, grid in enumerate(self.grid):
            for trial in self._expand(index, grid):
                seen.setdefault(digest(trial.as_input()), trial)
        return tuple(seen.values())

    def _expand(self, index: int, grid: dict[str, tuple[Any, ...]]) -> list[Trial]:
        where = f"grid[{index}]"
        if "budget" not in grid:
            raise SpecError(f"{where}: no budget; add one, e.g. budget: [10, 20] or budget: [full]")
        for path, values in grid.items():
            if not values:
                raise SpecError(f"{where}.{path}: an empty list; give at least one value")
        base = self.model_dump(mode="json", include={"dataset", "model", "train", "acquire", "oracle"}) | {"seed": 0}
        trials = []
        for values in itertools.product(*grid.values()):
            point = json.loads(json.dumps(base))
            for path, value in zip(grid, values, strict=True):
                _set(point, path.split("."), value, where=f"{where}.{path}", known=_known_paths(point))
            shown = ", ".join(f"{path}={value}" for path, value in zip(grid, values, strict=True))
            trials.append(
                _validated(Trial, point, prefixes=dict.fromkeys(grid, f"{where}."), at=f" ({where} at {shown})")
            )
        return trials

    def identity(self) -> str:
        """Digest of everything but the grid and the title: what experiments of one name must share."""
        return digest(self.model_dump(mode="json", exclude_none=True, exclude={"grid", "title"}))


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply ``dotted.path=value`` overrides; SpecError names file and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read ({error}); give the path of an experiment file") from error
    return parse_experiment(text, where=path.name, overrides=overrides)


def parse_experiment(text: str, *, where: str, overrides: Sequence[str] = ()) -> Experiment:
    """As `load_experiment`, from YAML text; `where` is the name that messages begin with."""
    tree = _read_yaml(text, where)
    if not isinstance(tree, dict):
        raise SpecError(f"{where}: expected a mapping with name, dataset, model, train, evaluate, grid")
    for override in overrides:
        path, sign, value = override.partition("=")
        if not sign or not path:
            raise SpecError(f"--set {override}: expected dotted.path=value, e.g. --set train.epochs=5")
        _set(tree, path.strip().split("."), _read_yaml(value, f"--set {path}"), where=f"--set {path}")
    try:
        experiment = _validated(Experiment, tree)
        experiment.trials()
    except SpecError as error:
        raise SpecError("\n".join(f"{where}: {line}" for line in str(error).splitlines())) from None
    return experiment


def dump_experiment(experiment: Experiment) -> str:
    """The effective experiment as YAML; reading it back gives an equal value."""
    tree = experiment.model_dump(mode="json", exclude_none=True)
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)


class _Loader(yaml.SafeLoader):
    """YAML with numbers such as 5e-4 as numbers, and repeated keys refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for inner, _ in node.value:
            if inner.tag == "tag:yaml.org,2002:merge":
                continue
            keys.append(self.construct_object(inner, deep=True))
            if keys.count(keys[-1]) > 1:
                message = f"the key {keys[-1]!r} appears twice"
                raise yaml.constructor.ConstructorError(None, None, message, inner.start_mark)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """YAML that `_Loader` reads back: text that looks like 5e-4 is quoted."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def _read_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError(f"{where}:{line} is not YAML: {getattr(error, 'problem', error)}") from error


S = TypeVar("S", bound=Spec)


def _validated(kind: type[S], tree: Any, *, prefixes: Mapping[str, str] | None = None, at: str = "") -> S:
    """The checked value; SpecError with a line a problem: prefix (for fields that a grid sets), path, message, `at`."""
    try:
        return kind.model_validate_json(json.dumps(tree, allow_nan=False))
    except ValidationError as error:
        found = dict(_explain(item) for item in reversed(error.errors()))  # of a union, the first kind explains
        problems = list(reversed(found.items()))
    except (TypeError, ValueError) as error:
        path = "" if "Circular" in str(error) else _strange(tree) or ""
        problems = [(path, f"neither a finite number, text, list nor mapping ({error})")]
    lines = []
    for path, message in problems:
        prefix = next((text for field, text in (prefixes or {}).items() if f"{path}.".startswith(f"{field}.")), "")
        lines.append(f"{prefix}{path}: {message}{at}" if path else f"{message}{at}")
    raise SpecError("\n".join(lines))


def _strange(tree: Any, path: str = "") -> str | None:
    """Path of the first value that JSON does not have, such as a date or NaN."""
    if isinstance(tree, dict):
        inner = [_strange(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()]
    elif isinstance(tree, list):
        inner = [_strange(value, f"{path}[{index}]") for index, value in enumerate(tree)]
    else:
        fine = tree is None or isinstance(tree, (str, int)) or (isinstance(tree, float) and math.isfinite(tree))
        inner = [] if fine else [path]
    return next((found for found in inner if found is not None), None)


def _explain(item: Any) -> tuple[str, str]:
    """Path and message of a problem that pydantic found."""
    path = ""
    for part in item["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _BY_NAME and part not in ("int", "constrained-int", "literal['full']"):
            path += f".{part}" if path else str(part)
    message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if item["type"] == "extra_forbidden":
        message = f"unknown key; {_known_keys(item['loc'])}"
    elif item["type"] == "missing":
        message = "is required"
    elif item["type"] == "union_tag_not_found":
        message = f"name is required, one of {', '.join(_names_of(item['loc'][-1]))}; got {item['input']!r}"
    elif item["type"] != "value_error":
        wanted = f"{message} or 'full'" if path == "budget" else message
        message = f"{wanted}; got {item['input']!r}"
    elif field := re.match(r"[a-z_.]+(?=: )", message):  # a check of several fields says which of them is wrong
        path, message = f"{path}.{field[0]}" if path else field[0], message[field.end() + 2 :]
    return path, message


def _names_of(field: str) -> list[str]:
    """Allowed values of ``name`` in train.optimizer or train.schedule."""
    kinds = _models_in(TrainSpec.model_fields[field].annotation)
    return [name for name, kind in _BY_NAME.items() if kind in kinds]


def _known_keys(location: tuple[Any, ...]) -> str:
    """The keys allowed where an unknown one was found."""
    kind: Any = Experiment
    for part in location[:-1]:
        kinds = _models_in(kind.model_fields[part].annotation) if part in getattr(kind, "model_fields", {}) else []
        named = [k for k in kinds if part in k.model_fields]
        kind = (named or kinds or [kind])[0]
        if part in ("adam", "sgd", "constant", "multistep", "poly"):
            kind = _BY_NAME[part]
    return f"allowed here: {', '.join(kind.model_fields)}"


def _models_in(annotation: Any) -> list[type[Spec]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models_in(inner)]


_BY_NAME: dict[str, type[Spec]] = {
    "adam": AdamSpec,
    "sgd": SgdSpec,
    "constant": ConstantSpec,
    "multistep": MultistepSpec,
    "poly": PolySpec,
}


def _known_paths(tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [prefix]
    inner = [path for key, value in tree.items() for path in _known_paths(value, f"{prefix}.{key}" if prefix else key)]
    return inner + ([prefix] if prefix else [])


def _set(tree: Any, path: list[str], value: Any, *, where: str, known: Sequence[str] | None = None) -> None:
    """Set a dotted path in nested mappings; with `known`, only paths that exist (or `budget`) are accepted."""
    if known is not None and ".".join(path) not in known and path != ["budget"]:
        allowed = ["budget", *(field for field in known if field != "budget")]
        raise SpecError(f"{where}: no such field; allowed: {', '.join(allowed)}")
    for part in path[:-1]:
        if isinstance(tree.get(part), list):
            raise SpecError(f"{where}: {part} is a list; lists are replaced whole, e.g. --set {part}=[...]")
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[path[-1]] = value
