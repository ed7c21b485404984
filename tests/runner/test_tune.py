"""The runner on real Ray: sharing between chains that start together, ranks as actors, faults."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.errors import SpecError
from pixelpick_ray.runner.tune import placement
from tests.support.documents import write_files
from tests.support.experiments import experiment_text
from tests.support.launch import launch, overriding
from tests.support.ray_cluster import RAY_SETTINGS

pytestmark = pytest.mark.ray


TINY = experiment_text(
    dataset="{name: scenes, size: [32, 48], images: 7}",
    model="{backbone: mobilenetv2_035, pretrained: none, dropout: [0.0, 0.0, 0.0]}",
    train="""
  epochs: 2
  batch_size: 4
  optimizer: {name: adam, lr: 1e-3, backbone_lr_factor: 1.0}
  augment: {scale: [0.75, 1.5]}""",
    grid="""
  - {acquire.strategy: [margin, random], seed: [0], budget: [10, 20]}""",
)


@pytest.fixture
def place(tmp_path: Path, ray_cluster: str) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "address").write_text(ray_cluster)
    return tmp_path


def run(place: Path, *options: str, store: str = "store", status: int = 0) -> str:
    """What a run prints, on the cluster of the tests or without Ray."""
    address = () if "--local" in options else ("--address", (place / "address").read_text())
    with patch.dict(os.environ, RAY_SETTINGS):
        done = launch(place, "run", "tiny.yaml", "--store", store, *options, *address)
    assert done.status == status, done
    return done.out


def finished_times(place: Path) -> dict[str, float]:
    return {path.parent.name: path.stat().st_mtime for path in (place / "store").glob("fit/*/manifest.json")}


def test_strategies_that_start_together_train_the_first_fit_once_and_a_second_run_trains_nothing(place: Path) -> None:
    output = run(place, "--max-concurrent", "2")
    trained = Counter(line.split(": mIoU")[0].split("] ")[1] for line in output.splitlines() if "(trained)" in line)
    first = [label for label in trained if label.endswith("10 px")]
    assert len(first) == 1, output  # the other strategy found the first fit in the store
    assert sum(trained.values()) == 3
    assert "2 trials would" not in output
    assert "trained now: 3" in output
    before = finished_times(place)
    again = run(place)
    assert "trained now: 0" in again
    assert finished_times(place) == before
    assert "values of one seed" in again


@pytest.mark.always("one rank and two")
def test_two_ranks_run_as_actors_of_one_trial_and_learn_what_one_rank_learns(place: Path) -> None:
    """With a strategy and a head from files, which only the driver sees. The exact comparison is in tests/engine; here
    a tiny untrained network multiplies rounding, so losses agree coarsely.
    """
    text = TINY.replace("[margin, random]", '["file:mine.py:score"]').replace(", dropout: [0.0, 0.0, 0.0]", "")
    (place / "tiny.yaml").write_text(text.replace("{backbone", '{architecture: "file:head.py:Linear", backbone'))
    write_files("extending.md", place)
    sgd = ("--set", "train.optimizer={name: sgd, lr: 0.001, backbone_lr_factor: 1.0}")
    run(place, *sgd, "--local")
    run(place, *sgd, "--ranks", "2", store="two")
    one, two = records(place, "store"), records(place, "two")
    assert one.keys() == two.keys()
    for chain, stages in one.items():
        assert stages[0]["fit"] == two[chain][0]["fit"]  # the same initial pixels; ranks are in no key
        found, expected = losses_of(place, "two", two[chain][0]), losses_of(place, "store", stages[0])
        assert found == pytest.approx(expected, rel=0.02)  # float64 is compared in test_fit.py
        assert stages[0]["pick"]
        assert len(two[chain]) == 2
    provenance = [json.loads(path.read_text()) for path in (place / "two").glob("fit/*/provenance.json")]
    assert {entry["world_size"] for entry in provenance} == {2}


def test_heads_on_frozen_features_are_the_same_here_on_ray_and_on_two_ranks(place: Path) -> None:
    """Two chains here one after another, in an actor that is kept for the next one, and as two ranks each."""
    write_frozen(place, grid="[{acquire.strategy: [margin, random], seed: [0], budget: [2, 4]}]")
    run(place, "--local", store="here")
    run(place, "--max-concurrent", "1", store="ray")
    run(place, "--ranks", "2", store="two")
    here, ray, two = (
        {str(path.relative_to(place / name)): path.read_bytes() for path in (place / name).glob("[ep]*/*/*.npz")}
        for name in ("here", "ray", "two")
    )
    assert len(here) == 3 + 3  # evaluations; first pixels, and those after a fit
    assert here == ray == two


@pytest.mark.slow
def test_a_search_for_the_penalty_of_a_frozen_head_judges_by_what_a_run_measures(place: Path) -> None:
    search = "{space: {model.head.l2: {loguniform: [1e-3, 1]}}, num_samples: 3}"
    grid = "[{seed: [0, 1], budget: [2, 4]}]"
    write_frozen(place, grid=grid, search=search)
    output = run(place, "--max-concurrent", "1")
    assert "sample 0 (the file): l2=0.1" in output
    (best,) = re.findall(r"^  1\.  ([0-9.]+) %", output, re.MULTILINE)
    (found,) = (place / "store").glob("experiments/*/found/*.yaml")
    (place / "tiny.yaml").write_text(found.read_text())
    on_val = overriding("evaluate={splits: {val: {}}, report: val}", "name=on-val", f"grid={grid}")
    assert f" {best} ± " in run(place, "--local", *on_val)


def write_frozen(place: Path, **blocks: str) -> None:
    """An experiment of linear heads on a frozen network."""
    text = experiment_text(
        dataset="{name: scenes, size: [32, 48], images: 5}",
        model="{backbone: test_resnet, pretrained: none, frozen: true, head: {name: linear, l2: 0.1}}",
        acquire="{initial_pixels: 2, pixels_per_stage: 2}",
        **blocks,
    )
    (place / "tiny.yaml").write_text("".join(line for line in text.splitlines(True) if not line.startswith("train:")))


def records(place: Path, store: str) -> dict[str, list[dict[str, str]]]:
    """Stages of every chain, as recorded."""
    return {
        path.stem: json.loads(path.read_text())["stages"] for path in (place / store).glob("experiments/*/chains/*")
    }


def losses_of(place: Path, store: str, stage: dict[str, str]) -> list[float]:
    found: list[float] = json.loads((place / store / "fit" / stage["fit"] / "training.json").read_text())["losses"]
    return found


def test_a_time_limit_stops_cleanly_with_status_3_and_the_next_run_goes_on(place: Path) -> None:
    output = run(place, "--time-limit", "1s", status=3)
    assert "go on from here" in output
    assert "values of one seed" in run(place, "--local")


def test_a_training_that_diverges_does_not_stop_the_others(place: Path) -> None:
    """The learning rate of one chain is far too high; full supervision of the same grid finishes."""
    text = TINY.replace("budget: [10, 20]}", "budget: [10, 20]}\n  - {seed: [0], budget: [full]}")
    (place / "tiny.yaml").write_text(
        text.replace("lr: 1e-3", "lr: 1e30").replace("budget: [full]", "budget: [full], train.optimizer.lr: [1e-3]")
    )
    output = run(place)
    assert "DIVERGED" in output
    assert "lower train.optimizer.lr" in output
    assert "full supervision: mIoU" in output
    status = json.loads(launch(place, "status", "tiny.yaml", "--json").out)
    assert status["stages"]["stored"] == 1
    assert status["stages"]["diverged"] >= 1
    assert any("lower train.optimizer.lr" in chain["diverged"] for chain in status["chains"])


def test_impossible_resources_are_refused_at_once(tmp_path: Path) -> None:
    where = tmp_path, "store", tmp_path
    with pytest.raises(SpecError, match="--device cuda: the cluster has no GPU"):
        placement(Execution(*where, device="cuda"), [{"CPU": 2.0}])
    for options, told in (({"ranks": 2, "gpus_per_rank": 0.5}, "NCCL"), ({"ranks": 5}, "ranks that fit: 1, 2, 3, 4")):
        with pytest.raises(SpecError, match=told):
            Execution(*where, **options).check({4})


@pytest.mark.parametrize(
    ("nodes", "options", "room"),
    [
        ([{"CPU": 2.0}, {"CPU": 2.0}], {"cpus_per_rank": 3}, "room for 0: 2 CPUs; 2 CPUs"),  # four in all
        ([{"CPU": 8.0, "GPU": 1.0}], {"ranks": 2}, "room for 1: 8 CPUs and 1 GPU"),
        ([{"CPU": 1.0, "GPU": 4.0}, {"CPU": 9.0}], {"ranks": 2}, "room for 1: 1 CPU and 4 GPUs; 9 CPUs"),
    ],
)
def test_every_rank_must_fit_on_one_node(nodes: list[dict[str, float]], options: dict[str, int], room: str) -> None:
    execution = Execution(Path("data"), "store", Path("cache"), **options)
    with pytest.raises(SpecError) as error:
        placement(execution, nodes)
    assert room in str(error.value)


def test_ranks_spread_over_nodes_when_they_fit_on_several() -> None:
    execution = Execution(Path("data"), "store", Path("cache"), ranks=3)
    bundles = placement(execution, [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 2.0}]).bundles
    assert [bundle.get("GPU", 0.0) for bundle in bundles] == [0.0, 1.0, 1.0, 1.0]
    assert sum(bundle["CPU"] for bundle in bundles) == 3.0
