"""Kills: a study gives one command again and again, and kills parts of what it started, each in a wanted phase.

The moment comes from the workers' own logs: when a process says that a phase begins, the victim is killed a little
later. What is killed, in which phase, in which order and after which delay is drawn from the study's seed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.support.fault_cluster import MARK, Nodes, Process, parent_of, processes, wait_until_gone
from tests.support.fault_logs import Line, Logs
from tests.support.launch import ROOT

LAUNCH = str(ROOT / "launch.py")
# A run of two ranks a trial on counted GPUs, which the command line refuses for ranks on CPUs.
ON_COUNTED_GPUS = """
import sys
import pixelpick_ray as pp
from pixelpick_ray.config.execution import Execution
Execution.check = lambda *batch_sizes: None
options = {"ranks": 2, "gpus_per_rank": 1.0, "device": "cpu", "address": sys.argv[1], "wait": "wait" in sys.argv}
sys.exit(pp.run(pp.load("faults.yaml"), cache="cache", verbose=True, **options).status)
"""
PHASES = ("start", "fit", "evaluate", "score", "publish", "report")
DELAYS = {"start": 0.2, "fit": 0.4, "evaluate": 0.03, "score": 0.03, "publish": 0.01, "report": 1.0}  # at most, seconds
START_SECONDS = 12.0  # until a driver's first chain begins
MOST_PASSED = 8  # how many beginnings of a phase are let pass at most after a kill
RUN_SECONDS = 900.0
STEP_SECONDS = 0.001  # how often the logs are looked at


Wish = namedtuple("Wish", "what phase")  # of a kill; "report" is the process of ``launch.py report``
Victim = namedtuple("Victim", "pid seen")  # whom to kill, and the process by whose log the moment was chosen
Run = namedtuple("Run", "driver began")  # of the command


@dataclass
class Kill:
    """A kill that was done: `phase` is what the log says of that moment, empty between two phases."""

    what: str
    phase: str
    at: float
    seconds_to_recovery: float | None = None


@dataclass(frozen=True)
class Setting:
    """How an experiment is run, and who dies; `nodes` are the CPUs of a cluster's two nodes, None its own cluster."""

    experiment: str
    what: tuple[str, ...] = ()
    ranks: int = 1
    options: tuple[str, ...] = ()
    nodes: tuple[int, int] | None = None

    def wishes(self) -> list[Wish]:
        """Every part in every phase that it can be killed in."""
        wishes = [Wish(what, phase) for what in self.what if what != "report" for phase in PHASES[:-1]]
        after_the_last_chain = ("driver", "raylet", "report")
        return wishes + [Wish(what, "report") for what in self.what if what in after_the_last_chain]


class Life:
    """One experiment in a folder of its own, from an empty store to its end; the same command each time."""

    def __init__(self, place: Path, setting: Setting, mark: dict[str, str], address: str | None) -> None:
        self.place, self.setting, self._address = place, setting, address
        (place / "tmp").mkdir(parents=True)
        (place / "faults.yaml").write_text(setting.experiment, encoding="utf-8")
        self._variables = mark | {"XDG_CACHE_HOME": str(place / "cache"), "TMPDIR": str(place / "tmp")}
        self._finished: dict[str, float] = {}
        self.logs = Logs(place / "runs" / "faults" / "steps")
        self.commands = 0
        self.kills: list[Kill] = []

    def run(self) -> "subprocess.Popen[bytes]":
        ranks = ("--ranks", str(self.setting.ranks)) if self.setting.ranks > 1 else ()
        address = ("--address", self._address) if self._address else ()
        options = ("--checkpoint-minutes", "0.0001", *ranks, *self.setting.options, *address)
        return self.launch(LAUNCH, "run", "faults.yaml", *options)

    def report(self) -> "subprocess.Popen[bytes]":
        return self.launch(LAUNCH, "report", "faults.yaml", "--out", "report")

    def launch(self, *words: str) -> "subprocess.Popen[bytes]":
        """Start a Python program in the life's folder, its output in a file of its own."""
        self.commands += 1
        with open(self.place / f"output-{self.commands:02d}.txt", "wb") as output:
            return subprocess.Popen(
                [sys.executable, *words],
                cwd=self.place,
                env=os.environ | self._variables | {"PYTHONUNBUFFERED": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def ends_well(self, driver: "subprocess.Popen[bytes]", nodes: Nodes) -> None:
        """A driver that has joined nodes ends with 0 and leaves them nothing."""
        assert driver.wait(timeout=500) == 0, self.output()
        assert wait_until_gone(self._variables[MARK], services_too=False) == []
        assert nodes.placement_groups() == []

    def output(self) -> str:
        return (self.place / f"output-{self.commands:02d}.txt").read_text(encoding="utf-8", errors="replace")

    def finished(self) -> dict[str, float]:
        """When each fit and pick was stored, by key; what was seen once stays."""
        for kind in ("fit", "pick"):
            for path in self.place.glob(f"store/{kind}/*/manifest.json"):
                self._finished.setdefault(path.parent.name, path.stat().st_mtime)
        return self._finished

    def results(self) -> dict[str, bytes]:
        """Bytes of all picks, all confusion matrices and the report's tables."""
        files = [self.place / "report" / "table.md", self.place / "report" / "table.csv"]
        for pattern in ("pick/*/pixels.npz", "evaluation/*/confusion.npz"):
            files += self.place.glob(f"store/{pattern}")
        return {path.relative_to(self.place).as_posix(): path.read_bytes() for path in files}

    def remains(self) -> list[str]:
        """What only work in progress has in the store, by its path in it."""
        store = self.place / "store"
        found = [*store.glob("unfinished/*"), *store.glob("**/.partial-*")]
        return sorted(path.relative_to(store).as_posix() for path in found)


class Study:
    """The wished kills of one setting, in as many lives as that takes; an undisturbed one stores `num_finished`."""

    def __init__(self, seed: str, setting: Setting, wishes: Iterable[Wish], mark: dict[str, str], num_finished: int):
        self._dice = random.Random(seed)
        self._setting, self._mark, self._num_finished = setting, mark, num_finished
        self._cluster: Nodes | None = None
        self._known: set[int] = set()  # processes that were there at the last kill or start
        self._report_seconds = 4.0
        self.wishes = list(wishes)
        self._dice.shuffle(self.wishes)

    def live(self, place: Path, cluster: Nodes | None) -> Life:
        """One life: give the command and kill until it ends well, then report."""
        self._cluster = cluster
        life = Life(place, self._setting, self._mark, cluster.address if cluster else None)
        statuses: list[int] = []
        while not statuses or statuses[-1] != 0:
            statuses.append(self._disturb(life))
            usual = statuses[-1] in (0, 1, -signal.SIGKILL) and statuses[-3:] != [1, 1, 1]
            assert usual, f"the commands ended with {statuses}, the last one said\n{life.output()}"
        self._report(life)
        life.logs.read_new()
        ended = time.time()
        for kill in life.kills:  # work went on in a process that had not begun any before, or all was done
            before = {line.pid for line in life.logs.lines if line.time <= kill.at}
            begun = (line.time for line in life.logs.lines if line.time > kill.at and line.pid not in before)
            kill.seconds_to_recovery = round(min(begun, default=ended) - kill.at, 2)
        return life

    def _disturb(self, life: Life) -> int:
        """Give the command that runs, kill what is wished for, and return its exit status."""
        run = Run(life.run(), time.time())
        self._known = {process.pid for process in self._processes()}
        while run.driver.poll() is None and (found := self._find(life, run)):
            self._kill(life, run, *found)
        return run.driver.wait(timeout=RUN_SECONDS)

    def _find(self, life: Life, run: Run) -> tuple[Wish, Victim] | None:
        """Wait for a moment in which a wish can come true, then a drawn while; None when the command ends before."""
        life.logs.read_new()
        to_pass, share, turn = self._dice.randrange(MOST_PASSED), self._dice.random(), 0
        while run.driver.poll() is None:
            assert time.time() - run.began < RUN_SECONDS, f"the command does not end\n{life.output()}"
            for line in life.logs.read_new():
                to_pass -= line.event == "begin"
                if line.event == "begin" and to_pass < 0 and (found := self._working(line, run)):
                    time.sleep(self._dice.uniform(0, DELAYS[line.phase]))
                    return found
            if turn % 40 == 0 and (found := self._starting(life, run, share) or self._reporting(life, run)):
                return found
            turn += 1
            time.sleep(STEP_SECONDS)
        return None

    def _working(self, line: Line, run: Run) -> tuple[Wish, Victim] | None:
        """The first wish for the phase that a process has just begun, if one of the wished kind has part in it."""
        for wish in self.wishes:
            if wish.phase == line.phase and (pid := self._victim_of(line, wish.what, run)):
                return wish, Victim(pid, line.pid)
        return None

    def _victim_of(self, line: Line, what: str, run: Run) -> int | None:
        if what == "driver":
            return run.driver.pid
        if what == "raylet":
            lost = {process.pid for process in self._processes() if process.parent == self._raylet()}
            ranks = {process.pid for process in self._processes() if process.is_rank}
            return self._raylet() if lost & (ranks | {line.pid}) else None  # a group ends with any of its ranks
        if what == "rank" or self._setting.ranks == 1:
            return line.pid
        return next((process.pid for process in self._processes() if process.is_trial), None)

    def _starting(self, life: Life, run: Run, share: float) -> tuple[Wish, Victim] | None:
        """A driver whose chains have not begun anything, or a new process of a chain that has not."""
        begun = {line.pid for line in life.logs.lines if line.time > run.began}
        wishes = {wish.what: wish for wish in self.wishes if wish.phase == "start"}
        if not begun and "driver" in wishes and share < 0.5:  # else this start is let pass
            late = time.time() - run.began >= 2 * share * START_SECONDS
            return (wishes["driver"], Victim(run.driver.pid, run.driver.pid)) if late else None
        for process in self._processes() if wishes.keys() - {"driver"} else ():
            kinds = {"trial": process.is_trial, "rank": process.is_rank}
            kinds["raylet"] = any(kinds.values()) and process.parent == self._raylet()
            wish = next((wishes[kind] for kind, suits in kinds.items() if suits and kind in wishes), None)
            if wish and process.pid not in self._known and not begun - self._known:
                time.sleep(share * DELAYS["start"])
                return wish, Victim(self._raylet() if wish.what == "raylet" else process.pid, process.pid)
        return None

    def _reporting(self, life: Life, run: Run) -> tuple[Wish, Victim] | None:
        """The driver, or the worker node, after the last chain's last result."""
        wish = next((one for one in self.wishes if one.phase == "report" and one.what != "report"), None)
        begun = any(line.time > run.began for line in life.logs.lines)
        if wish is None or not begun or len(life.finished()) < self._num_finished:
            return None
        time.sleep(self._dice.uniform(0, DELAYS["report"]))
        return wish, Victim(run.driver.pid if wish.what == "driver" else self._raylet(), run.driver.pid)

    def _kill(self, life: Life, run: Run, wish: Wish, victim: Victim) -> None:
        """Kill, and note what was hit; nothing when there is nobody to kill any more."""
        if run.driver.poll() is not None or parent_of(victim.pid) == 0:
            return
        at = time.time()
        if wish.what == "raylet" and self._cluster:
            self._cluster.lose_worker()
        else:
            os.kill(victim.pid, signal.SIGKILL)
        if wish.what == "driver":
            run.driver.wait()
        time.sleep(0.02)
        life.logs.read_new()
        life.kills.append(Kill(wish.what, self._phase(life, run, victim, at), at))
        self.wishes.remove(wish)
        if wish.what == "raylet" and self._cluster:
            time.sleep(self._dice.uniform(0, 2))
            self._cluster.join_worker()
        self._known = {process.pid for process in self._processes()}

    def _phase(self, life: Life, run: Run, victim: Victim, at: float) -> str:
        """What the logs say that was going on at a time; empty between two phases."""
        if victim.seen == run.driver.pid:
            done = len(life.finished()) >= self._num_finished and max(life.finished().values()) < at
            begun = any(run.began < line.time < at for line in life.logs.lines)
            return "report" if done else "" if begun else "start"
        mine = [line for line in life.logs.lines if line.pid == victim.seen and line.time < at]
        started = mine or any(run.began < line.time < at and line.pid not in self._known for line in life.logs.lines)
        return next(iter(life.logs.open_phases(victim.seen, at)[::-1]), "" if started else "start")

    def _report(self, life: Life) -> None:
        """Give the command that reports; where it is wished, kill it once and give it again."""
        wish = Wish("report", "report")
        if wish in self.wishes:
            process = life.report()
            time.sleep(self._dice.uniform(0.05, 0.9) * self._report_seconds)
            if process.poll() is None:
                process.kill()
                life.kills.append(Kill("report", "report", time.time()))
                self.wishes.remove(wish)
            process.wait()
        start = time.monotonic()
        assert life.report().wait(timeout=RUN_SECONDS) == 0, life.output()
        self._report_seconds = time.monotonic() - start

    def _processes(self) -> list[Process]:
        return processes(next(iter(self._mark.values())))

    def _raylet(self) -> int:
        return self._cluster.raylet if self._cluster else 0
