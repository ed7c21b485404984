"""What a person sees of a run: lines in a log, a table on a terminal."""

import io
import re
import time

import pytest
from rich.console import Console

from pixelpick_ray.events import ChainDone, ChainFailed, Event, FitTrained, PixelsPicked
from pixelpick_ray.planning import Plan
from pixelpick_ray.runner.progress import ChainProgress
from tests.support.chain_events import epoch_done, stage_done
from tests.support.stores import tiny_plan


@pytest.fixture
def plan() -> Plan:
    """Margin and random with three stages each; they share the first fit."""
    return tiny_plan("title='A study [of streets] [/]'")  # brackets are markup to rich


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes when a test says so."""
    now = [0.0]
    monkeypatch.setattr("pixelpick_ray.runner.progress.time.monotonic", lambda: now[0])
    return now


def epoch(plan: Plan, chain: int, stage: int, number: int, loss: float = 1.0) -> Event:
    return epoch_done(plan.chains[chain].id, stage, number, loss=loss)


def stage(plan: Plan, chain: int, number: int, miou: float, trained: bool = True) -> Event:
    return stage_done(plan.chains[chain].id, number, miou, trained=trained, budget=2 + 2 * number)


def failed(plan: Plan, chain: int, message: str = "no", final: bool = True) -> Event:
    return ChainFailed(plan.chains[chain].id, message, final)


def shown(plan: Plan, events: list[Event], *, terminal: bool) -> tuple[list[str], ChainProgress]:
    """The lines that events leave on a console, colours removed, and the progress."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=140, color_system=None)
    with ChainProgress(plan, list(plan.chains), console, []) as progress:
        for event in events:
            progress(event)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    return [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()], progress


def test_a_log_gets_a_line_for_each_stage_and_failure_and_no_other(plan: Plan) -> None:
    events = [
        epoch(plan, 0, 0, 1),
        epoch(plan, 0, 0, 2),
        FitTrained(plan.chains[0].id, 0, "f"),
        stage(plan, 0, 0, 0.4567),
        PixelsPicked(plan.chains[0].id, 0, True, "p"),
        stage(plan, 1, 0, 0.4567, trained=False),
        failed(plan, 1, message="OSError: [the disk] is gone", final=False),
        failed(plan, 0, message="the loss is nan"),
        ChainDone(plan.chains[1].id),
    ]
    lines, progress = shown(plan, events, terminal=False)
    assert [re.sub(r"^\[0:0\d\] |, about 0:0\d left", "", line) for line in lines] == [
        "test_resnet margin seed 0: 2 px: mIoU 45.7 % (trained), 1 of 5 stages",
        "test_resnet random seed 0: 2 px: mIoU 45.7 % (from the store), 1 of 5 stages",
        "test_resnet random seed 0: FAILED (trying again): OSError: [the disk] is gone",
        "test_resnet margin seed 0: FAILED: the loss is nan",
    ]
    assert progress.num_trained == 1
    full = tiny_plan("grid=[{budget: [full]}]")
    (line,), _ = shown(full, [stage_done(full.chains[0].id, 0, 0.5, budget="full")], terminal=False)
    assert line.endswith("test_resnet full seed 0: full supervision: mIoU 50.0 % (trained), 1 of 1 stages")


def test_a_terminal_shows_every_chain_as_it_is_now(plan: Plan) -> None:
    events = [
        epoch(plan, 0, 0, 2),
        FitTrained(plan.chains[0].id, 0, "f"),
        stage(plan, 0, 0, 0.4567),
        epoch(plan, 0, 1, 1, loss=0.98765),
        stage(plan, 1, 0, 0.4567, trained=False),
        stage(plan, 1, 1, 0.5),
        stage(plan, 1, 2, 0.51),
        ChainDone(plan.chains[1].id),
    ]
    title, header, margin, random, rest = shown(plan, events, terminal=True)[0][-5:]
    assert title.strip() == "A study [of streets] [/]"
    assert header.split("  ")[0] == "chain"
    assert re.fullmatch(r"test_resnet margin seed 0 +training +2/3 +1/2 +0\.988 +45\.7 +0:0\d", margin)
    assert re.fullmatch(r"test_resnet random seed 0 +done +3/3 +45\.7  50\.0  51\.0 +0:0\d", random)
    assert re.fullmatch(r"0:0\d so far, 3 of 5 stages, about 0:0\d left", rest)
    margin, random, rest = shown(plan, [failed(plan, 0)], terminal=True)[0][-3:]
    assert re.fullmatch(r"test_resnet margin seed 0 +failed +1/3 +0:0\d", margin)
    assert re.fullmatch(r"test_resnet random seed 0 +waiting", random)
    assert re.fullmatch(r"0:0\d so far, 0 of 5 stages", rest)


def test_the_clock_of_a_chain_stops_when_it_is_over_and_every_event_reaches_the_listeners(
    plan: Plan, clock: list[float]
) -> None:
    events: list[tuple[float, Event]] = [
        (100, epoch(plan, 0, 0, 1)),
        (105, epoch(plan, 1, 0, 1)),
        (107, failed(plan, 0)),
        (109, failed(plan, 1, final=False)),
        (165, epoch(plan, 1, 0, 2)),
        (170, ChainDone(plan.chains[1].id)),
        (190, epoch(plan, 0, 0, 1)),
        (290, failed(plan, 0)),
    ]
    clock[0], file, heard = 100.0, io.StringIO(), list[Event]()
    console = Console(file=file, force_terminal=True, width=140)
    with ChainProgress(plan, list(plan.chains), console, [heard.append]) as progress:
        for second, event in events:
            clock[0] = second
            progress(event)
        clock[0] = 1000.0
    assert heard == [event for _, event in events]
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).splitlines()
    assert lines[-3].rstrip().endswith(" 3:10")
    assert lines[-2].rstrip().endswith(" 1:05")
    assert lines[-1].startswith("15:00 so far")


def test_a_low_terminal_shows_what_runs_and_counts_the_rest_in_no_time() -> None:
    plan = tiny_plan(f"grid=[{{seed: {list(range(1000))}, budget: [2, 4]}}]")
    console = Console(file=io.StringIO(), force_terminal=True, width=140, height=12, color_system=None)
    progress = ChainProgress(plan, list(plan.chains), console, [])
    for chain in range(20):
        progress(ChainDone(plan.chains[chain].id))
    for chain in (25, 30):
        progress(epoch(plan, chain, 0, 1))
    progress(failed(plan, 39))
    begun = time.process_time()
    for _ in range(10):
        lines = "".join(segment.text for segment in console.render(progress._render())).splitlines()
    assert time.process_time() - begun < 1.0  # two a second are drawn: a twentieth of a core at most
    assert len(lines) == 11
    shown = [line.split("  ")[0].split()[-1] for line in lines[2:9]]
    assert {"25", "30", "39"} <= set(shown)
    assert shown == sorted(shown, key=int)
    assert lines[9].startswith("and 993 chains: 20 done, 973 waiting")


def test_the_time_left_is_at_the_pace_of_the_last_trainings(plan: Plan, clock: list[float]) -> None:
    progress = ChainProgress(plan, list(plan.chains), Console(file=io.StringIO()), [])
    for second, number in ((100, 0), (110, 1)):  # the first one waited for processes to start
        clock[0] = second
        progress(FitTrained(plan.chains[0].id, number, "f"))
        progress(stage(plan, 0, number, 0.5))
    assert progress._left() == "2 of 5 stages, about 0:30 left"
    clock[0] = 115
    assert progress._left() == "2 of 5 stages, about 0:25 left"
    progress(failed(plan, 1))  # two stages are its own
    assert progress._left() == "2 of 5 stages, about 0:05 left"
