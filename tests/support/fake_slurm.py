"""A Slurm of a few lines: sbatch, srun and scontrol on PATH, and a node daemon that runs the tasks of srun.

Started as a program it is one of the four: ``python fake_slurm.py sbatch ...``, ``... slurmd HOST PORT``. The state is
a folder: ``nodes.json`` (names and addresses), ``jobs/ID.json`` (submitted jobs), ``calls`` (a line of each call).
"""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

FOLDER = "FAKE_SLURM"
FIRST_JOB = 4100000
Node = namedtuple("Node", "name host port")  # where its daemon listens


class Slurm:
    """The cluster as a test sees it."""

    def __init__(self, folder: Path, nodes: list[Node]) -> None:
        self.folder, self.commands = folder, folder / "bin"
        (folder / "jobs").mkdir(parents=True)
        self.commands.mkdir()
        (folder / "first").write_text(str(FIRST_JOB + os.getpid() % 10000 * 10))  # a job has a folder in /tmp
        (folder / "nodes.json").write_text(json.dumps([node._asdict() for node in nodes]))
        for name in ("sbatch", "srun", "scontrol"):
            command = self.commands / name
            command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} "$@"\n')
            command.chmod(0o755)

    def environment(self) -> dict[str, str]:
        """Variables of a login shell: the commands of Slurm are on PATH."""
        return os.environ | {FOLDER: str(self.folder), "PATH": f"{self.commands}:{os.environ['PATH']}"}

    def job(self) -> dict[str, Any]:
        """What the last sbatch recorded: id, argv of the batch shell, environment, folder."""
        return json.loads(max((self.folder / "jobs").glob("*.json")).read_text())  # type: ignore[no-any-return]

    def calls(self, command: str) -> list[str]:
        """Lines of the calls of one command."""
        log = self.folder / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if line.split()[0] == command]

    def set_state(self, state: str) -> None:
        """What scontrol says of the job."""
        (self.folder / "state").write_text(state)


def serve(host: str, port: int) -> socket.socket:
    """Start the daemon of a node in threads of this process; returns its listening socket."""
    listener = socket.create_server((host, port))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=_run_task, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def _run_task(connection: socket.socket) -> None:
    """One task: a line with the command comes in, SIGTERM to its group for every other line, its status goes out."""
    with connection, connection.makefile("rw") as stream:
        if not (line := stream.readline()):
            return  # somebody looked whether the daemon listens
        task = json.loads(line)
        with open(task["log"], "ab") as log:
            process = subprocess.Popen(
                task["argv"], env=task["env"], cwd=task["cwd"], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

        def listen() -> None:
            with contextlib.suppress(OSError, ValueError, ProcessLookupError):
                while stream.readline():
                    os.killpg(process.pid, signal.SIGTERM)

        threading.Thread(target=listen, daemon=True).start()
        status = process.wait()
        with contextlib.suppress(OSError):
            connection.sendall(f"{status}\n".encode())


def _srun(folder: Path, arguments: list[str]) -> int:
    count = 1
    while arguments[0].startswith("--"):
        option, _, value = arguments.pop(0).partition("=")
        count = int(value) if option == "--ntasks" else count
        known = {"--nodes", "--ntasks", "--ntasks-per-node", "--cpus-per-task", "--export", "--kill-on-bad-exit"}
        assert option in known, option
    nodes = json.loads((folder / "nodes.json").read_text())[:count]
    connections = [socket.create_connection((node["host"], node["port"])) for node in nodes]
    statuses: list[int] = []

    def to_all(*_: object) -> None:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(b"TERM\n")

    def follow(connection: socket.socket) -> None:
        status = int(connection.makefile().readline() or 1)
        statuses.append(status)
        if status:
            to_all()

    signal.signal(signal.SIGTERM, to_all)
    threads = [threading.Thread(target=follow, args=(connection,)) for connection in connections]
    for rank, (node, connection, thread) in enumerate(zip(nodes, connections, threads, strict=True)):
        environment = dict(os.environ) | {"SLURM_PROCID": str(rank), "SLURMD_NODENAME": node["name"]}
        log = os.readlink("/proc/self/fd/1")
        task = {"argv": arguments, "env": environment, "cwd": os.getcwd(), "log": log}
        connection.sendall((json.dumps(task) + "\n").encode())
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.1)  # so that the signal is handled
    return max(status if status >= 0 else 128 - status for status in statuses)


def _sbatch(folder: Path, arguments: list[str]) -> int:
    [script] = arguments
    text = Path(script).read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, flags=re.MULTILINE))
    number = int((folder / "first").read_text()) + len(list((folder / "jobs").iterdir()))
    spooled = folder / f"slurm_script.{number}"
    spooled.write_text(text)
    gpus = re.fullmatch(r"gpu:(\d+)", options.get("gres", ""))
    variables = {
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NUM_NODES": options["nodes"],
        "SLURM_JOB_NODELIST": "the-nodes",
        "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
        "SLURM_SUBMIT_DIR": os.getcwd(),
    } | ({"SLURM_GPUS_ON_NODE": gpus[1]} if gpus else {})
    job = {"id": number, "argv": ["/bin/bash", str(spooled)], "env": dict(os.environ) | variables, "cwd": os.getcwd()}
    (folder / "jobs" / f"{number}.json").write_text(json.dumps(job | {"options": options}))
    print(f"Submitted batch job {number}")
    return 0


def _scontrol(folder: Path, arguments: list[str]) -> int:
    if arguments[:2] == ["show", "hostnames"]:
        assert arguments[2] == "the-nodes"
        print("\n".join(node["name"] for node in json.loads((folder / "nodes.json").read_text())))
    elif arguments[:2] == ["show", "job"]:
        state = folder / "state"
        print(f"JobId={arguments[2]}\n   JobState={state.read_text() if state.exists() else 'RUNNING'} Reason=None")
    return 0


def main() -> int:
    command, *arguments = sys.argv[1:]
    if command == "slurmd":
        serve(arguments[0], int(arguments[1]))
        signal.pause()
    folder = Path(os.environ[FOLDER])
    with (folder / "calls").open("a") as log:
        log.write(f"{command} {shlex.join(arguments)}\n".replace("\n", " ").strip() + "\n")
    return {"srun": _srun, "sbatch": _sbatch, "scontrol": _scontrol}[command](folder, arguments)


if __name__ == "__main__":
    sys.exit(main())
