"""Who proposes configurations: chance, the grid, or a library's searcher; and the schedulers that stop bad ones."""

import importlib.util
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ray import tune
from ray.tune import schedulers
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from pixelpick_ray.config.canonical import canonical_json
from pixelpick_ray.config.search import DomainSpec
from pixelpick_ray.data.streams import stream, stream_seed
from pixelpick_ray.errors import SpecError
from pixelpick_ray.search.design import Search

RESOURCE, SCORE = "resource", "score"  # of a report, for schedulers
PACKAGES = {"optuna": ("optuna",), "hyperopt": ("hyperopt",), "bohb": ("hpbandster", "ConfigSpace")}
Values = Mapping[str, Any]


class Proposer(Protocol):
    """Who proposes the configurations of a search, and learns from what becomes of them."""

    def propose(self, trial: str, index: int) -> Values | None:
        """The configuration of sample `index`, tried under the name `trial`; None when it cannot say yet."""

    def learn(self, trial: str, step: int, result: Mapping[str, Any]) -> None:
        """Take in what is known of a configuration after a level, which is counted from 0."""

    def conclude(self, trial: str, score: float | None, result: Mapping[str, Any]) -> None:
        """Take in the final score; None when it was stopped, or has failed if `result` is empty."""

    def rest(self, trial: str) -> None:
        """A configuration waits for others to get as far."""

    def resume(self, trial: str) -> None:
        """A configuration that waited goes on."""


def make_proposer(search: Search, known: Sequence[Values]) -> Proposer:
    """The searcher of a search that proposed `known` before. SpecError when its package is not installed.

    It proposes these again, in order, before it goes on.
    """
    spec = search.spec
    if spec.searcher in ("random", "grid"):
        return _Plain(search)
    first = [*known] if known or search.own_values is None else [search.own_values]
    return _Library(search, first, seed=stream_seed(spec.seed, "search", len(known)) % 2**31)


def check_searcher(name: str) -> None:
    """SpecError when the package of a searcher is not installed."""
    if missing := [package for package in PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]:
        raise SpecError(
            f"search.searcher: {name} needs {' and '.join(missing)}, which is not installed; "
            f"pip install {' '.join(missing)}, or take searcher: optuna"
        )


class _Plain:
    """By chance, addressed by the number of the sample so that no restart draws again; or the points of the grid."""

    def __init__(self, search: Search) -> None:
        self._spec, self._own = search.spec, search.own_values

    def propose(self, trial: str, index: int) -> Values:
        if self._spec.searcher == "grid":
            return self._spec.point(index)
        if index == 0 and self._own is not None:
            return self._own
        chance = stream(self._spec.seed, "search", index)
        return {path: domain.draw(chance) for path, domain in self._spec.space.items()}

    def learn(self, trial: str, step: int, result: Mapping[str, Any]) -> None:
        """Chance does not learn."""

    def conclude(self, trial: str, score: float | None, result: Mapping[str, Any]) -> None:
        """Chance does not learn."""

    def rest(self, trial: str) -> None:
        """Nothing to do."""

    def resume(self, trial: str) -> None:
        """Nothing to do."""


class _Library:
    """A searcher of Ray Tune. Choices travel as JSON text, since libraries know plain values alone."""

    def __init__(self, search: Search, first: Sequence[Values], *, seed: int) -> None:
        self._space = search.spec.space
        points = [{path: self._encoded(path, value) for path, value in point.items()} for point in first]
        space = {path: _domain(domain) for path, domain in self._space.items()}
        self._given = {value for point in first for value in point.values() if isinstance(value, float)}
        self._prunes = search.spec.searcher == "optuna"
        self._searcher = _LIBRARIES[search.spec.searcher](space, points, seed)

    def _encoded(self, path: str, value: Any) -> Any:
        return value if self._space[path].is_range else canonical_json(value)

    def propose(self, trial: str, index: int) -> Values | None:
        found = self._searcher.suggest(trial)
        if not isinstance(found, dict):
            return None
        return {path: self._decoded(path, found[path]) for path in self._space}

    def _decoded(self, path: str, value: Any) -> Any:
        domain = self._space[path]
        if not domain.is_range:
            return json.loads(str(value))
        if domain.kind == "randint":
            return int(value)
        number = float(value)
        return number if number in self._given else domain.rounded(number)  # a file may have more digits

    def learn(self, trial: str, step: int, result: Mapping[str, Any]) -> None:
        self._searcher.on_trial_result(trial, {**result, "training_iteration": step})

    def conclude(self, trial: str, score: float | None, result: Mapping[str, Any]) -> None:
        failed = not result
        if score is None and self._prunes:  # it knows that a stopped one would have got further
            self._searcher.on_trial_complete(trial, None, error=failed)
        else:
            self._searcher.on_trial_complete(trial, None if failed else dict(result), error=failed)

    def rest(self, trial: str) -> None:
        if hasattr(self._searcher, "on_pause"):
            self._searcher.on_pause(trial)

    def resume(self, trial: str) -> None:
        if hasattr(self._searcher, "on_unpause"):
            self._searcher.on_unpause(trial)


def _domain(domain: DomainSpec) -> Any:
    if not domain.is_range:
        return tune.choice([canonical_json(value) for value in domain.values])
    low, high = domain.values
    if domain.kind == "randint":
        return tune.randint(low, high + 1)
    return tune.loguniform(low, high) if domain.kind == "loguniform" else tune.uniform(low, high)


def _optuna(space: dict[str, Any], points: list[dict[str, Any]], seed: int) -> Searcher:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = OptunaSearch.convert_search_space(space)
    return OptunaSearch(distributions, metric=SCORE, mode="max", points_to_evaluate=points, seed=seed)


def _hyperopt(space: dict[str, Any], points: list[dict[str, Any]], seed: int) -> Searcher:
    from ray.tune.search.hyperopt import HyperOptSearch

    logging.getLogger("hyperopt").setLevel(logging.ERROR)
    return HyperOptSearch(
        HyperOptSearch.convert_search_space(space),
        metric=SCORE,
        mode="max",
        points_to_evaluate=points or None,
        random_state_seed=seed,
    )


def _bohb(space: dict[str, Any], points: list[dict[str, Any]], seed: int) -> Searcher:
    from ray.tune.search.bohb import TuneBOHB

    logging.getLogger("hpbandster").setLevel(logging.ERROR)
    return TuneBOHB(
        TuneBOHB.convert_search_space(space), metric=SCORE, mode="max", points_to_evaluate=points or None, seed=seed
    )


_LIBRARIES = {"optuna": _optuna, "hyperopt": _hyperopt, "bohb": _bohb}


def make_scheduler(search: Search) -> TrialScheduler:
    """The scheduler of a search; time is the resource of its levels."""
    spec, last = search.spec, search.levels[-1].resource
    common: dict[str, Any] = {"time_attr": RESOURCE, "metric": SCORE, "mode": "max"}
    if spec.scheduler == "none":
        return schedulers.FIFOScheduler()
    if spec.scheduler == "median":
        # It never pauses to let others go first, and may be overruled: its word for a stop is then PAUSE.
        return schedulers.MedianStoppingRule(**common, grace_period=1, min_time_slice=math.inf, hard_stop=False)
    # Who comes through the last halving goes to the last level, where the sample ends by itself.
    halving = common | {"max_t": last, "reduction_factor": spec.reduction_factor, "stop_last_trials": False}
    if spec.scheduler == "asha":
        return schedulers.ASHAScheduler(**halving, grace_period=1)
    # The plain one of Tune halves a bracket before it is full when few trials run at the same time.
    return schedulers.HyperBandForBOHB(**halving)
