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
import time
from collections import Counter, namedtuple
from pathlib import Path

import pytest

from tests.support.experiments import experiment_text
from tests.support.fault_cluster import MARK, wait_until_gone
from tests.support.fault_harness import LAUNCH, Life, Setting
from tests.support.launch import ROOT, launch

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


# How often of ten times a command is disturbed, and whether it is a study, which goes on from what is stored.
Command = namedtuple("Command", "words share is_study")
COMMANDS = (
    Command(("run", "grid.yaml"), 4, True),
    Command(("run", "hunt.yaml"), 2, True),
    Command(("report", "grid.yaml", "--out", "report", "--store", "whole"), 1, False),
    Command(("import", "human.yaml", "answers.jsonl", "--format", "jsonl", "--store", "asked"), 1, False),
    Command(("annotate", "human.yaml", "--no-browser", "--port", "0", "--store", "asked"), 2, False),
)


def disturb(
    life: Life, mark: dict[str, str], words: tuple[str, ...], delay: float, number: signal.Signals
) -> int | None:
    """Give a command, send a signal after a while, and check how it ends; its status, None when it ended before."""
    process = life.launch(LAUNCH, *words)
    with contextlib.suppress(subprocess.TimeoutExpired):
        assert process.wait(timeout=delay) == 0, life.output()
        return None
    must_end_well = hears(process.pid) and number != signal.SIGKILL
    process.send_signal(number)
    status = process.wait(timeout=60)
    left = wait_until_gone(mark[MARK], services_too=True, seconds=30)
    told = f"{words} {number.name} after {delay:.2f} s: {status}\n{life.output()}"
    assert not left, f"{told}\n{left}"
    assert status in ((0, 3) if must_end_well else (0, 1, 2, 3, -number)), told
    assert "Traceback" not in life.output(), told
    return status


def hears(pid: int) -> bool:
    """Whether a process blocks or catches SIGTERM: the first line of ``launch.py`` is done."""
    try:
        masks = re.findall(r"Sig(?:Blk|Cgt):\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return False
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)


def finish(life: Life, words: tuple[str, ...]) -> float:
    """Give a command once without a signal; how many seconds it takes."""
    began = time.monotonic()
    assert life.launch(LAUNCH, *words).wait(timeout=600) == 0, life.output()
    return time.monotonic() - began


def results(folder: Path, *patterns: str) -> dict[str, bytes]:
    files = [path for pattern in patterns for path in folder.glob(pattern)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


STORED = ("pick/*/pixels.npz", "evaluation/*/confusion.npz")
TABLES = ("table.md", "table.csv", "rows.csv")


def prepared(life: Life) -> tuple[dict[str, bytes], dict[tuple[str, ...], float]]:
    """Undisturbed results, and how long commands take; people are asked and have answered."""
    for name, text in EXPERIMENTS.items():
        (life.place / f"{name}.yaml").write_text(text)
    seconds = {("run", name): finish(life, ("run", name, "--store", "whole")) for name in ("grid.yaml", "hunt.yaml")}
    words = ("report", "grid.yaml", "--out", "expected", "--store", "whole")
    seconds[words[:2]] = finish(life, words)
    assert launch(life.place, "run", "human.yaml", "--local", "--store", "asked").status == 3
    finish(life, ("export", "human.yaml", "--format", "jsonl", "--out", "asked.jsonl", "--store", "asked"))
    answers = [json.loads(line) for line in (life.place / "asked.jsonl").read_text().splitlines()]
    for answer in answers:
        if "y" in answer:
            answer |= {"kind": "void"}
    (life.place / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    seconds[COMMANDS[3].words[:2]] = finish(life, COMMANDS[3].words)
    return results(life.place / "whole", *STORED) | results(life.place / "expected", *TABLES), seconds


def test_signals_at_random_moments_end_every_command_with_0_to_3_and_lose_nothing(
    tmp_path: Path, mark: dict[str, str]
) -> None:
    life = Life(tmp_path / "life", Setting(""), mark, None)
    (expected, seconds), store = prepared(life), life.place / "store"
    dice = random.Random(f"signals {NUMBER}")
    drawn = [one for one in COMMANDS for _ in range(one.share)]
    sent = Counter[tuple[str, str, int]]()
    while sent.total() < NUMBER:
        command, number = dice.choice(drawn), dice.choice(SIGNALS)
        delay = dice.uniform(0.02, seconds.get(command.words[:2], 6.0))  # annotate does not end by itself
        status = disturb(life, mark, command.words, delay, number)
        if status is not None:
            sent[command.words[0], number.name, status] += 1
        elif command.is_study:  # which begins anew
            assert results(store, *STORED).items() <= expected.items()
            for path in store.iterdir():
                path.rename(life.place / f"{time.time_ns()}-{path.name}")
    for command in COMMANDS:
        if command.words[0] != "annotate":
            finish(life, command.words)
    assert results(store, *STORED) | results(life.place / "report", *TABLES) == expected
    assert list((store / "leases").iterdir()) == []
    assert list(Path(mark["RAY_TMPDIR"]).iterdir()) == []
    lines = [f"| {word} | {number} | {status} | {count} |" for (word, number, status), count in sorted(sent.items())]
    table = ["| command | signal | status | times |", "| --- | --- | ---: | ---: |", *lines]
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "signals.md").write_text("\n".join(table) + "\n")
