"""Runs that are asked to stop, and chains whose processes are lost: on real Ray, with real signals."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.experiments import experiment_text
from tests.support.launch import ROOT
from tests.support.ray_cluster import RAY_SETTINGS
from tests.support.waiting import wait_for

pytestmark = pytest.mark.ray

LONG = experiment_text(
    "long",
    dataset="{name: scenes, size: [32, 48], images: 7}",
    model="{backbone: mobilenetv2_035, pretrained: none}",
    train="{epochs: 100000, batch_size: 4, optimizer: {name: adam, lr: 1e-3}}",
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "long.yaml").write_text(LONG)
    return tmp_path


def start(place: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "launch.py"), "run", "long.yaml", "--checkpoint-minutes", "0", *options]
    environment = os.environ | RAY_SETTINGS | {"PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(place / "cache")}
    output = subprocess.PIPE
    return subprocess.Popen(command, cwd=place, env=environment, text=True, stdout=output, stderr=subprocess.STDOUT)


def saving(place: Path, ranks: int) -> dict[int, int]:
    """Processes that have begun a fit, by their rank, once there are so many and something is saved."""
    logs = (place / "runs" / "long" / "steps").glob("*.jsonl")
    begun = [(path, text) for path in logs if '"phase": "fit"' in (text := path.read_text())]
    found = {int(re.findall(r'"rank": (\d)', text)[-1]): int(path.stem.rpartition("-")[2]) for path, text in begun}
    return found if len(found) == ranks and list((place / "store" / "unfinished").glob("[!.]*")) else {}


def resumes_and_stops(process: "subprocess.Popen[str]") -> None:
    """A run tells that its fit resumes, and a signal ends it with status 3."""
    line = next((text for text in iter(process.stdout.readline, "") if "resumes after" in text), "")
    assert re.search(r"stage 0 resumes after epoch \d+/100000", line)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 3


def test_a_run_asked_to_stop_ends_with_status_3_leaves_no_process_and_is_resumed(place: Path, ray_cluster: str) -> None:
    process = start(place, "--address", ray_cluster)
    (pid,) = wait_for(lambda: saving(place, ranks=1)).values()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3, output
    assert "stopped; run the same command again to continue" in output
    wait_for(lambda: not psutil.pid_exists(pid), seconds=20)
    resumes_and_stops(start(place, "--local"))


@pytest.mark.slow
def test_a_rank_that_hangs_ends_its_group_and_the_chain_goes_on_from_its_last_save(place: Path) -> None:
    process = start(place, "--ranks", "2", "--rank-timeout", "20s")
    ranks = wait_for(lambda: saving(place, ranks=2))
    os.kill(ranks[1], signal.SIGSTOP)
    stopped = time.monotonic()
    wait_for(lambda: not any(map(psutil.pid_exists, ranks.values())), seconds=90)
    assert time.monotonic() - stopped > 15
    resumes_and_stops(process)
    attempts = [path.read_text() for path in (place / "store" / "attempts").glob("*/*.txt")]
    assert any(text.startswith("rank 0\nTraceback") and "all_reduce" in text for text in attempts)
    assert any("rank 1, while rank 0 failed\ndoes not respond" in text for text in attempts)


@pytest.mark.slow
def test_a_chain_that_rays_memory_monitor_ends_is_told_so(place: Path) -> None:
    limits = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limits.items():
            patch.setenv(name, value)
        told, _ = start(place).communicate(timeout=240)
    assert re.search(
        r"MISSING .*: Ray's memory monitor ended its process, .* GB were in use; lower --max-concurrent", told
    )
    assert "ERROR" not in told


@pytest.mark.slow
def test_chains_whose_processes_cannot_even_begin_are_given_up(place: Path) -> None:
    """As on nodes where this package is not installed: only the driver finds it."""
    words = ["launch.py", "run", "long.yaml"]
    main = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = {words!r}; from pixelpick_ray.cli import main"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", f"{main}; sys.exit(main())"],
        cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert "No module named 'pixelpick_ray'" in done.stdout
    assert re.search(r"its process or node was lost \(.*Error: .*\) \(5 attempts without", done.stdout)
    assert "Traceback" not in done.stdout
