"""The report of a search, from journals written by hand: numbers, words, files, and the same bytes each time."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pixelpick_ray.config.search import DomainSpec
from pixelpick_ray.errors import SpecError
from pixelpick_ray.report import search_tables as tables
from pixelpick_ray.report.search import SearchReportSummary, write_search_report
from pixelpick_ray.report.search_figures import history, slices
from pixelpick_ray.report.search_importance import importance, importance_parts
from pixelpick_ray.search.design import make_search
from pixelpick_ray.search.journal import Journal, LevelReport
from pixelpick_ray.store import Store
from tests.support.experiments import experiment_of, experiment_text
from tests.support.searches import OTHER, OWN
from tests.support.study import csv_lines

pytestmark = pytest.mark.whole_report

TEXT = experiment_text(
    "hunt",
    title="<b>Settings & more</b>",
    dataset="{name: camvid, size: [360, 480]}",
    model="{backbone: resnet18, pretrained: none}",
    train="{epochs: 10, optimizer: {name: adam, lr: 1e-3}}",
    grid="[{seed: [0, 1], budget: [10, 20, 40]}]",
    search="{num_samples: 4, space: {train.optimizer.lr: {loguniform: [1e-4, 1e-2]}, "
    "acquire.strategy: {choice: [margin, random]}}}",
)
ONE_LEVEL, TWO_LEVELS = (f"grid=[{{seed: [0], budget: {budgets}}}]" for budgets in ([10], [10, 20]))
COMMAND = "launch.py run 'found.yaml'"
FILES = {"table.md", "table.tex", "table.csv", "samples.csv", "index.html"}
FILES |= {f"{name}.{kind}" for name in ("curve", "slices") for kind in ("png", "svg")}
SECTIONS = ["Result", "Best configurations", "History", "Budgets", "Importance", "Slices", "Stopped", "Cost"]


class Hunt:
    """A search with a journal to fill."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.experiment = experiment_of(TEXT, *overrides, where="hunt.yaml")
        self.store, self.search = Store(folder), make_search(self.experiment)
        self.journal = Journal(self.store, self.search)

    def add(self, values: Any, levels: Any, *, seconds: Any = (10, 20, 30), stopped: str = "", error: str = "") -> None:
        """A sample with mIoU by level and seed, and its seconds up to each level."""
        index = self.journal.issue(values, "by hand").index
        for position, mious in enumerate(levels):
            by_seed = {str(seed): miou for seed, miou in zip(self.search.seeds, mious, strict=True)}
            score = self.search.score([sum(one) / len(one) for one in levels[: position + 1]])
            fits = {seed: tuple(f"{index} {seed} {stage}" for stage in range(position + 1)) for seed in by_seed}
            self.journal.report(index, LevelReport(score, by_seed, fits, seconds[position]))
        if stopped:
            self.journal.stop(index, stopped)
        if error:
            self.journal.fail(index, error)

    @property
    def found(self) -> tables.Findings:
        return tables.Findings(self.search, Journal(self.store, self.search))

    def write(self, out: Path, **options: str) -> SearchReportSummary:
        return write_search_report(self.store, self.experiment, out, **options)


@pytest.fixture(scope="module")
def hunt(tmp_path_factory: pytest.TempPathFactory) -> Hunt:
    """One better than the file's own, one stopped after the second level, one that failed at once."""
    hunt = Hunt(tmp_path_factory.mktemp("hunt") / "store")
    low, high = (OWN | {"train.optimizer.lr": lr} for lr in (0.0001, 0.01))
    hunt.add(OWN, [[0.30, 0.32], [0.40, 0.42], [0.50, 0.52]], seconds=[10, 30, 70])
    hunt.add(OTHER, [[0.35, 0.35], [0.45, 0.47], [0.54, 0.60]], seconds=[12, 34, 76])
    hunt.add(low, [[0.20, 0.22], [0.25, 0.31]], seconds=[8, 26], stopped="asha <rung 2>")
    hunt.add(high, [], error="ValueError: loss\n is NaN")
    return hunt


@pytest.fixture(scope="module")
def out(hunt: Hunt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report, in a folder that has one of a search that had found nothing."""
    folder = tmp_path_factory.mktemp("report")
    Hunt(folder / "none").write(folder / "out")
    (folder / "out" / "mine.txt").write_text("kept")
    hunt.write(folder / "out", next_command=COMMAND)
    return folder / "out"


def rows(path: Path) -> list[dict[str, str]]:
    return csv_lines(path.read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def page(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def test_the_best_configurations_are_a_table_and_as_csv_have_every_digit(out: Path) -> None:
    assert (out / "table.md").read_text(encoding="utf-8") == (
        "The best configurations out of 2 finished samples. Score: mIoU in percent at 40 labelled pixels per image on "
        "camvid val, mean over 2 seeds with Student's 95 % interval.\n\n"
        "| rank | sample | train.optimizer.lr | acquire.strategy | score (%) | 95 % interval | vs own |\n"
        "| ---: | ---: | --- | --- | ---: | ---: | ---: |\n"
        "| 1 | 1 | 0.0025 | random | 57.0 | 18.9 to 95.1 | +6.0 |\n"
        "| 2 | 0 | 0.001 | margin | 51.0 | 38.3 to 63.7 | +0.0 |\n\n"
        "Sample 0 is the file's own configuration; vs own: difference from it in points.\n"
    )
    assert r"\label{tab:hunt-search}" in (out / "table.tex").read_text(encoding="utf-8")
    first, second = rows(out / "table.csv")
    low, high = stats.t.interval(0.95, 1, loc=0.57, scale=stats.sem([0.54, 0.60]))
    numbers = [float(first[name]) for name in ("score", "n", "low", "high", "difference")]
    assert numbers == pytest.approx([0.57, 2, low, high, 0.06], rel=1e-12)
    texts = [first[name] for name in ("rank", "sample", *OWN, "metric", "split", "budget")]
    assert texts == ["1", "1", "0.0025", "random", "miou", "val", "40"]
    assert (second["rank"], second["sample"]) == ("2", "0")


def test_one_seed_has_no_interval_and_a_stopped_own_configuration_no_differences(tmp_path: Path) -> None:
    hunt = Hunt(tmp_path, ONE_LEVEL)
    hunt.add(OWN, [[0.5]])
    table = tables.best_table(hunt.found)
    assert table.header == ("rank", "sample", *OWN, "score (%)", "vs own")
    assert "one seed." in table.caption
    hunt = Hunt(tmp_path)
    hunt.add(OWN, [[0.30, 0.32]], stopped="asha")
    hunt.add(OTHER, [[0.35, 0.35], [0.45, 0.47], [0.54, 0.60]])
    table = tables.best_table(hunt.found)
    assert "vs own" not in table.header
    assert table.rows[1] == ("-", "0", "0.001", "margin", "-", "-")
    assert table.notes == ("Sample 0 is the file's own configuration; it was stopped, with 31.0 % at 10 px.",)


def test_an_area_is_taken_seed_by_seed_from_the_first_budget(tmp_path: Path) -> None:
    hunt = Hunt(tmp_path, "search.metric={name: area}")
    hunt.add(OWN, [[0.1, 0.3], [0.3, 0.5], [0.5, 0.5]])
    # (10 (0.1 + 0.3) / 2 + 20 (0.3 + 0.5) / 2) / 30 and (10 (0.3 + 0.5) / 2 + 20 (0.5 + 0.5) / 2) / 30
    areas = [1 / 3, 14 / 30]
    low, high = stats.t.interval(0.95, 1, loc=np.mean(areas), scale=stats.sem(areas))
    summary = hunt.found.summary(hunt.found.ranked[0])
    assert [summary.mean, summary.low, summary.high] == pytest.approx([0.4, low, high], rel=1e-12)
    assert "normalised area under the curve of mIoU (percent) over 10" in tables.best_table(hunt.found).caption
    overrides = ("search.epochs=[2]", "evaluate.when=every_epoch", "search.metric={name: area}")
    by_epoch = Hunt(tmp_path / "epochs", *overrides, "grid=[{seed: [0], budget: [20, 40]}]")
    assert "over 20 to 40 labelled pixels per image" in tables.best_table(by_epoch.found).caption


def test_ten_are_shown_and_the_file_s_own_one_wherever_it_is(tmp_path: Path) -> None:
    hunt = Hunt(tmp_path, ONE_LEVEL, "search.num_samples=13")
    for miou in (0.1, *(0.5 - number / 100 for number in range(11)), 0.4):
        hunt.add(OTHER if hunt.journal.samples else OWN, [[miou]])
    table = tables.best_table(hunt.found)
    assert [row[:2] for row in table.rows] == [*((str(rank), str(rank)) for rank in range(1, 11)), ("13", "0")]
    assert [sample.index for sample in hunt.found.ranked] == [*range(1, 13), 0]  # of equals the first one issued
    assert table.notes[1] == "Finished and not shown: 2; samples.csv has every sample."


def test_every_sample_level_and_seed_is_a_line(out: Path, tmp_path: Path) -> None:
    lines = rows(out / "samples.csv")
    known = ["sample", "origin", "state", "level", "budget", "epoch", "seed", "miou", "score", "seconds", "stopped"]
    assert list(lines[0]) == [*known, *OWN]
    assert [line["sample"] for line in lines] == ["0"] * 6 + ["1"] * 6 + ["2"] * 4 + ["3"]
    measured = ["2", "20", "", "1", "0.31", "0.28", "26", "asha <rung 2>", "0.0001", "margin"]
    assert list(lines[15].values()) == ["2", "by hand", "stopped", *measured]
    assert list(lines[16].values()) == ["3", "by hand", "failed", *[""] * 8, "0.01", "margin"]
    hunt = Hunt(tmp_path, "search.epochs=[2, 5]", "evaluate.when=every_epoch", TWO_LEVELS)
    hunt.add(OWN, [[0.1], [0.2], [0.3]])
    lines = csv_lines(tables.samples_csv(hunt.found))
    found = [(line["level"], line["budget"], line["epoch"], line["state"]) for line in lines]
    assert found == [("1", "10", "2", "open"), ("2", "10", "5", "open"), ("3", "10", "", "open")]
    values = [0.001, 1e-05, True, None, "margin", "5e-4", [0.5, [1]], {"name": "poly", "power": 0.9}]
    texts = ["0.001", "1e-05", "true", "null", "margin", "'5e-4'", "[0.5, [1]]", "{name: poly, power: 0.9}"]
    assert [tables.value_text(value) for value in values] == texts  # as YAML has them


def test_what_was_stopped_is_a_table_and_the_cost_is_that_by_hand(hunt: Hunt) -> None:
    table = tables.stopped_table(hunt.found)
    assert table.header == ("sample", "stopped after", "score (%)", "why")
    assert table.rows == (("2", "20 px", "28.0", "asha <rung 2>"),)
    cost = tables.cost_of(hunt.found)
    # Stages up to 40 pixels: 4 a seed, 8 a sample. The stopped one trained two of each.
    assert (cost.stages, cost.all_stages, cost.shared) == (8 + 8 + 4, 32, False)
    # Sample 2 lacks the last level, (40 + 42) / 2 s; sample 3 all: (10 + 12 + 8) / 3 + (20 + 22 + 18) / 3 + 41 s.
    assert cost.seconds == 70 + 76 + 26
    assert cost.all_seconds == pytest.approx(172 + 41 + 10 + 20 + 41)
    table = tables.cost_table(hunt.found, cost)
    assert table.rows == (("stages trained", "20", "32", "62.5"), ("seconds", "172", "284", "60.6"))
    assert table.notes == ()
    assert "an estimate" in table.caption


def test_a_stage_counts_once_as_its_share_where_it_was_left_and_not_where_it_cannot_be_trained(tmp_path: Path) -> None:
    hunt = Hunt(tmp_path, TWO_LEVELS)
    hunt.add(OWN, [[0.5], [0.6]])
    hunt.add(OWN | {"acquire.strategy": "random"}, [[0.5]], stopped="asha")
    cost = tables.cost_of(hunt.found)
    assert (cost.stages, cost.all_stages, cost.shared) == (2, 3, True)
    assert len(tables.cost_table(hunt.found, cost).notes) == 1
    hunt = Hunt(tmp_path, "search.epochs=[4]", "evaluate.when=every_epoch", TWO_LEVELS)
    hunt.add(OWN, [[0.5]], stopped="asha")
    hunt.add(OTHER, [[0.5], [0.6]], stopped="asha")
    cost = tables.cost_of(hunt.found)
    assert (cost.stages, cost.all_stages, cost.all_seconds) == (0.4 + 1, 4, None)
    table = tables.cost_table(hunt.found, cost)
    assert table.rows[1] == ("seconds", "30", "-", "-")
    assert table.notes == ("No estimate of the seconds: at least one level was reached by no sample.",)
    # A sample that cannot be trained costs nothing.
    constant, late = {"name": "constant"}, {"name": "multistep", "milestones": [7]}
    schedules = "[{name: constant}, {name: multistep, milestones: [7]}]"
    space = f"{{train.epochs: {{choice: [10, 5]}}, train.schedule: {{choice: {schedules}}}}}"
    hunt = Hunt(tmp_path, f"search.space={space}")
    hunt.add({"train.epochs": 10, "train.schedule": constant}, [[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]])
    hunt.add({"train.epochs": 5, "train.schedule": late}, [], error="SpecError: 7 is never reached")
    cost = tables.cost_of(hunt.found)
    assert (cost.stages, cost.all_stages, cost.seconds, cost.all_seconds) == (8, 8, 30, 30)


def many(hunt: Hunt, number: int, *, stop_share: float) -> None:
    """Samples by chance whose mIoU the learning rate decides."""
    chance = np.random.default_rng(5)
    for index in range(number):
        values = {path: domain.draw(chance) for path, domain in hunt.search.spec.space.items()}
        strength = 0.01 * chance.random() - abs(math.log10(values["train.optimizer.lr"]) + 2.5) / 10
        stopped = "asha" if index < stop_share * number else ""
        hunt.add(values, [[0.5 + strength + 0.01 * at] for at in range(1 if stopped else 2)], stopped=stopped)


WIDE = (
    TWO_LEVELS,
    "search.num_samples=40",
    "search.space={train.optimizer.lr: {loguniform: [1e-4, 1e-2]}, acquire.strategy: {choice: [margin, random]}, "
    "train.optimizer.weight_decay: {uniform: [0.0, 0.1]}, train.batch_size: {randint: [2, 9]}, "
    "train.augment: {choice: [{scale: [0.5, 2.0]}, {scale: [1.0, 1.0]}]}}",
)


def test_the_setting_that_decides_has_much_the_largest_share(tmp_path: Path) -> None:
    hunt = Hunt(tmp_path, *WIDE)
    many(hunt, 40, stop_share=0.2)
    (table,) = importance_parts(hunt.found)
    assert table.header == ("setting", "at 10 px (40 samples)", "at 20 px (32 samples)")
    for column in (1, 2):
        shares = {row[0]: float(row[column]) for row in table.rows}
        assert sum(shares.values()) == pytest.approx(100, abs=0.3)
        assert shares.pop("train.optimizer.lr") > 60
        assert max(shares.values()) < 25


def test_few_samples_one_setting_and_equal_scores_have_no_importance(tmp_path: Path) -> None:
    import optuna

    before = optuna.logging.get_verbosity()
    hunt = Hunt(tmp_path / "few", *WIDE)
    many(hunt, 9, stop_share=0.3)
    (table,) = importance_parts(hunt.found)
    assert table.notes[0] == "No importance at 20 px (6 samples): fewer than 8."
    (said,) = importance_parts(Hunt(tmp_path, "search.space={train.optimizer.lr: {loguniform: [1e-4, 1e-2]}}").found)
    assert said.sentences[0].startswith("Only train.optimizer.lr is searched")
    space = {name: DomainSpec(uniform=(0.0, 1.0)) for name in "ab"}
    scored = [({"a": number / 10, "b": 1 - number / 10}, 0.5) for number in range(10)]
    assert importance(space, scored) is importance(space, scored[:7]) is None
    assert importance(space, [({"a": number / 10, "b": 0.5}, number) for number in range(10)])
    assert optuna.logging.get_verbosity() == before  # as loud as it was


def test_figures_show_the_numbers_that_stand_behind_them(hunt: Hunt) -> None:
    figure = history(hunt.found)
    assert figure.data.rows == (
        ("0", "finished", "40 px", "51.0", "51.0"),
        ("1", "finished", "40 px", "57.0", "57.0"),
        ("2", "stopped", "20 px", "28.0", "57.0"),
        ("3", "failed", "-", "-", "57.0"),
    )
    (panel,) = figure.make().axes
    line = next(line for line in panel.lines if line.get_label() == "best finished so far")
    assert (line.get_drawstyle(), list(line.get_xdata())) == ("steps-post", [0, 1, 2, 3])
    assert line.get_ydata() == pytest.approx([51, 57, 57, 57])
    shown = {str(dots.get_label()): dots for dots in panel.collections}
    assert shown["finished"].get_offsets().tolist() == pytest.approx(np.array([[0, 51], [1, 57]]))
    assert [len(shown[name].get_facecolor()) for name in ("stopped", "finished")] == [0, 1]  # hollow, filled
    figure = slices(hunt.found)
    assert figure.data.header == ("sample", "state", *OWN, "at 10 px (%)", "at 40 px (%)")
    assert figure.data.rows[1:3] == (
        ("1", "finished", "0.0025", "random", "35.0", "57.0"),
        ("2", "stopped", "0.0001", "margin", "21.0", "-"),
    )
    rate, strategy = figure.make().axes
    assert (rate.get_title(), rate.get_xscale()) == ("train.optimizer.lr", "log")  # over magnitudes
    assert (strategy.get_title(), strategy.get_xscale()) == ("acquire.strategy", "linear")
    assert [label.get_text() for label in strategy.get_xticklabels()] == ["margin", "random"]
    shown = {str(dots.get_label()): dots.get_offsets().tolist() for dots in rate.collections}
    assert shown["finished, at 40 px"] == pytest.approx(np.array([[0.0025, 57], [0.001, 51]]))
    assert shown["stopped, at 10 px"] == pytest.approx(np.array([[0.0001, 21]]))
    assert shown["the best"] == pytest.approx(np.array([[0.0025, 57]]))


def test_every_file_is_written_in_place_of_an_earlier_report(hunt: Hunt, out: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "deep" / "fresh"
    summary = hunt.write(fresh, next_command=COMMAND)
    assert {path.name for path in summary.files} == FILES == set(contents(fresh))
    assert summary.num_samples == 4
    assert summary.missing == ("sample 3: failed before the first level: ValueError: loss is NaN",)
    assert contents(out) == contents(fresh) | {"mine.txt": b"kept"}
    with pytest.raises(SpecError, match=r"--out .*mine.txt.*cannot be written"):
        hunt.write(out / "mine.txt")


def test_the_page_has_every_section_once_asks_for_nothing_and_tells_the_result(hunt: Hunt, out: Path) -> None:
    text = page(out)
    assert re.findall("<h2>([^<]*)", text) == [*SECTIONS, "Experiment"]
    assert "http" not in re.sub(r"http-equiv", "", text.replace("http://www.w3.org", ""))
    for outside in (" src=", "url(http", "@import", str(out.parent), str(hunt.store.path)):
        assert outside not in text
    for said in (
        *("&lt;b&gt;Settings &amp; more&lt;/b&gt;", "asha &lt;rung 2&gt;", "launch.py run &#x27;found.yaml&#x27;"),
        "train.optimizer.lr (loguniform 0.0001 to 0.01)",
        "Scores are on val, not on test, which is reported",
        "The best is sample 1 with 57.0 %: train.optimizer.lr 0.0025, acquire.strategy random. "
        "The file&#x27;s own configuration has 51.0 %: a difference of +6.0 points.",
        "Of 4 samples: 2 finished, 1 stopped early, 1 failed; 1 missing; run the search again to add them.",
    ):
        assert said in text


@pytest.mark.usefixtures("undrawn")
def test_what_is_not_there_yet_and_that_none_is_better_is_said(tmp_path: Path) -> None:
    hunt, out = Hunt(tmp_path / "store"), tmp_path / "out"
    summary = hunt.write(out, next_command=COMMAND)
    assert (summary.num_samples, summary.missing) == (0, ("4 samples: not issued yet",))
    assert re.findall("<h2>([^<]*)", page(out)) == ["Result", "Experiment"]
    assert "Nothing has been run yet" in page(out)
    assert "found.yaml" not in page(out)
    assert "No sample is finished yet." in (out / "table.md").read_text(encoding="utf-8")
    hunt.add(OWN, [[0.30, 0.32], [0.40, 0.42]])
    hunt.add(OTHER, [])
    unfinished = ("sample 0: unfinished, scored up to 20 px", "sample 1: unfinished, no score yet")
    assert hunt.write(out).missing == (*unfinished, "2 samples: not issued yet")
    for said in ("so there is no best one.", f"<td>{unfinished[0][10:]}</td>", "No estimate of the seconds"):
        assert said in page(out)
    hunt = Hunt(tmp_path / "store", ONE_LEVEL, "search.held_out=0.25")
    hunt.add(OWN, [[0.6]])
    hunt.add(OTHER, [[0.5]])
    hunt.write(out)
    for said in ("the search found none better", "No sample was stopped.", "on held_out (25 % of the training"):
        assert said in page(out)


def test_another_process_writes_the_same_bytes_silently(tmp_path: Path) -> None:
    hunt = Hunt(tmp_path / "store", *WIDE)
    many(hunt, 16, stop_share=0.5)
    (tmp_path / "hunt.yaml").write_text(TEXT)
    hunt.write(tmp_path / "first")
    code = f"""
from pathlib import Path
from pixelpick_ray.report.search import write_search_report
from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.store import Store
here = Path({str(tmp_path)!r})
write_search_report(Store(here / "store"), load_experiment(here / "hunt.yaml", {list(WIDE)!r}), here / "second")
"""
    place = {"cwd": Path(__file__).resolve().parents[2], "env": os.environ | {"PYTHONHASHSEED": "123"}}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **place)
    assert (done.stdout, done.stderr) == ("", "")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
