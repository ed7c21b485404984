"""Questions: pixels to be labelled, with everything known about them before they are."""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.data.labels import IntArray, LabelledPixels, reading_order
from pixelpick_ray.errors import StoreError
from pixelpick_ray.store import Store
from pixelpick_ray.store.records import AskRecord, read_chain

Place = tuple[str, int, int]  # image, y, x
UNSAID = -3  # in place of a label: no answer yet, or no label map


@dataclass(frozen=True, eq=False)
class Questions:
    """Pixels of prepared images to be labelled, sorted by (image, y, x).

    ``names`` (sorted, unique) are the images that occur and ``shapes`` (n, 2) their heights and widths. The other
    arrays are (k,), one entry per pixel: ``image`` indexes ``names``; ``truth`` is the label map's class, or UNSAID;
    ``predicted`` and ``entropy`` are the network's class and the entropy of its prediction in nats, -1 and NaN if it
    was not used; ``distance`` is the distance to the nearest class border in pixels, infinite if there is none.
    ``stage`` is the first stage that trains on the answers.
    """

    names: tuple[str, ...]
    shapes: IntArray
    image: IntArray
    y: IntArray
    x: IntArray
    truth: IntArray
    predicted: IntArray
    entropy: npt.NDArray[np.float32]
    distance: npt.NDArray[np.float64]
    stage: int

    @classmethod
    def of(
        cls,
        *,
        names: Sequence[str],
        shapes: Sequence[tuple[int, int]],
        y: npt.ArrayLike,
        x: npt.ArrayLike,
        truth: npt.ArrayLike,
        predicted: npt.ArrayLike,
        entropy: npt.ArrayLike,
        distance: npt.ArrayLike,
        stage: int,
    ) -> Self:
        """Sort columns into a value; `names` and `shapes` have one entry per pixel."""
        order = reading_order(np.asarray(names, dtype=np.str_), y, x)
        unique, first, image = np.unique(
            np.asarray(names, dtype=np.str_).reshape(-1), return_index=True, return_inverse=True
        )

        def column(values: npt.ArrayLike) -> IntArray:
            return np.asarray(values, dtype=np.int32).reshape(-1)[order]

        return cls(
            tuple(str(name) for name in unique),
            np.asarray(shapes, dtype=np.int32).reshape(-1, 2)[first],
            np.asarray(image.reshape(-1)[order], dtype=np.int32),
            column(y),
            column(x),
            column(truth),
            column(predicted),
            np.asarray(entropy, dtype=np.float32).reshape(-1)[order],
            np.asarray(distance, dtype=np.float64).reshape(-1)[order],
            stage,
        )

    def __len__(self) -> int:
        return len(self.image)

    def names_per_pixel(self) -> npt.NDArray[np.str_]:
        """The image name of every pixel."""
        return np.asarray(self.names, dtype=np.str_)[self.image] if len(self) else np.zeros(0, dtype=np.str_)

    def places(self) -> list[Place]:
        """(image, y, x) of every pixel."""
        return list(zip(self.names_per_pixel().tolist(), self.y.tolist(), self.x.tolist(), strict=True))

    def add(self, other: "Questions") -> "Questions":
        """The questions of both, which must be of the same stage."""
        return Questions.of(
            names=[*self.names_per_pixel().tolist(), *other.names_per_pixel().tolist()],
            shapes=np.concatenate([self.shapes[self.image], other.shapes[other.image]]).tolist(),
            stage=self.stage,
            **{
                name: np.concatenate([getattr(self, name), getattr(other, name)])
                for name in ("y", "x", "truth", "predicted", "entropy", "distance")
            },
        )

    def answered(self, labels: npt.ArrayLike) -> LabelledPixels:
        """The pixels with their labels (k,): classes, VOID or UNKNOWN."""
        return LabelledPixels.of(names=self.names_per_pixel(), y=self.y, x=self.x, label=labels, stage=self.stage)

    def write(self, path: Path) -> None:
        """Write as .npz; equal questions give equal bytes."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez(path, **(columns | {"names": np.asarray(self.names, dtype=np.str_)}))

    @classmethod
    def read(cls, path: Path | BinaryIO) -> Self:
        """Read a file from `write` without executing code in it. Raises StoreError for any other content."""
        try:
            with np.load(path, allow_pickle=False) as file:
                columns = {field.name: file[field.name] for field in fields(cls)}
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise StoreError(
                f"questions.npz of the store: contains no questions ({str(error).partition('.')[0]}); remove its "
                "folder and run again"
            ) from error
        names = tuple(str(name) for name in columns["names"])
        return cls(**(columns | {"names": names, "stage": int(columns["stage"])}))


def is_whole(ask: AskRecord, store: Store) -> bool:
    """Whether all questions of an ask are stored; the next run recreates missing ones."""
    return all(store.has("question", key) for key in ask.questions)


def all_questions(ask: AskRecord, store: Store) -> Questions:
    """All questions of an ask. Raises StoreError if any are missing."""
    whole, *parts = (read_questions(store, key) for key in ask.questions)
    for part in parts:
        whole = whole.add(part)
    return whole


def read_questions(store: Store, key: str) -> Questions:
    """Stored questions by key. Raises StoreError if they are missing or damaged."""
    files = store.files("question", key, ["questions.npz"])
    if files is None:
        raise StoreError(f"{store.address}: the questions {key} are missing or damaged; run again to recreate them")
    return Questions.read(io.BytesIO(files["questions.npz"]))


def last_ask(store: Store, experiment: Experiment, chain: str) -> AskRecord | None:
    """What a chain asked at the end of its last run, answered or not; None if it asked nothing."""
    record = read_chain(store, experiment, chain)
    return None if record is None else record.asks


def open_ask(store: Store, experiment: Experiment, chain: str) -> AskRecord | None:
    """The ask that a chain is waiting for; None if it is not waiting."""
    ask = last_ask(store, experiment, chain)
    return None if ask is None or store.has("pick", ask.pick) else ask
