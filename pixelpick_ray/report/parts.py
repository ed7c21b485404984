"""What a report is made of: values that say what is shown, not how; `formats.py` and `page.py` write them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; `alignment` has "l" or "r" for each column, `strong` the (row, column) set in bold."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    alignment: str
    notes: tuple[str, ...] = ()
    strong: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Prose:
    """Sentences in plain words, a paragraph each."""

    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """The same results over one axis; `svg` is a document of its own. Without a caption, axis and scale are said."""

    axis: str
    scale: Literal["linear", "log"]
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Curves:
    """Drawings of which a reader sees one at a time, and the numbers that they show."""

    curves: tuple[Curve, ...]
    data: Table


@dataclass(frozen=True)
class Pictures:
    """Pictures as safe HTML under a caption; only the page shows them."""

    caption: str
    html: str


@dataclass(frozen=True)
class Listing:
    """A text as it is, line by line, that a reader opens."""

    title: str
    text: str


Part = Listing | Table | Prose | Curves | Pictures
