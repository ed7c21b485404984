"""Records in the store: the progress of chains, and what experiments were run.

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
    """Keys of one stage: its fit, the fit's evaluations by split, and the pick after it, None before it is made."""

    budget: Budget
    fit: str
    evaluations: dict[str, str]
    pick: str | None = None


class DescriptionKeys(Spec):
    """Keys of the descriptions of a chain's images: those of the training set and of each evaluated split."""

    training: str
    evaluated: dict[str, str]


class AskRecord(Spec):
    """Answers that a chain waits for: the keys of its questions, of the pick they lead to, and of the book of answers.

    `budget` is the number of labelled pixels per image once they are answered.
    """

    pick: str
    book: str
    budget: int
    questions: tuple[str, ...]


class DivergedRecord(Spec):
    """A fit, by its key, that diverged: its stage, and the error message."""

    fit: str
    stage: int
    message: str


class ChainRecord(Spec):
    """Progress of a chain, sufficient for reports, which need neither data nor torch.

    `trial` is the chain's trial without its budget. If people are asked, `book` is the key of their answers and
    `questions` are the keys of all questions put to them.
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
        """Keys of the first pixels and of the pick after each stage."""
        return (self.initial, *(stage.pick for stage in self.stages))

    @property
    def training_description(self) -> str | None:
        """Key of the description of the training images."""
        return None if self.descriptions is None else self.descriptions.training

    def evaluated_description(self, split: str) -> str | None:
        """Return the key of the description of an evaluated split."""
        return None if self.descriptions is None else self.descriptions.evaluated.get(split)


class FitProvenance(BaseModel):
    """The part of a fit's provenance that is read back: how long it took."""

    seconds: float


class DataWarnings(Spec):
    """Data warnings of an experiment's last run, one line each."""

    warnings: tuple[str, ...]


class ExperimentRecord(Spec):
    """What was run under a name: the effective experiment and the digests of its trials."""

    experiment: dict[str, Any]
    trials: tuple[str, ...]


def as_stored(store: Store, experiment: Experiment) -> Experiment:
    """Return the experiment as first run: if that was before `model.normalise` existed, keep the old meaning."""
    older = experiment.before_normalise
    if older is None:
        return experiment
    found = [
        store.find_record(paths.experiment_record(paths.experiment_folder(one)), ExperimentRecord) is not None
        for one in (experiment, older)
    ]
    return older if found == [False, True] else experiment


class SourceRecord(Spec):
    """Source of a part loaded from a file: its files by path, and the main one."""

    main: str
    files: dict[str, str]


def write_source(store: Store, code: parts.Code) -> None:
    """Store the source of a part along with the results made with it."""
    record = SourceRecord(main=code.main, files=dict(code.files))
    store.write_record(paths.source(code.digest), record.model_dump(mode="json"))


def read_source(store: Store, name: str) -> None:
    """Install the source of a part from the store, by its resolved name, if it is there."""
    record = store.find_record(paths.source(name.rpartition("@")[2]), SourceRecord)
    if record is not None and record.main in record.files:
        first = (record.main, record.files[record.main])
        code = parts.Code((first, *((path, text) for path, text in record.files.items() if path != record.main)))
        parts.install(parts.Shipment({code.digest: code}, {}))


def read_chain(store: Store, experiment: Experiment, chain: str) -> ChainRecord | None:
    """Return the record of a chain; None if it never ran, or if its record is damaged (see `Store.damaged`)."""
    return store.find_record(paths.chain_record(experiment, chain), ChainRecord)


def read_diverged(store: Store, fit_key: str) -> DivergedRecord | None:
    """Return the record of a diverged training, or None."""
    return store.find_record(paths.diverged(fit_key), DivergedRecord)


def write_diverged(store: Store, record: DivergedRecord) -> None:
    """Record that a training diverged, so that it is not repeated."""
    store.write_record(paths.diverged(record.fit), record.model_dump(mode="json"))


def write_chain(store: Store, experiment: Experiment, chain: str, record: ChainRecord) -> None:
    """Replace the record of a chain."""
    store.write_record(paths.chain_record(experiment, chain), record.model_dump(mode="json"))
