"""What labels cost, against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import pytest

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.errors import SpecError
from pixelpick_ray.report.cells import build_cells, reported
from pixelpick_ray.report.costs import Cost, CostModel, Costs, FullCost, cost_table, costs_of, read_cost_model
from pixelpick_ray.report.queries import load_queries
from tests.support.study import Study, exact, experiment

GRID = "grid=[{acquire.strategy: [margin], seed: [0, 1], budget: [10, 20]}, {seed: [0, 1], budget: [full]}]"
SPEC = experiment(GRID)
PRICES = {"seconds_per_pixel": 2, "seconds_per_image": 10, "currency": "EUR"}
FULL = FullCost(clicks_per_image=600, seconds_per_image=5400)


def asked(trial: Trial, stage: int) -> dict[str, Any]:
    """Statistics of 4 images: 40 pixels per stage, of which seed 1 gets 10 more of the class road at stage 1."""
    road = 10 + 10 * trial.seed * stage
    return {"pixels": 40, "images": 4, "class_counts": [40 - road, road], "distinct_classes": 2.0}


def costs(study: Study, model: CostModel, spec: Experiment = SPEC, tell: Any = asked) -> Costs:
    study.fill(spec, lambda trial: exact(500))
    study.ask(spec, tell)
    results = study.results(spec)
    return costs_of(model, load_queries(study.store, study.chains(spec)), reported(results, build_cells(results)))


def by_budget(found: Costs) -> dict[Any, Cost]:
    return {budget: cost for (_, budget), cost in found.by_cell.items()}


def test_costs_add_up_over_stages_and_are_means_over_seeds(study: Study) -> None:
    def refused(trial: Trial, stage: int) -> dict[str, Any]:
        return asked(trial, stage) | {"refused": 3 * stage}

    more = {"clicks_per_pixel": 1.5, "seconds_per_class": {"road": 5}, "money_per_hour": 36}
    found = by_budget(costs(study, CostModel(**PRICES, **more, full=FULL)))
    # A first stage is 30 x 2 s + 10 x 5 s + 4 images x 10 s = 150 s; a second one 150 s, or 180 s for seed 1.
    assert found[10] == Cost(clicks=60.0, seconds=150.0, money=1.5)
    assert found[20] == Cost(clicks=120.0, seconds=315.0, money=pytest.approx(3.15))
    assert found["full"] == Cost(clicks=2400.0, seconds=21600.0, money=pytest.approx(216.0))
    model, other = CostModel(seconds_per_pixel=2, seconds_per_class={"road": 5}), experiment(GRID, "train.epochs=3")
    found = by_budget(costs(study, model, other, refused))
    # Pixels that got no class cost what a pixel does: 30 x 2 s + 10 x 5 s, twice; for seed 1 the second time 30 s more;
    # 3 x 2 s.
    assert found[10] == Cost(clicks=40.0, seconds=110.0, money=None)
    assert found[20] == Cost(clicks=83.0, seconds=241.0, money=None)


def test_quantities_have_hours_and_no_money_without_a_wage(study: Study) -> None:
    found = costs(study, CostModel(seconds_per_pixel=9))
    assert list(found.quantities) == ["clicks", "hours of annotation"]
    assert list(found.quantities["clicks"].values()) == [40.0, 80.0]
    assert list(found.quantities["hours of annotation"].values()) == [0.1, 0.2]
    assert set(by_budget(found)) == {10, 20}  # full supervision has no cost where the model has none
    with pytest.raises(SpecError, match="no data set of this report has the class 'raod'; allowed: sky, road"):
        costs(study, CostModel(seconds_per_pixel=2, seconds_per_class={"raod": 5}))


@pytest.mark.parametrize(
    ("lost", "budgets"), [(lambda trial, stage: trial.seed == stage == 1, {10, "full"}), (lambda *_: True, set())]
)
def test_without_statistics_and_a_number_of_images_there_is_no_cost(study: Study, lost: Any, budgets: set[Any]) -> None:
    def tell(trial: Trial, stage: int) -> dict[str, Any] | None:
        return None if lost(trial, stage) else asked(trial, stage)

    assert set(by_budget(costs(study, CostModel(seconds_per_pixel=2, full=FULL), SPEC, tell))) == budgets


def test_the_number_of_images_is_that_of_the_same_setting(study: Study) -> None:
    def tell(trial: Trial, stage: int) -> dict[str, Any]:
        return asked(trial, stage) | {"images": trial.dataset.images}

    few, all_of_them = (f"{{dataset.images: [4, 7], seed: [0], budget: [{budget}]}}" for budget in (10, "full"))
    spec = experiment(f"grid=[{few}, {all_of_them}]")
    found = costs(study, CostModel(seconds_per_pixel=2, full=FULL), spec, tell)
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
    assert table.alignment == "lll" + "rrrrrr"
    assert table.notes == (
        "Assumed: 1 click and 2 s per pixel (road 4.5 s); 10 s to open an image at each stage; 20 EUR an hour.",
        "One result is left out: the cost is unknown, for want of stored statistics or of a cost in the model.",
    )


EXPECTED = "cost.yaml: seconds_per_pixel: Input should be"


def test_a_file_is_read_with_its_defaults_and_a_wrong_one_is_refused_with_its_name_and_key(tmp_path: Path) -> None:
    path = tmp_path / "cost.yaml"
    with pytest.raises(SpecError, match=r"cost\.yaml: cannot be read .* give the path of a cost model"):
        read_cost_model(path)
    path.write_text("seconds_per_pixel: 2.5\nfull: {clicks_per_image: 600, seconds_per_image: 5400}\n")
    assert read_cost_model(path) == CostModel(clicks_per_pixel=1, seconds_per_pixel=2.5, full=FULL)
    for text, message in {
        "seconds_per_pixl: 2": "cost.yaml: seconds_per_pixl: unknown key; allowed: clicks_per_pixel, seconds_per_pixel",
        "clicks_per_pixel: 2": "cost.yaml: seconds_per_pixel: is required",
        "seconds_per_pixel: -1": f"{EXPECTED} greater than or equal to 0; got -1",
        "seconds_per_pixel: .inf": f"{EXPECTED} a finite number; got inf",
        "seconds_per_pixel: yes": f"{EXPECTED} a valid number; got True",
        "{seconds_per_pixel: 1, seconds_per_class: {a: x}}": "cost.yaml: seconds_per_class.a: Input should be a valid",
        "{seconds_per_pixel: 1, full: 3}": "cost.yaml: full: expected a mapping with clicks_per_image, seconds_per_i",
        "{seconds_per_pixel: 1, full: {clicks: 3}}": "full.clicks: unknown key; allowed: clicks_per_image, seconds_p",
        "{seconds_per_pixel: 1, money_per_hour: 3}": "cost.yaml: currency: is required with money_per_hour",
        "{seconds_per_pixel: 1, currency: EUR}": "cost.yaml: money_per_hour: is required with currency",
        "- 1": "cost.yaml: expected a mapping; allowed: clicks_per_pixel, seconds_per_pixel",
        "seconds_per_pixel: [": "cost.yaml: line 1, column 21 is not YAML: ",
        "{seconds_per_pixel: 1, seconds_per_pixel: 2}": "line 1, column 24 is not YAML: the key .* appears twice",
    }.items():
        path.write_text(text)
        with pytest.raises(SpecError, match=message):
            read_cost_model(path)
