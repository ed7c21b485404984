"""Progress that a person likes: a live table on a terminal, plain lines in a log."""

import time
from abc import ABC, abstractmethod
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
    """What is known of a chain while it runs."""

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
    """What is shown while a run goes on, and how many trainings it has computed; a context manager around it."""

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
        """What a terminal shows now."""

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
        self._stages_done: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Take in one event."""
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
                self._line(f"{row.label}: DIVERGED: {event.message}")
            case ChainFailed():
                row.state, row.finished = "failed", time.monotonic() if event.final else None
                again = "" if event.final else " (trying again)"
                self._line(f"{row.label}: FAILED{again}: {event.message}")

    def _show_stage(self, row: ChainRow, event: StageDone) -> None:
        row.state, row.stage, row.budget = "stored", event.stage, event.budget
        was_shown = event.stage in row.mious  # a chain that people have answered for begins anew
        row.mious[event.stage] = event.miou
        self._stages_done.add(self._fits[event.chain][event.stage])
        if was_shown and not event.trained:
            return
        how = "trained" if event.trained else "from the store"
        budget = "full supervision" if event.budget == "full" else f"{event.budget} px"
        self._line(f"{row.label}: {budget}: mIoU {100 * event.miou:.1f} % ({how}), {self._left()}")

    def _left(self) -> str:
        """Distinct stages done, and the time left at the pace of those that were trained now."""
        done, counted = len(self._stages_done), f"{len(self._stages_done)} of {len(self._stages)} stages"
        if not self.num_trained or done == len(self._stages):
            return counted
        left = (time.monotonic() - self._start) / self.num_trained * (len(self._stages) - done)
        return f"{counted}, about {clock(left)} left"

    def _render(self) -> Group:
        table = Table(
            box=None,
            pad_edge=False,
            title=Text(self._plan.experiment.title or self._plan.experiment.name, style="table.title"),
            title_justify="left",
        )
        for name in ("chain", "state", "stage", "epoch", "loss", "mIoU % by stage", "time"):
            table.add_column(name, justify="left" if name in ("chain", "state", "mIoU % by stage") else "right")
        for row in self._rows.values():
            table.add_row(*_cells(row))
        return Group(table, Text(f"{clock(time.monotonic() - self._start)} so far, {self._left()}", style="dim"))


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
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
