"""Content-addressed results: a folder with a manifest exists, anything else does not.

Layout: ``<kind>/<key>/`` holds ``input.json``, the payload, ``provenance.json`` and, written last, ``manifest.json``;
the weights of a fit lie beside them in ``weights.safetensors``, checked by themselves, and may be removed at any time.
``experiments/<name>-<digest>/`` records which keys an experiment's chains have reached. ``leases/`` says who computes,
``unfinished/`` has the fits in training, ``attempts/`` the tracebacks of failures, ``damaged/`` what was set aside.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pixelpick_ray.config.canonical import canonical_json, digest
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.errors import StoreError
from pixelpick_ray.leases import Lease, holder, take
from pixelpick_ray.objects import Objects
from pixelpick_ray.storage import MANIFEST, LocalFiles, Storage, explained

PUBLISH_TRIES = 5
WEIGHTS, WEIGHTS_DIGEST = "weights.safetensors", "weights.json"


def experiment_folder(experiment: Experiment) -> str:
    """Folder of an experiment's records, relative to the store."""
    return f"experiments/{experiment.name}-{experiment.identity()[:16]}"


def run_lease(experiment: Experiment) -> str:
    """How the names of the leases of an experiment's runs begin, after their kind, "run"."""
    return f"{experiment.identity()[:16]}-"


class Store:
    """Results by kind ("fit", "pick", "evaluation", "split") and key; any number of processes may use one store.

    `location` is a folder, or the address of object storage such as ``s3://bucket/prefix``. What cannot be read or
    written for lack of space or permission is a StoreError.
    """

    def __init__(self, location: str | Path) -> None:
        self._storage = _open(location)

    @property
    def address(self) -> str:
        """Where it is, for messages: without the credentials that a location may have."""
        return self._storage.address

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder that this machine sees."""
        return isinstance(self._storage, LocalFiles)

    @property
    def path(self) -> Path:
        """The folder of a store that is one."""
        if not isinstance(self._storage, LocalFiles):
            raise StoreError(f"{self.address}: is not a folder")
        return self._storage.root

    def folder(self, kind: str, key: str) -> Path:
        """Where a result lies or would lie in a store that is a folder."""
        return self.path / kind / key

    def has(self, kind: str, key: str) -> bool:
        """Whether the result is published; its files are verified when they are read."""
        return self._storage.age_seconds(f"{kind}/{key}/{MANIFEST}") is not None

    def read(self, kind: str, inputs: dict[str, Any]) -> Path | None:
        """A verified local folder of the result of these inputs; None if absent, or damaged and so set aside.

        In a folder, one without a manifest is damaged, because results appear there all at once. On object storage it
        may be just being written, and is absent.
        """
        path = f"{kind}/{digest(inputs)}"
        folder, problem = self._fetched(path)
        if problem:
            self._set_aside(path, problem)
        if folder is None or problem:
            return None
        stored = json.loads((folder / "input.json").read_text(encoding="utf-8"))
        if canonical_json(stored) != canonical_json(inputs):
            raise StoreError(
                f"{self.address}/{path}: was made from other inputs than its key says; remove the folder and run again"
            )
        return folder

    def files(self, kind: str, key: str, names: Sequence[str]) -> dict[str, bytes] | None:
        """Contents of files of a result by its key; None when the result or one of them is absent or damaged.

        What is not asked for is not verified; "input.json" is verified to be that of the key.
        """
        paths = [f"{kind}/{key}/{name}" for name in (MANIFEST, *names)]
        manifest, *contents = self._storage.read_each(paths)
        found = {name: content for name, content in zip(names, contents, strict=True) if content is not None}
        if manifest is None or len(found) < len(names):
            return None
        try:
            entries = json.loads(manifest)
            intact = all(_digest(content) == entries[name]["sha256"] for name, content in found.items())
            mine = intact and ("input.json" not in found or digest(json.loads(found["input.json"])) == key)
        except (ValueError, AttributeError, KeyError, TypeError):
            return None
        return found if mine else None

    def intact(self, kind: str, key: str) -> bool:
        """Whether a result is published and every file of it is as published."""
        entries, _ = self._entries(f"{kind}/{key}")
        return entries is not None and self.files(kind, key, list(entries)) is not None

    def publish(
        self, kind: str, inputs: dict[str, Any], write: Callable[[Path], None], provenance: dict[str, Any]
    ) -> Path:
        """Write a result all at once: `write` fills a temporary folder, which is synced and renamed.

        Weights that it leaves there appear with the result, and are no part of it. When another process was first its
        result is kept, and its folder returned. On object storage, which has no rename, the manifest is written last:
        of two that publish one result at the same time the files may mix, which is found when it is read.
        """
        path = f"{kind}/{digest(inputs)}"

        def fill(folder: Path) -> None:
            write(folder)
            if (folder / WEIGHTS).is_file():
                _write_json(folder / WEIGHTS_DIGEST, _entry(folder / WEIGHTS))
            _write_json(folder / "input.json", inputs)
            _write_json(folder / "provenance.json", provenance)
            _write_json(folder / MANIFEST, _manifest(folder))

        for _ in range(PUBLISH_TRIES):
            self._storage.publish(path, fill)
            entries, _ = self._entries(path)
            if entries is not None:
                return self._storage.fetch(path, [MANIFEST, *entries])
            # Another process has just moved it away, to see whether it is what it had found damaged.
        raise StoreError(f"{self.address}/{path}: could not be published; is {self.address} writable and has space?")

    def discard(self, kind: str, key: str) -> None:
        """Remove a result if it is there; what a kill leaves of it does not exist."""
        self._storage.remove_folder(f"{kind}/{key}")

    def damaged(self) -> list[str]:
        """What was found damaged, one line a result: "fit/<key>: <problem> (set aside as damaged/<name>)"."""
        return [self._damage_line(name) for name in self._storage.names("damaged") if name.count("-") == 2]

    def _damage_line(self, name: str) -> str:
        kind, key, _ = name.split("-")
        problem = self._storage.read(f"damaged/{name}/problem.txt")
        told = (problem or b"damaged").decode("utf-8", "replace").strip()
        return f"{kind}/{key}: {told} (set aside as damaged/{name})"

    def _set_aside(self, path: str, problem: str) -> None:
        """Move a damaged result away, unless another process has done it, or has made it again meanwhile."""
        aside = f"damaged/{path.replace('/', '-')}-{time.time_ns()}"
        if not self._storage.move(path, aside):
            return
        if self._fetched(aside)[1]:
            self._storage.write(f"{aside}/problem.txt", f"{problem}\n".encode())
        elif not self._storage.move(aside, path):
            self._storage.remove_folder(aside)

    def _fetched(self, path: str) -> tuple[Path | None, str]:
        """A local folder of what is published at a path, None when nothing is, and what contradicts its manifest."""
        entries, problem = self._entries(path)
        if entries is None:
            return None, problem
        folder = self._storage.fetch(path, [MANIFEST, *entries])
        return folder, _damage(folder, entries)

    def _entries(self, path: str) -> tuple[dict[str, tuple[int, str]] | None, str]:
        """Size and digest of every file that the manifest of a published folder names, and what is wrong with it."""
        manifest = self._storage.read(f"{path}/{MANIFEST}")
        if manifest is None:
            lost = self._storage.publishes_whole and self._storage.names(path)
            return None, f"{MANIFEST}: missing" if lost else ""
        try:
            value = json.loads(manifest)
            entries = {name: (entry["bytes"], entry["sha256"]) for name, entry in value.items()}
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            return None, f"{MANIFEST}: {type(error).__name__}: {error}"
        if manifest != _json(value):
            return None, f"{MANIFEST}: other content than was published"
        if not {"input.json", "provenance.json"} <= entries.keys() or not all(_is_inside(name) for name in entries):
            return None, f"{MANIFEST}: names other files than a result has"
        return entries, ""

    # Weights: needed only until the picks exist, so they live and die beside their fit.

    def write_weights(self, fit_key: str, write: Callable[[Path], None]) -> str:
        """Write the weights of a published fit again and return their digest."""
        entry: dict[str, Any] = {}

        def fill(path: Path) -> None:
            write(path)
            entry.update(_entry(path))
            self.write_record(f"fit/{fit_key}/{WEIGHTS_DIGEST}", entry)

        self._storage.put(f"fit/{fit_key}/{WEIGHTS}", fill)
        return str(entry["sha256"])

    def weights(self, fit_key: str) -> tuple[Path, str] | None:
        """Local path and digest of a fit's weights; None when they are absent or damaged."""
        try:
            expected = str(json.loads(self._storage.read(f"fit/{fit_key}/{WEIGHTS_DIGEST}") or b"")["sha256"])
            path = self._storage.fetch(f"fit/{fit_key}", [WEIGHTS]) / WEIGHTS
            return (path, expected) if _file_digest(path) == expected else None
        except (ValueError, KeyError, TypeError):
            return None

    def drop_weights(self, fit_key: str) -> None:
        """Remove a fit's weights if they are there."""
        self._storage.remove(f"fit/{fit_key}/{WEIGHTS}")

    # Unfinished fits: what a training needs to go on, private to it, replaced as it goes.

    def write_unfinished(self, fit_key: str, content: bytes) -> None:
        """Replace what a fit in training needs to go on, all at once and synced."""
        self._storage.write(f"unfinished/{fit_key}", _digest(content).encode(), b"\n", content)

    def unfinished(self, fit_key: str) -> bytes | None:
        """What a fit in training needs to go on; None when it is absent, or damaged and therefore removed."""
        stored = self._storage.read(f"unfinished/{fit_key}")
        if stored is None:
            return None
        sha256, _, content = stored.partition(b"\n")
        if sha256 == _digest(content).encode():
            return content
        self.drop_unfinished(fit_key)
        return None

    def drop_unfinished(self, fit_key: str) -> None:
        """Remove what a fit in training needed if it is there."""
        self._storage.remove(f"unfinished/{fit_key}")

    # Records: small JSON files that are replaced whole.

    def write_record(self, relative: str, value: Any) -> None:
        """Replace a record, e.g. ``experiments/<name>/chains/<id>.json``, atomically."""
        self._storage.write(relative, _json(value))

    def read_record(self, relative: str) -> Any:
        """A record, or None when there is none."""
        content = self._storage.read(relative)
        try:
            return None if content is None else json.loads(content)
        except ValueError as error:
            raise StoreError(f"{self.address}/{relative}: is not JSON ({error}); remove it and run again") from error

    def records(self, relative: str) -> list[str]:
        """Names of the records in a folder, without suffix, sorted."""
        return [name.removesuffix(".json") for name in self.names(relative) if name.endswith(".json")]

    def names(self, relative: str) -> list[str]:
        """Names of what lies in a folder, sorted."""
        return self._storage.names(relative)

    def remove_record(self, relative: str) -> None:
        """Remove a record if it is there."""
        self._storage.remove(relative)

    # Journals: lines that are added and never changed, each journal by one process.

    def append_lines(self, relative: str, values: Sequence[Any]) -> None:
        """Add lines of JSON to a journal that this process alone writes; they are safe when this returns."""
        self._storage.append(relative, [canonical_json(value).encode("ascii") for value in values])

    def lines(self, relative: str, *, start: int = 0) -> list[Any]:
        """The lines of a journal, from that with the number `start` on.

        One that a killed process left half written, which nobody was promised, is none.
        """
        found = []
        for number, line in enumerate(self._storage.lines(relative, start), start=start + 1):
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise StoreError(
                    f"{self.address}/{relative}: line {number} is damaged ({error}); correct or remove this line"
                ) from error
        return found

    # Failures

    def record_attempt(self, chain: str, text: str) -> None:
        """Leave the traceback of a failed attempt at a chain, by its identity; never read as a result.

        A store that cannot take it does not: the failure itself must be told, not that of its record.
        """
        with contextlib.suppress(StoreError):
            self._storage.write(f"attempts/{chain}/{time.time_ns()}.txt", text.encode())

    def last_error(self, chain: str) -> str:
        """The last line of the latest failed attempt at a chain, by its identity; empty when there is none."""
        attempts = [name for name in self.names(f"attempts/{chain}") if name.endswith(".txt")]
        text = self._storage.read(f"attempts/{chain}/{attempts[-1]}") if attempts else None
        lines = [line for line in (text or b"").decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""

    # Leases: who computes a result now.

    def take(self, kind: str, key: str) -> Lease | None:
        """The right to compute a result, to be released by `with`; None while another live holder has it."""
        return take(self._storage, f"leases/{kind}-{key}")

    def leased(self) -> dict[str, str]:
        """Live leases as "kind-key" -> holder."""
        found = {name: holder(self._storage, f"leases/{name}") for name in self.names("leases")}
        return {name: who for name, who in found.items() if who}


def absolute(location: str) -> str:
    """The same location for a process that runs in another folder."""
    return location if "://" in location else str(Path(location).resolve())


def _open(location: str | Path) -> Storage:
    return Objects(str(location)) if "://" in str(location) else LocalFiles(Path(location))


def _is_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/") and "\0" not in name


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _write_json(path: Path, value: Any) -> None:
    path.write_bytes(_json(value))


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of every file of a result: the weights are none."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)): path for path in files}
    return {name: _entry(path) for name, path in names.items() if name not in (WEIGHTS, WEIGHTS_DIGEST)}


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _file_digest(path)}


def _damage(folder: Path, entries: dict[str, tuple[int, str]]) -> str:
    """What contradicts the manifest; empty when nothing does."""
    for name, (size, sha256) in entries.items():
        found = _file_digest(folder / name)
        if not found:
            return f"{name}: missing"
        if found != sha256 or (folder / name).stat().st_size != size:
            return f"{name}: other content than was published"
    return ""


def _file_digest(path: Path) -> str:
    """The digest of a file's content; empty when it is not there. StoreError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise explained(error, str(path)) from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
