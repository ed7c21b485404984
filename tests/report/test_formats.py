"""One table in every format."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pixelpick_ray.config.canonical import brief
from pixelpick_ray.report.formats import latex_tables, to_html, to_latex, to_markdown, to_text
from pixelpick_ray.report.parts import Table

SMALL = Table("A & B", ("name", "x_1"), (("a|b", "1.0 ± 0.5"), ("<c>", "10.0")), "lr", ("50 % of $1",))
BOLD = replace(SMALL, strong=frozenset({(0, 1)}))


def test_markdown_and_plain_text_are_aligned_html_is_escaped_and_bold_marked() -> None:
    expected = "A & B\n\n| name | x_1 |\n| --- | ---: |\n| a\\|b | 1.0 ± 0.5 |\n| \\<c> | 10.0 |\n\n50 % of $1\n"
    assert to_markdown(SMALL) == expected
    rows = ["name        x_1", "----  ---------", "a|b   1.0 ± 0.5", "<c>        10.0"]
    assert to_text(SMALL).splitlines() == ["A & B", *rows, "50 % of $1"]
    for told in ("<figcaption>A &amp; B</figcaption>", '<td>&lt;c&gt;</td><td class="r">10.0</td>'):
        assert told in to_html(SMALL)
    assert "| a\\|b | **1.0 ± 0.5** |\n| \\<c> | 10.0 |" in to_markdown(BOLD)
    assert r"a\textbar{}b & \textbf{1.0 $\pm$ 0.5} \\" in to_latex(BOLD, "tab:bold")
    assert '<td>a|b</td><td class="r"><strong>1.0 ± 0.5</strong></td>' in to_html(BOLD)
    assert to_text(BOLD) == to_text(SMALL)  # which has no bold


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
    assert (text.startswith("% needs "), text.count("usepackage")) == (True, 1)
    assert re.findall(r"\\label\{tab:\w\}|\\textbf|\\end\{table\}", text) == [
        *(r"\label{tab:a}", r"\end{table}", r"\label{tab:b}", r"\textbf", r"\end{table}")
    ]


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


# LaTeX that a real TeX sets: awkward names, wide tables, long texts

AWKWARD = 'tree & bush_50% "~^\\{x}$1 #2 <é ü ł> ± × – · … 漢'


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_awkward_wide_and_long_tables_are_set_within_the_line(tmp_path: Path) -> None:
    reason = brief(f"failed: CUDA_ERROR {AWKWARD} in /a/very_long_path/without_any_place/to_break_it/anywhere", 90)
    made = (
        Table(AWKWARD, (AWKWARD, "[b]"), ((AWKWARD, "1"), ("* a", "[2]"), ("[c]", "*")), "lr", (AWKWARD,) * 2),
        Table("Wide", ("pixels per image",) * 14, (("22.0 ± 2.0 (2/3)",) * 14,) * 3, "l" + "r" * 13),
        Table("Long", ("model", "seeds", "why"), (("deeplabv3plus mobilenetv2_100", "0, 1", reason),), "lll"),
        Table("Nothing", ("a",), (), "l"),
        BOLD,
    )
    text = latex_tables({f"tab:{number}": table for number, table in enumerate(made)})
    packages = re.findall(r"\\usepackage\{.*?\}", text.splitlines()[0])
    document = ("\\documentclass{article}", *packages, "\\begin{document}", text, "\\end{document}", "")
    (tmp_path / "tables.tex").write_text("\n".join(document), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    log = (tmp_path / "tables.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, log[-3000:]
    widths = re.findall(r"Overfull \\hbox \(([0-9.]+)pt too wide\)", log)
    assert [width for width in widths if float(width) > 20] == []  # points, where a reader would see it
