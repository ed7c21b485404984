"""Storage backends: the interface, and local folders. Paths are relative and use slashes."""

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from pixelpick_ray.errors import StoreError
from pixelpick_ray.store.paths import MANIFEST

PARTIAL = ".partial-"
STALE_SECONDS = 86400.0

ADVICE = {
    errno.ENOSPC: "the disk is full; free space there, or give another --store, and run again",
    errno.EDQUOT: "the quota is used up; free space there, or give another --store, and run again",
    errno.EFBIG: "the file is larger than is allowed there; raise the limit, or give another --store, and run again",
    errno.EROFS: "the file system is read-only; mount it writable, or give another --store, and run again",
    errno.EACCES: "permission denied; let this user read and write there, or give another --store, and run again",
    errno.EPERM: "not permitted; let this user read and write there, or give another --store, and run again",
    errno.EIO: "input/output error; check the disk or the network file system, and run again",
    errno.ESTALE: "the network file system has lost the file; check it, and run again",
}


class Storage(Protocol):
    """Files by path. Absent files give None or empty values; raises StoreError if storage is unreachable or unwritable.

    `address` is for messages and has no credentials. `publishes_whole`: published folders appear atomically, so one
    without a manifest is damaged rather than still being written.
    """

    address: str
    publishes_whole: bool

    def read(self, path: str) -> bytes | None:
        """Return the content of a file, or None."""

    def read_each(self, paths: Sequence[str]) -> list[bytes | None]:
        """Return the contents of several files."""

    def age_seconds(self, path: str) -> float | None:
        """Return how long ago a file was written or refreshed, or None."""

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's entries, sorted."""

    def put(self, path: str, fill: Callable[[Path], None]) -> None:
        """Replace a file atomically by what `fill` writes to a local path."""

    def write(self, path: str, *parts: bytes) -> None:
        """Replace a file atomically."""

    def append(self, path: str, lines: Sequence[bytes]) -> None:
        """Append lines to a journal that only this process writes; they are durable on return."""

    def lines(self, path: str, start: int) -> list[bytes]:
        """Return the complete lines of a journal from line `start` on, without line ends."""

    def create(self, path: str, content: bytes) -> bool:
        """Create a file; return False if it already exists."""

    def refresh(self, path: str, content: bytes) -> None:
        """Reset the age of a file if it has this content."""

    def remove(self, path: str, content: bytes | None = None) -> None:
        """Remove a file if it exists and, if `content` is given, has that content."""

    def publish(self, path: str, fill: Callable[[Path], None]) -> None:
        """Publish the folder that `fill` writes, its manifest last; a published one is left as it is."""

    def fetch(self, path: str, names: Sequence[str]) -> Path:
        """Return a local folder with those of the named files that exist."""

    def move(self, source: str, target: str) -> bool:
        """Move a folder; return False if it does not exist or the target does."""

    def remove_folder(self, path: str) -> None:
        """Remove a folder if it exists; a half-removed one has no manifest."""


class LocalFiles:
    """Files in a local folder, or in one on a network file system."""

    publishes_whole = True

    def __init__(self, root: Path) -> None:
        self.root, self.address = root, str(root)
        self._tidied: set[Path] = set()

    def read(self, path: str) -> bytes | None:
        """Return the content of a file, or None."""
        try:
            # Reports read a hundred thousand files, and this is twice as fast as Path.read_bytes.
            with open(f"{self.address}/{path}", "rb", buffering=0) as file:
                return file.readall()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise explained(error, f"{self.address}/{path}") from error

    def read_each(self, paths: Sequence[str]) -> list[bytes | None]:
        """Return the contents of several files."""
        return [self.read(path) for path in paths]

    def age_seconds(self, path: str) -> float | None:
        """Return how long ago a file was written or refreshed, by the clocks of machine and file system, or None."""
        try:
            return time.time() - os.stat(f"{self.address}/{path}").st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise explained(error, f"{self.address}/{path}") from error

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's entries, sorted."""
        try:
            return sorted(name for name in os.listdir(self.root / folder) if not name.startswith(PARTIAL))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise explained(error, f"{self.address}/{folder}") from error

    def put(self, path: str, fill: Callable[[Path], None]) -> None:
        """Replace a file atomically, synced, by what `fill` writes to a local path."""
        with self._partial(path) as partial:
            fill(partial)
            _sync_path(partial)
            partial.replace(self.root / path)

    def write(self, path: str, *parts: bytes) -> None:
        """Replace a file atomically, synced."""

        def fill(partial: Path) -> None:
            with open(partial, "wb") as file:
                file.writelines(parts)

        self.put(path, fill)

    def append(self, path: str, lines: Sequence[bytes]) -> None:
        """Append lines to a journal that only this process writes, and sync it, and the folder too if it is new.

        A failed append is rolled back: readers must not find what is not durable.
        """
        content = b"".join(line + b"\n" for line in lines)
        target = self.root / path
        with self._told(path):
            is_new = not target.exists()
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "ab", buffering=0) as file:
                before = file.seek(0, os.SEEK_END)
                try:
                    if file.write(content) != len(content):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
                    sync(file.fileno())
                except OSError:
                    file.truncate(before)
                    raise
            if is_new:
                _sync_path(target.parent)

    def lines(self, path: str, start: int) -> list[bytes]:
        """Return the complete lines of a journal from line `start` on, without line ends."""
        return (self.read(path) or b"").split(b"\n")[start:-1]

    def create(self, path: str, content: bytes) -> bool:
        """Create a file; return False if it already exists. Of concurrent callers, exactly one succeeds."""
        with self._partial(path) as partial:
            partial.write_bytes(content)
            return _link(partial, self.root / path)

    def refresh(self, path: str, content: bytes) -> None:
        """Reset the age of a file if it has this content."""
        if self.read(path) == content:
            with self._told(path), contextlib.suppress(FileNotFoundError):
                os.utime(self.root / path)

    def remove(self, path: str, content: bytes | None = None) -> None:
        """Remove a file if it exists and, if `content` is given, has that content.

        A file that another process puts in its place meanwhile is left alone.
        """
        with self._told(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if content is None:
                (self.root / path).unlink()
            elif self.read(path) == content:
                grave = self._partial_path(path)
                (self.root / path).rename(grave)
                if grave.read_bytes() != content:
                    _link(grave, self.root / path)
                grave.unlink()

    def publish(self, path: str, fill: Callable[[Path], None]) -> None:
        """Publish the folder that `fill` writes, synced and then renamed; a published one is left as it is."""
        folder = self.root / path
        with self._partial(path) as partial:
            partial.mkdir()
            fill(partial)
            _sync_folder(partial)
            if not _rename(partial, folder) and folder.is_dir() and not (folder / MANIFEST).is_file():
                self._clear(path)
                _rename(partial, folder)
            _sync_path(folder.parent)

    def _clear(self, path: str) -> None:
        """Remove an incomplete result, but not a complete one that another process puts in its place meanwhile."""
        grave = self._partial_path(path)
        with contextlib.suppress(FileNotFoundError):
            (self.root / path).rename(grave)
            if (grave / MANIFEST).is_file():
                _rename(grave, self.root / path)
        shutil.rmtree(grave, ignore_errors=True)

    def fetch(self, path: str, names: Sequence[str]) -> Path:
        """Return the folder itself."""
        return self.root / path

    def move(self, source: str, target: str) -> bool:
        """Move a folder; return False if it does not exist or the target does."""
        with self._told(target):
            (self.root / target).parent.mkdir(parents=True, exist_ok=True)
            try:
                return _rename(self.root / source, self.root / target)
            except FileNotFoundError:
                return False

    def remove_folder(self, path: str) -> None:
        """Remove a folder if it exists, atomically for readers."""
        grave = self._partial_path(path)
        with self._told(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (self.root / path).rename(grave)
        shutil.rmtree(grave, ignore_errors=True)

    @contextlib.contextmanager
    def _partial(self, path: str) -> Iterator[Path]:
        """Yield a temporary path next to the target; remove it at the end if it still exists."""
        with self._told(path):
            partial = self._partial_path(path)
            partial.parent.mkdir(parents=True, exist_ok=True)
            if partial.parent not in self._tidied:
                self._tidied.add(partial.parent)
                remove_stale(partial.parent, PARTIAL)
            try:
                yield partial
            finally:
                remove_quietly(partial)

    def _partial_path(self, path: str) -> Path:
        target = self.root / path
        return target.parent / f"{PARTIAL}{target.name[:16]}-{process_stamp()}-{secrets.token_hex(4)}"

    def _told(self, path: str) -> contextlib.AbstractContextManager[None]:
        return telling(f"{self.address}/{path}", self.address)


@contextlib.contextmanager
def telling(where: str, root: str) -> Iterator[None]:
    """Turn file system errors below `root` into StoreErrors; other errors pass through."""
    try:
        yield
    except Exception as error:
        filename = getattr(error, "filename", None)
        mine = _number(error) in ADVICE if filename is None else str(filename).startswith(root)
        if not mine:
            raise
        raise explained(error, where) from error


def explained(error: Exception, where: str) -> StoreError:
    """Return a StoreError that says what happened, where, and what to do."""
    return StoreError(f"{where}: {ADVICE.get(_number(error), f'{error}; check the store, and run again')}")


def _number(error: Exception) -> int:
    """The errno of an error, 0 if none; the Rust library safetensors has it only in the message."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else 0


def remove_stale(folder: Path, prefix: str) -> None:
    """Remove temporary files in a folder whose process is known to be dead, or that are older than a day."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                with contextlib.suppress(OSError):
                    old = time.time() - entry.stat().st_mtime > STALE_SECONDS
                    if old or is_gone(entry.name.split("-")[-2]):
                        remove_quietly(Path(entry.path))


def remove_quietly(path: Path) -> None:
    """Remove a file or folder, ignoring errors."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


# Processes: which one left a file, and whether it is known to be dead.


def process_stamp() -> str:
    """Return an identifier of this process across machines: hash of boot and PID namespace, PID, start time."""
    return f"{_namespace()}.{os.getpid()}.{_started(os.getpid())}"


def is_gone(stamp: str) -> bool:
    """Whether the process of a stamp is known to be dead: it was in this PID namespace and no longer exists."""
    namespace, _, rest = stamp.partition(".")
    number, _, started = rest.partition(".")
    if not (namespace == _namespace() != "" and number.isdigit() and len(number) < 10):
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's process; its start time may be hidden
        return False
    return _started(int(number)) != started


@functools.cache
def _namespace() -> str:
    """Hash of the boot ID and the PID namespace; empty if the system does not provide them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return hashlib.sha256(f"{boot}{os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:12]
    except OSError:
        return ""


def _started(number: int) -> str:
    """Start time of a process in clock ticks; empty if it does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _link(source: Path, target: Path) -> bool:
    """Give a file a new name; return False if the name is taken."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            target.touch(exist_ok=False)
        except FileExistsError:
            return False
        source.replace(target)
    return True


def _rename(source: Path, target: Path) -> bool:
    """Rename a folder; return False if the target exists."""
    try:
        source.rename(target)
        return True
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise


# Errors of file systems that cannot sync a file or folder: old CIFS, shared folders of virtual machines, some FUSE.
UNSYNCED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EISDIR}


def sync(descriptor: int) -> None:
    """Sync a file or folder to disk, as far as its file system supports it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise


def _sync_path(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if path.is_dir() and error.errno in {*UNSYNCED, errno.EACCES}:  # its files are durable regardless
            return
        raise
    try:
        sync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync_path(path)
