"""What labels cost, and what results cost and were made with, against sums worked out by hand."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.errors import SpecError
from pixelpick_ray.report import provenance
from pixelpick_ray.report.cells import build_cells, reported
from pixelpick_ray.report.chains import load_chains
from pixelpick_ray.report.costs import Cost, CostModel, Costs, FullCost, cost_table, costs_of, read_cost_model
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.queries import load_queries
from tests.support.study import Study, exact, experiment, matrix

GRID = "grid=[{acquire.strategy: [margin], seed: [0, 1], budget: [10, 20]}, {seed: [0, 1], budget: [full]}]"
SPEC = experiment(GRID)
PRICES = {"seconds_per_pixel": 2, "seconds_per_image": 10, "currency": "EUR"}
FULL = FullCost(clicks_per_image=600, seconds_per_image=5400)


def asked(trial: Trial, stage: int) -> dict[str, Any]:
    """Statistics of 4 images: 40 pixels per stage, of which seed 1 gets 10 more of the class road at stage 1."""
    road = 10 + 10 * trial.seed * stage
    return {"pixels": 40, "images": 4, "class_counts": [40 - road, road], "distinct_classes": 2.0}


def by_budget(study: Study, model: CostModel, tell: Any = asked) -> dict[Any, Cost]:
    return {budget: cost for (_, budget), cost in costs(study, model, SPEC, tell).by_cell.items()}


def costs(study: Study, model: CostModel, spec: Experiment = SPEC, tell: Any = asked) -> Costs:
    study.fill(spec, lambda trial: exact(500))
    study.ask(spec, tell)
    results = study.results(spec)
    return costs_of(model, load_queries(study.store, study.chains(spec)), reported(results, build_cells(results)))


def test_costs_add_up_over_stages_and_are_means_over_seeds(study: Study) -> None:
    def refused(trial: Trial, stage: int) -> dict[str, Any]:
        return asked(trial, stage) | {"refused": 3 * stage}

    more = {"clicks_per_pixel": 1.5, "seconds_per_class": {"road": 5}, "money_per_hour": 36}
    found = by_budget(study, CostModel(**PRICES, **more, full=FULL))
    # A first stage is 30 x 2 s + 10 x 5 s + 4 images x 10 s = 150 s; a second one 150 s, or 180 s for seed 1.
    assert found[10] == Cost(clicks=60.0, seconds=150.0, money=1.5)
    assert found[20] == Cost(clicks=120.0, seconds=315.0, money=pytest.approx(3.15))
    assert found["full"] == Cost(clicks=2400.0, seconds=21600.0, money=pytest.approx(216.0))
    model, other = CostModel(seconds_per_pixel=2, seconds_per_class={"road": 5}), experiment(GRID, "train.epochs=3")
    found = costs(study, model, other, refused)
    # Pixels that got no class cost what a pixel does: 30 x 2 s + 10 x 5 s, twice; for seed 1 the second time 30 s more;
    # 3 x 2 s. Full supervision has no cost where the model has none.
    assert list(found.by_cell.values()) == [Cost(40.0, 110.0, None), Cost(83.0, 241.0, None)]
    assert list(found.quantities) == ["clicks", "hours of annotation"]  # no money without a wage
    assert list(found.quantities["hours of annotation"].values()) == [110 / 3600, 241 / 3600]
    with pytest.raises(SpecError, match="no data set of this report has the class 'raod'; allowed: sky, road"):
        costs(study, CostModel(seconds_per_pixel=2, seconds_per_class={"raod": 5}))


def test_without_statistics_there_is_no_cost_and_the_number_of_images_is_that_of_the_same_setting(study: Study) -> None:
    def tell(trial: Trial, stage: int) -> dict[str, Any] | None:
        images = {"images": trial.dataset.images or 4}
        return None if trial.seed == stage == 1 else asked(trial, stage) | images

    model = CostModel(seconds_per_pixel=2, full=FULL)
    assert set(by_budget(study, model, tell)) == {10, "full"}
    assert costs(study, model, experiment(GRID, "train.epochs=3"), lambda *_: None).by_cell == {}
    few, all_of_them = (f"{{dataset.images: [4, 7], seed: [0], budget: [{budget}]}}" for budget in (10, "full"))
    found = costs(study, model, experiment(f"grid=[{few}, {all_of_them}]"), tell)
    full = {line.setting: cost.clicks for (line, budget), cost in found.by_cell.items() if budget == "full"}
    assert full == {"dataset.images=4": 2400.0, "dataset.images=7": 4200.0}


def test_the_table_says_what_it_assumes_and_what_it_leaves_out(study: Study) -> None:
    found = costs(study, CostModel(**PRICES, seconds_per_class={"road": 4.5}, money_per_hour=20))
    results = study.results(SPEC)
    table = cost_table(results, build_cells(results), found)
    # 30 x 2 + 10 x 4.5 + 40 = 145 s; twice that and, for seed 1, 10 x 2.5 s more: 302.5 s in the mean.
    assert table.header[-6:] == ("pixels per image", "clicks", "hours of annotation", "money (EUR)", "mIoU (%)", "n")
    assert [row[-6:] for row in table.rows] == [
        ("10", "40", "0.0403", "0.806", "50.0 ± 0.0", "2"),
        ("20", "80", "0.084", "1.68", "50.0 ± 0.0", "2"),
    ]
    assert table.notes == (
        "Assumed: 1 click and 2 s per pixel (road 4.5 s); 10 s to open an image at each stage; 20 EUR per hour.",
        "One result is left out: the cost is unknown, because statistics are not stored or the model lacks a cost.",
    )


def test_a_file_is_read_with_its_defaults_and_a_wrong_one_is_refused_with_its_name_and_key(tmp_path: Path) -> None:
    path = tmp_path / "cost.yaml"
    with pytest.raises(SpecError, match=r"cost\.yaml: cannot be read .* give the path of a cost model"):
        read_cost_model(path)
    path.write_text("seconds_per_pixel: 2.5\nfull: {clicks_per_image: 600, seconds_per_image: 5400}\n")
    assert read_cost_model(path) == CostModel(clicks_per_pixel=1, seconds_per_pixel=2.5, full=FULL)
    for text, message in {
        "seconds_per_pixl: 2": "cost.yaml: seconds_per_pixl: unknown key; allowed: clicks_per_pixel, seconds_per_pixel",
        "clicks_per_pixel: 2": "cost.yaml: seconds_per_pixel: is required",
        "seconds_per_pixel: .inf": "cost.yaml: seconds_per_pixel: Input should be a finite number; got inf",
        "{seconds_per_pixel: 1, full: 3}": "cost.yaml: full: should be a mapping with the keys clicks_per_image",
        "{seconds_per_pixel: 1, money_per_hour: 3}": "cost.yaml: currency: is required with money_per_hour",
        "{seconds_per_pixel: 1, currency: EUR}": "cost.yaml: money_per_hour: is required with currency",
        "seconds_per_pixel: [": "cost.yaml: line 1, column 21 is not valid YAML: ",
    }.items():
        path.write_text(text)
        with pytest.raises(SpecError, match=message):
            read_cost_model(path)


EFFORT = "grid=[{acquire.strategy: [margin, random], seed: [0, 1], budget: [10, 20]}]"


def fill(study: Study, spec: Experiment, of: Any = lambda trial: True, **more: Any) -> None:
    """Store what is not stored yet of the trials that `of` chooses."""
    study.fill(spec, lambda trial: matrix(50) if of(trial) else None, **({"seconds": 3600.0} | more))


def load(study: Study, *specs: Experiment) -> tuple[provenance.Effort, ...]:
    results = study.results(*specs)
    return provenance.load_efforts(study.store, results, load_chains(study.store, results))


def last_columns(table: Table) -> list[tuple[str, ...]]:
    """Strategy, budget, fits, shared, seconds per fit, device hours and devices of each row."""
    head = ("strategy", "pixels per image", "fits", "shared", "seconds per fit", "device hours", "devices")
    assert (table.header[-7:], table.alignment) == (head, "lllrrrrrl")
    return [row[-7:] for row in table.rows]


def test_effort_is_told_by_cell_and_its_sum_counts_every_fit_once(study: Study) -> None:
    spec = experiment(EFFORT)
    fill(study, spec, lambda trial: (trial.budget, trial.seed) == (10, 0), seconds=900.0, world_size=4)
    fill(study, spec, lambda trial: (trial.budget, trial.seed) == (10, 1), seconds=1800.0, device="H100")
    fill(study, spec, lambda trial: trial.budget == 20, world_size=2)
    table = provenance.effort_table(load(study, spec))
    ten, twenty = ("10", "2", "0", "1350.0", "1.5", "H100, cpu"), ("20", "2", "0", "3600.0", "4", "cpu")
    assert last_columns(table) == [(name, *rest) for name in ("margin", "random") for rest in (ten, twenty)]
    assert table.caption == (
        "Fits of every stage: their number, how many are shared with other lines of this table, mean seconds (training "
        "and evaluation), and total device hours (seconds times ranks). Counting each fit once: "
        "8 fits, 11 device hours."
    )
    assert [provenance.device_hours(made) for made in ({"seconds": 900.0}, {})] == [0.25, 0]
    grid = "grid=[{seed: [0, 1], budget: [10]}, {seed: [0], budget: [full]}]"
    spec = experiment("name=full", grid, "evaluate={splits: {test: {}, val: {}}, report: test, when: every_epoch}")
    study.fill(spec, lambda trial: [matrix(40), matrix(50)])  # other splits and epochs do not count a fit again
    rows = [row[:4] for row in last_columns(provenance.effort_table(load(study, spec)))]
    assert rows == [("margin", "10", "2", "0"), ("full supervision", "all", "1", "0")]


def test_a_shared_fit_counts_once_in_the_sum_and_a_removed_one_not_at_all(study: Study) -> None:
    spec, asked = experiment(EFFORT), experiment(EFFORT.replace("[10, 20]", "[20]"))
    fill(study, spec)
    assert load(study, asked) == load(study, spec)  # stages at which no trial ends count too
    assert (provenance.total_effort(load(study, asked)), provenance.devices(load(study, asked))) == ((8, 8.0), ("cpu",))
    mine, *others, theirs, last = load(study, spec)
    common, own = next(iter(mine.fits)), list(theirs.fits)[1]
    shared = replace(theirs, fits={common: mine.fits[common], own: theirs.fits[own]})
    table = provenance.effort_table((mine, *others, shared, last))
    ten, twenty = ("10", "2", "1", "2"), ("20", "2", "0", "2")
    shares = [(name, *rest) for name in ("margin", "random") for rest in (ten, twenty)]
    assert [row[:4] + row[5:6] for row in last_columns(table)] == shares
    assert table.caption.endswith("Counting each fit once: 7 fits, 7 device hours.")
    shutil.rmtree(study.store.folder("fit", common))
    table = provenance.effort_table(load(study, spec))
    assert last_columns(table)[0] == ("margin", "10", "1", "0", "3600.0", "1", "cpu")
    assert table.caption.endswith("Counting each fit once: 7 fits, 7 device hours.")
    shutil.rmtree(study.store.path / "fit")
    assert provenance.effort_table(load(study, spec)) is None


def test_experiments_stand_side_by_side_with_what_they_were_made_with(study: Study) -> None:
    first, other = experiment(EFFORT), experiment(EFFORT, "name=other")

    def rows(table: Table) -> dict[str, list[str]]:
        return {name: texts for name, *texts in table.rows}

    def early(trial: Trial) -> bool:
        return (trial.seed, trial.budget, trial.acquire.strategy) == (0, 10, "margin")

    nothing = rows(provenance.provenance_table(study.results(first)))
    assert (nothing["fits"], nothing["code commits"]) == (["0"], ["-"])
    fill(study, first, early, code="abc+", seconds=900.0, world_size=2)
    fill(study, first, lambda trial: not early(trial), code="def", seconds=900.0, threads=4)
    # The same trials under another name: fits that are stored already are not made again.
    fill(study, other, lambda trial: trial.seed == 1, code="ghi")
    table = provenance.provenance_table(study.results(first, other))
    assert (table.header, table.alignment) == (("", "study", "other"), "lll")
    assert rows(table) == {
        **{"fits": ["8", "4"], "devices": ["cpu"] * 2, "ranks": ["1 (7 fits), 2 (1 fit)", "1"]},
        **{"threads per rank": ["4 (7 fits), unknown (1 fit)", "4"], "torch": ["2.0"] * 2, "NumPy": ["unknown"] * 2},
        **{"Python": ["unknown"] * 2, "package": ["1"] * 2, "code commits": ["abc+ (1 fit), def (7 fits)", "def"]},
    }
    shutil.rmtree(study.store.folder("fit", study.results(first).readings[0].fit_key))
    assert rows(provenance.provenance_table(study.results(first)))["code commits"] == ["def (7 fits), unknown (1 fit)"]
