"""The user's own images and label maps, in a folder described by its file dataset.yaml."""

import glob
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pixelpick_ray.config.canonical import counted, digest
from pixelpick_ray.config.trial import DatasetSpec
from pixelpick_ray.config.yaml_text import read_text
from pixelpick_ray.data.dataset import DatasetFacts, FileDataset, check_inside, readable
from pixelpick_ray.data.folder_description import DESCRIPTION, SplitDescription, read_folder_description
from pixelpick_ray.data.image_files import IMAGE_SUFFIXES, LABEL_SUFFIXES
from pixelpick_ray.data.label_maps import Colour, LabelEncoding
from pixelpick_ray.data.voc import colour_map
from pixelpick_ray.errors import DataError, SpecError, data_errors

# Fields that affect decoding; omitted from signatures if not given, so that older prepared splits are still found.
_READING = {"classes", "void", "colours", "palette", "masks", "recursive", "range"}
_LOSSY_SUFFIXES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix not in LABEL_SUFFIXES)  # photos only
_PICTURES = (
    *(".gif", ".jfif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".psd", ".svg", ".pdf", ".npy", ".npz"),
    *(".pgm", ".ppm", ".pbm", ".pnm", ".exr", ".hdr", ".dcm", ".tga", ".dng", ".nef", ".cr2", ".arw", ".ico", ".lfs"),
)


@dataclass(frozen=True)
class _SplitFiles:
    """The files of a split: (image, label map) by image name, and a line for each reason why files were left out."""

    pairs: Mapping[str, tuple[Path, ...]]
    left_out: tuple[str, ...]


class _LeftOut:
    """Counts files that are not read by reason, with an example of each."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, why: str, name: str) -> None:
        count, first = self._found.get(why, (0, name))
        self._found[why] = count + 1, first

    def lines(self) -> tuple[str, ...]:
        return tuple(f"{counted(count, 'file')} {why}, e.g. {name}" for why, (count, name) in self._found.items())


class Folder(FileDataset):
    """A data set described by ``dataset.yaml``, with label maps matched to images by stem or by a pattern.

    An image's name is its path relative to the image folder.
    """

    def __init__(self, spec: DatasetSpec, data_path: Path) -> None:
        """Read the description. Raises SpecError without ``path``, DataError for a missing or invalid description."""
        super().__init__(spec, data_path)
        self._found: dict[str, _SplitFiles] = {}
        described = self._description = read_folder_description(check_inside(self.path / DESCRIPTION, data_path))
        classes = len(described.classes)
        self.facts = DatasetFacts(
            name="folder",
            class_names=described.class_names,
            void_index=described.void_index,
            mean=described.mean,
            std=described.std,
            # The map's first colour, black, is used for void.
            palette=_shown_colours(described.class_colours) or tuple(colour_map(at + 1) for at in range(classes)),
            splits=tuple(described.splits),
            train_split=described.train_split,
        )

    @property
    def path(self) -> Path:
        if self.spec.path is None:
            raise SpecError(
                f"dataset.path: is required for the data set folder; give the folder in {self.data_path} that "
                f"contains {DESCRIPTION}, e.g. dataset: {{name: folder, path: leaves}}"
            )
        return self.data_path / self.spec.path

    @cached_property
    def encoding(self) -> LabelEncoding:
        return self._description.encoding(self.path / DESCRIPTION)

    @property
    def white(self) -> int | None:
        return self._description.range

    @property
    def follows_links(self) -> bool:
        return self._description.follow_links

    def check_inside(self, path: Path) -> Path:
        try:
            return super().check_inside(path)
        except DataError as error:
            raise DataError(
                f"{error}; if you trust the links, set follow_links: true in {self.path / DESCRIPTION}"
            ) from None

    def identity(self, split: str) -> list[Any]:
        """Includes what results depend on in the description, not colours, file locations or values in label files."""
        facts = self.facts
        described = {
            "classes": facts.class_names,
            "void": facts.void_index,
            "mean": facts.mean,
            "std": facts.std,
        }
        return [*super().identity(split), described]

    def signature(self, split: str) -> list[list[str | int]]:
        described: list[str | int] = [str(self.spec.path), self.facts.num_classes, self.facts.void_index]
        reading = self._description.model_dump(mode="json", include=_READING, exclude_defaults=True)
        if not isinstance(self._description.classes, dict):
            del reading["classes"]
        if reading.get("void") == [self.facts.void_index]:
            del reading["void"]
        return [described + ([digest(reading)] if reading else []), *super().signature(split)]

    def has_labels(self, split: str) -> bool:
        """Whether a split is described with labels. Raises SpecError if it is not described at all."""
        return self._described(split).labels is not None

    def names(self, split: str) -> tuple[str, ...]:
        """Paths relative to the image folder. Raises SpecError if the split is not described."""
        self._found[split] = files = self._look(split)
        return tuple(files.pairs)

    def paths(self, split: str, name: str) -> tuple[Path, ...]:
        if split not in self._found:
            self.names(split)
        if name not in self._found[split].pairs:
            raise DataError(
                f"{self._folder(split, 'images') / name}: is no longer an image of split {split}; restore it, or run "
                "again"
            )
        return self._found[split].pairs[name]

    def file_name(self, split: str, name: str) -> str:
        return name

    def left_out(self, split: str) -> tuple[str, ...]:
        """Files in a split's folders that are not read: one line per reason."""
        if split not in self._found:
            self.names(split)
        return self._found[split].left_out

    def _described(self, split: str) -> SplitDescription:
        if split not in self._description.splits:
            raise SpecError(
                f"{self.path / DESCRIPTION}: has no split {split!r}; it describes {', '.join(self.facts.splits)}"
            )
        return self._description.splits[split]

    def _folder(self, split: str, what: str) -> Path:
        return self.path / str(getattr(self._described(split), what))

    def _look(self, split: str) -> _SplitFiles:
        """Find and pair the files of a split. DataError names files with no partner or several."""
        described = self._described(split)
        image_pattern, label_pattern = self._description.masks.patterns if self._description.masks else ("*", "*")
        left_out = _LeftOut()
        is_one_folder = described.labels is not None and self._folder(split, "images") == self._folder(split, "labels")
        images: dict[str, list[Path]] = {}
        is_told_by_suffix = is_one_folder and self._description.masks is None
        suffixes = _LOSSY_SUFFIXES if is_told_by_suffix else IMAGE_SUFFIXES
        for path in self._walk(split, "images", suffixes, left_out):
            relative = path.relative_to(self._folder(split, "images"))
            stem = _shared(relative, image_pattern)
            if is_one_folder and not is_told_by_suffix and _shared(relative, label_pattern) is not None:
                continue
            if stem is None:
                left_out.add(f"not called {image_pattern}", path.name)
            else:
                images.setdefault(stem, []).append(path)
        labels: dict[str, list[Path]] = {}
        for path in self._walk(split, "labels", LABEL_SUFFIXES, _LeftOut()) if described.labels else ():
            stem = _shared(path.relative_to(self._folder(split, "labels")), label_pattern)
            if stem is not None:
                labels.setdefault(stem, []).append(path)
        if is_told_by_suffix and not images:
            raise DataError(
                f"{self.path / DESCRIPTION}: splits.{split}: images and labels are both in {described.images!r} and "
                f"cannot be distinguished by suffix (photos: {', '.join(_LOSSY_SUFFIXES)}); use separate folders, or "
                "give the naming of the label maps, e.g. masks: {suffix: _mask}"
            )
        if described.list is not None:
            images, labels = self._listed(split, images, labels)
        return self._paired(split, images, labels, left_out)

    def _paired(
        self,
        split: str,
        images: dict[str, list[Path]],
        labels: dict[str, list[Path]],
        left_out: _LeftOut,
    ) -> _SplitFiles:
        folder = self._folder(split, "images")
        with data_errors() as wrong:
            for stem in sorted(images.keys() | labels.keys()):
                with wrong.kept():
                    self._check_pair(split, images.get(stem, []), labels.get(stem, []))
        if not images:
            others = "".join(f"; {line}" for line in left_out.lines())
            raise DataError(
                f"{folder}: contains no images; copy the images of split {split} there "
                f"({', '.join(IMAGE_SUFFIXES)}){others}"
            )
        pairs = {
            paths[0].relative_to(folder).as_posix(): (paths[0], *labels.get(stem, [])) for stem, paths in images.items()
        }
        return _SplitFiles(dict(sorted(pairs.items())), left_out.lines())

    def _walk(self, split: str, what: str, suffixes: tuple[str, ...], left_out: _LeftOut) -> Iterator[Path]:
        """Yield files with these suffixes, except hidden ones; other image files are added to `left_out`."""
        folder = self._folder(split, what)
        self.check_inside(folder)
        if not folder.is_dir():
            raise DataError(
                f"{self.path / DESCRIPTION}: splits.{split}.{what}: no folder {folder}; create it, or correct the entry"
            )
        others = {
            self.path / part for one in self._description.splits.values() for part in (one.images, one.labels) if part
        } - {folder}
        with readable():
            for place, inner, names in os.walk(folder, followlinks=self.follows_links, onerror=_raise):
                is_deeper = Path(place) != folder
                inner[:] = [
                    name for name in sorted(inner) if not name.startswith(".") and Path(place, name) not in others
                ]
                if self.follows_links and len(Path(place).relative_to(folder).parts) > 32:
                    raise DataError(f"{place}: links form a loop; remove the one that closes it")
                for name in sorted(names):
                    suffix = Path(name).suffix.lower()
                    if name.startswith("."):
                        continue
                    if suffix in suffixes and (self._description.recursive or not is_deeper):
                        yield Path(place, name)
                    elif suffix in suffixes and what == "images":
                        left_out.add("in subfolders, which need recursive: true", name)
                    elif suffix in _PICTURES:
                        left_out.add(f"{suffix}, which is not supported", name)

    def _listed(
        self, split: str, images: dict[str, list[Path]], labels: dict[str, list[Path]]
    ) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """The images on a split's list, and their label maps. DataError names missing ones."""
        path = self.path / str(self._described(split).list)
        try:
            lines = [line.strip() for line in read_text(self.check_inside(path)).splitlines()]
        except (OSError, UnicodeError) as error:
            raise DataError(
                f"{self.path / DESCRIPTION}: splits.{split}.list: {path} cannot be read ({error}); make it a text file "
                "with one image per line, or correct the entry"
            ) from error
        known_images, known_labels = _by_path(images, self._folder(split, "images")), {}
        if self.has_labels(split):
            known_labels = _by_path(labels, self._folder(split, "labels"))
        chosen: dict[str, list[Path]] = {}
        partners: dict[str, list[Path]] = {}
        with data_errors() as wrong:
            for line in filter(None, lines):
                with wrong.kept():
                    stem, image, label = _of_line(line, known_images, known_labels, path)
                    chosen[stem] = sorted({*chosen.get(stem, []), *image})
                    partners[stem] = label or labels.get(stem, [])
        if not chosen:
            raise DataError(
                f"{path}: names no image; give one per line, or leave list out of {self.path / DESCRIPTION}"
            )
        return chosen, partners

    def _check_pair(self, split: str, images: list[Path], labels: list[Path]) -> None:
        if len(images) == 1 and len(labels) == self.has_labels(split):
            return
        for what, paths in {"images": images, "labels": labels}.items():
            if len(paths) > 1:
                names = " and ".join(path.relative_to(self._folder(split, what)).as_posix() for path in paths)
                raise DataError(f"{self._folder(split, what)}: {names} have the same stem; keep one of them")
        without, lacks = ("images", "labels") if images else ("labels", "images")
        suffixes = LABEL_SUFFIXES if images else IMAGE_SUFFIXES
        name = (images or labels)[0].relative_to(self._folder(split, without)).as_posix()
        folder = self._folder(split, lacks)
        others = folder.rglob(f"{glob.escape(Path(name).stem)}.*") if images and folder != images[0].parent else ()
        if lossy := [path for path in others if path.suffix.lower() in _LOSSY_SUFFIXES]:
            raise DataError(
                f"{lossy[0]}: is not {', '.join(LABEL_SUFFIXES)}, as label maps must be, since JPEG and WebP change "
                "their values; export it again as PNG"
            )
        masks = self._description.masks
        called = f", called {masks.patterns[1 if images else 0]}," if masks else " of the same stem"
        raise DataError(
            f"{self._folder(split, without)}: {name} has no counterpart{called} in {self._folder(split, lacks)} "
            f"({', '.join(suffixes)}); add it, or remove {name}"
        )


def _raise(error: OSError) -> None:
    raise error


def _shown_colours(colours: tuple[tuple[Colour, ...], ...]) -> tuple[Colour, ...]:
    """The first colour of each class."""
    return tuple(one[0] for one in colours)


def _shared(relative: Path, pattern: str) -> str | None:
    """The text that matches the ``*`` of a pattern in a path without suffix; None if the pattern does not match."""
    before, _, behind = pattern.partition("*")
    stem = relative.with_suffix("").as_posix()
    fits = stem.startswith(before) and stem.endswith(behind) and len(stem) > len(before) + len(behind)
    return stem[len(before) : len(stem) - len(behind)] if fits else None


def _by_path(found: Mapping[str, list[Path]], folder: Path) -> dict[str, tuple[str, list[Path]]]:
    """(shared part, files) by relative path, both with and without suffix."""
    named: dict[str, tuple[str, list[Path]]] = {}
    for stem, paths in found.items():
        for path in paths:
            relative = path.relative_to(folder)
            named[relative.as_posix()] = stem, [path]
            named.setdefault(relative.with_suffix("").as_posix(), (stem, paths))
    return named


def _of_line(
    line: str,
    images: Mapping[str, tuple[str, list[Path]]],
    labels: Mapping[str, tuple[str, list[Path]]],
    path: Path,
) -> tuple[str, list[Path], list[Path]]:
    """Shared part, images and label maps for a line: an image or a pair, whose paths may start with unknown folders."""
    if (found := _at_tail(line, images)) is not None:
        return *found, []
    pair = re.split(r"[\t,; ]+", line)
    image, label = _at_tail(pair[0], images), _at_tail(pair[-1], labels)
    if len(pair) != 2 or image is None or (label is None and labels):
        raise DataError(f"{path}: the line {line!r} matches no image of this split; correct the list, or add the image")
    return *image, label[1] if label else []


def _at_tail(name: str, known: Mapping[str, tuple[str, list[Path]]]) -> tuple[str, list[Path]] | None:
    """Look up a path, dropping leading folders until it matches; None if nothing does."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part != "/"]
    tails = ("/".join(parts[at:]) for at in range(len(parts)))
    return next((known[tail] for tail in tails if tail in known), None)
