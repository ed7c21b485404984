"""A whole experiment against its bare stages: ``python -m benchmarks.whole_experiment EXPERIMENT --data DIR``.

The commands ``run`` and ``report`` run with an empty store and an empty cache. The bare work (train steps, images
scored and evaluated) is counted from the plan and timed beforehand, in as many concurrent processes as trials. For
experiments with one network at one size. The line is added to the results of ``make bench``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from threading import Barrier

import torch

from benchmarks import render
from benchmarks.bench import FOLDER
from benchmarks.measures import Bench
from benchmarks.processes import together
from benchmarks.timing import Action, seconds_of, short
from benchmarks.work import ROOT, Setting, bare_forward, bare_train_step, fresh_model, make_work, resident_pool
from pixelpick_ray.active.acquisition import needs_model
from pixelpick_ray.config.execution import local_cpus
from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.data.datasets import open_dataset, training_split
from pixelpick_ray.engine.batches import num_batches
from pixelpick_ray.engine.host import prepare_process
from pixelpick_ray.planning import Plan, make_plan

SAMPLES = 12  # of each bare action
IMAGES = 16  # in a bare forward


@dataclass(frozen=True)
class Amounts:
    """An experiment's network work: train steps on labelled pixels, train steps on label maps, images forward."""

    steps: int
    full_steps: int
    forwards: int

    def seconds(self, step: float, full_step: float, forward: float) -> float:
        """Total seconds in one process, given those of each action."""
        return self.steps * step + self.full_steps * full_step + self.forwards * forward


def amounts(plan: Plan, data_path: Path) -> Amounts:
    """Count the work of a plan's distinct fits and picks."""
    fits: dict[str, bool] = {}
    picks: set[str] = set()
    for chain in plan.chains:
        fits |= dict.fromkeys(chain.fits, chain.trial.budget == "full")
        if needs_model(chain.trial.acquire.strategy):
            picks |= set(chain.picks[1:])
    trial, evaluate = plan.trials[0], plan.experiment.evaluate
    dataset = open_dataset(trial.dataset, data_path)
    images = trial.dataset.images or len(dataset.names(training_split(dataset, trial.dataset)))
    evaluated = sum(len(dataset.names(evaluate.split_of(split))) for split in evaluate.splits)
    if trial.train is None:
        raise AssertionError("the benchmark's experiments train their networks")
    times = trial.train.epochs if evaluate.when == "every_epoch" else 1
    steps, full = num_batches(images, trial.train.batch_size) * trial.train.epochs, sum(fits.values())
    return Amounts(steps * (len(fits) - full), steps * full, len(fits) * times * evaluated + len(picks) * images)


def bare_seconds(rank: int, barrier: Barrier, setting: Setting, device: torch.device) -> tuple[float, float, float]:
    """Median seconds of a train step on labelled pixels, one on label maps, and a forward per image; one thread."""
    prepare_process(1)
    work = make_work(setting, None, IMAGES, device)
    model = fresh_model(work)
    full = replace(work, job=replace(work.job, labels=None))
    forward = bare_forward(work, model, resident_pool(work, IMAGES))
    actions: list[Action] = [bare_train_step(work), bare_train_step(full), forward]
    step, full_step, pool = (_median(action, device, barrier) for action in actions)
    return step, full_step, pool / IMAGES


def _median(action: Action, device: torch.device, barrier: Barrier) -> float:
    for _ in range(4):  # warms up; on a GPU the fourth call captures the step
        action()
    barrier.wait()
    return median(seconds_of(action, device) for _ in range(SAMPLES))


def wall_seconds(experiment: Path, folder: Path, how: Sequence[str], overrides: Sequence[str]) -> float:
    """Seconds of the commands that run and report an experiment in an empty folder."""
    launch, store = [sys.executable, str(ROOT / "launch.py")], ["--store", str(folder / "store")]
    places = [*store, "--cache", str(folder / "cache"), "--runs", str(folder / "runs")]
    start = time.perf_counter()
    for command in (
        ["run", str(experiment), *places, *how, *overrides],
        ["report", str(experiment), *store, "--out", str(folder / "report"), *overrides],
    ):
        subprocess.run([*launch, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Time the bare actions, run the experiment, print and store the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="data folder, as in run")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="as in run")
    parser.add_argument("--folder", type=Path, help="new folder in which to keep the store and the report")
    parser.add_argument("--trials", type=int, help="concurrent trials; default: 1 on a GPU, else the number of CPUs")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    device, trials = torch.device("cuda" if cuda else "cpu"), options.trials or (1 if cuda else local_cpus())
    experiment, data = options.experiment.resolve(), options.data.resolve()
    plan = make_plan(load_experiment(experiment, options.set))
    setting, counts = Setting(str(experiment.with_suffix("")), tuple(options.set)), amounts(plan, data)
    measured = together(bare_seconds, trials, setting, device)
    bare = counts.seconds(*(mean(values) for values in zip(*measured, strict=True))) / trials
    how = ["--data", str(data), "--max-concurrent", str(trials)]
    how += ["--gpus-per-rank", str(1 / trials)] if cuda else []
    overrides = [part for override in options.set for part in ("--set", override)]
    with tempfile.TemporaryDirectory() as nowhere:
        folder = (options.folder or Path(nowhere) / "whole").resolve()
        folder.mkdir(parents=True)
        wall = wall_seconds(experiment, folder, how, overrides)
    line = Bench(device, None, IMAGES, 1, 1).line(
        "whole_experiment_over_bare",
        ", ".join([plan.experiment.name, *options.set, f"{plan.num_fits} stages", f"{trials} trials at once"]),
        **{"value": short(wall / bare), "seconds": [round(wall), round(bare)]},
    )
    print(json.dumps(line), flush=True)
    render.update([line], FOLDER)


if __name__ == "__main__":
    main()
