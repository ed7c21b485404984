"""Statistics of a data set's images and label maps, and errors and likely mistakes found in them."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt

from pixelpick_ray.config.canonical import counted, digest
from pixelpick_ray.data.cache import PreparedSplit
from pixelpick_ray.data.dataset import DatasetFacts, UInt8Array

VERSION = 1
SIDE = 16  # of the grey thumbnails that are compared, in pixels
# Thresholds for duplicates: root-mean-square difference of thumbnails in grey levels (0..255), and correlation.
SAME_LEVELS, SAME_CORRELATION = 1.0, 0.9995
NEAR_LEVELS, NEAR_CORRELATION = 15.0, 0.98
MUCH_VOID = 0.9
_NAMED = 3  # images listed in a message


@dataclass(frozen=True)
class SplitFacts:
    """Statistics of a split: sizes (N, 2), pixels by label value (256,), grey thumbnails (N, 256), image digests."""

    split: str
    names: tuple[str, ...]
    sizes: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    small: UInt8Array
    digests: tuple[str, ...]
    has_labels: bool = True
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        split: str,
        images: Iterable[tuple[str, UInt8Array, UInt8Array]],
        *,
        has_labels: bool,
        left_out: Sequence[str],
    ) -> Self:
        """Compute facts from (name, image (H, W, 3), label map (H, W))."""
        names, sizes, small, digests = [], [], [], []
        counts = np.zeros(256, dtype=np.int64)
        for name, image, label in images:
            image = np.asarray(image)
            names.append(name)
            sizes.append(label.shape)
            grey = cv2.cvtColor(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
            small.append(grey.ravel())
            digests.append(hashlib.sha256(image.tobytes()).hexdigest()[:16])
            counts += np.bincount(label.ravel(), minlength=256)
        return cls(
            split,
            tuple(names),
            np.asarray(sizes, dtype=np.int64).reshape(-1, 2),
            counts,
            np.asarray(small, dtype=np.uint8).reshape(-1, SIDE * SIDE),
            tuple(digests),
            has_labels,
            tuple(left_out),
        )

    def shares(self, facts: DatasetFacts) -> npt.NDArray[np.float64]:
        """The fraction of all pixels in each class and, last, in void: (C + 1,)."""
        kept = [*self.counts[: facts.num_classes], self.counts[facts.void_index]]
        return np.asarray(kept, dtype=np.float64) / max(1, int(self.counts.sum()))


@dataclass(frozen=True)
class DataFinding:
    """An error in a data set, or a warning of a likely one."""

    is_error: bool
    text: str

    def __str__(self) -> str:
        return f"{'error' if self.is_error else 'warning'}: {self.text}"


def prepared_facts(
    prepared: PreparedSplit, cache_path: Path, *, has_labels: bool, left_out: Sequence[str]
) -> SplitFacts:
    """Facts of a prepared split, cached in the cache folder."""
    identity = digest([VERSION, prepared.fingerprint, prepared.shapes.tolist(), prepared.split])
    path = cache_path / f"facts-{identity[:20]}.json"
    if (kept := _kept(path, identity)) is None:
        images = (
            (name, prepared.image(position), prepared.label(position)) for position, name in enumerate(prepared.names)
        )
        found = SplitFacts.of(prepared.split, images, has_labels=has_labels, left_out=left_out)
        kept = {"counts": found.counts.tolist(), "small": found.small.tolist(), "digests": list(found.digests)}
        _keep(path, identity, kept)
    return SplitFacts(
        prepared.split,
        prepared.names,
        prepared.shapes,
        np.asarray(kept["counts"], dtype=np.int64),
        np.asarray(kept["small"], dtype=np.uint8).reshape(-1, SIDE * SIDE),
        tuple(kept["digests"]),
        has_labels,
        tuple(left_out),
    )


def _kept(path: Path, identity: str) -> dict[str, Any] | None:
    """The cached facts of a split; None if they are missing or damaged."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
        return kept["facts"] if kept["digest"] == digest([identity, kept["facts"]]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, identity: str, facts: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # they are computed again next time
        partial.write_text(json.dumps({"digest": digest([identity, facts]), "facts": facts}), encoding="ascii")
        partial.replace(path)


def find(name: str, facts: DatasetFacts, splits: Sequence[SplitFacts]) -> list[DataFinding]:
    """Find problems with the splits of a data set, given with the training split first; errors come before warnings."""
    labelled = [split for split in splits if split.has_labels]
    found = [finding for split in labelled for finding in _of_split(name, facts, split)]
    if not any(finding.is_error for finding in found):
        found += _of_classes(name, facts, splits, labelled)
    for at, one in enumerate(splits):
        found += [DataFinding(False, f"{name} {one.split}: {line}, left out") for line in one.left_out]
        for other in splits[at + 1 :]:
            found += _of_copies(name, one, other)
    return sorted(found, key=lambda finding: not finding.is_error)


def _of_split(name: str, facts: DatasetFacts, split: SplitFacts) -> list[DataFinding]:
    title, void = f"{name} {split.split}", facts.void_index
    occurring = np.flatnonzero(split.counts[: facts.num_classes])
    if not len(occurring):
        return [
            DataFinding(
                True,
                f"{title}: all pixels of {counted(len(split.names), 'label map')} are void; correct classes: and "
                "void: in dataset.yaml, or the label maps",
            )
        ]
    share = float(split.counts[void]) / int(split.counts.sum())
    if len(occurring) == 1:
        only = facts.class_names[occurring[0]]
        rest = f", and {100 * share:.1f} % is void" if share else ""
        cause = (
            "; if 255 marks the object in masks of 0 and 255, set classes: {background: 0, object: 255} in dataset.yaml"
            if share
            else "; correct the label maps, or the values of the classes"
        )
        return [DataFinding(True, f"{title}: the label maps contain only the class {only!r}{rest}{cause}")]
    if share > MUCH_VOID:
        text = f"{title}: {100 * share:.1f} % of all pixels are void; check that they belong to no class"
        return [DataFinding(False, text)]
    return []


def _of_classes(
    name: str, facts: DatasetFacts, splits: Sequence[SplitFacts], labelled: Sequence[SplitFacts]
) -> list[DataFinding]:
    """Problems with the classes across splits."""
    found = []
    occur = {split.split: split.counts[: facts.num_classes] > 0 for split in labelled}
    nowhere = [at for at in range(facts.num_classes) if not any(classes[at] for classes in occur.values())]
    if labelled and nowhere:
        names = ", ".join(facts.class_names[at] for at in nowhere)
        hint = ""
        if nowhere[0] == 0 and len(nowhere) < facts.num_classes - 1:
            hint = "; if values start at 1, give classes as a mapping in dataset.yaml, NAME: 1 and so on"
        told = ", ".join(split.split for split in labelled)
        found.append(DataFinding(False, f"{name}: no label map of {told} contains {names}{hint}"))
    first = splits[0].split
    for other in [split.split for split in labelled if split.split != first] if first in occur else []:
        if not (occur[first] & occur[other]).any():
            mine, theirs = (
                ", ".join(facts.class_names[at] for at in np.flatnonzero(occur[split])) for split in (first, other)
            )
            found.append(
                DataFinding(
                    True,
                    f"{name}: {first} ({mine}) and {other} ({theirs}) have no class in common; check that "
                    "their label maps use the same values",
                )
            )
        elif lacks := np.flatnonzero(occur[other] & ~occur[first]).tolist():
            names = ", ".join(facts.class_names[at] for at in lacks)
            found.append(
                DataFinding(False, f"{name}: {names} occurs in {other} but not in {first}, the training split")
            )
    return found


def _of_copies(name: str, one: SplitFacts, other: SplitFacts) -> list[DataFinding]:
    """Duplicates and near-duplicates between two splits."""
    if not len(one.names) or not len(other.names) or one.split == other.split:
        return []
    known = {content: at for at, content in enumerate(one.digests)}
    same = {at: known[content] for at, content in enumerate(other.digests) if content in known}
    near: dict[int, int] = {}
    mine, mine_spread = _standardised(one.small)
    theirs, their_spread = _standardised(other.small)
    for start in range(0, len(theirs), 256):
        correlation = theirs[start : start + 256] @ mine.T / SIDE**2
        for row, best in enumerate(correlation.argmax(axis=1)):
            at, value = start + row, float(correlation[row, best])
            if at in same or min(mine_spread[best], their_spread[at]) < 1:
                continue
            levels = float(np.sqrt(np.mean((one.small[best].astype(np.float64) - other.small[at]) ** 2)))
            if value >= SAME_CORRELATION and levels <= SAME_LEVELS:
                same[at] = int(best)
            elif value >= NEAR_CORRELATION and levels <= NEAR_LEVELS:
                near[at] = int(best)
    found = []
    for pairs, how in ((same, "are also in"), (near, "look nearly like images of")):
        if pairs:
            some = ", ".join(
                other.names[at] if other.names[at] == one.names[like] else f"{other.names[at]} ({one.names[like]})"
                for at, like in sorted(pairs.items())[:_NAMED]
            )
            found.append(
                DataFinding(
                    False,
                    f"{name}: {len(pairs)} of {counted(len(other.names), 'image')} of {other.split} {how} "
                    f"{one.split}, e.g. {some}; remove them from one of the two, as results on them would be too "
                    "optimistic",
                )
            )
    return found


def _standardised(small: UInt8Array) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Thumbnails standardised to mean 0 and deviation 1, and their deviations in grey levels."""
    values = small.astype(np.float32)
    spread = values.std(axis=1)
    return (values - values.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-3)[:, None], spread
