"""Time the default report on many stored CamVid-sized stages: ``python benchmarks/report.py --stages 10000``.

The store is filled with random results that have the keys, files and sizes of real ones: the published CamVid
experiment (ten stages per chain, five budgets reported, each of 50 epochs evaluated on two splits) with ten acquisition
settings and as many seeds as needed. The result is printed as JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pixelpick_ray.config.experiment import Experiment, load_experiment  # noqa: E402
from pixelpick_ray.config.keys import Source  # noqa: E402
from pixelpick_ray.data.labels import LabelledPixels  # noqa: E402
from pixelpick_ray.loop import walk  # noqa: E402
from pixelpick_ray.planning import make_plan  # noqa: E402
from pixelpick_ray.store import Store  # noqa: E402
from pixelpick_ray.store.records import ChainRecord, StageRecord, write_chain  # noqa: E402
from pixelpick_ray.tasks import PIXELS, Evaluate, FirstPixels, Fit, Pick  # noqa: E402

PUBLISHED = ROOT / "experiments" / "camvid-mobilenet.yaml"
GOAL_SECONDS = 20.0
IMAGES, HEIGHT, WIDTH, EPOCHS = 367, 360, 480, 50
CLASSES = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)
SOURCE = Source({"train": "1" * 64, "val": "2" * 64, "test": "3" * 64}, "train", "4" * 64)
PROVENANCE = {
    **{"code": "5" * 40, "version": "0.1.0", "torch": "2.11.0", "numpy": "2.4.6", "python": "3.11.7", "device": "cpu"},
    **{"host": "here", "world_size": 1, "threads": 1, "seconds": 123.4, "finished": "2026-01-01T00:00:00Z"},
}


def overrides_of(stages: int) -> list[str]:
    """Changes to the published experiment: ten acquisition settings, and seeds for about `stages` stages."""
    published = load_experiment(PUBLISHED)
    common = {"seed": list(range(max(1, stages // 100))), "budget": list(published.grid[0]["budget"])}
    scored = {"acquire.strategy": ["margin", "entropy", "least_confidence"], "acquire.pool_fraction": [0.01, 0.05, 0.1]}
    grids = [scored | common, {"acquire.strategy": ["random"]} | common]
    return ["name=benchmark", f"grid={json.dumps(grids)}"]


def fill(store: Store, experiment: Experiment) -> None:
    """Store every stage of the experiment."""
    rng = np.random.default_rng(0)
    for chain in make_plan(experiment).chains:
        made = _Fill(store, rng)
        walk(chain.trial, SOURCE, experiment.evaluate, made)
        record = ChainRecord(
            trial=chain.trial.model_dump(mode="json", exclude={"budget"}, exclude_none=True),
            full=False,
            class_names=CLASSES,
            num_images=IMAGES,
            pixels_per_image=float(HEIGHT * WIDTH),
            source=SOURCE,
            initial=made.picks[0],
            stages=tuple(
                StageRecord(
                    budget=fit.budget,
                    fit=fit.key,
                    evaluations={one.split: one.key for one in fit.evaluations},
                    pick=pick,
                )
                for fit, pick in zip_longest(made.fits, made.picks[1:])
            ),
        )
        write_chain(store, experiment, chain.id, record)


class _Fill:
    """The visitor of a walk that stores random results of real size."""

    def __init__(self, store: Store, rng: np.random.Generator) -> None:
        self._store, self._rng = store, rng
        self.fits: list[Fit] = []
        self.picks: list[str] = []

    def pixels(self, task: FirstPixels | Pick) -> LabelledPixels:
        """Store ten random pixels per image."""
        rng = self._rng
        pixels = LabelledPixels.of(
            names=np.repeat([f"0001TP_{number:06d}.png" for number in range(IMAGES)], 10),
            y=np.concatenate([10 * rng.permutation(HEIGHT // 10)[:10] + task.stage for _ in range(IMAGES)]),
            x=rng.integers(0, WIDTH, IMAGES * 10),
            label=rng.integers(0, len(CLASSES), IMAGES * 10),
            stage=task.stage,
        )
        statistics = {
            **{"pixels": len(pixels), "images": IMAGES, "entropy": 1.0, "distinct_classes": 3.0, "spread": 100.0},
            **{"class_counts": np.bincount(pixels.label, minlength=len(CLASSES)).tolist(), "border_distance": 5.0},
        }

        def write(folder: Path) -> None:
            pixels.write(folder / PIXELS)
            _text(folder / "statistics.json", statistics)

        self._store.publish(task.kind, task.inputs, write, PROVENANCE)
        self.picks.append(task.key)
        return pixels

    def make(self, task: Fit | Evaluate) -> None:
        """Store the losses of a fit, or a confusion matrix for each of its epochs."""
        if isinstance(task, Fit):
            self.fits.append(task)
            losses = {"losses": [1.0] * EPOCHS}
            self._store.publish(
                task.kind, task.inputs, lambda folder: _text(folder / "training.json", losses), PROVENANCE
            )
        else:
            self._store.publish(task.kind, task.inputs, self._evaluation, PROVENANCE)

    def _evaluation(self, folder: Path) -> None:
        confusion = self._rng.integers(0, 10**6, (EPOCHS, len(CLASSES), len(CLASSES)))
        confusion += np.eye(len(CLASSES), dtype=np.int64) * 5 * 10**6
        np.savez(folder / "confusion.npz", epochs=np.arange(1, EPOCHS + 1), confusion=confusion)
        (folder / "predictions").mkdir()
        for number in range(4):
            (folder / "predictions" / f"{number}.png").write_bytes(self._rng.bytes(4000))

    def stage_done(self, fit: Fit) -> None:
        """Nothing to store."""

    def release(self, fit: Fit) -> None:
        """Nothing to release."""


def _text(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def main() -> None:
    """Fill the store, time reports in separate processes, print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=10_000, help="number of stages to store")
    parser.add_argument("--repeat", type=int, default=3, help="number of reports to time")
    parser.add_argument("--keep", type=Path, help="keep the store in this folder, or reuse it")
    arguments = parser.parse_args()
    os.fsync = lambda fd: None  # the store need not be durable
    with tempfile.TemporaryDirectory() as name:
        store = (arguments.keep or Path(name)) / "store"
        overrides = overrides_of(arguments.stages)
        experiment = load_experiment(PUBLISHED, overrides)
        if not store.exists():
            fill(Store(store), experiment)
        changes = [word for override in overrides for word in ("--set", override)]
        out = Path(name) / "out"
        command = [sys.executable, str(ROOT / "launch.py"), "report", str(PUBLISHED), *changes, "--store", str(store)]
        seconds = []
        for _ in range(arguments.repeat):
            start = time.perf_counter()
            subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
            seconds.append(round(time.perf_counter() - start, 2))
        if "missing" in (out / "table.md").read_text(encoding="utf-8"):
            raise RuntimeError(f"{store} lacks results of this experiment; use another folder with --keep")
    stages = make_plan(experiment).num_fits
    value = {"name": "report_seconds", "stages": stages, "value": float(np.median(seconds)), "all": seconds}
    print(json.dumps(value | {"goal": GOAL_SECONDS}))


if __name__ == "__main__":
    main()
