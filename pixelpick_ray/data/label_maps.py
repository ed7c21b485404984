"""Conversion of values or colours in label files to class indices."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pixelpick_ray.data.image_files import LabelFile, UInt8Array, packed
from pixelpick_ray.errors import DataError

Colour = tuple[int, int, int]
ClassIndices = npt.NDArray[np.int16]  # class indices, void or _NONE
_NONE = -1
_MOST_SHOWN = 5  # colours in a message


@dataclass(frozen=True)
class LabelEncoding:
    """The mapping from values and colours in label files to classes.

    ``ids`` and ``colours`` list those of each class, in index order. If a file has a palette, its colours take
    precedence over its indices. With ``colours_required``, a palette with unknown colours is rejected; otherwise such
    files are read by index, unless that contradicts a known colour or another file.
    """

    ids: Sequence[Sequence[int]]
    void_ids: Sequence[int]
    void_index: int
    colours: Sequence[Sequence[Colour]] = ()
    void_colours: Sequence[Colour] = ()
    colours_required: bool = False
    allowed: str = ""  # text for the allowed values
    remedy: str = "correct the label map"
    _seen: dict[int, tuple[int, Path]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def decode(self, file: LabelFile, path: Path) -> UInt8Array:
        """Class indices and void (H, W). DataError names the file and the values or colours that are neither."""
        if file.palette is not None and file.values is not None:
            indices = self._of_palette(file.values, file.palette, path)
        elif file.colours is not None and (self.colours or file.values is None):
            indices = self._of_colours(file.colours, file.values, path)
        else:
            indices = self._of_values(np.asarray(file.values), file.bits, path)
        return indices.astype(np.uint8)

    @cached_property
    def _by_id(self) -> ClassIndices:
        table = np.full(1 << 16, _NONE, dtype=np.int16)
        table[list(self.void_ids)] = self.void_index
        for index, ids in enumerate(self.ids):
            table[list(ids)] = index
        return table

    @cached_property
    def _by_colour(self) -> dict[int, int]:
        void = {int(packed(colour)): self.void_index for colour in self.void_colours}
        return void | {int(packed(one)): index for index, colours in enumerate(self.colours) for one in colours}

    @cached_property
    def _allowed(self) -> str:
        if self.allowed:
            return self.allowed
        void = f" and {listed(self.void_ids)} (void)" if self.void_ids else ""
        return f"{listed(one for ids in self.ids for one in ids)}{void}"

    # Values

    def _of_values(self, values: npt.NDArray[np.integer], bits: int, path: Path) -> ClassIndices:
        indices = self._looked_up(values)
        if bits < 8:
            # Grey of few bits is brightness if a PNG optimiser wrote it, or raw values; of one bit, often a mask.
            bright = self._looked_up(values.astype(np.int32) * (255 // (2**bits - 1)))
            if self._doubt(bright) < self._doubt(indices) or (bits > 1 and self._doubt(bright) < 2):
                return bright
        if (indices == _NONE).any():
            self._refuse(values, indices == _NONE, path)
        return indices

    def _looked_up(self, values: npt.NDArray[np.integer]) -> ClassIndices:
        if values.dtype == np.uint8:
            return np.asarray(self._by_id[values], dtype=np.int16)
        is_known = (values >= 0) & (values < len(self._by_id))
        return np.where(is_known, self._by_id[np.where(is_known, values, 0)], np.int16(_NONE))

    def _doubt(self, indices: ClassIndices) -> int:
        """0 if all pixels are classes, 1 if some are void, 2 if some are neither."""
        return 2 if (indices == _NONE).any() else int((indices == self.void_index).any())

    def _refuse(self, values: npt.NDArray[np.integer], wrong: npt.NDArray[np.bool_], path: Path) -> None:
        y, x = (int(at) for at in np.unravel_index(np.argmax(wrong), wrong.shape))
        found = np.unique(values)
        is_counted = all(list(ids) == [at] for at, ids in enumerate(self.ids))
        hint = ""
        if is_counted and found[0] > 0 and len(self.ids) in found:
            hint = "; the file has no 0: if values start at 1, give classes as a mapping, NAME: 1 and so on"
        elif is_counted and len(self.ids) == 2 and len(objects := set(found.tolist()) - {0, *self.void_ids}) == 1:
            (mark,) = objects
            hint = f"; if {mark} marks the object, give classes as a mapping, NAME: 0 and NAME: {mark}"
        raise DataError(f"{path}: label value {values[y, x]} at (y={y}, x={x}); allowed are {self._allowed}{hint}")

    # Colours

    def _of_colours(
        self, colours: npt.NDArray[np.int32], values: npt.NDArray[np.integer] | None, path: Path
    ) -> ClassIndices:
        found, counts = np.unique(colours, return_counts=True)
        known = np.asarray([self._by_colour.get(int(one), _NONE) for one in found], dtype=np.int16)
        if _NONE not in known:
            return known[np.searchsorted(found, colours)]
        if values is not None and not self.colours_required:
            return self._of_values(values, 8, path)
        order = [int(at) for at in np.argsort(-counts, kind="stable") if known[at] == _NONE]
        shown = ", ".join(f"{list(rgb(found[at]))} at {counts[at]} pixels" for at in order[:_MOST_SHOWN])
        more = f", and {len(order) - _MOST_SHOWN} more" if len(order) > _MOST_SHOWN else ""
        if not self.colours:
            raise DataError(
                f"{path}: is a colour mask ({shown}{more}); list the colours of the classes in dataset.yaml, e.g. "
                f"colours: {{NAME: {list(rgb(found[order[0]]))}}}, or save one channel of class indices"
            )
        blurred = (
            "; so many usually come from blurred edges or JPEG: export the masks again without these" if more else ""
        )
        raise DataError(f"{path}: has unknown colours, {shown}{more}; {self._known_colours}{blurred}")

    @cached_property
    def _known_colours(self) -> str:
        return f"known are {', '.join(str(list(rgb(one))) for one in self._by_colour)}; {self.remedy}"

    # Palettes

    def _of_palette(self, indices: npt.NDArray[np.integer], palette: npt.NDArray[np.int32], path: Path) -> ClassIndices:
        colour_of = dict(enumerate(palette.tolist()))
        shown = {int(index): colour_of.get(int(index), _NONE) for index in np.flatnonzero(np.bincount(indices.ravel()))}
        known = {index: self._by_colour[colour] for index, colour in shown.items() if colour in self._by_colour}
        others = [index for index in shown if index not in known and self._by_id[index] != self.void_index]
        is_plain = max(shown) > 0 and len(set(palette[: max(shown) + 1].tolist())) == 1
        if self.colours and not others and not is_plain:
            table = self._by_id[: 1 << 8].copy()
            table[list(known)] = list(known.values())
            return np.asarray(table[indices], dtype=np.int16)
        if not is_plain and any(colour != index * 0x010101 for index, colour in shown.items()):
            self._check_indices(shown, known, others, path)
        return self._of_values(indices, 8, path)

    def _check_indices(self, shown: dict[int, int], known: dict[int, int], others: list[int], path: Path) -> None:
        """Raise DataError if a file's palette contradicts its indices or another file's palette."""
        if self.colours_required or any(self._by_id[index] != one for index, one in known.items()):
            some = ", ".join(f"{list(rgb(shown[index]))} (index {index})" for index in others[:_MOST_SHOWN])
            raise DataError(f"{path}: its palette has unknown colours, {some}; {self._known_colours}")
        greys = {index: colour & 255 for index, colour in shown.items() if colour == (colour & 255) * 0x010101}
        if len(greys) == len(shown) and all(
            self._by_id[grey] not in (_NONE, self.void_index) for grey in greys.values()
        ):
            raise DataError(
                f"{path}: the greys of its palette are also class values, but differ from its indices "
                f"({', '.join(f'index {index} is grey {grey}' for index, grey in greys.items() if index != grey)}); "
                "save it as one grey channel, or list the colours of the classes under colours: in dataset.yaml"
            )
        with self._lock:
            for index, colour in shown.items():
                first, where = self._seen.setdefault(index, (colour, path))
                if colour != first and self._by_id[index] != self.void_index:
                    raise DataError(
                        f"{path}: palette index {index} has the colour {list(rgb(colour))}, but {list(rgb(first))} "
                        f"in {where}; list the colours of the classes under colours: in dataset.yaml, or save all "
                        "label maps with the same palette"
                    )


def rgb(colour: int) -> Colour:
    """Unpack a colour into red, green and blue."""
    return int(colour) >> 16 & 255, int(colour) >> 8 & 255, int(colour) & 255


def listed(values: Iterable[int]) -> str:
    """Numbers as text with ranges: 0..2, 7, 9."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}..{last}" for first, last in runs)
