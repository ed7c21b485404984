"""Progress of a search: running and best samples on a terminal, plain lines in a log."""

import time
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from pixelpick_ray.events import (
    ChainDone,
    ChainFailed,
    Diverged,
    EpochDone,
    Event,
    FitResumed,
    FitTrained,
    LevelReached,
    PixelsPicked,
    SampleStopped,
    StageDone,
)
from pixelpick_ray.runner.progress import Shown, clock
from pixelpick_ray.search.design import Search
from pixelpick_ray.search.journal import Journal, Sample
from pixelpick_ray.search.overview import SHOWN, state_line, values_text


@dataclass
class SampleRow:
    """State of a running sample."""

    state: str = "starting"
    scores: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)


class SearchProgress(Shown):
    """Listens to events and shows them; use as a context manager around a run."""

    def __init__(self, search: Search, journal: Journal, console: Console) -> None:
        super().__init__(console)
        self._search, self._journal = search, journal
        self._running: dict[str, SampleRow] = {}

    def __call__(self, event: Event) -> None:
        """Process one event."""
        row = self._running.setdefault(event.chain, SampleRow())
        match event:
            case EpochDone() | FitResumed():
                row.state = f"stage {event.stage}, epoch {event.epoch}/{event.epochs}"
            case FitTrained():
                self.num_trained += 1
            case StageDone():
                row.state = f"stage {event.stage} stored"
            case PixelsPicked():
                row.state = f"stage {event.stage} picked"
            case LevelReached():
                self._show_level(row, event)
            case SampleStopped():
                self._end(event, f"stopped early by {event.why}")
            case Diverged():
                self._end(event, f"DIVERGED: {event.message}")
            case ChainFailed():
                again = "" if event.final else " (trying again)"
                self._end(event, f"FAILED{again}: {event.message}")
            case ChainDone():
                self._running.pop(event.chain)
                self._line(state_line(self._search, self._journal, alive=True))

    def _show_level(self, row: SampleRow, event: LevelReached) -> None:
        row.scores.append(event.score)
        how = "" if event.computed else ", from the store"
        values = values_text(self._sample(event.chain).values)
        self._line(f"{event.chain} ({values}): {event.level}: {100 * event.score:.1f} %{how}")

    def _end(self, event: Event, why: str) -> None:
        self._running.pop(event.chain)
        self._line(f"{event.chain}: {why}")

    def _sample(self, name: str) -> Sample:
        return self._journal.samples[int(name.rpartition(" ")[2])]

    def _render(self) -> Group:
        title = Text(self._search.experiment.title or self._search.experiment.name, style="table.title")
        table = Table(box=None, pad_edge=False, title=title, title_justify="left")
        for name in ("sample", "state", "score % by level", "time", "configuration"):
            table.add_column(name)
        for name, row in self._running.items():
            self._add(table, name, row.state, row.scores, clock(time.monotonic() - row.started))
        finished = [one for one in self._journal.samples if self._journal.is_finished(one)]
        for one in sorted(finished, key=lambda one: -one.reports[-1].score)[:SHOWN]:
            self._add(table, one.label, "finished", [report.score for report in one.reports], "")
        passed = clock(time.monotonic() - self._start)
        return Group(
            table, Text(f"{passed} so far, {state_line(self._search, self._journal, alive=True)}", style="dim")
        )

    def _add(self, table: Table, name: str, state: str, scores: list[float], passed: str) -> None:
        values = self._journal.samples[int(name.rpartition(" ")[2])].values
        shown = "  ".join(f"{100 * score:.1f}" for score in scores)
        table.add_row(
            name, Text(state, style="green" if state == "finished" else "bold"), shown, passed, values_text(values)
        )
