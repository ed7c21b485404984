"""What results cost and were made with, against sums worked out by hand."""

import shutil
from dataclasses import replace
from typing import Any

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.report.chains import load_chains
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.provenance import (
    Effort,
    device_hours,
    devices,
    effort_table,
    load_efforts,
    provenance_table,
    total_effort,
)
from tests.support.study import Study, experiment, matrix

GRID = "grid=[{acquire.strategy: [margin, random], seed: [0, 1], budget: [10, 20]}]"


def fill(study: Study, spec: Experiment, of: Any = lambda trial: True, **provenance: Any) -> None:
    """Store what is not stored yet of the trials that `of` chooses."""
    study.fill(spec, lambda trial: matrix(50) if of(trial) else None, **({"seconds": 3600.0} | provenance))


def load(study: Study, *specs: Experiment) -> tuple[Effort, ...]:
    results = study.results(*specs)
    return load_efforts(study.store, results, load_chains(study.store, results))


def last_columns(table: Table) -> list[tuple[str, ...]]:
    """Strategy, budget, fits, shared, seconds a fit, device hours and devices of each row."""
    head = ("strategy", "pixels per image", "fits", "shared", "seconds a fit", "device hours", "devices")
    assert (table.header[-7:], table.alignment) == (head, "lllrrrrrl")
    return [row[-7:] for row in table.rows]


def test_effort_is_told_by_cell_and_its_sum_counts_every_fit_once(study: Study) -> None:
    spec = experiment(GRID)
    fill(study, spec, lambda trial: (trial.budget, trial.seed) == (10, 0), seconds=900.0, world_size=4)
    fill(study, spec, lambda trial: (trial.budget, trial.seed) == (10, 1), seconds=1800.0, device="H100")
    fill(study, spec, lambda trial: trial.budget == 20, world_size=2)
    table = effort_table(load(study, spec))
    ten, twenty = ("10", "2", "0", "1350.0", "1.5", "H100, cpu"), ("20", "2", "0", "3600.0", "4", "cpu")
    assert last_columns(table) == [(name, *rest) for name in ("margin", "random") for rest in (ten, twenty)]
    assert table.caption == (
        "Fits of every stage: seconds of one, training and evaluation together, hours of the devices of all (seconds "
        "times ranks), and how many of them other lines of this table use too. Each fit counted once: "
        "8 fits, 11 device hours."
    )
    assert [device_hours(made) for made in ({"seconds": 900.0, "world_size": 4}, {"seconds": 900.0}, {})] == [
        1,
        0.25,
        0,
    ]


def test_a_shared_fit_counts_once_in_the_sum_and_a_removed_one_not_at_all(study: Study) -> None:
    spec, asked = experiment(GRID), experiment(GRID.replace("[10, 20]", "[20]"))
    fill(study, spec)
    assert load(study, asked) == load(study, spec)  # stages at which no trial ends count too
    assert total_effort(load(study, asked)) == (8, 8.0)
    assert devices(load(study, asked)) == ("cpu",)
    mine, *others, theirs, last = load(study, spec)
    common, own = next(iter(mine.fits)), list(theirs.fits)[1]
    shared = replace(theirs, fits={common: mine.fits[common], own: theirs.fits[own]})
    table = effort_table((mine, *others, shared, last))
    ten, twenty = ("10", "2", "1", "2"), ("20", "2", "0", "2")
    shares = [(name, *rest) for name in ("margin", "random") for rest in (ten, twenty)]
    assert [row[:4] + row[5:6] for row in last_columns(table)] == shares
    assert table.caption.endswith("Each fit counted once: 7 fits, 7 device hours.")
    shutil.rmtree(study.store.folder("fit", common))
    table = effort_table(load(study, spec))
    assert last_columns(table)[0] == ("margin", "10", "1", "0", "3600.0", "1", "cpu")
    assert table.caption.endswith("Each fit counted once: 7 fits, 7 device hours.")
    shutil.rmtree(study.store.path / "fit")
    assert effort_table(load(study, spec)) is None


def test_other_splits_and_epochs_do_not_count_a_fit_again_and_full_supervision_is_a_stage(study: Study) -> None:
    several = experiment(GRID, "evaluate={splits: {test: {}, val: {}}, report: test, when: every_epoch}")
    study.fill(several, lambda trial: [matrix(40), matrix(50)])
    assert [row[2:4] for row in last_columns(effort_table(load(study, several)))] == [("2", "0")] * 4
    spec = experiment("name=full", "grid=[{seed: [0, 1], budget: [10]}, {seed: [0], budget: [full]}]")
    fill(study, spec)
    rows = [row[:3] for row in last_columns(effort_table(load(study, spec)))]
    assert rows == [("margin", "10", "2"), ("full supervision", "all", "1")]


def rows(table: Table) -> dict[str, list[str]]:
    return {name: texts for name, *texts in table.rows}


def test_experiments_stand_side_by_side_with_what_they_were_made_with(study: Study) -> None:
    first, other = experiment(GRID), experiment(GRID, "name=other")

    def early(trial: Trial) -> bool:
        return (trial.seed, trial.budget, trial.acquire.strategy) == (0, 10, "margin")

    nothing = rows(provenance_table(study.results(first)))
    assert (nothing["fits"], nothing["code commits"]) == (["0"], ["-"])
    fill(study, first, early, code="abc+", seconds=900.0, world_size=2)
    fill(study, first, lambda trial: not early(trial), code="def", seconds=900.0, threads=4)
    # The same trials under another name: fits that are stored already are not made again.
    fill(study, other, lambda trial: trial.seed == 1, code="ghi")
    table = provenance_table(study.results(first, other))
    assert table.header == ("", "study", "other")
    assert table.alignment == "lll"
    assert rows(table) == {
        **{"fits": ["8", "4"], "devices": ["cpu"] * 2, "ranks": ["1 (7 fits), 2 (1 fit)", "1"]},
        **{"threads a rank": ["4 (7 fits), unknown (1 fit)", "4"], "torch": ["2.0"] * 2, "NumPy": ["unknown"] * 2},
        **{"Python": ["unknown"] * 2, "package": ["1"] * 2, "code commits": ["abc+ (1 fit), def (7 fits)", "def"]},
    }
    shutil.rmtree(study.store.folder("fit", study.results(first).readings[0].fit_key))
    assert rows(provenance_table(study.results(first)))["code commits"] == ["def (7 fits), unknown (1 fit)"]
