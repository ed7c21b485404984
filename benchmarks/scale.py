"""The runner's overhead for many chains: its real loop on many fake nodes of this machine, with instant fits.

``python -m benchmarks.scale`` runs 2,000 chains of one stage and of three on 64 nodes and writes ``RESULTS.md``.
"""

import argparse
import contextlib
import cProfile
import json
import os
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import render
from benchmarks.goals import Line
from benchmarks.instant import GATE, Work, instant_trial
from benchmarks.measures import Bench
from benchmarks.timing import short
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import parse_experiment
from pixelpick_ray.events import ChainDone, EpochDone, Event
from pixelpick_ray.planning import Plan, make_plan
from pixelpick_ray.runner import tune as runner
from pixelpick_ray.runner.people import People
from pixelpick_ray.runner.progress import ChainProgress
from pixelpick_ray.runner.tensorboard import TensorBoard

FOLDER = Path(__file__).resolve().parent
SETTINGS = {"RAY_AUTH_MODE": "disabled", "REPORTER_UPDATE_INTERVAL_MS": "3600000"}  # else agents saturate two cores
STAGES = (1, 3)
STRATEGIES = ("margin", "random")  # chains of one seed share its first fit
EXPERIMENT = """
name: scale
dataset: {name: scenes, size: [32, 48]}
model: {backbone: mobilenetv2_035, pretrained: none}
train: {epochs: 1, batch_size: 4, optimizer: {name: adam, lr: 1e-3}}
evaluate: {splits: {val: {}}, report: val}
"""


class Job(runner.Job):
    """A job pickled as `Work`, without what these workers do not need, so that they do not import torch."""

    def __reduce__(self) -> tuple[Any, ...]:
        gate = str(self.execution.runs_path / GATE)
        return Work, ([(chain.id, len(chain.fits)) for chain in self.chains], gate)


@dataclass
class Watch:
    """Records when chains start and finish, and the driver's CPU time and memory when they finish.

    Once `fill` chains have started, it opens the gate that they wait for.
    """

    gate: Path
    fill: int
    began: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochDone) and event.stage == 0:
            self.began.append(time.monotonic())
            if len(self.began) == self.fill:
                self.gate.touch()
        if isinstance(event, ChainDone):
            self.done.append(time.monotonic())
            self.processor.append(time.process_time())
            self.megabytes.append(resident_megabytes())

    @property
    def mean_running(self) -> float:
        """Mean number of chains running concurrently after the gate opened."""
        opened, last = self.began[self.fill - 1], self.done[-1]
        spans = zip(sorted(self.began), sorted(self.done), strict=True)  # the pairing does not affect the sum
        return sum(end - max(begin, opened) for begin, end in spans) / (last - opened)

    @staticmethod
    def per_chain(values: list[float]) -> float:
        """Growth of a value per chain, ignoring the first fifth of the chains, while workers start."""
        few = len(values) // 5
        return (values[-1] - values[few]) / (len(values) - 1 - few)


def plan_of(chains: int, stages: int) -> Plan:
    """A plan of `chains` chains with `stages` stages each."""
    seeds, budgets = list(range(chains // len(STRATEGIES))), [10 * (stage + 1) for stage in range(stages)]
    grid = [{"acquire.strategy": list(STRATEGIES), "seed": seeds, "budget": budgets}]
    return make_plan(parse_experiment(f"{EXPERIMENT}grid: {json.dumps(grid)}\n", where="scale"))


def run(plan: Plan, address: str, folder: Path, fill: int) -> Watch:
    """Run a plan in the real runner with progress and TensorBoard files; chains wait until `fill` have started."""
    places = folder, str(folder / "store"), folder / "cache", folder / "runs"
    execution = Execution(*places, device="cpu", address=address)
    watch, chains = Watch(execution.runs_path / GATE, fill), list(plan.chains)
    execution.runs_path.mkdir()
    board = TensorBoard(plan, execution)
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        ChainProgress(plan, chains, Console(file=nowhere), [board, watch]) as progress,
    ):
        nobody = People(plan, execution, "", print, lambda: False)
        errors = runner.run(plan, chains, execution, progress, lambda: False, nobody)
    if errors or len(watch.done) != len(chains):
        raise RuntimeError(f"{len(watch.done)} of {len(chains)} chains are done, these failed: {errors}")
    return watch


@contextlib.contextmanager
def fake_nodes(count: int) -> Iterator[tuple[str, float, float]]:
    """A cluster of `count` one-CPU nodes and a head without CPUs: address, and seconds and megabytes per node."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="pixelpick-", ignore_cleanup_errors=True) as folder:
        os.environ |= SETTINGS | {"RAY_TMPDIR": folder}  # the path must be short
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            began = time.monotonic()
            nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(count)]
            seconds = (time.monotonic() - began) / count
            raylets = {node.all_processes["raylet"][0].process.pid for node in nodes}
            yield str(cluster.address), seconds, family_megabytes(raylets) / count
        finally:
            cluster.shutdown()


def resident_megabytes() -> float:
    """Resident memory of this process in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) / 1000


def family_megabytes(parents: set[int]) -> float:
    """Memory of processes and their children in MB, with shared memory counted once."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has just ended
            parent = int((folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            if {int(folder.name), parent} & parents:
                lines = (folder / "smaps_rollup").read_text(encoding="utf-8").splitlines()
                total += int(next(line.split()[1] for line in lines if line.startswith("Pss:")))
    return total / 1000


def measure(chains: int, nodes: int, address: str, profile: Callable[[], Any]) -> dict[int, Watch]:
    """Run chains for each number of stages; they are instant once every node has started one."""
    runner.Job, runner._trial = Job, instant_trial  # type: ignore[misc, assignment]
    watches = {}
    for stages in STAGES:
        with tempfile.TemporaryDirectory() as folder, profile():
            watches[stages] = run(plan_of(chains, stages), address, Path(folder), fill=min(nodes, chains))
    return watches


def lines_of(watches: dict[int, Watch], chains: int, nodes: int, node: tuple[float, float]) -> Iterator[Line]:
    """Yield result lines; the cost of a stage follows from the runs with fewer and with more stages."""
    bench, of = Bench(torch.device("cpu"), None, 0, 1, 1), f"{chains:,} chains, {nodes} nodes"
    few, more = STAGES
    seconds = {stages: watch.per_chain(watch.done) for stages, watch in watches.items()}
    busy = {stages: watch.per_chain(watch.processor) for stages, watch in watches.items()}
    stage, busy_stage = ((of_run[more] - of_run[few]) / (more - few) for of_run in (seconds, busy))
    chain, busy_chain = seconds[few] - few * stage, busy[few] - few * busy_stage
    known = {"running": [short(watch.mean_running) for watch in watches.values()]}
    for name, value, busily in (("runner_chain", chain, busy_chain), ("runner_stage", stage, busy_stage)):
        yield bench.line(name, of, value=short(1000 * value), milliseconds={"busy": short(1000 * busily)}, **known)
    grown = watches[more]
    reached = [short(grown.megabytes[0]), short(grown.megabytes[-1])]
    yield bench.line("runner_memory", of, value=short(1000 * grown.per_chain(grown.megabytes)), megabytes=reached)
    yield bench.line("runner_filling", f"{nodes} nodes", value=short(grown.began[grown.fill - 1] - grown.began[0]))
    yield bench.line("fake_node", f"{nodes} nodes", value=short(node[1]), seconds=short(node[0]))


@contextlib.contextmanager
def profiled() -> Iterator[None]:
    """Profile the driver and print the result."""
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        pstats.Stats(profile).sort_stats("cumulative").print_stats(60)


def main() -> None:
    """Start the nodes, run the chains, print and store the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=2000)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--profile", action="store_true", help="print a profile of the driver; store nothing")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for results/ and RESULTS.md")
    options = parser.parse_args()
    with fake_nodes(options.nodes) as (address, *node):
        profile = profiled if options.profile else contextlib.nullcontext
        watches = measure(options.chains, options.nodes, address, profile)
    for line in lines_of(watches, options.chains, options.nodes, (node[0], node[1])):
        print(json.dumps(line), flush=True)
        if not options.profile:
            render.update([line], options.out)


if __name__ == "__main__":
    main()
