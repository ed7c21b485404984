"""The files that `init` writes for a folder: a commented `dataset.yaml`, and an experiment on it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from PIL import Image

from pixelpick_ray.data.folder_layouts import Layout, described_classes, masks_of, recognise, values_of
from pixelpick_ray.data.image_files import DEEP, IMAGE_SUFFIXES

LONG_SIDE = 480  # pixels, of the proposed experiment
_COMMENTS = {
    "classes": "class names with their label values; a list of values merges them, e.g. soil: [3, 4]",
    "void": "values that are never queried or evaluated; [] for none",
    "colours": "in colour masks and palettes; rename classes here and above together",
    "masks": "naming of the label maps",
    "recursive": "folders inside, too",
    "range": "the value of white in 16-bit images",
    "splits": "relative to this file; splits without labels can be labelled by people",
}


@dataclass(frozen=True)
class Proposal:
    """The text of both files, the recognised layout, and what remains for the user to fill in."""

    layout: Layout
    description: str
    experiment: str
    missing: tuple[str, ...] = ()


def propose(folder: Path, name: str) -> Proposal:
    """Propose files for a folder of images; `name` is the experiment's. DataError without images or readable masks."""
    layout = recognise(folder)
    tree: dict[str, Any] = {}
    missing = []
    if layout.has_masks:
        tree |= described_classes(layout, values_of(masks_of(folder, layout)))
    else:
        tree |= {"classes": ["background", "object"]}
        missing.append("classes: your class names, in dataset.yaml")
        if all("labels" not in split for split in layout.splits.values()):
            missing.append("a labelled split for evaluation, in dataset.yaml and under evaluate: in the experiment")
    tree |= {"masks": dict(layout.masks)} if layout.masks else {}
    tree |= {"recursive": True} if layout.recursive else {}
    tree |= {"range": white} if (white := _white(folder, layout)) else {}
    tree |= {"splits": {split: dict(where) for split, where in layout.splits.items()}}
    return Proposal(layout, _description(tree, layout), _experiment(folder.name, name, layout), tuple(missing))


def _description(tree: Mapping[str, Any], layout: Layout) -> str:
    lines = [f"# Proposed by `init` from the layout of {layout.name} ({layout.why}); correct it if necessary."]
    lines += ["# All fields are described in docs/reference/dataset.md."]
    for key, value in tree.items():
        lines.append(f"# {_COMMENTS[key]}")
        lines.append(_entry(key, value))
    return "\n".join(lines) + "\n"


def _entry(key: str, value: Any) -> str:
    """A field as YAML; a mapping has one entry per line."""
    if isinstance(value, dict):
        return "\n".join([f"{key}:", *(f"  {_flow(name)}: {_flow(one)}" for name, one in value.items())])
    return f"{key}: {_flow(value)}"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").strip()


def _experiment(path: str, name: str, layout: Layout) -> str:
    measured = [split for split, where in layout.splits.items() if "labels" in where and split != "train"]
    reported = "val" if "val" in measured else measured[0] if measured else "held_out"
    asks = "labels" not in layout.splits["train"]
    people = "oracle: {name: human}          # you label on the page of `annotate`\n" if asks else ""
    compared = "what margin asks you" if asks else "margin against random"
    grid = "{seed: [0]" if asks else "{acquire.strategy: [margin, random], seed: [0, 1, 2]"
    reported = "val" if asks and not measured else reported
    held_out = ", held_out: 0.2" if reported == "held_out" else ""
    comment = "a fifth of the training images, never trained on" if held_out else "measured on this split"
    return (
        f"# Proposed by `init`: {compared} on {path}, with a linear head on a frozen network whose\n"
        "# weights are included in the installation. experiments/own-images.yaml trains a network instead.\n"
        f"name: {name}\n"
        f"dataset: {{name: folder, path: {_flow(path)}, long_side: {LONG_SIDE}{held_out}}}\n"
        "model: {backbone: tf_efficientnet_lite0, frozen: true, head: {name: linear}}\n"
        f"{people}"
        "acquire: {strategy: margin, initial_pixels: 5, pixels_per_stage: 5}     # labelled pixels per image\n"
        f"evaluate: {{splits: {{{reported}: {{}}}}, report: {reported}}}          # {comment}\n"
        "grid:\n"
        f"  - {grid}, budget: [5, 10, 15, 20]}}\n"
    )


def _white(folder: Path, layout: Layout) -> int | None:
    """The value of white in 16-bit images, guessed from the largest value; None without such images."""
    largest = 0
    for where in layout.splits.values():
        place = folder / where["images"]
        for path in sorted(place.rglob("*") if layout.recursive else place.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and _is_deep(path):
                pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                largest = max(
                    largest, 0 if pixels is None else int(np.max(pixels[..., :3] if pixels.ndim > 2 else pixels))
                )
    return next(2**bits - 1 for bits in (10, 12, 14, 16) if largest < 2**bits) if largest else None


def _is_deep(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            tiles: Any = getattr(image, "tile", None)
            return DEEP in f"{image.mode} {tiles[0][3] if tiles else ''}"
    except OSError:
        return False


def slug(text: str) -> str:
    """An experiment name made from a folder's name."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")
    return plain or "own-images"
