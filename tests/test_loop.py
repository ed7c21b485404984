"""The active-learning loop: what is shared, what is computed again, and that interruptions change nothing."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pixelpick_ray.store.backend
import pixelpick_ray.store.results
import pixelpick_ray.training
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.engine.batches import FitJob
from pixelpick_ray.engine.fit import fit
from pixelpick_ray.engine.resume import unpack
from pixelpick_ray.engine.world import World
from pixelpick_ray.events import ChainDone, EpochDone, Event, FitResumed, FitTrained, PixelsPicked, StageDone
from pixelpick_ray.running import run_chain
from pixelpick_ray.store import Store, experiment_folder
from tests.support.tiny_data import SMALL, TWO_STAGES, Place, place_at, tiny_experiment

pytestmark = [pytest.mark.training, pytest.mark.usefixtures("tiny")]

ALONE = World(0, 1, torch.device("cpu"))
ONE_EPOCH = "train.epochs=1"
TWO = "grid=[{budget: [6]}]"
STAGES = [(0, 15), (1, 30), (2, 45)]


@pytest.fixture
def place(tmp_path: Path, cache_path: Path) -> Place:
    return place_at(tmp_path / "store", tmp_path / "data", cache_path)


def count_fits(patch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    """(stage, labelled pixels; None for all) of every training that happens."""
    jobs: list[tuple[int, int | None]] = []

    def counted(job: FitJob, *rest: Any) -> nn.Module:
        jobs.append((job.stage, None if job.labels is None else len(job.labels)))
        return fit(job, *rest)

    patch.setattr(pixelpick_ray.training, "fit", counted)
    return jobs


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    return count_fits(monkeypatch)


def run(experiment: Experiment, place: Place) -> list[Event]:
    """Run the last trial of the experiment and return the events."""
    events: list[Event] = []
    run_chain(experiment, experiment.trials()[-1], place, ALONE, events.append)
    return events


def payload(place: Place) -> dict[str, bytes]:
    """Everything in the store that is a result: pixels, confusion matrices, predictions, losses, inputs."""
    kinds = ("fit", "pick", "evaluation", "split")
    files = [path for kind in kinds for path in (place.results.path / kind).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(place.results.path)): path.read_bytes()
        for path in files
        if path.name not in ("provenance.json", "manifest.json", "weights.json")
    }


def record(experiment: Experiment, place: Place) -> dict[str, Any]:
    folder = f"{experiment_folder(experiment)}/chains"
    (name,) = place.results.records(folder)
    return place.results.read_record(f"{folder}/{name}.json")


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


@dataclass
class Finished:
    """A chain of three stages that was run, with all weights; a copy of it."""

    place: Place
    events: list[Event]
    trained: list[tuple[int, int | None]]

    def __post_init__(self) -> None:
        self.experiment = tiny_experiment()
        self.record = record(self.experiment, self.place)
        self.payload = payload(self.place)

    def copy(self, folder: Path, *, weights: bool = False) -> "Finished":
        shutil.copytree(self.place.results.path, folder / "copied")
        for path in () if weights else folder.glob("copied/fit/*/weights.safetensors"):
            path.unlink()
        keep = "all" if weights else "needed"
        place = replace(self.place, store=str(folder / "copied"), runs_path=folder / "runs", keep_weights=keep)
        return Finished(place, [], [])

    def folder(self, result: str) -> Path:
        """The folder of a result, such as ``fit 1``."""
        kind, stage = result.split()
        found = self.record["stages"][int(stage)]
        return self.place.results.folder(kind, found["evaluations"]["val"] if kind == "evaluation" else found[kind])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache_path: Path, tiny: None) -> Finished:
    with pytest.MonkeyPatch.context() as patch:
        fits = count_fits(patch)
        place = place_at(tmp_path_factory.mktemp("finished") / "store", cache_path, cache_path, keep_weights="all")
        return Finished(place, run(tiny_experiment(), place), fits)


# What a chain does


def test_a_chain_trains_each_stage_on_all_pixels_picked_so_far(finished: Finished) -> None:
    events, kept = finished.events, finished.record
    assert finished.trained == STAGES
    assert [(type(event), event.stage) for event in events[:-1]] == [
        *[(EpochDone, 0)] * 3 + [(FitTrained, 0), (StageDone, 0), (PixelsPicked, 0)],
        *[(EpochDone, 1)] * 3 + [(FitTrained, 1), (StageDone, 1), (PixelsPicked, 1)],
        *[(EpochDone, 2)] * 3 + [(FitTrained, 2), (StageDone, 2)],
    ]
    assert isinstance(events[-1], ChainDone)
    assert all(event.computed for event in events if isinstance(event, PixelsPicked))
    stages = [(event.budget, event.trained) for event in events if isinstance(event, StageDone)]
    assert stages == [(3, True), (6, True), (9, True)]
    # no pick after the last
    assert [(stage["budget"], stage["pick"] is None) for stage in kept["stages"]] == [(3, False), (6, False), (9, True)]
    assert (kept["num_images"], kept["class_names"]) == (5, ["a", "b", "c", "d"])
    assert len(finished.place.results.names("pick")) == 3  # the first pixels and two picks
    for stage in kept["stages"]:
        epochs, matrices = confusion(finished.place, stage["evaluations"]["val"])
        assert (epochs, matrices.shape, matrices.sum()) == ([3], (1, 4, 4), 3 * (32 - 1) * 48)
        assert (matrices.sum(axis=1) > 0).sum() > 1  # the network has learnt more than one class


def test_full_supervision_is_one_stage_without_pixels(place: Place, trained: list[Any]) -> None:
    experiment = tiny_experiment("grid=[{dataset.images: [4], budget: [full]}]", ONE_EPOCH)
    run(experiment, place)
    assert trained == [(0, None)]
    assert not (place.results.path / "pick").exists()
    kept = record(experiment, place)
    (stage,) = kept["stages"]
    assert (kept["full"], stage["budget"], kept["descriptions"]["evaluated"].keys()) == (True, "full", {"val"})
    training, evaluated = (
        json.loads((place.results.folder("split", key) / "description.json").read_text())
        for key in (kept["descriptions"]["training"], kept["descriptions"]["evaluated"]["val"])
    )
    assert (training["images"], evaluated["images"]) == (4, 3)
    folder = place.results.folder("evaluation", stage["evaluations"]["val"]) / "predictions"
    assert {path.stem for path in folder.iterdir()} == {Path(name).stem for name in evaluated["names"]}
    run(tiny_experiment("grid=[{dataset.images: [4], budget: [full], acquire.strategy: [random]}]", ONE_EPOCH), place)
    assert trained == [(0, None)]  # it does not depend on the strategy


# What is computed again


@pytest.mark.parametrize(
    ("lost", "damaged", "weights", "again"),
    [
        (["fit 1", "evaluation 1"], [], False, STAGES[1:2]),
        (["evaluation 1"], [], True, []),
        (["pick 0"], ["fit 0/weights.safetensors"], True, STAGES[:1]),
    ],
)
def test_what_is_lost_or_damaged_is_computed_again_alone_and_comes_out_the_same(
    lost: list[str], damaged: list[str], weights: bool, again: Any, finished: Finished, tmp_path: Path, trained: Any
) -> None:
    mine = finished.copy(tmp_path, weights=weights)
    for folder in lost:
        shutil.rmtree(mine.folder(folder))
    for file in damaged:
        damage(mine.folder(file.partition("/")[0]) / file.partition("/")[2])
    run(mine.experiment, mine.place)
    assert trained == again
    assert payload(mine.place) == mine.payload
    for stage in (0, 1):
        weights = json.loads((mine.folder(f"fit {stage}") / "weights.json").read_text())["sha256"]
        for kind in ("evaluation", "pick"):  # made of weights that are the same when they are made again
            told = json.loads((mine.folder(f"{kind} {stage}") / "provenance.json").read_text())
            assert told["fit_weights"] == weights


# Interruptions


class Killed(BaseException):
    """Stands for the death of the process: no code of the package handles it."""


def killed_at(patch: pytest.MonkeyPatch, call: int) -> list[str]:
    """Make the process die at its `call`-th write to the store; returns the writes as they come."""
    writes: list[str] = []

    def dying(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(*arguments: Any) -> Any:
            writes.append(name)
            if len(writes) == call + 1:
                raise Killed
            return original(*arguments)

        return method

    for name in ("publish", "write_weights", "write_record", "drop_weights", "drop_unfinished", "discard"):
        patch.setattr(Store, name, dying(name, getattr(Store, name)))
    return writes


WRITES = 19


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache_path: Path, tiny: None) -> dict[str, bytes]:
    """The results of a chain of two stages that nobody disturbs, with as many writes as are killed below."""
    with pytest.MonkeyPatch.context() as patch:
        writes = killed_at(patch, 10**6)
        place = place_at(tmp_path_factory.mktemp("undisturbed"), cache_path, cache_path)
        run(tiny_experiment(*TWO_STAGES), place)
    assert len(writes) == WRITES
    return payload(place)


@pytest.mark.parametrize("call", range(WRITES))
def test_a_run_killed_at_any_write_ends_undisturbed(call: int, place: Place, undisturbed: dict[str, bytes]) -> None:
    experiment = tiny_experiment(*TWO_STAGES)
    with pytest.MonkeyPatch.context() as patch:
        killed_at(patch, call)
        with pytest.raises(Killed):
            run(experiment, place)
    run(experiment, place)
    assert payload(place) == undisturbed
    assert place.results.leased() == {}


# Inside a fit


FOUR_EPOCHS = ("train.epochs=4", "evaluate.when=every_epoch", "model.dropout=[0.5, 0.5, 0.2]", *SMALL)


def epochs_of(events: list[Event]) -> list[tuple[int, int]]:
    """(stage, 1-based epoch) of every epoch that was trained."""
    return [(event.stage, event.epoch) for event in events if isinstance(event, EpochDone)]


def die_at(experiment: Experiment, place: Place, stage: int, epoch: int, **options: Any) -> list[Event]:
    """Run a chain whose process dies right after an epoch has been reported; the events."""
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, EpochDone) and (event.stage, event.epoch) == (stage, epoch):
            raise Killed

    with pytest.raises(Killed):
        run_chain(experiment, experiment.trials()[-1], place, ALONE, listen, **options)
    return events


@pytest.mark.parametrize("optimizer", ["{name: adam, lr: 3e-3}", "{name: sgd, lr: 0.02, momentum: 0.9}"])
@pytest.mark.always("kill and resume")
def test_a_fit_killed_after_each_of_its_epochs_ends_undisturbed(optimizer: str, place: Place, tmp_path: Path) -> None:
    """Losses, picks, confusion matrices of all epochs, and the weights; no epoch is trained twice."""
    experiment = tiny_experiment(*FOUR_EPOCHS, f"train.optimizer={optimizer}", "grid=[{budget: [6]}]")
    place = replace(place, keep_weights="all")
    run(experiment, replace(place, store=str(tmp_path / "undisturbed")))
    undisturbed = payload(replace(place, store=str(tmp_path / "undisturbed")))
    place, events = replace(place, checkpoint_seconds=0.0), list[Event]()
    for stage, epoch in [(0, 1), (0, 2), (0, 3), (1, 2)]:
        events += die_at(experiment, place, stage, epoch)
    events += run(experiment, place)
    assert payload(place) == undisturbed
    assert epochs_of(events) == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert [event.epoch for event in events if isinstance(event, FitResumed)] == [1, 2, 3, 2]
    assert not list((place.results.path / "unfinished").iterdir())
    folder = place.results.folder("fit", record(experiment, place)["stages"][0]["fit"])
    assert json.loads((folder / "provenance.json").read_text())["processes"] == 4


def test_a_fit_in_training_is_saved_no_more_often_than_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs and saves of ten seconds each and 25 seconds between saves: every third, and never the last."""
    saved: list[int] = []
    monkeypatch.setattr(
        Store, "write_unfinished", lambda self, key, content: saved.append(unpack(content).progress.epoch)
    )
    ticks = itertools.count(10.0, 10.0)  # each time it is looked at
    monkeypatch.setattr(pixelpick_ray.training.time, "monotonic", lambda: next(ticks))
    for epochs, seconds, expected in ((12, 25.0, [3, 6, 9]), (3, 3600.0, [])):
        saved.clear()
        experiment = tiny_experiment(f"train.epochs={epochs}", "grid=[{budget: [3]}]", *SMALL)
        run(experiment, replace(place, checkpoint_seconds=seconds))
        assert saved == expected


def test_a_fit_is_saved_after_every_epoch_once_its_node_is_leaving(place: Place) -> None:
    experiment = tiny_experiment(*FOUR_EPOCHS, "grid=[{budget: [3]}]")
    place = replace(place, checkpoint_seconds=3600.0)
    noticed = iter([False, True, True])
    die_at(experiment, place, 0, 3, is_leaving=lambda: next(noticed))
    assert epochs_of(run(experiment, place)) == [(0, 4)]


@pytest.mark.parametrize("why", ["another version or number of ranks left it", "another split is asked for", "damaged"])
def test_a_saved_state_of_another_fit_is_not_used(why: str, place: Place) -> None:
    changes = [*FOUR_EPOCHS, "grid=[{budget: [3]}]"]
    place = replace(place, checkpoint_seconds=0.0)
    with pytest.MonkeyPatch.context() as patch:
        if "another version" in why:
            mine = pixelpick_ray.training.provenance_of
            patch.setattr(pixelpick_ray.training, "provenance_of", lambda *a: mine(*a) | {"torch": "1.0"})
        die_at(tiny_experiment(*changes), place, 0, 2)
    if "another split" in why:  # whose first epochs were not measured
        changes.append("evaluate.splits={val: {}, train: {}}")
    if why == "damaged":
        (path,) = (place.results.path / "unfinished").iterdir()
        damage(path)
    assert epochs_of(run(tiny_experiment(*changes), place)) == [(0, 1), (0, 2), (0, 3), (0, 4)]
    (stage,) = record(tiny_experiment(*changes), place)["stages"]
    assert {len(confusion(place, key)[0]) for key in stage["evaluations"].values()} == {4}


# Evaluation


def confusion(place: Place, key: str) -> tuple[list[int], np.ndarray]:
    with np.load(place.results.folder("evaluation", key) / "confusion.npz") as file:
        return file["epochs"].tolist(), file["confusion"]


def test_every_epoch_gives_one_matrix_an_epoch_and_the_last_is_that_of_last(place: Place, trained: list[Any]) -> None:
    every, last = tiny_experiment("evaluate.when=every_epoch", TWO), tiny_experiment(TWO)
    run(last, place)
    run(every, place)
    assert trained == STAGES[:2] * 2  # measurements of earlier epochs need the training again
    for by_epoch, at_end in zip(record(every, place)["stages"], record(last, place)["stages"], strict=True):
        assert by_epoch["fit"] == at_end["fit"]
        epochs, matrices = confusion(place, by_epoch["evaluations"]["val"])
        assert epochs == [1, 2, 3]
        assert np.array_equal(matrices[2:], confusion(place, at_end["evaluations"]["val"])[1])
        assert not np.array_equal(matrices[0], matrices[2])
