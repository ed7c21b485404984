"""Stored evaluations and fits for reports: metrics after each epoch, and provenance."""

import io
import json
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from multiprocessing import get_all_start_methods, get_context
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelpick_ray.active.metrics import Floats, iou, mean_iou, pixel_accuracy
from pixelpick_ray.errors import StoreError
from pixelpick_ray.store import Store, paths

# A metric and, if it is of one class, the class.
Metric = tuple[str, str]
MIOU, PIXEL_ACCURACY = ("miou", ""), ("pixel_accuracy", "")

READ_ALONE = 1000  # minimum evaluations per process; fewer are read faster than transferred
THREADS = 16  # for reading from object storage


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a fit on one split after each of the ascending `epochs` (E,), as fractions; `iou` is (E, C).

    NaN stands for a class that does not occur. `evidence` is what the results of one cell should have in common, apart
    from their trials.
    """

    key: str
    fit_key: str
    evidence: Mapping[str, str]
    class_names: Sequence[str]
    epochs: npt.NDArray[np.int64]
    iou: Floats
    mean_iou: Floats
    pixel_accuracy: Floats

    @property
    def last_epoch(self) -> int:
        """The last measured epoch."""
        return int(self.epochs[-1])

    @cached_property
    def best_epoch(self) -> int:
        """The epoch with the highest mIoU, the first one if tied."""
        return int(self.epochs[np.argmax(np.where(np.isnan(self.mean_iou), -1.0, self.mean_iou))])

    def values(self, epoch: int) -> Mapping[Metric, float] | None:
        """Return the metrics after an epoch; None if it was not measured."""
        at = int(np.searchsorted(self.epochs, epoch))
        if at == len(self.epochs) or self.epochs[at] != epoch:
            return None
        means = {MIOU: float(self.mean_iou[at]), PIXEL_ACCURACY: float(self.pixel_accuracy[at])}
        classes = zip(self.class_names, self.iou[at].tolist(), strict=True)
        return means | {("iou", name): value for name, value in classes}


Provenance = dict[str, Any]


def read_evaluations(
    store: Store, wanted: Mapping[str, Sequence[str]], *, processes: int
) -> tuple[dict[str, Evaluation | str], dict[str, Provenance]]:
    """Read evaluations by key, or why they cannot be read, and their fits' provenance, empty for removed fits.

    `wanted` gives the class names of each. Large numbers are read by up to `processes` forked processes, if the system
    can fork, or by threads from object storage. Raises StoreError if an evaluation's classes do not match.
    """
    read, pairs = partial(_read_part, store), list(wanted.items())
    workers = min(processes, len(pairs) // READ_ALONE) if store.is_folder else THREADS
    if workers < 2 or "fork" not in get_all_start_methods():
        return read(pairs)[:2]
    size = 1 + len(pairs) // (4 * workers)
    parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    evaluations: dict[str, Evaluation | str] = {}
    fits: dict[str, Provenance] = {}
    forked = partial(ProcessPoolExecutor, mp_context=get_context("fork"))
    with forked(workers) if store.is_folder else ThreadPoolExecutor(workers) as pool:
        for found, made, damage in pool.map(read, parts):
            evaluations |= found
            fits |= made
            store.note_damage(damage)
    return evaluations, fits


def _read_part(
    store: Store, pairs: Sequence[tuple[str, Sequence[str]]]
) -> tuple[dict[str, Evaluation | str], dict[str, Provenance], dict[str, str]]:
    read_fit = cache(partial(_read_fit, store))  # splits share fits
    found = {key: _read_evaluation(store, key, class_names, read_fit) for key, class_names in pairs}
    keys = (one.fit_key for one in found.values() if isinstance(one, Evaluation))
    return found, {key: read_fit(key)[1] for key in keys}, dict(store.damage)


def _read_evaluation(
    store: Store, key: str, class_names: Sequence[str], read_fit: Callable[[str], tuple[dict[str, Any], Provenance]]
) -> Evaluation | str:
    files = store.files("evaluation", key, ["input.json", "confusion.npz"])
    if files is None:
        return f"evaluation {key[:16]} is missing or damaged"
    where = f"{store.address}/{paths.result('evaluation', key)}"
    try:
        arrays = read_arrays(files["confusion.npz"])
        epochs, confusion, classes = arrays["epochs"], arrays["confusion"], len(class_names)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{where}/confusion.npz: contains no confusion matrices ({error}); remove the folder and run again"
        ) from error
    if confusion.shape != (len(epochs), classes, classes) or not len(epochs):
        raise StoreError(
            f"{where}: confusion matrices of shape {confusion.shape} do not match {classes} classes; remove the "
            "folder and run again"
        )
    inputs, each = json.loads(files["input.json"]), iou(confusion)
    evidence = _evidence(inputs, *read_fit(inputs["fit"]))
    return Evaluation(
        key, inputs["fit"], evidence, class_names, epochs, each, mean_iou(each), pixel_accuracy(confusion)
    )


def _read_fit(store: Store, key: str) -> tuple[dict[str, Any], Provenance]:
    """Input and provenance of a fit; both empty if it was removed."""
    files = store.files("fit", key, ["input.json", "provenance.json"])
    return (json.loads(files["input.json"]), json.loads(files["provenance.json"])) if files else ({}, {})


def _evidence(evaluation: dict[str, Any], fit: dict[str, Any], made: Provenance) -> dict[str, str]:
    """What the results of one cell should share, from the inputs of evaluation and fit and the fit's provenance."""
    facts = {
        "device": made.get("device"),
        "torch": made.get("torch"),
        "package version": made.get("version"),
        "training data": fit.get("data", {}).get("fingerprint"),
        "evaluation data": evaluation["data"]["fingerprint"],
        "pretrained weights": fit.get("model", {}).get("weights_digest", "unknown"),
        "version of fit": fit.get("version"),
        "version of evaluation": evaluation["version"],
    }
    # Interned, so that recurring texts are pickled only once between processes.
    return {name: sys.intern("unknown" if value is None else str(value)) for name, value in facts.items()}


def read_arrays(npz: bytes) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of an .npz file like ``np.load`` without pickles, but with cached headers.

    For small arrays, parsing headers dominates the time of ``np.load``, and those of a study are all alike.
    """
    with zipfile.ZipFile(io.BytesIO(npz)) as file:
        return {name.removesuffix(".npy"): _array(file.read(name)) for name in file.namelist()}


def _array(npy: bytes) -> npt.NDArray[Any]:
    start = 10 + int.from_bytes(npy[8:10], "little")  # format version 1, whose header length has two bytes
    shape, fortran_order, dtype = _header(npy[:start])
    array = np.frombuffer(npy, dtype=dtype, offset=start)
    return array.reshape(shape, order="F" if fortran_order else "C")


@lru_cache(maxsize=256)
def _header(text: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    file = io.BytesIO(text)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of another version than 1")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("an array of objects")
    return shape, fortran_order, dtype
