"""The workers' own logs: who began which phase of which result, and what they must never say."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

SHARED = ("fit", "score")  # phases whose results are published under the phase's key


@dataclass(frozen=True)
class Line:
    """A process began or ended a phase of work on a result; ``time`` in seconds since 1970."""

    time: float
    pid: int
    chain: str
    rank: int
    phase: str
    key: str
    event: str


class Logs:
    """All lines that the processes of a run have written so far, in the order in which they were read."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[Line] = []
        self._folder = folder
        self._read: dict[str, int] = {}

    def read_new(self) -> list[Line]:
        """The lines since the last call, oldest first; a line that is not whole yet is left for the next one."""
        new: list[Line] = []
        for path in self._folder.glob("*.jsonl") if self._folder.is_dir() else ():
            done = self._read.get(path.name, 0)
            if path.stat().st_size == done:
                continue
            with open(path, "rb") as file:
                file.seek(done)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path.name] = done + len(whole) + len(newline)
            pid = int(path.stem.rpartition("-")[2])
            new += [Line(pid=pid, **json.loads(text)) for text in whole.splitlines()]
        new.sort(key=lambda line: line.time)
        self.lines += new
        return new

    def open_phases(self, pid: int, at: float) -> list[str]:
        """The phases that a process was in at a time, innermost last."""
        inside: list[str] = []
        for line in self.lines:
            if line.pid != pid or line.time > at:
                continue
            if line.event == "begin":
                inside.append(line.phase)
            elif line.phase in inside:
                del inside[inside.index(line.phase) :]
        return inside


def repeated(lines: Iterable[Line], finished: Mapping[str, float]) -> list[str]:
    """What was begun again after its result was published; `finished` says since when, by key."""
    return [
        f"{line.phase} of {line.key[:12]} begun {line.time - finished[line.key]:.2f} s after it was stored"
        for line in lines
        if line.event == "begin" and line.phase in SHARED and line.time > finished.get(line.key, float("inf"))
    ]


def at_once(lines: Iterable[Line]) -> list[str]:
    """What a process began while another was at it: it wrote a later line about the same work."""
    spans: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line.phase in SHARED and line.rank == 0:
            spans[line.phase, line.key][line.pid].append(line.time)
    return [
        f"{phase} of {key[:12]} by {first} and {second} at once"
        for (phase, key), by_process in spans.items()
        for first, mine in by_process.items()
        for second, theirs in by_process.items()
        if first != second and min(mine) < min(theirs) < max(mine)
    ]


def epochs_repeated(lines: Iterable[Line], epochs: int) -> dict[str, tuple[int, int]]:
    """Epochs done more than once, and how often the fit was begun again, by evaluation key.

    Each epoch ends in one evaluation of a split, so a kill that costs at most one epoch leaves the first at most as
    large as the second.
    """
    begun, ended = Counter[str](), Counter[str]()
    fit_of_process: dict[int, str] = {}
    fit_of: dict[str, str] = {}
    for line in lines:
        if line.rank == 0 and (line.phase, line.event) == ("fit", "begin"):
            begun[line.key] += 1
            fit_of_process[line.pid] = line.key
        if line.rank == 0 and (line.phase, line.event) == ("evaluate", "end"):
            ended[line.key] += 1
            fit_of[line.key] = fit_of_process[line.pid]
    return {key: (count - epochs, begun[fit_of[key]] - 1) for key, count in ended.items()}
