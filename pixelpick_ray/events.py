"""Events that chains and samples report while running; ``chain`` is the chain's identity or the sample's label."""

import json
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from pixelpick_ray.config.trial import Budget


@dataclass(frozen=True)
class Event:
    """Something that happened to a chain."""

    chain: str


@dataclass(frozen=True)
class StageEvent(Event):
    """Something that happened in a stage, numbered from 0."""

    stage: int


@dataclass(frozen=True)
class FitResumed(StageEvent):
    """A training begun by another process resumes after this epoch, numbered from 1."""

    epoch: int
    epochs: int


@dataclass(frozen=True)
class EpochDone(StageEvent):
    """An epoch, numbered from 1, has been trained.

    `miou` is for the reported split, None if it was not measured; `seconds` is for the training so far.
    """

    epoch: int
    epochs: int
    loss: float
    miou: float | None
    seconds: float
    fit: str


@dataclass(frozen=True)
class FitTrained(StageEvent):
    """A training has finished and is stored: a fit's first one, or a repetition for weights or measurements."""

    fit: str


@dataclass(frozen=True)
class StageDone(StageEvent):
    """A stage is stored and measured: newly `trained` or not. `miou` is for the reported split after the last epoch."""

    trained: bool
    budget: Budget
    fit: str
    miou: float
    miou_by_epoch: tuple[tuple[int, float], ...]
    losses: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class PixelsPicked(StageEvent):
    """The pixels picked after a stage are labelled and stored under the key `pick`; `computed` if they are new."""

    computed: bool
    pick: str


@dataclass(frozen=True)
class AnswersAwaited(StageEvent):
    """The chain pauses until people have given the `missing` of the `asked` answers."""

    missing: int
    asked: int


@dataclass(frozen=True)
class ChainDone(Event):
    """Everything that the chain asks for is stored."""


@dataclass(frozen=True)
class ChainFailed(Event):
    """The chain or sample failed: for good if `final`; otherwise it will be retried."""

    message: str
    final: bool


@dataclass(frozen=True)
class Diverged(StageEvent):
    """The chain or sample ends here for good, because the training of this stage diverged as `message` says."""

    message: str


@dataclass(frozen=True)
class LevelReached(Event):
    """A sample was scored at a level; `computed` if the score is new."""

    level: str
    score: float
    seconds: float
    computed: bool


@dataclass(frozen=True)
class SampleStopped(Event):
    """A scheduler stopped a sample early."""

    why: str


_KINDS = {
    kind.__name__: TypeAdapter(kind)
    for kind in (
        *(FitResumed, EpochDone, FitTrained, StageDone, PixelsPicked, AnswersAwaited),
        *(ChainDone, ChainFailed, Diverged, LevelReached, SampleStopped),
    )
}


def encode(event: Event) -> str:
    """Serialise an event as JSON, for another process."""
    return json.dumps({"kind": type(event).__name__} | asdict(event))


def decode(text: str) -> Event:
    """Restore the event from the text that `encode` returned."""
    fields = json.loads(text)
    return _KINDS[fields.pop("kind")].validate_python(fields)
