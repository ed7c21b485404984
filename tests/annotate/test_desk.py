"""The desk: who is asked what, and what becomes of the answers."""

import io
import itertools
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixelpick_ray.annotate.order import nearest_path
from pixelpick_ray.data import scenes
from pixelpick_ray.data.answers import Answer, Book
from pixelpick_ray.errors import SpecError
from tests.support.annotation_page import Office, Page, images, place, refused
from tests.support.questions import BOOK, plan_of
from tests.support.waiting import wait_for

pytestmark = pytest.mark.long


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12, unique=True))
def test_a_path_goes_to_the_nearest_point_each_time(points: list[tuple[int, int]]) -> None:
    rest, expected = sorted(points), []
    while rest:
        last = expected[-1] if expected else rest[0]
        expected.append(min(rest, key=lambda one: ((one[0] - last[0]) ** 2 + (one[1] - last[1]) ** 2, one)))
        rest.remove(expected[-1])
    assert [points[at] for at in nearest_path(points)] == expected


def test_questions_come_by_image_along_a_path_and_begun_images_first(office: Office) -> None:
    questions = office.ask(3, 6)
    first = office.page("ann")
    assert images(first.items) == ["train_0000"] * 6 + ["train_0001"] * 6
    inside = questions.image == 0
    expected = list(zip(questions.y[inside].tolist(), questions.x[inside].tolist(), strict=True))
    assert [(item["y"], item["x"]) for item in first.items[:6]] == [expected[at] for at in nearest_path(expected)]
    first.items = first.items[6:] + first.items[:6]
    first.answer()
    first.desk.close()
    assert images(office.page("bob").items) == ["train_0001"] * 5 + ["train_0000"] * 6


def test_a_suggestion_is_shown_and_recorded_and_predicted_classes_may_come_together(office: Office) -> None:
    questions = office.ask(9, 6, "oracle.suggestions=true", "annotate.order=predicted")
    page = office.page()
    assert len(page.items) == 48  # of eight images
    groups = [(name, images(group)) for name, group in itertools.groupby(page.items, lambda item: item["suggestion"])]
    assert [name for name, _ in groups] == ["sky", "building", "pole", "road"]
    assert all(names == sorted(names) for _, names in groups)
    predicted = [scenes.CLASS_NAMES[index] for index in questions.predicted.tolist()]
    expected = dict(zip(questions.places(), predicted, strict=True))
    assert {place(item): item["suggestion"] for item in page.items}.items() <= expected.items()
    assert page.work() == 54
    assert {answer.place: answer.suggestion for answer in office.answers()} == expected


def test_a_page_gets_images_by_number_points_with_what_was_said_classes_keys_and_colours(office: Office) -> None:
    office.ask(2, 6)
    page = office.page()
    assert {item["name"]: item["image"] for item in page.items} == {"train_0000": 0, "train_0001": 1}
    assert {(item["height"], item["width"]) for item in page.items} == {(32, 40)}
    fields = {"id", "image", "name", "y", "x", "height", "width"}  # nothing of predictions or labels
    assert {frozenset(item) for item in page.items} == {frozenset(fields)}
    with Image.open(io.BytesIO(page.desk.image(1))) as image:
        np.testing.assert_array_equal(np.asarray(image), scenes.scene("train", 1)[0])  # at native size
    for number in (-1, 2):
        with refused("No current question is about this image"):
            page.desk.image(number)
    first, second = page.items[:2]
    page.answer("sky")
    page.answer(None)
    points = {(point["y"], point["x"]): (point["kind"], point["label"]) for point in page.desk.points(0)}
    assert len(points) == 6
    assert points.pop((first["y"], first["x"])) == ("class", "sky")
    assert points.pop((second["y"], second["x"])) == ("unknown", None)
    assert set(points.values()) == {(None, None)}
    _, entry = page.desk.begin("ann")["history"]
    assert (set(entry), set(entry["item"])) == ({"id", "kind", "label", "item"}, fields)
    assert [answer.suggestion for answer in office.answers()] == [None, None]
    found = office.desk(plan_of("annotate.keys={sky: z}", "annotate.idle_seconds=7")).begin("ann")
    assert [one["name"] for one in found["classes"]] == list(scenes.CLASS_NAMES)
    assert found["classes"][0] == {"name": "sky", "key": "z", "colour": "#6eaae1"}
    assert len({one["key"] for one in found["classes"]}) == 9
    assert (found["idle_seconds"], found["title"]) == (7, "Scenes, labelled by people")


def test_a_plan_that_asks_about_different_classes_is_refused(office: Office) -> None:
    with pytest.raises(SpecError, match=r"scenes and camvid, whose classes differ"):
        office.desk(plan_of("grid=[{dataset.name: [scenes, camvid], seed: [0], budget: [20]}]"))


def test_what_is_acknowledged_is_in_the_book_and_once_when_it_is_sent_again_or_in_two_tabs(office: Office) -> None:
    office.ask(1, 5)
    page = office.page()
    tab = office.page("ann", page.desk)
    assert tab.items == page.items
    for label, other in (("sky", {"idle_seconds": 3.0}), (None, {}), (None, {"kind": "void"})):
        item, before = page.items[0], office.clock.now
        page.answer(label, **other)
        (answer,) = [one for one in office.answers() if one.id == page.sent[-1][0]]
        assert answer.place == place(item)
        assert (answer.label, answer.kind) == (label, other.get("kind", "class" if label else "unknown"))
        assert (answer.seconds, answer.idle_seconds) == (1.5, other.get("idle_seconds", 0.0))
        assert (answer.annotator, answer.repeat) == ("ann", False)
        assert before < answer.time <= office.clock.now
    with refused("has been answered already", "gone"):
        tab.answer()
    reply = page.answer()
    assert page.desk.answer(reply) == page.progress == {"answered": 4, "total": 5, "mine": 4}
    for change in ({"label": "sky"}, {"question": page.items[0]["id"]}, {"annotator": "bob"}):
        with refused("already used by another answer", "wrong"):
            page.desk.answer(reply.model_copy(update=change))
    page.desk.undo("ann", reply.id)
    assert page.desk.answer(reply)["answered"] == 3  # late, after it was taken back
    page.desk.close()
    assert office.desk().answer(reply)["answered"] == 3
    assert len(office.answers()) == 3


@pytest.mark.parametrize("seed", range(3))
def test_people_finish_everything_together_and_no_pixel_twice(office: Office, seed: int) -> None:
    rng = np.random.default_rng(seed)
    asked = office.ask(7, int(rng.integers(1, 8)), seed=seed)
    desks = [office.desk(), office.desk()]
    pages = [Page(desks[0], "ann"), Page(desks[0], "bob"), Page(desks[1], "cleo")]
    undone = 0
    for _ in range(2000):
        page = pages[rng.integers(len(pages))]
        page.fetch()
        others = {item["name"] for other in pages if other is not page for item in other.items}
        assert others.isdisjoint(images(page.items))
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
        elif len(office.places()) == len(asked):
            break
    assert Counter(office.places()) == Counter(asked.places())
    assert {answer.id for answer in office.answers()} == {answer for page in pages for answer, _ in page.sent}


def test_four_people_at_once_finish_and_no_pixel_twice(office: Office) -> None:
    asked, desk = office.ask(20, 10), office.desk()
    with ThreadPoolExecutor(4) as pool:
        given = list(pool.map(lambda name: Page(desk, name).work(), ("ann", "bob", "cleo", "dan")))
    assert sum(given) == len(office.places()) == len(asked) == 200
    assert min(given) > 0


def test_another_process_gets_other_images_until_they_are_given_back(office: Office) -> None:
    office.ask(3, 6)
    first, second = office.page("ann"), office.page("bob")
    assert set(images(first.items)) == {"train_0000", "train_0001"}
    assert set(images(second.items)) == {"train_0002"}
    assert len(office.store.leased()) == 3
    assert second.work() == 6  # an image that is done is given back
    assert len(office.store.leased()) == 2
    second.fetch()
    assert (second.items, second.state) == ([], "elsewhere")
    first.answer()
    first.desk.close()
    second.fetch()
    assert set(images(second.items)) == {"train_0000", "train_0001"}
    assert second.work() == 11
    assert office.store.leased() == {}


def test_images_of_silent_people_are_given_back(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody asks for anything."""
    monkeypatch.setattr("pixelpick_ray.annotate.desk.SWEEP_SECONDS", 0.01)
    office.ask(2, 6)
    page = office.page("ann")
    office.clock.now += 50
    page.fetch()
    assert len(office.store.leased()) == 2
    office.clock.now += 200
    wait_for(lambda: office.store.leased() == {})
    page.answer()  # nobody took over
    assert len(office.places()) == 1


def test_a_page_that_gives_a_sign_keeps_what_it_has(office: Office) -> None:
    """Also when it gives it late, and the request itself is the first to notice the silence."""
    office.ask(3, 12)
    page, other = office.page("ann"), Page(office.desk(), "cleo")
    before, leases = list(page.items), office.store.leased()
    for seconds in (60, 60, 130, 1000):
        office.clock.now += seconds
        page.fetch()
        other.fetch()
        assert page.items == before
        assert set(images(other.items)) == {"train_0002"}
    office.clock.now += 1000
    page.answer()  # nobody took over
    page.fetch()
    assert page.items == before[1:]
    assert leases.keys() <= office.store.leased().keys()


def test_after_a_standstill_an_image_that_others_took_is_theirs_and_the_rest_is_kept(office: Office) -> None:
    office.ask(2, 12)
    page = office.page("ann")
    office.store.remove_record(f"leases/{next(iter(office.store.leased()))}")  # as others see one not refreshed
    other = office.page("bob")
    (taken,) = set(images(other.items))
    kept = [item for item in page.items if item["name"] != taken]
    office.clock.now += 90  # the machine slept
    with refused("Somebody else is working on this image"):
        page.desk.answer(page.reply(other.items[0]))
    page.fetch()
    assert page.items == kept
    assert len(kept) == 12
    assert page.work() == other.work() == 12
    assert len(office.places()) == 24


def test_what_another_process_answered_during_a_silence_is_dropped_at_once(office: Office) -> None:
    """It took the image, answered and gave the image back since the desk looked last: no pixel is answered twice."""
    office.ask(3, 12)
    busy = office.page("bob")
    silent = office.page("ann", busy.desk)
    for _ in range(3):
        office.clock.now += 50
        busy.fetch()
    other = Page(office.desk(), "cleo")
    assert other.work(1) == 1
    other.desk.close()
    ((_, answered),) = other.sent
    silent.fetch()
    assert answered["id"] not in [item["id"] for item in silent.items]
    assert len(silent.items) == 11
    assert silent.work() + busy.work() == 35
    assert len(office.places()) == 36


def test_own_answers_are_taken_back_one_after_the_other_those_of_an_earlier_sitting_too(office: Office) -> None:
    office.ask(2, 3)
    page = office.page()
    first, *others = page.items
    page.desk.skip("ann", first["id"])
    page.items = office.page("ann", page.desk).items
    assert page.items == (before := [*others, first])  # what is skipped comes again at the end
    assert page.work(5) == 5
    for annotator, answer, message in (("bob", page.sent[0][0], "Only your own"), ("ann", "x", "no such answer")):
        with refused(message):
            page.desk.undo(annotator, answer)
    assert len(office.answers()) == 5
    for answer, item in reversed(page.sent):
        progress = page.desk.undo("ann", answer)
        assert page.desk.undo("ann", answer) == progress
        reloaded = office.page("ann", page.desk)
        assert reloaded.items[0] == item
    assert progress == {"answered": 0, "total": 6, "mine": 0}
    assert (reloaded.items, office.answers()) == (before, ())
    assert reloaded.work(5) == 5
    unsent = reloaded.reply(reloaded.items[0])
    page.desk.close()
    desk = office.desk()  # a new process takes up what an old one left
    history = desk.begin("ann")["history"]
    assert [(entry["id"], entry["item"]) for entry in history] == reloaded.sent
    desk.undo("ann", history[-1]["id"])
    assert office.page("ann", desk).items[0] == history[-1]["item"]
    assert desk.answer(unsent)["answered"] == 5
    desk.close()
    assert office.desk().undo("ann", history[-1]["id"])["answered"] == 5  # by a page that heard nothing of it


def test_chains_that_ask_the_same_are_counted_once(office: Office) -> None:
    office.ask(2, 4, "grid=[{acquire.strategy: [margin, entropy], seed: [0], budget: [20]}]")
    office.ask(2, 4, chain=1)
    page = office.page()
    assert page.work() == page.progress["total"] == 8
    first = office.ask(2, 4, seed=1, pick="margin")
    other = office.ask(2, 4, seed=2, chain=1, pick="entropy")
    office.train()
    page.fetch()
    assert page.progress["total"] == len({*first.places(), *other.places()})


def test_a_page_waits_for_the_training_goes_on_and_ends(office: Office) -> None:
    page = office.page()

    def seen() -> tuple[str, int]:
        office.clock.now += 2
        page.fetch()
        return page.state, len(page.items)

    assert seen() == ("waiting", 0)
    office.ask(1, 3)
    assert seen() == ("asking", 3)
    assert page.work() == 3
    assert seen() == ("waiting", 0)
    office.ask(2, 3)  # a chain that asks for more is followed
    assert seen() == ("asking", 3)
    assert set(images(page.items)) == {"train_0001"}
    assert (page.progress["answered"], page.progress["total"]) == (3, 6)
    reply = page.reply(page.items[0])
    office.train()
    office.clock.now -= 2  # it has not looked since
    for _ in range(2):
        with refused("The training has used this answer", "gone"):
            page.desk.undo("ann", page.sent[-1][0])
        assert seen() == ("waiting", 0)  # what is not asked any more is dropped
    assert office.store.leased() == {}
    with refused("no longer asked"):
        page.desk.answer(reply)
    office.ask(1, 3, seed=2, pick="second", stages=1)
    assert seen() == ("asking", 3)
    page.work()
    office.train("second", ends=True)
    assert seen() == ("done", 0)


@pytest.mark.alone
def test_a_desk_is_quick_with_many_answers(office: Office) -> None:
    """No request goes through all 50,000, or through the 9,000 images, though everybody waits for each."""
    names = [f"image_{number:05d}" for number in range(9000)]
    asked = office.ask(names, 6, "annotate.repeats=0.1").places()[:50_000]
    said = {"kind": "class", "label": "road", "seconds": 1.5, "annotator": "ann"}
    answers = (Answer(id=str(at), image=one[0], y=one[1], x=one[2], time=at, **said) for at, one in enumerate(asked))
    Book(office.store, BOOK).append(*answers)
    page, seconds = Page(office.desk(), "ann"), dict[str, list[float]]()

    def timed(name: str, act: Callable[[], object]) -> None:
        begun = time.perf_counter()
        act()
        seconds.setdefault(name, []).append(time.perf_counter() - begun)

    for _ in range(5):
        timed("next", page.fetch)
        while len(page.items) > 2:
            timed("answer", page.answer)
        timed("points", lambda: page.desk.points(page.items[0]["image"]))
        answer, item = page.sent.pop()
        timed("undo", lambda answer=answer: page.desk.undo("ann", answer))
        page.items.insert(0, item)
    assert len(seconds["answer"]) > 60
    assert not {place(item) for _, item in page.sent}.isdisjoint(asked)  # repeats
    medians = {name: sorted(found)[len(found) // 2] for name, found in seconds.items()}
    assert medians.pop("next") < 0.1
    assert max(medians.values()) < 0.02
