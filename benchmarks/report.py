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
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pixelpick_ray.config.canonical import digest  # noqa: E402
from pixelpick_ray.config.experiment import Experiment, load_experiment  # noqa: E402
from pixelpick_ray.config.keys import Source, evaluation_input, fit_input, initial_input, pick_input  # noqa: E402
from pixelpick_ray.data.labels import LabelledPixels  # noqa: E402
from pixelpick_ray.planning import Chain, make_plan  # noqa: E402
from pixelpick_ray.store import Store, experiment_folder  # noqa: E402

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


def experiment_of(stages: int) -> Experiment:
    """The published CamVid experiment with ten acquisition settings, and seeds for about `stages` stages."""
    published = load_experiment(ROOT / "experiments" / "camvid-mobilenet.yaml")
    common = {"seed": list(range(max(1, stages // 100))), "budget": list(published.grid[0]["budget"])}
    scored = {"acquire.strategy": ["margin", "entropy", "least_confidence"], "acquire.pool_fraction": [0.01, 0.05, 0.1]}
    grids = [scored | common, {"acquire.strategy": ["random"]} | common]
    overrides = ["name=benchmark", f"grid={json.dumps(grids)}"]
    return load_experiment(ROOT / "experiments" / "camvid-mobilenet.yaml", overrides)


def fill(store: Store, experiment: Experiment) -> int:
    """Store every stage of the experiment; return their number."""
    rng = np.random.default_rng(0)
    stages = 0
    for chain in make_plan(experiment).chains:
        stages += len(chain.fits)
        _fill_chain(store, experiment, chain, rng)
    return stages


def _fill_chain(store: Store, experiment: Experiment, chain: Chain, rng: np.random.Generator) -> None:
    trial = chain.trial
    first = initial_input(trial, SOURCE)
    record: dict[str, Any] = {
        "trial": trial.model_dump(mode="json", exclude={"budget"}, exclude_none=True),
        **{"full": False, "class_names": CLASSES, "num_images": IMAGES, "pixels_per_image": float(HEIGHT * WIDTH)},
        **{"initial": _pick(store, first, 0, rng), "stages": []},
    }
    for stage in range(trial.num_stages):
        fit = fit_input(trial, SOURCE, stage=stage, labels_digest=f"{rng.integers(1 << 62):x}")
        store.publish(
            "fit", fit, lambda folder: _text(folder / "training.json", {"losses": [1.0] * EPOCHS}), PROVENANCE
        )
        keys = {}
        for split in experiment.evaluate.splits:
            inputs = evaluation_input(experiment.evaluate, trial, SOURCE, split=split, fit_key=digest(fit))
            store.publish("evaluation", inputs, lambda folder: _evaluation(folder, rng), PROVENANCE)
            keys[split] = digest(inputs)
        last = stage + 1 == trial.num_stages
        pick = None if last else _pick(store, pick_input(trial, fit_key=digest(fit), stage=stage), stage + 1, rng)
        record["stages"].append({"budget": 10 + 10 * stage, "fit": digest(fit), "evaluations": keys, "pick": pick})
    store.write_record(f"{experiment_folder(experiment)}/chains/{chain.id}.json", record)


def _training(folder: Path) -> None:
    _text(folder / "training.json", {"losses": [1.0] * EPOCHS})


def _evaluation(folder: Path, rng: np.random.Generator) -> None:
    confusion = rng.integers(0, 10**6, (EPOCHS, len(CLASSES), len(CLASSES)))
    confusion += np.eye(len(CLASSES), dtype=np.int64) * 5 * 10**6
    np.savez(folder / "confusion.npz", epochs=np.arange(1, EPOCHS + 1), confusion=confusion)
    (folder / "predictions").mkdir()
    for number in range(4):
        (folder / "predictions" / f"{number}.png").write_bytes(rng.bytes(4000))


def _pick(store: Store, inputs: dict[str, Any], stage: int, rng: np.random.Generator) -> str:
    pixels = LabelledPixels.of(
        names=np.repeat([f"0001TP_{number:06d}.png" for number in range(IMAGES)], 10),
        y=np.concatenate([rng.permutation(HEIGHT)[:10] for _ in range(IMAGES)]),
        x=rng.integers(0, WIDTH, IMAGES * 10),
        label=rng.integers(0, len(CLASSES), IMAGES * 10),
        stage=stage,
    )
    statistics = {
        **{"pixels": len(pixels), "images": IMAGES, "entropy": 1.0, "distinct_classes": 3.0, "spread": 100.0},
        **{"class_counts": np.bincount(pixels.label, minlength=len(CLASSES)).tolist(), "border_distance": 5.0},
    }

    def write(folder: Path) -> None:
        pixels.write(folder / "pixels.npz")
        _text(folder / "statistics.json", statistics)

    store.publish("pick", inputs, write, PROVENANCE)
    return digest(inputs)


def _text(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def main() -> None:
    """Fill the store, time reports in separate processes, print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=10_000, help="number of stages to store")
    parser.add_argument("--repeat", type=int, default=3, help="number of reports to time")
    parser.add_argument("--keep", type=Path, help="keep the store in this folder, or reuse it")
    arguments = parser.parse_args()
    os.fsync = lambda descriptor: None  # the store need not be durable
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.keep or Path(name)
        experiment = experiment_of(arguments.stages)
        file = folder / "benchmark.yaml"
        if not file.exists():
            fill(Store(folder / "store"), experiment)
            file.write_text(json.dumps(experiment.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
        command = [sys.executable, str(ROOT / "launch.py"), "report", str(file), "--store", str(folder / "store")]
        seconds = []
        for _ in range(arguments.repeat):
            start = time.perf_counter()
            subprocess.run([*command, "--out", str(Path(name) / "out")], check=True, stdout=subprocess.DEVNULL)
            seconds.append(round(time.perf_counter() - start, 2))
    stages = make_plan(experiment).num_fits
    value = {"name": "report_seconds", "stages": stages, "value": float(np.median(seconds)), "all": seconds}
    print(json.dumps(value | {"goal": GOAL_SECONDS}))


if __name__ == "__main__":
    main()
