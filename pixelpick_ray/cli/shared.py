"""Helpers shared by commands: the plan of a file, and how to execute it."""

from pathlib import Path
from typing import Any

from pixelpick_ray.cli.options import (
    one_of,
)
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.data.cache import default_cache_path
from pixelpick_ray.errors import naming
from pixelpick_ray.planning import Plan, make_plan
from pixelpick_ray.search.design import Search, make_search
from pixelpick_ray.store import Store, absolute, absolute_path
from pixelpick_ray.store.records import as_stored


def execution_of(planned: Plan, data: Path, store: str, cache: Path | None, device: str, **options: Any) -> Execution:
    """Build the execution of a plan, with absolute paths. Raises SpecError for options that no run can have."""
    execution = Execution(
        absolute_path(data),
        absolute(store),
        absolute_path(cache or default_cache_path(data)),
        device=one_of("--device", device, ("auto", "cuda", "cpu")),
        **options,
    )
    execution.check({trial.training.batch_size for trial in planned.trials if trial.training})
    return execution


def planned_of(path: Path, overrides: list[str], store: str) -> Plan:
    """Return the plan of an experiment; for a search, that of the file's own values and of those in its space."""
    return asked_of(path, overrides, store)[0]


def asked_of(path: Path, overrides: list[str], store: str) -> tuple[Plan, Search | None]:
    """Return the plan of an experiment, as first run in the store, and its search, if any."""
    experiment = load_experiment(path, overrides)
    with naming(path.name):
        experiment = as_stored(Store(store), experiment)
        if experiment.search is None:
            return make_plan(experiment), None
        search = make_search(experiment)
        return search.ends_plan, search
