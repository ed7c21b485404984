"""Every experiment file is run: a tiny stage on tiny images, through the real code, from the command line."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.config.trial import HumanSpec
from pixelpick_ray.planning import make_plan
from tests.support.data_folders import write_camvid, write_cityscapes, write_folder, write_voc
from tests.support.experiments import SHIPPED_EXPERIMENTS
from tests.support.launch import ROOT, launch

pytestmark = pytest.mark.training

EXPERIMENTS = [path.relative_to(ROOT).as_posix() for path in SHIPPED_EXPERIMENTS]
SIZE = (24, 32)
MOST = 320  # pixels that an image of this size has for sure
ON_TWO_RANKS = "experiments/voc-mobilenet.yaml"  # images of different sizes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a few small images of every data set."""
    folder = tmp_path_factory.mktemp("data")
    for write in (write_camvid, write_cityscapes, write_voc, write_folder):
        write(folder)
    (folder / "leaves").rename(folder / "my-images")
    return folder


def write_weights(data: Path, backbone: str, pretrained: str) -> None:
    """Weights as they would be downloaded, of an untrained network."""
    path = data / "weights" / f"{backbone}.{pretrained}.safetensors"
    if pretrained != "none" and not path.is_file():
        path.parent.mkdir(exist_ok=True)
        state = timm.create_model(backbone, pretrained=False, num_classes=0).state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, path)


def tiny_grid(experiment: Any) -> list[dict[str, list[Any]]]:
    """One trial of each grid: the last choice of everything, and a second stage where pixels are picked."""
    grids = []
    for grid in experiment.grid:
        point = {path: [values[-1]] for path, values in grid.items() if path != "seed"}
        initial = point.get("acquire.initial_pixels", [experiment.acquire.initial_pixels])[0]
        step = point.get("acquire.pixels_per_stage", [experiment.acquire.pixels_per_stage])[0]
        if initial > MOST:
            initial = MOST
            point |= {"acquire.initial_pixels": [initial], "budget": [initial]}
        if point["budget"] != ["full"]:
            is_one_stage = len(set(grid["budget"])) == 1 and initial == point["budget"][0]
            point["budget"] = [initial if is_one_stage else initial + step]
        if "dataset.images" in point:
            point["dataset.images"] = [3]
        grids.append(point)
    return grids


def overrides(path: str) -> Iterator[str]:
    """What makes an experiment tiny and leaves its kind as it is."""
    experiment = load_experiment(ROOT / path)
    dataset = {key: value for key, value in experiment.dataset.as_input().items() if key in ("name", "path", "split")}
    tiny = {"long_side": max(SIZE)} if experiment.dataset.long_side else {"size": list(SIZE)}
    few = {"images": 3} if experiment.dataset.name == "scenes" else {}  # which has as many as are asked for
    yield f"dataset={json.dumps(dataset | tiny | few)}"
    if experiment.train is not None:
        yield "train.epochs=1"
        yield "train.batch_size=2"
        yield "train.schedule={name: poly}"
        yield f"train.augment.crop_size={json.dumps(list(SIZE))}"
    for name, spec in experiment.evaluate.splits.items():
        if spec.size is not None:
            yield f"evaluate.splits.{name}.size={json.dumps([side // 16 for side in spec.size])}"
    if experiment.search is not None:
        yield "search=null"  # its own configuration; tests/search runs searches
    if isinstance(experiment.oracle, HumanSpec):
        yield "oracle={name: ground_truth}"  # people answer in tests/annotate
    # As many pixels as a tiny image has: a twentieth of those asked for.
    yield f"grid={json.dumps(tiny_grid(experiment))}"


# One of each data set, head, kind of run and way of picking; `make slow` runs them all.
IN_THE_DEFAULT_RUN = {
    f"experiments/{name}.yaml"
    for name in (
        *("quickstart", "quickstart-training", "frozen/camvid-linear", "annotate-quickstart", "search-quickstart"),
        *("camvid-mobilenet", "own-images", "cityscapes-resnet50", "voc-resnet50", "studies/committee"),
        "studies/published-annotator-error",
    )
}


MARKS = {path: [] if path in IN_THE_DEFAULT_RUN else [pytest.mark.slow] for path in EXPERIMENTS}
MARKS[ON_TWO_RANKS] = [pytest.mark.slow, pytest.mark.ray]


FEW, TENS = tuple(range(1, 11)), tuple(range(10, 101, 10))
# Trials, chains and fits of the studies of 2021, by hand: networks, strategies or weights, times budgets, times seeds;
# and their budgets, None where images times pixels are the same everywhere.
PUBLISHED_STUDIES: dict[str, tuple[tuple[int, int, int], tuple[int, ...] | None]] = {
    "capacity-camvid": ((4 * 19 * 5, 4 * 2 * 5, 4 * (9 + 10) * 5), (*range(1, 10), *TENS)),
    "capacity-cityscapes": ((4 * 13 * 5, 4 * 4 * 5, 4 * (10 + 3) * 5), (*FEW, 100, 1000, 10000)),
    "capacity-voc": ((4 * 12 * 3, 4 * 3 * 3, 4 * (10 + 2) * 3), (*FEW, 100, 1000)),
    "pretraining-camvid": ((2 * 14 * 5, 2 * 6 * 5, 2 * (9 + 5) * 5), (*range(1, 10), 20, 50, 100, 1000, 10000)),
    "pretraining-cityscapes": ((2 * 13 * 5, 2 * 4 * 5, 2 * (10 + 3) * 5), (*FEW, 100, 1000, 10000)),
    "diversity-camvid": ((4 * 5, 4 * 5, 4 * 5), None),
    "diversity-cityscapes": ((6 * 5, 6 * 5, 6 * 5), None),
    "annotator-error": ((2 * 10 * 5, 2 * 5, 2 * 10 * 5), TENS),
    "sampling-camvid": ((7 * 10 * 5, 7 * 5, 7 * 9 * 5 + 5), TENS),  # all share their first stage
    "sampling-voc": ((4 * 10 * 3, 4 * 3, 4 * 9 * 3 + 3), FEW),
    "sampling-cityscapes": ((4 * 10 * 5, 4 * 5, 4 * 9 * 5 + 5), FEW),
}


@pytest.mark.parametrize("name", PUBLISHED_STUDIES)
def test_the_studies_are_planned_as_they_were_run_in_2021(name: str) -> None:
    counts, budgets = PUBLISHED_STUDIES[name]
    plan = make_plan(load_experiment(ROOT / "experiments" / "studies" / f"published-{name}.yaml"))
    trials = plan.experiment.trials()
    assert (len(trials), len(plan.chains), plan.num_fits) == counts
    if budgets is None:
        assert {trial.dataset.images * trial.budget for trial in trials} == {3670}
    else:
        assert tuple(sorted({trial.budget for trial in trials})) == budgets
    by_chance = name.startswith(("capacity", "pretraining", "diversity"))
    assert {"random"} == {trial.acquire.strategy for trial in trials} if by_chance else "margin" in str(trials)
    assert {trial.training.epochs for trial in trials} == {50}


def test_the_files_of_the_published_studies_are_those_that_are_counted() -> None:
    files = (ROOT / "experiments" / "studies").glob("published-*.yaml")
    assert {file.stem.removeprefix("published-") for file in files} == set(PUBLISHED_STUDIES)
    assert set(EXPERIMENTS) > IN_THE_DEFAULT_RUN


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("path", [pytest.param(path, marks=marks) for path, marks in MARKS.items()])
def test_every_experiment_runs(path: str, data: Path, cache_path: Path, tmp_path: Path) -> None:
    settings = [word for override in overrides(path) for word in ("--set", override)]
    for trial in load_experiment(ROOT / path, settings[1::2]).trials():
        write_weights(data, trial.model.backbone, trial.model.pretrained)
    where = ["--store", "store", "--data", str(data), "--cache", str(cache_path)]
    words = ["run", str(ROOT / path), *where, *settings]
    if path == ON_TWO_RANKS:  # in a process of its own, whose folder Ray's workers find
        command = [sys.executable, str(ROOT / "launch.py"), *words, "--ranks", "2"]
        alone = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert alone.returncode == 0, alone.stdout + alone.stderr
    else:
        done = launch(tmp_path, *words, "--local")
        assert done.status == 0, done.out + done.err
    counts = json.loads(launch(tmp_path, "plan", str(ROOT / path), *where, "--json", *settings).out)
    assert counts["stored_fits"] == counts["fits"] >= 1
    assert counts["stored_picks"] == counts["picks"]
    ranks = {json.loads(file.read_text())["world_size"] for file in tmp_path.glob("store/fit/*/provenance.json")}
    assert ranks == {2 if path == ON_TWO_RANKS else 1}
    made = launch(tmp_path, "report", str(ROOT / path), "--store", "store", "--out", "report", *settings)
    assert (made.status, "missing" in made.out) == (0, False), made.out + made.err
    assert (tmp_path / "report" / "table.md").is_file()
