"""Documentation that can fail: files, commands, options, examples and results that the README names."""

import importlib.util
import re
from pathlib import Path

import pytest
from typer.main import get_command

from pixelpick_ray.cli import app
from pixelpick_ray.config.experiment import load_experiment, parse_experiment
from pixelpick_ray.planning import make_plan
from pixelpick_ray.report.costs import read_cost_model
from pixelpick_ray.report.files import write_report
from pixelpick_ray.store import Store

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = (path for path in (ROOT / "experiments").rglob("*.yaml") if path.parent.name != "found")  # what searches write
EXPERIMENTS = sorted(path.relative_to(ROOT).as_posix() for path in FILES)


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_every_experiment_can_be_planned_and_costs_what_the_readme_says(path: str) -> None:
    plan = make_plan(load_experiment(ROOT / path))
    row = next(line for line in README.splitlines() if line.startswith(f"| `{path}`"))
    assert f"| {plan.num_fits} ({plan.num_fits_unshared} one by one) |" in row


def test_linked_files_exist_and_no_other_experiment_is_listed() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    table = README.split("<!-- experiments -->")[1].split("<!-- /experiments -->")[0]
    assert set(re.findall(r"^\| `(experiments/[^`]+\.yaml)`", table, flags=re.MULTILINE)) == set(EXPERIMENTS)


def test_every_command_and_option_of_the_readme_exists() -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    seen = [line.split() for line in re.findall(r"^python launch\.py ([^#\n]+)", README, flags=re.MULTILINE)]
    named = {"init", "check", "plan", "run", "submit", "status", "report", "evaluate", "annotate", "export", "import"}
    assert {words[0] for words in seen} == named
    for words in seen:
        commands_of = ("submit", "run") if words[0] == "submit" else (words[0],)  # submit passes the options of run on
        options = {name for command in commands_of for parameter in known[command].params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options
        assert all(Path(ROOT / word).is_file() for word in words if word.endswith(".yaml") and "NAME" not in word)
    assert set(re.findall(r"`(--[a-z-]+)", README)) <= {
        name for command in known.values() for parameter in command.params for name in parameter.opts
    }


def test_the_makefile_has_the_words_of_the_readme() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets | {"and"}


def test_the_example_and_the_cost_model_are_valid(tmp_path: Path) -> None:
    example, *others = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    assert len(make_plan(parse_experiment(example, where="README.md")).trials) == 27
    (tmp_path / "costs.yaml").write_text(next(text for text in others if "per_pixel" in text), encoding="utf-8")
    assert read_cost_model(tmp_path / "costs.yaml").currency == "EUR"


def test_the_files_of_a_report_are_those_of_the_readme(tmp_path: Path) -> None:
    section = README.split("### Reports")[1].split("Strategies are")[0]
    summary = write_report(Store(tmp_path / "store"), [load_experiment(ROOT / EXPERIMENTS[0])], tmp_path / "out")
    written = {path.name for path in summary.files}
    named = set(re.findall(r"`([a-z_]+\.[a-z]+)`", section))
    assert written <= named
    assert named - written <= {"table_transposed.tex", "table_classes.tex"}  # only with several lines, and results


@pytest.mark.slow
def test_the_results_are_those_of_the_results_folder() -> None:
    spec = importlib.util.spec_from_file_location("update_readme", ROOT / "docs" / "update_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.updated(README) == README, "run `make docs`"
    assert "±" in README.split("<!-- results -->")[1]
