"""The whole report: every file, the same bytes each time, no torch and no ray, nothing from elsewhere."""

import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.errors import SpecError
from pixelpick_ray.report.files import write_report
from pixelpick_ray.store import Store
from tests.support.study import Study, experiment, matrix

pytestmark = pytest.mark.whole_report

TABLES = {"table.md", "table.csv", "rows.csv", "pairs.csv", "scoreboard.csv", "queries.csv"}
LATEX = {"table.tex", "table_wide.tex", "table_transposed.tex", "table_classes.tex"}
FILES = TABLES | LATEX | {"curve.png", "curve.svg", "curve.pdf", "index.html"}
SPEC = (
    "title='<b>5 & 6</b>'",
    "grid=[{acquire.strategy: [margin, random], seed: [0, 1, 2], budget: [10, 20]}, {seed: [0, 1], budget: [full]}]",
)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read(folder: Path) -> tuple[str, str]:
    """The text and the page."""
    return (folder / "table.md").read_text(encoding="utf-8"), (folder / "index.html").read_text(encoding="utf-8")


def fill(study: Study, **provenance: Any) -> Experiment:
    """An experiment with results, one of them missing."""
    lost, spec = (1, 20), experiment(*SPEC)
    study.fill(spec, lambda t: None if (t.seed, t.budget) == lost else matrix(40 + 10 * t.seed), **provenance)
    return spec


@pytest.fixture(scope="module")
def out(kept: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report, which tests read."""
    out = tmp_path_factory.mktemp("report") / "deep" / "out"
    summary = write_report(kept.store, [fill(kept, device="Some <GPU>")], out)
    assert {path.name for path in summary.files} == set(contents(out)) == FILES
    assert (summary.num_trials, len(summary.missing)) == (14, 2)
    return out


def test_every_file_is_written_and_the_page_stands_alone(kept: Study, out: Path) -> None:
    text, page = read(out)
    assert "25.0 ± 7.1" in text
    assert "cannot go below" in text
    assert ElementTree.parse(out / "curve.svg").getroot().tag.endswith("svg")
    for told in ("<title>&lt;b&gt;5 &amp; 6&lt;/b&gt;</title>", "Some &lt;GPU&gt;", "<h2>Strategy comparison<"):
        assert told in page
    for outside in (" src=", 'href="http', "url(http", "@import", str(out.parents[1]), str(kept.store.path)):
        assert outside not in page


def test_a_copied_store_gives_the_same_bytes_and_only_the_page_depends_on_how_long_it_took(
    study: Study, kept: Study, out: Path, tmp_path: Path
) -> None:
    copied = Store(shutil.copytree(kept.store.path, tmp_path / "elsewhere"))
    write_report(copied, [experiment(*SPEC)], tmp_path / "second")
    assert contents(out) == contents(tmp_path / "second")
    write_report(study.store, [fill(study, seconds=9000, device="Some <GPU>")], tmp_path / "third")
    first, third = contents(out), contents(tmp_path / "third")
    assert {name for name in FILES if first[name] != third[name]} == {"index.html"}
    assert b"2.5" in third["index.html"]  # hours of a fit


@pytest.mark.usefixtures("undrawn")
def test_an_empty_store_is_missing_and_no_table_of_an_earlier_report_stays(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("kept")
    summary = write_report(Store(tmp_path / "none"), [experiment()], tmp_path / "out")
    assert len(summary.missing) == 6
    written = {path.name for path in summary.files}
    assert written == FILES - {"table_transposed.tex", "table_classes.tex"}
    assert set(contents(tmp_path / "out")) == written | {"mine.txt"}
    assert "missing 0/3" in read(tmp_path / "out")[0]
    with pytest.raises(SpecError, match=r"cannot be written .* give a writable folder with free space"):
        write_report(Store(tmp_path / "none"), [experiment()], tmp_path / "out" / "mine.txt")


@pytest.mark.usefixtures("undrawn")
def test_every_section_is_in_its_files(study: Study, tmp_path: Path) -> None:
    spec = experiment(
        "dataset={name: cityscapes, size: [256, 512]}",
        "model={backbone: mobilenetv2_100}",
        "evaluate={splits: {val: {size: [512, 1024]}, test: {}}, report: val, when: every_epoch}",
    )
    study.fill(spec, lambda trial: [[[40, 0, 0], [60, 0, 0], [0, 0, 0]]] * 2 if trial.seed == 1 else None)
    known = {"pixels": 1, "images": 1, "class_counts": [1, 0, 0], "entropy": 1.0, "distinct_classes": 1.0}
    study.ask(spec, lambda trial, stage: known | {"spread": 2.0})
    write_report(study.store, [spec], tmp_path)
    text, page = read(tmp_path)
    titles = ["Results", "Budget curve", "Protocols", "Published numbers", "Missing", "Classes", "Queries"]
    assert re.findall("<h2>([^<]*)", page) == [*titles, "Other papers", "Provenance"]
    assert text.startswith("mIoU in percent on cityscapes val (512 x 1024 pixels). Training at 256 x 512 pixels")
    assert "not comparable" in text
    assert "Queries at each stage" in text
    assert ("RIPU" in page, "RIPU" in text) == (True, False)
    assert "<td>car</td>" in page  # which does not occur
    assert not re.search(r"[^a-z]nan[^a-z]", re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL).lower())
    assert "http" not in re.sub(r"<p class=.note.>.*?</p>|http-equiv", "", page.replace("http://www.w3.org", ""))
