"""Progress of a run: a live table on a terminal, plain lines in a log."""

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pixelpick_ray.config.canonical import counted
from pixelpick_ray.config.trial import Budget
from pixelpick_ray.events import (
    AnswersAwaited,
    ChainDone,
    ChainFailed,
    Diverged,
    EpochDone,
    Event,
    FitResumed,
    FitTrained,
    PixelsPicked,
    StageDone,
)
from pixelpick_ray.planning import Chain, Plan


@dataclass
class ChainRow:
    """State of a chain while it runs."""

    label: str
    stages: int
    state: str = "waiting"
    stage: int = 0
    budget: Budget | None = None
    epoch: str = ""
    loss: float | None = None
    mious: dict[int, float] = field(default_factory=dict)
    started: float | None = None
    finished: float | None = None


class Shown(ABC):
    """Base of progress displays, a context manager around a run; counts the trainings computed."""

    def __init__(self, console: Console) -> None:
        self._console, self._start, self.num_trained = console, time.monotonic(), 0

    def __enter__(self) -> Self:
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=2, transient=False)
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._console.is_terminal:
            self._live.stop()

    @abstractmethod
    def _render(self) -> Group:
        """What the terminal shows now."""

    def _line(self, text: str) -> None:
        if self._console.is_terminal:
            return
        self._console.print(
            f"[{clock(time.monotonic() - self._start)}] {text}", markup=False, highlight=False, soft_wrap=True
        )


class ChainProgress(Shown):
    """Listens to events and shows them; use as a context manager around a run."""

    def __init__(
        self, plan: Plan, chains: list[Chain], console: Console, listeners: list[Callable[[Event], None]]
    ) -> None:
        self._rows = {chain.id: ChainRow(chain.label, len(chain.fits)) for chain in chains}
        super().__init__(console)
        self._plan, self._listeners = plan, listeners
        self._fits = {chain.id: chain.fits for chain in chains}
        self._stages = {fit for chain in chains for fit in chain.fits}
        self._stages_done: set[str] = set()  # by fit, which chains may share
        self._given_up: set[str] = set()
        self._ends: list[float] = []  # monotonic times at which trainings ended
        self._chains_with: dict[str, set[str]] = {}
        for chain in chains:
            for fit in chain.fits:
                self._chains_with.setdefault(fit, set()).add(chain.id)

    def __call__(self, event: Event) -> None:
        """Process one event."""
        row = self._rows[event.chain]
        row.started = row.started or time.monotonic()
        self._show(row, event)
        for listener in self._listeners:
            listener(event)

    def _show(self, row: ChainRow, event: Event) -> None:
        match event:
            case EpochDone():
                row.state, row.stage, row.loss = "training", event.stage, event.loss
                row.epoch = f"{event.epoch}/{event.epochs}"
            case FitResumed():
                row.state, row.stage, row.epoch = "training", event.stage, f"{event.epoch}/{event.epochs}"
                self._line(f"{row.label}: stage {event.stage} resumes after epoch {row.epoch}")
            case FitTrained():
                self.num_trained += 1
                self._ends.append(time.monotonic())
            case StageDone():
                self._show_stage(row, event)
            case PixelsPicked():
                row.state = "picked"
            case ChainDone():
                row.state, row.finished = "done", time.monotonic()
            case AnswersAwaited():
                row.state = "asks people"
                self._line(f"{row.label}: waiting for {event.missing} of {counted(event.asked, 'answer')}")
            case Diverged():
                row.state, row.stage, row.finished = "diverged", event.stage, time.monotonic()
                self._give_up(event.chain, event.stage)
                self._line(f"{row.label}: DIVERGED: {event.message}")
            case ChainFailed():
                row.state, row.finished = "failed", time.monotonic() if event.final else None
                if event.final:
                    self._give_up(event.chain, 0)
                again = "" if event.final else " (trying again)"
                self._line(f"{row.label}: FAILED{again}: {event.message}")

    def _show_stage(self, row: ChainRow, event: StageDone) -> None:
        row.state, row.stage, row.budget = "stored", event.stage, event.budget
        was_shown = event.stage in row.mious  # a chain starts anew after people have answered
        row.mious[event.stage] = event.miou
        self._stages_done.add(self._fits[event.chain][event.stage])
        if was_shown and not event.trained:
            return
        how = "trained" if event.trained else "from the store"
        budget = "full supervision" if event.budget == "full" else f"{event.budget} px"
        self._line(f"{row.label}: {budget}: mIoU {100 * event.miou:.1f} % ({how}), {self._left()}")

    def _give_up(self, chain: str, stage: int) -> None:
        """Stop expecting stages from `stage` on that only this chain would have reached."""
        for fit in self._fits[chain][stage:]:
            self._chains_with[fit].discard(chain)
            if not self._chains_with[fit] and fit not in self._stages_done:
                self._given_up.add(fit)

    def _left(self) -> str:
        """Distinct stages done, and the time left at the pace of recent trainings."""
        done, counted = len(self._stages_done), f"{len(self._stages_done)} of {len(self._stages)} stages"
        missing = len(self._stages) - done - len(self._given_up - self._stages_done)
        if not self._ends or missing <= 0:
            return counted
        # Until the first training ends, the pace is unknown: processes start, images are decoded.
        first = max(0, len(self._ends) - 1 - RECENT)
        begun = self._ends[first] if len(self._ends) > 1 else self._start
        trained = len(self._ends) - 1 - first if len(self._ends) > 1 else 1
        pace, passed = (self._ends[-1] - begun) / trained, time.monotonic() - self._ends[-1]
        left = max(0.0, pace * missing - min(passed, pace))
        return f"{counted}, about {clock(left)} left"

    def _render(self) -> Group:
        title = Text(self._plan.experiment.title or self._plan.experiment.name, style="table.title")
        table = Table(box=None, pad_edge=False, title=title, title_justify="left")
        for name in ("chain", "state", "stage", "epoch", "loss", "mIoU % by stage", "time"):
            table.add_column(name, justify="left" if name in ("chain", "state", "mIoU % by stage") else "right")
        shown, hidden = self._shown(self._console.height - RESERVED_LINES)
        for row in shown:
            table.add_row(*_cells(row))
        more = [Text(f"and {counted(len(hidden), 'chain')}: {_states(hidden)}", style="dim")] if hidden else []
        passed = clock(time.monotonic() - self._start)
        return Group(table, *more, Text(f"{passed} so far, {self._left()}", style="dim"))

    def _shown(self, most: int) -> tuple[list[ChainRow], list[ChainRow]]:
        """Rows that fit on the terminal, running ones first, and the hidden ones; both in the plan's order."""
        rows = list(self._rows.values())
        if len(rows) <= most:
            return rows, []
        first = sorted(range(len(rows)), key=lambda at: (SHOWN_FIRST.get(rows[at].state, 0), at))[: max(1, most - 1)]
        return [rows[at] for at in sorted(first)], [rows[at] for at in sorted({*range(len(rows))} - {*first})]


RECENT = 20  # trainings whose pace gives the time left
RESERVED_LINES = 4  # of a terminal: title, header, time left, cursor
# Running chains have priority over failed, waiting and finished ones.
SHOWN_FIRST = {"failed": 1, "diverged": 1, "asks people": 2, "waiting": 3, "done": 4}


def _states(rows: list[ChainRow]) -> str:
    counts = Counter(row.state for row in rows)
    return ", ".join(f"{number} {state}" for state, number in counts.items())


STYLES = {
    "failed": "bold red",
    "diverged": "red",
    "done": "green",
    "training": "bold",
    "waiting": "dim",
    "asks people": "yellow",
}


def _cells(row: ChainRow) -> list[Text | str]:
    seconds = (row.finished or time.monotonic()) - row.started if row.started else None
    return [
        row.label,
        Text(row.state, style=STYLES.get(row.state, "")),
        f"{row.stage + 1}/{row.stages}" if row.started else "",
        row.epoch,
        f"{row.loss:.3f}" if row.loss is not None else "",
        "  ".join(f"{100 * value:.1f}" for _, value in sorted(row.mious.items())),
        clock(seconds) if seconds is not None else "",
    ]


def clock(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
