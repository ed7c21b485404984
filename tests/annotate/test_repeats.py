"""Hidden repeats: which pixels are asked a second time, whom and when, and that nothing depends on it."""

from collections import Counter

import numpy as np
import pytest

from pixelpick_ray.annotate.desk import Desk
from pixelpick_ray.annotate.order import is_for_the_same, is_repeated
from pixelpick_ray.data import scenes
from pixelpick_ray.data.answers import Book, Waiting
from pixelpick_ray.data.questions import Place
from tests.support.annotation_page import Clock, Office, Page, place, refused
from tests.support.questions import BOOK, questions_on_record

pytestmark = pytest.mark.training

ALL = "annotate.repeats=1"


@pytest.mark.parametrize("share", [0.1, 1.0])
@pytest.mark.parametrize("people", [1, 2])
def test_a_share_of_the_pixels_is_asked_again_unmarked(office: Office, share: float, people: int) -> None:
    office.ask(6, 10, f"annotate.repeats={share}")
    desk = office.desk()
    pages = [Page(desk, name) for name in ("ann", "bob")[:people]]
    rng = np.random.default_rng(0)
    for _ in range(200):
        page = pages[rng.integers(people)]
        page.work(1)
        assert {frozenset(item) for item in page.items} <= {
            frozenset({"id", "image", "name", "y", "x", "height", "width"})
        }
    assert len(office.places()) == 60
    again = office.places(repeat=True)
    assert len(again) == 60 if share == 1 else 1 <= len(again) <= 14
    assert set(again) == {place for place in office.places() if is_repeated(BOOK, place, share)}
    first, number, by_same = dict[Place, tuple[str, int]](), Counter[str](), Counter[bool]()
    for answer in office.answers():
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
    said = Book(office.store, BOOK).said()
    assert {where: answer.annotator for where, answer in said.items()} == {
        where: who for where, (who, _) in first.items()
    }
    assert desk.begin("ann")["answered"] == 60


def silence(desk: Desk, clock: Clock) -> None:
    """Some minutes in which the desk hears of somebody else alone."""
    for _ in range(3):
        clock.now += 50
        desk.begin("bob")


@pytest.mark.parametrize("pause", ["silence", "the machine sleeps", "restart"])
def test_a_repeat_that_was_shown_is_taken_after_a_silence_or_a_restart(office: Office, pause: str) -> None:
    office.ask(2, 10, ALL)
    page = office.page()

    def wait() -> None:
        if pause == "silence":
            silence(page.desk, office.clock)
        elif pause == "the machine sleeps":
            office.clock.now += 200

    assert page.work(20) == 20
    page.fetch()
    shown = list(page.items)
    if pause == "restart":
        page.desk.close()
        page.desk = office.desk()
    wait()
    page.answer()
    wait()
    page.fetch()
    assert page.items[: len(shown) - 1] == shown[1:]
    assert office.places(repeat=True) == [place(shown[0])]


def test_a_repeat_that_is_shown_is_hidden_in_the_points_and_of_who_else_got_it_meanwhile(office: Office) -> None:
    office.ask(2, 10, ALL)
    silent = office.page("ann")
    silent.work(20)
    silent.fetch()
    shown = {(item["image"], item["y"], item["x"]) for item in silent.items}
    for number in (0, 1):  # points do not tell what was said before of a pixel that is being asked again
        for point in silent.desk.points(number):
            assert point["kind"] == (None if (number, point["y"], point["x"]) in shown else "class")
    silence(silent.desk, office.clock)
    busy = office.page("bob", silent.desk)
    mine, theirs = ({item["id"] for item in page.items} for page in (silent, busy))
    assert mine & theirs
    for item in silent.items:
        if item["id"] in theirs:
            with refused("Somebody else is working on this image"):
                silent.desk.answer(silent.reply(item))
    silent.fetch()
    assert mine - theirs <= {item["id"] for item in silent.items}
    assert theirs.isdisjoint(item["id"] for item in silent.items)


def test_repeats_come_while_a_training_goes_on_which_waits_for_none(office: Office) -> None:
    questions = office.ask(1, 6, ALL)
    page, waiting = office.page(), Waiting(office.store, office.plan.experiment)

    def labels() -> list[int]:
        return Book(office.store, BOOK).labels(questions, scenes.CLASS_NAMES).tolist()

    assert page.work(6) == 6
    page.fetch()
    assert page.state == "asking"
    assert [one.missing for one in waiting.look([office.plan.chains[0].id]).values()] == [0]
    told = labels()
    office.train()
    page.fetch()
    assert (page.state, page.progress["total"]) == ("asking", 0)
    while page.items:
        page.answer("sky")
        page.fetch()
    assert len(office.places(repeat=True)) == 6
    assert labels() == told
    assert page.state == "waiting"
    assert office.store.leased() == {}
    office.train(ends=True)
    page.fetch()
    assert page.state == "done"


def test_what_was_just_answered_is_not_asked_again_at_once(office: Office) -> None:
    """That would measure nothing: it is when something else was answered, what was answered first before the rest."""
    office.ask(1, 1, ALL)
    page = office.page()
    assert page.work() == 1
    assert page.state == "waiting"
    office.ask(1, 3, seed=1, pick="second", stages=1)
    office.train()
    assert page.work() == 7
    assert office.places(repeat=True) == office.places()


def test_a_desk_that_opens_during_a_training_asks_again_what_was_asked_before(office: Office) -> None:
    """What vanished since is not asked again, and stops nobody."""
    names = ("train_0000", "train_0001")
    for stage, image in enumerate(names):
        office.ask([image], 6, ALL, pick=image, stages=stage)
        page = office.page()
        while page.progress["answered"] < page.progress["total"]:
            page.work(1)
        page.desk.close()
        office.train(image, ends=stage == 1)
    office.store.discard("question", questions_on_record(office.store, office.plan, 0)[0])
    before = Counter(image for image, _, _ in office.places(repeat=True))
    assert len(office.places()) == 12
    page = office.page()
    page.work()
    assert page.state == "done"
    after = Counter(image for image, _, _ in office.places(repeat=True))
    assert after[names[1]] == 6 > before[names[1]]
    assert after[names[0]] == before[names[0]]


def test_a_repeat_is_taken_back_when_a_first_answer_cannot_be_any_more(office: Office) -> None:
    office.ask(1, 4, ALL)
    page = office.page()
    assert page.work(4) == 4
    office.train()
    assert page.work() == 4
    (first, _), (last, item) = page.sent[0], page.sent[-1]
    with refused("The training has used this answer"):
        page.desk.undo("ann", first)
    assert [entry["id"] for entry in page.desk.begin("ann")["history"]] == [answer for answer, _ in page.sent[4:]]
    page.desk.undo("ann", last)
    page.fetch()
    assert page.items == [item]
    page.answer("sky")
    page.fetch()
    assert (page.state, len(office.places(repeat=True))) == ("waiting", 4)
