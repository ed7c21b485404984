"""The benchmark of many chains: what it counts, what its workers are given, and a small run of it."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.goals import MEASURES
from benchmarks.instant import Work
from benchmarks.scale import Job, Watch, lines_of, plan_of
from pixelpick_ray.config.execution import Execution
from tests.support.chain_events import epoch_done

ROOT = Path(__file__).resolve().parents[1]


def test_a_job_reaches_the_workers_as_the_identities_and_lengths_of_its_chains(tmp_path: Path) -> None:
    plan = plan_of(chains=6, stages=3)
    job = Job(plan, list(plan.chains), Execution(tmp_path, "store", tmp_path, runs_path=tmp_path))
    assert len(plan.chains) == 6
    assert plan.num_fits == 15  # the first one is shared by the two strategies of a seed
    given = pickle.loads(pickle.dumps(job))
    assert given == Work([(chain.id, 3) for chain in plan.chains], str(tmp_path / "gate"))
    program = "import sys, benchmarks.instant; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_a_watch_opens_the_gate_when_so_many_chains_have_begun(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "gate", fill=2)
    watch(epoch_done("a", 0, 1))
    watch(epoch_done("a", 1, 1))
    assert not watch.gate.exists()
    watch(epoch_done("b", 0, 1))
    assert watch.gate.exists()


def test_a_chains_time_is_what_is_left_of_it_without_its_stages(tmp_path: Path) -> None:
    def watched(seconds_a_chain: float) -> Watch:
        watch = Watch(tmp_path, fill=2)
        watch.done = [50.0 * (at < 2) + at * seconds_a_chain for at in range(10)]  # starting workers does not count
        watch.processor = [at * seconds_a_chain / 2 for at in range(10)]
        watch.megabytes = [100.0 + 2 * at for at in range(10)]
        watch.began = [0.0, 7.0, *([50.0] * 8)]
        return watch

    few, more = watched(0.5), watched(0.9)
    lines = {line["name"]: line for line in lines_of({1: few, 3: more}, 10, 4, (2.0, 200.0))}
    assert lines["runner_stage"]["milliseconds"] == {"busy": pytest.approx(100)}
    assert {name: line["value"] for name, line in lines.items()} == pytest.approx(
        {"runner_chain": 300, "runner_stage": 200, "runner_memory": 2000, "runner_filling": 7, "fake_node": 200}
    )
    assert lines.keys() <= MEASURES.keys()


@pytest.mark.slow
def test_a_small_run_gives_every_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.scale", "--nodes", "2", "--chains", "20", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "results" / "cpu.jsonl").read_text(encoding="utf-8").splitlines()
    names = ["runner_chain", "runner_stage", "runner_memory", "runner_filling", "fake_node"]
    assert [json.loads(line)["name"] for line in lines] == names
