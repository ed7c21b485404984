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

from pixelpick_ray.plan import Chain, Plan
from pixelpick_ray.steps import Event


@dataclass
class Row:
    """What is known of a chain while it runs."""

    label: str
    stages: int
    state: str = "waiting"
    stage: int = 0
    budget: int | str = ""
    epoch: str = ""
    loss: float | None = None
    mious: dict[int, float] = field(default_factory=dict)
    started: float | None = None
    finished: float | None = None


class Shown(ABC):
    """What is shown while a run goes on, and how many trainings it has computed; a context manager around it."""

    def __init__(self, console: Console) -> None:
        self._console, self._start, self.computed_fits = console, time.monotonic(), 0

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


class Progress(Shown):
    """Listens to events and shows them; use as a context manager around a run."""

    def __init__(
        self, plan: Plan, chains: list[Chain], console: Console, listeners: list[Callable[[Event], None]]
    ) -> None:
        self._rows = {chain.id: Row(chain.label, len(chain.fits)) for chain in chains}
        super().__init__(console)
        self._plan, self._listeners = plan, listeners
        self._fits = {chain.id: chain.fits for chain in chains}
        self._stages = {fit for chain in chains for fit in chain.fits}
        self._stages_done: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        row = self._rows[event.chain]
        row.started = row.started or time.monotonic()
        getattr(self, f"_on_{event.kind}")(row, event)
        for listener in self._listeners:
            listener(event)

    def _on_epoch(self, row: Row, event: Event) -> None:
        values = event.values
        row.state, row.stage, row.loss = "training", event.stage, values["loss"]
        row.epoch = f"{values['epoch']}/{values['epochs']}"

    def _on_resume(self, row: Row, event: Event) -> None:
        values = event.values
        row.state, row.stage = "training", event.stage
        row.epoch = f"{values['epoch']}/{values['epochs']}"
        self._line(f"{row.label}: stage {event.stage} goes on after epoch {row.epoch}")

    def _on_stage(self, row: Row, event: Event) -> None:
        row.state, row.stage, row.budget = "stored", event.stage, event.values["budget"]
        is_told = event.stage in row.mious  # a chain that people have answered for begins anew
        row.mious[event.stage] = event.values["miou"]
        self.computed_fits += event.computed
        self._stages_done.add(self._fits[event.chain][event.stage])
        if is_told and not event.computed:
            return
        how = "trained" if event.computed else "from the store"
        self._line(
            f"{row.label}: {_pixels(row.budget)}: mIoU {100 * event.values['miou']:.1f} % ({how}), {self._left()}"
        )

    def _on_pick(self, row: Row, event: Event) -> None:
        row.state = "picked"

    def _on_done(self, row: Row, event: Event) -> None:
        row.state, row.finished = "done", time.monotonic()

    def _on_waits(self, row: Row, event: Event) -> None:
        row.state = "asks people"
        self._line(f"{row.label}: waits for {event.values['missing']} of {event.values['asked']} answers")

    def _on_failed(self, row: Row, event: Event) -> None:
        final = event.values.get("final", True)
        again = "" if final else " (trying again)"
        row.state, row.finished = "failed", time.monotonic() if final else None
        self._line(f"{row.label}: FAILED{again}: {event.values['message']}")

    def _left(self) -> str:
        """Distinct stages done, and the time left at the pace of those that were trained now."""
        done, counted = len(self._stages_done), f"{len(self._stages_done)} of {len(self._stages)} stages"
        if not self.computed_fits or done == len(self._stages):
            return counted
        left = (time.monotonic() - self._start) / self.computed_fits * (len(self._stages) - done)
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


STYLES = {"failed": "bold red", "done": "green", "training": "bold", "waiting": "dim", "asks people": "yellow"}


def _cells(row: Row) -> list[Text | str]:
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


def _pixels(budget: int | str) -> str:
    return "full supervision" if budget == "full" else f"{budget} px"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
