"""The runner on real Ray: sharing between chains that start together, ranks as actors, a search, faults."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.errors import SpecError, StoreError
from pixelpick_ray.runner import search as search_runner
from pixelpick_ray.runner.cluster import joined
from pixelpick_ray.runner.tune import placement
from pixelpick_ray.search.journal import Journal
from pixelpick_ray.store import Store
from tests.support.documents import write_files
from tests.support.experiments import TWO_PIXELS, experiment_text
from tests.support.launch import launch
from tests.support.ray_cluster import RAY_SETTINGS
from tests.support.searches import search_of

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


def run(place: Path, *options: str, store: str = "store") -> str:
    """What a run prints, on the cluster of the tests or without Ray."""
    address = () if "--local" in options else ("--address", (place / "address").read_text())
    with patch.dict(os.environ, RAY_SETTINGS):
        done = launch(place, "run", "tiny.yaml", "--store", store, *options, *address)
    assert done.status == 0, done
    return done.out


def test_strategies_train_their_first_fit_once_beside_one_that_diverges_and_a_second_run_trains_nothing(
    place: Path,
) -> None:
    """The learning rate of a third chain is far too high, which stops no other."""
    (place / "tiny.yaml").write_text(TINY + "  - {train.optimizer.lr: [1e30], seed: [1], budget: [10]}\n")
    output = run(place, "--max-concurrent", "2")
    trained = Counter(line.split(": mIoU")[0].split("] ")[1] for line in output.splitlines() if "(trained)" in line)
    first = [label for label in trained if label.endswith("10 px")]
    assert len(first) == 1, output  # the other strategy found the first fit in the store
    assert sum(trained.values()) == 3
    assert "DIVERGED" in output
    assert "lower train.optimizer.lr" in output
    finished = {path: path.stat().st_mtime for path in (place / "store").glob("fit/*/manifest.json")}
    assert "trained now: 0" in run(place)
    assert {path: path.stat().st_mtime for path in (place / "store").glob("fit/*/manifest.json")} == finished


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
    one, two = stages(place, "store"), stages(place, "two")
    assert len(one) == len(two) == 2
    assert one[0]["fit"] == two[0]["fit"]  # the same initial pixels; ranks are in no key
    assert two[0]["pick"]
    losses = [
        json.loads((place / store / "fit" / two[0]["fit"] / "training.json").read_text())["losses"]
        for store in ("store", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    provenance = [json.loads(path.read_text()) for path in (place / "two").glob("fit/*/provenance.json")]
    assert {entry["world_size"] for entry in provenance} == {2}


def stages(place: Path, store: str) -> list[dict[str, str]]:
    """The stages of the only chain, as recorded."""
    (record,) = (place / store).glob("experiments/*/chains/*")
    return json.loads(record.read_text())["stages"]  # type: ignore[no-any-return]


def test_heads_on_frozen_features_are_the_same_here_and_on_two_ranks(place: Path) -> None:
    """Two chains, on Ray one after another in an actor that is kept for the next one."""
    text = experiment_text(
        dataset="{name: scenes, size: [32, 48], images: 5}",
        model="{backbone: test_resnet, pretrained: none, frozen: true, head: {name: linear, l2: 0.1}}",
        train="null",
        acquire=TWO_PIXELS,
        grid="[{acquire.strategy: [margin, random], seed: [0], budget: [2, 4]}]",
    )
    (place / "tiny.yaml").write_text(text)
    run(place, "--local", store="here")
    run(place, "--ranks", "2", store="two")
    here, two = (
        {str(path.relative_to(place / name)): path.read_bytes() for path in (place / name).glob("[ep]*/*/*.npz")}
        for name in ("here", "two")
    )
    assert len(here) == 3 + 3  # evaluations; first pixels, and those after a fit
    assert here == two


def instant() -> Callable[..., None]:
    """What takes the place of a sample's work; a function in a function travels to workers whole."""

    def work(config: dict[str, Any], search: Any, execution: Any) -> None:
        from ray import tune

        for level, one in enumerate(search.levels):
            report = {"score": 0.5, "mious": {"0": 0.5}, "fits": {"0": [f"key{level}"]}, "seconds": 1.0}
            tune.report({"report": json.dumps(report), "level": level, "resource": one.resource, "score": 0.5})

    return work


def test_a_journal_that_cannot_be_written_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: str
) -> None:
    monkeypatch.setattr(search_runner, "_trial", instant())
    store = str(tmp_path / "store")
    execution = Execution(tmp_path, store, tmp_path, runs_path=tmp_path, device="cpu", address=ray_cluster)
    search = search_of("search.searcher=random")
    journal, write, left = Journal(Store(store), search), Store.write_record, [5]

    def write_record(store: Store, relative: str, value: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StoreError(f"{relative}: the disk is full")
        write(store, relative, value)

    monkeypatch.setattr(Store, "write_record", write_record)
    told = r"samples/0000[0-9].json: the disk is full"
    with patch.dict(os.environ, RAY_SETTINGS), joined(execution), pytest.raises(StoreError, match=told):
        search_runner.run(search, journal, execution, lambda event: None, lambda: False)
    monkeypatch.setattr(Store, "write_record", write)
    assert Journal(Store(store), search).samples == journal.samples  # what is known is what is stored


@pytest.mark.parametrize(
    ("options", "nodes", "told"),
    [
        ({"device": "cuda"}, [{"CPU": 2.0}], "--device cuda: the cluster has no GPU"),
        ({"cpus_per_rank": 3}, [{"CPU": 2.0}, {"CPU": 2.0}], "room for 0 ranks: 2 CPUs; 2 CPUs"),  # four in all
        ({"ranks": 2}, [{"CPU": 8.0, "GPU": 1.0}], "room for 1 rank: 8 CPUs and 1 GPU"),
        ({"ranks": 2}, [{"CPU": 1.0, "GPU": 4.0}, {"CPU": 9.0}], "room for 1 rank: 1 CPU and 4 GPUs; 9 CPUs"),
    ],
)
def test_every_rank_must_fit_on_one_node(options: dict[str, Any], nodes: list[dict[str, float]], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        placement(Execution(Path("data"), "store", Path("cache"), **options), nodes)


def test_ranks_spread_over_nodes_when_they_fit_on_several() -> None:
    execution = Execution(Path("data"), "store", Path("cache"), ranks=3)
    bundles = placement(execution, [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 2.0}]).bundles
    assert [bundle.get("GPU", 0.0) for bundle in bundles] == [0.0, 1.0, 1.0, 1.0]
    assert sum(bundle["CPU"] for bundle in bundles) == 3.0
