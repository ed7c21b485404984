"""Searchers, which propose configurations (random, grid, or Optuna through Ray Tune), and schedulers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ray import tune
from ray.tune import schedulers
from ray.tune.schedulers import TrialScheduler

from pixelpick_ray.config.canonical import canonical_json
from pixelpick_ray.config.search import DomainSpec
from pixelpick_ray.data.streams import stream_seed
from pixelpick_ray.search.design import Search

RESOURCE, SCORE = "resource", "score"  # fields of a report, for schedulers
Values = Mapping[str, Any]


class Proposer(Protocol):
    """Proposes the configurations of a search, and learns from their results."""

    def propose(self, trial: str, index: int) -> Values | None:
        """Return the configuration of sample `index`, run as `trial`; None if it cannot be proposed yet."""

    def learn(self, trial: str, step: int, result: Mapping[str, Any]) -> None:
        """Learn the result of a configuration after a level, counted from 0."""

    def conclude(self, trial: str, score: float | None, result: Mapping[str, Any]) -> None:
        """Learn the final score; None if the trial was stopped, or if it failed, when `result` is empty."""


def make_proposer(search: Search, known: Sequence[Values]) -> Proposer:
    """Make the searcher of a search; it first proposes the `known` configurations again, in order."""
    spec = search.spec
    if spec.searcher in ("random", "grid"):
        return _Plain(search)
    first = [*known] if known or search.own_values is None else [search.own_values]
    return _Optuna(search, first, seed=stream_seed(spec.seed, "search", len(known)) % 2**31)


class _Plain:
    """Random configurations, drawn by sample number so that a restart repeats them, or grid points."""

    def __init__(self, search: Search) -> None:
        self._search = search

    def propose(self, trial: str, index: int) -> Values:
        return self._search.drawn(index)

    def learn(self, trial: str, step: int, result: Mapping[str, Any]) -> None:
        """Do nothing."""

    def conclude(self, trial: str, score: float | None, result: Mapping[str, Any]) -> None:
        """Do nothing."""


class _Optuna:
    """Ray Tune's wrapper of Optuna's sampler; choices are passed as JSON text, because it accepts only plain values."""

    def __init__(self, search: Search, first: Sequence[Values], *, seed: int) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = search.spec.space
        points = [{path: self._encoded(path, value) for path, value in point.items()} for point in first]
        self._given = {value for point in first for value in point.values() if isinstance(value, float)}
        space = OptunaSearch.convert_search_space({path: _domain(domain) for path, domain in self._space.items()})
        self._searcher = OptunaSearch(space, metric=SCORE, mode="max", points_to_evaluate=points, seed=seed)

    def _encoded(self, path: str, value: Any) -> Any:
        return value if self._space[path].is_range else canonical_json(value)

    def propose(self, trial: str, index: int) -> Values | None:
        found = self._searcher.suggest(trial)
        return {path: self._decoded(path, found[path]) for path in self._space} if isinstance(found, dict) else None

    def _decoded(self, path: str, value: Any) -> Any:
        domain = self._space[path]
        if not domain.is_range:
            return json.loads(str(value))
        if domain.kind == "randint":
            return int(value)
        number = float(value)
        return number if number in self._given else domain.rounded(number)  # a file's value may have more digits

    def learn(self, trial: str, step: int, result: Mapping[str, Any]) -> None:
        self._searcher.on_trial_result(trial, {**result, "training_iteration": step})

    def conclude(self, trial: str, score: float | None, result: Mapping[str, Any]) -> None:
        failed = not result
        told = None if failed or score is None else dict(result)  # the score of a stopped one is not final
        self._searcher.on_trial_complete(trial, told, error=failed)


def _domain(domain: DomainSpec) -> Any:
    if not domain.is_range:
        return tune.choice([canonical_json(value) for value in domain.values])
    low, high = domain.values
    if domain.kind == "randint":
        return tune.randint(low, high + 1)
    return tune.loguniform(low, high) if domain.kind == "loguniform" else tune.uniform(low, high)


def make_scheduler(search: Search) -> TrialScheduler:
    """Make the scheduler of a search, whose time unit is the levels' resource."""
    if search.spec.scheduler == "none":
        return schedulers.FIFOScheduler()
    return schedulers.ASHAScheduler(
        time_attr=RESOURCE,
        metric=SCORE,
        mode="max",
        max_t=search.levels[-1].resource,
        reduction_factor=search.spec.reduction_factor,
        grace_period=1,
        stop_last_trials=False,  # survivors of the last halving go on to the last level, where samples end
    )
