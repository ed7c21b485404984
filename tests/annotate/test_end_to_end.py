"""A whole loop as a user has it: `run --wait` in one terminal, `annotate` in another, and files of other tools."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.support.experiments import experiment_text
from tests.support.launch import ROOT, launch
from tests.support.waiting import wait_for

pytestmark = pytest.mark.training

HUMAN = experiment_text(
    acquire="{initial_pixels: 5, pixels_per_stage: 5}", grid="[{budget: [5, 10]}]", oracle="{name: human}"
)


def post(address: str, path: str, **body: Any) -> Any:
    """What a browser does, without one."""
    content, kind = json.dumps({"annotator": "ann", **body}).encode(), {"Content-Type": "application/json"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(address + path, content, kind), timeout=60) as answer:
        return json.load(answer)


def start(place: Path, *words: str) -> "subprocess.Popen[bytes]":
    variables = os.environ | {"PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(place / "cache")}
    with open(place / f"{words[0]}.txt", "wb") as output:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), *words], cwd=place, env=variables, stdout=output, stderr=output
        )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "human.yaml").write_text(HUMAN)
    return tmp_path


def test_a_run_that_waits_goes_on_with_what_is_answered_on_the_page(place: Path) -> None:
    """That answers leave what the ground truth leaves, `tests/test_people.py` checks."""
    running = start(place, "run", "human.yaml", "--wait", "--local", "--store", "people")
    page = start(place, "annotate", "human.yaml", "--no-browser", "--store", "people")
    answered, until = 0, time.monotonic() + 240
    try:
        ready = r"tiny: (http://127\.0\.0\.1:\S+)\n"
        address = wait_for(lambda: re.match(ready, (place / "annotate.txt").read_text()), 60)[1]
        while (found := post(address, "next", have=[]))["state"] != "done":
            assert time.monotonic() < until
            assert running.poll() in (None, 0)
            for item in found["items"]:
                said = {"kind": "class", "label": ("sky", "road")[answered % 2], "seconds": 1.0}
                post(address, "answer", id=str(uuid.uuid4()), question=item["id"], **said)
                answered += 1
            time.sleep(0.1)
        assert running.wait(60) == 0, (place / "run.txt").read_text()
        page.send_signal(signal.SIGINT)
        assert page.wait(20) == 0, (place / "annotate.txt").read_text()
    finally:
        running.kill()
        page.kill()
    assert answered == 2 * 5 * 4
    told = (place / "run.txt").read_text()
    assert "waiting for 20 answers: python launch.py annotate human.yaml --store people" in told
    assert "trained now: 2" in told
    assert "missing" not in told


def test_a_run_that_does_not_wait_ends_with_3_and_answers_travel_in_files(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything exported, with answers by hand, and imported again; twice changes nothing."""
    (place / "job").mkdir()
    monkeypatch.setenv("PIXELPICK_JOB", str(place / "job"))  # as in a batch job, which must not come back by itself
    words = "human.yaml", "--store", "people", "--set", "train.epochs=2"
    done = launch(place, "run", *words, "--local")
    assert done.status == 3
    command = "python launch.py annotate human.yaml --set train.epochs=2 --store people"
    assert f"waiting for 20 answers: {command}" in done.out
    assert "waiting for 20 of 20 answers" in done.out
    assert (place / "job" / "people").read_text() == f"waiting for 20 answers: {command}\n"
    state = launch(place, "status", *words).out
    assert "WAITING test_resnet margin seed 0: for 20 of 20 answers" in state
    assert f"answer with: {command}" in state
    as_json = json.loads(launch(place, "status", *words, "--json").out)
    assert [chain["missing_answers"] for chain in as_json["chains"]] == [20]
    assert "people have to answer first; see `status` for" in launch(place, "report", *words, "--out", "report").out

    def export(name: str, out: str) -> str:
        made = launch(place, "export", *words, "--format", name, "--out", out)
        assert made.status == 0, made.err
        return made.out

    def take(file: str, name: str) -> str:
        taken = launch(place, "import", *words, file, "--format", name, "--annotator", "bob")
        assert taken.status == 0, taken.err
        return taken.out

    assert export("jsonl", "out/asked.jsonl") == "written to out/asked.jsonl: 20 pixels, 0 of them answered\n"
    lines = [json.loads(line) for line in (place / "out" / "asked.jsonl").read_text().splitlines()]
    given = [line | {"kind": "class", "label": "sky"} for line in lines[:15]] + [lines[15] | {"kind": "unknown"}]
    (place / "given.jsonl").write_text("".join(json.dumps(line) + "\n" for line in given))
    end = "already known; 0 of the new ones are for pixels that were not asked for\n"
    assert take("given.jsonl", "jsonl") == f"16 answers imported, 0 {end}"
    assert take("given.jsonl", "jsonl") == f"0 answers imported, 16 {end}"
    assert "waiting for 4 answers" in launch(place, "run", *words, "--local").out
    assert export("label-studio", "out/tasks").startswith("written to out/tasks: 20 pixels, 16 of them answered\n")
    assert take("out/tasks", "label-studio").startswith("0 answers imported, 16 already known")
    assert (place / "out" / "tasks.labels.xml").is_file()
    for given, name, told in (
        ("out/tasks", "bob", "out/tasks: coco: nothing was imported"),
        ("given.jsonl", "a" * 81, f"human.yaml: --annotator '{'a' * 81}': is not a valid name; give one line of 1"),
        ("given.jsonl", " bob", "human.yaml: --annotator ' bob': is not a valid name; give one line of 1"),
    ):
        wrong = launch(place, "import", *words, given, "--format", "coco", "--annotator", name)
        assert (wrong.status, wrong.out, wrong.err.startswith(f"error: {told}")) == (2, "", True), wrong
