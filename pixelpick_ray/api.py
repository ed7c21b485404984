"""Python API: what the command line does, for scripts and notebooks.

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
    """Load an experiment file, your own or one shipped with the package, with fields overridden by dotted path.

    Pass overrides as keywords, such as ``**{"train.epochs": 2}``. Raises SpecError naming the offending file and key.
    """
    given = [f"{field}={json.dumps(value)}" for field, value in overrides.items()]
    return load_experiment(experiment_file(Path(path)), given)


def plan(experiment: Experiment) -> Plan:
    """List the trials and chains of an experiment and what they share; for a search, those of the values in its space.

    Needs neither data nor torch. Raises SpecError for an unknown data set, split, strategy or network.
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
    """Run what an experiment still lacks, on Ray or, if `local`, in this process, and return how the run ended.

    `on_event` is called for every epoch, stage and pick (`pixelpick_ray.events`). `options` are further fields of
    `Execution`, such as ``ranks=2`` or ``address="auto"``. An interrupt stops the run cleanly, with status 3. Raises
    SpecError or DataError for whatever the command line would reject.
    """
    if is_executing():
        raise SpecError(
            "run: called in a worker process; move the call that starts the run under `if __name__ == '__main__':`"
        )
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
    """Return all stored measurements of an experiment, with the columns of a report's ``rows.csv``.

    Empty if nothing is stored. Needs neither data nor torch.
    """
    import pandas as pd

    from pixelpick_ray.report.rows import load_results, rows_csv

    found = Store(str(store))
    return pd.read_csv(io.StringIO(rows_csv(load_results(found, [as_stored(found, experiment)]))))
