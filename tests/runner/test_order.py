"""In which order chains are handed to Tune: shared fits first, and those that wait for people once these answered."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from pixelpick_ray.events import AnswersAwaited, ChainDone, Event, StageDone, encode
from pixelpick_ray.planning import Chain, make_plan
from pixelpick_ray.runner.tune import ChainOrder, Relay
from tests.support.tiny_data import tiny_experiment

GRID = "grid=[{acquire.strategy: [margin, random], seed: [0, 1], budget: [3, 6]}]"


STORED: Any = SimpleNamespace(has=lambda kind, key: True, record_attempt=lambda chain, text: None)


class Bench:
    """The order of four chains, two of each seed, and what has happened to them."""

    def __init__(self) -> None:
        from pixelpick_ray.data import datasets
        from tests.support.tiny_data import TinyDataset

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(datasets.DATASETS, "tiny", TinyDataset)
            self.chains = list(make_plan(tiny_experiment(GRID, "oracle={name: human}")).chains)
        self.relay, self.answered, self.numbers = Relay(lambda event: None, 3, STORED), set[str](), iter(range(100))
        self.order = ChainOrder(self.chains, self.chains, self.relay, self)  # type: ignore[arg-type]

    def answered_now(self, chains: list[Chain]) -> list[Chain]:
        """As of `People`."""
        return [chain for chain in chains if chain.id in self.answered]

    def next(self) -> tuple[str, int] | str | None:
        """A trial and its chain, or what else is said."""
        trial = f"trial {next(self.numbers)}"
        found = self.order.suggest(trial)
        return (trial, found["chain"]) if isinstance(found, dict) else found

    def tell(self, chain: int, kind: type[Event], *values: Any) -> None:
        self.relay.on_trial_result(0, [], None, {"event": encode(kind(self.chains[chain].id, *values))})


@pytest.fixture
def bench() -> Bench:
    return Bench()


def handed(bench: Bench) -> dict[int, str]:
    """Everything that may start now: trials by chain."""
    found: dict[int, str] = {}
    while isinstance(one := bench.next(), tuple):
        found[one[1]] = one[0]
    return found


def test_a_chain_that_waits_for_people_comes_again_when_they_have_answered(bench: Bench) -> None:
    running = handed(bench)
    assert len(running) == 2  # one a seed: the strategies share their first fit
    first, _ = running
    bench.tell(first, AnswersAwaited, 0, 15, 15)
    bench.order.on_trial_complete(running[first], {})
    others = handed(bench)
    assert len(others) == 1  # the other strategy of this seed
    assert bench.next() is None
    bench.answered.add(bench.chains[first].id)
    bench.tell(next(iter(others)), StageDone, 0, True, 3, "f", 0.5, (), (), 1.0)
    assert list(handed(bench)) == [first]


def test_the_run_ends_when_only_people_are_left(bench: Bench) -> None:
    running = handed(bench)
    for chain, trial in running.items():
        bench.tell(chain, AnswersAwaited, 0, 1, 15)
        bench.order.on_trial_complete(trial, {})
    rest = handed(bench)
    assert len(rest) == 2
    for chain, trial in rest.items():
        bench.tell(chain, AnswersAwaited, 0, 1, 15)
        bench.order.on_trial_complete(trial, {})
    assert bench.next() == Searcher.FINISHED


def test_a_chain_that_went_on_is_not_handed_out_again(bench: Bench) -> None:
    running = handed(bench)
    first = next(iter(running))
    bench.tell(first, AnswersAwaited, 0, 15, 15)
    bench.tell(first, ChainDone)
    bench.order.on_trial_complete(running[first], {})
    bench.answered |= {chain.id for chain in bench.chains}
    assert first not in handed(bench)


def test_a_chain_that_people_answered_joins_those_that_are_tried_again(bench: Bench) -> None:
    """The next round begins with what was lost; what people answered meanwhile is handed out beside it."""
    first, other = list(handed(bench))
    bench.tell(first, AnswersAwaited, 0, 15, 15)
    bench.answered.add(bench.chains[first].id)
    bench.order = ChainOrder(bench.chains, [bench.chains[other]], bench.relay, bench)  # type: ignore[arg-type]
    assert set(handed(bench)) == {first, other}


def test_a_chain_that_is_lost_does_not_wait_for_people_any_more(bench: Bench) -> None:
    (first, _), *_ = handed(bench).items()
    bench.tell(first, AnswersAwaited, 0, 15, 15)
    lost = SimpleNamespace(config={"name": bench.chains[first].id}, get_pickled_error=lambda: None)
    bench.relay.on_trial_error(0, [], lost)
    assert bench.chains[first].id not in bench.relay.asking
    assert bench.relay.lost == [bench.chains[first].id]
