"""Machines of their own on this one: network, process, host name and mount namespaces joined by a virtual cable."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.support import fake_slurm
from tests.support.waiting import wait_for

SLURMD_PORT = 6818
NODES = {"node-a": "10.77.0.1", "node-b": "10.77.0.2"}

# pid 1 of a node; the shell reaps what its processes leave behind. Arguments: name, address, hosts file, folder of the
# job, slurmd's command. A default route is what Ray and torch look at to find a node's own address.
NODE = """
set -e
hostname "$1"
mount --bind "$3" /etc/hosts
mkdir -p "$4" && mount -t tmpfs tmpfs "$4" && chmod 700 "$4"
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip address add "$2/24" dev eth0
ip link set eth0 up
ip route add default dev eth0
address=$2
shift 4
"$@" "$address" "$SLURMD_PORT"
:
"""


def why_not() -> str:
    """Why there can be no namespaces here; empty where there can."""
    probe = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "ip", "link", "add", "p0", "type", "veth"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True)
    except FileNotFoundError as error:
        return f"needs unshare and ip ({error})"
    return f"needs the right to make network namespaces ({done.stderr.strip()})" if done.returncode else ""


@contextlib.contextmanager
def two_nodes(place: Path, job_folder: Path) -> Iterator[list[list[str]]]:
    """Start both nodes, each with a slurmd and a folder of the job of its own; yields the command prefixes of both.

    Each has the hosts file that Debian's installer writes: a node knows itself as 127.0.1.1.
    """
    for name in NODES:
        others = "".join(f"{address} {other}\n" for other, address in NODES.items() if other != name)
        (place / f"hosts-{name}").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n{others}")
    slurmd = [sys.executable, fake_slurm.__file__, "slurmd"]
    kinds = ["--net", "--pid", "--uts", "--mount"]
    holders = []
    try:
        for name, address in NODES.items():
            holders.append(
                subprocess.Popen(
                    ["unshare", *kinds, "--fork", "--kill-child", "--mount-proc", "bash", "-c", NODE, "node",
                     name, address, str(place / f"hosts-{name}"), str(job_folder), *slurmd],
                    env=os.environ | {"SLURMD_PORT": str(SLURMD_PORT), fake_slurm.FOLDER: str(place)},
                )
            )  # fmt: skip
        first, second = (str(wait_for(psutil.Process(one.pid).children)[0].pid) for one in holders)
        cable = ["type", "veth", "peer", "name", "eth0", "netns", second]
        subprocess.run(["ip", "link", "add", "eth0", "netns", first, *cable], check=True)
        prefixes = [["nsenter", "--target", node, *kinds] for node in (first, second)]
        for address in NODES.values():
            probe = [*prefixes[0], "bash", "-c", f"exec 3<>/dev/tcp/{address}/{SLURMD_PORT}"]
            wait_for(lambda: not subprocess.run(probe, capture_output=True).returncode)  # noqa: B023
        yield prefixes
    finally:
        for holder in holders:
            holder.send_signal(signal.SIGKILL)  # takes pid 1 of the node with it, and so all its processes
            holder.wait()
        with contextlib.suppress(OSError):
            job_folder.rmdir()
