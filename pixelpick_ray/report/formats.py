"""Writers of tables as Markdown, LaTeX, plain text and HTML."""

import html
import re
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from pixelpick_ray.report.parts import Table


def to_markdown(table: Table) -> str:
    """Write a table as Markdown, with its caption above and its notes below."""
    rule = ["---:" if side == "r" else "---" for side in table.alignment]
    rows = _written(table, _markdown, "**{}**")
    lines = [" | ".join(row) for row in (map(_markdown, table.header), rule, *rows)]
    parts = [table.caption, "\n".join(f"| {line} |" for line in lines), *table.notes]
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    return re.sub(r"[\\|<*`]", r"\\\g<0>", text)


def _written(table: Table, escape: Callable[[str], str], strong: str) -> list[list[str]]:
    """Cells escaped for a format; `strong` is its pattern for bold."""
    return [
        [
            strong.format(escape(cell)) if (at, column) in table.strong else escape(cell)
            for column, cell in enumerate(row)
        ]
        for at, row in enumerate(table.rows)
    ]


def to_latex(table: Table, label: str) -> str:
    """Write a table as a LaTeX float, with the packages it needs in a comment."""
    return latex_tables({label: table})


def latex_tables(tables: Mapping[str, Table]) -> str:
    """Write tables, by label, as LaTeX floats, after a comment with the packages they need.

    The output is ASCII. Tables wider than the line are scaled down by TeX; cells with long text are wrapped.
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
    """Alignments and heads of all columns; heads wider than their column are wrapped."""
    columns, heads = [], []
    for side, head, *cells in zip(table.alignment, table.header, *table.rows, strict=True):
        longest = max(map(len, cells), default=0)
        wrapped = side == "l" and longest > _WRAPPED
        columns.append(r">{\raggedright\arraybackslash}p{0.4\linewidth}" if wrapped else side)
        lines = textwrap.wrap(head, max(longest, _HEAD), break_long_words=False, break_on_hyphens=False)
        text = r"\\".join(map(_latex, lines))
        heads.append(rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}{text}\end{{tabular}}" if len(lines) > 1 else text)
    return "".join(columns), " & ".join(heads)


# Characters above which a text cell is wrapped, and up to which a head never is.
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
    # At the start of a row, "*" and "[" would be parsed as arguments of the preceding line end.
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

# Unicode combining marks and the LaTeX accent commands, which work in every encoding.
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
    """The character, a command for it, or its code point if LaTeX may lack the glyph."""
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii():
        return character if character.isprintable() else " "
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in _ACCENTS:
        return rf"\{_ACCENTS[parts[1]]}{{{parts[0]}}}"
    return f"{{[}}U+{ord(character):04X}]"


def to_text(table: Table) -> str:
    """Write a table in aligned columns for a terminal, its caption above and its notes below, without bold."""
    widths = [max(len(row[index]) for row in (table.header, *table.rows)) for index in range(len(table.header))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, table.alignment, strict=True)
        padded = (cell.rjust(width) if side == "r" else cell.ljust(width) for cell, width, side in cells)
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([table.caption, line(table.header), rule, *map(line, table.rows), *table.notes]) + "\n"


def to_html(table: Table) -> str:
    """Write a table as an HTML figure; all text is escaped."""
    sides = [' class="r"' if side == "r" else "" for side in table.alignment]

    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}{side}>{cell}</{tag}>' for cell, side in zip(cells, sides, strict=True))}</tr>"

    head = line([html.escape(cell) for cell in table.header], "th")
    body = "\n".join(line(row, "td") for row in _written(table, html.escape, "<strong>{}</strong>"))
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    caption = f"<figcaption>{html.escape(table.caption)}</figcaption>"
    grid = f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<figure>{caption}<div class="wide">{grid}</div>{notes}</figure>\n'
