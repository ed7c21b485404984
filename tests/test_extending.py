"""docs/extending.md as a stranger follows it: files beside an experiment, and a package that pip installs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import DOCS, blocks, write_files
from tests.support.launch import ROOT, Outcome, launch

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the document has, and its package installed into the folder ``site``."""
    folder = tmp_path_factory.mktemp("extending")
    write_files("extending.md", folder)
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", "site", "./package"]
    subprocess.run([sys.executable, "-m", "pip", *install], cwd=folder, check=True)
    return folder


def run(place: Path, store: str, *words: str, package: str = "site") -> Outcome:
    """A command in a process that finds the installed package."""
    environment = os.environ | {"PYTHONPATH": f"{place / package}:{ROOT}", "XDG_CACHE_HOME": str(place / "cache")}
    options = [] if words[0] == "doctor" else ["--store", store]
    command = [sys.executable, "-m", "pixelpick_ray", *words, *options]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    return Outcome(done.returncode, done.stdout, done.stderr)


def trained(outcome: Outcome) -> int:
    assert outcome.status == 0, outcome
    return int(re.findall(r"trained now: (\d+)", outcome.out)[0])


def picks(store: Path) -> dict[str, str]:
    """The strategy of each stored pick after a fit, by key."""
    inputs = ((path.parent.name, json.loads(path.read_text())) for path in store.glob("pick/*/input.json"))
    return {key: tree["acquire"]["strategy"] for key, tree in inputs if "acquire" in tree}


def test_each_part_has_fewer_than_sixty_lines() -> None:
    for file, _, text in blocks("extending.md"):
        assert file.endswith("discs.py") or text.count("\n") < 60


def test_a_score_whose_sign_is_reversed_is_another_one(place: Path, tmp_path: Path) -> None:
    """New picks are made and trained on, those of built-in strategies are found; the old code's come back with it."""
    for file in ("mine.py", "mine.yaml"):
        (tmp_path / file).write_text((place / file).read_text())
    name = "file:mine.py:score@7e92916180c8841b"
    assert "7e92916180c8841b" in (DOCS / "extending.md").read_text()
    assert f"code: strategy {name}: mine.py" in launch(tmp_path, "plan", "mine.yaml").out
    assert trained(launch(tmp_path, "run", "mine.yaml", "--local")) == 3
    before = picks(tmp_path / "store")
    assert sorted(before.values()) == [name, "margin"]
    mine = (tmp_path / "mine.py").read_text()
    (tmp_path / "mine.py").write_text(mine.replace("return entropy", "return -entropy"))
    reversed_ = launch(tmp_path, "run", "mine.yaml", "--local")
    assert trained(reversed_) == 2  # the first fit again, whose weights nobody kept, and the second
    after = picks(tmp_path / "store")
    assert len(after) == 3
    assert before.items() < after.items()
    (tmp_path / "mine.py").write_text(mine)
    assert trained(launch(tmp_path, "run", "mine.yaml", "--local")) == 0
    assert len(list((tmp_path / "store" / "sources").iterdir())) == 2


def test_a_head_and_an_oracle_from_files(place: Path, tmp_path: Path) -> None:
    """On one rank, with what the head makes of dropout in the features."""
    for file in ("mine.py", "mine.yaml", "head.py", "sloppy.py"):
        (tmp_path / file).write_text((place / file).read_text())
    settings = {
        "model.architecture": "file:head.py:Linear",
        "oracle": {"name": "file:sloppy.py:answer", "options": {"rate": 1.0}},
        "grid": [{"acquire.strategy": ["file:mine.py:score"], "seed": [0], "budget": [10, 20]}],
    }
    words = [word for path, value in settings.items() for word in ("--set", f"{path}={json.dumps(value)}")]
    assert trained(launch(tmp_path, "run", "mine.yaml", "--local", *words)) == 2
    words += ["--set", "oracle.options={rates: 1}", "--store", "other"]
    wrong = launch(tmp_path, "run", "mine.yaml", "--local", *words)
    assert wrong.status == 1
    assert "unexpected keyword argument 'rates'" in wrong.out


def test_the_package_keeps_the_contracts(place: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{place / 'site'}:{ROOT}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "package/test_discs.py"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "17 passed" in done.stdout


def test_the_package_runs_and_another_version_of_it_is_another_part(place: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    assert trained(run(place, store, "run", "package.yaml", "--local")) == 2
    planned = json.loads(run(place, store, "plan", "package.yaml", "--json").out)
    assert planned["fits_to_train"] == 0
    assert "strategy least_margin@discs-1.2.0: discs:least_margin" in planned["code"]
    newer = Path(shutil.copytree(place / "site", tmp_path / "newer"))
    (metadata,) = newer.glob("discs-1.2.0.dist-info/METADATA")
    metadata.write_text(metadata.read_text().replace("1.2.0", "1.3.0"))
    other = json.loads(run(place, store, "plan", "package.yaml", "--json", package=str(newer)).out)
    assert other["fits_to_train"] == 2
