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


def epoch(plan: Plan, chain: int, stage: int, number: int, loss: float = 1.0) -> Event:
    return epoch_done(plan.chains[chain].id, stage, number, loss=loss)


def stage(plan: Plan, chain: int, number: int, miou: float, trained: bool = True) -> Event:
    return stage_done(plan.chains[chain].id, number, miou, trained=trained, budget=2 + 2 * number)


def failed(plan: Plan, chain: int, message: str, final: bool = True) -> Event:
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
    told = [re.fullmatch(r"\[0:0\d\] (.*)", line) for line in lines]
    texts = [match[1] for match in told if match]
    assert [re.sub(r", about 0:0\d left", "", text) for text in texts] == [
        "test_resnet margin seed 0: 2 px: mIoU 45.7 % (trained), 1 of 5 stages",
        "test_resnet random seed 0: 2 px: mIoU 45.7 % (from the store), 1 of 5 stages",
        "test_resnet random seed 0: FAILED (trying again): OSError: [the disk] is gone",
        "test_resnet margin seed 0: FAILED: the loss is nan",
    ]
    assert len(texts) == len(lines)
    assert progress.num_trained == 1


def test_full_supervision_is_told_as_such() -> None:
    plan = tiny_plan("grid=[{budget: [full]}]")
    lines, _ = shown(plan, [stage_done(plan.chains[0].id, 0, 0.5, budget="full")], terminal=False)
    assert len(lines) == 1
    assert lines[0].endswith("test_resnet full seed 0: full supervision: mIoU 50.0 % (trained), 1 of 1 stages")


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
    lines, _ = shown(plan, events, terminal=True)
    last = lines[-5:]
    assert last[0].strip() == "A study [of streets] [/]"
    assert last[1].split("  ")[0] == "chain"
    assert re.fullmatch(r"test_resnet margin seed 0 +training +2/3 +1/2 +0\.988 +45\.7 +0:0\d", last[2])
    assert re.fullmatch(r"test_resnet random seed 0 +done +3/3 +45\.7  50\.0  51\.0 +0:0\d", last[3])
    assert re.fullmatch(r"0:0\d so far, 3 of 5 stages, about 0:0\d left", last[4])


def test_a_chain_that_has_not_begun_waits_and_one_that_failed_says_so(plan: Plan) -> None:
    lines, _ = shown(plan, [failed(plan, 0, message="no")], terminal=True)
    assert re.fullmatch(r"test_resnet margin seed 0 +failed +1/3 +0:0\d", lines[-3])
    assert re.fullmatch(r"test_resnet random seed 0 +waiting", lines[-2])
    assert re.fullmatch(r"0:0\d so far, 0 of 5 stages", lines[-1])


def test_the_clock_of_a_chain_stops_when_it_is_over(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pixelpick_ray.runner.progress.time.monotonic", lambda: now[0])

    def at(second: float, event: Event) -> tuple[float, Event]:
        return 100.0 + second, event

    events = [
        at(0, epoch(plan, 0, 0, 1)),
        at(5, epoch(plan, 1, 0, 1)),
        at(7, failed(plan, 0, message="no")),
        at(9, failed(plan, 1, message="lost", final=False)),
        at(65, epoch(plan, 1, 0, 2)),
        at(70, ChainDone(plan.chains[1].id)),
        at(90, epoch(plan, 0, 0, 1)),
        at(190, failed(plan, 0, message="no")),
    ]
    file = io.StringIO()
    with ChainProgress(plan, list(plan.chains), Console(file=file, force_terminal=True, width=140), []) as progress:
        for second, event in events:
            now[0] = second
            progress(event)
        now[0] = 1000.0
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).splitlines()
    assert lines[-3].rstrip().endswith(" 3:10")
    assert lines[-2].rstrip().endswith(" 1:05")
    assert lines[-1].startswith("15:00 so far")


def test_every_event_reaches_the_listeners(plan: Plan) -> None:
    heard: list[Event] = []
    events = [epoch(plan, 0, 0, 1), stage(plan, 0, 0, 0.5), ChainDone(plan.chains[0].id)]
    progress = ChainProgress(plan, list(plan.chains), Console(file=io.StringIO()), [heard.append])
    for event in events:
        progress(event)
    assert heard == events


def many(number: int) -> Plan:
    return tiny_plan(f"grid=[{{seed: {list(range(number))}, budget: [2, 4]}}]")


def test_a_low_terminal_shows_what_runs_and_counts_the_rest() -> None:
    plan, file = many(40), io.StringIO()
    console = Console(file=file, force_terminal=True, width=140, height=12, color_system=None)
    with ChainProgress(plan, list(plan.chains), console, []) as progress:
        for chain in range(20):
            progress(ChainDone(plan.chains[chain].id))
        for chain in (25, 30):
            progress(epoch(plan, chain, 0, 1))
        progress(failed(plan, 39, "no"))
        lines = "".join(segment.text for segment in console.render(progress._render())).splitlines()
    assert len(lines) == 11
    shown = [line.split("  ")[0].split()[-1] for line in lines[2:9]]
    assert {"25", "30", "39"} <= set(shown)
    assert shown == sorted(shown, key=int)
    assert lines[9].startswith("and 33 chains: 20 done, 13 waiting")
    assert "so far, 0 of" in lines[10]


def test_a_thousand_chains_are_drawn_in_no_time() -> None:
    plan, file = many(1000), io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, height=40, color_system=None)
    progress = ChainProgress(plan, list(plan.chains), console, [])
    begun = time.process_time()
    for _ in range(10):
        console.print(progress._render())
    assert time.process_time() - begun < 1.0  # two a second are drawn: a twentieth of a core at most


def test_the_time_left_is_at_the_pace_of_the_last_trainings(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pixelpick_ray.runner.progress.time.monotonic", lambda: now[0])
    progress = ChainProgress(plan, list(plan.chains), Console(file=io.StringIO()), [])
    for second, number in ((100, 0), (110, 1)):  # the first one waited for processes to start
        now[0] = second
        progress(FitTrained(plan.chains[0].id, number, "f"))
        progress(stage(plan, 0, number, 0.5))
    assert progress._left() == "2 of 5 stages, about 0:30 left"
    now[0] = 115
    assert progress._left() == "2 of 5 stages, about 0:25 left"
    progress(failed(plan, 1, "no"))  # two stages are its own
    assert progress._left() == "2 of 5 stages, about 0:05 left"
