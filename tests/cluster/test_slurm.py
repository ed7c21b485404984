"""The Slurm job, run by a fake Slurm: what reaches the run, and what its end means for the job."""

import json
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pixelpick_ray.config.shipped import code_commit, code_digest
from tests.support import fake_slurm
from tests.support.cluster_experiment import AWKWARD, TINY
from tests.support.fake_slurm import Node, Slurm
from tests.support.launch import ROOT, launch
from tests.support.waiting import wait_for

pytestmark = pytest.mark.ray  # a stand-in for it, which waits as long

# Takes the place of ray and does what symmetric-run does: the first node starts Ray and runs the command, the others
# wait for it and stay as long. FAIL says whose first `ray start` fails; like the real one, it then ends with 0.
RAY = """
import json, os, pathlib, socket, subprocess, sys, time
_, _, address, *rest = sys.argv[1:]
host, port = address.split(":")
keys = ["RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR", "RAY_USAGE_STATS_ENABLED"]
seen = {key: os.environ.get(key) for key in keys} | {"address": address, "options": rest[: rest.index("--")]}
rank = os.environ["SLURM_PROCID"]
pathlib.Path(f"ray-{rank}.json").write_text(json.dumps(seen))
pathlib.Path(f"ray-{rank}.argv").write_bytes(pathlib.Path("/proc/self/cmdline").read_bytes())
with open(f"ray-{rank}.starts", "a") as starts:
    starts.write("x")
fails = os.environ.get("FAIL") == rank and len(open(f"ray-{rank}.starts").read()) == 1

def head_answers():
    try:
        socket.create_connection((host, int(port))).close()
    except OSError:
        return False
    return True

if rank == "0" and not fails:
    server = socket.create_server(("", int(port)))
    sys.exit(subprocess.run(rest[rest.index("--") + 1 :]).returncode)
if rank != "0":
    end = time.monotonic() + 60
    while not head_answers() and time.monotonic() < end:
        time.sleep(0.1)
if fails:
    print("Failed to start Ray")
    sys.exit(0)
while head_answers():
    time.sleep(0.1)
"""
# Takes the place of launch.py: notes its arguments, and does what DOES says.
LAUNCH = """
import json, os, pathlib, signal, sys, time
pathlib.Path("arguments.json").write_text(json.dumps(sys.argv[1:]))
if os.environ["DOES"] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    pathlib.Path("running").touch()
    time.sleep(30)
if os.environ["DOES"] == "ask":
    pathlib.Path(os.environ["PIXELPICK_JOB"], "people").write_text("waiting for 5 answers: the page\\n")
    sys.exit(3)
sys.exit(int(os.environ["DOES"]))
"""


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator["SlurmJob"]:
    """The job of an awkwardly named experiment and option, submitted from an awkwardly named folder to two nodes."""
    listeners = [fake_slurm.serve("127.0.0.1", 0) for _ in range(2)]
    ports = [listener.getsockname()[1] for listener in listeners]
    place = tmp_path_factory.mktemp("my $(touch broken) 'folder'")
    slurm = Slurm(place / "slurm", [Node("127.0.0.1", "127.0.0.1", ports[0]), Node("other", "127.0.0.1", ports[1])])
    name = 'tiny\'s "file" $(touch broken).yaml'
    (place / name).write_text(TINY)
    options = ["--nodes", "2", "--gpus-per-node", "4", "--set", f"title={json.dumps(AWKWARD)}", "--ranks", "2"]
    with pytest.MonkeyPatch.context() as patch:
        for key, value in slurm.environment().items():
            patch.setenv(key, value)
        outcome = launch(place, "submit", name, "--to", "slurm", *options)
    assert outcome.status == 0, outcome.err
    assert "Submitted batch job" in outcome.out
    yield SlurmJob(place, slurm, name)
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def job(submitted: "SlurmJob") -> Iterator["SlurmJob"]:
    """The submitted job, without traces of earlier runs."""
    submitted.forget()
    yield submitted
    submitted.forget()


class SlurmJob:
    """A submitted job and its batch shell."""

    def __init__(self, place: Path, slurm: Slurm, name: str) -> None:
        """Put the fakes where the script looks for launch.py, ray and python."""
        self.place, self.slurm, self.name, self.log = place, slurm, name, place / "job.log"
        self.record = slurm.job()
        self.folder, self.script = Path(f"/tmp/pixelpick-{self.record['id']}"), Path(self.record["argv"][1])
        tools, project = place / "tools", place / "project"
        tools.mkdir()
        project.mkdir()
        (project / "launch.py").write_text(LAUNCH)
        (tools / "ray").write_text(f"#!{sys.executable}\n{RAY}")
        (tools / "ray").chmod(stat.S_IRWXU)
        (tools / "python").symlink_to(sys.executable)
        text = self.script.read_text()
        for key, value in (("project", project), ("environment", tools)):
            [line] = [line for line in text.splitlines() if line.startswith(f"{key}=")]
            text = text.replace(line, f"{key}={shlex.quote(str(value))}")
        self.script.write_text(text)

    def forget(self) -> None:
        """Remove what a run left behind."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in (*self.place.glob("ray-*"), self.place / "running", self.place / "arguments.json", self.log):
            path.unlink(missing_ok=True)
        (self.slurm.folder / "calls").unlink(missing_ok=True)
        self.slurm.set_state("RUNNING")

    def start(self, does: str | int, **environment: str) -> "subprocess.Popen[bytes]":
        """Start the batch shell as Slurm does on the first node."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.record["argv"],
                env=self.record["env"] | {"DOES": str(does)} | environment,
                cwd=self.record["cwd"],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, does: str | int, **environment: str) -> int:
        """Exit status of the whole job."""
        return self.start(does, **environment).wait(timeout=60)

    def requeued(self) -> list[str]:
        return [call for call in self.slurm.calls("scontrol") if "requeue" in call]


def test_awkward_values_arrive_unchanged_and_all_nodes_get_one_token_that_no_command_line_shows(job: SlurmJob) -> None:
    assert job.run(0) == 0, job.log.read_text()
    arguments = json.loads((job.place / "arguments.json").read_text())
    title = f"title={json.dumps(AWKWARD)}"
    (experiment,) = map(str, job.place.glob("runs/tiny/submit/*/experiment.yaml"))
    assert arguments == ["run", experiment, "--set", title, "--ranks", "2", "--address", "auto"]
    assert not list(job.place.rglob("broken*"))
    first, second = (json.loads((job.place / f"ray-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_USAGE_STATS_ENABLED"] == "0"
    assert first["RAY_TMPDIR"] == str(job.folder)
    assert first["address"] == first["RAY_ADDRESS"]
    assert first["address"].endswith(f":{20000 + job.record['id'] % 12000}")
    assert first["options"] == ["--min-nodes", "2", "--num-cpus", "8", "--num-gpus", "4"]
    for rank in (0, 1):
        assert first["RAY_AUTH_TOKEN"].encode() not in (job.place / f"ray-{rank}.argv").read_bytes()
    assert first["RAY_AUTH_TOKEN"] not in job.log.read_text()
    assert first["RAY_AUTH_TOKEN"] not in job.script.read_text()


@pytest.mark.always("Slurm with requeue")
def test_a_preempted_run_stops_cleanly_goes_back_into_the_queue_once_and_then_gets_another_token(job: SlurmJob) -> None:
    process = job.start("wait")
    wait_for((job.place / "running").exists, seconds=30)
    process.send_signal(signal.SIGTERM)  # to the batch shell
    assert process.wait(timeout=60) == 3, job.log.read_text()
    assert job.requeued() == [f"scontrol requeue {job.record['id']}"]
    assert stat.S_IMODE(job.folder.stat().st_mode) == 0o700
    first = json.loads((job.place / "ray-0.json").read_text())["RAY_AUTH_TOKEN"]
    assert job.run(0) == 0
    assert json.loads((job.place / "ray-0.json").read_text())["RAY_AUTH_TOKEN"] != first
    assert not job.folder.exists()


def test_a_run_that_was_stopped_goes_back_into_the_queue_and_no_other(job: SlurmJob) -> None:
    """Not one that failed, that waits for people, who would find it take its nodes again and again for nothing, or
    whose job was cancelled.
    """
    found = []
    for does, state in ((1, "RUNNING"), ("ask", "RUNNING"), (3, "RUNNING"), (3, "CANCELLED")):
        job.slurm.set_state(state)
        found.append((job.run(does), len(job.requeued())))
    assert found == [(1, 0), (3, 0), (3, 1), (3, 1)]
    assert "submit it again then. waiting for 5 answers: the page" in job.log.read_text()


def test_a_ray_that_does_not_start_fails_the_job_though_symmetric_run_ends_with_0(job: SlurmJob) -> None:
    begun = time.monotonic()
    assert job.run(0, FAIL="0") == 1
    assert time.monotonic() - begun < 40  # the other node does not wait for it
    assert "did not start" in job.log.read_text()
    assert not (job.place / "arguments.json").exists()


def test_a_node_whose_ray_does_not_start_at_first_joins_later(job: SlurmJob) -> None:
    process = job.start("wait", FAIL="1")
    starts = job.place / "ray-1.starts"
    wait_for(lambda: len(starts.read_text()) == 2, seconds=30)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 3
    assert starts.read_text() == "xx"


def test_the_job_has_directives_as_asked_for_every_line_of_the_template_and_copies_of_code_and_experiment(
    job: SlurmJob,
) -> None:
    options = job.record["options"]
    asked = {"job-name": "tiny", "nodes": "2", "cpus-per-task": "8", "gres": "gpu:4", "ntasks-per-node": "1"}
    assert {name: options[name] for name in asked} == asked
    assert "requeue" in options
    assert options["signal"] == "B:TERM@120"

    def lines(text: str) -> set[str]:
        block = text.split("# >>> filled by submit\n")[1].split("# <<< filled by submit")[0]
        return {line.split("=")[0] for line in block.splitlines() if "=" in line and not line.startswith(" ")}

    template = lines((ROOT / "cluster" / "slurm" / "experiment.sbatch").read_text())
    filled = lines(job.script.read_text())
    assert filled - template <= {"and a second line'"}
    assert template - filled == {"#SBATCH --time"}
    (copy,) = job.place.glob("runs/tiny/submit/*")
    assert (copy / "experiment.yaml").read_text() == (job.place / job.name).read_text()
    told = "import pixelpick_ray.config.shipped as s; print(s.PACKAGE, s.code_commit(), s.code_digest())"
    done = subprocess.run([sys.executable, "-c", told], cwd=copy, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{copy / 'pixelpick_ray'} {code_commit()}, files {code_digest()} {code_digest()}"


def test_what_slurm_would_have_to_quote_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    outcome = launch(tmp_path, "submit", "tiny.yaml", "--to", "slurm", "--partition", "gpu\n#SBATCH --uid=0")
    assert outcome.status == 2
    assert "--partition" in outcome.err
    assert not (tmp_path / "runs").exists()
