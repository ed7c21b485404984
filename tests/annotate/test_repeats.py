"""Hidden repeats: which pixels are asked a second time, whom and when, and that nothing depends on it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pixelpick_ray.annotate.desk import Desk
from pixelpick_ray.annotate.order import is_for_the_same, is_repeated
from pixelpick_ray.annotate.rota import Refusal
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.data import datasets, scenes
from pixelpick_ray.data.answers import Book, Waiting
from pixelpick_ray.plan import make_plan
from pixelpick_ray.runner import local
from pixelpick_ray.store import Store
from tests.support.annotation_page import Clock, Page, places
from tests.support.person import nobody
from tests.support.questions import (
    BOOK,
    answers_in,
    ask,
    finish,
    go_on,
    plan_of,
    questions_of,
    questions_on_record,
)
from tests.support.tiny_data import TinyDataset, tiny_experiment

pytestmark = pytest.mark.training


@pytest.mark.parametrize("share", [0.1, 1.0])
@pytest.mark.parametrize("people", [1, 2])
def test_a_share_of_the_pixels_is_asked_again_unmarked(
    store: Store, open_desk: Callable[..., Desk], share: float, people: int
) -> None:
    plan = plan_of(f"annotate.repeats={share}")
    ask(store, plan, questions_of(6, 10))
    desk = open_desk(plan)
    pages = [Page(desk, name) for name in ("ann", "bob")[:people]]
    rng = np.random.default_rng(0)
    for _ in range(200):
        page = pages[rng.integers(people)]
        page.work(1)
        assert {frozenset(item) for item in page.items} <= {
            frozenset({"id", "image", "name", "y", "x", "height", "width"})
        }
    given_, first = answers_in(store), {}
    assert len(set(places(store))) == len(places(store)) == 60
    again = places(store, repeat=True)
    assert len(set(again)) == len(again)
    assert len(again) == 60 if share == 1 else 1 <= len(again) <= 14
    assert set(again) == {place for place in places(store) if is_repeated(BOOK, place, share)}
    number, by_same = Counter[str](), Counter[bool]()
    for answer in given_:
        if answer.repeat:
            who, at = first[answer.place]
            by_same[who == answer.annotator] += 1
            assert who == answer.annotator or not is_for_the_same(BOOK, answer.place)
            # Ten other answers lie between, or fewer, but some, where there were no other questions any more.
            assert who != answer.annotator or number[who] - at > (10 if len(first) < 60 else 1)
        else:
            first[answer.place] = answer.annotator, number[answer.annotator]
        number[answer.annotator] += 1
    assert set(by_same) <= ({True} if people == 1 else {True, False})
    assert share < 1 or len(by_same) == people
    said = Book(store, BOOK).said()
    assert {place: answer.annotator for place, answer in said.items()} == {
        place: who for place, (who, _) in first.items()
    }
    assert desk.begin("ann")["answered"] == 60


def test_a_repeat_does_not_tell_what_was_said_before(store: Store, open_desk: Callable[..., Desk]) -> None:
    plan = plan_of("annotate.repeats=1")
    ask(store, plan, questions_of(2, 10))
    page = Page(open_desk(plan), "ann")
    page.work(20)
    page.fetch()
    assert page.progress["answered"] == page.progress["total"] == 20
    assert page.state == "asking"
    shown = {(item["image"], item["y"], item["x"]) for item in page.items}
    for number in (0, 1):
        for point in page.desk.points(number):
            is_shown = (number, point["y"], point["x"]) in shown
            assert point["kind"] == (None if is_shown else "class")


def test_pixels_are_asked_again_alike_in_every_process(store: Store, open_desk: Callable[..., Desk]) -> None:
    plan = plan_of("annotate.repeats=0.3")
    ask(store, plan, questions_of(6, 10))
    first = Page(open_desk(plan), "ann")
    first.work(60)
    first.desk.close()
    pages = [Page(open_desk(plan), "bob"), Page(open_desk(plan), "cleo")]
    for page in pages:
        page.fetch()
    held = [{(item["name"], item["y"], item["x"]) for item in page.items} for page in pages]
    assert held[0]
    assert held[0].isdisjoint(held[1])
    for page in pages:
        page.work()
    again = places(store, repeat=True)
    assert len(again) == len(set(again)) > 6


def silence(desk: Desk, clock: Clock) -> None:
    """Some minutes in which the desk hears of somebody else alone."""
    for _ in range(3):
        clock.now += 50
        desk.begin("bob")


def sleep(desk: Desk, clock: Clock) -> None:
    """Minutes in which the machine of the desk stood still."""
    clock.now += 200


@pytest.mark.parametrize("pause", [silence, sleep])
def test_a_repeat_that_was_shown_during_a_silence_is_taken(
    store: Store, open_desk: Callable[..., Desk], clock: Clock, pause: Callable[[Desk, Clock], None]
) -> None:
    plan = plan_of("annotate.repeats=1")
    ask(store, plan, questions_of(2, 10))
    page = Page(open_desk(plan), "ann")
    assert page.work(20) == 20
    page.fetch()
    shown = list(page.items)
    pause(page.desk, clock)
    page.answer()
    pause(page.desk, clock)
    page.fetch()
    assert page.items[: len(shown) - 1] == shown[1:]
    assert places(store, repeat=True) == [(shown[0]["name"], shown[0]["y"], shown[0]["x"])]


def test_a_repeat_that_was_shown_is_taken_after_a_restart(store: Store, open_desk: Callable[..., Desk]) -> None:
    plan = plan_of("annotate.repeats=1")
    ask(store, plan, questions_of(2, 10))
    page = Page(open_desk(plan), "ann")
    page.work(20)
    page.fetch()
    shown, reply = list(page.items), page.reply(page.items[0])
    page.desk.close()
    page.desk = open_desk(plan)
    page.desk.answer(reply)
    page.items.pop(0)
    page.fetch()
    assert page.items[: len(shown) - 1] == shown[1:]
    assert places(store, repeat=True) == [(shown[0]["name"], shown[0]["y"], shown[0]["x"])]


def test_a_repeat_that_somebody_else_got_meanwhile_is_theirs(
    store: Store, open_desk: Callable[..., Desk], clock: Clock
) -> None:
    plan = plan_of("annotate.repeats=1")
    ask(store, plan, questions_of(2, 10))
    desk = open_desk(plan)
    silent, busy = Page(desk, "ann"), Page(desk, "bob")
    silent.work(20)
    silent.fetch()
    silence(desk, clock)
    busy.fetch()
    theirs = {item["id"] for item in busy.items}
    mine = {item["id"] for item in silent.items}
    assert mine & theirs
    for item in silent.items:
        if item["id"] in theirs:
            with pytest.raises(Refusal, match="Somebody else works on this image"):
                desk.answer(silent.reply(item))
    silent.fetch()
    assert mine - theirs <= {item["id"] for item in silent.items}
    assert theirs.isdisjoint(item["id"] for item in silent.items)


def test_repeats_come_while_a_training_goes_on_which_waits_for_none(
    store: Store, open_desk: Callable[..., Desk], clock: Clock
) -> None:
    """They change nothing that it has been told."""
    plan = plan_of("annotate.repeats=1")
    questions = ask(store, plan, questions_of(1, 6))
    page, waiting = Page(open_desk(plan), "ann"), Waiting(store, plan.experiment)

    def labels() -> list[int]:
        return Book(store, BOOK).labels(questions, scenes.CLASS_NAMES).tolist()

    assert page.work(6) == 6
    page.fetch()
    assert page.state == "asking"
    assert [one.missing for one in waiting.look([plan.chains[0].id]).values()] == [0]
    told = labels()
    go_on(store)
    clock.now += 2
    page.fetch()
    assert (page.state, page.progress["total"]) == ("asking", 0)
    while page.items:
        page.answer("sky")
        page.fetch()
    assert len(set(places(store, repeat=True))) == len(places(store, repeat=True)) == 6
    assert labels() == told
    assert page.state == "waiting"
    assert store.leased() == {}
    finish(store, plan)
    page.fetch()
    assert page.state == "done"


@pytest.mark.parametrize("patient", [True, False])
def test_small_stages_reach_their_share(
    store: Store, open_desk: Callable[..., Desk], clock: Clock, patient: bool
) -> None:
    """Whether the next questions come after the repeats or before: then the repeats come among them."""
    plan, page = plan_of("annotate.repeats=0.4"), None
    for stage in range(6):
        ask(store, plan, questions_of([f"train_000{stage}"], 8), pick=f"pick {stage}", stages=stage)
        clock.now += 2
        page = page or Page(open_desk(plan), "ann")
        page.fetch()
        while page.progress["answered"] < page.progress["total"]:
            page.work(1)
        go_on(store, f"pick {stage}")
        clock.now += 2
        if patient:
            page.work()
    assert page is not None
    page.work()
    wanted = {place for place in places(store) if is_repeated(BOOK, place, 0.4)}
    again = places(store, repeat=True)
    assert (len(places(store)), len(wanted)) == (48, len(again))
    assert set(again) == wanted
    assert page.state == "done"


def test_with_nothing_else_left_what_was_answered_first_comes_again_first(
    store: Store, open_desk: Callable[..., Desk], clock: Clock
) -> None:
    plan = plan_of("annotate.repeats=1")
    ask(store, plan, questions_of(1, 6))
    page = Page(open_desk(plan), "ann")
    assert page.work() == 12
    assert places(store, repeat=True) == places(store)


def test_what_was_just_answered_is_not_asked_again_at_once(
    store: Store, open_desk: Callable[..., Desk], clock: Clock
) -> None:
    """That would measure nothing: it is when something else was answered."""
    plan = plan_of("annotate.repeats=1")
    ask(store, plan, questions_of(1, 1))
    page = Page(open_desk(plan), "ann")
    assert page.work() == 1
    assert page.state == "waiting"
    go_on(store)
    ask(store, plan, questions_of(1, 3, seed=1), pick="second", stages=1)
    clock.now += 2
    assert page.work() == 7
    assert sorted(places(store, repeat=True)) == sorted(places(store))


def test_a_desk_that_opens_during_a_training_asks_again_what_was_asked_before(
    store: Store, open_desk: Callable[..., Desk]
) -> None:
    """What vanished since is not asked again, and stops nobody."""
    plan, images = plan_of("annotate.repeats=1"), ("train_0000", "train_0001")
    for stage, image in enumerate(images):
        ask(store, plan, questions_of([image], 6), pick=image, stages=stage)
        page = Page(open_desk(plan), "ann")
        page.fetch()
        while page.progress["answered"] < page.progress["total"]:
            page.work(1)
        page.desk.close()
        go_on(store, image)
    finish(store, plan)
    lost, _ = questions_on_record(store, plan, 0)
    store.discard("question", lost)
    before = [image for image, _, _ in places(store, repeat=True)]
    assert len(places(store)) == 12
    page = Page(open_desk(plan), "ann")
    page.work()
    assert page.state == "done"
    after = [image for image, _, _ in places(store, repeat=True)]
    assert after.count(images[1]) == 6 > before.count(images[1])
    assert after.count(images[0]) == before.count(images[0])


def test_a_repeat_is_taken_back_when_a_first_answer_cannot_be_any_more(
    store: Store, open_desk: Callable[..., Desk], clock: Clock
) -> None:
    plan = plan_of("annotate.repeats=1")
    ask(store, plan, questions_of(1, 4))
    page = Page(open_desk(plan), "ann")
    assert page.work(4) == 4
    go_on(store)
    clock.now += 2
    assert page.work() == 4
    (first, _), (last, item) = page.sent[0], page.sent[-1]
    with pytest.raises(Refusal, match="The training has gone on"):
        page.desk.undo("ann", first)
    assert [entry["id"] for entry in page.desk.begin("ann")["history"]] == [answer for answer, _ in page.sent[4:]]
    page.desk.undo("ann", last)
    page.fetch()
    assert page.items == [item]
    page.answer("sky")
    page.fetch()
    assert (page.state, len(places(store, repeat=True))) == ("waiting", 4)


def test_without_repeats_nothing_comes_again(store: Store, open_desk: Callable[..., Desk], clock: Clock) -> None:
    ask(store, plan_of(), questions_of(2, 12))
    page = Page(open_desk(), "ann")
    assert page.work() == 24
    go_on(store)
    clock.now += 2
    page.fetch()
    assert (page.items, page.state) == ([], "waiting")


def picked(folder: Path, cache_path: Path, clock: Clock, *, share: float) -> tuple[set[bytes], int]:
    """What a run of two stages has picked when it has ended, and how many answers were given to all its questions; what
    comes a second time is called something else.
    """
    grid, acquire = "grid=[{budget: [3, 6]}]", "acquire.strategy=margin"
    plan = make_plan(tiny_experiment(grid, acquire, "oracle={name: human}", f"annotate={{repeats: {share}}}"))
    execution, store = Execution(folder / "data", str(folder / "store"), cache_path, folder), Store(folder / "store")
    desk, seen = Desk(plan, store, execution.data_path, clock=clock), set[tuple[str, int, int]]()
    page = Page(desk, "ann")
    while page.state != "done":
        people = nobody(plan, execution)
        assert local.run(plan, list(plan.chains), execution, lambda event: None, lambda: False, people) == {}
        clock.now += 2
        page.fetch()
        while page.items:
            place = page.items[0]["name"], page.items[0]["y"], page.items[0]["x"]
            page.answer("b" if place in seen else "a")
            seen.add(place)
            page.fetch()
    desk.close()
    return {path.read_bytes() for path in folder.glob("store/pick/*/pixels.npz")}, len(page.sent)


def test_a_run_ends_alike_with_and_without_repeats(
    tmp_path: Path, cache_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setitem(datasets.DATASETS, "tiny", TinyDataset)
    once, answers = picked(tmp_path / "once", cache_path, clock, share=0)
    twice, more = picked(tmp_path / "twice", cache_path, clock, share=1)
    assert once == twice
    assert (len(once), answers, more) == (2, 30, 60)
