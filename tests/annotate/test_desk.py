"""The desk: who is asked what, and what becomes of the answers."""

import io
import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixelpick_ray.annotate.desk import Desk
from pixelpick_ray.annotate.order import nearest_path
from pixelpick_ray.annotate.rota import Refusal
from pixelpick_ray.data import scenes
from pixelpick_ray.data.answers import Answer, Book
from pixelpick_ray.errors import SpecError, StoreError
from pixelpick_ray.store import Store
from tests.support.annotation_page import Clock, Item, Page, places
from tests.support.questions import BOOK, answers_in, ask, finish, go_on, plan_of, questions_of

pytestmark = pytest.mark.long

# Order


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12, unique=True))
def test_a_path_goes_to_the_nearest_point_each_time(points: list[tuple[int, int]]) -> None:
    rest, expected = sorted(points), []
    while rest:
        last = expected[-1] if expected else rest[0]
        expected.append(min(rest, key=lambda one: ((one[0] - last[0]) ** 2 + (one[1] - last[1]) ** 2, one)))
        rest.remove(expected[-1])
    assert [points[at] for at in nearest_path(points)] == expected


def test_questions_come_by_image_along_a_path_and_begun_images_first(
    store: Store, open_desk: Callable[..., Desk]
) -> None:
    questions = ask(store, plan_of(), questions_of(3, 6))
    first = Page(open_desk(), "ann")
    first.fetch()
    assert [item["name"] for item in first.items] == ["train_0000"] * 6 + ["train_0001"] * 6
    mine = [(item["y"], item["x"]) for item in first.items[:6]]
    inside = questions.image == 0
    expected = list(zip(questions.y[inside].tolist(), questions.x[inside].tolist(), strict=True))
    assert mine == [expected[at] for at in nearest_path(expected)]
    first.items.append(first.items.pop(0))
    while first.items[0]["name"] == "train_0000":
        first.items.append(first.items.pop(0))
    first.answer()
    first.desk.close()
    second = Page(open_desk(), "bob")
    second.fetch()
    assert [item["name"] for item in second.items] == ["train_0001"] * 5 + ["train_0000"] * 6


def test_predicted_classes_come_together_over_eight_images(store: Store, open_desk: Callable[..., Desk]) -> None:
    plan = plan_of("oracle.suggestions=true", "annotate.order=predicted")
    ask(store, plan, questions_of(9, 6))
    page = Page(open_desk(plan), "ann")
    page.fetch()
    classes = [item["suggestion"] for item in page.items]
    assert [name for name, _ in itertools.groupby(classes)] == ["sky", "building", "pole", "road"]
    assert len(page.items) == 48
    for _, group in itertools.groupby(page.items, key=lambda item: item["suggestion"]):
        names = [item["name"] for item in group]
        assert names == sorted(names)


def test_a_suggestion_is_shown_and_recorded(store: Store, open_desk: Callable[..., Desk]) -> None:
    plan = plan_of("oracle.suggestions=true")
    questions = ask(store, plan, questions_of(1, 8))
    page = Page(open_desk(plan), "ann")
    assert page.work() == 8
    predicted = {
        (y, x): scenes.CLASS_NAMES[index]
        for y, x, index in zip(questions.y.tolist(), questions.x.tolist(), questions.predicted.tolist(), strict=True)
    }
    assert {(answer.y, answer.x): answer.suggestion for answer in answers_in(store)} == predicted


def test_without_suggestions_a_page_learns_nothing_of_predictions_or_labels(
    store: Store, open_desk: Callable[..., Desk]
) -> None:
    ask(store, plan_of(), questions_of(1, 8))
    page = Page(open_desk(), "ann")
    page.fetch()
    assert {frozenset(item) for item in page.items} == {frozenset({"id", "image", "name", "y", "x", "height", "width"})}
    page.answer()
    history = page.desk.begin("ann")["history"]
    assert [set(entry) for entry in history] == [{"id", "kind", "label", "item"}]
    assert set(history[0]["item"]) == set(page.items[0])
    assert answers_in(store)[0].suggestion is None


# Pictures and classes


def test_a_page_gets_the_image_at_native_size_by_its_number_alone(store: Store, open_desk: Callable[..., Desk]) -> None:
    ask(store, plan_of(), questions_of(2, 6))
    page = Page(open_desk(), "ann")
    page.fetch()
    assert {item["name"]: item["image"] for item in page.items} == {"train_0000": 0, "train_0001": 1}
    assert {(item["height"], item["width"]) for item in page.items} == {(32, 40)}
    with Image.open(io.BytesIO(page.desk.image(1))) as image:
        np.testing.assert_array_equal(np.asarray(image), scenes.scene("train", 1)[0])
    for number in (-1, 2):
        with pytest.raises(Refusal, match="No question has this image"):
            page.desk.image(number)


def test_a_page_gets_every_class_with_a_key_and_a_colour(store: Store, open_desk: Callable[..., Desk]) -> None:
    plan = plan_of("annotate.keys={sky: z}", "annotate.idle_seconds=7")
    found = open_desk(plan).begin("ann")
    assert [one["name"] for one in found["classes"]] == list(scenes.CLASS_NAMES)
    assert found["classes"][0] == {"name": "sky", "key": "z", "colour": "#6eaae1"}
    assert len({one["key"] for one in found["classes"]}) == 9
    assert found["idle_seconds"] == 7
    assert found["title"] == "Scenes, labelled by people"


def test_points_of_an_image_have_what_was_said(store: Store, open_desk: Callable[..., Desk]) -> None:
    ask(store, plan_of(), questions_of(1, 4))
    page = Page(open_desk(), "ann")
    page.fetch()
    first, second = page.items[:2]
    page.answer("sky")
    page.answer(None)
    found = {(point["y"], point["x"]): (point["kind"], point["label"]) for point in page.desk.points(0)}
    assert len(found) == 4
    assert found[first["y"], first["x"]] == ("class", "sky")
    assert found[second["y"], second["x"]] == ("unknown", None)
    assert sorted(found.values(), key=str)[2:] == [(None, None)] * 2


def test_a_plan_in_which_nobody_is_asked_is_refused(open_desk: Callable[..., Desk]) -> None:
    with pytest.raises(SpecError, match="oracle: no chain"):
        open_desk(plan_of("oracle.name=ground_truth"))


def test_one_desk_cannot_ask_about_different_classes(tmp_path: Path, open_desk: Callable[..., Desk]) -> None:
    with pytest.raises(SpecError, match=r"scenes and camvid.*different classes"):
        open_desk(plan_of("grid=[{dataset.name: [scenes, camvid], seed: [0], budget: [20]}]"))


# Answers


def test_what_is_acknowledged_is_in_the_book(store: Store, open_desk: Callable[..., Desk], clock: Clock) -> None:
    ask(store, plan_of(), questions_of(1, 5))
    page = Page(open_desk(), "ann")
    page.fetch()
    for label, other in (("sky", {"idle_seconds": 3.0}), (None, {}), (None, {"kind": "void"})):
        item, before = page.items[0], clock.now
        page.answer(label, **other)
        (answer,) = [one for one in answers_in(store) if one.id == page.sent[-1][0]]
        assert answer.place == (item["name"], item["y"], item["x"])
        assert (answer.label, answer.kind) == (label, other.get("kind", "class" if label else "unknown"))
        assert (answer.seconds, answer.idle_seconds) == (1.5, other.get("idle_seconds", 0.0))
        assert (answer.annotator, answer.repeat) == ("ann", False)
        assert before < answer.time <= clock.now
    assert page.progress == {"answered": 3, "total": 5, "mine": 3}


def test_an_answer_that_is_sent_again_is_written_once(store: Store, open_desk: Callable[..., Desk]) -> None:
    ask(store, plan_of(), questions_of(1, 3))
    page = Page(open_desk(), "ann")
    page.fetch()
    reply = page.answer()
    again = page.desk.answer(reply)
    assert again == page.progress
    assert len(answers_in(store)) == 1
    page.desk.undo("ann", reply.id)
    assert page.desk.answer(reply)["answered"] == 0  # late, after it was taken back
    page.desk.close()
    assert open_desk().answer(reply)["answered"] == 0
    assert answers_in(store) == ()


def test_one_identity_cannot_name_two_answers(store: Store, open_desk: Callable[..., Desk]) -> None:
    ask(store, plan_of(), questions_of(1, 3))
    page = Page(open_desk(), "ann")
    page.fetch()
    reply = page.answer()
    for change in ({"label": "sky"}, {"question": page.items[0]["id"]}, {"annotator": "bob"}):
        with pytest.raises(Refusal, match="that of another answer") as refused:
            page.desk.answer(reply.model_copy(update=change))
        assert refused.value.reason == "wrong"
    assert len(answers_in(store)) == 1


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"label": "moon"}, "wrong", "no class 'moon'"),
        ({"label": None}, "wrong", "label: is the name"),
        ({"kind": "void"}, "wrong", "label: is the name"),
        ({"question": "unheard of"}, "gone", "not asked any more"),
    ],
)
def test_a_wrong_answer_is_refused_and_not_written(
    store: Store, open_desk: Callable[..., Desk], change: Item, reason: str, message: str
) -> None:
    ask(store, plan_of(), questions_of(1, 3))
    page = Page(open_desk(), "ann")
    page.fetch()
    with pytest.raises(Refusal, match=message) as refused:
        page.desk.answer(page.reply(page.items[0]).model_copy(update=change))
    assert refused.value.reason == reason
    assert answers_in(store) == ()
    page.answer()


def test_two_tabs_are_one_person_and_answer_a_pixel_once(store: Store, open_desk: Callable[..., Desk]) -> None:
    ask(store, plan_of(), questions_of(1, 5))
    desk = open_desk()
    left, right = Page(desk, "ann"), Page(desk, "ann")
    left.fetch()
    right.fetch()
    assert left.items == right.items
    left.answer()
    with pytest.raises(Refusal, match="has its answer already") as refused:
        right.answer()
    assert refused.value.reason == "gone"
    assert right.work() == 4
    assert len(set(places(store))) == len(places(store)) == 5


def test_a_store_that_cannot_be_written_loses_nothing(
    store: Store, open_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(store, plan_of(), questions_of(1, 3))
    page = Page(open_desk(), "ann")
    page.fetch()
    reply = page.reply(page.items[0])

    def full(self: Book, line: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Book, "append", full)
        with pytest.raises(StoreError, match="the disk is full"):
            page.desk.answer(reply)
    assert page.desk.answer(reply)["answered"] == 1
    assert [answer.id for answer in answers_in(store)] == [reply.id]


# Several people


@pytest.mark.parametrize("seed", range(6))
def test_people_finish_everything_together_and_no_pixel_twice(
    store: Store, open_desk: Callable[..., Desk], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    asked = ask(store, plan_of(), questions_of(7, int(rng.integers(1, 8)), seed=seed))
    desks = [open_desk(), open_desk()]
    pages = [Page(desks[0], "ann"), Page(desks[0], "bob"), Page(desks[1], "cleo")]
    undone = 0
    for _ in range(2000):
        page = pages[rng.integers(len(pages))]
        page.fetch()
        others = {item["name"] for other in pages if other is not page for item in other.items}
        assert others.isdisjoint(item["name"] for item in page.items)
        chance = rng.random()
        if page.items and chance < 0.1:
            page.desk.skip(page.annotator, page.items[0]["id"])
            page.items.append(page.items.pop(0))
        elif page.sent and undone < 20 and chance < 0.2:
            answer, item = page.sent.pop()
            page.desk.undo(page.annotator, answer)
            page.items.insert(0, item)
            undone += 1
        elif page.items:
            page.answer()
        elif len(places(store)) == len(asked):
            break
    assert Counter(places(store)) == Counter(
        zip(asked.names_per_pixel().tolist(), asked.y.tolist(), asked.x.tolist(), strict=True)
    )
    sent = {answer for page in pages for answer, _ in page.sent}
    assert {answer.id for answer in answers_in(store)} == sent


def test_another_process_gets_other_images_until_they_are_given_back(
    store: Store, open_desk: Callable[..., Desk]
) -> None:
    ask(store, plan_of(), questions_of(3, 6))
    first, second = Page(open_desk(), "ann"), Page(open_desk(), "bob")
    first.fetch()
    second.fetch()
    assert {item["name"] for item in first.items} == {"train_0000", "train_0001"}
    assert {item["name"] for item in second.items} == {"train_0002"}
    assert second.work() == 6
    second.fetch()
    assert (second.items, second.state) == ([], "elsewhere")
    first.answer()
    first.desk.close()
    second.fetch()
    assert {item["name"] for item in second.items} == {"train_0000", "train_0001"}
    assert len(second.items) == 11


def test_an_image_that_is_done_is_given_back(store: Store, open_desk: Callable[..., Desk]) -> None:
    ask(store, plan_of(), questions_of(2, 6))
    page = Page(open_desk(), "ann")
    page.fetch()
    assert len(store.leased()) == 2
    for _ in range(6):
        page.answer()
    assert len(store.leased()) == 1
    page.work()
    assert store.leased() == {}


def test_the_images_of_a_silent_person_go_to_others(store: Store, open_desk: Callable[..., Desk], clock: Clock) -> None:
    ask(store, plan_of(), questions_of(2, 6))
    desk = open_desk()
    silent, busy = Page(desk, "ann"), Page(desk, "bob")
    silent.fetch()
    for _ in range(3):
        clock.now += 50
        busy.fetch()
    assert [item["id"] for item in busy.items] == [item["id"] for item in silent.items]
    with pytest.raises(Refusal, match="Somebody else works on this image") as refused:
        silent.answer()
    assert refused.value.reason == "taken"
    silent.fetch()
    assert (silent.items, silent.state) == ([], "elsewhere")


def test_a_silent_person_goes_on_where_nobody_took_over(
    store: Store, open_desk: Callable[..., Desk], clock: Clock
) -> None:
    ask(store, plan_of(), questions_of(3, 6))
    page = Page(open_desk(), "ann")
    page.fetch()
    before = list(page.items)
    clock.now += 1000  # the machine slept, too
    page.answer()
    page.fetch()
    assert page.items == before[1:]
    clock.now += 1000
    page.fetch()
    assert page.items == before[1:]


def test_after_a_standstill_an_image_that_another_process_took_is_theirs(
    store: Store, open_desk: Callable[..., Desk], clock: Clock
) -> None:
    ask(store, plan_of(), questions_of(1, 6))
    page = Page(open_desk(), "ann")
    page.fetch()
    for name in store.leased():  # what others see of leases that were not refreshed
        store.remove_record(f"leases/{name}")
    other = Page(open_desk(), "bob")
    other.fetch()
    assert other.items == page.items
    clock.now += 90
    with pytest.raises(Refusal, match="Somebody else works on this image"):
        page.answer()
    assert other.work() == 6
    assert len(set(places(store))) == len(places(store)) == 6


def test_a_page_that_gives_a_sign_keeps_what_it_has(store: Store, open_desk: Callable[..., Desk], clock: Clock) -> None:
    """Also when it gives it late, and the request itself is the first to notice the silence."""
    ask(store, plan_of(), questions_of(3, 12))
    desk, other = open_desk(), Page(open_desk(), "cleo")
    page = Page(desk, "ann")
    page.fetch()
    before, leases = list(page.items), store.leased()
    for seconds in (60, 60, 130, 1000):
        clock.now += seconds
        page.fetch()
        other.fetch()
        assert page.items == before
        assert {item["name"] for item in other.items} == {"train_0002"}
    assert leases.keys() <= store.leased().keys()


def test_a_sign_of_life_drops_what_others_took_and_keeps_the_rest(
    store: Store, open_desk: Callable[..., Desk], clock: Clock
) -> None:
    ask(store, plan_of(), questions_of(2, 12))
    page = Page(open_desk(), "ann")
    page.fetch()
    store.remove_record(f"leases/{next(iter(store.leased()))}")  # as others see one that was not refreshed
    other = Page(open_desk(), "bob")
    other.fetch()
    (taken,) = {item["name"] for item in other.items}
    before = list(page.items)
    clock.now += 90  # the machine slept
    page.fetch()
    assert page.items == [item for item in before if item["name"] != taken]
    assert len(page.items) == 12
    assert page.work() == other.work() == 12
    assert len(set(places(store))) == len(places(store)) == 24


def test_what_another_process_answered_during_a_silence_is_dropped_at_once(
    store: Store, open_desk: Callable[..., Desk], clock: Clock
) -> None:
    """It took the image, answered and gave the image back since the desk looked last: no pixel is answered twice."""
    ask(store, plan_of(), questions_of(3, 12))
    desk = open_desk()
    busy, silent = Page(desk, "bob"), Page(desk, "ann")
    busy.fetch()
    silent.fetch()
    for _ in range(3):
        clock.now += 50
        busy.fetch()
    other = Page(open_desk(), "cleo")
    assert other.work(1) == 1
    other.desk.close()
    ((_, answered),) = other.sent
    silent.fetch()
    assert answered["id"] not in [item["id"] for item in silent.items]
    assert len(silent.items) == 11
    assert silent.work() + busy.work() == 35
    assert len(set(places(store))) == len(places(store)) == 36


def test_a_new_process_takes_up_what_an_old_one_left(store: Store, open_desk: Callable[..., Desk]) -> None:
    ask(store, plan_of(), questions_of(2, 6))
    old = Page(open_desk(), "ann")
    assert old.work(4) == 4
    unsent = old.reply(old.items[0])
    old.desk.close()
    new = Page(open_desk(), "ann")
    begun = new.desk.begin("ann")
    assert [entry["id"] for entry in begun["history"]] == [answer for answer, _ in old.sent]
    assert [entry["item"] for entry in begun["history"]] == [item for _, item in old.sent]
    new.desk.answer(unsent)  # the page of the old process goes on with the new one
    assert new.work() == 7
    assert len(set(places(store))) == len(places(store)) == 12


# Skip and undo


def test_what_is_skipped_comes_again_at_the_end(store: Store, open_desk: Callable[..., Desk]) -> None:
    ask(store, plan_of(), questions_of(1, 5))
    page = Page(open_desk(), "ann")
    page.fetch()
    before = list(page.items)
    page.desk.skip("ann", before[0]["id"])
    reloaded = Page(page.desk, "ann")
    reloaded.fetch()
    assert reloaded.items == [*before[1:], before[0]]
    assert reloaded.work() == 5


def test_answers_are_taken_back_one_after_the_other(store: Store, open_desk: Callable[..., Desk]) -> None:
    ask(store, plan_of(), questions_of(2, 3))
    page = Page(open_desk(), "ann")
    page.fetch()
    before = list(page.items)
    assert page.work(5) == 5
    for answer, item in reversed(page.sent):
        progress = page.desk.undo("ann", answer)
        assert page.desk.undo("ann", answer) == progress
        reloaded = Page(page.desk, "ann")
        reloaded.fetch()
        assert reloaded.items[0] == item
    assert progress == {"answered": 0, "total": 6, "mine": 0}
    assert reloaded.items == before
    assert answers_in(store) == ()
    assert reloaded.work() == 6


def test_an_answer_of_an_earlier_sitting_is_taken_back(store: Store, open_desk: Callable[..., Desk]) -> None:
    ask(store, plan_of(), questions_of(1, 3))
    page = Page(open_desk(), "ann")
    page.work()
    page.desk.close()
    desk = open_desk()
    last = desk.begin("ann")["history"][-1]
    desk.undo("ann", last["id"])
    again = Page(desk, "ann")
    again.fetch()
    assert again.items == [last["item"]]
    desk.close()
    assert open_desk().undo("ann", last["id"])["answered"] == 2  # by a page that heard nothing of it


@pytest.mark.parametrize("polled", [False, True])
def test_an_answer_that_was_trained_on_stays(
    store: Store, open_desk: Callable[..., Desk], clock: Clock, polled: bool
) -> None:
    ask(store, plan_of(), questions_of(1, 3))
    page = Page(open_desk(), "ann")
    page.work()
    go_on(store)
    if polled:
        clock.now += 2
        page.fetch()
        assert page.state == "waiting"
    with pytest.raises(Refusal, match="The training has gone on") as refused:
        page.desk.undo("ann", page.sent[-1][0])
    assert refused.value.reason == "gone"
    assert len(answers_in(store)) == 3


def test_only_own_answers_are_taken_back(store: Store, open_desk: Callable[..., Desk]) -> None:
    ask(store, plan_of(), questions_of(1, 3))
    page = Page(open_desk(), "ann")
    page.work()
    for annotator, answer, message in (("bob", page.sent[0][0], "Only your own"), ("ann", "x", "no such answer")):
        with pytest.raises(Refusal, match=message):
            page.desk.undo(annotator, answer)
    assert len(answers_in(store)) == 3


# Chains


def test_chains_that_ask_the_same_are_counted_once(store: Store, open_desk: Callable[..., Desk], clock: Clock) -> None:
    plan = plan_of("grid=[{acquire.strategy: [margin, entropy], seed: [0], budget: [20]}]")
    both = questions_of(2, 4)
    for chain in (0, 1):
        ask(store, plan, both, chain=chain)
    page = Page(open_desk(plan), "ann")
    assert page.work() == 8
    assert page.progress["total"] == 8
    go_on(store)
    ask(store, plan, questions_of(2, 4, seed=1), chain=0, pick="margin")
    other = ask(store, plan, questions_of(2, 4, seed=2), chain=1, pick="entropy")
    clock.now += 2
    page.fetch()
    union = {*zip(other.image.tolist(), other.y.tolist(), other.x.tolist(), strict=True)}
    theirs = questions_of(2, 4, seed=1)
    union |= {*zip(theirs.image.tolist(), theirs.y.tolist(), theirs.x.tolist(), strict=True)}
    assert page.progress["total"] == len(union)


def test_a_page_waits_for_the_training_goes_on_and_ends(
    store: Store, open_desk: Callable[..., Desk], clock: Clock
) -> None:
    plan = plan_of()
    page = Page(open_desk(plan), "ann")

    def seen() -> tuple[str, int]:
        clock.now += 2
        page.fetch()
        return page.state, len(page.items)

    assert seen() == ("waiting", 0)
    ask(store, plan, questions_of(1, 3))
    assert seen() == ("asking", 3)
    assert page.work() == 3
    assert seen() == ("waiting", 0)
    go_on(store)
    assert seen() == ("waiting", 0)
    ask(store, plan, questions_of(1, 3, seed=2), pick="second", stages=1)
    assert seen() == ("asking", 3)
    page.work()
    go_on(store, "second")
    finish(store, plan)
    assert seen() == ("done", 0)


def test_questions_that_are_not_asked_any_more_are_dropped(
    store: Store, open_desk: Callable[..., Desk], clock: Clock
) -> None:
    ask(store, plan_of(), questions_of(2, 6))
    page = Page(open_desk(), "ann")
    page.fetch()
    go_on(store)
    clock.now += 2
    reply = page.reply(page.items[0])
    page.fetch()
    assert (page.items, page.state) == ([], "waiting")
    assert store.leased() == {}
    with pytest.raises(Refusal, match="not asked any more"):
        page.desk.answer(reply)


def test_a_chain_that_asks_for_more_is_followed(store: Store, open_desk: Callable[..., Desk], clock: Clock) -> None:
    plan = plan_of()
    ask(store, plan, questions_of(1, 3))
    page = Page(open_desk(), "ann")
    page.work()
    ask(store, plan, questions_of(2, 3))
    clock.now += 2
    page.fetch()
    assert {item["name"] for item in page.items} == {"train_0001"}
    assert (page.progress["answered"], page.progress["total"]) == (3, 6)


@pytest.mark.alone
def test_a_desk_is_quick_with_many_answers(store: Store, open_desk: Callable[..., Desk]) -> None:
    """Of 54,000 pixels in 9,000 images, 50,000 have answers and some are asked a second time: no request goes through
    them all, though everybody waits for each.
    """
    plan = plan_of("annotate.repeats=0.1")
    asked = ask(store, plan, questions_of([f"image_{number:05d}" for number in range(9000)], 6)).places()[:50_000]
    said = {"kind": "class", "label": "road", "seconds": 1.5}
    Book(store, BOOK).append(
        *(
            Answer(id=str(at), image=image, y=y, x=x, annotator=("ann", "bob")[at % 2], time=1e8 + at, **said)
            for at, (image, y, x) in enumerate(asked)
        )
    )
    page = Page(open_desk(plan), "ann")
    seconds: dict[str, list[float]] = {"next": [], "answer": [], "points": [], "undo": []}

    def timed(name: str, act: Callable[[], object]) -> None:
        begun = time.perf_counter()
        act()
        seconds[name].append(time.perf_counter() - begun)

    for _ in range(5):
        timed("next", page.fetch)
        while len(page.items) > 2:
            timed("answer", page.answer)
        timed("points", lambda: page.desk.points(page.items[0]["image"]))
        answer, item = page.sent.pop()
        timed("undo", lambda answer=answer: page.desk.undo("ann", answer))
        page.items.insert(0, item)
    assert len(seconds["answer"]) > 60
    assert not {(item["name"], item["y"], item["x"]) for _, item in page.sent}.isdisjoint(asked)  # repeats
    medians = {name: sorted(found)[len(found) // 2] for name, found in seconds.items()}
    assert medians["next"] < 0.1
    assert max(medians["answer"], medians["points"], medians["undo"]) < 0.02
