"""The worker side of `benchmarks.scale`: a chain that reports all its events at once. Does not import torch."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from pixelpick_ray.events import ChainDone, EpochDone, Event, FitTrained, PixelsPicked, StageDone, encode

GATE = "gate"
KEY = "0" * 64


@dataclass(frozen=True)
class Work:
    """The part of a job that workers need: id and number of stages of each chain, and a file to wait for."""

    chains: list[tuple[str, int]]
    gate: str


def instant_trial(config: dict[str, Any], job: Work) -> None:
    """Report the events of a chain with one-epoch fits, as fast as Tune accepts them."""
    chain, stages = job.chains[config["chain"]]
    for stage in range(stages):
        report(EpochDone(chain, stage, epoch=1, epochs=1, loss=1.0, miou=None, seconds=0.0, fit=KEY))
        while not Path(job.gate).exists():
            time.sleep(0.1)
        report(FitTrained(chain, stage, KEY))
        report(StageDone(chain, stage, True, 10 * (stage + 1), KEY, 0.5, ((1, 0.5),), (1.0,), 0.0))
        if stage + 1 < stages:
            report(PixelsPicked(chain, stage, True, KEY))
    report(ChainDone(chain))


def report(event: Event) -> None:
    """Report an event as the runner's trials do."""
    tune.report({"event": encode(event)})
