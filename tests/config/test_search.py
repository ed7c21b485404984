"""What a search varies: the values of each kind, the points of a grid, and what makes two searches one."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from pixelpick_ray.config.experiment import Experiment, dump_experiment, parse_experiment
from pixelpick_ray.config.search import DomainSpec, SearchSpec, value_text
from pixelpick_ray.errors import SpecError
from tests.support.stores import TEXT

SEARCH = f"""{TEXT.replace("acquire.strategy: [margin, random], ", "")}
search:
  space:
    train.optimizer.lr: {{loguniform: [1e-4, 1e-1]}}
    train.schedule: {{choice: [{{name: constant}}, {{name: poly, power: 2}}]}}
    acquire.stochastic: {{choice: [null, {{passes: 2}}]}}
  num_samples: 4
"""
DOMAINS = {
    "uniform": DomainSpec(uniform=(-0.5, 1.5)),
    "loguniform": DomainSpec(loguniform=(1e-6, 1e-2)),
    "randint": DomainSpec(randint=(3, 8)),
    "choice": DomainSpec(choice=("poly", {"name": "constant"}, None, 0.5)),
    "grid": DomainSpec(grid=(1, 2, 4)),
}


def drawn(domain: DomainSpec, number: int, seed: int = 0) -> list[Any]:
    chance = np.random.default_rng(seed)
    return [domain.draw(chance) for _ in range(number)]


def search(space: dict[str, DomainSpec], **fields: Any) -> SearchSpec:
    return SearchSpec(space=space, **({"num_samples": 4} | fields))


def parse(*overrides: str) -> Experiment:
    return parse_experiment(SEARCH, where="tiny.yaml", overrides=overrides)


# Domains


@pytest.mark.parametrize("kind", DOMAINS)
def test_a_domain_knows_its_kind_and_its_values(kind: str) -> None:
    domain = DOMAINS[kind]
    assert domain.kind == kind
    assert domain.values == getattr(domain, kind)
    assert domain.is_range == (kind in ("uniform", "loguniform", "randint"))


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        ("uniform", [-0.5, 0, 1, 1.5], [-0.5001, 1.5001, True, None, "0", [0]]),
        ("loguniform", [1e-6, 1e-4, 1e-2], [9.9e-7, 0, 1, "1e-4"]),
        ("randint", [3, 5, 8], [2, 9, False, None]),
        ("choice", ["poly", {"name": "constant"}, None, 0.5], ["constant", {"name": "poly"}, 0.4, []]),
        ("grid", [1, 2, 4, 4.0], [3, 0, "1"]),
    ],
)
def test_a_domain_contains_its_values_and_both_ends(kind: str, inside: list[Any], outside: list[Any]) -> None:
    assert [value for value in inside if not DOMAINS[kind].contains(value)] == []
    assert [value for value in outside if DOMAINS[kind].contains(value)] == []


@pytest.mark.parametrize("kind", DOMAINS)
def test_what_is_drawn_lies_in_the_domain_and_depends_on_chance_alone(kind: str) -> None:
    values = drawn(DOMAINS[kind], 300)
    assert all(map(DOMAINS[kind].contains, values))
    assert values == drawn(DOMAINS[kind], 300)
    assert values != drawn(DOMAINS[kind], 300, seed=1)


def test_uniform_is_even() -> None:
    values = drawn(DOMAINS["uniform"], 2000)
    assert stats.kstest(values, stats.uniform(-0.5, 2).cdf).pvalue > 0.05
    assert min(values) < -0.49
    assert max(values) > 1.49


def test_loguniform_is_even_in_the_logarithm() -> None:
    logarithms = [math.log10(value) for value in drawn(DOMAINS["loguniform"], 2000)]
    assert stats.kstest(logarithms, stats.uniform(-6, 4).cdf).pvalue > 0.05
    assert min(logarithms) < -5.98
    assert max(logarithms) > -2.02


def test_randint_has_every_whole_number_with_both_ends_equally_often() -> None:
    values = drawn(DOMAINS["randint"], 1200)
    assert {type(value) for value in values} == {int}
    counts = Counter(values)
    assert sorted(counts) == [3, 4, 5, 6, 7, 8]
    assert stats.chisquare(list(counts.values())).pvalue > 0.05


@pytest.mark.parametrize("kind", ["choice", "grid"])
def test_every_choice_is_drawn_equally_often(kind: str) -> None:
    domain = DOMAINS[kind]
    counts = Counter(domain.values.index(value) for value in drawn(domain, 1200))
    assert len(counts) == len(domain.values)
    assert stats.chisquare(list(counts.values())).pvalue > 0.05


def test_choices_are_drawn_as_they_are_written() -> None:
    assert {type(value) for value in drawn(DOMAINS["choice"], 100)} == {str, dict, type(None), float}
    assert {type(value) for value in drawn(DOMAINS["grid"], 100)} == {int}


@pytest.mark.parametrize(
    ("domain", "value", "rounded"),
    [
        (DomainSpec(uniform=(0.0, 1.0)), 0.123456, 0.1235),
        (DomainSpec(uniform=(0.0, 10000.0)), 4321.9, 4322.0),
        (DomainSpec(loguniform=(1e-6, 1.0)), 1.23456e-5, 1.235e-5),
        (DomainSpec(uniform=(0.12344, 0.12346)), 0.123455, 0.12346),  # 0.1235 would be too large
        (DomainSpec(uniform=(0.12347, 0.2)), 0.123472, 0.1235),
        (DomainSpec(uniform=(0.12342, 0.2)), 0.123421, 0.12342),  # 0.1234 would be too small
        (DomainSpec(randint=(1, 99999)), 12345, 12345),
        (DomainSpec(choice=("some", "other")), "some", "some"),
    ],
)
def test_numbers_are_rounded_to_four_digits_that_lie_in_the_range(domain: DomainSpec, value: Any, rounded: Any) -> None:
    assert domain.rounded(value) == rounded
    assert type(domain.rounded(value)) is type(rounded)


@given(
    low=st.floats(1e-9, 1e6),
    width=st.floats(1e-6, 1e3),
    kind=st.sampled_from(["uniform", "loguniform"]),
    data=st.data(),
)
def test_a_drawn_number_has_four_digits_or_is_an_end(low: float, width: float, kind: str, data: st.DataObject) -> None:
    domain = DomainSpec(**{kind: (low, low * (1 + width))})
    value = domain.draw(np.random.default_rng(data.draw(st.integers(0, 2**32))))
    assert low <= value <= low * (1 + width)
    assert value in (*domain.values, float(f"{value:.4g}"))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("uniform", "uniform -0.5 to 1.5"),
        ("loguniform", "loguniform 1e-06 to 0.01"),
        ("randint", "randint 3 to 8"),
        ("choice", "choice of poly, {name: constant}, null, 0.5"),
        ("grid", "grid of 1, 2, 4"),
    ],
)
def test_a_domain_is_read_by_people(kind: str, text: str) -> None:
    assert DOMAINS[kind].in_words() == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("margin", "margin"),
        ("5e-4", "'5e-4'"),
        ("null", "'null'"),
        ("a: b\n# c", "'a: b # c'"),
        (5e-4, "0.0005"),
        (True, "true"),
        (None, "null"),
        ([1, "two"], "[1, two]"),
        (
            {"name": "multistep", "milestones": [3, 5], "gamma": None},
            "{name: multistep, milestones: [3, 5], gamma: null}",
        ),
    ],
)
def test_a_value_is_one_line_as_in_a_file(value: Any, text: str) -> None:
    assert value_text(value) == text


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "give exactly one of uniform, loguniform, randint, choice, grid; got none"),
        ({"choice": (1, 2), "grid": (1, 2)}, "got choice and grid"),
        ({"uniform": (1.0, 1.0)}, r"must be \[smallest, largest\], and different; got \[1.0, 1.0\]"),
        ({"randint": (2, 1)}, r"must be \[smallest, largest\]"),
        ({"loguniform": (0.0, 1.0)}, "only numbers above 0 have a logarithm"),
        ({"choice": ()}, "values must be given, each once"),
        ({"choice": (1, 2, 1.0)}, "values must be given, each once"),
        ({"grid": ({"a": [1]}, {"a": [1.0]})}, "values must be given, each once"),
        ({"uniform": (0, 1), "step": 2}, "Extra inputs are not permitted"),
        ({"randint": (0, 1.0)}, "valid integer"),
    ],
)
def test_what_is_no_domain_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DomainSpec(**fields)


# Points of a grid


SIZES = st.dictionaries(
    st.sampled_from(["train.epochs", "train.batch_size", "acquire.pool_fraction", "model.width"]),
    st.lists(st.integers(1, 99), min_size=1, max_size=5, unique=True),
    min_size=1,
)


@given(SIZES)
def test_the_points_of_a_grid_are_the_product_and_the_last_path_varies_fastest(sizes: dict[str, list[int]]) -> None:
    spec = search(
        {path: DomainSpec(grid=tuple(values)) for path, values in sizes.items()}, searcher="grid", num_samples=None
    )
    wanted = [dict(zip(sizes, values, strict=True)) for values in itertools.product(*sizes.values())]
    assert spec.size == spec.num_points == len(wanted)
    found = [spec.point(index) for index in range(spec.size)]
    assert found == wanted
    assert {tuple(point) for point in found} == {tuple(sizes)}  # in the order of the file


def test_the_size_is_what_is_asked_for() -> None:
    space = {"train.epochs": DomainSpec(choice=(1, 2, 3)), "train.batch_size": DomainSpec(choice=(2, 4))}
    for searcher in ("random", "optuna"):
        assert search(space, num_samples=7, searcher=searcher).size == 7


def test_every_value_that_stands_in_the_space_is_an_end() -> None:
    space = {
        "train.optimizer.lr": DomainSpec(loguniform=(1e-4, 1e-1)),
        "train.epochs": DomainSpec(randint=(2, 9)),
        "acquire.strategy": DomainSpec(choice=("margin", "random", "entropy")),
    }
    assert list(search(space).ends()) == [
        ("train.optimizer.lr", 0, 1e-4),
        ("train.optimizer.lr", 1, 1e-1),
        ("train.epochs", 0, 2),
        ("train.epochs", 1, 9),
        ("acquire.strategy", 0, "margin"),
        ("acquire.strategy", 1, "random"),
        ("acquire.strategy", 2, "entropy"),
    ]


def test_what_is_wrong_with_a_value_of_the_space_is_told_with_its_place() -> None:
    spec = search({"train.schedule": DomainSpec(choice=("a", "b"))})
    with pytest.raises(SpecError) as caught, spec.naming("train.schedule", 1):
        raise SpecError("train.schedule: wrong\ntrain.schedule.power: wrong\ntrain.schedule[0]: wrong\nbudget: wrong")
    assert str(caught.value).splitlines() == [
        "search.space.train.schedule: wrong (value 2 of choice)",
        "search.space.train.schedule.power: wrong (value 2 of choice)",
        "search.space.train.schedule[0]: wrong (value 2 of choice)",
        "search.space.train.schedule: budget: wrong (value 2 of choice)",
    ]


def test_a_search_has_usual_values() -> None:
    spec = search({"train.epochs": DomainSpec(choice=(1, 2))})
    assert (spec.searcher, spec.scheduler, spec.reduction_factor, spec.seed) == ("optuna", "asha", 3.0, 0)
    assert (spec.metric.name, spec.metric.budget, spec.split, spec.held_out, spec.epochs) == (
        "miou",
        None,
        None,
        None,
        (),
    )


# Experiments with a search


def test_the_trials_of_the_file_are_those_of_its_own_configuration() -> None:
    trials = parse("grid=[{seed: [0, 1], budget: [2, 4]}]").trials()
    assert [(trial.seed, trial.budget) for trial in trials] == [(0, 2), (0, 4), (1, 2), (1, 4)]
    assert {trial.train.optimizer.lr for trial in trials} == {1e-3}


def test_a_copy_with_another_grid_has_other_trials() -> None:
    experiment = parse()
    copy = experiment.model_copy(update={"grid": ({"seed": (3,), "budget": (2,)},)})
    assert [(trial.seed, trial.budget) for trial in copy.trials()] == [(3, 2)]
    assert [(trial.seed, trial.budget) for trial in experiment.trials()] == [(0, 2), (0, 4), (0, 6)]
    assert copy.model_copy() == copy


def test_more_samples_and_another_title_are_the_same_search() -> None:
    identity = parse().identity()
    for same in ("search.num_samples=5", "search.num_samples=400", "title=other"):
        assert parse(same).identity() == identity


def test_anything_else_is_another_search() -> None:
    others = [
        "name=other",
        "dataset.size=[16, 20]",
        "dataset.held_out=0.2",
        "model.backbone=resnet50",
        "train.epochs=4",
        "acquire.pool_fraction=0.1",
        "evaluate.splits={test: {scale: 0.5}}",
        "grid=[{seed: [0, 1], budget: [2, 4, 6]}]",
        "grid=[{seed: [0], budget: [2, 4]}]",
        "search.searcher=random",
        "search.scheduler=none",
        "search.reduction_factor=2",
        "search.seed=1",
        "search.split=val",
        "search.held_out=0.2",
        "search.metric={name: area}",
        "search.metric={budget: 4}",
        "search.space={train.optimizer.lr: {loguniform: [1e-4, 1e-1]}}",
        "search.space={train.optimizer.lr: {uniform: [1e-4, 1e-1]}}",
        "search.space={train.optimizer.lr: {uniform: [1e-4, 1e-2]}}",
        "search.space={train.optimizer.backbone_lr_factor: {uniform: [1e-4, 1e-2]}}",
    ]
    identities = {parse(other).identity() for other in others}
    assert len(identities | {parse().identity()}) == len(others) + 1
    by_epoch = "evaluate.when=every_epoch"
    assert parse(by_epoch, "search.epochs=[1]").identity() != parse(by_epoch).identity()


def test_a_file_without_its_search_is_another_experiment() -> None:
    assert parse("search=null").identity() != parse().identity()
    assert parse("search=null").search is None


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("interface", "c9eb696094239748708c552ce96227596d6cd44629df0ad39b9f07e226d40b3d"),
        ("tiny", "f022a3dcc4a1fa2633c325b80b5d9604452230d888937cda3cdda762df5ebda2"),
    ],
)
def test_identities_of_experiments_without_a_search_are_older_than_the_option(
    camvid_yaml: str, name: str, identity: str
) -> None:
    """These digests were made before there was `search`."""
    text = {"interface": camvid_yaml, "tiny": TEXT}[name]
    assert parse_experiment(text, where=name).identity() == identity
    assert parse_experiment(text, where=name, overrides=["search=null"]).identity() == identity


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["search.split=val", "search.metric={name: area, budget: 4}", "search.seed=3", "search.reduction_factor=2.5"],
        ["search.held_out=0.1", "evaluate.when=every_epoch", "search.epochs=[1]"],
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


def test_an_experiment_without_a_search_is_dumped_without_it() -> None:
    assert "search" not in dump_experiment(parse("search=null"))
