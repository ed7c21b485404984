"""Numbers of ``scenes.yaml``, kept in ``scenes.json``; ``python -m tests.golden.regenerate`` writes them anew."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixelpick_ray.config.experiment import load_experiment
from pixelpick_ray.config.keys import VERSIONS
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.engine.world import World
from pixelpick_ray.events import Event, StageDone
from pixelpick_ray.running import run_chain
from pixelpick_ray.store import experiment_folder
from tests.support.tiny_data import place_at

COMMAND = "PYTHONPATH=. python -m tests.golden.regenerate"
GOLDEN_PATH = Path(__file__).with_name("scenes.json")


def measure() -> dict[str, Any]:
    """Losses of both fits, the picked pixels and the first ones, on one thread of this machine."""
    experiment = load_experiment(GOLDEN_PATH.with_suffix(".yaml"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = place_at(folder / "store", folder, folder / "cache")
        run_chain(experiment, experiment.trials()[0], place, World(0, 1, torch.device("cpu")), events.append)
        (chain,) = place.results.records(f"{experiment_folder(experiment)}/chains")
        kept = place.results.read_record(f"{experiment_folder(experiment)}/chains/{chain}.json")
        keys = {"initial": kept["initial"], "picked": kept["stages"][0]["pick"]}
        pixels = {
            kind: _flat(LabelledPixels.read(place.results.folder("pick", key) / "pixels.npz"))
            for kind, key in keys.items()
        }
        with np.load(
            place.results.folder("evaluation", kept["stages"][1]["evaluations"]["val"]) / "confusion.npz"
        ) as file:
            evaluated = int(file["confusion"].sum())
    torch.set_num_threads(threads)
    losses = [list(event.losses) for event in events if isinstance(event, StageDone)]
    return {"versions": dict(VERSIONS), "losses": losses, "pixels_evaluated": evaluated, **pixels}


def _flat(pixels: LabelledPixels) -> dict[str, list[list[int]]]:
    """(y, x, label) by image."""
    found: dict[str, list[list[int]]] = {}
    for name, *columns in zip(pixels.names_per_pixel(), pixels.y, pixels.x, pixels.label, strict=True):
        found.setdefault(str(name), []).append([int(value) for value in columns])
    return found


if __name__ == "__main__":
    golden = measure()
    text = json.dumps(golden).replace('"losses"', '\n"losses"').replace("]], ", "]],\n")
    GOLDEN_PATH.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {GOLDEN_PATH}: losses {golden['losses']}")
