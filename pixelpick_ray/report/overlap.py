"""Overlap of picks: whether strategies and seeds ask for the same or nearby pixels."""

import io
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree  # type: ignore[import-untyped]

from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.report.cells import Line
from pixelpick_ray.report.chains import ReportedChain
from pixelpick_ray.report.parts import Table
from pixelpick_ray.report.statistics import mean
from pixelpick_ray.report.tables import line_columns, strategy_text
from pixelpick_ray.store import Store

NEAR = 5.0  # pixels
SEEDS = 3  # at most, per line
IMAGES = 50  # at most, evenly spaced in the training set
_APART = 1e6  # distance between images, along an axis of their own
_BEYOND_NEAR, _BEYOND_SAME = NEAR + 0.01, 0.5  # distances just too large to count

PixelsByLine = tuple[LabelledPixels, ...]  # of one chain, by stage
Points = npt.NDArray[np.float64]  # (N, 3): image, y, x


def overlap_table(store: Store, chains: Sequence[ReportedChain]) -> Table | None:
    """Tabulate the overlap between strategies with the same seed, and between seeds of the same strategy.

    It is the percentage of pixels asked for after the first stage that lie near one of the other chain's; chains with
    different largest budgets are compared with all their pixels. None if there are no two chains to compare.
    """
    by_setting: defaultdict[tuple[tuple[str, ...], str], dict[Line, dict[int, PixelsByLine]]] = defaultdict(dict)
    for chain in chains:
        seeds = by_setting[chain.line.model, chain.line.setting].setdefault(chain.line, {})
        if len(seeds) < SEEDS and (asked := _asked(store, chain)):
            seeds[chain.point.seed] = asked
    texts = {line: strategy_text(line) for lines in by_setting.values() for line in lines}
    columns = {name: column for name, column in line_columns(texts).items() if name != "strategy"}
    rows = []
    for lines in by_setting.values():
        where = tuple(column[next(iter(lines))] for column in columns.values())
        rows += [(*where, *row) for row in _rows(_trees(lines), texts)]
    if not rows:
        return None
    caption = (
        f"Pixels asked for after the first stage that lie within {NEAR:g} pixels of one of the other's, and those that "
        f"coincide, in percent: means over both directions and at most {SEEDS} seeds, on at most {IMAGES} "
        "evenly spaced training images. The overlap between two seeds of random sampling is the chance level."
    )
    header = (*columns, "one", "other", "seeds", "near (%)", "same (%)", "n")
    return Table(caption, header, tuple(rows), "l" * (len(columns) + 3) + "rrr")


def _rows(lines: dict[Line, dict[int, cKDTree]], texts: dict[Line, str]) -> list[tuple[str, ...]]:
    rows = []
    for (one, ours), (other, theirs) in combinations(lines.items(), 2):
        pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
        rows.append((texts[one], texts[other], "the same", *_shares(pairs)))
    for line, seeds in lines.items():
        pairs = list(combinations(seeds.values(), 2))
        rows.append((texts[line], texts[line], "different", *_shares(pairs)))
    return [row for row in rows if row[-1] != "0"]


def _shares(pairs: Sequence[tuple[cKDTree, cKDTree]]) -> tuple[str, str, str]:
    distances = [_distances(*pair) for one, other in pairs for pair in ((one, other), (other, one))]
    near, same = (
        100 * mean([float((own < beyond).mean()) for own in distances]) for beyond in (_BEYOND_NEAR, _BEYOND_SAME)
    )
    return f"{near:.1f}", f"{same:.2f}", str(len(pairs))


def _distances(points: cKDTree, others: cKDTree) -> npt.NDArray[np.float64]:
    """Distance (N,) in pixels from each point to the nearest of the others, infinite if none is near."""
    nearest: npt.NDArray[np.float64] = others.query(points.data, distance_upper_bound=_BEYOND_NEAR)[0]
    return nearest


def _asked(store: Store, chain: ReportedChain) -> PixelsByLine:
    """Pixels asked for after the first stage; empty if any are not stored."""
    asked = []
    for _, key in list(chain.pick_keys())[1:]:
        files = store.files("pick", key, ["pixels.npz"]) if key else None
        if files is None:
            return ()
        asked.append(LabelledPixels.read(io.BytesIO(files["pixels.npz"])))
    return tuple(asked)


def _trees(lines: dict[Line, dict[int, PixelsByLine]]) -> dict[Line, dict[int, cKDTree]]:
    """Pixels of all chains of a setting on the same few images; chains without any there are left out."""
    chains = [asked for seeds in lines.values() for asked in seeds.values()]
    names = sorted({name for asked in chains for pixels in asked for name in pixels.names})
    shown = np.unique(np.linspace(0, len(names) - 1, num=IMAGES, dtype=int)).tolist() if names else []
    numbers = {names[at]: number for number, at in enumerate(shown)}
    points = {line: {seed: _numbered(asked, numbers) for seed, asked in seeds.items()} for line, seeds in lines.items()}
    return {line: {seed: cKDTree(own) for seed, own in seeds.items() if len(own)} for line, seeds in points.items()}


def _numbered(asked: PixelsByLine, numbers: dict[str, int]) -> Points:
    """Pixels of the numbered images, as points."""
    parts = []
    for pixels in asked:
        image = np.asarray([numbers.get(name, -1) for name in pixels.names], dtype=np.int64)[pixels.image]
        parts.append(np.stack([image * _APART, pixels.y, pixels.x], axis=1)[image >= 0])
    return np.concatenate(parts)
