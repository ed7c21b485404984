"""In which order chains are handed to Tune: shared fits first, and those that wait for people once these answered."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from pixelpick_ray.events import AnswersAwaited, ChainDone, Event, StageDone, encode
from pixelpick_ray.planning import Chain
from pixelpick_ray.runner.tune import ChainOrder, Relay
from tests.support.stores import tiny_plan

STORED: Any = SimpleNamespace(has=lambda kind, key: True, record_attempt=lambda chain, text: None)


class Bench:
    """The order of four chains, two of each seed, and what has happened to them."""

    def __init__(self) -> None:
        grid = "grid=[{acquire.strategy: [margin, random], seed: [0, 1], budget: [2, 4]}]"
        self.chains = list(tiny_plan(grid, "oracle={name: human}").chains)
        self.relay, self.answered, self.numbers = Relay(lambda event: None, 3, STORED), set[str](), iter(range(100))
        self.order = ChainOrder(self.chains, self.chains, self.relay, self)  # type: ignore[arg-type]

    def answered_now(self, chains: list[Chain]) -> list[Chain]:
        """As of `People`."""
        return [chain for chain in chains if chain.id in self.answered]

    def handed(self) -> dict[int, str]:
        """Everything that may start now: trials by chain."""
        found: dict[int, str] = {}
        while isinstance(one := self.order.suggest(trial := f"trial {next(self.numbers)}"), dict):
            found[one["chain"]] = trial
        return found

    def tell(self, chain: int, kind: type[Event], *values: Any) -> None:
        self.relay.on_trial_result(0, [], None, {"event": encode(kind(self.chains[chain].id, *values))})

    def asks(self, chain: int, trial: str) -> None:
        self.tell(chain, AnswersAwaited, 0, 15, 15)
        self.order.on_trial_complete(trial, {})


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_chain_that_waits_for_people_comes_again_when_they_have_answered(bench: Bench) -> None:
    running = bench.handed()
    assert len(running) == 2  # one a seed: the strategies share their first fit
    first = next(iter(running))
    bench.asks(first, running[first])
    others = bench.handed()
    assert len(others) == 1  # the other strategy of this seed
    assert bench.order.suggest("none") is None
    bench.answered.add(bench.chains[first].id)
    bench.tell(next(iter(others)), StageDone, 0, True, 3, "f", 0.5, (), (), 1.0)
    assert list(bench.handed()) == [first]


def test_the_run_ends_when_only_people_are_left(bench: Bench) -> None:
    for _ in range(2):
        running = bench.handed()
        assert len(running) == 2
        for chain, trial in running.items():
            bench.asks(chain, trial)
    assert bench.order.suggest("none") == Searcher.FINISHED


def test_a_chain_that_went_on_or_was_lost_does_not_wait_for_people_any_more(bench: Bench) -> None:
    (first, trial), (other, _) = bench.handed().items()
    bench.tell(first, AnswersAwaited, 0, 15, 15)
    bench.tell(first, ChainDone)
    bench.order.on_trial_complete(trial, {})
    bench.answered |= {chain.id for chain in bench.chains}
    assert first not in bench.handed()
    bench.tell(other, AnswersAwaited, 0, 15, 15)
    lost = SimpleNamespace(config={"name": bench.chains[other].id}, error_file=None)
    bench.relay.on_trial_error(0, [], lost)
    assert bench.relay.asking == set()
    assert bench.relay.lost == [bench.chains[other].id]


def test_a_chain_that_people_answered_joins_those_that_are_tried_again(bench: Bench) -> None:
    """The next round begins with what was lost; what people answered meanwhile is handed out beside it."""
    first, other = bench.handed()
    bench.tell(first, AnswersAwaited, 0, 15, 15)
    bench.answered.add(bench.chains[first].id)
    bench.order = ChainOrder(bench.chains, [bench.chains[other]], bench.relay, bench)  # type: ignore[arg-type]
    assert set(bench.handed()) == {first, other}
