"""What the parts of the program tell each other through the store: how far chains are, and what experiments asked for.

>>> record = read_chain(store, experiment, trial.chain_id)
>>> record.stages[-1].fit
"""

from typing import Any

from pydantic import BaseModel

from pixelpick_ray.config import parts
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.spec import Spec
from pixelpick_ray.config.trial import Budget
from pixelpick_ray.store import paths
from pixelpick_ray.store.results import Store


class StageRecord(Spec):
    """The keys of one stage: its fit, the evaluations of it by split, and the pick after it, None before it is made."""

    budget: Budget
    fit: str
    evaluations: dict[str, str]
    pick: str | None = None


class DescriptionKeys(Spec):
    """The keys of what is stored of the images of a chain: those that are trained on, and each evaluated split."""

    training: str
    evaluated: dict[str, str]


class AskRecord(Spec):
    """What a chain has asked people and waits for: the keys of its questions, of the pick that they become, and of the
    book that the answers are written into. `budget` is that which the answers lead to.
    """

    pick: str
    book: str
    budget: int
    questions: tuple[str, ...]


class DivergedRecord(Spec):
    """A fit, by its key, that has no result, for its loss was no number any more: in which stage, and what was said."""

    fit: str
    stage: int
    message: str


class ChainRecord(Spec):
    """How far a chain has come: enough for a report, which needs neither data nor torch.

    `trial` is the chain's trial without its budget. Where people are asked, `book` is the key of their answers and
    `questions` are those of all that they were asked.
    """

    trial: dict[str, Any]
    full: bool
    class_names: tuple[str, ...]
    num_images: int
    pixels_per_image: float
    source: Source
    stages: tuple[StageRecord, ...] = ()
    initial: str | None = None
    descriptions: DescriptionKeys | None = None
    book: str | None = None
    questions: tuple[str, ...] = ()
    asks: AskRecord | None = None
    diverged: DivergedRecord | None = None

    @property
    def picks(self) -> tuple[str | None, ...]:
        """The keys of the first pixels, and of the pick after each stage."""
        return (self.initial, *(stage.pick for stage in self.stages))

    @property
    def training_description(self) -> str | None:
        """The key of what is stored of the training images."""
        return None if self.descriptions is None else self.descriptions.training

    def evaluated_description(self, split: str) -> str | None:
        """The key of what is stored of an evaluated split."""
        return None if self.descriptions is None else self.descriptions.evaluated.get(split)


class FitProvenance(BaseModel):
    """What is told of where and how a fit was made: here, how long it took."""

    seconds: float


class DataWarnings(Spec):
    """What was probably wrong with the data of an experiment when it was run last, a line each."""

    warnings: tuple[str, ...]


class ExperimentRecord(Spec):
    """What was run under a name: the effective experiment, and the digests of its trials."""

    experiment: dict[str, Any]
    trials: tuple[str, ...]


def as_stored(store: Store, experiment: Experiment) -> Experiment:
    """The experiment as it was begun: one that is stored from before there was `model.normalise`, and whose file says
    nothing of it, keeps what that meant then.
    """
    older = experiment.before_normalise
    if older is None:
        return experiment
    found = [
        store.find_record(paths.experiment_record(paths.experiment_folder(one)), ExperimentRecord) is not None
        for one in (experiment, older)
    ]
    return older if found == [False, True] else experiment


class SourceRecord(Spec):
    """The source of a part that came from a file: its files by path, and which of them was named."""

    main: str
    files: dict[str, str]


def write_source(store: Store, code: parts.Code) -> None:
    """Keep a source beside the results that it made."""
    record = SourceRecord(main=code.main, files=dict(code.files))
    store.write_record(paths.source(code.digest), record.model_dump(mode="json"))


def read_source(store: Store, name: str) -> None:
    """Know the source of a part's resolved name again, if it is stored."""
    record = store.find_record(paths.source(name.rpartition("@")[2]), SourceRecord)
    if record is not None and record.main in record.files:
        first = (record.main, record.files[record.main])
        code = parts.Code((first, *((path, text) for path, text in record.files.items() if path != record.main)))
        parts.install(parts.Shipment({code.digest: code}, {}))


def read_chain(store: Store, experiment: Experiment, chain: str) -> ChainRecord | None:
    """The record of a chain of an experiment; None when it never ran, or when its record is damaged (the store's
    `damaged` names it, and the next run makes it again).
    """
    return store.find_record(paths.chain_record(experiment, chain), ChainRecord)


def read_diverged(store: Store, fit_key: str) -> DivergedRecord | None:
    """What is known of a training that has diverged before; None of any other."""
    return store.find_record(paths.diverged(fit_key), DivergedRecord)


def write_diverged(store: Store, record: DivergedRecord) -> None:
    """Record that a training has diverged, so that nobody repeats it."""
    store.write_record(paths.diverged(record.fit), record.model_dump(mode="json"))


def write_chain(store: Store, experiment: Experiment, chain: str, record: ChainRecord) -> None:
    """Replace the record of a chain."""
    store.write_record(paths.chain_record(experiment, chain), record.model_dump(mode="json"))
