"""What is known of the samples of a search: a record each in the store, written before anything depends on it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from pixelpick_ray.errors import StoreError
from pixelpick_ray.search.design import Search
from pixelpick_ray.store import Store, paths

NAME_DIGITS = 5  # of a sample's number in the name of its record
OWN = "file"  # the origin of the file's own configuration, with which others are compared


@dataclass(frozen=True)
class LevelReport:
    """What was measured of a sample at a level: the score that it is judged by, and mIoU by seed.

    ``fits`` are the keys of the trainings up to there, in order, by seed, at an epoch's level the unfinished one too;
    ``seconds`` what they took in all.
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
        """A report from its fields as JSON has them."""
        fits = {seed: tuple(keys) for seed, keys in tree["fits"].items()}
        return cls(tree["score"], tree["mious"], fits, tree["seconds"])


@dataclass(frozen=True)
class Sample:
    """A configuration that was issued, and what became of it.

    ``origin`` says who proposed it. It was stopped by a scheduler after its last report if ``stopped`` says why; it
    failed if ``error`` says how. If ``diverged`` says how, a training of it has no result: it is worse than all others.
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
        """A short name for people."""
        return f"sample {self.index}"

    @property
    def is_own(self) -> bool:
        """Whether it is the file's own configuration."""
        return self.origin == OWN


class Journal:
    """The samples of a search. One process writes it at a time; any number may read.

    `samples` are as the journal was opened, and as this process has gone on with it since. `trouble` is why a record
    could not be written: who calls may bury the error that says so.
    """

    def __init__(self, store: Store, search: Search) -> None:
        """Open it. A sample whose record is damaged or lost is another one, by chance, that nothing is known of yet."""
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
                self._store.note_damage({path: "is missing, and later samples are there"})
            values = self._search.drawn(index)
            return Sample(index, values, OWN if index == 0 and values == self._search.own_values else "random")
        return found

    def _parsed(self, index: int, tree: dict[str, Any]) -> Sample:
        values = dict(sorted(tree["values"].items(), key=lambda item: self._place(item[0])))
        sample = Sample(**{**tree, "values": values, "reports": tuple(map(LevelReport.of, tree["reports"]))})
        if sample.index != index:
            raise ValueError("it is of another sample")
        return sample

    def _place(self, path: str) -> int:
        """Where a setting stands in the space: records are sorted by name."""
        return self._paths.index(path) if path in self._paths else len(self._paths)

    def issue(self, values: Mapping[str, Any], origin: str) -> Sample:
        """Record a new sample, before anything of it starts."""
        return self._write(Sample(len(self.samples), dict(values), origin))

    def report(self, index: int, report: LevelReport) -> Sample:
        """Record what was measured at the next level of a sample."""
        return self._write(replace(self.samples[index], reports=(*self.samples[index].reports, report), error=""))

    def stop(self, index: int, why: str) -> Sample:
        """Record that a scheduler has stopped a sample after its last report."""
        return self._write(replace(self.samples[index], stopped=why))

    def diverge(self, index: int, how: str) -> Sample:
        """Record that a training of a sample has diverged, which repeating it would not change."""
        return self._write(replace(self.samples[index], diverged=how, error=""))

    def fail(self, index: int, error: str) -> Sample:
        """Record that a sample has failed for good."""
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
        """Whether a sample was judged at every level."""
        return len(sample.reports) >= self._num_levels

    def is_over(self, sample: Sample) -> bool:
        """Whether nothing is left to do for a sample: it is finished, was stopped, or has diverged."""
        return self.is_finished(sample) or bool(sample.stopped or sample.diverged)

    def is_complete(self, size: int) -> bool:
        """Whether as many samples as that are over, and none is not."""
        return len(self.samples) >= size and all(map(self.is_over, self.samples))

    def is_settled(self, size: int) -> bool:
        """As `is_complete`, where a sample may have failed for good, too."""
        return len(self.samples) >= size and all(self.is_over(one) or one.error for one in self.samples)

    def best(self) -> Sample | None:
        """The finished sample with the highest score, the earlier one of equals; None when none is finished."""
        finished = [sample for sample in self.samples if self.is_finished(sample)]
        return max(finished, key=lambda sample: (sample.reports[-1].score, -sample.index), default=None)


def _name(index: int) -> str:
    """Of a sample's record."""
    return f"{index:0{NAME_DIGITS}d}"
