"""Content-addressed results: a folder with a manifest exists, anything else does not.

Layout: ``<kind>/<key>/`` holds ``input.json``, the payload, ``provenance.json`` and, written last, ``manifest.json``;
the weights of a fit lie beside them in ``weights.safetensors``, checked by themselves, and may be removed at any time.
``experiments/<name>-<digest>/`` records which keys an experiment's chains have reached. ``leases/`` says who computes.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pixelpick_ray.errors import StoreError
from pixelpick_ray.spec.canonical import canonical_json, digest
from pixelpick_ray.spec.experiment import Experiment

WEIGHTS = "weights.safetensors"
LEASE_SECONDS = 60.0


def experiment_folder(experiment: Experiment) -> str:
    """Folder of an experiment's records, relative to the store."""
    return f"experiments/{experiment.name}-{experiment.identity()[:16]}"


class Store:
    """Results by kind ("fit", "pick", "evaluation") and key; any number of processes may use one store."""

    def __init__(self, location: str | Path) -> None:
        self.path = Path(location)

    def folder(self, kind: str, key: str) -> Path:
        """Where a result lies or would lie."""
        return self.path / kind / key

    def has(self, kind: str, key: str) -> bool:
        """Whether the result is published; its files are verified when they are read."""
        return (self.folder(kind, key) / "manifest.json").is_file()

    def read(self, kind: str, inputs: dict[str, Any]) -> Path | None:
        """The verified folder of the result of these inputs; None if absent, or damaged and therefore set aside."""
        folder = self.folder(kind, digest(inputs))
        if not (folder / "manifest.json").is_file():
            return None
        if problem := _damage(folder):
            self._set_aside(folder, problem)
            return None
        stored = json.loads((folder / "input.json").read_text(encoding="utf-8"))
        if canonical_json(stored) != canonical_json(inputs):
            raise StoreError(f"{folder}: was made from other inputs than its key says; remove the folder and run again")
        return folder

    def result(self, kind: str, key: str) -> Path | None:
        """The verified folder of a result by its key; None if absent or damaged, which is left as it is."""
        folder = self.folder(kind, key)
        if not (folder / "manifest.json").is_file() or _damage(folder):
            return None
        inputs = json.loads((folder / "input.json").read_text(encoding="utf-8"))
        return folder if digest(inputs) == key else None

    def files(self, kind: str, key: str, names: Sequence[str]) -> dict[str, bytes] | None:
        """Contents of files of a result by its key; None when the result or one of them is absent or damaged.

        What is not asked for is not verified; "input.json" is verified to be that of the key.
        """
        folder = f"{self.path}/{kind}/{key}"
        try:
            manifest = json.loads(_content(f"{folder}/manifest.json"))
            contents = {name: _content(f"{folder}/{name}") for name in names}
            intact = all(_digest(content) == manifest[name]["sha256"] for name, content in contents.items())
            mine = intact and ("input.json" not in contents or digest(json.loads(contents["input.json"])) == key)
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            return None
        return contents if mine else None

    def record_attempt(self, chain: str, text: str) -> None:
        """Leave the traceback of a failed attempt at a chain, by its identity; never read as a result."""
        folder = self.path / "attempts" / chain
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{time.time_ns()}.txt").write_text(text, encoding="utf-8")

    def last_error(self, chain: str) -> str:
        """The last line of the latest failed attempt at a chain, by its identity; empty when there is none."""
        attempts = sorted((self.path / "attempts" / chain).glob("*.txt"))
        if not attempts:
            return ""
        lines = [line for line in attempts[-1].read_text(encoding="utf-8").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""

    def publish(
        self, kind: str, inputs: dict[str, Any], write: Callable[[Path], None], provenance: dict[str, Any]
    ) -> Path:
        """Write a result all at once: `write` fills a temporary folder, which is synced and renamed.

        When another process was first its result is kept, and its folder returned.
        """
        folder = self.folder(kind, digest(inputs))
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.parent / f".partial-{folder.name[:16]}-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        partial.mkdir()
        try:
            write(partial)
            _write_json(partial / "input.json", inputs)
            _write_json(partial / "provenance.json", provenance)
            _write_json(partial / "manifest.json", _manifest(partial))
            _sync_folder(partial)
            if folder.exists() and not (folder / "manifest.json").is_file():
                shutil.rmtree(folder, ignore_errors=True)  # a leftover without a manifest does not exist
            with contextlib.suppress(OSError):  # refused only when another process published first
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if not (folder / "manifest.json").is_file():
            raise StoreError(f"{folder}: could not be published; is {self.path} writable and has space?")
        _sync(folder.parent)
        return folder

    def _set_aside(self, folder: Path, problem: str) -> None:
        damaged = self.path / "damaged" / f"{folder.parent.name}-{folder.name}-{time.time_ns()}"
        damaged.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process set it aside first
            folder.rename(damaged)
            (damaged / "problem.txt").write_text(problem + "\n", encoding="utf-8")

    # Weights: needed only until the picks exist, so they live and die beside their fit.

    def write_weights(self, fit_key: str, write: Callable[[Path], None]) -> str:
        """Publish a fit's weights beside it and return their digest."""
        folder = self.folder("fit", fit_key)
        partial = folder / f".{WEIGHTS}-{os.getpid()}-{time.time_ns()}"
        write(partial)
        value = _file_digest(partial)
        _sync(partial)
        _write_json(folder / "weights.json", {"sha256": value, "bytes": partial.stat().st_size})
        partial.rename(folder / WEIGHTS)
        return value

    def weights(self, fit_key: str) -> tuple[Path, str] | None:
        """Path and digest of a fit's weights; None when they are absent or damaged."""
        folder = self.folder("fit", fit_key)
        try:
            expected = str(json.loads((folder / "weights.json").read_text(encoding="utf-8"))["sha256"])
            return (folder / WEIGHTS, expected) if _file_digest(folder / WEIGHTS) == expected else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def drop_weights(self, fit_key: str) -> None:
        """Remove a fit's weights if they are there."""
        (self.folder("fit", fit_key) / WEIGHTS).unlink(missing_ok=True)

    # Records: small JSON files that are replaced whole.

    def write_record(self, relative: str, value: Any) -> None:
        """Replace a record, e.g. ``experiments/<name>/chains/<id>.json``, atomically."""
        path = self.path / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_json(path, value)

    def read_record(self, relative: str) -> Any:
        """A record, or None when there is none."""
        try:
            return json.loads((self.path / relative).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StoreError(f"{self.path / relative}: is not JSON ({error}); remove it and run again") from error

    def records(self, relative: str) -> list[str]:
        """Names of the records in a folder, without suffix, sorted."""
        return sorted(path.stem for path in (self.path / relative).glob("*.json"))

    def remove_record(self, relative: str) -> None:
        """Remove a record if it is there."""
        (self.path / relative).unlink(missing_ok=True)

    # Leases: who computes a result now.

    @contextlib.contextmanager
    def lease(self, kind: str, key: str) -> Iterator[None]:
        """Hold the right to compute a result; waits while another live holder has it, or until the result is there.

        A lease is a file that its holder touches; one not touched for LEASE_SECONDS is dead.
        """
        path = self.path / "leases" / f"{kind}-{key}"
        path.parent.mkdir(parents=True, exist_ok=True)
        while not (taken := _take(path)) and not self.has(kind, key):
            time.sleep(0.5)
        if not taken:
            yield
            return
        stop = threading.Event()
        beat = threading.Thread(target=_heartbeat, args=(path, stop), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            beat.join()
            if _holder(path) == _myself():  # it may have been taken over, were this process stopped for long
                path.unlink(missing_ok=True)

    def leased(self) -> dict[str, str]:
        """Live leases as "kind-key" -> holder."""
        folder = self.path / "leases"
        return {path.name: holder for path in folder.glob("*-*") if (holder := _holder(path))}


def _myself() -> str:
    return f"{socket.gethostname()} pid {os.getpid()}"


def _holder(path: Path) -> str:
    """Who holds a live lease; empty when nobody does."""
    try:
        alive = time.time() - path.stat().st_mtime < LEASE_SECONDS
        holder = path.read_text(encoding="utf-8") or "a process that has just taken it"
    except FileNotFoundError:
        return ""
    host, _, pid = holder.rpartition(" pid ")
    if host == socket.gethostname() and pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
        return ""  # its process is known to be gone
    return holder if alive else ""


def _take(path: Path) -> bool:
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(_myself())
        return True
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            seen = path.stat()
            if _holder(path) in ("", _myself()):
                _bury(path, seen)
        return False


def _bury(path: Path, seen: os.stat_result) -> None:
    """Remove a dead lease, and not the live one that another process has put in its place meanwhile."""
    grave = path.with_name(f".dead.{os.getpid()}.{time.time_ns()}")
    path.rename(grave)
    moved = grave.stat()
    if (moved.st_ino, moved.st_mtime_ns) != (seen.st_ino, seen.st_mtime_ns):
        with contextlib.suppress(FileExistsError):
            os.link(grave, path)
    grave.unlink()


def _heartbeat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(LEASE_SECONDS / 6):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _file_digest(path)} for path in files
    }


def _damage(folder: Path) -> str:
    """What contradicts the manifest; empty when nothing does."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        manifest = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        return f"manifest.json: {error}"
    for name, (size, sha256) in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name}: missing"
        if path.stat().st_size != size or _file_digest(path) != sha256:
            return f"{name}: other content than was published"
    return ""


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # twice as fast as a Path, and reports read a hundred thousand
        return file.readall()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
