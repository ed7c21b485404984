"""The active-learning loop: what is shared, what is computed again, and that interruptions change nothing."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from pixelpick_ray.data import datasets
from pixelpick_ray.engine.batches import FitJob
from pixelpick_ray.engine.fit import Epoch, fit
from pixelpick_ray.engine.resume import unpack
from pixelpick_ray.engine.world import World
from pixelpick_ray.events import ChainDone, EpochDone, Event, FitResumed, FitTrained, PixelsPicked, StageDone
from pixelpick_ray.running import run_chain
from pixelpick_ray.store import Store, experiment_folder
from tests.support.tiny_data import Place, TinyDataset, place_at, tiny_experiment

pytestmark = pytest.mark.training

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(datasets.DATASETS, "tiny", TinyDataset)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def place(tmp_path: Path, cache_path: Path) -> Place:
    return place_at(tmp_path / "store", tmp_path / "data", cache_path)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    """(stage, labelled pixels; None for all) of every training that happens."""
    jobs: list[tuple[int, int | None]] = []

    def counted(job: FitJob, *rest: Any) -> nn.Module:
        jobs.append((job.stage, None if job.labels is None else len(job.labels)))
        return fit(job, *rest)

    monkeypatch.setattr(pixelpick_ray.training, "fit", counted)
    return jobs


def run(
    experiment: Experiment, place: Place, trial: int = -1, *, keep_stages: frozenset[int] = frozenset()
) -> list[Event]:
    """Run a trial of the experiment and return the events."""
    events: list[Event] = []
    run_chain(experiment, experiment.trials()[trial], place, ALONE, events.append, keep_stages=keep_stages)
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


def provenance(place: Place, kind: str, key: str) -> dict[str, Any]:
    return json.loads((place.results.folder(kind, key) / "provenance.json").read_text())


STAGES = [(0, 15), (1, 30), (2, 45)]


# What a chain does


def test_a_chain_trains_each_stage_on_all_pixels_picked_so_far(place: Place, trained: list[Any]) -> None:
    experiment = tiny_experiment()
    events = run(experiment, place)
    assert trained == STAGES
    assert [(type(event), event.stage) for event in events[:-1]] == [
        *[(EpochDone, 0)] * 3 + [(FitTrained, 0), (StageDone, 0), (PixelsPicked, 0)],
        *[(EpochDone, 1)] * 3 + [(FitTrained, 1), (StageDone, 1), (PixelsPicked, 1)],
        *[(EpochDone, 2)] * 3 + [(FitTrained, 2), (StageDone, 2)],
    ]
    assert isinstance(events[-1], ChainDone)
    assert all(event.computed for event in events if isinstance(event, PixelsPicked))
    assert [(event.budget, event.trained) for event in events if isinstance(event, StageDone)] == [
        (3, True),
        (6, True),
        (9, True),
    ]
    kept = record(experiment, place)
    assert [stage["budget"] for stage in kept["stages"]] == [3, 6, 9]
    assert [stage["pick"] is None for stage in kept["stages"]] == [False, False, True]  # no pick after the last
    assert kept["num_images"] == 5
    assert kept["class_names"] == ["a", "b", "c", "d"]
    assert len(list((place.results.path / "pick").iterdir())) == 3  # the first pixels and two picks
    for stage in kept["stages"]:
        with np.load(place.results.folder("evaluation", stage["evaluations"]["val"]) / "confusion.npz") as file:
            assert file["epochs"].tolist() == [3]
            assert file["confusion"].shape == (1, 4, 4)
            assert (file["confusion"].sum(axis=1) > 0).sum() > 1  # the network has learnt more than one class
            assert file["confusion"].sum() == 3 * (32 - 1) * 48


def test_running_again_trains_nothing_and_changes_nothing(place: Place, trained: list[Any]) -> None:
    experiment = tiny_experiment()
    run(experiment, place)
    before, kept = payload(place), record(experiment, place)
    trained.clear()
    events = run(experiment, place)
    assert trained == []
    kinds = [StageDone, PixelsPicked, StageDone, PixelsPicked, StageDone, ChainDone]
    assert [type(event) for event in events] == kinds
    assert not any(event.trained for event in events if isinstance(event, StageDone))
    assert not any(event.computed for event in events if isinstance(event, PixelsPicked))
    assert payload(place) == before
    assert record(experiment, place) == kept


def test_full_supervision_is_one_stage_without_pixels(place: Place, trained: list[Any]) -> None:
    experiment = tiny_experiment("grid=[{budget: [full]}]")
    run(experiment, place)
    assert trained == [(0, None)]
    assert not (place.results.path / "pick").exists()
    kept = record(experiment, place)
    assert kept["full"]
    assert [stage["budget"] for stage in kept["stages"]] == ["full"]
    other = tiny_experiment("grid=[{budget: [full], acquire.strategy: [random]}]")
    run(other, place)
    assert trained == [(0, None)]  # full supervision does not depend on the strategy


def test_a_chain_stores_what_a_report_tells_of_its_images(place: Place) -> None:
    experiment = tiny_experiment("grid=[{dataset.images: [4], budget: [3]}]")
    run(experiment, place)
    kept = record(experiment, place)["descriptions"]
    assert kept["evaluated"].keys() == {"val"}
    training, evaluated = (
        json.loads((place.results.folder("split", key) / "description.json").read_text())
        for key in (kept["training"], kept["evaluated"]["val"])
    )
    assert (training["images"], evaluated["images"]) == (4, 3)
    (key,) = (stage["evaluations"]["val"] for stage in record(experiment, place)["stages"])
    predictions = {path.stem for path in (place.results.folder("evaluation", key) / "predictions").iterdir()}
    assert predictions == {Path(name).stem for name in evaluated["names"]}  # each has its image and its truth


# What is shared


def test_strategies_share_the_first_pixels_and_the_first_fit(place: Place, trained: list[Any]) -> None:
    experiment = tiny_experiment("grid=[{acquire.strategy: [margin, random, entropy], budget: [6]}]")
    for trial in range(3):
        run(experiment, place, trial, keep_stages=frozenset({0}))  # as the plan says: another chain picks from it
    assert trained == [(0, 15), (1, 30), (1, 30), (1, 30)]


def test_a_larger_budget_trains_only_the_new_stages(place: Place, trained: list[Any]) -> None:
    place = replace(place, keep_weights="last")
    experiment = tiny_experiment("grid=[{budget: [3, 6, 9]}]")
    run(experiment, place, 0)
    assert trained == STAGES[:1]
    run(experiment, place, 2)
    assert trained == STAGES
    run(experiment, replace(place, keep_weights="needed"), 1)
    assert trained == STAGES


def test_a_new_pick_trains_again_only_when_the_weights_are_gone(place: Place, trained: list[Any]) -> None:
    """With weights dropped after the chain, the longer one first makes the same model of stage 0 again."""
    experiment = tiny_experiment("grid=[{budget: [3, 6]}]")
    run(experiment, place, 0)
    run(experiment, place, 1)
    assert trained == [(0, 15), (0, 15), (1, 30)]
    fit_key, pick_key = (record(experiment, place)["stages"][0][kind] for kind in ("fit", "pick"))
    weights = json.loads((place.results.folder("fit", fit_key) / "weights.json").read_text())["sha256"]
    assert provenance(place, "pick", pick_key)["fit_weights"] == weights


def test_random_needs_no_weights_for_a_new_pick(place: Place, trained: list[Any]) -> None:
    experiment = tiny_experiment("grid=[{acquire.strategy: [random], budget: [3, 6]}]")
    run(experiment, place, 0)
    run(experiment, place, 1)
    assert trained == [(0, 15), (1, 30)]


def test_other_seeds_networks_and_images_share_no_fit(place: Place, trained: list[Any]) -> None:
    for override in ("seed: [0, 1]", "train.batch_size: [5, 3]", "dataset.images: [5, 4]"):
        experiment = tiny_experiment(f"grid=[{{{override}, budget: [3]}}]")
        run(experiment, place, 0)
        run(experiment, place, 1)
    assert trained == [(0, 15), (0, 15), (0, 15), (0, 15), (0, 12)]


# What is computed again


def test_a_lost_fit_is_trained_alone_and_its_measurements_come_out_the_same(place: Place, trained: list[Any]) -> None:
    experiment = tiny_experiment()
    run(experiment, place)
    before = payload(place)
    lost = record(experiment, place)["stages"][1]
    shutil.rmtree(place.results.folder("fit", lost["fit"]))
    shutil.rmtree(place.results.folder("evaluation", lost["evaluations"]["val"]))
    trained.clear()
    run(experiment, place)
    assert trained == [(1, 30)]
    assert payload(place) == before


def test_a_lost_evaluation_is_measured_again(place: Place, trained: list[Any]) -> None:
    place = replace(place, keep_weights="all")
    experiment = tiny_experiment()
    run(experiment, place)
    before = payload(place)
    lost = record(experiment, place)["stages"][1]
    shutil.rmtree(place.results.folder("evaluation", lost["evaluations"]["val"]))
    trained.clear()
    run(experiment, place)
    assert trained == []  # the weights were there
    assert payload(place) == before
    evaluation = provenance(place, "evaluation", lost["evaluations"]["val"])
    weights = json.loads((place.results.folder("fit", lost["fit"]) / "weights.json").read_text())
    assert evaluation["fit_weights"] == weights["sha256"]


def test_damaged_results_are_set_aside_and_computed_again(place: Place, trained: list[Any]) -> None:
    experiment = tiny_experiment()
    run(experiment, place)
    before = payload(place)
    stage = record(experiment, place)["stages"][0]
    for kind, key, name in (
        ("pick", stage["pick"], "pixels.npz"),
        ("evaluation", stage["evaluations"]["val"], "confusion.npz"),
    ):
        path = place.results.folder(kind, key) / name
        path.write_bytes(path.read_bytes()[:-1])
    trained.clear()
    run(experiment, place)
    assert trained == [(0, 15)]
    assert payload(place) == before


def test_damaged_weights_are_not_used(place: Place, trained: list[Any]) -> None:
    place = replace(place, keep_weights="all")
    experiment = tiny_experiment()
    run(experiment, place)
    before = payload(place)
    stage = record(experiment, place)["stages"][0]
    weights = place.results.folder("fit", stage["fit"]) / "weights.safetensors"
    weights.write_bytes(b"\0" + weights.read_bytes()[1:])
    shutil.rmtree(place.results.folder("pick", stage["pick"]))
    trained.clear()
    run(experiment, place)
    assert trained == [(0, 15)]
    assert payload(place) == before


# Interruptions


class Killed(BaseException):
    """Stands for the death of the process: no code of the package handles it."""


def killed_at(monkeypatch: pytest.MonkeyPatch, call: int) -> list[str]:
    """Make the process die at its `call`-th write to the store; returns the writes as they come."""
    writes: list[str] = []

    def dying(name: str) -> Callable[..., Any]:
        original = getattr(Store, name)

        def method(self: Store, *arguments: Any) -> Any:
            writes.append(name)
            if len(writes) == call + 1:
                raise Killed
            return original(self, *arguments)

        return method

    for name in ("publish", "write_weights", "write_record", "drop_weights", "drop_unfinished", "discard"):
        monkeypatch.setattr(Store, name, dying(name))
    return writes


TWO_STAGES = ("grid=[{budget: [6]}]", "train.epochs=1")
WRITES = 19


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache_path: Path) -> tuple[dict[str, bytes], list[str]]:
    """The results of a chain of two stages that nobody disturbs, and its writes to the store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.DATASETS, "tiny", TinyDataset)
        writes = killed_at(patch, 10**6)
        torch.set_num_threads(1)
        place = place_at(tmp_path_factory.mktemp("undisturbed"), cache_path, cache_path)
        run(tiny_experiment(*TWO_STAGES), place)
        return payload(place), writes


def test_the_interruptions_below_cover_every_write(undisturbed: tuple[dict[str, bytes], list[str]]) -> None:
    results, writes = undisturbed
    assert len(writes) == WRITES
    assert writes.count("publish") == 2 + 2 + 2 + 2  # descriptions, pixels, fits, evaluations
    assert writes.count("drop_weights") == writes.count("discard") == 2
    assert writes.count("drop_unfinished") == 2 + 2  # after the fit, and once more when the stage is left
    assert len([name for name in results if name.endswith(".npz")]) == 4


@pytest.mark.parametrize("call", range(WRITES))
def test_a_run_killed_at_any_write_ends_with_the_results_of_an_undisturbed_one(
    call: int, place: Place, undisturbed: tuple[dict[str, bytes], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny_experiment(*TWO_STAGES)
    with monkeypatch.context() as patch:
        killed_at(patch, call)
        with pytest.raises(Killed):
            run(experiment, place)
    run(experiment, place)
    assert payload(place) == undisturbed[0]
    assert place.results.leased() == {}


@pytest.mark.parametrize("call", range(8))
def test_a_result_half_written_does_not_exist(
    call: int, place: Place, undisturbed: tuple[dict[str, bytes], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a power cut: the payload lies in its temporary folder, no manifest, and nobody has cleaned up."""
    experiment = tiny_experiment(*TWO_STAGES)
    calls: list[Path] = []
    original = pixelpick_ray.store.results._manifest

    def dying(folder: Path) -> dict[str, dict[str, Any]]:
        calls.append(folder)
        if len(calls) == call + 1:
            raise Killed
        return original(folder)

    with monkeypatch.context() as patch:
        patch.setattr(pixelpick_ray.store.results, "_manifest", dying)
        patch.setattr(pixelpick_ray.store.backend.shutil, "rmtree", lambda *arguments, **options: None)
        with pytest.raises(Killed):
            run(experiment, place)
    assert calls[-1].is_dir()
    run(experiment, place)
    left = {name: value for name, value in payload(place).items() if ".partial-" not in name}
    assert left == undisturbed[0]


def test_an_error_in_training_leaves_no_result_of_its_stage(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny_experiment()
    with monkeypatch.context() as patch:

        def failing(job: FitJob, *rest: Any) -> nn.Module:
            if job.stage == 1:
                raise RuntimeError("out of luck")
            return fit(job, *rest)

        patch.setattr(pixelpick_ray.training, "fit", failing)
        with pytest.raises(RuntimeError, match="out of luck"):
            run(experiment, place)
    assert len(list((place.results.path / "fit").iterdir())) == 1
    assert len(record(experiment, place)["stages"]) == 1
    run(experiment, place)
    assert len(record(experiment, place)["stages"]) == 3


# Inside a fit


FOUR_EPOCHS = ("train.epochs=4", "evaluate.when=every_epoch", "model.dropout=[0.5, 0.5, 0.2]")


class Clock:
    """A clock that moves by ten seconds each time it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(stage, 1-based epoch) of every epoch that is trained."""
    seen: list[tuple[int, int]] = []

    def watched(job: FitJob, world: World, on_epoch: Callable[[Epoch], None], *rest: Any) -> nn.Module:
        def note(epoch: Epoch) -> None:
            seen.append((job.stage, epoch.number))
            on_epoch(epoch)

        return fit(job, world, note, *rest)

    monkeypatch.setattr(pixelpick_ray.training, "fit", watched)
    return seen


def die_at(experiment: Experiment, place: Place, stage: int, epoch: int) -> list[Event]:
    """Run a chain whose process dies right after an epoch has been reported, or not at all."""
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, EpochDone) and (event.stage, event.epoch) == (stage, epoch):
            raise Killed

    with pytest.raises(Killed):
        run_chain(experiment, experiment.trials()[-1], place, ALONE, listen)
    return events


@pytest.mark.parametrize("optimizer", ["{name: adam, lr: 3e-3}", "{name: sgd, lr: 0.02, momentum: 0.9}"])
@pytest.mark.always("kill and resume")
def test_a_fit_killed_after_every_one_of_its_epochs_ends_with_the_bytes_of_an_undisturbed_one(
    optimizer: str, place: Place, tmp_path: Path, epochs: list[tuple[int, int]]
) -> None:
    """Losses, picks, confusion matrices of all epochs, and the weights; no epoch is trained twice."""
    experiment = tiny_experiment(*FOUR_EPOCHS, f"train.optimizer={optimizer}", "grid=[{budget: [6]}]")
    place = replace(place, keep_weights="all")
    run(experiment, replace(place, store=str(tmp_path / "undisturbed")))
    undisturbed = payload(replace(place, store=str(tmp_path / "undisturbed")))
    epochs.clear()
    place = replace(place, checkpoint_seconds=0.0)
    for stage, epoch in [(0, 1), (0, 2), (0, 3), (1, 2)]:
        die_at(experiment, place, stage, epoch)
    events = run(experiment, place)
    assert payload(place) == undisturbed
    assert epochs == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert [event.epoch for event in events if isinstance(event, FitResumed)] == [2]
    assert not list((place.results.path / "unfinished").iterdir())
    first = record(experiment, place)["stages"][0]["fit"]
    assert provenance(place, "fit", first)["processes"] == 4


def test_a_fit_in_training_is_saved_no_more_often_than_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs and saves of ten seconds each and 25 seconds between saves: every third, and never the last."""
    saved: list[int] = []
    original = Store.write_unfinished

    def watched(self: Store, key: str, content: bytes) -> None:
        saved.append(unpack(content).progress.epoch)
        original(self, key, content)

    monkeypatch.setattr(Store, "write_unfinished", watched)
    monkeypatch.setattr(pixelpick_ray.training.time, "monotonic", Clock())
    run(tiny_experiment("train.epochs=12", "grid=[{budget: [3]}]"), replace(place, checkpoint_seconds=25.0))
    assert saved == [3, 6, 9]
    saved.clear()
    run(tiny_experiment("train.epochs=3", "grid=[{budget: [3]}]"), replace(place, checkpoint_seconds=3600.0))
    assert saved == []


def test_what_another_version_or_number_of_ranks_left_is_not_continued(
    place: Place, epochs: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny_experiment(*FOUR_EPOCHS, "grid=[{budget: [3]}]")
    place = replace(place, checkpoint_seconds=0.0)
    with monkeypatch.context() as patch:
        other = pixelpick_ray.training.provenance_of
        patch.setattr(pixelpick_ray.training, "provenance_of", lambda *a: other(*a) | {"torch": "1.0"})
        die_at(experiment, place, 0, 2)
    epochs.clear()
    run(experiment, place)
    assert epochs == [(0, 1), (0, 2), (0, 3), (0, 4)]


def test_a_fit_goes_on_only_with_measurements_of_all_its_epochs(place: Place, epochs: list[tuple[int, int]]) -> None:
    """Another split is asked for meanwhile: its first epochs were not measured, so they are trained again."""
    place = replace(place, checkpoint_seconds=0.0)
    die_at(tiny_experiment(*FOUR_EPOCHS, "grid=[{budget: [3]}]"), place, 0, 2)
    epochs.clear()
    more = tiny_experiment(*FOUR_EPOCHS, "grid=[{budget: [3]}]", "evaluate.splits={val: {}, train: {}}")
    run(more, place)
    assert epochs == [(0, 1), (0, 2), (0, 3), (0, 4)]
    (stage,) = record(more, place)["stages"]
    assert {len(confusion(place, key)[0]) for key in stage["evaluations"].values()} == {4}


def test_a_damaged_saved_state_is_not_used(place: Place, epochs: list[tuple[int, int]]) -> None:
    experiment = tiny_experiment(*FOUR_EPOCHS, "grid=[{budget: [3]}]")
    place = replace(place, checkpoint_seconds=0.0)
    die_at(experiment, place, 0, 2)
    (path,) = (place.results.path / "unfinished").iterdir()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    epochs.clear()
    run(experiment, place)
    assert epochs == [(0, 1), (0, 2), (0, 3), (0, 4)]


# Evaluation


EVERY_EPOCH = ("evaluate.when=every_epoch", "grid=[{budget: [6]}]")


def confusion(place: Place, key: str) -> tuple[list[int], np.ndarray]:
    with np.load(place.results.folder("evaluation", key) / "confusion.npz") as file:
        return file["epochs"].tolist(), file["confusion"]


def test_every_epoch_gives_one_matrix_an_epoch_and_the_last_is_that_of_last(place: Place, trained: list[Any]) -> None:
    run(tiny_experiment("grid=[{budget: [6]}]"), place)
    every, last = tiny_experiment(*EVERY_EPOCH), tiny_experiment("grid=[{budget: [6]}]")
    run(every, place)
    assert trained == STAGES[:2] * 2  # measurements of earlier epochs need the training again
    for by_epoch, at_end in zip(record(every, place)["stages"], record(last, place)["stages"], strict=True):
        assert by_epoch["fit"] == at_end["fit"]
        epochs, matrices = confusion(place, by_epoch["evaluations"]["val"])
        assert epochs == [1, 2, 3]
        assert np.array_equal(matrices[2:], confusion(place, at_end["evaluations"]["val"])[1])
        assert not np.array_equal(matrices[0], matrices[2])


@pytest.mark.parametrize("keep", ["needed", "all"])
@pytest.mark.parametrize("when", ["last", "every_epoch"])
def test_another_split_is_measured_later_without_another_fit(
    when: str, keep: str, place: Place, trained: list[Any]
) -> None:
    place = replace(place, keep_weights=keep)
    options = (f"evaluate.when={when}", "grid=[{budget: [6]}]")
    run(tiny_experiment(*options), place)
    before = payload(place)
    trained.clear()
    more = tiny_experiment("evaluate.splits={val: {}, train: {}}", *options)
    run(more, place)
    assert trained == ([] if (when, keep) == ("last", "all") else STAGES[:2])
    after = payload(place)
    assert {name: after[name] for name in before} == before
    added = {name.split("/")[0] for name in set(after) - set(before) if not name.endswith("weights.safetensors")}
    assert added == {"evaluation"}
    for stage in record(more, place)["stages"]:
        epochs, matrices = confusion(place, stage["evaluations"]["train"])
        assert epochs == ([3] if when == "last" else [1, 2, 3])
        assert (matrices.sum(axis=(1, 2)) == 5 * 31 * 48).all()


# Weights


@pytest.mark.parametrize(
    ("keep", "stages", "expected"),
    [
        ("needed", frozenset(), [False, False, False]),
        ("last", frozenset(), [False, False, True]),
        ("all", frozenset(), [True, True, True]),
        ("needed", frozenset({0}), [True, False, False]),
    ],
    ids=["needed", "last", "all", "needed by another chain"],
)
def test_weights_are_kept_as_told(keep: str, stages: frozenset[int], expected: list[bool], place: Place) -> None:
    experiment = tiny_experiment()
    run(experiment, replace(place, keep_weights=keep), keep_stages=stages)
    keys = [stage["fit"] for stage in record(experiment, place)["stages"]]
    assert [place.results.weights(key) is not None for key in keys] == expected
    assert all(place.results.has("fit", key) for key in keys)
