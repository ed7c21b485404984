"""The outcome of a search, as an experiment of its own."""

import itertools
from pathlib import Path

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.command import typed
from pixelpick_ray.config.experiment import Experiment, dump_experiment
from pixelpick_ray.config.search import value_text
from pixelpick_ray.config.shipped import is_shipped
from pixelpick_ray.search.design import Search
from pixelpick_ray.search.journal import Journal, Sample
from pixelpick_ray.store import Store, paths
from pixelpick_ray.store.outputs import replace_files

NUM_SEEDS = 5  # as in the paper


def found_experiment(search: Search, sample: Sample) -> Experiment:
    """Build the experiment with a sample's configuration, seeds unused by the search, and the file's own evaluation.

    Its name depends on the configuration, so continuing a search never gives a name two meanings.
    """
    asked = search.experiment
    trial = search.trial(sample.values, seed=0, budget=search.levels[-1].budget)
    unused = (seed for seed in itertools.count() if seed not in search.seeds)
    return asked.model_copy(
        update={
            "name": f"{asked.name[:70]}-{digest(dict(sample.values))[:6]}",
            "title": f"{asked.title or asked.name}, as found",
            "dataset": trial.dataset.model_copy(update={"held_out": asked.dataset.held_out}),
            "model": trial.model,
            "train": trial.train,
            "acquire": trial.acquire,
            "grid": ({"seed": tuple(itertools.islice(unused, NUM_SEEDS)), "budget": asked.grid[0]["budget"]},),
            "search": None,
        }
    )


def found_path(search: Search, sample: Sample, source: Path) -> Path:
    """Return where to write a sample's experiment: next to the search's file, or here if that is a shipped one."""
    folder = Path() if is_shipped(source) else source.parent
    return folder / "found" / f"{found_experiment(search, sample).name}.yaml"


def write_found(search: Search, journal: Journal, sample: Sample, source: Path, store: Store) -> str:
    """Write the experiment of a sample to the store and return its location. Raises StoreError if that fails."""
    path = paths.found(search.experiment, found_experiment(search, sample).name)
    store.write_text(path, found_text(search, journal, sample, source))
    return f"{store.address}/{path}"


def copy_found(search: Search, journal: Journal, sample: Sample, source: Path) -> tuple[Path, str]:
    """Write the experiment of a sample next to the search's file; return its path and an error message, "" if none."""
    path = found_path(search, sample, source)
    try:
        replace_files({path: found_text(search, journal, sample, source).encode()})
    except OSError as error:
        return path, f"{path}: cannot be written ({error.strerror})"
    return path, ""


def found_text(search: Search, journal: Journal, sample: Sample, source: Path) -> str:
    """Return the experiment file of a sample, with comments on how it was found."""
    spec, experiment = search.spec, found_experiment(search, sample)
    stopped = sum(bool(one.stopped) for one in journal.samples)
    seeds, score = ", ".join(map(str, search.seeds)), f"{100 * sample.reports[-1].score:.2f} %{_own(journal, sample)}"
    space = [(path, domain.in_words(), value_text(sample.values[path])) for path, domain in spec.space.items()]
    lines = [
        f"Found by the search in {source.name}: {sample.label}, the best of {len(journal.samples)}, {stopped} of which "
        "were stopped early.",
        f"{search.metric_text} on {search.split}, seed {seeds}: {score}.",
        f"Searched by {spec.searcher} with scheduler {spec.scheduler}, seed {spec.seed}:",
        *(f"  {path}: {domain}; found {value}" for path, domain, value in space),
        f"It was chosen by {search.split}, so that its scores there are no measurement. Its seeds are new; the table",
        f"on {experiment.evaluate.report} is made by: {typed()} run {found_path(search, sample, source)}",
    ]
    return "".join(f"# {line}\n" for line in lines) + dump_experiment(experiment)


def _own(journal: Journal, sample: Sample) -> str:
    """The score of the file's own configuration, if it is another one and is finished."""
    if sample.is_own:
        return ", the file's own configuration"
    own = next((one for one in journal.samples if one.is_own and journal.is_finished(one)), None)
    return "" if own is None else f"; the file's own configuration: {100 * own.reports[-1].score:.2f} %"
