"""The page's server over real HTTP: what it refuses, and several people at once."""

import http.client
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pixelpick_ray.annotate.desk import Desk
from pixelpick_ray.annotate.guard import is_ours, names_of
from pixelpick_ray.annotate.server import serve
from pixelpick_ray.data.answers import Book
from pixelpick_ray.errors import SpecError, StoreError
from pixelpick_ray.store import Store
from tests.support.annotation_server import JSON, ONCE, TOKEN, Site, running, serving
from tests.support.questions import answers_in, ask, plan_of, questions_of


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server where ann works on the first two of three images, and nothing is answered."""
    store = Store(tmp_path_factory.mktemp("site") / "store")
    ask(store, plan_of(), questions_of(3, 6))
    with running(Desk(plan_of(), store, Path("nowhere")), store) as site:
        status, found = site.post("next", {"annotator": "ann", "have": []})
        assert (status, len(found["items"])) == (200, 12)
        yield site


MANY = json.dumps({"annotator": "x", "have": ["a"] * 1001}).encode()
X = b'{"annotator": "x"}'

# Method, path after the token, body, headers; status and part of the sentence.
HOSTILE: dict[str, tuple[str, str, bytes | Callable[[], Iterator[bytes]] | None, dict[str, str], int, str]] = {
    "no such page": ("GET", "secrets", None, {}, 404, "nothing here"),
    "an encoded path upwards": ("GET", "image/%2e%2e%2f%2e%2e%2fetc%2fpasswd", None, {}, 404, "nothing here"),
    "a huge number": ("GET", f"image/{'9' * 400}", None, {}, 404, "nothing here"),
    "an unknown image": ("GET", "image/999", None, {}, 410, "No current question is about this image"),
    "a foreign site": ("POST", "begin", X, JSON | {"Origin": "http://evil.example"}, 403, "site"),
    "another port": ("POST", "begin", X, JSON | {"Origin": "http://127.0.0.1:1"}, 403, "site"),
    "a foreign name": ("GET", "", None, {"Host": "evil.example"}, 421, "to that host name"),
    "a form": ("POST", "begin", b"annotator=x", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "json"),
    "no type": ("POST", "begin", X, {}, 415, "application/json"),
    "a huge body": ("POST", "begin", b" " * 70_000, JSON, 413, "far smaller"),
    "a huge body in parts": ("POST", "begin", lambda: iter([b" " * 1024] * 200), JSON, 413, "far smaller"),
    "no JSON": ("POST", "begin", b"{", JSON, 400, "Invalid JSON"),
    "a deep body": ("POST", "begin", b"[" * 30_000, JSON, 400, "Invalid JSON"),
    "a field too many": ("POST", "begin", b'{"annotator": "x", "admin": true}', JSON, 400, "admin"),
    "a name of lines": ("POST", "begin", b'{"annotator": "a\\nb"}', JSON, 400, "one line"),
    "a lone surrogate": ("POST", "begin", b'{"annotator": "\\ud800"}', JSON, 400, "JSON"),
    "a list of too many": ("POST", "next", MANY, JSON, 400, "have"),
    "an unknown question to skip": ("POST", "skip", b'{"annotator": "x", "question": "y"}', JSON, 410, "longer asked"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused_and_writes_nothing(site: Site, name: str) -> None:
    method, path, body, headers, status, sentence = HOSTILE[name]
    found, content, given = site.call(method, f"/{TOKEN}/{path}", body() if callable(body) else body, headers)
    told = json.loads(content)
    assert (found, list(told), given["Cache-Control"]) == (status, ["error"], "no-store")
    assert sentence in told["error"]
    assert told["error"].endswith(".")
    assert answers_in(site.store) == ()


def test_without_the_token_there_is_nothing(site: Site) -> None:
    for path in ("/", "/favicon.ico", f"/{TOKEN}", f"/{TOKEN}x/", f"/{TOKEN[:-1]}/", f"//{TOKEN}/", "/%ff/"):
        for method in ("GET", "POST"):
            status, content, _ = site.call(method, path, b"{}" if method == "POST" else None, JSON)
            assert (status, content) == (404, b'{"error":"There is nothing here."}')


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        *(({"seconds": text}, 400, "seconds") for text in ("NaN", "1e999", "-0.001", "86400.1", '"1"')),
        *(({field: '""'}, 400, field) for field in ("id", "annotator", "kind")),
        *(({field: "true"}, 400, field) for field in ("time", "repeat")),  # which a page does not say
        ({"idle_seconds": "-1"}, 400, "idle_seconds"),
        ({"label": "null"}, 400, "label"),
        ({"label": '"moon"'}, 400, "no class 'moon'"),
        ({"kind": '"void"'}, 400, "label: required if kind"),
        ({"question": '"unheard of"'}, 410, "no longer asked"),
        ({"annotator": '"bob"'}, 409, "Somebody else"),
    ],
)
def test_a_wrong_answer_is_refused_and_not_kept(site: Site, change: dict[str, str], status: int, sentence: str) -> None:
    question = site.post("next", {"annotator": "ann", "have": []})[1]["items"][0]["id"]
    said = {"kind": '"class"', "label": '"road"', "seconds": "1.5"}
    fields = {"id": '"one"', "annotator": '"ann"', "question": json.dumps(question)} | said
    body = f"{{{', '.join(f'{json.dumps(name)}: {text}' for name, text in (fields | change).items())}}}"
    found, content, _ = site.call("POST", f"/{TOKEN}/answer", body.encode(), JSON)
    assert (found, sentence in json.loads(content)["error"]) == (status, True), content
    assert answers_in(site.store) == ()


def test_the_page_is_whole_shown_under_a_policy_and_served_all_that_it_needs(site: Site) -> None:
    status, _, headers = site.call("GET", f"/{ONCE}/")  # the address that others may see leads to it once
    assert (status, headers["Location"]) == (303, f"/{TOKEN}/")
    assert site.call("GET", f"/{ONCE}/")[0] == 404
    status, content, headers = site.call("GET", headers["Location"])
    page = content.decode()
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert not re.search(r'(src|href)="(?!data:)|\son\w+=|<!--', page)
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy.replace("style-src 'unsafe-inline'", "")
    assert (headers["Referrer-Policy"], headers["X-Content-Type-Options"]) == ("no-referrer", "nosniff")
    origin = {"Origin": f"http://127.0.0.1:{site.port}"}
    status, content, _ = site.call("POST", f"/{TOKEN}/begin", b'{"annotator": "ann"}', JSON | origin)
    fields = {"title", "classes", "idle_seconds", "suggestions", "history", "answered", "total", "mine"}
    assert (status, set(json.loads(content))) == (200, fields)
    status, content, headers = site.call("GET", f"/{TOKEN}/image/0")
    assert (status, headers["Content-Type"], content[:8]) == (200, "image/png", b"\x89PNG\r\n\x1a\n")
    status, content, _ = site.call("GET", f"/{TOKEN}/points/0", headers={"Host": f"localhost:{site.port}"})
    assert (status, len(json.loads(content)["points"])) == (200, 6)


def test_only_our_own_names_are_answered() -> None:
    names = {
        "127.0.0.1": ["127.0.0.1:8000", "LOCALHOST", "[::1]:8000"],
        "gpu7.lab": ["gpu7.lab:8000"],
        "0.0.0.0": ["192.168.1.5:8000", f"{socket.gethostname()}:8000"],
    }
    foreign = {
        "127.0.0.1": ["192.168.1.5:8000", "127.0.0.1:x", "127.0.0.1/evil", "127.0.0.1@evil.example"],
        "0.0.0.0": ["evil.example:8000", ""],
    }
    for expected, given_by_host in ((True, names), (False, foreign)):
        for host, given in given_by_host.items():
            assert [is_ours(name, names_of(host)) for name in given] == [expected] * len(given), host


def test_a_store_that_fails_is_told_and_answers_may_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Book, line: object) -> None:
        raise StoreError("store: the disk is full; free space there")

    store = Store(tmp_path / "store")
    ask(store, plan_of(), questions_of(1, 3))
    with running(Desk(plan_of(), store, Path("nowhere")), store) as site:
        items = site.post("next", {"annotator": "ann", "have": []})[1]["items"]
        answer = {"id": "one", "annotator": "ann", "question": items[0]["id"], "kind": "unknown", "seconds": 1}
        with monkeypatch.context() as patch:
            patch.setattr(Book, "append", full)
            assert site.post("answer", answer) == (503, {"error": "store: the disk is full; free space there"})
        assert site.post("answer", answer)[0] == 200
        assert site.post("answer", answer)[0] == 200
        assert [one.id for one in answers_in(store)] == ["one"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_and_gives_images_back(tmp_path: Path, number: signal.Signals) -> None:
    store = Store(tmp_path / "store")
    ask(store, plan_of(), questions_of(1, 3))
    with serving(store) as (process, address):
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/([\w-]{32})/", address)
        assert found is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
        connection.request("POST", f"/{found[2]}/next", b'{"annotator": "ann", "have": []}', JSON)
        assert len(json.load(connection.getresponse())["items"]) == 3
        assert len(store.leased()) == 1
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=20)  # while the page's connection is open
        assert (process.returncode, out, err) == (0, "closed\n", "")
        connection.close()
    assert store.leased() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_early_signal_ends_the_server_and_a_taken_port_is_refused(tmp_path: Path, number: signal.Signals) -> None:
    ready = []

    def tell(address: str, once: str) -> None:
        ready.append(address)
        os.kill(os.getpid(), number)

    desk = Desk(plan_of(), Store(tmp_path / "store"), tmp_path)
    serve(desk, host="127.0.0.1", ports=[0], on_ready=tell)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(SpecError, match="give another --port"):
        serve(desk, host="127.0.0.1", ports=[other.getsockname()[1]], on_ready=tell)
    assert len(ready) == 1
