"""Where a number comes from: every line of the text, and what is refused."""

import re
import shutil
from dataclasses import replace
from typing import Any

import pytest

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.errors import SpecError
from pixelpick_ray.report.cells import build_cells
from pixelpick_ray.report.chains import load_chains
from pixelpick_ray.report.explain import explain, parse_cell
from pixelpick_ray.report.rows import Reading, Results
from tests.support.study import Matrix, Study, chain_path, exact, experiment

pytestmark = pytest.mark.whole_report

SEEDS = "seed: [0, 1, 2]"
GRID = f"grid=[{{acquire.strategy: [margin, random], {SEEDS}, budget: [10, 20]}}, {{{SEEDS}, budget: [full]}}]"
ONE = "grid=[{seed: [0], budget: [10]}]"
MADE = {
    **{"finished": "2026-11-20T10:00:00Z", "device": "H100", "host": "node1", "torch": "2.11"},
    **{"version": "0.3", "code": "6f6d23e", "seconds": 900.0},
}


def measured(trial: Trial) -> Matrix | None:
    """mIoU 0.50, 0.52 and 0.54 of the seeds; seed 2 has no result at 20 pixels."""
    return None if (trial.seed, trial.budget) == (2, 20) else exact(500 + 20 * trial.seed)


def fill(study: Study, spec: Experiment, measure: Any = measured, **provenance: Any) -> Results:
    study.fill(spec, measure, **(MADE | provenance))
    study.ask(spec, lambda trial, stage: None)
    return study.results(spec)


@pytest.fixture(scope="module")
def filled(kept: Study) -> tuple[Study, Results]:
    return kept, fill(kept, experiment(GRID), world_size=2)


def told(study: Study, results: Results, wanted: str) -> str:
    return explain(study.store, results, build_cells(results), load_chains(study.store, results), wanted)


def keys(study: Study, spec: Experiment, strategy: str, seed: int) -> dict[str, Any]:
    """Folders of the first pixels and of each stage of a chain, as its record tells them."""
    trial = next(one for one in spec.trials() if (one.acquire.strategy, one.seed) == (strategy, seed))
    record, folder = study.store.read_record(chain_path(spec, trial)), study.store.folder
    found = {"first": folder("pick", record["initial"])}
    for stage in record["stages"]:
        made = {"fit": stage["fit"], "evaluation": stage["evaluations"]["test"], "pick": stage.get("pick")}
        found |= {f"{kind} {stage['budget']}": folder(kind, key) for kind, key in made.items() if key}
    return found


def test_every_line_of_a_cell_with_a_missing_seed(filled: tuple[Study, Results]) -> None:
    study, results = filled

    def of_seed(seed: int) -> list[str]:
        found = keys(study, experiment(GRID), "margin", seed)
        return [
            f"  seed {seed}: {50 + 2 * seed}.0 %",
            f"    fit         {found['fit 20']}",
            f"    evaluation  {found['evaluation 20']}",
            f"    10 pixels   {found['first']}",
            f"    20 pixels   {found['pick 10']}",
            "    made        2026-11-20T10:00:00Z on H100, host node1, 2 ranks; device hours: 0.5",
            "    versions    torch 2.11, package 0.3, code 6f6d23e",
            "",
        ]

    # Of 0.50 and 0.52 the standard deviation is 0.0141; Student's interval at one degree is 12.706 * 0.01 wide.
    assert told(study, results, "strategy=margin,budget=20").split("\n") == [
        "study: margin at 20 pixels per image, mIoU 51.0 ± 1.4 %, n = 2 of 3",
        "  data        camvid test (360 x 480 pixels), 0.012 % of the pixels labelled",
        "  model       deeplabv3plus small, pretrained none",
        "  epoch       last",
        "  interval    38.3 to 63.7 %, of the mean, at 95 %",
        "",
        *of_seed(0),
        *of_seed(1),
        "  seed 2: missing on test, not run yet",
    ]

    # A cell has the pixels up to its budget, and full supervision none.
    text = told(*filled, "strategy=margin,budget=10")
    assert text.startswith("study: margin at 10 pixels per image, mIoU 52.0 ± 2.0 %, n = 3 of 3\n")
    assert [text.count(words) for words in ("    10 pixels   ", "    20 pixels   ", "missing")] == [3, 0, 0]
    full = told(*filled, "budget=full")
    assert full.startswith(
        "study: full supervision, mIoU 52.0 ± 2.0 %, n = 3 of 3\n"
        "  data        camvid test (360 x 480 pixels), 100 % of the pixels labelled\n"
    )
    assert "/pick/" not in full
    assert told(*filled, "strategy=") == full


def test_a_class_has_its_own_values(study: Study) -> None:
    results = fill(study, experiment(ONE), lambda trial: [[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    for wanted, begin, seed in (
        ("class_name=road", "IoU of road 25.0 %, n = 1 of 1\n", "  seed 0: 25.0 %\n"),
        ("class_name=car", "IoU of car -, n = 1 of 1\n", "  seed 0: -\n"),
        ("metric=pixel_accuracy", "pixel accuracy 70.0 %, n = 1 of 1\n", "  seed 0: 70.0 %\n"),
    ):
        text = told(study, results, wanted)
        assert text.startswith(f"study: margin at 10 pixels per image, {begin}")
        assert (seed in text, "interval" in text) == (True, False)


def test_a_cell_without_values_says_why_and_only_the_splits_that_it_needs_can_be_missing(study: Study) -> None:
    lines = told(study, fill(study, experiment(GRID), lambda trial: None), "strategy=margin,budget=20").split("\n")
    assert lines[0] == "study: margin at 20 pixels per image, mIoU missing 0/3, n = 0 of 3"
    assert lines[3:] == ["  epoch       last", "", *(f"  seed {n}: missing on test, not run yet" for n in range(3))]
    splits = "evaluate={splits: {test: {}, val: {}}, report: test, when: every_epoch}"
    results = fill(study, experiment("name=two", splits, ONE), lambda trial: {"test": [exact(500), exact(400)]})
    assert "missing" not in told(study, results, "budget=10")
    best, held_out = (told(study, results, f"checkpoint={rule}") for rule in ("best", "best_on_val"))
    assert "\n  epoch       best on test\n" in best
    assert "\n  epoch       best on val\n" in held_out
    assert held_out.endswith("\n\n  seed 0: missing on val, not run yet")
    assert told(study, results, "split=val").startswith("two: margin at 10 pixels per image, mIoU missing 0/1, n = 0")


def test_a_removed_fit_and_one_without_facts_are_told_as_unknown(study: Study) -> None:
    spec, bare = experiment(GRID), experiment(ONE, "name=bare", "train.batch_size=1")
    fill(study, spec)
    shutil.rmtree(keys(study, spec, "margin", 0)["fit 10"])
    text = told(study, study.results(spec), "strategy=margin,budget=10")
    assert text.count("    made        unknown: the fit was removed\n") == 1
    assert "\n  mixed       device, torch, package version, training data, " in text
    study.fill(bare, lambda trial: exact(500))
    text = told(study, study.results(bare), "budget=10")
    assert "    made        unknown on cpu, host unknown, 1 rank; device hours: 0.000417\n" in text
    assert text.endswith("    versions    torch 2.0, package 1, code unknown")


def test_others_that_use_the_same_fit_are_told(filled: tuple[Study, Results]) -> None:
    study, results = filled
    key = results.readings[0].fit_key
    sharing = {("margin", 0, 10), ("random", 0, 10), ("", 0, "full")}

    def shared(one: Reading) -> Reading:
        point = one.asked.point
        return replace(one, fit_key=key) if (point.strategy, point.seed, point.budget) in sharing else one

    readings = tuple(shared(one) for one in results.readings)
    text = told(study, replace(results, readings=readings), "strategy=margin,budget=10")
    assert re.findall("    also of     (.*)", text) == ["random at 10 pixels per image", "full supervision"]
    specs = [experiment(GRID), experiment(GRID, "name=other")]  # whose fits are the same
    fill(study, specs[1], world_size=2)
    text = told(study, study.results(*specs), "experiment=study,strategy=margin,budget=20")
    assert re.findall("    also of     (.*)", text) == ["other, margin at 20 pixels per image"] * 2


def test_names_and_values_are_read_and_what_is_no_cell_or_several_is_refused(filled: tuple[Study, Results]) -> None:
    assert parse_cell("strategy=margin, budget= 20") == {"strategy": "margin", "budget": "20"}
    assert parse_cell("setting=a.b=1, c=[2,3],budget=20") == {"setting": "a.b=1, c=[2,3]", "budget": "20"}
    assert parse_cell("strategy=") == {"strategy": ""}
    with pytest.raises(SpecError, match="'20' is not of the form NAME=VALUE"):
        parse_cell("strategy=margin,20")
    for wanted, message in {
        "bugdet=20": (
            ": 'bugdet=20' is not of the form NAME=VALUE; allowed names are experiment, dataset, architecture, "
            "backbone, pretrained, strategy, setting, budget, split, checkpoint, metric, class_name"
        ),
        "strategy=entropy,budget=20": (
            " 'strategy=entropy,budget=20': no such cell; existing values are strategy: margin, random, (empty); "
            "budget: 10, 20, full"
        ),
        "budget=20": " 'budget=20': matches 2 cells; narrow it down by strategy: margin, random",
        "metric=iou,strategy=random": (
            " 'metric=iou,strategy=random': matches 4 cells; narrow it down by budget: 10, 20; class_name: sky, road"
        ),
    }.items():
        with pytest.raises(SpecError, match=f"^--explain{re.escape(message)}$"):
            told(*filled, wanted)
