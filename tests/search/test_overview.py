"""What `plan` and `status` tell of a search, from an empty store and from journals filled by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.search import overview
from pixelpick_ray.search.design import Search
from pixelpick_ray.search.journal import OWN as BY_FILE
from pixelpick_ray.search.journal import Journal
from pixelpick_ray.store import Store, run_lease
from tests.support.launch import launch, launch_without_torch
from tests.support.searches import BY_EPOCH, LR_ALONE, OTHER, OWN, TEXT, THREE_SEEDS, add, report_of, search_of

WHY = "asha: rank 2 of the 2 samples that had reached 10 px"
LOW = OWN | {"train.optimizer.lr": 1e-4}
HIGH = OWN | {"train.optimizer.lr": 1e-2}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the file of a search."""
    (tmp_path / "hunt.yaml").write_text(TEXT, encoding="utf-8")
    return tmp_path


@pytest.fixture
def store(place: Path) -> Store:
    return Store(place / "store")


@pytest.fixture
def begun(store: Store) -> Journal:
    """The journal of the search in the file."""
    return fill(store, search_of())


def fill(store: Store, search: Search) -> Journal:
    """One better than the file's own configuration, one stopped, one that failed, one not issued."""
    journal = Journal(store, search)
    add(journal, OWN, [0.3, 0.4, 0.5], origin=BY_FILE)
    add(journal, OTHER, [0.35, 0.45, 0.567])
    journal.stop(add(journal, LOW, [0.1]).index, WHY)
    journal.fail(add(journal, HIGH, []).index, "ValueError: loss is NaN")
    return journal


def answer(place: Path, command: str, *options: str) -> str:
    """What a command that succeeds prints of the search."""
    done = launch(place, command, "hunt.yaml", *options)
    assert (done.status, done.err) == (0, ""), done
    return done.out


def told(place: Path, command: str, *options: str) -> dict[str, Any]:
    """What a command prints of the search as JSON."""
    return json.loads(answer(place, command, "--json", *options))


def by_state(**numbers: int) -> dict[str, int]:
    return dict.fromkeys(overview.STATES, 0) | numbers


GRID, FILE = "search={searcher: grid, space: {train.epochs: {grid: [2, 4]}}}", "the file's own values"


@pytest.mark.parametrize(
    ("overrides", "numbers", "line"),
    [
        (["search.metric={budget: 20}"], [4 * 2, 4 * 2, 4 * (1 + 2), 4 * 2], f"optuna, first {FILE}; seeds 0"),
        (
            ["grid=[{seed: [0, 1], budget: [full]}]", "search.space={train.epochs: {choice: [2, 4]}}"],
            *([4 * 2, 4 * 2, 4 * 2, 0], f"optuna; {FILE} are not all in the space; seeds 0, 1"),
        ),
        # An epoch is no trial.
        ([LR_ALONE, *BY_EPOCH], [4 * 3, 4 * 4, 4 * (1 + 2 + 4), 4 * 4], f"optuna, first {FILE}; seeds 0"),
        ([GRID], [2 * 3, 2 * 4, 2 * 7, 2 * 4], "grid; seeds 0"),
    ],
)
def test_figures_count_budgets_and_points(overrides: list[str], numbers: list[int], line: str) -> None:
    search = search_of(*overrides)
    journal = Journal(Store("nowhere"), search)
    figures = overview.plan_figures(search, journal)
    assert [figures[name] for name in ("trials", "fits", "fits_unshared", "picks")] == numbers
    assert f"{search.spec.size} samples by {line}" in overview.plan_text(search, journal).splitlines()


PLAN = """\
train.optimizer.lr: loguniform 0.0001 to 0.01
acquire.strategy: choice of margin, random, entropy
4 samples by optuna, first the file's own values; seeds 0
judged by mIoU at 40 px on val, which is not reported
scheduler asha after 10 px, 20 px, 40 px
16 stages to train if no sample is stopped early; {stored} are stored
samples: {states}
"""


def test_plan_and_status_of_an_empty_store(place: Path) -> None:
    assert answer(place, "plan") == PLAN.format(stored=0, states="4 missing")
    chains = 4 * 3
    assert told(place, "plan", "--set", THREE_SEEDS) == {
        "experiment": "hunt",
        **{"trials": chains * 3, "chains": chains, "fits": chains * 4, "fits_unshared": chains * (1 + 2 + 4)},
        **{"picks": chains * 4, "stored_fits": 0, "stored_picks": None, "samples": 4},
        "levels": ["10 px", "20 px", "40 px"],
        **{"split": "val", "metric": "mIoU at 40 px", "searcher": "optuna", "scheduler": "asha"},
        "space": {
            "train.optimizer.lr": "loguniform 0.0001 to 0.01",
            "acquire.strategy": "choice of margin, random, entropy",
        },
        "samples_by_state": by_state(missing=4),
    }
    assert answer(place, "status") == "samples: 4 missing\n"
    nothing = {"rows": [], "best": None, "damaged": []}
    assert told(place, "status") == {"experiment": "hunt", "samples": by_state(missing=4)} | nothing
    assert [path.name for path in place.iterdir()] == ["hunt.yaml"]


def test_plan_of_a_search_that_has_begun_needs_neither_torch_nor_ray(place: Path, begun: Journal) -> None:
    begun.report(2, report_of(0.2, stage=1, sample=0))  # samples share stages, which are stored once
    states = "2 finished, 1 stopped, 1 failed"
    assert launch_without_torch(place, "plan", "hunt.yaml") == PLAN.format(stored=6, states=states)
    more, fewer = (answer(place, "plan", "--set", f"search.num_samples={number}") for number in (6, 2))
    assert more.endswith("samples: 2 finished, 1 stopped, 2 missing, 1 failed\n")
    assert "24 stages to train" in more
    assert fewer.endswith(f"samples: {states}\n")


def test_every_sample_is_in_one_state(store: Store) -> None:
    search = search_of("search.num_samples=9")
    journal = fill(store, search)
    add(journal, OTHER, [0.2])
    journal.fail(journal.stop(add(journal, OTHER, [0.1]).index, WHY).index, "OSError")  # stays stopped
    journal.fail(add(journal, OTHER, [0.1, 0.2, 0.3]).index, "OSError")  # and finished
    begin, end = ["finished", "finished", "stopped"], ["stopped", "finished"]
    states = [[overview.state_of(journal, one, alive=alive) for one in journal.samples] for alive in (False, True)]
    # What failed is tried again.
    assert states == [[*begin, "failed", "missing", *end], [*begin, "running", "running", *end]]
    journal.diverge(add(journal, OTHER, [0.1]).index, "the loss is nan")
    assert [overview.state_of(journal, journal.samples[-1], alive=alive) for alive in (False, True)] == ["diverged"] * 2
    over = {"diverged": 1, "finished": 3, "stopped": 2}
    assert overview.counts(search, journal) == by_state(**over, missing=2, failed=1)
    assert overview.counts(search, journal, alive=True) == by_state(**over, running=2, waiting=1)


def test_a_run_of_this_search_makes_it_alive_and_no_other(store: Store, place: Path) -> None:
    search = search_of("search.num_samples=6")
    journal = Journal(store, search)
    add(journal, OWN, [0.3, 0.4], origin=BY_FILE)
    add(journal, OTHER, [])
    with store.take("run", f"{run_lease(search_of('search.seed=1').experiment)}1"):
        assert not overview.search_status(search, store).alive
    with store.take("run", f"{run_lease(search.experiment)}1"):
        assert overview.search_status(search_of(), store).alive  # of another number of samples
        assert answer(place, "status", "--set", "search.num_samples=6") == (
            "sample 0: 30.0  40.0 (lr=0.001, strategy=margin) running\n"
            "sample 1: - (lr=0.0025, strategy=random) running\n"
            "samples: 2 running, 4 waiting\n"
        )
    assert answer(place, "status").endswith("samples: 4 missing\n")


STATUS = """\
sample 0: 30.0  40.0  50.0 (lr=0.001, strategy=margin) finished
sample 1: 35.0  45.0  56.7 (lr=0.0025, strategy=random) finished
sample 2: 10.0 (lr=0.0001, strategy=margin) stopped by asha: rank 2 of the 2 samples that had reached 10 px
sample 3: - (lr=0.01, strategy=margin) failed
FAILED sample 3: ValueError: loss is NaN
mIoU at 40 px on val, mean of seeds [0]
  1.  56.7 %  sample 1: lr=0.0025, strategy=random
  2.  50.0 %  sample 0 (the file): lr=0.001, strategy=margin
samples: 2 finished, 1 stopped, 1 failed
"""


def row(number: int, origin: str, values: dict[str, Any], state: str, scores: list[float], **more: str) -> Any:
    told = {"sample": number, "origin": origin, "values": values, "state": state, "scores": scores}
    return told | {"stopped": "", "error": "", "diverged": ""} | more


def test_status_has_a_line_a_sample_then_the_best(place: Path, store: Store, begun: Journal) -> None:
    assert launch_without_torch(place, "status", "hunt.yaml") == STATUS
    rows = [
        row(0, "file", OWN, "finished", [0.3, 0.4, 0.5]),
        row(1, "optuna", OTHER, "finished", [0.35, 0.45, 0.567]),
        row(2, "optuna", LOW, "stopped", [0.1], stopped=WHY),
        row(3, "optuna", HIGH, "failed", [], error="ValueError: loss is NaN"),
    ]
    known = {"experiment": "hunt", "samples": by_state(finished=2, stopped=1, failed=1), "rows": rows, "best": 1}
    assert told(place, "status") == known | {"damaged": []}
    aside = store.path / "damaged" / "fit-0123-4567"
    aside.mkdir(parents=True)
    (aside / "problem.txt").write_text("manifest.json: missing\n")
    line = "fit/0123: manifest.json: missing (set aside as damaged/fit-0123-4567)"
    assert f"DAMAGED {line}\n" in answer(place, "status")
    assert told(place, "status")["damaged"] == [line]
    (record,) = place.glob("store/experiments/*/samples/00001.json")
    record.write_text("{}")
    assert f"DAMAGED {record.relative_to(store.path)}: is not valid (KeyError('values'))" in answer(place, "plan")


def test_the_best_five_are_shown_and_the_file_wherever_it_stands(store: Store) -> None:
    search = search_of(THREE_SEEDS, "search.num_samples=9")
    journal = Journal(store, search)
    add(journal, OWN, [0.1, 0.1, 0.1], origin=BY_FILE)
    for score in (0.3, 0.5, 0.2, 0.5, 0.4, 0.6, 0.15):
        add(journal, OTHER, [0.9, 0.9, score])
    journal.stop(add(journal, OTHER, [0.9, 0.9]).index, WHY)
    best = ((1, "60.0", 6), (2, "50.0", 2), (3, "50.0", 4), (4, "40.0", 5), (5, "30.0", 1))  # the earlier one of equals
    assert overview.best_text(search, journal).splitlines() == [
        "mIoU at 40 px on val, mean of seeds [0, 1, 2]",
        *(f"  {rank}.  {score} %  sample {index}: lr=0.0025, strategy=random" for rank, score, index in best),
        "  8.  10.0 %  sample 0 (the file): lr=0.001, strategy=margin",
    ]


def test_a_configuration_is_a_line() -> None:
    unclear = {"train.precision": "bf16", "acquire.precision": "fp32"}  # from the last name alone
    text = "train.precision=bf16, acquire.precision=fp32, epochs=3"
    assert overview.values_text(unclear | {"train.epochs": 3}) == text
    nested = {"model": {"backbone": "resnet50"}, "dataset.size": [90, 120]}
    assert overview.values_text(nested) == "model={backbone: resnet50}, size=[90, 120]"
    assert overview.values_text({}) == ""
