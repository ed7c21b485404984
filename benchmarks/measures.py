"""The measurements: functions of the conditions that yield result lines."""

import importlib.util
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import memory, sharing
from benchmarks.goals import MEASURES, Line
from benchmarks.processes import in_fresh_process
from benchmarks.throughput import images_per_second
from benchmarks.timing import Action, compare, milliseconds, seconds_of, short, summarise, synchronise, take_turns
from benchmarks.work import (
    Frozen,
    Setting,
    Work,
    bare_forward,
    bare_train_step,
    batch_size_of,
    fresh_model,
    make_work,
    picking,
    plain_forward,
    plain_train_step,
    resident_pool,
)
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.shipped import code_commit
from pixelpick_ray.engine.batches import num_batches
from pixelpick_ray.engine.fit import Epoch, fit
from pixelpick_ray.engine.score import evaluate
from pixelpick_ray.events import EpochDone
from pixelpick_ray.planning import make_plan
from pixelpick_ray.runner.tensorboard import TensorBoard

FIRST, RESNET = Setting("camvid-mobilenet"), Setting("camvid-resnet50")
TF32, BF16, SPARSE = "train.precision=tf32", "train.precision=bf16", "train.decoder=sparse"
SETTINGS = {"cpu": [FIRST], "cuda": [FIRST, FIRST.but(TF32), FIRST.but(BF16), RESNET.but(BF16)]}
STEP_GOALS = {FIRST.but(BF16): 5.0, RESNET.but(BF16): 12.0}  # ms on one H200
FROZEN_IMAGES = {"cpu": 4, "cuda": 32}
POOLS = (4, 12)  # numbers of images; picking must need the same memory for both
TRAININGS = (1, 2, 4)  # concurrent on one GPU


@dataclass(frozen=True)
class Bench:
    """The conditions of all measurements; `images` is the number in the pool, the split and an epoch."""

    device: torch.device
    size: tuple[int, int] | None
    images: int
    rounds: int
    threads: int
    data_path: Path | None = None

    @property
    def kind(self) -> str:
        return self.device.type

    def work(self, setting: Setting) -> Work:
        return make_work(setting, self.size, self.images, self.device, self.data_path)

    def line(self, name: str, setting: str, **fields: Any) -> Line:
        """A result with its conditions; the goal is the measure's unless given in `fields`."""
        measure, cuda = MEASURES[name], self.kind == "cuda"
        device = torch.cuda.get_device_name(self.device) if cuda else "cpu"
        known: Line = {"name": name, "setting": setting, "device": device, "kind": self.kind, "unit": measure.unit}
        known |= {"goal": measure.goals.get(self.kind)} | fields
        software = {"torch": torch.__version__, "code": code_commit()}
        return known | {"threads": self.threads, "processor": _processor()} | software


def _processor() -> str:
    """CPU model if known, else machine type."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def training(bench: Bench, setting: Setting) -> Iterator[Line]:
    """Alternate whole epochs with the bare step, the plain network, the sparse decoder and the baseline."""
    work, label = bench.work(setting), setting.label()
    steps = num_batches(bench.images, work.job.train.batch_size)
    others = {"bare": (repeated(bare_train_step(work), steps), steps), "plain": (plain_train_step(work), 1)}
    with tempfile.TemporaryDirectory() as folder:
        if setting == FIRST:
            images = min(FROZEN_IMAGES[bench.kind], bench.images)
            others["baseline"] = Frozen(work, images, Path(folder)).train, images // work.job.train.batch_size
            few = {"cpu": 1, "cuda": steps}[bench.kind]
            others["sparse"] = repeated(bare_train_step(bench.work(setting.but(SPARSE))), few), few
        seconds = train_turns(work, others, bench.rounds)
    yield from comparisons(
        bench,
        label,
        seconds,
        ("train_step_over_bare", "whole", "bare"),
        ("bare_train_step_against_plain", "plain", "bare"),
        ("sparse_train_step_against_plain", "plain", "sparse"),
        ("sparse_train_step_against_dense", "bare", "sparse"),
        ("train_step_against_baseline", "baseline", "whole"),
    )
    step = summarise([1000 * value for value in seconds["whole"]])
    yield bench.line("train_step", label, **step, rounds=bench.rounds, goal=STEP_GOALS.get(setting))


def comparisons(
    bench: Bench, label: str, seconds: Mapping[str, list[float]], *wanted: tuple[str, str, str]
) -> Iterator[Line]:
    """Yield a line for each (name, numerator, denominator) of which both were timed."""
    for name, these, those in wanted:
        if these in seconds and those in seconds:
            ratio, medians = compare(seconds[these], seconds[those]), milliseconds(seconds)
            fields = {"rounds": bench.rounds, "milliseconds": {one: medians[one] for one in (these, those)}}
            yield bench.line(name, label, **ratio, images=bench.images, **fields)


def repeated(action: Action, times: int) -> Action:
    """An action that repeats `action` `times` times."""

    def run() -> None:
        for _ in range(times):
            action()

    return run


def train_turns(work: Work, others: dict[str, tuple[Action, int]], rounds: int) -> dict[str, list[float]]:
    """Seconds per step of whole epochs (``whole``) and of other (action, steps), which run after each epoch.

    An epoch ends when the device is done and the loss is in TensorBoard's file. The first round warms up.
    """
    train, device = work.job.train.model_copy(update={"epochs": rounds + 1}), work.device
    steps = num_batches(len(work.job.data.positions), train.batch_size)
    seconds: dict[str, list[float]] = {"whole": [], **{name: [] for name in others}}

    begin = 0.0
    with tempfile.TemporaryDirectory() as folder:
        log = epoch_logger(work, Path(folder))

        def on_epoch(epoch: Epoch) -> None:
            nonlocal begin
            log(epoch)
            synchronise(device)
            seconds["whole"].append((time.perf_counter() - begin) / steps)
            for name, (action, count) in others.items():
                seconds[name].append(seconds_of(action, device) / count)
            begin = time.perf_counter()

        begin = time.perf_counter()
        fit(replace(work.job, train=train), work.world, on_epoch)
    return {name: values[1:] for name, values in seconds.items()}


def epoch_logger(work: Work, folder: Path) -> Callable[[Epoch], None]:
    """A callback that does what a run does after an epoch: send an event and write it for TensorBoard."""
    plan = make_plan(work.experiment)
    board = TensorBoard(plan, Execution(folder, str(folder / "store"), folder / "cache", folder / "runs"))

    def log(epoch: Epoch) -> None:
        values = epoch.number, work.job.train.epochs, epoch.loss, None, 0.0, ""
        board(EpochDone(plan.chains[0].id, 0, *values))

    return log


def inference(bench: Bench, setting: Setting) -> Iterator[Line]:
    """Alternate picking and evaluation with the bare forward on the same images, the plain network and the baseline."""
    work, label = bench.work(setting), setting.label()
    model, prepared, facts = fresh_model(work), work.job.data.prepared, work.job.data.facts
    pick = picking(work, model)
    pool = resident_pool(work, batch_size_of(model, pick))
    actions = {"bare": bare_forward(work, model, pool), "picking": pick}
    actions |= {"evaluation": partial(evaluate, model, prepared, facts, work.world), "plain": plain_forward(work, pool)}
    images = dict.fromkeys(actions, len(prepared))
    with tempfile.TemporaryDirectory() as folder:
        if setting == FIRST:
            few = min(FROZEN_IMAGES[bench.kind], len(prepared))
            frozen = Frozen(work, few, Path(folder))
            actions |= {"baseline picking": frozen.query, "baseline evaluation": frozen.evaluate}
            images |= {"baseline picking": few, "baseline evaluation": few}
        turns = take_turns(actions, bench.rounds, bench.device)
    seconds = {name: [value / images[name] for value in values] for name, values in turns.items()}
    yield from comparisons(
        bench,
        label,
        seconds,
        ("picking_over_bare", "picking", "bare"),
        ("evaluation_over_bare", "evaluation", "bare"),
        ("bare_forward_against_plain", "plain", "bare"),
        ("picking_against_baseline", "baseline picking", "picking"),
        ("evaluation_against_baseline", "baseline evaluation", "evaluation"),
    )


def memory_of_processes(bench: Bench) -> Iterator[Line]:
    """Peak memory of fresh processes on the CPU."""
    arguments = FIRST, bench.size, bench.threads
    peak = in_fresh_process(memory.training_peak, *arguments) / 1e9
    yield bench.line("train_memory", FIRST.label(), value=short(peak))
    small, large = (in_fresh_process(memory.picking_peak, *arguments, images) for images in POOLS)
    fields = {"value": short(large / small), "megabytes": [round(small / 1e6), round(large / 1e6)]}
    yield bench.line("picking_memory_growth", FIRST.label(), **fields, images=POOLS[1])


def data_copies(bench: Bench) -> Iterator[Line]:
    """Number of copies of a prepared split in memory when two processes use it."""
    yield bench.line("data_copies", "a prepared split", value=short(sharing.mapped_copies(2)))


def chain_start(bench: Bench) -> Iterator[Line]:
    """Seconds until a chain's first step, in the real runner."""
    if importlib.util.find_spec("ray") is None:
        for name in ("start_fresh", "start_reused"):
            yield bench.line(name, "a short chain", skipped="Ray is not installed")
        return
    from benchmarks.start import import_seconds, measure

    imports = {module: short(import_seconds(module)) for module in ("torch", "pixelpick_ray.runner.tune")}
    for name, starts in in_fresh_process(measure, bench.kind).items():
        seconds = summarise([one.seconds for one in starts])
        before = short(median(one.before_trial for one in starts))
        fields = {"rounds": len(starts), "before_trial": before, "import_seconds": imports}
        yield bench.line(f"start_{name}", "a short chain", **seconds, **fields)


def throughput(bench: Bench, setting: Setting) -> Iterator[Line]:
    """Images per second of one, two and four concurrent trainings on one device."""
    rates = images_per_second(TRAININGS, setting, bench.size, bench.images, bench.device)
    for count, rate in rates.items():
        yield bench.line("concurrent_throughput", f"{setting.label()}, {count} at once", value=short(rate))


def measurements(bench: Bench) -> dict[str, Callable[[], Iterator[Line]]]:
    """All measurements for the bench's kind of device, by name."""
    found: dict[str, Callable[[], Iterator[Line]]] = {}
    if bench.kind == "cpu":
        found |= {"memory": partial(memory_of_processes, bench), "copies": partial(data_copies, bench)}
    for setting in SETTINGS[bench.kind]:
        found[f"training {setting.label()}"] = partial(training, bench, setting)
        if setting == FIRST or setting.experiment != FIRST.experiment:
            found[f"inference {setting.label()}"] = partial(inference, bench, setting)
    if bench.kind == "cuda":
        found["throughput"] = partial(throughput, bench, FIRST.but(BF16))
    return found | {"start": partial(chain_start, bench)}
