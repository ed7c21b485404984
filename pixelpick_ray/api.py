"""The Python interface: what the command line does, for programs and notebooks.

>>> import pixelpick_ray as pp
>>> experiment = pp.load("experiments/quickstart-training.yaml", **{"train.epochs": 2})
>>> print(pp.plan(experiment).sharing)
>>> result = pp.run(experiment, local=True, on_event=print)
>>> pp.results("store", experiment)
"""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import Experiment, load_experiment
from pixelpick_ray.config.parts import is_executing, register
from pixelpick_ray.config.shipped import experiment_file
from pixelpick_ray.data.cache import default_cache_path
from pixelpick_ray.errors import SpecError
from pixelpick_ray.events import Event
from pixelpick_ray.planning import Plan, make_plan
from pixelpick_ray.runner.byproducts import Output
from pixelpick_ray.runner.session import Outcome, StopRequest, begin
from pixelpick_ray.search.design import make_search
from pixelpick_ray.store import Store, absolute, absolute_path
from pixelpick_ray.store.records import as_stored

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["load", "plan", "register", "results", "run"]


def load(path: str | Path, **overrides: Any) -> Experiment:
    """The experiment of a file, or of one that comes with the package, with other values at dotted paths.

    These are keywords, such as ``**{"train.epochs": 2}``. SpecError names file and key of what is wrong.
    """
    given = [f"{field}={json.dumps(value)}" for field, value in overrides.items()]
    return load_experiment(experiment_file(Path(path)), given)


def plan(experiment: Experiment) -> Plan:
    """The trials of an experiment, its chains, and what they share; of a search, those of the values in its space.

    SpecError for an unknown data set, split, strategy or network. Needs neither data nor torch.
    """
    return make_plan(experiment) if experiment.search is None else make_search(experiment).ends_plan


def run(
    experiment: Experiment,
    *,
    store: str | Path = "store",
    data: str | Path = "data",
    cache: str | Path | None = None,
    runs: str | Path = "runs",
    local: bool = False,
    on_event: Callable[[Event], None] | None = None,
    time_limit_seconds: float | None = None,
    verbose: bool = False,
    **options: Any,
) -> Outcome:
    """Run what is missing of an experiment, on Ray or with `local` in this process; says how it ended.

    `on_event` hears of every epoch, stage and pick (`pixelpick_ray.events`). `options` are further fields of
    `Execution`, such as ``ranks=2`` or ``address="auto"``. An interrupt stops cleanly, with status 3. SpecError and
    DataError for what the command line refuses.
    """
    if is_executing():
        raise SpecError("run: this is a worker; put what starts a run under `if __name__ == '__main__':`")
    experiment = as_stored(Store(absolute(str(store))), experiment)
    search = None if experiment.search is None else make_search(experiment)
    data = Path(data)
    execution = Execution(
        absolute_path(data),
        absolute(str(store)),
        absolute_path(Path(cache or default_cache_path(data))),
        runs_path=absolute_path(Path(runs)),
        time_limit_seconds=time_limit_seconds,
        **options,
    )
    planned = make_plan(experiment) if search is None else search.ends_plan
    execution.check({trial.training.batch_size for trial in planned.trials if trial.training})
    return begin(
        planned,
        search,
        execution,
        Console(file=cast(TextIO, Output(sys.stdout if verbose else io.StringIO(), expendable=True)), highlight=False),
        StopRequest(time_limit_seconds),
        source=Path(f"{experiment.name}.yaml"),
        local=local,
        annotate=f"annotate {experiment.name}.yaml",
        listeners=() if on_event is None else (on_event,),
    )


def results(store: str | Path, experiment: Experiment) -> "DataFrame":
    """Every measurement that is stored of an experiment, with the columns of a report's ``rows.csv``.

    Empty where nothing is stored. Needs neither data nor torch.
    """
    import pandas as pd

    from pixelpick_ray.report.rows import load_results, rows_csv

    found = Store(str(store))
    return pd.read_csv(io.StringIO(rows_csv(load_results(found, [as_stored(found, experiment)]))))
