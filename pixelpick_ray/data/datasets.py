"""Data sets by name, in ``DATASETS``."""

from pathlib import Path

from pixelpick_ray.config import parts
from pixelpick_ray.config.trial import DatasetSpec
from pixelpick_ray.data import scenes
from pixelpick_ray.data.camvid import CamVid
from pixelpick_ray.data.cityscapes import Cityscapes
from pixelpick_ray.data.dataset import Dataset, DatasetFacts, ReportBytes, UInt8Array
from pixelpick_ray.data.folder import Folder
from pixelpick_ray.data.held_out import HeldOut
from pixelpick_ray.data.voc import Voc
from pixelpick_ray.errors import SpecError

__all__ = [
    "DATASETS",
    "CamVid",
    "Dataset",
    "DatasetFacts",
    "ReportBytes",
    "UInt8Array",
    "known_facts",
    "open_dataset",
    "training_split",
]


class Scenes(Dataset):
    """Generated street scenes, which need no files."""

    facts = DatasetFacts(
        name="scenes",
        class_names=scenes.CLASS_NAMES,
        void_index=scenes.VOID,
        mean=(0.45, 0.45, 0.45),
        std=(0.25, 0.25, 0.25),
        palette=scenes.PALETTE,
        splits=tuple(scenes.SPLIT_SIZES),
    )

    def names(self, split: str) -> tuple[str, ...]:
        return tuple(f"{split}_{index:04d}" for index in range(scenes.SPLIT_SIZES[split]))

    def signature(self, split: str) -> list[list[str | int]]:
        return [["scenes", scenes.VERSION, split, scenes.SPLIT_SIZES[split]]]

    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        return scenes.scene(split, int(name.rpartition("_")[2]))


DATASETS: dict[str, type[Dataset]] = {
    "scenes": Scenes,
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "voc": Voc,
    "folder": Folder,
}


def open_dataset(spec: DatasetSpec, data_path: Path) -> Dataset:
    """Open a spec's data set in the data folder, with held-out images moved from the training split to ``held_out``.

    Raises SpecError for an unknown name, or if the split ``held_out`` cannot be made.
    """
    kind = _kind(spec.name)
    whole = kind(spec.model_copy(update={"name": parts.resolved("dataset", spec.name)}), data_path)
    return whole if spec.held_out is None else HeldOut(whole, spec.held_out)


def known_facts(name: str) -> DatasetFacts | None:
    """The facts of a data set if known without reading files, else None. Raises SpecError for an unknown name."""
    return getattr(_kind(name), "facts", None)


def training_split(dataset: Dataset, spec: DatasetSpec) -> str:
    """The name of the split to train on."""
    return spec.split or dataset.facts.train_split


def _kind(name: str) -> type[Dataset]:
    if name in DATASETS:
        return DATASETS[name]
    if not parts.is_external("dataset", name):
        known = ", ".join([*sorted(DATASETS), *parts.names("dataset")])
        raise SpecError(f"dataset.name: unknown data set {name!r}; known: {known}")
    found = parts.load("dataset", name)
    if not (isinstance(found, type) and issubclass(found, Dataset)):
        raise SpecError(f"dataset.name: {name} is {found!r}, not a subclass of pixelpick_ray.Dataset")
    return found
