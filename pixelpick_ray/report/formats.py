"""Tables written as Markdown, LaTeX, plain text and HTML."""

import html
from collections.abc import Sequence

from pixelpick_ray.report.parts import Table


def to_markdown(table: Table) -> str:
    """The table as Markdown with its caption above and its notes below."""
    rule = ["---:" if side == "r" else "---" for side in table.alignment]
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (table.header, rule, *table.rows)]
    parts = [table.caption, "\n".join(f"| {line} |" for line in lines), *table.notes]
    return "\n\n".join(parts) + "\n"


def to_latex(table: Table, label: str) -> str:
    """The table for the LaTeX package booktabs."""
    lines = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in (table.header, *table.rows)]
    caption = " ".join((table.caption, *table.notes))
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(caption)}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{{table.alignment}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def to_text(table: Table) -> str:
    """The table with aligned columns for a terminal, its caption above and its notes below."""
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

    def line(row: Sequence[str], tag: str) -> str:
        cells = (f"<{tag}{side}>{html.escape(cell)}</{tag}>" for cell, side in zip(row, sides, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    head, body = line(table.header, "th"), "\n".join(line(row, "td") for row in table.rows)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    caption = f"<figcaption>{html.escape(table.caption)}</figcaption>"
    grid = f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<figure>{caption}<div class="wide">{grid}</div>{notes}</figure>\n'
