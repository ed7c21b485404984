"""Experiment files: parsing and validation of YAML, and expansion of a grid into trials."""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, PrivateAttr, ValidationError

from pixelpick_ray.config import parts
from pixelpick_ray.config.annotate import AnnotateSpec
from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.extends import merged
from pixelpick_ray.config.model import PIXEL_HEADS, ModelSpec, with_head
from pixelpick_ray.config.search import DomainSpec, SearchSpec, may_vary
from pixelpick_ray.config.spec import Spec
from pixelpick_ray.config.trial import (
    AcquireSpec,
    AdamSpec,
    ConstantSpec,
    DatasetSpec,
    ErringSpec,
    EvaluateSpec,
    GroundTruthSpec,
    HumanSpec,
    MultistepSpec,
    OracleSpec,
    PolySpec,
    SgdSpec,
    TrainSpec,
    Trial,
)
from pixelpick_ray.config.yaml_text import in_words, read_text, read_yaml, write_yaml
from pixelpick_ray.errors import SpecError, naming

OTHER_NAME = {"model.head": "architecture", "model.architecture": "head"}


class Experiment(Spec):
    """An experiment: the settings of a trial, and a grid of those that vary.

    With ``search``, the grid lists the seeds and budgets that every configuration is run with.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]
    title: str = ""
    dataset: DatasetSpec
    model: ModelSpec
    train: TrainSpec | None = None
    acquire: AcquireSpec = AcquireSpec()
    oracle: OracleSpec = GroundTruthSpec()
    evaluate: EvaluateSpec
    grid: tuple[dict[str, tuple[Any, ...]], ...]
    search: SearchSpec | None = None
    annotate: AnnotateSpec | None = None

    @property
    def annotation(self) -> AnnotateSpec:
        """The annotation settings, or their defaults."""
        return self.annotate or AnnotateSpec()

    _files: dict[str, str] = PrivateAttr(default_factory=dict)  # resolved names of ``file:`` parts, each read once
    _normalises_by_default: bool = PrivateAttr(default=False)  # the file does not set model.normalise

    @property
    def before_normalise(self) -> "Experiment | None":
        """The experiment as it was read before ``model.normalise`` existed; None if that is the same."""
        model = self.model.model_copy(update={"normalise": None})
        means_it = not self._normalises_by_default or model.normalised_by == self.model.normalised_by
        return None if means_it else self.model_copy(update={"model": model})

    def trials(self) -> tuple[Trial, ...]:
        """The distinct trials of all grids, in file order; for a search, those of the file's own configuration.

        Raises SpecError for an invalid grid point.
        """
        return self._trials

    @cached_property
    def _trials(self) -> tuple[Trial, ...]:
        if not self.grid:
            raise SpecError("grid: is empty; give at least one grid, e.g. grid: [{seed: [0], budget: [10, 20]}]")
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
                raise SpecError(f"{where}.{path}: is empty; give at least one value")
        trials = []
        for values in itertools.product(*grid.values()):
            shown = ", ".join(f"{path}={value}" for path, value in zip(grid, values, strict=True))
            point = dict(zip(grid, values, strict=True))
            trials.append(self.trial_at(point, where=f"{where}.", at=f" ({where} at {shown})"))
        return trials

    def trial_at(self, settings: Mapping[str, Any], *, where: str, at: str = "") -> Trial:
        """The trial with these values, including a budget, set at dotted paths.

        Raises SpecError for an unknown path or an invalid value; `where` prefixes the path, `at` ends the message.
        """
        point = json.loads(json.dumps(self._base()))
        if "model.architecture" in settings or "model.head" in settings:
            point["model"]["head"] = None
        for path, value in settings.items():
            _set_known(point, path.split("."), value, where=f"{where}{path}")
        point["model"] = with_head(point["model"])
        if isinstance(point["model"], dict) and point["model"].get("normalise") is None:
            point["model"] = point["model"] | {"normalise": json.loads(self.model.model_dump_json())["normalise"]}
        for path, kind in parts.FIELDS.items():
            self._resolve(point, path, kind)
        return _validated(Trial, point, prefixes=dict.fromkeys(settings, where), at=at)

    def _base(self) -> dict[str, Any]:
        """The fields of the file that belong to a trial."""
        return self.model_dump(mode="json", include={"dataset", "model", "train", "acquire", "oracle"}) | {"seed": 0}

    def _resolve(self, point: dict[str, Any], path: str, kind: str) -> None:
        """Replace the name of an external part by its resolved name."""
        spec, _, field = path.partition(".")
        name = point[spec].get(field) if isinstance(point[spec], dict) else None
        if isinstance(name, str):
            with naming(path):
                point[spec][field] = self._files.get(name) or parts.resolved(kind, name)

    @property
    def sources(self) -> dict[str, str]:
        """The sources of ``file:`` parts, by path relative to the experiment file."""
        found: dict[str, str] = {}
        for name, whole in self._files.items():
            parsed, code = parts.FILE.fullmatch(name), parts.code_of(whole)
            if parsed is not None and code is not None:
                folder = PurePosixPath(parsed["path"]).parent
                found |= {str(folder / path): text for path, text in code.files}
        return found

    def searchable(self) -> tuple[str, ...]:
        """Dotted paths that a search of this experiment may vary."""
        return tuple(filter(may_vary, _known_paths(self._base())))

    def __getstate__(self) -> dict[str, Any]:
        """The fields and the sources of external parts, without the trials, of which there may be thousands."""
        return super().__getstate__() | {"__dict__": dict(self), "parts": parts.shipment()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        parts.install(state["parts"])
        super().__setstate__({name: value for name, value in state.items() if name != "parts"})

    def __copy__(self) -> Self:
        """Copy without the cached trials: `model_copy` may change the fields."""
        copied = super().__copy__()
        copied.__dict__.pop("_trials", None)
        return copied

    def identity(self) -> str:
        """Digest of what experiments of one name must share: everything but the grid, the title and ``annotate``.

        For a search the grid and the code of external parts count, because its journal stores scores, but not
        ``num_samples``, which may grow.
        """
        extended: Any = {"title": True, "annotate": True} | (
            {"grid": True} if self.search is None else {"search": {"num_samples"}}
        )
        fields = self.model_dump(mode="json", exclude_none=True, exclude=extended)
        code = [] if self.search is None else self._code_of_parts()
        return digest([fields, code] if code else fields)

    def _code_of_parts(self) -> list[str]:
        """The resolved names of all external parts that a search may use."""
        point, found = self._base(), set(self._files.values())
        for path, kind in parts.FIELDS.items():
            spec, _, field = path.partition(".")
            searched = self.search.space[path].values if self.search and path in self.search.space else ()
            named = (name for name in (point[spec].get(field), *searched) if isinstance(name, str))
            found |= {self._files.get(name) or parts.resolved(kind, name) for name in named}
        return sorted(name for name in found if "@" in name)


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply ``dotted.path=value`` overrides.

    Raises SpecError with file and key for whatever is invalid.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read ({error}); give the path of an experiment file") from error
    return parse_experiment(text, where=path.name, overrides=overrides, folder=path.parent)


def parse_experiment(text: str, *, where: str, overrides: Sequence[str] = (), folder: Path | None = None) -> Experiment:
    """Like `load_experiment`, from YAML text.

    `where` names the text in messages; ``file:`` and ``extends`` are relative to `folder`.
    """
    whole = merged(text, where, folder)
    tree = whole.tree
    if not isinstance(tree, dict):
        raise SpecError(f"{where}: should be a mapping with the keys name, dataset, model, train, evaluate, grid")
    _check_head(tree.get("model"), where)
    overridden: dict[str, Any] = {}
    for override in overrides:
        path, sign, value = override.partition("=")
        if not sign or not path:
            raise SpecError(f"--set {override}: expected dotted.path=value, e.g. --set train.epochs=5")
        _set(tree, path.strip().split("."), read_yaml(value, f"--set {path}"), where=f"--set {path}")
        if path.strip() in OTHER_NAME:  # the synonym, which the file may have used
            tree["model"].pop(OTHER_NAME[path.strip()], None)
        overridden[path.strip()] = read_yaml(value, f"--set {path}")
    says_nothing = isinstance(tree.get("model"), dict) and tree["model"].get("normalise") is None
    if says_nothing:
        tree["model"] = tree["model"] | {"normalise": "weights"}
    try:
        experiment = _validated(Experiment, tree)
        experiment._files.update(_files_in(tree, folder))
        experiment._normalises_by_default = says_nothing
        _check_overrides(experiment, overridden)
        _check_training(experiment)
        _check_people(experiment)
        if experiment.search is not None:
            check_search(experiment, experiment.search, list(overridden))
    except SpecError as error:
        said = whole.but_for(overridden)
        lines = (f"{said.origin_of(line.partition(':')[0], where)}: {line}" for line in str(error).splitlines())
        raise SpecError("\n".join(lines)) from None
    return experiment


def _check_head(model: Any, where: str) -> None:
    """Raise SpecError if head and architecture, which are synonyms, differ."""
    if isinstance(model, dict) and {"head", "architecture"} <= model.keys():
        head = model["head"].get("name") if isinstance(model["head"], dict) else model["head"]
        if head is not None and head != model["architecture"]:
            raise SpecError(
                f"{where}: model.head: is {head!r}, but model.architecture is {model['architecture']!r}; they are "
                "synonyms, so give only one"
            )


def _files_in(tree: Any, folder: Path | None, path: str = "") -> dict[str, str]:
    """Resolved names of all ``file:`` parts in an experiment, each read once."""
    if isinstance(tree, dict):
        inner = [_files_in(value, folder, f"{path}.{key}" if path else str(key)) for key, value in tree.items()]
    elif isinstance(tree, (list, tuple)):
        inner = [_files_in(value, folder, path) for value in tree]
    elif isinstance(tree, str) and parts.FILE.fullmatch(tree):
        fields = parts.FIELDS | {"model.head": "head"}
        kind = next((kind for field, kind in fields.items() if f".{path}.".find(f".{field}.") >= 0), None)
        if kind is None:
            return {}
        with naming(path):
            return {tree: parts.resolved(kind, tree, folder)}
    else:
        inner = []
    return {name: whole for found in inner for name, whole in found.items()}


def _check_overrides(experiment: Experiment, overridden: Mapping[str, Any]) -> None:
    """Raise SpecError for an override of a value that the grid varies."""
    for path, value in overridden.items():
        for index, grid in enumerate(experiment.grid):
            for varied in grid:
                inside = f"{path}.".startswith(f"{varied}.")
                around = f"{varied}.".startswith(f"{path}.") and _has(value, varied.removeprefix(path).strip("."))
                if inside or around:
                    raise SpecError(
                        f"--set {path}: has no effect on grid[{index}], which varies {varied}; replace the grid, "
                        f"e.g. --set 'grid=[{{{varied}: [...], budget: [...]}}]', or leave it out"
                    )


def _has(tree: Any, path: str) -> bool:
    """Whether an override's value sets the dotted path within it."""
    for name in path.split(".") if path else ():
        if not isinstance(tree, dict) or name not in tree:
            return False
        tree = tree[name]
    return tree is not None


def _check_training(experiment: Experiment) -> None:
    """Raise SpecError for ``train`` if no trial uses it."""
    if experiment.train is not None and not any(trial.training for trial in experiment.trials()):
        raise SpecError(
            "train: has no effect, because no trial trains a network by gradient descent; heads on frozen features are "
            "configured in model.head; leave train out"
        )


def _check_people(experiment: Experiment) -> None:
    """Raise SpecError for annotation settings without people, and for people in a search."""
    humans = [trial.oracle for trial in experiment.trials() if isinstance(trial.oracle, HumanSpec)]
    if experiment.annotate is not None and not humans:
        raise SpecError("annotate: has no effect without people; add oracle: {name: human}, or leave annotate out")
    if experiment.annotation.order == "predicted" and not all(oracle.suggestions for oracle in humans):
        raise SpecError(
            "annotate.order: predicted shows the network's predictions; add oracle.suggestions: true, or use order: "
            "image"
        )
    if experiment.search is not None and (humans or "oracle.name" in experiment.search.space):
        raise SpecError(
            "oracle.name: a search cannot use human, because every sample asks about different pixels; use "
            "ground_truth or erring"
        )


def check_search(experiment: Experiment, search: SearchSpec, fixed: Sequence[str]) -> None:
    """Raise SpecError for a search that does not fit the experiment; `fixed` are the paths that ``--set`` sets."""
    known = experiment.searchable()
    for path in search.space:
        if path not in known:
            raise SpecError(f"search.space.{path}: no such field; allowed: {', '.join(known)}")
        if other := next((other for other in fixed if f"{other}.".startswith(f"{path}.")), ""):
            raise SpecError(f"--set {other}: {path} is searched; remove it from search.space, or leave out --set")
    _check_grid(experiment, search)
    for path, position, value in search.ends():
        for budget in dict.fromkeys(experiment.grid[0]["budget"]):
            with search.naming(path, position):
                experiment.trial_at({"budget": budget, path: value}, where="")
    _check_levels(experiment, search)
    evaluate = experiment.evaluate
    if search.split is not None and search.split == evaluate.split_of(evaluate.report):
        raise SpecError(
            f"search.split: {search.split} is also the reported split, so its results would be biased by the "
            "search; use another split, e.g. val, or search.held_out: 0.2 for a share of the training images"
        )


def _check_grid(experiment: Experiment, search: SearchSpec) -> None:
    """Raise SpecError unless there is one grid with exactly seeds and budgets."""
    for index, grid in enumerate(experiment.grid):
        for path, other in itertools.product(search.space, grid):
            if f"{other}.".startswith(f"{path}.") or f"{path}.".startswith(f"{other}."):
                raise SpecError(
                    f"grid[{index}].{other}: conflicts with {path} in search.space; remove it, since the grid of a "
                    "search has only seed and budget"
                )
    if len(experiment.grid) != 1 or set(experiment.grid[0]) != {"seed", "budget"}:
        raise SpecError(
            "grid: a search needs exactly one grid, with only seed and budget, e.g. [{seed: [0], budget: [10, 20]}]; "
            "move everything else to search.space, e.g. acquire.strategy: {choice: [margin, entropy]}"
        )


def _check_levels(experiment: Experiment, search: SearchSpec) -> None:
    """Raise SpecError for budgets and epochs at which configurations cannot be scored."""
    budgets = experiment.grid[0]["budget"]
    if "full" in budgets and len(set(budgets)) > 1:
        raise SpecError("grid[0].budget: a search compares budgets in ascending order; give numbers, or [full] alone")
    last = search.metric.budget
    if last is not None and last not in budgets:
        raise SpecError(f"search.metric.budget: {last} is not in the grid; it has {', '.join(map(str, budgets))}")
    if search.metric.name == "area" and len({one for one in budgets if last is None or one <= last}) < 2:
        raise SpecError("search.metric: area needs at least two budgets; add budgets to the grid, or use name: miou")
    if search.epochs:
        _check_epochs(experiment, search)


def _check_epochs(experiment: Experiment, search: SearchSpec) -> None:
    """Raise SpecError for epochs at which configurations cannot be scored."""
    if len(set(experiment.grid[0]["seed"])) > 1:
        raise SpecError(
            "search.epochs: cannot be combined with several seeds, which are trained one after another; give one "
            "seed, or leave epochs out"
        )
    own = experiment.trials()[0]
    for path, _, value in search.ends():
        other = experiment.trial_at({"budget": own.budget, path: value}, where="")
        if (other.epochs, other.acquire.initial_pixels) != (own.epochs, own.acquire.initial_pixels):
            raise SpecError(
                f"search.epochs: needs the same first stage for all samples, but search.space varies {path}; leave "
                "one out"
            )
    if search.epochs[-1] >= own.epochs:
        raise SpecError(
            f"search.epochs: {search.epochs[-1]} must be less than the {own.epochs} epochs of a stage, whose end is "
            "scored anyway; lower it"
        )
    if experiment.evaluate.when != "every_epoch":
        raise SpecError("search.epochs: needs an evaluation after every epoch; set evaluate.when: every_epoch")


def dataset_of_options(name: str, options: Mapping[str, Any]) -> DatasetSpec:
    """The data set given by command-line options; SpecError names the invalid option."""
    return _validated(DatasetSpec, {"name": name, **options}, prefixes=dict.fromkeys(options, "--"))


def dump_experiment(experiment: Experiment) -> str:
    """The effective experiment as YAML that reads back equal."""
    tree = experiment.model_dump(mode="json", exclude_none=True)
    model = experiment.model
    tree["model"]["normalise"] = model.model_dump(mode="json")["normalise"] or model.normalised_by
    if experiment._normalises_by_default and model.normalise == "weights":
        del tree["model"]["normalise"]
    return write_yaml(tree)


S = TypeVar("S", bound=Spec)


def _validated(kind: type[S], tree: Any, *, prefixes: Mapping[str, str] | None = None, at: str = "") -> S:
    """Validate a tree; SpecError has one line per problem: prefix of a grid's field, path, message, `at`."""
    if isinstance(tree, dict) and "model" in tree:
        tree = tree | {"model": with_head(tree["model"])}
    try:
        return kind.model_validate_json(json.dumps(tree, allow_nan=False))
    except ValidationError as error:
        # Defaults that depend on an invalid field are not problems of their own; of a union, report its first variant.
        items = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
        found = dict(_explain(item) for item in reversed(items))
        problems = list(reversed(found.items()))
    except (TypeError, ValueError) as error:
        circular = "Circular" in str(error)
        path, value = ("", None) if circular else _strange(tree) or ("", None)
        wrong = "an alias (*) refers to a node that contains it" if circular else f"got {value}; put text in quotes"
        problems = [(path, f"should be a finite number, text, a list or a mapping; {wrong}")]
    lines = []
    for path, message in problems:
        prefix = next((text for field, text in (prefixes or {}).items() if f"{path}.".startswith(f"{field}.")), "")
        lines.append(f"{prefix}{path}: {message}{at}" if path else f"{message}{at}")
    raise SpecError("\n".join(lines))


def _strange(tree: Any, path: str = "") -> tuple[str, Any] | None:
    """Path and value of the first value that JSON cannot represent, such as a date or NaN; None without one."""
    if isinstance(tree, dict):
        inner = [_strange(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()]
    elif isinstance(tree, list):
        inner = [_strange(value, f"{path}[{index}]") for index, value in enumerate(tree)]
    else:
        fine = tree is None or isinstance(tree, (str, int)) or (isinstance(tree, float) and math.isfinite(tree))
        inner = [] if fine else [(path, tree)]
    return next((found for found in inner if found is not None), None)


def _explain(item: Any) -> tuple[str, str]:
    """Path and message for a pydantic error."""
    path = ""
    for part in item["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _BY_NAME and part not in ("int", "constrained-int", "literal['full']", "external"):
            path += f".{part}" if path else str(part)
    message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if item["type"] == "extra_forbidden":
        message = f"unknown key; {_known_keys(item['loc'])}"
        if path in ("seed", "budget"):
            message += "; seeds and budgets belong in the grid"
    elif item["type"] == "missing":
        message = "is required"
    elif item["type"] == "model_type" and item["ctx"]["class_name"] == DomainSpec.__name__:
        message = f"should be one kind with its values, e.g. {{choice: [1, 2]}}; got {item['input']!r}"
    elif item["type"] == "union_tag_invalid":
        known = ", ".join(
            [*_names_of(item["loc"][-1]), *(parts.names("oracle") if item["loc"][-1] == "oracle" else ())]
        )
        message = f"unknown name {item['ctx']['tag']!r}; known: {known}"
    elif item["type"] == "union_tag_not_found":
        message = f"needs a name, one of {', '.join(_names_of(item['loc'][-1]))}; got {item['input']!r}"
    elif item["type"] != "value_error":
        wanted = in_words(item) + (" or 'full'" if path == "budget" else "")
        message = f"{wanted}; got {item['input']!r}"
    elif field := re.match(r"[a-z_.]+(?=: )", message):  # a check of several fields names the invalid one
        path, message = f"{path}.{field[0]}" if path else field[0], message[field.end() + 2 :]
    return path, message


def _names_of(field: str) -> list[str]:
    """Allowed values of ``name`` in train.optimizer, train.schedule, oracle or model.head."""
    kinds = _models_in((TrainSpec.model_fields | Trial.model_fields | ModelSpec.model_fields)[field].annotation)
    return [name for name, kind in _BY_NAME.items() if kind in kinds]


def _known_keys(location: tuple[Any, ...]) -> str:
    """The keys allowed where an unknown one was found."""
    kind: Any = Experiment
    for part in location[:-1]:
        kinds = _models_in(kind.model_fields[part].annotation) if part in getattr(kind, "model_fields", {}) else []
        named = [k for k in kinds if part in k.model_fields]
        kind = (named or kinds or [kind])[0]
        kind = _BY_NAME.get(part, kind)
    return f"allowed here: {', '.join(field.alias or name for name, field in kind.model_fields.items())}"


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
    "ground_truth": GroundTruthSpec,
    "erring": ErringSpec,
    "human": HumanSpec,
    **PIXEL_HEADS,
}


def _known_paths(tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [prefix]
    inner = [path for key, value in tree.items() for path in _known_paths(value, f"{prefix}.{key}" if prefix else key)]
    return inner + ([prefix] if prefix else [])


def _set_known(tree: Any, path: list[str], value: Any, *, where: str) -> None:
    """Set a dotted path that exists, or ``budget``; SpecError for any other."""
    inner = tree
    for part in path:
        if path != ["budget"] and (not isinstance(inner, dict) or part not in inner):
            allowed = ["budget", *(field for field in _known_paths(tree) if field != "budget")]
            raise SpecError(f"{where}: no such field; allowed: {', '.join(allowed)}")
        inner = inner.get(part)
    _set(tree, path, value, where=where)


def _set(tree: Any, path: list[str], value: Any, *, where: str) -> None:
    """Set a dotted path in nested mappings, which are created as needed; SpecError inside a list."""
    for part in path[:-1]:
        if isinstance(tree.get(part), list):
            raise SpecError(
                f"{where}: {part} is a list, which can only be replaced as a whole, e.g. --set {part}=[...]"
            )
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[path[-1]] = value
