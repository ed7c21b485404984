"""Who proposes configurations: chance, the grid, or Optuna through Ray Tune; and the scheduler that stops bad ones."""

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

RESOURCE, SCORE = "resource", "score"  # of a report, for schedulers
Values = Mapping[str, Any]


class Proposer(Protocol):
    """Who proposes the configurations of a search, and learns from what becomes of them."""

    def propose(self, trial: str, index: int) -> Values | None:
        """The configuration of sample `index`, tried under the name `trial`; None when it cannot say yet."""

    def learn(self, trial: str, step: int, result: Mapping[str, Any]) -> None:
        """Take in what is known of a configuration after a level, which is counted from 0."""

    def conclude(self, trial: str, score: float | None, result: Mapping[str, Any]) -> None:
        """Take in the final score; None when it was stopped, or has failed if `result` is empty."""


def make_proposer(search: Search, known: Sequence[Values]) -> Proposer:
    """The searcher of a search that proposed `known` before; it proposes these again, in order, before it goes on."""
    spec = search.spec
    if spec.searcher in ("random", "grid"):
        return _Plain(search)
    first = [*known] if known or search.own_values is None else [search.own_values]
    return _Optuna(search, first, seed=stream_seed(spec.seed, "search", len(known)) % 2**31)


class _Plain:
    """By chance, addressed by the number of the sample so that no restart draws again; or the points of the grid."""

    def __init__(self, search: Search) -> None:
        self._search = search

    def propose(self, trial: str, index: int) -> Values:
        return self._search.drawn(index)

    def learn(self, trial: str, step: int, result: Mapping[str, Any]) -> None:
        """Chance does not learn."""

    def conclude(self, trial: str, score: float | None, result: Mapping[str, Any]) -> None:
        """Chance does not learn."""


class _Optuna:
    """Optuna's sampler, as Ray Tune has it. Choices travel as JSON text, since it knows plain values alone."""

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
        return number if number in self._given else domain.rounded(number)  # a file may have more digits

    def learn(self, trial: str, step: int, result: Mapping[str, Any]) -> None:
        self._searcher.on_trial_result(trial, {**result, "training_iteration": step})

    def conclude(self, trial: str, score: float | None, result: Mapping[str, Any]) -> None:
        failed = not result
        told = None if failed or score is None else dict(result)  # one that was stopped would have got further
        self._searcher.on_trial_complete(trial, told, error=failed)


def _domain(domain: DomainSpec) -> Any:
    if not domain.is_range:
        return tune.choice([canonical_json(value) for value in domain.values])
    low, high = domain.values
    if domain.kind == "randint":
        return tune.randint(low, high + 1)
    return tune.loguniform(low, high) if domain.kind == "loguniform" else tune.uniform(low, high)


def make_scheduler(search: Search) -> TrialScheduler:
    """The scheduler of a search; time is the resource of its levels."""
    if search.spec.scheduler == "none":
        return schedulers.FIFOScheduler()
    return schedulers.ASHAScheduler(
        time_attr=RESOURCE,
        metric=SCORE,
        mode="max",
        max_t=search.levels[-1].resource,
        reduction_factor=search.spec.reduction_factor,
        grace_period=1,
        stop_last_trials=False,  # who comes through the last halving goes to the last level, where the sample ends
    )
