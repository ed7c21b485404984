"""Progress that a person likes: a live table on a terminal, plain lines in a log, and TensorBoard files."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pixelpick_ray.data.cache import prepare
from pixelpick_ray.data.datasets import DatasetFacts, open_dataset, training_split
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.loop import Event
from pixelpick_ray.plan import Chain, Plan
from pixelpick_ray.spec.execution import Execution
from pixelpick_ray.store import Store


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


class Progress:
    """Listens to events and shows them; use as a context manager around a run."""

    def __init__(
        self, plan: Plan, chains: list[Chain], console: Console, listeners: list[Callable[[Event], None]]
    ) -> None:
        self._rows = {chain.id: Row(chain.label, len(chain.fits)) for chain in chains}
        self._plan, self._console, self._listeners = plan, console, listeners
        self._start = time.monotonic()
        self._fits = {chain.id: chain.fits for chain in chains}
        self._stages = {fit for chain in chains for fit in chain.fits}
        self._stages_done: set[str] = set()
        self.computed_fits = 0
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=2, transient=False)

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._console.is_terminal:
            self._live.stop()

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

    def _on_stage(self, row: Row, event: Event) -> None:
        row.state, row.stage, row.budget = "stored", event.stage, event.values["budget"]
        row.mious[event.stage] = event.values["miou"]
        self.computed_fits += event.computed
        self._stages_done.add(self._fits[event.chain][event.stage])
        how = "trained" if event.computed else "from the store"
        self._line(
            f"{row.label}: {_pixels(row.budget)}: mIoU {100 * event.values['miou']:.1f} % ({how}), {self._left()}"
        )

    def _on_pick(self, row: Row, event: Event) -> None:
        row.state = "picked"

    def _on_done(self, row: Row, event: Event) -> None:
        row.state, row.finished = "done", time.monotonic()

    def _on_failed(self, row: Row, event: Event) -> None:
        final = event.values.get("final", True)
        again = "" if final else " (trying again)"
        row.state, row.finished = "failed", time.monotonic() if final else None
        self._line(f"{row.label}: FAILED{again}: {event.values['message']}")

    def _line(self, text: str) -> None:
        if self._console.is_terminal:
            return
        self._console.print(
            f"[{_clock(time.monotonic() - self._start)}] {text}", markup=False, highlight=False, soft_wrap=True
        )

    def _left(self) -> str:
        """Distinct stages done, and the time left at the pace of those that were trained now."""
        done, counted = len(self._stages_done), f"{len(self._stages_done)} of {len(self._stages)} stages"
        if not self.computed_fits or done == len(self._stages):
            return counted
        left = (time.monotonic() - self._start) / self.computed_fits * (len(self._stages) - done)
        return f"{counted}, about {_clock(left)} left"

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
        return Group(table, Text(f"{_clock(time.monotonic() - self._start)} so far, {self._left()}", style="dim"))


STYLES = {"failed": "bold red", "done": "green", "training": "bold", "waiting": "dim"}


def _cells(row: Row) -> list[Text | str]:
    seconds = (row.finished or time.monotonic()) - row.started if row.started else None
    return [
        row.label,
        Text(row.state, style=STYLES.get(row.state, "")),
        f"{row.stage + 1}/{row.stages}" if row.started else "",
        row.epoch,
        f"{row.loss:.3f}" if row.loss is not None else "",
        "  ".join(f"{100 * value:.1f}" for _, value in sorted(row.mious.items())),
        _clock(seconds) if seconds is not None else "",
    ]


def _pixels(budget: int | str) -> str:
    return "full supervision" if budget == "full" else f"{budget} px"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class TensorBoard:
    """Writes loss, mIoU by budget and pictures with the picked pixels under ``runs/<experiment>/<chain>``."""

    def __init__(self, plan: Plan, execution: Execution) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: planning and reporting never need it

        self._plan, self._execution = plan, execution
        self._chains = {chain.id: chain for chain in plan.chains}
        self._store = Store(execution.store_path)
        self._make = SummaryWriter
        self._writers: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Write what an event carries."""
        chain = self._chains[event.chain]
        if event.kind == "stage":
            self._write_stage(chain, event)
        elif event.kind == "pick":
            labels = LabelledPixels.read(self._store.folder("pick", event.values["pick"]) / "pixels.npz")
            for name, picture in picked_pictures(self._plan, chain, labels, self._execution).items():
                self._writer(chain).add_image(f"picked/{name}", picture, event.stage + 1, dataformats="HWC")

    def _write_stage(self, chain: Chain, event: Event) -> None:
        writer, losses = self._writer(chain), event.values["losses"]
        for epoch, loss in enumerate(losses):
            writer.add_scalar("loss", loss, event.stage * len(losses) + epoch + 1)
        budget = event.values["budget"]
        writer.add_scalar("miou_by_budget", event.values["miou"], 0 if budget == "full" else budget)
        writer.flush()

    def _writer(self, chain: Chain) -> Any:
        if chain.id not in self._writers:
            folder = (
                self._execution.runs_path
                / self._plan.experiment.name
                / f"{re.sub(r'[^A-Za-z0-9._=-]+', '-', chain.label)[:120]}-{chain.id[:8]}"
            )
            self._writers[chain.id] = self._make(str(folder))
        return self._writers[chain.id]

    def close(self) -> None:
        """Finish the files."""
        for writer in self._writers.values():
            writer.close()


def picked_pictures(
    plan: Plan, chain: Chain, labels: LabelledPixels, execution: Execution, count: int = 4
) -> dict[str, Any]:
    """A few training images, enlarged, with their picked pixels as dots in the colour of their class, (H, W, 3)
    uint8 by name.
    """
    spec = chain.trial.dataset
    dataset = open_dataset(spec, execution.data_path)
    prepared = prepare(dataset, training_split(dataset, spec), spec, execution.cache_path)
    shown = [labels.names[at] for at in np.unique(np.linspace(0, len(labels.names) - 1, num=count, dtype=int))]
    return {
        Path(name).stem: _dotted(prepared.image(prepared.index[name]), labels, name, dataset.facts) for name in shown
    }


def _dotted(image: Any, labels: LabelledPixels, name: str, facts: DatasetFacts) -> Any:
    factor = max(1, round(480 / max(image.shape)))
    picture = Image.fromarray(np.asarray(image)).resize(
        (image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.NEAREST
    )
    pen = ImageDraw.Draw(picture)
    at = labels.of_image(name)
    for y, x, label in zip(labels.y[at], labels.x[at], labels.label[at], strict=True):
        centre = ((int(x) + 0.5) * factor, (int(y) + 0.5) * factor)
        pen.circle(centre, 6, fill=facts.palette[int(label)], outline=(255, 255, 255), width=2)
    return np.asarray(picture)
