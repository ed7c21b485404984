"""Content-addressed results: a folder counts as a result only if it has a manifest.

A result holds ``input.json``, its payload, ``provenance.json`` and, written last, ``manifest.json``. Records are small
JSON files with a digest of their own, which are replaced atomically.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pixelpick_ray.config.canonical import canonical_json, digest
from pixelpick_ray.errors import DamagedError, StoreError
from pixelpick_ray.store import paths
from pixelpick_ray.store.backend import LocalFiles, Storage, explained
from pixelpick_ray.store.leases import Lease, holder, take
from pixelpick_ray.store.objects import Objects
from pixelpick_ray.store.paths import INPUT, MANIFEST, PROVENANCE, WEIGHTS, WEIGHTS_DIGEST, WEIGHTS_OF_RUN

PUBLISH_TRIES = 5
_WEIGHTS = (WEIGHTS, WEIGHTS_DIGEST, WEIGHTS_OF_RUN)  # not part of a result
PROBLEM = "problem.txt"
DIGEST = "digest"  # the field of a record that holds the digest of the others
T = TypeVar("T", bound=BaseModel)
R = TypeVar("R")


class Store:
    """Results by kind ("fit", "pick", "evaluation", "split") and key; any number of processes may share a store.

    `location` is a folder, or an object storage address such as ``s3://bucket/prefix``. All methods raise StoreError if
    storage is full, unreachable or not permitted.
    """

    def __init__(self, location: str | Path) -> None:
        self._storage = _open(location)
        self._damage: dict[str, str] = {}  # problems found by this process and left in place, by path

    @property
    def address(self) -> str:
        """Location for messages, without credentials."""
        return self._storage.address

    @property
    def is_folder(self) -> bool:
        """Whether the store is a folder on this machine."""
        return isinstance(self._storage, LocalFiles)

    @property
    def path(self) -> Path:
        """The folder of the store. Raises StoreError if it is on object storage."""
        if not isinstance(self._storage, LocalFiles):
            raise StoreError(
                f"{self.address}: is object storage, but a folder is needed here; give a folder with --store"
            )
        return self._storage.root

    def folder(self, kind: str, key: str) -> Path:
        """Return the folder that a result has or would have. Raises StoreError if the store is on object storage."""
        return self.path / paths.result(kind, key)

    def has(self, kind: str, key: str) -> bool:
        """Whether the result is published; its files are verified only when read."""
        return self._storage.age_seconds(paths.result(kind, key, MANIFEST)) is not None

    def read(self, kind: str, inputs: dict[str, Any]) -> Path | None:
        """Return a verified local folder of the result of these inputs; None if absent, or damaged and so set aside.

        In a folder, a result without a manifest is damaged, because results appear atomically. On object storage it may
        be in the middle of being written and counts as absent.
        """
        path = paths.result(kind, digest(inputs))
        folder, problem = self._fetched(path)
        if problem:
            self._set_aside(path, problem)
        if folder is None or problem:
            return None
        stored = json.loads((folder / INPUT).read_text(encoding="utf-8"))
        if canonical_json(stored) != canonical_json(inputs):
            raise StoreError(f"{self.address}/{path}: its inputs do not match its key; remove the folder and run again")
        return folder

    def files(self, kind: str, key: str, names: Sequence[str]) -> dict[str, bytes] | None:
        """Return the contents of named files of a result; None if the result or one of them is absent or damaged.

        Only the named files are verified; ``input.json``, if named, is also checked against the key.
        """
        where = [paths.result(kind, key, name) for name in (MANIFEST, *names)]
        manifest, *contents = self._storage.read_each(where)
        found = {name: content for name, content in zip(names, contents, strict=True) if content is not None}
        if manifest is None:
            problem = self._loss(paths.result(kind, key))
        else:
            problem = _contradiction(manifest, names, found, key)
        if problem and self.has(kind, key) == (manifest is not None):  # otherwise another process has just set it aside
            self.note_damage({paths.result(kind, key): problem})
        return found if manifest is not None and not problem and len(found) == len(names) else None

    def note_damage(self, problems: Mapping[str, str]) -> None:
        """Remember damage by path, for `found_damaged`, without setting anything aside."""
        self._damage |= problems

    @property
    def damage(self) -> Mapping[str, str]:
        """Problems found by this process and not set aside, by path."""
        return self._damage

    def intact(self, kind: str, key: str) -> bool:
        """Whether a result is published and all its files are unchanged."""
        path = paths.result(kind, key)
        entries, problem = self._entries(path)
        if problem:
            self.note_damage({path: problem})
        return entries is not None and self.files(kind, key, list(entries)) is not None

    def publish(
        self, kind: str, inputs: dict[str, Any], write: Callable[[Path], None], provenance: dict[str, Any]
    ) -> Path:
        """Publish a result atomically: `write` fills a temporary folder, which is then synced and renamed.

        Weights among its files appear with the result but are not part of it. If another process was first, its result
        is kept. Returns the result's folder. On object storage, without rename, the manifest is written last: processes
        publishing the same result at once may mix their files, which is detected on reading.
        """
        path = paths.result(kind, digest(inputs))

        def fill(folder: Path) -> None:
            write(folder)
            if (folder / WEIGHTS).is_file():
                _write_json(folder / WEIGHTS_DIGEST, _entry(folder / WEIGHTS))
            _write_json(folder / INPUT, inputs)
            _write_json(folder / PROVENANCE, provenance)
            _write_json(folder / MANIFEST, _manifest(folder))

        for _ in range(PUBLISH_TRIES):
            self._storage.publish(path, fill)
            entries, _ = self._entries(path)
            if entries is not None:
                return self._storage.fetch(path, [MANIFEST, *entries])
            # Another process has just moved it away to check it for damage.
        raise StoreError(
            f"{self.address}/{path}: could not be published; check that {self.address} is writable and has free "
            "space, and run again"
        )

    def discard(self, kind: str, key: str) -> None:
        """Remove a result if it exists; if the process is killed meanwhile, what is left does not count as a result."""
        self._storage.remove_folder(paths.result(kind, key))

    def damaged(self) -> list[str]:
        """List all damage, set aside or just found, such as "fit/KEY: PROBLEM (set aside as damaged/NAME)"."""
        aside = [self._damage_line(name) for name in self._storage.names(paths.DAMAGED) if name.count("-") == 2]
        return [*aside, *self.found_damaged]

    @property
    def found_damaged(self) -> list[str]:
        """Damage found by this process and not set aside, one line each."""
        return [f"{path}: {problem} (the next run will remake it)" for path, problem in self._damage.items()]

    def _damage_line(self, name: str) -> str:
        where = paths.damaged(name)
        kind, key, _ = name.split("-")
        problem = self._storage.read(paths.damaged(name, PROBLEM))
        text = (problem or b"damaged").decode("utf-8", "replace").strip()
        return f"{text if kind == 'record' else f'{kind}/{key}: {text}'} (set aside as {where})"

    def _set_aside(self, path: str, problem: str) -> None:
        """Move a damaged result away, unless another process has done so or has remade it meanwhile."""
        self._damage.pop(path, None)
        name = _new_name(path.replace("/", "-"))
        aside = paths.damaged(name)
        if not self._storage.move(path, aside):
            return
        if self._fetched(aside)[1]:
            self._storage.write(paths.damaged(name, PROBLEM), f"{problem}\n".encode())
        elif not self._storage.move(aside, path):
            self._storage.remove_folder(aside)

    def _fetched(self, path: str) -> tuple[Path | None, str]:
        """Local folder of what is published at a path, None if nothing is, and what contradicts its manifest."""
        entries, problem = self._entries(path)
        if entries is None:
            return None, problem
        folder = self._storage.fetch(path, [MANIFEST, *entries])
        return folder, _damage(folder, entries)

    def _entries(self, path: str) -> tuple[dict[str, tuple[int, str]] | None, str]:
        """Size and digest of every file in the manifest of a published folder, and what is wrong with the manifest."""
        manifest = self._storage.read(f"{path}/{MANIFEST}")
        if manifest is None:
            return None, self._loss(path)
        try:
            value = json.loads(manifest)
            entries = {name: (entry["bytes"], entry["sha256"]) for name, entry in value.items()}
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            return None, f"{MANIFEST}: {type(error).__name__}: {error}"
        if manifest != _json(value):
            return None, f"{MANIFEST}: content differs from what was published"
        if not {INPUT, PROVENANCE} <= entries.keys() or not all(_is_inside(name) for name in entries):
            return None, f"{MANIFEST}: lists unexpected files"
        return entries, ""

    def _loss(self, path: str) -> str:
        """What is wrong with a path that has no manifest: empty if there is no folder or it may be being written."""
        lost = self._storage.publishes_whole and self._storage.names(path)
        return f"{MANIFEST}: missing" if lost else ""

    # Weights have a lifetime of their own, next to their fit. A run marks those that only it needs with its name.

    def write_weights(self, fit_key: str, write: Callable[[Path], None], *, run: str | None = None) -> str:
        """Write the weights of a published fit again, for good or only for a `run`; return their SHA-256."""
        entry: dict[str, Any] = {}

        def fill(path: Path) -> None:
            write(path)
            entry.update(_entry(path))
            self._storage.write(paths.result("fit", fit_key, WEIGHTS_DIGEST), _json(entry))

        if run is not None:
            self._storage.write(paths.result("fit", fit_key, WEIGHTS_OF_RUN), run.encode())
        self._storage.put(paths.result("fit", fit_key, WEIGHTS), fill)
        if run is None:
            self.keep_weights(fit_key)
        return str(entry["sha256"])

    def weights(self, fit_key: str) -> tuple[Path, str] | None:
        """Return the local path and the SHA-256 of a fit's weights; None if absent or damaged."""
        try:
            entry = json.loads(self._storage.read(paths.result("fit", fit_key, WEIGHTS_DIGEST)) or b"")
            expected = str(entry["sha256"])
            path = self._storage.fetch(paths.result("fit", fit_key), [WEIGHTS]) / WEIGHTS
            return (path, expected) if _measured(path)[1] == expected else None
        except (ValueError, KeyError, TypeError):
            return None

    def keep_weights(self, fit_key: str) -> None:
        """Keep a fit's weights for good, so that no run removes them."""
        self._storage.remove(paths.result("fit", fit_key, WEIGHTS_OF_RUN))

    def drop_weights(self, fit_key: str, run: str) -> None:
        """Remove a fit's weights if they were kept only for this `run`, or for one that is no longer alive."""
        mark = self._storage.read(paths.result("fit", fit_key, WEIGHTS_OF_RUN))
        maker = None if mark is None else mark.decode("utf-8", "replace")
        if maker is not None and (maker == run or not holder(self._storage, paths.lease(f"run-{maker}"))):
            self._storage.remove(paths.result("fit", fit_key, WEIGHTS))
            self._storage.remove(paths.result("fit", fit_key, WEIGHTS_OF_RUN))

    # Unfinished fits: what an interrupted training needs to resume, replaced as it advances.

    def write_unfinished(self, fit_key: str, content: bytes) -> None:
        """Replace the saved progress of a training, atomically and synced."""
        self._storage.write(paths.unfinished(fit_key), _digest(content).encode(), b"\n", content)

    def unfinished(self, fit_key: str) -> bytes | None:
        """Return the saved progress of a training; None if absent, or damaged and so removed."""
        stored = self._storage.read(paths.unfinished(fit_key))
        if stored is None:
            return None
        sha256, _, content = stored.partition(b"\n")
        if sha256 == _digest(content).encode():
            return content
        self.drop_unfinished(fit_key)
        return None

    def drop_unfinished(self, fit_key: str) -> None:
        """Remove the saved progress of a training, if any."""
        self._storage.remove(paths.unfinished(fit_key))

    # Records: small JSON files that are replaced atomically.

    def write_record(self, path: str, value: Mapping[str, Any]) -> None:
        """Replace a record atomically; one that this process found damaged is set aside first."""
        if path in self._damage:
            name = _new_name(f"record-{_digest(path.encode())[:16]}")
            self._storage.write(paths.damaged(name, "record.json"), self._storage.read(path) or b"")
            problem = f"{path}: {self._damage.pop(path)}\n"
            self._storage.write(paths.damaged(name, PROBLEM), problem.encode())
        self._storage.write(path, _json({**value, DIGEST: digest(value)}))

    def read_record(self, path: str) -> dict[str, Any] | None:
        """Return a record, or None if there is none. Raises DamagedError if it is not as it was written."""
        content = self._storage.read(path)
        if content is None:
            return None
        try:
            value = json.loads(content)
        except ValueError as error:
            raise DamagedError(f"{self.address}/{path}", f"is not JSON ({error})") from error
        if not isinstance(value, dict):
            raise DamagedError(f"{self.address}/{path}", "is not a mapping")
        written = value.pop(DIGEST, None)  # absent in older records
        if written is not None and written != digest(value):
            raise DamagedError(f"{self.address}/{path}", "content differs from what was written")
        return value

    def find_record(self, path: str, kind: type[T]) -> T | None:
        """Return a record as its type; None if absent or damaged: then `damaged` lists it until it is written again."""
        return self.parse_record(path, lambda value: kind.model_validate_json(canonical_json(value)))

    def parse_record(self, path: str, parse: Callable[[dict[str, Any]], R]) -> R | None:
        """Like `find_record`, but with a function that parses the fields; its errors mean the record is damaged."""
        try:
            value = self.read_record(path)
            return None if value is None else parse(value)
        except DamagedError as error:
            self._damage[path] = error.problem
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            self._damage[path] = f"is not valid ({where}: {first['msg']})"
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._damage[path] = f"is not valid ({error!r})"
        return None

    def records(self, folder: str) -> list[str]:
        """Return the names of the records in a folder, without suffix, sorted."""
        return [name.removesuffix(".json") for name in self.names(folder) if name.endswith(".json")]

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's entries, sorted."""
        return self._storage.names(folder)

    def write_text(self, path: str, text: str) -> None:
        """Replace a text file atomically."""
        self._storage.write(path, text.encode())

    def remove_record(self, path: str) -> None:
        """Remove a record if it exists."""
        self._storage.remove(path)

    # Journals: append-only lines, each journal written by one process.

    def append_lines(self, path: str, values: Sequence[Any]) -> None:
        """Append JSON lines to a journal that only this process writes; they are durable on return."""
        self._storage.append(path, [canonical_json(value).encode("ascii") for value in values])

    def lines(self, path: str, *, start: int = 0) -> list[Any]:
        """Return the parsed lines of a journal from line `start` on. Raises StoreError for a damaged line.

        A half-written last line, which a killed process leaves and which was never acknowledged, is ignored.
        """
        found = []
        for number, line in enumerate(self._storage.lines(path, start), start=start + 1):
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise StoreError(
                    f"{self.address}/{path}: line {number} is damaged ({error}); correct or remove this line"
                ) from error
        return found

    # Failures

    def record_attempt(self, chain: str, text: str) -> None:
        """Store the traceback of a failed attempt at a chain, by the chain's identity.

        Errors of the store are ignored, lest they hide the failure itself.
        """
        with contextlib.suppress(StoreError):
            self._storage.write(paths.attempts(chain, f"{time.time_ns()}.txt"), text.encode())

    def last_error(self, chain: str) -> str:
        """Return the last traceback line of a chain's latest failed attempt; empty if there is none."""
        attempts = [name for name in self.names(paths.attempts(chain)) if name.endswith(".txt")]
        text = self._storage.read(paths.attempts(chain, attempts[-1])) if attempts else None
        lines = [line for line in (text or b"").decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""

    # Leases: who is computing a result.

    def take(self, kind: str, key: str) -> Lease | None:
        """Take the lease on a result, to be released by ``with``; return None while another live holder has it."""
        return take(self._storage, paths.lease(f"{kind}-{key}"))

    def leased(self) -> dict[str, str]:
        """Return the holders of live leases by "kind-key"."""
        names = self.names(paths.LEASES)
        found = {name: holder(self._storage, paths.lease(name)) for name in names}
        return {name: who for name, who in found.items() if who}

    def has_lease(self, kind: str, key: str) -> bool:
        """Whether a lease exists, live or expired."""
        return self._storage.age_seconds(paths.lease(f"{kind}-{key}")) is not None

    def drop_dead_leases(self) -> None:
        """Remove leases left by killed processes."""
        for path in map(paths.lease, self.names(paths.LEASES)):
            content = self._storage.read(path)
            if content is not None and not holder(self._storage, path):
                self._storage.remove(path, content)


def _open(location: str | Path) -> Storage:
    where = paths.checked(str(location))
    return Objects(where) if "://" in where else LocalFiles(Path(where))


def _new_name(name: str) -> str:
    """Name not yet used by anything set aside."""
    return f"{name}-{time.time_ns()}"


def _is_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/") and "\0" not in name


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _write_json(path: Path, value: Any) -> None:
    path.write_bytes(_json(value))


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of every file of a result, weights excluded."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)): path for path in files}
    return {name: _entry(path) for name, path in names.items() if name not in _WEIGHTS}


def _entry(path: Path) -> dict[str, Any]:
    size, sha256 = _measured(path)
    return {"bytes": size, "sha256": sha256}


def _contradiction(manifest: bytes, names: Sequence[str], found: Mapping[str, bytes], key: str) -> str:
    """How the named files, of which these were found, contradict a manifest; empty if they do not."""
    try:
        expected = {name: entry["sha256"] for name, entry in json.loads(manifest).items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        return f"{MANIFEST}: {type(error).__name__}: {error}"
    for name in names:
        if name not in found and name in expected:
            return f"{name}: missing"
        if name in found and name not in expected:
            return f"{MANIFEST}: does not name {name}"
        if name in found and _digest(found[name]) != expected[name]:
            return f"{name}: content differs from what was published"
    if INPUT in found and digest(json.loads(found[INPUT])) != key:
        return f"{INPUT}: of another key"
    return ""


def _damage(folder: Path, entries: dict[str, tuple[int, str]]) -> str:
    """How the files contradict the manifest's entries; empty if they do not."""
    for name, (size, sha256) in entries.items():
        found = _measured(folder / name)
        if not found[1]:
            return f"{name}: missing"
        if found != (size, sha256):
            return f"{name}: content differs from what was published"
    return ""


def _measured(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file; the latter is empty if it is absent. Raises StoreError if unreadable.

    The file is opened only once, because another process may set the folder aside at any moment.
    """
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return 0, ""
    except OSError as error:
        raise explained(error, str(path)) from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
