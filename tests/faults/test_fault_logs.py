"""What the checks on the workers' logs find: they must fail where something is repeated; and the page about kills."""

import json
from pathlib import Path

from tests.support.fault_logs import Line, Logs, at_once, epochs_repeated, repeated
from tests.support.fault_summary import read, summarise


def line(time: float, pid: int, phase: str, event: str = "begin", *, key: str = "k", rank: int = 0) -> Line:
    return Line(time, pid, "chain", rank, phase, key, event)


def test_a_fit_begun_after_it_was_stored_is_found_and_one_begun_again_before_is_not() -> None:
    lines = [line(1, 10, "fit"), line(3, 11, "fit"), line(4, 11, "publish"), line(7, 12, "fit", key="other")]
    assert repeated(lines, {"k": 5.0}) == []
    assert len(repeated([*lines, line(6, 12, "fit")], {"k": 5.0})) == 1
    assert len(repeated([*lines, line(6, 12, "score")], {"k": 5.0})) == 1


def test_two_processes_at_one_fit_are_found_and_two_ranks_or_one_after_the_other_are_not() -> None:
    first = [line(1, 10, "fit"), line(1, 11, "fit", rank=1), line(2, 10, "fit", "end")]
    assert at_once([*first, line(3, 12, "fit"), line(4, 12, "fit", "end")]) == []
    assert at_once([*first, line(1.5, 12, "fit"), line(4, 12, "fit", "end")]) == ["fit of k by 10 and 12 at once"]


def test_one_epoch_may_be_repeated_for_each_time_that_a_fit_is_begun_again_and_no_more() -> None:
    def epochs(pid: int, count: int) -> list[Line]:
        fit = line(pid, pid, "fit")
        return [fit, *(line(pid, pid, "evaluate", event, key="e") for _ in range(count) for event in ("begin", "end"))]

    assert epochs_repeated(epochs(1, 2) + epochs(2, 2), epochs=3) == {"e": (1, 1)}
    assert epochs_repeated(epochs(1, 2) + epochs(2, 3), epochs=3) == {"e": (2, 1)}


def test_lines_are_read_once_and_only_when_they_are_whole(tmp_path: Path) -> None:
    texts = [json.dumps({k: v for k, v in vars(line(at, 7, "fit")).items() if k != "pid"}) for at in (2.0, 1.0)]
    path, logs = tmp_path / "host-7.jsonl", Logs(tmp_path)
    path.write_text(f"{texts[0]}\n{texts[1][:9]}")
    assert logs.read_new() == [line(2.0, 7, "fit")]
    path.write_text(f"{texts[0]}\n{texts[1]}\n")
    assert logs.read_new() == [line(1.0, 7, "fit")]
    assert logs.read_new() == []


def test_the_phases_that_a_process_is_in_are_those_begun_and_not_ended_at_that_time() -> None:
    logs = Logs(Path("nowhere"))
    logs.lines = [line(1, 7, "fit"), line(2, 7, "evaluate"), line(3, 7, "evaluate", "end"), line(4, 8, "score")]
    assert logs.open_phases(7, at=2.5) == ["fit", "evaluate"]
    assert logs.open_phases(7, at=5) == ["fit"]
    assert logs.open_phases(7, at=0.5) == []


def test_the_page_counts_kills_by_part_and_phase_and_names_every_problem(tmp_path: Path) -> None:
    kill = {"study": "s, 0", "life": 0, "what": "rank", "phase": "fit", "seconds_to_recovery": 4.0}
    life = {"study": "s, 0", "life": 0, "seconds": 90.0, "undisturbed_seconds": 30.0, "commands": 3}
    life |= {"epochs_repeated": 1, "problems": [], "date": "2026-01-02", "machine": "2 CPU cores"}
    kills = [kill, kill | {"seconds_to_recovery": 8.0}, kill | {"what": "driver", "phase": ""}]
    path = tmp_path / "s-0.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*kills, life]))
    page = summarise(read(tmp_path))
    assert "**3 kills in 1 lives of 1 studies.** All of it held every time." in page
    assert "| one rank of two |  | 2 |  |  |  |  |  | 2 |" in page
    assert "| all |  | 2 |  |  |  |  | 1 | 3 |" in page
    assert "| one rank of two | 2 | 6.0 | 8.0 |" in page
    assert "| s, 0 | 3 | 3 | 1 | 90 | 30 |" in page
    bad = summarise([*kills, life | {"problems": ["pick/k differs"]}])
    assert "- s, 0: pick/k differs" in bad
    assert "held every time" not in bad
