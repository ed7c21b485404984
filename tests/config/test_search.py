"""What a search varies: the values of each kind, the points of a grid, and what makes two searches one."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from pixelpick_ray.config.experiment import Experiment, dump_experiment, parse_experiment
from pixelpick_ray.config.search import DomainSpec, SearchSpec, value_text
from tests.support.stores import TEXT

SEARCH = f"""{TEXT.replace("acquire.strategy: [margin, random], ", "")}
search:
  space:
    train.optimizer.lr: {{loguniform: [1e-4, 1e-1]}}
    train.schedule: {{choice: [{{name: constant}}, {{name: poly, power: 2}}]}}
    acquire.stochastic: {{choice: [null, {{passes: 2}}]}}
  num_samples: 4
"""
CHOICES = ["poly", {"name": "constant"}, None, 0.5]
DOMAINS = {
    "uniform": DomainSpec(uniform=(-0.5, 1.5)),
    "loguniform": DomainSpec(loguniform=(1e-6, 1e-2)),
    "randint": DomainSpec(randint=(3, 8)),
    "choice": DomainSpec(choice=tuple(CHOICES)),
    "grid": DomainSpec(grid=(1, 2, 4)),
}


def drawn(kind: str, number: int, seed: int = 0) -> list[Any]:
    chance = np.random.default_rng(seed)
    return [DOMAINS[kind].draw(chance) for _ in range(number)]


def search(space: dict[str, DomainSpec], **fields: Any) -> SearchSpec:
    return SearchSpec(space=space, **({"num_samples": 4} | fields))


def parse(*overrides: str) -> Experiment:
    return parse_experiment(SEARCH, where="tiny.yaml", overrides=overrides)


@pytest.mark.parametrize(
    ("kind", "inside", "outside", "words"),
    [
        ("uniform", [-0.5, 0, 1, 1.5], [-0.5001, 1.5001, True, None, "0", [0]], "uniform -0.5 to 1.5"),
        ("loguniform", [1e-6, 1e-4, 1e-2], [9.9e-7, 0, 1, "1e-4"], "loguniform 1e-06 to 0.01"),
        ("randint", [3, 5, 8], [2, 9, False, None], "randint 3 to 8"),
        ("choice", CHOICES, ["constant", {"name": "poly"}, 0.4, []], "choice of poly, {name: constant}, null, 0.5"),
        ("grid", [1, 2, 4, 4.0], [3, 0, "1"], "grid of 1, 2, 4"),
    ],
)
def test_a_domain_knows_its_kind_and_values(kind: str, inside: list[Any], outside: list[Any], words: str) -> None:
    domain = DOMAINS[kind]
    assert (domain.kind, domain.values, domain.in_words()) == (kind, getattr(domain, kind), words)
    assert domain.is_range == (kind in ("uniform", "loguniform", "randint"))
    assert [value for value in inside if not domain.contains(value)] == []
    assert [value for value in outside if domain.contains(value)] == []


@pytest.mark.parametrize("kind", DOMAINS)
def test_values_are_drawn_evenly_from_the_domain(kind: str) -> None:
    """By chance alone; those of a range have four digits."""
    domain, values = DOMAINS[kind], drawn(kind, 2000)
    assert all(map(domain.contains, values))
    assert values[:9] == drawn(kind, 9) != drawn(kind, 9, seed=1)
    if kind in ("uniform", "loguniform"):
        scale = math.log10 if kind == "loguniform" else float
        low, high = map(scale, domain.values)
        assert stats.kstest([scale(value) for value in values], stats.uniform(low, high - low).cdf).pvalue > 0.05
        assert all(value == float(f"{value:.4g}") for value in values)
        return
    every = (3, 4, 5, 6, 7, 8) if kind == "randint" else domain.values
    assert {type(value) for value in values} == {type(value) for value in every}  # as they are written
    counts = Counter(map(every.index, values))
    assert len(counts) == len(every)
    assert stats.chisquare(list(counts.values())).pvalue > 0.05


@pytest.mark.parametrize(
    ("domain", "value", "rounded"),
    [
        ({"uniform": (0.0, 1.0)}, 0.123456, 0.1235),
        ({"uniform": (0.0, 10000.0)}, 4321.9, 4322.0),
        ({"loguniform": (1e-6, 1.0)}, 1.23456e-5, 1.235e-5),
        ({"uniform": (0.12344, 0.12346)}, 0.123455, 0.12346),  # 0.1235 would be too large
        ({"uniform": (0.12342, 0.2)}, 0.123421, 0.12342),  # 0.1234 would be too small
        ({"randint": (1, 99999)}, 12345, 12345),
        ({"choice": ("some", "other")}, "some", "some"),
    ],
)
def test_numbers_are_rounded_to_four_digits_that_lie_in_the_range(domain: Any, value: Any, rounded: Any) -> None:
    assert DomainSpec(**domain).rounded(value) == rounded
    assert type(DomainSpec(**domain).rounded(value)) is type(rounded)


def test_a_value_is_one_line_as_in_a_file() -> None:
    plain = {"margin": "margin", "5e-4": "'5e-4'", "null": "'null'", "a: b\n# c": "'a: b # c'"}
    assert {text: value_text(text) for text in plain} == plain
    assert [value_text(value) for value in (5e-4, True, None, [1, "two"])] == ["0.0005", "true", "null", "[1, two]"]
    schedule = {"name": "multistep", "milestones": [3, 5], "gamma": None}
    assert value_text(schedule) == "{name: multistep, milestones: [3, 5], gamma: null}"


def test_the_points_of_a_grid_are_the_product_and_the_last_path_varies_fastest() -> None:
    space = {"train.epochs": DomainSpec(grid=(3, 1, 2)), "train.batch_size": DomainSpec(grid=(8, 4))}
    spec = search(space, searcher="grid", num_samples=None)
    wanted = [(3, 8), (3, 4), (1, 8), (1, 4), (2, 8), (2, 4)]
    assert spec.size == spec.num_points == len(wanted)
    assert [spec.point(index) for index in range(spec.size)] == [dict(zip(space, one, strict=True)) for one in wanted]
    assert [*spec.point(0)] == [*space]  # in the order of the file


def test_a_search_has_usual_values_and_the_size_that_is_asked_for() -> None:
    """Every value that stands in the space is an end. Equal ones stand once, also inside of mappings."""
    space = {"train.epochs": DOMAINS["randint"], "acquire.strategy": DomainSpec(choice=("margin", "random", "entropy"))}
    spec = search(space)
    assert (spec.searcher, spec.scheduler, spec.reduction_factor, spec.seed) == ("optuna", "asha", 3.0, 0)
    assert (spec.metric.name, spec.metric.budget, spec.split) == ("miou", None, None)
    assert (spec.held_out, spec.epochs) == (None, ())
    assert list(spec.ends()) == [
        (path, number, value) for path, domain in space.items() for number, value in enumerate(domain.values)
    ]
    for searcher in ("random", "optuna"):
        assert search(space, num_samples=7, searcher=searcher).size == 7
    with pytest.raises(ValidationError, match="needs at least one value, without duplicates"):
        DomainSpec(grid=({"a": [1]}, {"a": [1.0]}))


def test_the_trials_are_those_of_the_files_own_configuration_and_of_another_grid() -> None:
    experiment = parse()
    copy = experiment.model_copy(update={"grid": ({"seed": (3, 4), "budget": (2,)},)})
    assert [(trial.seed, trial.budget) for trial in copy.trials()] == [(3, 2), (4, 2)]
    assert [(trial.seed, trial.budget) for trial in experiment.trials()] == [(0, 2), (0, 4), (0, 6)]
    assert {trial.train.optimizer.lr for trial in experiment.trials()} == {1e-3}
    assert copy.model_copy() == copy


OTHERS = """
name=other
dataset.held_out=0.2
grid=[{seed: [0, 1], budget: [2, 4, 6]}]
grid=[{seed: [0], budget: [2, 4]}]
search=null
search.searcher=random
search.scheduler=none
search.reduction_factor=2
search.seed=1
search.split=val
search.held_out=0.2
search.metric={name: area}
search.metric={budget: 4}
search.space={train.optimizer.lr: {loguniform: [1e-4, 1e-1]}}
search.space={train.optimizer.lr: {uniform: [1e-4, 1e-1]}}
search.space={train.optimizer.lr: {uniform: [1e-4, 1e-2]}}
search.space={train.optimizer.backbone_lr_factor: {uniform: [1e-4, 1e-2]}}
"""


def test_more_samples_and_another_title_are_the_same_search_and_anything_else_is_another() -> None:
    identity = parse().identity()
    for same in ("search.num_samples=5", "search.num_samples=400", "title=other"):
        assert parse(same).identity() == identity
    others = OTHERS.strip().splitlines()
    assert len({parse(other).identity() for other in others} | {identity}) == len(others) + 1
    by_epoch = "evaluate.when=every_epoch"
    assert parse(by_epoch, "search.epochs=[1]").identity() != parse(by_epoch).identity()


def test_an_experiment_without_a_search_is_what_it_was_before_there_were_any(camvid_yaml: str) -> None:
    """These digests are older than the option."""
    interface = "c9eb696094239748708c552ce96227596d6cd44629df0ad39b9f07e226d40b3d"
    tiny = "f022a3dcc4a1fa2633c325b80b5d9604452230d888937cda3cdda762df5ebda2"
    for text, identity in ((camvid_yaml, interface), (TEXT, tiny)):
        for overrides in ([], ["search=null"]):
            experiment = parse_experiment(text, where="x", overrides=overrides)
            assert experiment.identity() == identity
            assert experiment.search is None
            assert "search" not in dump_experiment(experiment)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["search.split=val", "search.metric={name: area, budget: 4}", "search.seed=3", "search.reduction_factor=2.5"],
        ["search={searcher: grid, space: {train.epochs: {grid: [1, 2]}, model.dropout: {grid: [[0, 0, 0]]}}}"],
        ["search.space={train.augment: {choice: [null, {jitter: null, blur: {}}]}, train.epochs: {randint: [1, 9]}}"],
        ["search.space={model.pretrained: {choice: [none, '1e5', 'file:a b.pt']}}"],
    ],
)
def test_a_dumped_search_is_read_back_equal(overrides: list[str]) -> None:
    experiment = parse(*overrides)
    again = parse_experiment(dump_experiment(experiment), where="again")
    assert again == experiment
    assert again.identity() == experiment.identity()
    assert dump_experiment(again) == dump_experiment(experiment)
