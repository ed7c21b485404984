"""Stored evaluations and fits, as a report needs them: metrics after each epoch, and what they were made with."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelpick_ray.active.metrics import Floats, iou, mean_iou, pixel_accuracy
from pixelpick_ray.errors import StoreError
from pixelpick_ray.store import Store

# A metric and, where it is of one class, the class.
Metric = tuple[str, str]
MIOU, PIXEL_ACCURACY = ("miou", ""), ("pixel_accuracy", "")


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a fit on one split after each of the `epochs` (E,), which ascend; fractions, `iou` (E, C).

    `inputs` is what the key is of. NaN stands for a class that does not occur.
    """

    key: str
    inputs: dict[str, Any]
    class_names: Sequence[str]
    epochs: npt.NDArray[np.int64]
    iou: Floats
    mean_iou: Floats
    pixel_accuracy: Floats

    @property
    def fit_key(self) -> str:
        """Key of the fit that was measured."""
        return str(self.inputs["fit"])

    @property
    def last_epoch(self) -> int:
        """The last epoch."""
        return int(self.epochs[-1])

    @cached_property
    def best_epoch(self) -> int:
        """The epoch with the highest mIoU, the first of equals."""
        return int(self.epochs[np.argmax(np.where(np.isnan(self.mean_iou), -1.0, self.mean_iou))])

    def values(self, epoch: int) -> Mapping[Metric, float] | None:
        """The metrics after an epoch; None for one that was not measured."""
        at = int(np.searchsorted(self.epochs, epoch))
        if at == len(self.epochs) or self.epochs[at] != epoch:
            return None
        means = {MIOU: float(self.mean_iou[at]), PIXEL_ACCURACY: float(self.pixel_accuracy[at])}
        classes = zip(self.class_names, self.iou[at].tolist(), strict=True)
        return means | {("iou", name): value for name, value in classes}


@dataclass(frozen=True)
class Fit:
    """What a fit was made from, and its provenance; both empty when it was removed: the numbers remain valid."""

    inputs: dict[str, Any]
    provenance: dict[str, Any]


# An evaluation and the fit that it is of, or why it cannot be read.
Stored = tuple[Evaluation, Fit] | str


def read_evaluations(store: Store, wanted: Mapping[str, Sequence[str]]) -> dict[str, Stored]:
    """Evaluations by their keys, `wanted` being the class names of each; StoreError for one of other classes."""
    read_fit = cache(partial(_read_fit, store))  # several splits are of one fit
    found: dict[str, Stored] = {}
    for key, class_names in wanted.items():
        evaluation = _read_evaluation(store, key, class_names)
        found[key] = evaluation if isinstance(evaluation, str) else (evaluation, read_fit(evaluation.fit_key))
    return found


def _read_evaluation(store: Store, key: str, class_names: Sequence[str]) -> Evaluation | str:
    files = store.files("evaluation", key, ["input.json", "confusion.npz"])
    if files is None:
        return f"evaluation {key[:16]} is absent or damaged"
    arrays = read_arrays(files["confusion.npz"])
    epochs, confusion, classes = arrays["epochs"], arrays["confusion"], len(class_names)
    if confusion.shape != (len(epochs), classes, classes) or not len(epochs):
        raise StoreError(
            f"{store.folder('evaluation', key)}: confusion {confusion.shape} does not fit {classes} classes; "
            "remove it, run again"
        )
    each = iou(confusion)
    inputs = json.loads(files["input.json"])
    return Evaluation(key, inputs, class_names, epochs, each, mean_iou(each), pixel_accuracy(confusion))


def _read_fit(store: Store, key: str) -> Fit:
    files = store.files("fit", key, ["input.json", "provenance.json"])
    return Fit(*(json.loads(files[name]) if files else {} for name in ("input.json", "provenance.json")))


def evidence_of(evaluation: Evaluation, fit: Fit) -> dict[str, str]:
    """What the results of one cell should have in common, beside what their trials say."""
    facts = {
        "device": fit.provenance.get("device"),
        "torch": fit.provenance.get("torch"),
        "package version": fit.provenance.get("version"),
        "training data": fit.inputs.get("data", {}).get("fingerprint"),
        "evaluation data": evaluation.inputs["data"]["fingerprint"],
        "pretrained weights": fit.inputs.get("model", {}).get("weights_digest", "unknown"),
        "version of fit": fit.inputs.get("version"),
        "version of evaluation": evaluation.inputs["version"],
    }
    return {name: "unknown" if value is None else str(value) for name, value in facts.items()}


def read_arrays(npz: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file, as ``np.load`` reads them without pickles; a header that is met again costs nothing.

    Headers are what takes the time of ``np.load`` where arrays are small, and those of a study are all alike.
    """
    with zipfile.ZipFile(io.BytesIO(npz)) as file:
        return {name.removesuffix(".npy"): _array(file.read(name)) for name in file.namelist()}


def _array(npy: bytes) -> npt.NDArray[Any]:
    field = slice(8, 10) if npy[6] == 1 else slice(8, 12)  # of the header's length, by the format's version
    start = field.stop + int.from_bytes(npy[field], "little")
    shape, fortran_order, dtype = _header(npy[:start])
    array = np.frombuffer(npy, dtype=dtype, offset=start)
    return array.reshape(shape, order="F" if fortran_order else "C")


@lru_cache(maxsize=256)
def _header(text: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    file = io.BytesIO(text)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("an array of objects")
    return shape, fortran_order, dtype
