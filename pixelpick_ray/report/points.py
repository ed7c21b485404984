"""Names of trials in reports: separate columns for what most grids vary, `setting` for the rest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pixelpick_ray.config.canonical import canonical_json
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import SPARSE_ONLY, Budget, SizeSpec, Trial
from pixelpick_ray.errors import SpecError

# Grid paths with a column of their own; all others that a grid varies go into the column `setting`.
_COLUMN_PATHS = frozenset(
    (
        *("seed", "budget", "dataset.name", "model.architecture", "model.backbone", "model.pretrained"),
        *("acquire.strategy", "model.head", "model.head.name"),  # a head is another name for an architecture
    )
)


@dataclass(frozen=True)
class Point:
    """Name of a trial in reports; `strategy` is empty for full supervision, which picks nothing."""

    experiment: str
    dataset: str
    architecture: str
    backbone: str
    pretrained: str
    strategy: str
    setting: str
    seed: int
    budget: Budget


def merged(experiments: Sequence[Experiment]) -> tuple[Experiment, ...]:
    """Merge experiments that differ only in their grids, so that no trial is counted twice.

    Raises SpecError if none is given, or if different ones share a name.
    """
    if not experiments:
        raise SpecError("report: no experiment given; name at least one experiment file")
    by_name: dict[str, Experiment] = {}
    for experiment in experiments:
        known = by_name.setdefault(experiment.name, experiment)
        if known.identity() != experiment.identity():
            raise SpecError(
                f"name: {experiment.name!r} is shared by experiments that differ in more than their grids; "
                "rename one, or report them separately"
            )
        if known is not experiment:
            grids = known.grid + tuple(grid for grid in experiment.grid if grid not in known.grid)
            by_name[experiment.name] = Experiment(**dict(known) | {"grid": grids})
    return tuple(by_name.values())


def trials_by_point(experiment: Experiment) -> dict[Point, Trial]:
    """Return the distinct trials by name; full supervision under several strategies is one trial."""
    paths = _setting_paths(experiment)
    distinct = {(trial.chain_id, trial.budget): trial for trial in reversed(experiment.trials())}
    return {_point(experiment, trial, paths): trial for trial in reversed(distinct.values())}


def size_text(size: SizeSpec, unit: str = "") -> str:
    """Describe a size: "360 x 480" or "long side 400", each followed by `unit`; "scale 0.5"; "native size"."""
    if size.size is not None:
        return f"{size.size[0]} x {size.size[1]}{unit}"
    if size.long_side is not None:
        return f"long side {size.long_side}{unit}"
    return "native size" if size.scale in (None, 1.0) else f"scale {size.scale:g}"


def _point(experiment: Experiment, trial: Trial, paths: list[str]) -> Point:
    return Point(
        experiment=experiment.name,
        dataset=trial.dataset.name,
        architecture=trial.model.architecture,
        backbone=trial.model.backbone,
        pretrained=trial.model.pretrained,
        strategy="" if trial.budget == "full" else trial.acquire.strategy,
        setting=_setting(trial, paths),
        seed=trial.seed,
        budget=trial.budget,
    )


def _setting_paths(experiment: Experiment) -> list[str]:
    """Innermost paths set by any grid that have no column of their own, sorted."""
    given = ((path, value) for grid in experiment.grid for path, values in grid.items() for value in values)
    return sorted({leaf for path, value in given for leaf in _leaves(path, value)} - _COLUMN_PATHS)


def _leaves(path: str, value: Any) -> Iterator[str]:
    if not isinstance(value, dict) or not value:
        yield path
        return
    for key, inner in value.items():
        yield from _leaves(f"{path}.{key}", inner)


def _setting(trial: Trial, paths: list[str]) -> str:
    """For example "acquire.pool_fraction=0.1", without fields that do not apply to full supervision or fitted heads."""
    tree = trial.model_dump(mode="json")
    if trial.training is None:
        del tree["train"]
    if trial.budget == "full":
        del tree["acquire"]
        tree["train"] = {name: value for name, value in tree.get("train", {}).items() if name not in SPARSE_ONLY}
    parts = []
    for path in paths:
        known, value = lookup(tree, path)
        finer = isinstance(value, dict) and any(other.startswith(f"{path}.") for other in paths)
        if known and not finer:
            parts.append(f"{path}={_value_text(value)}")
    return ", ".join(parts)


def lookup(tree: Any, path: str) -> tuple[bool, Any]:
    """Return whether nested mappings have a dotted path, and its value."""
    for part in path.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False, None
        tree = tree[part]
    return True, tree


def _value_text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else canonical_json(value)
