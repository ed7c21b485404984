"""The one builder of experiment files of the tests: ``experiment_text("tiny", grid="[{budget: [2, 4]}]")``."""

from pathlib import Path
from typing import Any

import yaml

from pixelpick_ray.config.experiment import Experiment, parse_experiment

WRONG: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    Path(__file__).parents[1].joinpath("wrong_inputs.yaml").read_text(encoding="utf-8")
)
_FOLDER = Path(__file__).resolve().parents[2] / "experiments"
# Without what others extend, and what searches write.
SHIPPED_EXPERIMENTS = sorted(path for path in _FOLDER.rglob("*.yaml") if path.parent.name not in ("base", "found"))
BLOCKS = {
    "dataset": "{name: scenes, size: [32, 48], images: 4}",
    "model": "{backbone: test_resnet, pretrained: none}",
    "train": "{epochs: 1, batch_size: 4, optimizer: {name: adam, lr: 1e-3}}",
    "evaluate": "{splits: {test: {}}, report: test}",
    "grid": "[{seed: [0], budget: [10]}]",
}
TWO_PIXELS = "{initial_pixels: 2, pixels_per_stage: 2}"  # an `acquire` block


def experiment_text(name: str = "tiny", **blocks: str) -> str:
    """An experiment file of one short training, with these blocks (YAML) in place of or beside the ones above."""
    return "".join(f"{key}: {text}\n" for key, text in ({"name": name} | BLOCKS | blocks).items())


def experiment_of(text: str, *overrides: str, where: str = "tiny.yaml") -> Experiment:
    """The experiment of a text after overrides such as ``acquire.strategy=random``."""
    return parse_experiment(text, where=where, overrides=overrides)
