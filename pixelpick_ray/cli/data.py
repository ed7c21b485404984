"""Commands for data sets: check one, or describe a folder."""

import json
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pixelpick_ray import supervisor
from pixelpick_ray.cli.options import AsJson, Data
from pixelpick_ray.config.canonical import counted
from pixelpick_ray.config.command import typed
from pixelpick_ray.config.execution import local_cpus
from pixelpick_ray.config.trial import DatasetSpec
from pixelpick_ray.data.contact_sheet import IMAGES, contact_sheet
from pixelpick_ray.data.dataset import Dataset, FileDataset, UInt8Array
from pixelpick_ray.data.datasets import DATASETS, open_dataset
from pixelpick_ray.data.findings import DataFinding, SplitFacts, find
from pixelpick_ray.data.folder_description import DESCRIPTION
from pixelpick_ray.data.folder_proposal import propose, slug
from pixelpick_ray.data.image_files import read_label_file
from pixelpick_ray.data.label_maps import listed
from pixelpick_ray.errors import DataError, SpecError, data_errors

Images = list[tuple[str, UInt8Array, UInt8Array]]


@dataclass(frozen=True)
class _Checked:
    """Outcome of `check`: facts of the splits, values in label files by split, findings, and example images."""

    dataset: Dataset
    splits: list[SplitFacts]
    values: dict[str, str]
    findings: list[DataFinding]
    examples: Images


def check(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help=f"A folder with {DESCRIPTION}, or the name of a data set such as camvid.",
            show_default=False,
        ),
    ],
    data: Data = Path("data"),
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", dir_okay=False, metavar="FILE", help="Contact sheet (PNG).", show_default="DATASET-check.png"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read every file of a data set; print its contents and any certain or likely errors; draw a contact sheet.

    Exit status 2 if there are certain errors.
    """
    opened = _opened(dataset, data)
    checked = _checked(opened)
    path = out or Path(f"{Path(dataset).resolve().name if opened.spec.path else dataset}-check.png")
    if checked.examples:
        try:
            contact_sheet(opened.facts, checked.examples).save(path, format="PNG")
        except OSError as error:
            raise SpecError(f"--out {path}: cannot be written ({error}); give a writable path") from error
    wrong = any(finding.is_error for finding in checked.findings)
    if as_json:
        print(json.dumps({"ok": not wrong, **_figures(checked), "contact_sheet": str(path)}))
    else:
        print("\n".join([*_lines(checked), f"contact sheet: {path}"]))
    sys.exit(supervisor.WRONG if wrong else supervisor.OK)


def _opened(name: str, data: Path) -> Dataset:
    """Data set that a user means: a folder with a description, perhaps in the data folder, or a name."""
    for folder in (Path(name), data / name):
        if (folder / DESCRIPTION).is_file():
            folder = folder.resolve()
            return open_dataset(DatasetSpec(name="folder", path=folder.name), folder.parent)
    if name not in DATASETS and (Path(name).is_dir() or (data / name).is_dir()):
        raise DataError(f"{name}: has no {DESCRIPTION}; write one, or generate a proposal with `init {name}`")
    if name == "folder":
        raise SpecError(f"check folder: give the path of the folder that contains {DESCRIPTION} instead")
    return open_dataset(DatasetSpec(name=name), data)


def _checked(dataset: Dataset) -> _Checked:
    """Read all splits, the training split first. Raises a DataError that lists all bad files."""
    facts, splits, values, examples = dataset.facts, list[SplitFacts](), dict[str, str](), Images()
    with data_errors() as wrong:
        for split in sorted(facts.splits, key=lambda split: split != facts.train_split):
            with wrong.kept():
                if split != facts.train_split and dataset.spec.path is None and not _is_here(dataset, split):
                    values[split] = "not here"
                    continue
                read = _Reading(dataset, split)
                splits.append(
                    SplitFacts.of(split, read, has_labels=dataset.has_labels(split), left_out=dataset.left_out(split))
                )
                values[split], examples = read.values, [*examples, *read.examples]
    found = find(dataset.spec.path or facts.name, facts, splits)
    chosen = np.linspace(0, len(examples) - 1, num=min(IMAGES, len(examples)), dtype=int)
    return _Checked(dataset, splits, values, found, [examples[at] for at in chosen])


def _is_here(dataset: Dataset, split: str) -> bool:
    try:
        return bool(dataset.names(split))
    except DataError:
        return False


class _Reading:
    """Names, images and label maps of a split, to iterate over once; then the values in label files, and examples.

    Raises a DataError at the end that lists all bad files.
    """

    def __init__(self, dataset: Dataset, split: str) -> None:
        self._dataset, self._split = dataset, split
        dataset.signature(split)  # raises DataError for missing files
        self._names = dataset.names(split)
        self._shown = {*np.linspace(0, len(self._names) - 1, num=min(IMAGES, len(self._names)), dtype=int).tolist()}
        self._numbers, self._colours = set[int](), set[int]()
        self.examples = Images()

    @property
    def values(self) -> str:
        found = [f"values {listed(self._numbers)}"] if self._numbers else []
        return ", ".join([*found, *([counted(len(self._colours), "colour")] if self._colours else [])])

    def __iter__(self) -> Iterator[tuple[str, UInt8Array, UInt8Array]]:
        with data_errors() as wrong, ThreadPoolExecutor(local_cpus()) as pool:
            for start in range(0, len(self._names), 16):
                block = self._names[start : start + 16]
                for at, future in enumerate([pool.submit(self._read, name) for name in block], start=start):
                    with wrong.kept():
                        image, label = future.result()
                        if at in self._shown:
                            self.examples.append((f"{self._split}: {self._names[at]}", image, label))
                        yield self._names[at], image, label

    def _read(self, name: str) -> tuple[UInt8Array, UInt8Array]:
        if isinstance(self._dataset, FileDataset):
            for path in self._dataset.paths(self._split, name)[1:]:
                file = read_label_file(path)
                if file.values is not None:
                    self._numbers |= {*np.unique(file.values).tolist()}
                elif file.colours is not None:
                    self._colours |= {*np.unique(file.colours).tolist()}
        return self._dataset.read(self._split, name)


def _figures(checked: _Checked) -> dict[str, Any]:
    """Everything found, as JSON-ready values."""
    facts = checked.dataset.facts
    return {
        "splits": {
            split.split: {
                "images": len(split.names),
                "smallest": split.sizes.min(axis=0).tolist(),
                "largest": split.sizes.max(axis=0).tolist(),
                "shares": dict(zip((*facts.class_names, "void"), split.shares(facts).tolist(), strict=True))
                if split.has_labels
                else None,
                "values": checked.values[split.split],
                "left_out": list(split.left_out),
            }
            for split in checked.splits
        },
        "errors": [one.text for one in checked.findings if one.is_error],
        "warnings": [one.text for one in checked.findings if not one.is_error],
    }


def _lines(checked: _Checked) -> Iterator[str]:
    facts = checked.dataset.facts
    for split in checked.splits:
        small, large = split.sizes.min(axis=0), split.sizes.max(axis=0)
        sizes = f"{small[0]}x{small[1]}" + ("" if (small == large).all() else f" to {large[0]}x{large[1]}")
        labels = f"label files have {checked.values[split.split] or 'no file'}" if split.has_labels else "no label maps"
        yield f"{split.split}: {counted(len(split.names), 'image')}, {sizes} (height x width); {labels}"
    for name in (name for name, values in checked.values.items() if values == "not here"):
        yield f"{name}: not here"
    labelled = [split for split in checked.splits if split.has_labels]
    if labelled:
        names = (*facts.class_names, "void")
        width = max(map(len, names))
        yield f"{'share of pixels':<{max(width, 15)}}" + "".join(f"{split.split:>12}" for split in labelled)
        for at, name in enumerate(names):
            shares = "".join(f"{_percent(split, at, checked.dataset):>12}" for split in labelled)
            yield f"{name:<{max(width, 15)}}{shares}"
    yield from map(str, checked.findings)
    if not checked.findings:
        yield "no problems found"


def _percent(split: SplitFacts, at: int, dataset: Dataset) -> str:
    share = float(split.shares(dataset.facts)[at])
    return f"{100 * share:.2f} %" if share else "never"


def init(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="A folder of images, with or without masks.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", dir_okay=False, metavar="FILE", help="Experiment file.", show_default="FOLDER.yaml"),
    ] = None,
) -> None:
    """Propose a dataset.yaml and an experiment for a folder of images; never overwrites a file."""
    folder = folder.resolve()
    experiment, description = out or Path(f"{slug(folder.name)}.yaml"), folder / DESCRIPTION
    for path, remedy in ((description, "`check` reads it; remove it to have one proposed"), (experiment, "give --out")):
        if path.exists():
            raise SpecError(f"{path}: already exists and was not overwritten; {remedy}")
    proposal = propose(folder, slug(experiment.stem))
    for path, text in ((description, proposal.description), (experiment, proposal.experiment)):
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise SpecError(
                f"{path}: cannot be written ({error}); make its folder writable, or give another one"
            ) from error
    print(f"{folder}: the layout of {proposal.layout.name} ({proposal.layout.why})")
    print(f"written: {description}, {experiment}")
    for line in proposal.missing:
        print(f"fill in: {line}")
    data = "" if folder.parent == Path("data").resolve() else f" --data {shlex.quote(str(folder.parent))}"
    print(f"next: {typed()} check {shlex.quote(str(folder))}")
    print(f"      {typed()} plan {shlex.quote(str(experiment))}{data}")
