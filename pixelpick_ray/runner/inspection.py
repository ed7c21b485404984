"""Inspection of the node that a process runs on: versions, data, disks, GPUs, and its view of the store."""

import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pixelpick_ray
from pixelpick_ray.checks import splits_in_use
from pixelpick_ray.config import parts
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.shipped import code_commit, code_digest
from pixelpick_ray.config.trial import SizeSpec, Trial
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.data.dataset import Dataset
from pixelpick_ray.data.datasets import open_dataset, training_split
from pixelpick_ray.data.weights import weights_digest
from pixelpick_ray.errors import PixelPickError
from pixelpick_ray.planning import Plan
from pixelpick_ray.runner.doctor import Gpu
from pixelpick_ray.store import Store

VISIBLE_SECONDS = 10.0  # network file systems show new files with a delay
GPU_SECONDS = 30.0


def versions() -> dict[str, str]:
    """Return the versions of software that results depend on."""
    found = {"Python": platform.python_version()}
    for package in ("torch", "ray"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    found["pixelpick-ray"] = f"{pixelpick_ray.__version__} {code_commit()[:12]} (files {code_digest()})"
    return found


def contents(plan: Plan, execution: Execution) -> tuple[dict[str, str], dict[str, str]]:
    """Return digests of the data and weights that trials read, by name, and the reasons for those that are absent.

    Decodes images that no run has yet decoded on this node.
    """
    found: dict[str, str] = {}
    absent: dict[str, str] = {}
    for trial in (chain.trial for chain in plan.chains):
        for name, compute in _parts(plan, trial, execution):
            if name in found or name in absent:
                continue
            try:
                if digest := compute():
                    found[name] = digest
            except PixelPickError as error:
                absent[name] = str(error)
    return found, absent


def _parts(plan: Plan, trial: Trial, execution: Execution) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Names of what a trial reads, with functions that compute digests."""
    for kind, name in trial.external_parts:
        yield f"{kind} {name}", partial(_loaded, kind, name)
    model, spec, data = trial.model, trial.dataset, execution.data_path
    yield f"weights {model.backbone} {model.pretrained}", partial(weights_digest, model, data)
    try:
        dataset = open_dataset(spec, data)
        used = splits_in_use(plan.experiment, trial, training_split(dataset, spec))
    except PixelPickError:
        yield spec.name, lambda: str(open_dataset(spec, data))  # fails again, and is reported then
        return
    for split, size in used:
        yield f"{spec.name} {split} {_size(size)}", partial(_fingerprint, dataset, split, size, execution.cache_path)


def _loaded(kind: str, name: str) -> str:
    """Load an external part; return its name, which identifies its code."""
    parts.load(kind, name)
    return name


def _size(size: SizeSpec) -> str:
    """Short text of a size."""
    if size.size is not None:
        return f"{size.size[0]}x{size.size[1]}"
    if size.scale is not None:
        return f"at {size.scale:g}"
    return "at native size" if size.long_side is None else f"at long side {size.long_side}"


def _fingerprint(dataset: Dataset, split: str, size: SizeSpec, cache_path: Path) -> str:
    return prepare(dataset, split, size, cache_path).fingerprint


def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs; none without an NVIDIA driver. Raises RuntimeError if nvidia-smi fails."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GPU_SECONDS, check=True)
        rows = [line.rsplit(",", 2) for line in done.stdout.splitlines() if line.strip()]
        return tuple(Gpu(name.strip(), int(total) * 2**20, int(free) * 2**20) for name, total, free in rows)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"nvidia-smi fails ({error}); repair the node's driver, or leave the node out") from error


def free_disks(execution: Execution) -> dict[str, tuple[str, int]]:
    """Return folder and free bytes of each disk that a run writes to, by purpose."""
    folders = {"decoded images": execution.cache_path, "temporary files": Path(tempfile.gettempdir())}
    store = Store(execution.store)
    if store.is_folder:
        folders = {"the store": store.path} | folders
    found = {}
    for what, folder in folders.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        found[what] = (str(folder), shutil.disk_usage(there).free)
    return found


def probe(location: str, theirs: str, mine: str, value: str) -> str:
    """Read a record that another node wrote, and write one; return what went wrong, empty if nothing did."""
    try:
        store = Store(location)
        if not appears(store, theirs, value):
            return f"{store.address} on this node does not contain what the driver wrote"
        store.write_record(mine, {"mark": value})
    except (PixelPickError, OSError) as error:
        return str(error)
    return ""


def appears(store: Store, path: str, value: str) -> bool:
    """Whether a record has this value, now or within VISIBLE_SECONDS."""
    until = time.monotonic() + VISIBLE_SECONDS
    while store.read_record(path) != {"mark": value}:
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True
