"""One table in every format."""

from dataclasses import replace

import pytest

from pixelpick_ray.report.formats import latex_tables, to_html, to_latex, to_markdown, to_text
from pixelpick_ray.report.parts import Table

SMALL = Table("A & B", ("name", "x_1"), (("a|b", "1.0 ± 0.5"), ("<c>", "10.0")), "lr", ("50 % of $1",))
BOLD = replace(SMALL, strong=frozenset({(0, 1)}))


def test_markdown_and_plain_text_are_aligned_and_html_is_escaped() -> None:
    expected = "A & B\n\n| name | x_1 |\n| --- | ---: |\n| a\\|b | 1.0 ± 0.5 |\n| \\<c> | 10.0 |\n\n50 % of $1\n"
    assert to_markdown(SMALL) == expected
    rows = ["name        x_1", "----  ---------", "a|b   1.0 ± 0.5", "<c>        10.0"]
    assert to_text(SMALL).splitlines() == ["A & B", *rows, "50 % of $1"]
    text = to_html(SMALL)
    assert "<figcaption>A &amp; B</figcaption>" in text
    assert '<td>&lt;c&gt;</td><td class="r">10.0</td>' in text


LATEX = r"""% needs \usepackage{array,booktabs,graphicx}
\begin{table}
\centering
\caption{A \& B}
\label{tab:small}
\par\smallskip
\sbox0{%
\begin{tabular}{lr}
\toprule
name & x\_1 \\
\midrule
a\textbar{}b & 1.0 $\pm$ 0.5 \\
\textless{}c\textgreater{} & 10.0 \\
\bottomrule
\end{tabular}}%
\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi
\par\smallskip\parbox{\linewidth}{\footnotesize 50 \% of \$1}
\end{table}
"""


def test_latex_is_escaped_wrapped_and_names_its_packages_once() -> None:
    assert to_latex(SMALL, "tab:small") == LATEX
    table = Table("", ("why", "n"), (("word " * 12, "1" * 60),), "lr")
    assert r"\begin{tabular}{>{\raggedright\arraybackslash}p{0.4\linewidth}r}" in to_latex(table, "tab:a")
    table = Table("", ("model", "pixels per image"), (("a", "10"),), "lr")
    head = r"model & \begin{tabular}[b]{@{}r@{}}pixels\\per image\end{tabular} \\"
    assert head in to_latex(table, "tab:a").splitlines()
    text = latex_tables({"tab:a": SMALL, "tab:b": BOLD})
    assert text.startswith("% needs ")
    assert text.count("usepackage") == 1
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert text.index(r"\label{tab:a}") < text.index(r"\label{tab:b}")
    assert r"\textbf{" in text[text.index(r"\label{tab:b}") :]


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("#1 {x} ~ ^ \\", r"\#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}"),
        ('"a" – b·c × d', r"''a'' -- b$\cdot$c $\times$ d"),
        ("é ü ñ Å ç ž ß", r"\'{e} \"{u} \~{n} \r{A} \c{c} \v{z} \ss{}"),
        ("e\u0301", r"\'{e}"),
        ("[*]", "{[}{*}]"),
        ("漢 λ \u1ed9 🌳", "{[}U+6F22] {[}U+03BB] {[}U+1ED9] {[}U+1F333]"),
        ("a\x1b\nb", "a  b"),
    ],
)
def test_any_text_becomes_latex_in_ascii(text: str, latex: str) -> None:
    written = to_latex(Table(text, ("a",), (("b",),), "l"), "tab:a")
    assert f"\\caption{{{latex}}}\n" in written
    assert written.isascii()


def test_bold_is_marked_in_every_format_but_plain_text() -> None:
    assert "| a\\|b | **1.0 ± 0.5** |\n| \\<c> | 10.0 |" in to_markdown(BOLD)
    assert r"a\textbar{}b & \textbf{1.0 $\pm$ 0.5} \\" in to_latex(BOLD, "tab:bold")
    assert '<td>a|b</td><td class="r"><strong>1.0 ± 0.5</strong></td>' in to_html(BOLD)
    assert to_text(BOLD) == to_text(SMALL)
