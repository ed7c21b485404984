"""The experiment that a search has found: what it measures, what its file says, how it is named."""

import re
from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.config.command import typed
from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.search.design import Search
from pixelpick_ray.search.found import copy_found, found_experiment, found_path, found_text, write_found
from pixelpick_ray.search.journal import OWN as BY_FILE
from pixelpick_ray.search.journal import Journal, Sample
from pixelpick_ray.store import Store
from tests.support.searches import BY_EPOCH, LR_ALONE, OTHER, OWN, add, search_of

SOURCE = Path("experiments") / "hunt.yaml"


def journal_of(search: Search, folder: Path) -> Journal:
    """The file's own configuration, one that was stopped, and a better one."""
    journal = Journal(Store(folder / "store"), search)
    add(journal, OWN, [0.3, 0.4, 0.5], origin=BY_FILE)
    journal.stop(add(journal, OWN | {"train.optimizer.lr": 1e-4}, [0.1]).index, "asha: rank 2 of the 2")
    add(journal, OTHER, [0.35, 0.45, 0.56789])
    return journal


def sample_of(search: Search, **values: object) -> Sample:
    return Sample(0, {path.replace("__", "."): value for path, value in values.items()}, "optuna")


def test_it_has_the_configuration_and_all_else_of_the_file(tmp_path: Path) -> None:
    search = search_of("oracle={name: erring, rate: 0.1}", "dataset.images=20")
    found, asked = found_experiment(search, journal_of(search, tmp_path).best()), search.experiment
    assert found.train.optimizer.lr == 0.0025
    assert found.acquire.strategy == "random"
    for field in ("dataset", "model", "oracle", "evaluate"):
        assert getattr(found, field) == getattr(asked, field)
    assert found.train.model_dump(exclude={"optimizer"}) == asked.train.model_dump(exclude={"optimizer"})
    assert found.acquire.model_dump(exclude={"strategy"}) == asked.acquire.model_dump(exclude={"strategy"})
    assert found.search is None


def test_its_trials_are_those_of_its_own_grid_with_new_seeds_evaluated_as_the_file_says() -> None:
    for seeds, unused in (([0, 1, 2], "34567"), ([7, 3], "01245")):
        search = search_of(f"grid=[{{seed: {seeds}, budget: [10, 20, 40]}}]")
        assert found_experiment(search, sample_of(search)).grid[0]["seed"] == tuple(map(int, unused))
    search = search_of("search.metric={budget: 20}")
    trials = found_experiment(search, sample_of(search, train__optimizer__lr=0.002)).trials()
    wanted = [(seed, budget) for seed in range(1, 6) for budget in (10, 20, 40)]  # all budgets, not up to the metric's
    assert [(trial.seed, trial.budget) for trial in trials] == wanted
    assert {trial.train.optimizer.lr for trial in trials} == {0.002}
    search = search_of("search.space={dataset.size: {choice: [[360, 480], [90, 120]]}}", "search.held_out=0.2")
    found = found_experiment(search, sample_of(search, dataset__size=[90, 120]))
    assert (found.dataset.size, found.dataset.held_out) == ((90, 120), None)  # what was held out is trained on again
    search = search_of("dataset.held_out=0.25")
    assert {trial.dataset.held_out for trial in found_experiment(search, sample_of(search)).trials()} == {0.25}
    search = search_of("evaluate={splits: {test: {size: [180, 240]}, val: {}}, when: every_epoch, report: test}")
    assert found_experiment(search, sample_of(search)).evaluate == search.experiment.evaluate


def test_its_name_tells_configurations_apart_and_nothing_else() -> None:
    search = search_of()
    names = [found_experiment(search, Sample(index, OTHER, "optuna")).name for index in (0, 5)]
    assert names[0] == names[1]
    assert re.fullmatch(r"hunt-[0-9a-f]{6}", names[0])
    assert found_experiment(search, Sample(0, OWN, "file")).name != names[0]
    more = found_experiment(search_of("search.num_samples=9"), Sample(0, OTHER, "optuna"))
    assert more == found_experiment(search, Sample(0, OTHER, "optuna"))
    found = found_experiment(search_of(f"name={'a' * 80}"), Sample(0, OTHER, "optuna"))
    assert re.fullmatch(r"a{70}-[0-9a-f]{6}", found.name)
    titles = [found_experiment(each, Sample(0, OTHER, "optuna")).title for each in (search, search_of("title=''"))]
    assert titles == ["Street scenes, as found", "hunt, as found"]


def test_the_file_says_how_it_was_found(tmp_path: Path) -> None:
    search = search_of("search.scheduler=none", "search.seed=3", "grid=[{seed: [0, 1], budget: [10, 20, 40]}]")
    journal = journal_of(search, tmp_path)
    best = journal.best()
    path = found_path(search, best, SOURCE)
    lines = found_text(search, journal, best, SOURCE).splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert lines[: len(header)] == header
    assert header == [
        "# Found by the search in hunt.yaml: sample 2, the best of 3, 1 of which were stopped early.",
        "# mIoU at 40 px on val, seed 0, 1: 56.79 %; the file's own configuration: 50.00 %.",
        "# Searched by optuna with scheduler none, seed 3:",
        "#   train.optimizer.lr: loguniform 0.0001 to 0.01; found 0.0025",
        "#   acquire.strategy: choice of margin, random, entropy; found random",
        "# It was chosen by val, so that its scores there are no measurement. Its seeds are new; the table",
        f"# on test is made by: {typed()} run {path}",
    ]
    assert lines[len(header)] == f"name: {path.stem}"


@pytest.mark.parametrize(
    ("scores", "told"),
    # Where the own configuration was not judged at the end there is nothing to compare with.
    [([0.3, 0.4, 0.55], "55.00 %, the file's own configuration.\n"), ([0.3], "50.00 %.\n")],
)
def test_the_file_says_where_its_own_values_are_the_best(tmp_path: Path, scores: list[float], told: str) -> None:
    search = search_of()
    journal = Journal(Store(tmp_path), search)
    add(journal, OTHER, [0.3, 0.4, 0.5])
    add(journal, OWN, scores, origin=BY_FILE)
    assert f"# mIoU at 40 px on val, seed 0: {told}" in found_text(search, journal, journal.best(), SOURCE)


WORDS = (
    "search.space={train.schedule: {choice: [{name: constant}, {name: poly, power: 2}]}, acquire.stochastic: "
    '{choice: [null, {passes: 2}]}, model.pretrained: {choice: [none, "file:a: b\\n# c.pt"]}}'
)
VALUES = {
    **{"train.schedule": {"name": "poly", "power": 2}, "acquire.stochastic": None},
    **{"model.pretrained": "file:a: b # c.pt"},
}


@pytest.mark.parametrize(
    ("overrides", "values", "told"),
    [
        (["search.held_out=0.3"], OTHER, ["; found random\n"]),
        ([LR_ALONE, *BY_EPOCH], {"train.optimizer.lr": 0.0025}, ["; found 0.0025\n"]),
        (["dataset.held_out=0.2", "search.metric={name: area, budget: 20}"], OTHER, ["held_out: 0.2"]),
        # Values that are no plain words, on one line.
        ([WORDS], VALUES, [f"; found {value}\n" for value in ("{name: poly, power: 2}", "null", "'file:a: b # c.pt'")]),
    ],
)
def test_the_file_is_read_back_as_the_experiment(tmp_path: Path, overrides: Any, values: Any, told: list[str]) -> None:
    search = search_of(*overrides)
    journal = Journal(Store(tmp_path / "store"), search)
    sample = add(journal, values, [0.5] * len(search.levels))
    path, _ = copy_found(search, journal, sample, tmp_path / "hunt.yaml")
    found, again, text = found_experiment(search, sample), load_experiment(path), path.read_text(encoding="utf-8")
    assert again == found
    assert (again.trials(), again.identity()) == (found.trials(), found.identity())
    assert not re.search(r"^search:", text, re.MULTILINE)
    assert all(words in text for words in told)


def test_it_is_written_beside_the_file_of_the_search_and_again_when_more_is_known(tmp_path: Path) -> None:
    search = search_of()
    journal, source = journal_of(search, tmp_path), tmp_path / "mine" / "hunt.yaml"
    source.parent.mkdir()
    path = found_path(search, journal.best(), source)
    assert copy_found(search, journal, journal.best(), source) == (path, "")
    assert path.parent == tmp_path / "mine" / "found"
    assert path.read_text(encoding="utf-8") == found_text(search, journal, journal.best(), source)
    add(journal, OWN, [0.1, 0.1, 0.1])
    assert copy_found(search, journal, journal.best(), source) == (path, "")
    assert "the best of 4" in path.read_text(encoding="utf-8")
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("blocked", ["the folder is a file", "the file is a folder"])
def test_where_no_copy_can_be_written_it_is_in_the_store(tmp_path: Path, blocked: str) -> None:
    search = search_of()
    journal, source = journal_of(search, tmp_path), tmp_path / "mine" / "hunt.yaml"
    path = found_path(search, journal.best(), source)
    if blocked == "the file is a folder":
        path.mkdir(parents=True)
    else:
        path.parent.parent.mkdir()
        path.parent.write_text("")
    assert copy_found(search, journal, journal.best(), source)[1].startswith(f"{path}: cannot be written (")
    store = Store(tmp_path / "store")
    kept = Path(write_found(search, journal, journal.best(), source, store))
    assert kept.is_relative_to(store.path / "experiments")
    assert load_experiment(kept) == found_experiment(search, journal.best())
