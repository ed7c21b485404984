"""Journal of a search: one record per sample in the store, written before anything depends on it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from pixelpick_ray.errors import StoreError
from pixelpick_ray.search.design import Search
from pixelpick_ray.store import Store, paths

NAME_DIGITS = 5  # digits of a sample's number in its record's name
OWN = "file"  # origin of the file's own configuration, the baseline


@dataclass(frozen=True)
class LevelReport:
    """Measurements of a sample at a level: its score, and mIoU (0 to 1) by seed.

    ``fits`` are the keys of the trainings so far, in order, by seed, including the unfinished one at an epoch's level;
    ``seconds`` is their total time.
    """

    score: float
    mious: Mapping[str, float]
    fits: Mapping[str, tuple[str, ...]]
    seconds: float

    @property
    def miou(self) -> float:
        """Mean over the seeds."""
        return sum(self.mious.values()) / len(self.mious)

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "LevelReport":
        """Build a report from its JSON fields."""
        fits = {seed: tuple(keys) for seed, keys in tree["fits"].items()}
        return cls(tree["score"], tree["mious"], fits, tree["seconds"])


@dataclass(frozen=True)
class Sample:
    """A configuration being tried, and what became of it.

    ``origin`` says who proposed it. If not empty, ``stopped`` says why a scheduler stopped it after its last report,
    ``error`` how it failed, and ``diverged`` how a training diverged, which ranks it below all others.
    """

    index: int
    values: Mapping[str, Any]
    origin: str
    reports: tuple[LevelReport, ...] = ()
    stopped: str = ""
    error: str = ""
    diverged: str = ""

    @property
    def label(self) -> str:
        """Short name for display."""
        return f"sample {self.index}"

    @property
    def is_own(self) -> bool:
        """Whether it is the file's own configuration."""
        return self.origin == OWN


class Journal:
    """The samples of a search. One process writes at a time; any number may read.

    `samples` are those read on opening, with this process's changes since. `trouble` is why a record could not be
    written, in case a caller swallows the error.
    """

    def __init__(self, store: Store, search: Search) -> None:
        """Read all records. A damaged or lost one is replaced by a drawn configuration without any reports."""
        self._store, self._search = store, search
        self.trouble: StoreError | None = None
        self._folder = paths.samples(search.experiment)
        self._num_levels, self._paths = len(search.levels), list(search.spec.space)
        names = {name for name in store.records(self._folder) if name.isdecimal() and len(name) == NAME_DIGITS}
        self.samples = [self._read(index) for index in range(1 + max(map(int, names), default=-1))]

    def _read(self, index: int) -> Sample:
        path = paths.record(self._folder, _name(index))
        found = self._store.parse_record(path, partial(self._parsed, index))
        if found is None:
            if path not in self._store.damage:
                self._store.note_damage({path: "is missing, although later samples exist"})
            values = self._search.drawn(index)
            return Sample(index, values, OWN if index == 0 and values == self._search.own_values else "random")
        return found

    def _parsed(self, index: int, tree: dict[str, Any]) -> Sample:
        values = dict(sorted(tree["values"].items(), key=lambda item: self._place(item[0])))
        sample = Sample(**{**tree, "values": values, "reports": tuple(map(LevelReport.of, tree["reports"]))})
        if sample.index != index:
            raise ValueError("its index is that of another sample")
        return sample

    def _place(self, path: str) -> int:
        """Position of a setting in the space; in records, settings are sorted by name."""
        return self._paths.index(path) if path in self._paths else len(self._paths)

    def issue(self, values: Mapping[str, Any], origin: str) -> Sample:
        """Record a new sample before it starts."""
        return self._write(Sample(len(self.samples), dict(values), origin))

    def report(self, index: int, report: LevelReport) -> Sample:
        """Record the measurements of a sample's next level."""
        return self._write(replace(self.samples[index], reports=(*self.samples[index].reports, report), error=""))

    def stop(self, index: int, why: str) -> Sample:
        """Record that a scheduler stopped a sample after its last report."""
        return self._write(replace(self.samples[index], stopped=why))

    def diverge(self, index: int, how: str) -> Sample:
        """Record that a training of a sample diverged, as it would again if repeated."""
        return self._write(replace(self.samples[index], diverged=how, error=""))

    def fail(self, index: int, error: str) -> Sample:
        """Record that a sample failed for good."""
        return self._write(replace(self.samples[index], error=error))

    def _write(self, sample: Sample) -> Sample:
        try:
            self._store.write_record(paths.record(self._folder, _name(sample.index)), asdict(sample))
        except StoreError as error:
            self.trouble = error
            raise
        self.samples[sample.index : sample.index + 1] = [sample]
        return sample

    def is_finished(self, sample: Sample) -> bool:
        """Whether a sample was scored at every level."""
        return len(sample.reports) >= self._num_levels

    def is_over(self, sample: Sample) -> bool:
        """Whether a sample needs no more work: it is finished, was stopped, or diverged."""
        return self.is_finished(sample) or bool(sample.stopped or sample.diverged)

    def is_complete(self, size: int) -> bool:
        """Whether there are at least `size` samples, all of them over."""
        return len(self.samples) >= size and all(map(self.is_over, self.samples))

    def is_settled(self, size: int) -> bool:
        """Like `is_complete`, but samples may also have failed for good."""
        return len(self.samples) >= size and all(self.is_over(one) or one.error for one in self.samples)

    def best(self) -> Sample | None:
        """Return the finished sample with the highest score, the earliest if tied; None if none is finished."""
        finished = [sample for sample in self.samples if self.is_finished(sample)]
        return max(finished, key=lambda sample: (sample.reports[-1].score, -sample.index), default=None)


def _name(index: int) -> str:
    """Name of a sample's record."""
    return f"{index:0{NAME_DIGITS}d}"
