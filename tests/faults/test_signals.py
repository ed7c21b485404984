"""A hundred signals at random moments of every command: a status of 0 to 3, nothing left behind, and equal results.

``PIXELPICK_SIGNALS=30`` sends fewer. What happened is left in ``build/signals.md``.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.experiments import experiment_text
from tests.support.fault_cluster import MARK, wait_until_gone
from tests.support.fault_harness import LAUNCH, ROOT
from tests.support.launch import launch

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUMBER = int(os.environ.get("PIXELPICK_SIGNALS", "100"))
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL)
SMALL = {
    "dataset": "{name: scenes, size: [32, 48], images: 5}",
    "model": "{backbone: test_resnet, pretrained: none}",
    "train": "{epochs: 3, batch_size: 4, optimizer: {name: adam, lr: 1e-3}}",
    "acquire": "{initial_pixels: 2, pixels_per_stage: 2}",
}
EXPERIMENTS = {
    "grid": experiment_text("grid", **SMALL, grid="[{acquire.strategy: [margin, random], seed: [0], budget: [2, 4]}]"),
    "hunt": experiment_text(
        "hunt",
        **SMALL,
        grid="[{seed: [0], budget: [2, 4]}]",
        search="{space: {train.optimizer.lr: {grid: [1e-3, 1e-2]}}, searcher: grid}",
    ),
    "human": experiment_text("human", **SMALL, oracle="{name: human}", grid="[{seed: [0], budget: [2, 4]}]"),
}


@dataclass(frozen=True)
class Command:
    """A command that is disturbed, and how often of ten times."""

    words: tuple[str, ...]
    share: int
    is_study: bool = False  # which goes on from what an earlier one has stored


COMMANDS = (
    Command(("run", "grid.yaml"), 4, is_study=True),
    Command(("run", "hunt.yaml"), 2, is_study=True),
    Command(("report", "grid.yaml", "--out", "report", "--store", "whole"), 1),
    Command(("import", "human.yaml", "answers.jsonl", "--format", "jsonl", "--store", "asked"), 1),
    Command(("annotate", "human.yaml", "--no-browser", "--port", "0", "--store", "asked"), 2),
)


@dataclass
class Place:
    """Where the commands are given."""

    path: Path
    scratch: Path
    mark: str
    sent: list[tuple[str, str, int]] = field(default_factory=list)
    seconds: dict[tuple[str, ...], float] = field(default_factory=dict)  # of commands that nothing disturbed

    def start(self, words: tuple[str, ...]) -> "subprocess.Popen[bytes]":
        with open(self.path / "output.txt", "wb") as output:
            variables = {MARK: self.mark, "RAY_TMPDIR": str(self.scratch), "XDG_CACHE_HOME": str(self.path / "cache")}
            return subprocess.Popen(
                [sys.executable, LAUNCH, *words],
                cwd=self.path, env=os.environ | variables, stdout=output, stderr=output,
            )  # fmt: skip

    def finish(self, words: tuple[str, ...]) -> None:
        """Give a command once without a signal."""
        began = time.monotonic()
        assert self.start(words).wait(timeout=600) == 0, self.output()
        self.seconds.setdefault(words[:2], time.monotonic() - began)

    def output(self) -> str:
        return (self.path / "output.txt").read_text(errors="replace")

    def disturb(self, command: Command, delay: float, number: signal.Signals) -> bool:
        """Give a command, send a signal after a while, and check how it ends; whether it had not ended before."""
        process = self.start(command.words)
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert process.wait(timeout=delay) == 0, self.output()
            return False
        is_heard = hears(process.pid)
        process.send_signal(number)
        began = time.monotonic()
        status = process.wait(timeout=60)
        left = wait_until_gone(self.mark, services_too=True, seconds=30)
        self.sent.append((command.words[0], number.name, status))
        told = f"{command.words} {number.name} after {delay:.2f} s: {status}\n{self.output()}"
        assert not left, f"{told}\n{left}"
        assert time.monotonic() - began < 60
        allowed = {0, 1, 2, 3} if is_heard and number != signal.SIGKILL else {0, 1, 2, 3, -number}
        assert status in allowed, told
        assert "Traceback" not in self.output(), told
        if is_heard and number != signal.SIGKILL:
            assert status in (0, 3), told
        return True

    def begin_anew(self) -> None:
        """Put the results of the studies aside."""
        for path in (self.path / "store").iterdir():
            path.rename(self.path / f"{time.time_ns()}-{path.name}")


def hears(pid: int) -> bool:
    """Whether a process blocks or catches SIGTERM: the first line of ``launch.py`` is done."""
    try:
        masks = re.findall(r"Sig(?:Blk|Cgt):\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return False
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="sg-", dir="/tmp") as scratch:
        yield Place(tmp_path, Path(scratch), f"signals-{os.getpid()}")


def results(folder: Path, *patterns: str) -> dict[str, bytes]:
    files = [path for pattern in patterns for path in folder.glob(pattern)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


STORED = ("pick/*/pixels.npz", "evaluation/*/confusion.npz")
TABLES = ("table.md", "table.csv", "rows.csv")


def prepared(place: Place) -> dict[str, bytes]:
    """Undisturbed results, and what people are asked and have answered."""
    for name, text in EXPERIMENTS.items():
        (place.path / f"{name}.yaml").write_text(text)
    for name in ("grid", "hunt"):
        place.finish(("run", f"{name}.yaml", "--store", "whole"))
    place.finish(("report", "grid.yaml", "--out", "expected", "--store", "whole"))
    assert launch(place.path, "run", "human.yaml", "--local", "--store", "asked").status == 3
    place.finish(("export", "human.yaml", "--format", "jsonl", "--out", "asked.jsonl", "--store", "asked"))
    answers = [json.loads(line) for line in (place.path / "asked.jsonl").read_text().splitlines()]
    for answer in answers:
        if "y" in answer:
            answer |= {"kind": "void"}
    (place.path / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    place.finish(COMMANDS[3].words)
    return results(place.path / "whole", *STORED) | results(place.path / "expected", *TABLES)


def test_signals_at_random_moments_end_every_command_with_0_to_3_and_lose_nothing(place: Place) -> None:
    expected = prepared(place)
    dice = random.Random(f"signals {NUMBER}")
    drawn = [one for one in COMMANDS for _ in range(one.share)]
    while len(place.sent) < NUMBER:
        command, number = dice.choice(drawn), dice.choice(SIGNALS)
        delay = dice.uniform(0.02, place.seconds.get(command.words[:2], 6.0))  # annotate does not end by itself
        if not place.disturb(command, delay, number) and command.is_study:
            assert results(place.path / "store", *STORED).items() <= expected.items()
            place.begin_anew()
    for command in COMMANDS:
        if command.words[0] != "annotate":
            place.finish(command.words)
    assert results(place.path / "store", *STORED) | results(place.path / "report", *TABLES) == expected
    assert list((place.path / "store" / "leases").iterdir()) == []
    assert list(place.scratch.iterdir()) == []
    counted = Counter(place.sent)
    lines = [f"| {word} | {number} | {status} | {count} |" for (word, number, status), count in sorted(counted.items())]
    table = ["| command | signal | status | times |", "| --- | --- | ---: | ---: |", *lines]
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "signals.md").write_text("\n".join(table) + "\n")
