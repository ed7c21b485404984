"""Building blocks of a report: what to show, not how; `formats.py` and `page.py` render them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; `alignment` has "l" or "r" per column, `strong` the (row, column) of bold cells."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    alignment: str
    notes: tuple[str, ...] = ()
    strong: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Prose:
    """Plain text, one paragraph per item."""

    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """Results over one axis; `svg` is a whole document. Without a caption, axis and scale are stated."""

    axis: str
    scale: Literal["linear", "log"]
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Curves:
    """Drawings of which the reader sees one at a time, and the numbers behind them."""

    curves: tuple[Curve, ...]
    data: Table


@dataclass(frozen=True)
class Pictures:
    """Images as safe HTML under a caption; shown only on the page."""

    caption: str
    html: str


@dataclass(frozen=True)
class Listing:
    """Preformatted text, collapsed until the reader opens it."""

    title: str
    text: str


Part = Listing | Table | Prose | Curves | Pictures
