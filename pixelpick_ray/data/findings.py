"""What the images and label maps of a data set are like, and what about them is surely or probably wrong."""

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
SIDE = 16  # of the small grey pictures that are compared
# Levels of 255 that small pictures differ by, root mean square, and how they correlate.
SAME_LEVELS, SAME_CORRELATION = 1.0, 0.9995
NEAR_LEVELS, NEAR_CORRELATION = 15.0, 0.98
MUCH_VOID = 0.9
_NAMED = 3  # images in a message


@dataclass(frozen=True)
class SplitFacts:
    """A split in numbers: names, sizes (N, 2) in pixels, pixels by label value (256,), small grey pictures (N, 16 * 16)
    and what identifies each image's pixels.
    """

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
        """Facts of images (H, W, 3) with names and label maps (H, W)."""
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
        """The share of each class, and of void as the last, in all pixels."""
        kept = [*self.counts[: facts.num_classes], self.counts[facts.void_index]]
        return np.asarray(kept, dtype=np.float64) / max(1, int(self.counts.sum()))


@dataclass(frozen=True)
class DataFinding:
    """Something wrong with a data set: surely, or only probably."""

    is_error: bool
    text: str

    def __str__(self) -> str:
        return f"{'error' if self.is_error else 'warning'}: {self.text}"


def prepared_facts(
    prepared: PreparedSplit, cache_path: Path, *, has_labels: bool, left_out: Sequence[str]
) -> SplitFacts:
    """Facts of a prepared split, kept in the cache folder."""
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
    """What was kept of a split; None where it is absent or damaged."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
        return kept["facts"] if kept["digest"] == digest([identity, kept["facts"]]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, identity: str, facts: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # the next one counts again
        partial.write_text(json.dumps({"digest": digest([identity, facts]), "facts": facts}), encoding="ascii")
        partial.replace(path)


def find(name: str, facts: DatasetFacts, splits: Sequence[SplitFacts]) -> list[DataFinding]:
    """What is wrong with the splits of a data set, the one to train on first; errors before warnings."""
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
                f"{title}: every pixel of {counted(len(split.names), 'label map')} is void; say under classes: and "
                "void: in dataset.yaml which values are classes, or correct the label maps",
            )
        ]
    share = float(split.counts[void]) / int(split.counts.sum())
    if len(occurring) == 1:
        only = facts.class_names[occurring[0]]
        rest = f", and {100 * share:.1f} % is void" if share else ""
        cause = (
            "; masks of 0 and 255 have the object at 255, which is void: say classes: {background: 0, object: 255} in "
            "dataset.yaml"
            if share
            else "; correct the label maps, or the values of the classes"
        )
        return [DataFinding(True, f"{title}: {only!r} is the only class in its label maps{rest}{cause}")]
    if share > MUCH_VOID:
        return [DataFinding(False, f"{title}: {100 * share:.1f} % of all pixels are void; is a class among them?")]
    return []


def _of_classes(
    name: str, facts: DatasetFacts, splits: Sequence[SplitFacts], labelled: Sequence[SplitFacts]
) -> list[DataFinding]:
    """What is wrong with the classes of all splits together."""
    found = []
    occur = {split.split: split.counts[: facts.num_classes] > 0 for split in labelled}
    nowhere = [at for at in range(facts.num_classes) if not any(classes[at] for classes in occur.values())]
    if labelled and nowhere:
        names = ", ".join(facts.class_names[at] for at in nowhere)
        hint = ""
        if nowhere[0] == 0 and len(nowhere) < facts.num_classes - 1:
            hint = "; do the values begin at 1? then give classes as a mapping in dataset.yaml, NAME: 1 and so on"
        told = ", ".join(split.split for split in labelled)
        found.append(DataFinding(False, f"{name}: no label map of {told} has the class {names}{hint}"))
    first = splits[0].split
    for other in [split.split for split in labelled if split.split != first] if first in occur else []:
        if not (occur[first] & occur[other]).any():
            mine, theirs = (
                ", ".join(facts.class_names[at] for at in np.flatnonzero(occur[split])) for split in (first, other)
            )
            found.append(
                DataFinding(
                    True,
                    f"{name}: {first} and {other} have no class in common: {mine} there, {theirs} here; are their "
                    "label maps made in the same way?",
                )
            )
        elif lacks := np.flatnonzero(occur[other] & ~occur[first]).tolist():
            names = ", ".join(facts.class_names[at] for at in lacks)
            found.append(
                DataFinding(False, f"{name}: {names} occurs in {other} and not in {first}, which is trained on")
            )
    return found


def _of_copies(name: str, one: SplitFacts, other: SplitFacts) -> list[DataFinding]:
    """Images that are in two splits, or nearly."""
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
                    f"{name}: {len(pairs)} of {counted(len(other.names), 'image')} of {other.split} {how} {one.split}"
                    f", e.g. {some}; results measured there flatter",
                )
            )
    return found


def _standardised(small: UInt8Array) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Small pictures of mean 0 and spread 1, and the spreads in levels."""
    values = small.astype(np.float32)
    spread = values.std(axis=1)
    return (values - values.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-3)[:, None], spread
