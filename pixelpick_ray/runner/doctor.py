"""Diagnosis of whether a cluster is fit for an experiment, as lines that say ok or what to do."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

CLOCK_SECONDS = 15.0  # a quarter of what leases tolerate
FREE_BYTES = 2 * 2**30  # per disk
FREE_SHARE = 0.9  # of a GPU's memory
STORE_CURE = "give --store a folder that every node can write to under the same path, or an address such as s3://"
SAME = "install the versions of requirements.txt, and the same checkout, on every node"


@dataclass(frozen=True)
class Gpu:
    """A GPU and its memory in bytes."""

    name: str
    total: int
    free: int


@dataclass(frozen=True)
class NodeFacts:
    """Facts about a node, or ``problems`` by question if it could not answer.

    ``contents`` are digests of data splits and weights by name, or ``absent`` why there is none; ``free`` are folders
    and free bytes by purpose; ``counted_gpus`` is Ray's count; ``clock`` is the seconds ahead of the driver's clock and
    their accuracy.
    """

    name: str
    problems: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    free: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = ()
    counted_gpus: float = 0.0
    clock: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Meeting:
    """An all-reduce between two ranks: on which nodes and device, its duration, and why it failed, if so."""

    nodes: tuple[str, ...]
    device: str
    seconds: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class Facts:
    """Facts about the driver, each node, and the cluster as a whole.

    ``trial`` says why the cluster cannot hold a trial, if so; ``taken_gpus`` are in use by others; ``meeting`` is None
    if it is not needed, with one rank per trial and one node.
    """

    driver: NodeFacts
    nodes: tuple[NodeFacts, ...]
    trial: str = ""
    needs_gpus: bool = False
    taken_gpus: float = 0.0
    meeting: Meeting | None = None


@dataclass(frozen=True)
class Finding:
    """A finding: its subject and place, whether it is ok, and the facts or what to do."""

    what: str
    where: str
    ok: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok   ' if self.ok else 'WRONG'} {self.what:<10} {self.where}: {self.text}"


def diagnose(facts: Facts) -> list[Finding]:
    """Return the findings, first on the cluster and then on each node."""
    lines = [*_cluster(facts), *_driver(facts.driver)]
    for node in facts.nodes:
        if "answer" in node.problems:
            lines.append(Finding("answer", node.name, False, f"{node.problems['answer']}; {_ANSWER}"))
            continue
        lines += [_versions(facts.driver, node), *_contents(facts.driver, node), _store(node)]
        lines += [_clock(node), *_disks(node)]
        if facts.needs_gpus and node.counted_gpus:
            lines.append(_gpus(node))
    return lines


_ANSWER = (
    "check that the node is alive, that this checkout is at the same path there, and that its Python can import it"
)


def _cluster(facts: Facts) -> Iterator[Finding]:
    count = f"{len(facts.nodes)} node{'s' if len(facts.nodes) != 1 else ''}"
    yield Finding("trial", "cluster", not facts.trial, facts.trial or f"{count}, a trial fits")
    if facts.needs_gpus:
        taken = facts.taken_gpus
        busy = f"{taken:g} GPUs are in use by other jobs of this cluster; wait for them, or stop those jobs"
        yield Finding("GPUs", "cluster", not taken, busy if taken else "none in use")
    if facts.meeting is not None:
        yield _meeting(facts.meeting)


def _meeting(meeting: Meeting) -> Finding:
    where = " and ".join(meeting.nodes)
    if not meeting.problem:
        text = f"two ranks on {meeting.device} completed an all-reduce in {meeting.seconds:.1f} s"
        return Finding("all-reduce", where, True, text)
    cure = "let the nodes reach each other on every port, and name the network with GLOO_SOCKET_IFNAME"
    if meeting.device == "cuda":
        cure += " and NCCL_SOCKET_IFNAME; NCCL_DEBUG=INFO says more"
    return Finding("all-reduce", where, False, f"two ranks on {meeting.device}: {meeting.problem}; {cure}")


def _driver(driver: NodeFacts) -> Iterator[Finding]:
    for name, why in driver.absent.items():
        yield Finding("data", driver.name, False, f"{name}: {why}")
    for what, why in driver.problems.items():
        yield Finding(what, driver.name, False, why)


def _versions(driver: NodeFacts, node: NodeFacts) -> Finding:
    if "versions" in node.problems:
        return Finding("versions", node.name, False, node.problems["versions"])
    other = [
        f"{name} {node.versions.get(name, 'absent')}, the driver has {version}"
        for name, version in driver.versions.items()
        if node.versions.get(name) != version
    ]
    if other:
        return Finding("versions", node.name, False, f"{'; '.join(other)}; {SAME}")
    return Finding("versions", node.name, True, ", ".join(f"{name} {value}" for name, value in node.versions.items()))


def _contents(driver: NodeFacts, node: NodeFacts) -> Iterator[Finding]:
    if "data" in node.problems:
        yield Finding("data", node.name, False, node.problems["data"])
        return
    same = 0
    for name, digest in driver.contents.items():
        if name in node.absent:
            yield Finding("data", node.name, False, f"{name}: {node.absent[name]}")
        elif node.contents.get(name) != digest:
            text = f"{name}: differs from the driver's; copy the driver's files, or use a shared folder"
            yield Finding("data", node.name, False, text)
        else:
            same += 1
    if same == len(driver.contents):
        yield Finding("data", node.name, True, f"the driver's: {', '.join(driver.contents) or 'none is needed'}")


def _store(node: NodeFacts) -> Finding:
    problem = node.problems.get("store", "")
    return Finding(
        "store", node.name, not problem, f"{problem}; {STORE_CURE}" if problem else "read and written by both"
    )


def _clock(node: NodeFacts) -> Finding:
    if "clock" in node.problems:
        return Finding("clock", node.name, False, node.problems["clock"])
    ahead, exact = node.clock
    text = f"{abs(ahead):.2f} s {'ahead of' if ahead >= 0 else 'behind'} the driver's, within {exact:.2f} s"
    if abs(ahead) - exact > CLOCK_SECONDS:
        return Finding("clock", node.name, False, f"{text}; leases in the store need synchronised clocks: use NTP")
    return Finding("clock", node.name, True, text)


def _disks(node: NodeFacts) -> Iterator[Finding]:
    for what, (path, free) in node.free.items():
        text = f"{free / 2**30:.1f} GiB free for {what} in {path}"
        enough = free >= FREE_BYTES
        cure = f"only {text}, at least {FREE_BYTES / 2**30:.0f} are needed; free space, or give another folder"
        yield Finding("disk", node.name, enough, text if enough else cure)


def _gpus(node: NodeFacts) -> Finding:
    if "GPUs" in node.problems:
        return Finding("GPUs", node.name, False, node.problems["GPUs"])
    if len(node.gpus) < node.counted_gpus:
        text = (
            f"Ray counts {node.counted_gpus:g} GPUs, nvidia-smi shows {len(node.gpus)}; restart Ray there with the "
            "right number"
        )
        return Finding("GPUs", node.name, False, text)
    shown = [f"{gpu.name} {gpu.free / 2**30:.0f} of {gpu.total / 2**30:.0f} GiB free" for gpu in node.gpus]
    busy = [index for index, gpu in enumerate(node.gpus) if gpu.free < FREE_SHARE * gpu.total]
    if busy:
        text = f"GPU {', '.join(map(str, busy))} is used by another program; stop it (nvidia-smi shows it)"
        return Finding("GPUs", node.name, False, f"{'; '.join(shown)}; {text}")
    return Finding("GPUs", node.name, True, "; ".join(shown))
