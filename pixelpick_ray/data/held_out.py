"""Images held out of training: a fixed fraction of the training split becomes a separate split."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pixelpick_ray.config.trial import DatasetSpec
from pixelpick_ray.data.dataset import Dataset, DatasetFacts, ReportBytes, UInt8Array
from pixelpick_ray.errors import DataError, SpecError

HELD_OUT = "held_out"


class HeldOut(Dataset):
    """A data set with some training images moved to the split ``held_out``; other splits are unchanged.

    Those are the first training names in order of SHA-256, so they do not depend on the seed, and those of a smaller
    share are a subset of those of a larger one.
    """

    def __init__(self, whole: Dataset, share: float) -> None:
        """Divide the training split of `whole`, without reading images. SpecError as in `facts_with_held_out`."""
        super().__init__(whole.spec, whole.data_path)
        self.facts = facts_with_held_out(whole.facts, whole.spec)
        self._whole, self._share = whole, share
        self._training = whole.spec.split or whole.facts.train_split

    def fetch(self, report: ReportBytes) -> None:
        self._whole.fetch(report)

    @property
    def code(self) -> list[Any]:
        return self._whole.code

    def identity(self, split: str) -> list[Any]:
        """As the data set's; only ``held_out`` is marked, since the fingerprint includes the names of a split."""
        if split == HELD_OUT:
            return [*self._whole.identity(self._training), HELD_OUT]
        return self._whole.identity(split)

    def has_labels(self, split: str) -> bool:
        return self._whole.has_labels(self._source(split))

    def names(self, split: str) -> tuple[str, ...]:
        """As the data set's; DataError also if fewer than two images would remain for training."""
        if split not in (self._training, HELD_OUT):
            return self._whole.names(split)
        names = self._whole.names(self._training)
        held_out = self._first(names)
        return tuple(name for name in names if (name in held_out) == (split == HELD_OUT))

    def signature(self, split: str) -> list[list[str | int]]:
        """The signature of the whole training split plus the names, so that whole and parts differ."""
        if split not in (self._training, HELD_OUT):
            return self._whole.signature(split)
        return [*self._whole.signature(self._training), [split, *self.names(split)]]

    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        return self._whole.read(self._source(split), name)

    def files(self, split: str, name: str) -> tuple[Path, ...]:
        return self._whole.files(self._source(split), name)

    def left_out(self, split: str) -> Sequence[str]:
        return () if split == HELD_OUT else self._whole.left_out(split)

    def file_name(self, split: str, name: str) -> str:
        return self._whole.file_name(self._source(split), name)

    def native_size(self, split: str, name: str) -> tuple[int, int]:
        return self._whole.native_size(self._source(split), name)

    def _source(self, split: str) -> str:
        """The split of the whole data set that contains the images of this one."""
        return self._training if split == HELD_OUT else split

    def _first(self, names: tuple[str, ...]) -> frozenset[str]:
        """The names to hold out."""
        number = max(1, round(self._share * len(names)))
        if len(names) - number < 2:
            raise DataError(
                f"dataset.held_out: {self._share:g} of the {len(names)} images of {self.facts.name} {self._training} "
                f"leaves {len(names) - number} for training, but batch norm needs at least 2; lower it, add images, "
                "or leave it out"
            )
        return frozenset(sorted(names, key=_order)[:number])


def facts_with_held_out(facts: DatasetFacts, spec: DatasetSpec) -> DatasetFacts:
    """The facts of a data set, with the split ``held_out`` added if its spec holds images out.

    Raises SpecError if the data set already has a split of this name, or if that is the split to train on.
    """
    if spec.held_out is None:
        return facts
    if HELD_OUT in facts.splits:
        raise SpecError(
            f"dataset.held_out: {facts.name} already has a split {HELD_OUT!r}; leave dataset.held_out out to use it, "
            "or rename it"
        )
    if spec.split == HELD_OUT:
        raise SpecError(
            f"dataset.split: {HELD_OUT!r} is the split created by dataset.held_out; give the split it is taken from, "
            f"one of {', '.join(facts.splits)}"
        )
    return replace(facts, splits=(*facts.splits, HELD_OUT))


def _order(name: str) -> bytes:
    # Names that are not valid Unicode are rejected with their paths when the split is prepared, not here.
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
