"""What chains and samples report while they run: one frozen class each. ``chain`` is the identity of the chain, or the
label of the sample.
"""

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
    """A training that another process had begun goes on after an epoch, numbered from 1."""

    epoch: int
    epochs: int


@dataclass(frozen=True)
class EpochDone(StageEvent):
    """An epoch, numbered from 1, is trained. `miou` is that of the reported split, None where it was not measured;
    `seconds` are those of the training so far.
    """

    epoch: int
    epochs: int
    loss: float
    miou: float | None
    seconds: float
    fit: str


@dataclass(frozen=True)
class FitTrained(StageEvent):
    """A training is finished and stored, be it the first of its fit, or one for its weights or for measurements."""

    fit: str


@dataclass(frozen=True)
class StageDone(StageEvent):
    """A stage is stored and measured. `miou` is that of the reported split after the last epoch; `trained` says whether
    it was trained now.
    """

    trained: bool
    budget: Budget
    fit: str
    miou: float
    miou_by_epoch: tuple[tuple[int, float], ...]
    losses: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class PixelsPicked(StageEvent):
    """The pixels after a stage are labelled and stored under the key `pick`; `computed` says whether they are new."""

    computed: bool
    pick: str


@dataclass(frozen=True)
class AnswersAwaited(StageEvent):
    """The chain ends here until people have given the `missing` of the `asked` answers."""

    missing: int
    asked: int


@dataclass(frozen=True)
class ChainDone(Event):
    """Everything is stored."""


@dataclass(frozen=True)
class ChainFailed(Event):
    """It failed, for good if `final`, else to be tried again."""

    message: str
    final: bool


@dataclass(frozen=True)
class Diverged(StageEvent):
    """The chain or sample ends here for good, for this stage cannot be trained: `message` says how its loss went."""

    message: str


@dataclass(frozen=True)
class LevelReached(Event):
    """A sample was judged at a level; `computed` says whether that is new."""

    level: str
    score: float
    seconds: float
    computed: bool


@dataclass(frozen=True)
class SampleStopped(Event):
    """A scheduler has stopped a sample."""

    why: str


_KINDS = {
    kind.__name__: TypeAdapter(kind)
    for kind in (
        *(FitResumed, EpochDone, FitTrained, StageDone, PixelsPicked, AnswersAwaited),
        *(ChainDone, ChainFailed, Diverged, LevelReached, SampleStopped),
    )
}


def encode(event: Event) -> str:
    """An event as text, for another process."""
    return json.dumps({"kind": type(event).__name__} | asdict(event))


def decode(text: str) -> Event:
    """The event that `encode` was given."""
    fields = json.loads(text)
    return _KINDS[fields.pop("kind")].validate_python(fields)
