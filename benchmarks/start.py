"""Time until a chain's first step in the real runner: Ray, Tune, one actor, four short chains."""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pixelpick_ray.checks import check_data
from pixelpick_ray.config.execution import Execution, local_cpus
from pixelpick_ray.config.experiment import parse_experiment
from pixelpick_ray.events import ChainDone, Event
from pixelpick_ray.planning import make_plan
from pixelpick_ray.runner import tune as runner
from pixelpick_ray.runner.people import People

EXPERIMENT = """
name: start
dataset: {name: scenes, size: [48, 64], images: 8}
model: {backbone: mobilenetv2_050, pretrained: none}
train: {epochs: 1, batch_size: 4, optimizer: {name: adam, lr: 1e-3}}
acquire: {strategy: random}
evaluate: {splits: {val: {}}, report: val}
grid: [{seed: [0, 1, 2, 3], budget: [10]}]
"""
FIRST_STEPS = "first_steps.jsonl"
_run_trial = runner._trial


def timed_trial(config: dict[str, Any], job: Any) -> None:
    """Run the runner's trial in its worker, recording the first call of a network, after data and augmentation."""
    import torch

    began = time.time()

    def note(*_: Any) -> None:
        handle.remove()
        with open(job.execution.runs_path / FIRST_STEPS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"chain": config["chain"], "began": began, "step": time.time()}) + "\n")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    _run_trial(config, job)


@dataclass(frozen=True)
class Start:
    """Seconds until a chain's first step, and the part of them before its trial function ran."""

    seconds: float
    before_trial: float


def measure(device: Literal["cpu", "cuda"]) -> dict[str, list[Start]]:
    """Measure the ``fresh`` start since Tune got the chain, and ``reused`` ones since the previous chain ended."""
    plan = make_plan(parse_experiment(EXPERIMENT, where="start"))
    handed: dict[int, float] = {}
    ended: list[float] = []

    class Order(runner.ChainOrder):
        def suggest(self, trial_id: str) -> Any:
            chosen = super().suggest(trial_id)
            if isinstance(chosen, dict):
                handed.setdefault(chosen["chain"], time.time())
            return chosen

    def on_event(event: Event) -> None:
        if isinstance(event, ChainDone):
            ended.append(time.time())

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = folder, str(folder / "store"), folder / "cache", folder / "runs"
        execution = Execution(*places, cpus_per_rank=local_cpus(), device=device)
        execution.runs_path.mkdir()
        check_data(plan.experiment, plan.trials, execution)
        runner.ChainOrder, runner._trial = Order, timed_trial  # type: ignore[misc]
        nobody = People(plan, execution, "", print, lambda: False)
        errors = runner.run(plan, list(plan.chains), execution, on_event, lambda: False, nobody)
        if errors:
            raise RuntimeError(f"the chains failed: {errors}")
        lines = (execution.runs_path / FIRST_STEPS).read_text(encoding="utf-8").splitlines()
    steps = sorted((json.loads(line) for line in lines), key=lambda entry: float(entry["step"]))
    since = [handed[steps[0]["chain"]], *sorted(ended)]
    starts = [Start(one["step"] - at, one["began"] - at) for one, at in zip(steps, since, strict=False)]
    return {"fresh": starts[:1], "reused": starts[1:]}


def import_seconds(module: str) -> float:
    """Seconds to import a module in a fresh process."""
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return float(subprocess.check_output([sys.executable, "-c", code], text=True))
