"""The page in a real browser, used by keyboard: what is acknowledged is in the book once, whatever happens."""

import base64
import itertools
import json
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelpick_ray.annotate.desk import Desk
from pixelpick_ray.data import scenes
from pixelpick_ray.data.answers import Answer
from pixelpick_ray.store import Store
from tests.support.annotation_server import TOKEN, Site, running, serving
from tests.support.browser import Browser, Key, browsing, needs_browser
from tests.support.data_folders import loaded, write_folder
from tests.support.questions import answers_in, ask, finish, go_on, plan_of, questions_of
from tests.support.waiting import wait_for

pytestmark = [needs_browser, pytest.mark.browser]
Item = dict[str, Any]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        browser.prefer("light")
        yield browser


class Typist:
    """Somebody at a page, who reads what it exposes for tests and remembers what was acknowledged."""

    name = "Ada"

    def __init__(self, browser: Browser, store: Store, site: Site | None = None) -> None:
        self.browser, self.store, self.site = browser, store, site
        self.keys: dict[str, str] = {}
        self.acknowledged: dict[str, tuple[str, str, str | None]] = {}  # question, kind, label by the answer
        self.seen: list[int] = [0, 0]

    def open(self, address: str, width: int = 1280, height: int = 720) -> None:
        """Visit a page; the first time at an address it asks for the name."""
        self.browser.visit(address, width, height)
        if self.browser.run("return document.querySelector('#welcome').open"):
            self.browser.type(*self.name, Key.ENTER)
        self.settle()

    def settle(self) -> None:
        """Wait until the page shows a question, or says why not."""
        wait_for(lambda: self.look()["shown"] > 0 or self.look()["state"] in ("waiting", "done"))
        self.read_keys()
        self.seen = [0, 0]

    def read_keys(self) -> None:
        rows = "[...document.querySelectorAll('#classes button')].map(one => [one.dataset.name, one.ariaKeyShortcuts])"
        self.keys = dict(self.browser.run(f"return {rows}"))

    def look(self) -> Any:
        return self.browser.run("return window.annotation ?? {shown: 0, state: 'loading'}")

    def item(self) -> Any:
        return self.look()["item"]

    def text(self, selector: str) -> Any:
        return self.browser.run(f"return document.querySelector('{selector}').textContent")

    def say(self, *names: str) -> Any:
        return self.press(*(self.keys[name] for name in names))

    def press(self, *keys: str) -> Any:
        """Press keys that answer or take back, each when the last is acknowledged; what the page exposes then."""
        for key in keys:
            self.browser.type(key)
            found = self.take_notes(sum(self.seen) + 1)
        return found

    def take_notes(self, count: int) -> Any:
        """Wait until so many answers are acknowledged or taken back."""

        def done() -> Any:
            found = self.look()
            return found if len(found["acknowledged"]) + len(found["undone"]) >= count else None

        found = wait_for(done)
        for one in found["acknowledged"][self.seen[0] :]:
            self.acknowledged[one["id"]] = one["question"], one["kind"], one["label"]
        for answer in found["undone"][self.seen[1] :]:
            del self.acknowledged[answer]
        self.seen = [len(found["acknowledged"]), len(found["undone"])]
        return found

    def answers(self) -> Sequence[Answer]:
        return answers_in(self.store)

    def labels(self) -> list[str | None]:
        return [answer.label for answer in self.answers()]

    def wait_for_notice(self, text: str, selector: str = "#notice") -> None:
        wait_for(lambda: text in self.text(selector))

    def wait_for_next(self, item: Item) -> None:
        wait_for(lambda: self.item() != item)

    def reload(self) -> None:
        self.browser.call("POST", "/refresh", {})
        self.settle()

    @property
    def address(self) -> str:
        assert self.site is not None
        return f"http://127.0.0.1:{self.site.port}/{TOKEN}/"


def check_book(typist: Typist) -> None:
    """What the page saw acknowledged is what the book has, and no pixel twice."""
    answers = typist.answers()
    acknowledged = {answer: said[1:] for answer, said in typist.acknowledged.items()}
    assert {answer.id: (answer.kind, answer.label) for answer in answers} == acknowledged
    assert max(Counter(answer.place for answer in answers).values()) == 1


@pytest.mark.alone
@pytest.mark.always("the page for people in a browser")
def test_two_hundred_answers_survive_a_reload_and_a_killed_server(browser: Browser, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    ask(store, plan_of(), questions_of(20, 10))
    typist, rng, timings = Typist(browser, store), np.random.default_rng(0), list[float]()
    expected: dict[str, tuple[str, str | None]] = {}  # by question

    def answer() -> None:
        item, draw = typist.item(), rng.random()
        label = scenes.CLASS_NAMES[rng.integers(9)]
        kind = "unknown" if draw < 0.05 else "void" if draw < 0.1 else "class"
        typist.press({"unknown": "0", "void": "."}.get(kind, typist.keys[label]))
        expected[item["id"]] = kind, label if kind == "class" else None

    def undo() -> None:
        last = list(typist.acknowledged)[-1]
        del expected[typist.acknowledged[last][0]]
        typist.press(Key.BACKSPACE)

    def skip() -> None:
        before = typist.item()
        browser.type(Key.SPACE)
        typist.wait_for_next(before)

    browser.log("browser")
    browser.log("performance")
    with serving(store) as (process, first):
        typist.open(first)
        for step in range(90):
            (undo if step in (20, 21, 22, 50) else skip if step in (5, 33, 34) else answer)()
            if step == 45:
                timings += typist.look()["timings"]
                before = typist.item()
                typist.open(first)
                assert typist.item() == before
        timings += typist.look()["timings"]
        assert browser.log("browser") == []
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)
        browser.type(typist.keys["road"])
        wait_for(lambda: "kept and will be sent again" in typist.text("#banner"))
        assert typist.look()["acknowledged"] == typist.look()["acknowledged"][: typist.seen[0]]
    check_book(typist)
    with serving(store) as (_, second):
        typist.open(second)
        browser.log("browser")  # of the connection that was lost
        while len(typist.acknowledged) < 200:
            answer()
        wait_for(lambda: typist.look()["state"] == "waiting")
        timings += typist.look()["timings"]
        assert browser.log("browser") == []
    events = [json.loads(one["message"])["message"] for one in browser.log("performance")]
    requests = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
    assert len(requests) > 2
    inside = first, second, "data:", "blob:", "about:", "chrome:"  # the last are of the browser's own first page
    assert [url for url in requests if not url.startswith(inside)] == []
    check_book(typist)
    assert {said[0]: said[1:] for said in typist.acknowledged.values()} == expected
    assert len(timings) > 150
    assert statistics.median(timings) < 100  # ms: what feels instant; about 25 on a quiet computer


Opened = Callable[..., Typist]


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Opened]:
    """Open a page on images of pixels, with a server on a thread of this process."""
    with ExitStack() as stack:

        def open_one(
            *overrides: str,
            images: int = 2,
            pixels: int = 12,
            change: Callable[[Desk], object] = lambda desk: None,
            opens: bool = True,
            **desk_options: Any,
        ) -> Typist:
            plan, store = plan_of(*overrides), Store(tmp_path / "store")
            ask(store, plan, questions_of(images, pixels))
            desk = Desk(plan, store, Path("nowhere"), **desk_options)
            change(desk)
            typist = Typist(browser, store, stack.enter_context(running(desk, store)))
            (typist.open if opens else browser.visit)(typist.address, 1280, 720)
            return typist

        yield open_one


def answer_elsewhere(typist: Typist, item: Item) -> None:
    """Answer as in another tab."""
    assert typist.site is not None
    other = {"id": "other", "annotator": typist.name, "question": item["id"], "kind": "void", "seconds": 1}
    assert typist.site.post("answer", other)[0] == 200


CTRL, ALT, META, SHIFT = 2, 1, 4, 8


def key_event(browser: Browser, key: str, code: str, **other: Any) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.devtools("Input.dispatchKeyEvent", type=kind, key=key, code=code, **other)


def test_keys_mean_the_same_on_every_keyboard_and_what_is_no_answer_stores_nothing(page: Opened) -> None:
    typist = page("annotate.keys={road: r, tree: R, car: '3'}")
    strokes = (('"', "Digit3", 0), ("à", "Digit0", 0), (":ç", "Period", 0), (">Ю", "Period", SHIFT))
    for key, code, modifiers in ((key, *rest) for keys, *rest in strokes for key in keys):
        key_event(typist.browser, key, code, modifiers=modifiers)  # of French, Turkish and Russian keyboards
        assert typist.text("#notice").startswith(f"{key} is not a key for a class")
    for modifiers in (CTRL, ALT, META):
        key_event(typist.browser, "r", "KeyR", modifiers=modifiers)
    key_event(typist.browser, "r", "KeyR", autoRepeat=True)
    key_event(typist.browser, ".", "Period", autoRepeat=True)
    typist.browser.type("9")
    assert typist.text("#notice") == "9 is not a key for a class; ? shows all keys."
    typist.browser.type("?", "r", Key.ESCAPE)  # in the help, which it closes
    typist.browser.type(Key.ENTER, Key.BACKSPACE)  # no suggestion is shown
    typist.wait_for_notice("There is no answer to undo.")
    assert typist.look()["acknowledged"] == []
    strokes = (("rRк", "KeyR", 0), ("RrК", "KeyR", SHIFT), ("3３", "Digit3", 0), ("٠", "Digit0", 0), ("ю", "Period", 0))
    for count, (key, code, modifiers) in enumerate((key, *rest) for keys, *rest in strokes for key in keys):
        key_event(typist.browser, key, code, modifiers=modifiers)  # the second of R's with caps lock
        typist.take_notes(count + 1)
    assert typist.labels() == ["road"] * 3 + ["tree"] * 3 + ["car"] * 2 + [None] * 2
    assert [answer.kind for answer in typist.answers()[-2:]] == ["unknown", "void"]


def test_a_key_answers_only_what_was_seen_when_it_was_pressed(page: Opened) -> None:
    typist = page()
    item = typist.item()
    typist.browser.type(*(typist.keys[name] for name in ("road", "sky", "tree", "car", "pole", "sign")))
    typist.take_notes(1)
    time.sleep(0.3)
    seen = {one["question"] for one in typist.look()["acknowledged"]}
    assert len(typist.answers()) == len(seen) < 6  # as many as were painted between two of these keys
    assert item["id"] in seen
    assert typist.labels()[0] == "road"
    assert "Not recorded" in typist.text("#notice")


HIDDEN = "return getComputedStyle(document.querySelector('#close')).visibility"


def test_a_pixel_whose_image_is_not_there_yet_gets_no_answer(page: Opened, browser: Browser) -> None:
    go_on = threading.Event()

    def slow(desk: Desk) -> None:
        at_once = desk.image
        desk.image = lambda number: at_once(number) if go_on.wait(20) else b""  # type: ignore[method-assign]

    typist = page(pixels=3, change=slow, opens=False)
    for _ in range(3):  # nobody gets past the question for the name
        browser.type(Key.ESCAPE)
        wait_for(lambda: browser.run("return document.querySelector('#welcome').open"))
    browser.type(*typist.name, Key.ENTER)
    item = wait_for(typist.item)
    assert typist.text("#person") == typist.name
    typist.read_keys()
    wait_for(lambda: browser.shown("#close") == [True] and browser.run(HIDDEN) == "hidden")
    browser.type(typist.keys["road"])
    typist.wait_for_notice("Not recorded: this pixel was not visible yet.")
    browser.type(Key.SPACE)  # skipping needs no image
    typist.wait_for_next(item)
    assert typist.answers() == ()
    go_on.set()
    typist.settle()
    assert browser.run(HIDDEN) == "visible"
    typist.say("road")
    assert typist.labels() == ["road"]


def test_looking_back_shows_what_was_said_and_a_key_replaces_it(page: Opened) -> None:
    typist = page()
    items = []
    for name in ("road", "sky", "tree"):
        items.append(typist.item())
        typist.say(name)
    now = typist.item()
    typist.browser.type(Key.LEFT, Key.LEFT)
    assert typist.item() == items[1]
    assert typist.text("#question") == "You said: sky"
    assert typist.text("#classes .chosen span") == "sky"
    typist.browser.type(typist.keys["car"])
    typist.take_notes(5)  # the old answer is taken back, the new one given
    assert typist.text("#question") == "You said: tree"
    typist.browser.type(Key.RIGHT)
    assert typist.item() == now
    said = {(answer.image, answer.y, answer.x): answer.label for answer in typist.answers()}
    assert [said[item["name"], item["y"], item["x"]] for item in items] == ["road", "car", "tree"]
    check_book(typist)
    for item in reversed(items):
        typist.press(Key.BACKSPACE)
        assert typist.item() == item
    assert typist.answers() == ()


def test_a_question_that_another_tab_answered_is_passed_over_and_enter_confirms_a_suggestion(page: Opened) -> None:
    typist = page("oracle.suggestions=true")
    item = typist.item()
    answer_elsewhere(typist, item)
    typist.browser.type(typist.keys["road"])
    typist.wait_for_next(item)
    assert typist.text("#notice") == "This question has been answered already."
    first = typist.item()
    assert typist.text("#question") == f"Is this {first['suggestion']}?"
    second = typist.press(Key.ENTER)["item"]
    typist.say("pedestrian")
    assert [(answer.kind, answer.label, answer.suggestion) for answer in typist.answers()] == [
        ("void", None, item["suggestion"]),
        ("class", first["suggestion"], first["suggestion"]),
        ("class", "pedestrian", second["suggestion"]),
    ]


def test_time_without_a_sign_of_life_is_idle(page: Opened) -> None:
    typist = page("annotate.idle_seconds=30")
    typist.browser.run(
        "window.skipped = 0; const now = performance.now.bind(performance);"
        "performance.now = () => now() + 1000 * skipped;"
        "Object.defineProperty(Event.prototype, 'timeStamp', { get: () => performance.now() });"
    )

    def skip(seconds: int) -> None:
        typist.browser.run(f"skipped += {seconds}")

    def last() -> tuple[float, float]:
        answer = typist.answers()[-1]
        return answer.seconds or 0, answer.idle_seconds

    skip(100)
    typist.say("road")
    assert last() == pytest.approx((0, 100), abs=20)
    for _ in range(4):
        skip(20)
        typist.browser.type(Key.UP)
    typist.say("road")
    assert last() == pytest.approx((80, 0), abs=20)
    typist.browser.type(Key.ESCAPE)
    assert typist.look()["state"] == "paused"
    skip(25)
    typist.browser.type("r")  # goes on, and answers nothing
    assert typist.look()["state"] == "asking"
    typist.say("sky")
    assert last() == pytest.approx((0, 25), abs=20)
    assert typist.labels() == ["road", "road", "sky"]


@contextmanager
def offline(typist: Typist) -> Iterator[None]:
    """Without a connection until the block ends, in which the page says so."""

    def set_to(is_offline: bool) -> None:
        rates = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        typist.browser.devtools("Network.emulateNetworkConditions", offline=is_offline, **rates)

    typist.browser.devtools("Network.enable")
    set_to(True)
    yield
    set_to(False)


def kept_answers(browser: Browser) -> list[Item]:
    """The answers that the browser keeps until they are acknowledged."""
    kept = browser.run("return Object.entries(localStorage).filter(([key]) => key.startsWith('pixelpick-ray-unsent-'))")
    return [json.loads(value) for _, value in kept]


def test_answers_and_replacements_are_kept_without_a_connection_and_over_a_reload_or_it_is_told(page: Opened) -> None:
    typist = page()
    item = typist.item()
    with offline(typist):
        typist.browser.type(typist.keys["car"])
        typist.wait_for_notice("No connection", "#banner")
        typist.browser.call("POST", "/url", {"url": "about:blank"})
        answer_elsewhere(typist, item)
    typist.open(typist.address)
    assert typist.text("#notice").startswith("A saved answer could not be stored: This question has been")
    assert (kept_answers(typist.browser), typist.labels()) == ([], [None])
    with offline(typist):
        typist.browser.type(typist.keys["car"])
        typist.wait_for_notice("No connection", "#banner")
        typist.browser.type(typist.keys["sky"])  # nobody has seen the next pixel
        assert "still being sent" in typist.text("#notice")
        assert typist.labels() == [None]
        kept = kept_answers(typist.browser)
        assert [one["reply"]["label"] for one in kept] == ["car"]
    typist.reload()
    wait_for(lambda: typist.labels() == [None, "car"])
    assert typist.answers()[1].id == kept[0]["reply"]["id"]
    assert kept_answers(typist.browser) == []
    with offline(typist):
        typist.browser.type(Key.LEFT, typist.keys["sky"])
        typist.wait_for_notice("No connection", "#banner")
    typist.reload()
    wait_for(lambda: typist.labels() == [None, "sky"])
    assert kept_answers(typist.browser) == []
    typist.browser.type(Key.BACKSPACE)
    wait_for(lambda: typist.labels() == [None])


def test_what_others_took_is_dropped_at_once(page: Opened, browser: Browser) -> None:
    later = [0.0]
    typist = page(clock=lambda: time.time() + later[0])
    later[0] = 1000.0
    assert typist.site is not None
    assert len(typist.site.post("next", {"annotator": "Bob", "have": []})[1]["items"]) == 24
    browser.type(typist.keys["road"])
    wait_for(lambda: typist.look()["state"] == "elsewhere")
    assert typist.text("#cover h2") == "Others are working on the rest"
    assert browser.shown("#said") == [False]
    assert typist.answers() == ()


QUICKER = """
const [wait, now] = [window.setInterval, performance.now.bind(performance)];
window.setInterval = (call, milliseconds) => wait(call, milliseconds / 300);
performance.now = () => now() + (window.later ?? 0);
"""


def test_a_page_keeps_what_it_has_while_somebody_is_there(page: Opened, browser: Browser) -> None:
    """A minute between its signs of life lasts a fifth of a second here."""
    asked = list[str]()

    def noting(desk: Desk) -> None:
        next_of = desk.next
        desk.next = lambda who, have: asked.append(who) or next_of(who, have)  # type: ignore[method-assign,func-returns-value]

    quicker = browser.devtools("Page.addScriptToEvaluateOnNewDocument", source=QUICKER)["identifier"]
    try:
        page(images=1, pixels=3, change=noting)
        wait_for(lambda: len(asked) > 5)
        browser.run("window.later = 11 * 60000")
        time.sleep(0.5)
        before = len(asked)
        time.sleep(1.0)
        assert len(asked) == before
        browser.run("window.later = 9 * 60000")
        wait_for(lambda: len(asked) > before + 2)
    finally:
        browser.devtools("Page.removeScriptToEvaluateOnNewDocument", identifier=quicker)


def test_a_page_waits_for_the_training_and_goes_on_by_itself(page: Opened, browser: Browser) -> None:
    typist, plan = page(), plan_of()
    store = typist.store
    typist.say(*["road"] * 24)
    wait_for(lambda: typist.look()["state"] == "waiting")
    assert typist.text("#cover h2") == "The network is training"
    go_on(store)
    typist.browser.type(Key.BACKSPACE)
    wait_for(lambda: "The training has used this answer" in typist.text("#notice") + typist.text("#banner"))
    ask(store, plan, questions_of(1, 3, seed=2), pick="second", stages=1)
    wait_for(lambda: typist.look()["item"])
    assert browser.shown("#cover") == [False]
    typist.say(*["sky"] * 3)
    go_on(store, "second")
    finish(store, plan)
    wait_for(lambda: typist.look()["state"] == "done")
    assert typist.text("#cover h2") == "All done"


def screenshot(browser: Browser, path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    path.write_bytes(base64.b64decode(browser.call("GET", "/screenshot")))
    return np.asarray(loaded(path).convert("RGB"))


def test_the_marked_pixel_is_the_asked_one_and_stays_visible(page: Opened, browser: Browser, tmp_path: Path) -> None:
    """The frame in the middle of the close view has the native pixels that the prepared one covers, in their places."""
    typist = page()
    browser.type(*[Key.UP] * 9)
    box = browser.run("return document.querySelector('#close').getBoundingClientRect().toJSON()")
    for _ in range(3):
        item, picture = typist.item(), screenshot(browser, tmp_path / "shot.png")
        number = int(item["name"].rpartition("_")[2])
        native, _labels = scenes.scene("train", number)
        scale = min(box["width"], box["height"]) / 12
        middle = np.array([box["y"] + box["height"] / 2, box["x"] + box["width"] / 2])
        covers = np.array(native.shape[:2]) / (item["height"], item["width"])
        for inside in itertools.product((0.17, 0.5, 0.83), (0.1, 0.42, 0.9)):
            y, x = np.floor(middle + (np.array(inside) - 0.5) * covers * scale).astype(int)
            row, column = np.floor((np.array([item["y"], item["x"]]) + inside) * covers).astype(int)
            np.testing.assert_allclose(picture[y, x].astype(int), native[row, column].astype(int), atol=2)
        typist.say("road")


def test_all_points_show_with_their_keys_and_the_theme_is_chosen_by_a_key_and_kept(
    page: Opened, browser: Browser, tmp_path: Path
) -> None:
    typist, pictures = page(), []
    typist.say(*["pedestrian"] * 4)
    for toggled in range(3):
        if toggled:
            shown = typist.look()["shown"]
            browser.type(Key.TAB)
            wait_for(lambda shown=shown: typist.look()["shown"] > shown)
        pictures.append(screenshot(browser, tmp_path / "shot.png")[:, :690].astype(int))
        pressed = browser.run("return document.querySelector('[data-command=points]').ariaPressed")
        assert pressed == ("true" if toggled == 1 else "false")
    colour = np.array(scenes.PALETTE[scenes.CLASS_NAMES.index("pedestrian")])
    before, points, _ = (int((np.abs(one - colour).max(axis=2) <= 2).sum()) for one in pictures)
    assert points - before > 4 * 80  # discs with a letter in each
    np.testing.assert_array_equal(pictures[0], pictures[2])
    colour_of = "return getComputedStyle(document.body).backgroundColor"
    light = browser.run(colour_of)
    browser.type(Key.F2, Key.F2)
    typist.reload()
    assert (typist.text("#theme"), browser.run(colour_of) == light) == ("Dark", False)
    browser.type(Key.F2)
    assert (typist.text("#theme"), browser.run(colour_of) == light) == ("Auto", True)


def test_the_mouse_does_all_that_keys_do_and_a_held_key_presses_a_button_once(page: Opened, browser: Browser) -> None:
    typist = page()
    browser.click("#classes button:nth-child(4)")
    typist.take_notes(1)
    browser.click("[data-command=unknown]")
    typist.take_notes(2)
    before = typist.item()
    browser.type(Key.SPACE)  # skips: the button that was clicked does not have the focus
    typist.wait_for_next(before)
    browser.click("[data-command=undo]")
    typist.take_notes(3)
    assert typist.labels() == ["road"]
    unnamed = "return [...document.querySelectorAll('button')].filter(one => !one.ariaLabel && !one.textContent.trim())"
    assert browser.run(unnamed + ".filter(one => one.id !== 'person' && one.id !== 'confirm').length") == 0
    browser.run("document.querySelector('#classes button').focus()")
    held = {"type": "keyDown", "key": "Enter", "code": "Enter", "text": "\r"}
    for repeat in (False, True, True, True):
        browser.devtools("Input.dispatchKeyEvent", **held, autoRepeat=repeat)
        time.sleep(0.1)
    assert len(typist.labels()) == 2


TALL = {"images": "train/images", "labels": "train/labels"}


@pytest.mark.parametrize("classes", [11, 30])
def test_everything_fits_the_screen(browser: Browser, tmp_path: Path, classes: int) -> None:
    names = [f"class of things {number}" for number in range(classes)]
    folder = write_folder(tmp_path / "data", classes=names, splits={"train": TALL, "test": TALL})
    for name, mode in (("images", "RGB"), ("labels", "L")):
        Image.new(mode, (160, 128)).save(folder / "train" / name / "leaf.v0.png")
    plan, store = plan_of("dataset={name: folder, path: leaves, size: [32, 40]}"), Store(tmp_path / "store")
    ask(store, plan, questions_of(["leaf.v0.png"], 3))
    with running(Desk(plan, store, tmp_path / "data"), store) as site:
        for width, height in ((1280, 720), (1920, 1080), (1093, 520), (390, 844)):
            typist = Typist(browser, store, site)
            typist.open(typist.address, width, height)
            size = "document.documentElement"
            assert browser.run(f"return {size}.scrollWidth") <= width
            assert len(typist.keys) == classes
            if width < 400:
                typist.say(names[0])
                continue
            assert browser.run(f"return {size}.scrollHeight") <= height
            boxes = "[...document.querySelectorAll('button')].map(one => one.getBoundingClientRect())"
            assert browser.run(f"return {boxes}.filter(one => one.bottom > {height} || one.right > {width})") == []
            shown, apart = browser.run(
                "const [wide, classes] = ['wide', 'classes'].map(id => document.getElementById(id)"
                ".getBoundingClientRect()); return [wide.height, classes.top - wide.bottom]"
            )
            assert shown > (100 if height > 600 else 60)
            assert apart >= 0
