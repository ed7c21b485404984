"""TensorBoard files, read back with TensorBoard's own code: settings to compare by, curves, pictures."""

import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.get_experiment import Handler as ColumnsHandler
from tensorboard.plugins.hparams.list_session_groups import Handler as RowsHandler

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.trial import Budget
from pixelpick_ray.data.cache import PreparedSplit, prepare
from pixelpick_ray.data.datasets import CamVid, open_dataset
from pixelpick_ray.data.description import write_description, write_label_map
from pixelpick_ray.events import ChainDone, ChainFailed, Event, PixelsPicked
from pixelpick_ray.planning import Chain, Plan
from pixelpick_ray.runner.tensorboard import TensorBoard, settings_of
from pixelpick_ray.store import Store
from pixelpick_ray.store.records import DescriptionKeys, StageRecord, write_chain
from tests.support.chain_events import epoch_done, stage_done
from tests.support.data_folders import loaded
from tests.support.stores import do_steps, execution_at, record_of, tiny_plan

pytestmark = pytest.mark.long


@pytest.fixture
def plan() -> Plan:
    """Margin and random with three stages of two epochs each."""
    return tiny_plan()


@pytest.fixture
def execution(write_camvid: Callable[..., Path], tmp_path: Path) -> Execution:
    return execution_at(tmp_path, write_camvid(splits=("train", "test")))


def epoch(chain: Chain, number: int, loss: float, *, stage: int = 0) -> Event:
    return epoch_done(chain.id, stage, number, loss=loss)


def stage(chain: Chain, number: int, miou: float, losses: Sequence[float], budget: Budget | None = None) -> Event:
    return stage_done(chain.id, number, miou, budget=budget or 2 + 2 * number, losses=tuple(losses))


def write(plan: Plan, execution: Execution, events: list[Event]) -> None:
    """What one process writes."""
    board = TensorBoard(plan, execution)
    for event in events:
        board(event)


def written(plan: Plan, execution: Execution, events: list[Event]) -> list[EventAccumulator]:
    """What TensorBoard reads after events, by chain folder in order."""
    write(plan, execution, events)
    folders = sorted((execution.runs_path / plan.experiment.name).iterdir())
    read = [EventAccumulator(str(folder), size_guidance={"images": 0}) for folder in folders]
    for accumulator in read:
        accumulator.Reload()
    return read


def scalars(board: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in board.Scalars(tag)]


def images(board: EventAccumulator, tag: str) -> list[tuple[int, np.ndarray]]:
    """Steps and pictures."""
    read = ((event.step, loaded(io.BytesIO(event.encoded_image_string))) for event in board.Images(tag))
    return [(step, np.asarray(picture)) for step, picture in read]


# Curves


@pytest.mark.always("TensorBoard")
def test_curves_run_through_the_stages_over_epochs_and_over_the_budget(plan: Plan, execution: Execution) -> None:
    margin, random = plan.chains
    TensorBoard(plan, execution)
    assert not execution.runs_path.exists()  # nothing is written without events
    events = [
        stage(margin, 0, 0.25, [2.0, 1.0]),
        stage(margin, 1, 0.5, [1.0, 0.5]),
        stage(random, 0, 0.125, [3.0, 2.5]),
    ]
    first, second = written(plan, execution, events)
    assert Path(first.path).name == f"test_resnet-margin-seed-0-{margin.id[:8]}"
    assert Path(second.path).name == f"test_resnet-random-seed-0-{random.id[:8]}"
    assert scalars(first, "loss") == [(1, 2.0), (2, 1.0), (3, 1.0), (4, 0.5)]
    assert scalars(first, "miou_by_epoch") == [(2, 0.25), (4, 0.5)]
    assert scalars(first, "miou_by_budget") == [(2, 0.25), (4, 0.5)]
    assert scalars(first, "pixels_per_image") == [(2, 2.0), (4, 4.0)]
    assert scalars(second, "miou_by_budget") == [(2, 0.125)]
    assert first.Tags()["images"] == []  # nothing is stored that could be shown


def test_what_is_told_again_is_written_once_and_another_run_takes_the_place_of_the_first(
    plan: Plan, execution: Execution
) -> None:
    chain = plan.chains[0]
    first = stage(chain, 0, 0.25, [2.0, 1.0])
    write(plan, execution, [first, epoch(chain, 1, 8.0, stage=1)])  # stopped in its second stage
    failed = ChainFailed(chain.id, "lost", final=False)
    stored = [epoch(chain, 1, 2.0), epoch(chain, 2, 1.0), first]
    again = [first, epoch(chain, 1, 0.75, stage=1), epoch(chain, 2, 0.5, stage=1)]
    events = [*stored, epoch(chain, 1, 0.75, stage=1), failed, *again, stage(chain, 1, 0.5, [0.75, 0.5])]
    (board,) = written(plan, execution, events)
    assert len(list(Path(board.path).iterdir())) == 2
    assert scalars(board, "loss") == [(1, 2.0), (2, 1.0), (3, 0.75), (4, 0.5)]
    assert scalars(board, "miou_by_budget") == [(2, 0.25), (4, 0.5)]


# Settings to compare by


def hparams_tab(runs_path: Path) -> tuple[set[str], set[str], list[Any]]:
    """What the HPARAMS tab shows: its columns, those that differ, and its rows by name."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(runs_path))
    multiplexer.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(runs_path))))
    columns = ColumnsHandler(RequestContext(), context, "", api_pb2.GetExperimentRequest()).run()
    wanted = api_pb2.ListSessionGroupsRequest(slice_size=99, allowed_statuses=api_pb2.Status.values())
    rows = RowsHandler(RequestContext(), context, "", wanted).run().session_groups
    assert {one.name.tag for one in columns.metric_infos} == METRICS
    names, differing = ({one.name for one in columns.hparam_infos if one.differs or not only} for only in (False, True))
    return names, differing, sorted(rows, key=lambda row: row.name)


METRICS = {"loss", "miou_by_budget", "miou_by_epoch", "pixels_per_image"}
USUAL = {
    "experiment": "tiny",
    "dataset.name": "camvid",
    "model.architecture": "deeplabv3plus",
    "model.backbone": "test_resnet",
    "model.pretrained": "none",
    "train.epochs": 2,
    "train.batch_size": 2,
    "train.optimizer.lr": 1e-3,
}


def test_each_chain_is_a_row_of_the_hparams_tab_whose_columns_are_those_of_all_experiments(
    plan: Plan, execution: Execution
) -> None:
    margin, random = plan.chains
    ended = [stage(margin, 0, 0.25, [2.0, 1.0]), stage(margin, 1, 0.5, [1.0, 0.5]), ChainDone(margin.id)]
    write(plan, execution, [*ended, stage(random, 0, 0.125, [3.0, 2.5])])
    _, differing, rows = hparams_tab(execution.runs_path)
    assert differing == {"acquire.strategy"}
    for row, name, chain in zip(rows, ("margin", "random"), plan.chains, strict=True):
        assert row.name == f"tiny/test_resnet-{name}-seed-0-{chain.id[:8]}"
        shown = {setting: getattr(value, value.WhichOneof("kind")) for setting, value in row.hparams.items()}
        assert shown == USUAL | {"acquire.strategy": name, "seed": 0}
    values = [{one.name.tag: one.value for one in row.metric_values} for row in rows]
    assert values[0] == {"loss": 0.5, "miou_by_budget": 0.5, "miou_by_epoch": 0.5, "pixels_per_image": 4.0}
    assert values[1]["miou_by_budget"] == 0.125
    statuses = [api_pb2.Status.Name(row.sessions[0].status) for row in rows]
    assert statuses == ["STATUS_SUCCESS", "STATUS_UNKNOWN"]
    write(plan, execution, [stage(random, 0, 0.125, [3.0, 2.5]), ChainDone(random.id)])  # another run, no other row
    rows = hparams_tab(execution.runs_path)[2]
    assert [row.sessions[0].status for row in rows] == [api_pb2.STATUS_SUCCESS] * 2
    full = tiny_plan("name=full", "grid=[{seed: [1], budget: [full]}]")
    pools = tiny_plan("name=pools", "grid=[{acquire.pool_fraction: [0.05, 0.5], seed: [0], budget: [2]}]")
    (board,) = written(full, execution, [stage(full.chains[0], 0, 0.75, [1.0, 0.5], budget="full")])
    assert scalars(board, "miou_by_budget") == [(0, 0.75)]
    assert sorted(board.Tags()["scalars"]) == ["loss", "miou_by_budget", "miou_by_epoch"]  # no pixels
    write(pools, execution, [stage(chain, 0, 0.5, [1.0, 0.5]) for chain in pools.chains])
    columns, differing, _ = hparams_tab(execution.runs_path)
    assert columns == USUAL.keys() | {"acquire.strategy", "acquire.pool_fraction", "seed"}
    assert differing == {"experiment", "acquire.strategy", "acquire.pool_fraction", "seed"}


def test_settings_are_what_the_grid_varies_beside_the_usual() -> None:
    grid = "{train.augment.crop_size: [[8, 10]], model.width: [null], acquire.pool_fraction: [0.5], seed: [3]"
    plan = tiny_plan(f"grid=[{grid}, budget: [2]}}, {grid}, budget: [full]}}]", "train.augment={}")
    picking, full = (settings_of(plan.experiment, trial) for trial in plan.trials)
    crop = {"train.augment.crop_size": "[8,10]", "seed": 3}  # no width: an absent option
    assert picking == USUAL | crop | {"acquire.strategy": "margin", "acquire.pool_fraction": 0.5}
    assert full == USUAL | crop | {"acquire.strategy": "full supervision"}


# Pictures


def test_picked_pixels_are_dots_at_their_places_in_the_colour_of_their_class(plan: Plan, execution: Execution) -> None:
    key = do_steps(plan, plan.chains[0], execution)["pick 1"]
    events = [PixelsPicked(plan.chains[0].id, 1, True, key)] * 2
    (board,) = written(plan, execution, events)
    labels = {"train_000": (3, 8), "train_001": (0, 1), "train_002": (2, 10)}  # of the pixels (2, 0) and (2, 1)
    assert sorted(board.Tags()["images"]) == [f"picked/{name}" for name in sorted(labels)]
    size = 48  # of a pixel of an 8 x 10 image
    for name, classes in labels.items():
        ((step, picture),) = images(board, f"picked/{name}")
        assert step == 2  # the stage that the pixels are for
        assert picture.shape == (8 * size, 10 * size, 3)
        for x, label in enumerate(classes):
            assert tuple(picture[int(2.5 * size), int((x + 0.5) * size)]) == CamVid.facts.palette[label]
        original = np.asarray(loaded(execution.data_path / "camvid" / "train" / f"{name}.png"))
        enlarged = original.repeat(size, axis=0).repeat(size, axis=1)
        changed = np.argwhere((picture != enlarged).any(axis=2))
        assert {tuple(at) for at in (changed // size).tolist()} == {(2, 0), (2, 1)}  # nothing else is painted


def test_predictions_are_beside_their_image_and_truth_unless_the_description_is_damaged_or_gone(
    plan: Plan, execution: Execution
) -> None:
    spec, store, chain = plan.chains[0].trial.dataset, Store(execution.store), plan.chains[0]
    prepared = prepare(open_dataset(spec, execution.data_path), "test", spec, execution.cache_path)
    predicted = {0: {"test_000": 4, "test_002": 7}, 1: {"test_000": 5, "test_001": 6, "test_002": 7}}
    description = record_predictions(plan, store, prepared, predicted)
    events = [stage(chain, 0, 0.25, [2.0, 1.0]), stage(chain, 1, 0.5, [1.0, 0.5])]
    (board,) = written(plan, execution, events)
    shown = {name: dict(images(board, f"predicted/{name}")) for name in ("test_000", "test_001", "test_002")}
    assert [list(steps) for steps in shown.values()] == [[0, 1], [1], [0, 1]]
    colours = np.asarray([*CamVid.facts.palette, *[(128, 128, 128)] * 256], dtype=np.uint8)
    for number, classes in predicted.items():
        for name, label in classes.items():
            picture, position = shown[name][number], prepared.index[f"{name}.png"]
            assert picture.shape == (8, 30, 3)
            stored = np.asarray(loaded(description / "images" / f"{position}.jpg"))
            np.testing.assert_array_equal(picture[:, :10], stored)
            np.testing.assert_array_equal(picture[:, 10:20], colours[prepared.label(position)])
            np.testing.assert_array_equal(picture[:, 20:], np.broadcast_to(colours[label], (8, 10, 3)))
    (description / "labels" / "1.png").write_bytes(b"damaged")
    for _ in range(2):
        (board,) = written(plan, execution, events)
        assert not any(images(board, tag) for tag in board.Tags()["images"])
        assert scalars(board, "miou_by_epoch") == [(2, 0.25), (4, 0.5)]
        shutil.rmtree(description, ignore_errors=True)


def record_predictions(plan: Plan, store: Store, prepared: PreparedSplit, predicted: dict[int, dict[str, int]]) -> Path:
    """Store predictions of one class each, by stage and image, as the first chain's; the description's folder."""
    chain, palette = plan.chains[0], CamVid.facts.palette
    description = store.publish(
        "split", {"of": "test"}, lambda folder: write_description(folder, prepared, range(3), CamVid.facts), {}
    )

    def write_predictions(folder: Path, classes: dict[str, int]) -> None:
        (folder / "predictions").mkdir()
        for name, label in classes.items():
            label_map = np.full(prepared.shape(0), label, dtype=np.uint8)
            write_label_map(folder / "predictions" / f"{name}.png", label_map, palette)

    for number, classes in predicted.items():
        store.publish("evaluation", {"of": number}, lambda folder, c=classes: write_predictions(folder, c), {})
    record = record_of(
        chain.trial,
        stages=tuple(StageRecord(budget=10, fit="none", evaluations={"test": digest({"of": at})}) for at in predicted),
        descriptions=DescriptionKeys(training="none", evaluated={"test": description.name}),
    )
    write_chain(store, plan.experiment, chain.id, record)
    return description
