"""Tables written as Markdown, LaTeX, plain text and HTML."""

import html
import re
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from pixelpick_ray.report.parts import Table


def to_markdown(table: Table) -> str:
    """The table as Markdown with its caption above and its notes below."""
    rule = ["---:" if side == "r" else "---" for side in table.alignment]
    rows = _written(table, _markdown, "**{}**")
    lines = [" | ".join(row) for row in (map(_markdown, table.header), rule, *rows)]
    parts = [table.caption, "\n".join(f"| {line} |" for line in lines), *table.notes]
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    return re.sub(r"[\\|<*`]", r"\\\g<0>", text)


def _written(table: Table, escape: Callable[[str], str], strong: str) -> list[list[str]]:
    """The cells as a format writes them; `strong` is its pattern for bold."""
    return [
        [
            strong.format(escape(cell)) if (at, column) in table.strong else escape(cell)
            for column, cell in enumerate(row)
        ]
        for at, row in enumerate(table.rows)
    ]


def to_latex(table: Table, label: str) -> str:
    """The table as a LaTeX float, with the packages that it needs in a comment."""
    return latex_tables({label: table})


def latex_tables(tables: Mapping[str, Table]) -> str:
    """Tables by their labels as LaTeX floats, after a comment with the packages that they need.

    The text is ASCII. TeX itself shrinks a table that is wider than the line; cells of long text are wrapped.
    """
    floats = (_latex_float(table, label) for label, table in tables.items())
    return "\n".join(["% needs \\usepackage{array,booktabs,graphicx}", *floats])


def _latex_float(table: Table, label: str) -> str:
    rows = [" & ".join(row) + r" \\" for row in _written(table, _latex, r"\textbf{{{}}}")]
    columns, heads = _latex_columns(table)
    notes = r"\par ".join(map(_latex, table.notes))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(table.caption)}}}",
            rf"\label{{{label}}}",
            r"\par\smallskip",
            r"\sbox0{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rf"{heads} \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}%",
            r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi",
            *([rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {notes}}}"] if notes else []),
            r"\end{table}",
            "",
        ]
    )


def _latex_columns(table: Table) -> tuple[str, str]:
    """The alignments and the heads of all columns; a head that is wider than its column has several lines."""
    columns, heads = [], []
    for side, head, *cells in zip(table.alignment, table.header, *table.rows, strict=True):
        longest = max(map(len, cells), default=0)
        wrapped = side == "l" and longest > _WRAPPED
        columns.append(r">{\raggedright\arraybackslash}p{0.4\linewidth}" if wrapped else side)
        lines = textwrap.wrap(head, max(longest, _HEAD), break_long_words=False, break_on_hyphens=False)
        text = r"\\".join(map(_latex, lines))
        heads.append(rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}{text}\end{{tabular}}" if len(lines) > 1 else text)
    return "".join(columns), " & ".join(heads)


# Characters above which a cell of text has several lines, and to which a head may always go.
_WRAPPED = 40
_HEAD = 9

_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    # At the start of a row, "*" and "[" would be taken for arguments of the line end before it.
    "*": "{*}",
    "[": "{[}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "→": r"$\rightarrow$",
    "µ": r"$\mu$",
    "μ": r"$\mu$",
    "°": r"$^\circ$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "€": r"\texteuro{}",
    "£": r"\pounds{}",
    "§": r"\S{}",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "\u00a0": "~",
}

# Combining marks of Unicode and the commands that set them on a letter in every encoding.
_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}


def _latex(text: str) -> str:
    return "".join(map(_latex_character, unicodedata.normalize("NFC", text)))


def _latex_character(character: str) -> str:
    """The character, a command for it, or its code where LaTeX may have no glyph for it."""
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii():
        return character if character.isprintable() else " "
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in _ACCENTS:
        return rf"\{_ACCENTS[parts[1]]}{{{parts[0]}}}"
    return f"{{[}}U+{ord(character):04X}]"


def to_text(table: Table) -> str:
    """The table with aligned columns for a terminal, its caption above and its notes below; bold is left out."""
    widths = [max(len(row[index]) for row in (table.header, *table.rows)) for index in range(len(table.header))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, table.alignment, strict=True)
        padded = (cell.rjust(width) if side == "r" else cell.ljust(width) for cell, width, side in cells)
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([table.caption, line(table.header), rule, *map(line, table.rows), *table.notes]) + "\n"


def to_html(table: Table) -> str:
    """The table as an HTML figure; every text is escaped."""
    sides = [' class="r"' if side == "r" else "" for side in table.alignment]

    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}{side}>{cell}</{tag}>' for cell, side in zip(cells, sides, strict=True))}</tr>"

    head = line([html.escape(cell) for cell in table.header], "th")
    body = "\n".join(line(row, "td") for row in _written(table, html.escape, "<strong>{}</strong>"))
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    caption = f"<figcaption>{html.escape(table.caption)}</figcaption>"
    grid = f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<figure>{caption}<div class="wide">{grid}</div>{notes}</figure>\n'
