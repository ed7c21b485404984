"""The measures, with their units and goals."""

from dataclasses import dataclass, field
from typing import Any

Line = dict[str, Any]
KINDS = ("cpu", "cuda")


@dataclass(frozen=True)
class Measure:
    """A measure: its description, unit, goals by kind of device, and the kinds of device it applies to."""

    about: str
    unit: str
    goals: dict[str, float] = field(default_factory=dict)
    kinds: tuple[str, ...] = KINDS


RATIO, FASTER = "ratio", "times faster"  # goals are upper bounds, except for FASTER

MEASURES = {
    "train_step_over_bare": Measure("train step, all included / bare", RATIO, {"cpu": 1.05, "cuda": 1.10}),
    "picking_over_bare": Measure("scoring and picking a pool / bare forward", RATIO, {"cpu": 1.10, "cuda": 1.10}),
    "evaluation_over_bare": Measure("evaluating a split / bare forward", RATIO, {"cpu": 1.10, "cuda": 1.10}),
    "bare_train_step_against_plain": Measure("bare train step against the plain network", FASTER, {"cpu": 1.3}),
    "bare_forward_against_plain": Measure("bare forward against the plain network", FASTER),
    "sparse_train_step_against_plain": Measure(
        "bare train step with the sparse decoder against the plain network", FASTER, {"cpu": 2.0}
    ),
    "sparse_train_step_against_dense": Measure("sparse bare train step against the dense", FASTER),
    "train_step_against_baseline": Measure("train step, all included, against the baseline", FASTER),
    "picking_against_baseline": Measure("picking against the baseline", FASTER),
    "evaluation_against_baseline": Measure("evaluation against the baseline", FASTER),
    "train_step": Measure("train step, all included", "ms"),
    "concurrent_throughput": Measure("images trained by all processes on one GPU", "images/s", kinds=("cuda",)),
    "whole_experiment_over_bare": Measure("whole experiment / bare stages", RATIO, {"cpu": 1.15, "cuda": 1.15}),
    "train_memory": Measure("peak of a process that trains", "GB", {"cpu": 2.5}, kinds=("cpu",)),
    "picking_memory_growth": Measure("peak of picking, pool three times as large", RATIO, {"cpu": 1.05}, ("cpu",)),
    "data_copies": Measure("copies of a data set in memory, two processes", RATIO, {"cpu": 1.05}, kinds=("cpu",)),
    "start_fresh": Measure("first step after Tune was given the chain, new actor", "s", {"cpu": 2.0, "cuda": 2.0}),
    "start_reused": Measure("first step after the chain before ended, reused actor", "s", {"cpu": 0.2, "cuda": 0.2}),
    "runner_chain": Measure("instant chains: time a chain, and of that the driver at work", "ms", kinds=("cpu",)),
    "runner_stage": Measure(
        "instant chains: time a stage (three events), and of that the driver at work", "ms", kinds=("cpu",)
    ),
    "runner_memory": Measure("growth of the driver by 1,000 chains", "MB", kinds=("cpu",)),
    "runner_filling": Measure("from the first chain at work until every node has one", "s", kinds=("cpu",)),
    "fake_node": Measure("memory of a fake node without work", "MB", kinds=("cpu",)),
}
