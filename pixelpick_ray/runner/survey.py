"""Survey of all nodes of a cluster through Ray; a node that does not answer in time is a finding."""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.engine.world import join
from pixelpick_ray.errors import PixelPickError, SpecError
from pixelpick_ray.planning import Plan
from pixelpick_ray.runner import inspection
from pixelpick_ray.runner.cluster import joined
from pixelpick_ray.runner.doctor import STORE_CURE, Facts, Meeting, NodeFacts
from pixelpick_ray.runner.local import choose_device
from pixelpick_ray.runner.ranks import free_address
from pixelpick_ray.runner.tune import placement
from pixelpick_ray.store import Store, paths

ANSWER_SECONDS = 60.0
DATA_SECONDS = 300.0  # or ten times as long as the driver took, if that is longer
MEETING_SECONDS = 120.0
CLOCK_ROUNDS = 5
Nodes = dict[str, dict[str, Any]]  # by name, as Ray describes them


def survey(plan: Plan, execution: Execution, told: Callable[[str], None]) -> Facts:
    """Inspect all nodes of the cluster at the address, or of one started here; `told` gets progress messages.

    Raises SpecError if no cluster can be joined.
    """
    told("reading the data on this machine")
    start = time.monotonic()
    contents, absent = inspection.contents(plan, execution)
    patience = max(DATA_SECONDS, 10 * (time.monotonic() - start))
    driver = NodeFacts("driver", versions=inspection.versions(), contents=contents, absent=absent)
    with joined(execution):
        nodes = {_name(node): node for node in ray.nodes() if node["Alive"]}
        trial, needs_gpus = _trial(execution, nodes)
        taken = ray.cluster_resources().get("GPU", 0.0) - ray.available_resources().get("GPU", 0.0)
        told(f"asking {len(nodes)} nodes")
        with _inspectors(nodes) as inspectors:
            facts = _about(nodes, inspectors, execution)
            answering = {name: inspectors[name] for name in facts if "answer" not in facts[name].problems}
            told("comparing the data and the store")
            facts |= _data(facts, answering, patience, plan, execution)
            driver, unseen = _store(driver, answering, execution)
            facts |= {name: _with_problem(facts[name], "store", why) for name, why in unseen.items() if why}
        told("letting two ranks meet")
        meeting = _meet({name: nodes[name] for name in answering}, execution, needs_gpus)
    return Facts(driver, tuple(facts.values()), trial, needs_gpus, taken, meeting)


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} {node['NodeManagerAddress']} {node['NodeID'][:6]}"


def _trial(execution: Execution, nodes: Nodes) -> tuple[str, bool]:
    """Why no trial fits, or empty, and whether trials use GPUs."""
    try:
        bundles = placement(execution, [node["Resources"] for node in nodes.values()]).bundles
    except SpecError as error:
        return str(error), False
    return "", bool(bundles[-1].get("GPU"))


@contextlib.contextmanager
def _inspectors(nodes: Nodes) -> Iterator[dict[str, Any]]:
    """One actor per node, by the node's name."""
    actors = {
        name: _Inspector.options(scheduling_strategy=_there(node)).remote()  # type: ignore[attr-defined]
        for name, node in nodes.items()
    }
    try:
        yield actors
    finally:
        for actor in actors.values():
            ray.kill(actor)


def _there(node: dict[str, Any]) -> Any:
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def _answers(asked: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Answers by node, given their references; an exception stands for a missing one."""
    if not asked:
        return {}
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds)
    found: dict[str, Any] = {}
    for name, reference in asked.items():
        try:
            late = TimeoutError(f"no response within {seconds:.0f} s")
            found[name] = ray.get(reference) if reference in ready else late
        except ray.exceptions.RayError as error:
            found[name] = RuntimeError(_explained(error))
    return found


def _explained(error: Exception) -> str:
    """Last line of Ray's message, the most informative one."""
    text = str(getattr(error, "cause", None) or error)
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), type(error).__name__)


def _with_problem(node: NodeFacts, what: str, why: Any) -> NodeFacts:
    return replace(node, problems={**node.problems, what: str(why)})


def _about(nodes: Nodes, inspectors: dict[str, Any], execution: Execution) -> dict[str, NodeFacts]:
    """Facts of every node, or that it does not answer; clocks are read one at a time."""
    answers = _answers({name: actor.about.remote(execution) for name, actor in inspectors.items()}, ANSWER_SECONDS)
    facts = {}
    for name, answer in answers.items():
        if isinstance(answer, Exception):
            facts[name] = _with_problem(NodeFacts(name), "answer", answer)
            continue
        facts[name] = replace(answer, name=name, counted_gpus=nodes[name]["Resources"].get("GPU", 0.0))
        clock = _clock(inspectors[name])
        if isinstance(clock, Exception):
            facts[name] = _with_problem(facts[name], "clock", clock)
        else:
            facts[name] = replace(facts[name], clock=clock)
    return facts


def _clock(inspector: Any) -> tuple[float, float] | Exception:
    """Seconds that a node's clock is ahead of ours, and its accuracy: half of the fastest round trip."""
    rounds = []
    for _ in range(CLOCK_ROUNDS):
        start = time.time()
        answer = _answers({"": inspector.clock.remote()}, ANSWER_SECONDS)[""]
        end = time.time()
        if isinstance(answer, Exception):
            return answer
        rounds.append(((end - start) / 2, answer - (start + end) / 2))
    exact, ahead = min(rounds)
    return ahead, exact


def _data(
    facts: dict[str, NodeFacts], inspectors: dict[str, Any], seconds: float, plan: Plan, execution: Execution
) -> dict[str, NodeFacts]:
    """Facts of nodes, with the contents that they see."""
    told = _answers({name: actor.contents.remote(plan, execution) for name, actor in inspectors.items()}, seconds)
    with_contents = {}
    for name, answer in told.items():
        if isinstance(answer, Exception):
            with_contents[name] = _with_problem(facts[name], "data", answer)
        else:
            with_contents[name] = replace(facts[name], contents=answer[0], absent=answer[1])
    return with_contents


def check_store(execution: Execution) -> None:
    """Raise SpecError if a node of the joined cluster does not see this process's store.

    A node that does not answer in time is ignored, because its chains check for themselves.
    """
    nodes = {_name(node): node for node in ray.nodes() if node["Alive"]}
    if len(nodes) > 1:
        probe = ray.remote(num_cpus=0)(inspection.probe)
        asked = {name: probe.options(scheduling_strategy=_there(node)).remote for name, node in nodes.items()}
        found = _store_problems(asked, execution)
        wrong = [f"{name}: {answer}" for name, answer in found.items() if isinstance(answer, str) and answer]
        if wrong:
            raise SpecError(f"--store: {'; '.join(wrong)}; {STORE_CURE}")


def _store(driver: NodeFacts, inspectors: dict[str, Any], execution: Execution) -> tuple[NodeFacts, dict[str, str]]:
    """The driver with its own problem, if any, and the nodes' problems."""
    try:
        asked = {name: actor.probe.remote for name, actor in inspectors.items()}
        return driver, {name: str(answer) for name, answer in _store_problems(asked, execution).items()}
    except (PixelPickError, OSError) as error:
        return _with_problem(driver, "store", error), {}


def _store_problems(ask: dict[str, Callable[..., Any]], execution: Execution) -> dict[str, str | Exception]:
    """Problems with the store by node: whether each reads the driver's record, and the driver the node's.

    Raises StoreError if the driver cannot write.
    """
    mark = uuid.uuid4().hex
    mine, theirs = paths.probe(mark), {name: paths.probe(f"{mark}-{at}") for at, name in enumerate(ask)}
    store = Store(execution.store)
    store.write_record(mine, {"mark": mark})
    try:
        asked = {name: probe(execution.store, mine, theirs[name], mark) for name, probe in ask.items()}
        problems: dict[str, str | Exception] = _answers(asked, ANSWER_SECONDS)
        for name in problems:
            if not problems[name] and not inspection.appears(store, theirs[name], mark):
                problems[name] = f"the driver does not see what this node wrote to {store.address}"
        return problems
    finally:
        for relative in (mine, *theirs.values()):
            with contextlib.suppress(PixelPickError, OSError):
                store.remove_record(relative)
        with contextlib.suppress(PixelPickError, OSError):
            (store.path / mine).parent.rmdir()


def _meet(nodes: Nodes, execution: Execution, needs_gpus: bool) -> Meeting | None:
    """All-reduce between ranks on two nodes, or on the only one if trials have several ranks."""
    able = {name: node for name, node in nodes.items() if not needs_gpus or node["Resources"].get("GPU", 0) >= 1}
    if not able or (len(able) == 1 and execution.ranks == 1):
        return None
    names = list(able)[:2]
    pair = [able[names[0]], able[names[-1]]]
    on_gpus = needs_gpus and (len(names) == 2 or pair[0]["Resources"]["GPU"] >= 2)
    actors = [
        _Partner.options(num_gpus=int(on_gpus), scheduling_strategy=_there(node)).remote()  # type: ignore[attr-defined]
        for node in pair
    ]
    device = "cuda" if on_gpus else "cpu"
    try:
        address = ray.get(actors[0].address.remote(), timeout=ANSWER_SECONDS)
        start = time.monotonic()
        added = [actor.add.remote(rank, address, device) for rank, actor in enumerate(actors)]
        sums = ray.get(added, timeout=MEETING_SECONDS)
        return Meeting(tuple(names), device, time.monotonic() - start, "" if sums == [3.0, 3.0] else f"1 + 2 = {sums}")
    except ray.exceptions.GetTimeoutError:
        return Meeting(tuple(names), device, problem=f"no result in {MEETING_SECONDS:.0f} s")
    except ray.exceptions.RayError as error:
        return Meeting(tuple(names), device, problem=_explained(error))
    finally:
        for actor in actors:
            ray.kill(actor)


@ray.remote(num_cpus=0)
class _Inspector:
    """Inspects the node that it runs on."""

    def about(self, execution: Execution) -> NodeFacts:
        """Return all facts that need no data."""
        node = NodeFacts("", versions=inspection.versions(), free=inspection.free_disks(execution))
        try:
            return replace(node, gpus=inspection.gpus())
        except RuntimeError as error:
            return _with_problem(node, "GPUs", error)

    def clock(self) -> float:
        return time.time()

    def contents(self, plan: Plan, execution: Execution) -> tuple[dict[str, str], dict[str, str]]:
        return inspection.contents(plan, execution)

    def probe(self, location: str, theirs: str, mine: str, value: str) -> str:
        return inspection.probe(location, theirs, mine, value)


@ray.remote(num_cpus=0)
class _Partner:
    """A rank that contributes its number plus one to an all-reduce."""

    def address(self) -> str:
        return free_address()

    def add(self, rank: int, address: str, device: str) -> float:
        import torch

        place = choose_device(device)
        with join(rank=rank, size=2, device=place, address=address, timeout_seconds=MEETING_SECONDS / 2) as world:
            return float(world.sum_(torch.tensor(float(rank + 1), device=place)).item())
