"""Where a store keeps its bytes: the interface, and the files of a folder. Paths are relative, with slashes."""

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
    """Files by path. What is absent is None or empty; what cannot be reached or written is a StoreError.

    `address` is for messages: it has no credentials. `publishes_whole` says that a published folder appears all at
    once, so that one without a manifest has been damaged; elsewhere it may be just being written.
    """

    address: str
    publishes_whole: bool

    def read(self, path: str) -> bytes | None:
        """The content of a file."""

    def read_each(self, paths: Sequence[str]) -> list[bytes | None]:
        """The contents of files."""

    def age_seconds(self, path: str) -> float | None:
        """How long ago a file was written or refreshed."""

    def names(self, folder: str) -> list[str]:
        """Names of what lies in a folder, sorted."""

    def put(self, path: str, fill: Callable[[Path], None]) -> None:
        """Replace a file, all at once, by what `fill` writes to a local path."""

    def write(self, path: str, *parts: bytes) -> None:
        """Replace a file, all at once."""

    def append(self, path: str, lines: Sequence[bytes]) -> None:
        """Add lines to a journal that this process alone writes; they are safe when this returns."""

    def lines(self, path: str, start: int) -> list[bytes]:
        """The whole lines of a journal, without their ends, from that with the number `start` on."""

    def create(self, path: str, content: bytes) -> bool:
        """Write a file that is not there yet; False when it is there."""

    def refresh(self, path: str, content: bytes) -> None:
        """Make a file young again while it has this content."""

    def remove(self, path: str, content: bytes | None = None) -> None:
        """Remove a file if it is there, and has this content where one is given."""

    def publish(self, path: str, fill: Callable[[Path], None]) -> None:
        """Publish the folder that `fill` writes, its manifest last; one that is published already stays as it is."""

    def fetch(self, path: str, names: Sequence[str]) -> Path:
        """A local folder with those of the named files that are there."""

    def move(self, source: str, target: str) -> bool:
        """Move a folder; False when it is not there, or the target is."""

    def remove_folder(self, path: str) -> None:
        """Remove a folder if it is there; what is half removed has no manifest."""


class LocalFiles:
    """Files of a folder of this machine, or of one that is shared by a network file system."""

    publishes_whole = True

    def __init__(self, root: Path) -> None:
        self.root, self.address = root, str(root)
        self._tidied: set[Path] = set()

    def read(self, path: str) -> bytes | None:
        """The content of a file."""
        try:
            # Reports read a hundred thousand files, and this is twice as fast as a Path.
            with open(f"{self.address}/{path}", "rb", buffering=0) as file:
                return file.readall()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise explained(error, f"{self.address}/{path}") from error

    def read_each(self, paths: Sequence[str]) -> list[bytes | None]:
        """The contents of files."""
        return [self.read(path) for path in paths]

    def age_seconds(self, path: str) -> float | None:
        """How long ago a file was written or refreshed, by the clocks of this machine and of the file system."""
        try:
            return time.time() - os.stat(f"{self.address}/{path}").st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise explained(error, f"{self.address}/{path}") from error

    def names(self, folder: str) -> list[str]:
        """Names of what lies in a folder, sorted."""
        try:
            return sorted(name for name in os.listdir(self.root / folder) if not name.startswith(PARTIAL))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise explained(error, f"{self.address}/{folder}") from error

    def put(self, path: str, fill: Callable[[Path], None]) -> None:
        """Replace a file, all at once and synced, by what `fill` writes to a local path."""
        with self._partial(path) as partial:
            fill(partial)
            _sync_path(partial)
            partial.replace(self.root / path)

    def write(self, path: str, *parts: bytes) -> None:
        """Replace a file, all at once and synced."""

        def fill(partial: Path) -> None:
            with open(partial, "wb") as file:
                file.writelines(parts)

        self.put(path, fill)

    def append(self, path: str, lines: Sequence[bytes]) -> None:
        """Add lines to a journal that this process alone writes, synced; a new one with its name in the folder.

        An addition that fails is taken back: what is not safe must not be found there either.
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
        """The whole lines of a journal, without their ends, from that with the number `start` on."""
        return (self.read(path) or b"").split(b"\n")[start:-1]

    def create(self, path: str, content: bytes) -> bool:
        """Write a file that is not there yet; False when it is there. Of several at once one succeeds."""
        with self._partial(path) as partial:
            partial.write_bytes(content)
            return _link(partial, self.root / path)

    def refresh(self, path: str, content: bytes) -> None:
        """Make a file young again while it has this content."""
        if self.read(path) == content:
            with self._told(path), contextlib.suppress(FileNotFoundError):
                os.utime(self.root / path)

    def remove(self, path: str, content: bytes | None = None) -> None:
        """Remove a file if it is there, and has this content where one is given.

        A file that another process puts in its place meanwhile is not removed.
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
        """Publish the folder that `fill` writes: synced, then renamed; one that is published already stays as it is."""
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
        """Remove what is no result, and not the result that another process puts in its place meanwhile."""
        grave = self._partial_path(path)
        with contextlib.suppress(FileNotFoundError):
            (self.root / path).rename(grave)
            if (grave / MANIFEST).is_file():
                _rename(grave, self.root / path)
        shutil.rmtree(grave, ignore_errors=True)

    def fetch(self, path: str, names: Sequence[str]) -> Path:
        """The folder itself."""
        return self.root / path

    def move(self, source: str, target: str) -> bool:
        """Move a folder; False when it is not there, or the target is."""
        with self._told(target):
            (self.root / target).parent.mkdir(parents=True, exist_ok=True)
            try:
                return _rename(self.root / source, self.root / target)
            except FileNotFoundError:
                return False

    def remove_folder(self, path: str) -> None:
        """Remove a folder if it is there, at once for every reader."""
        grave = self._partial_path(path)
        with self._told(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (self.root / path).rename(grave)
        shutil.rmtree(grave, ignore_errors=True)

    @contextlib.contextmanager
    def _partial(self, path: str) -> Iterator[Path]:
        """A path beside the target for what is not finished, removed at the end if it is still there."""
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
    """Turn the errors of the file system at a root into a StoreError; what else goes wrong in the block passes."""
    try:
        yield
    except Exception as error:
        filename = getattr(error, "filename", None)
        mine = _number(error) in ADVICE if filename is None else str(filename).startswith(root)
        if not mine:
            raise
        raise explained(error, where) from error


def explained(error: Exception, where: str) -> StoreError:
    """A StoreError that says what happened where, and what to do."""
    return StoreError(f"{where}: {ADVICE.get(_number(error), f'{error}; check the store, and run again')}")


def _number(error: Exception) -> int:
    """The number of the system's error, 0 for none; a library written in Rust (safetensors) has it in its text only."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else 0


def remove_stale(folder: Path, prefix: str) -> None:
    """Remove what processes that are known to be dead, or nobody for a day, left unfinished in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                with contextlib.suppress(OSError):
                    old = time.time() - entry.stat().st_mtime > STALE_SECONDS
                    if old or is_gone(entry.name.split("-")[-2]):
                        remove_quietly(Path(entry.path))


def remove_quietly(path: Path) -> None:
    """Remove a file or a folder as far as that is possible."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


# Processes: which one left something, and whether it is known to be dead.


def process_stamp() -> str:
    """This process among all processes of all machines: boot and process namespace, number, start."""
    return f"{_namespace()}.{os.getpid()}.{_started(os.getpid())}"


def is_gone(stamp: str) -> bool:
    """Whether the process of a stamp is known to be dead: it was of this namespace, and is not there."""
    namespace, _, rest = stamp.partition(".")
    number, _, started = rest.partition(".")
    if not (namespace == _namespace() != "" and number.isdigit() and len(number) < 10):
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user; where it began may be hidden from this one
        return False
    return _started(int(number)) != started


@functools.cache
def _namespace() -> str:
    """Machine, boot and process namespace; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return hashlib.sha256(f"{boot}{os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:12]
    except OSError:
        return ""


def _started(number: int) -> str:
    """When a process began, in clock ticks; empty when there is none, or only a dead one that is not reaped yet."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _link(source: Path, target: Path) -> bool:
    """Give a file a name that nothing has yet; False when something has it."""
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
    """Rename a folder; False when the target is there."""
    try:
        source.rename(target)
        return True
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise


# What file systems say that cannot sync a file, or a folder: old CIFS, shared folders of virtual machines, some FUSE.
UNSYNCED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EISDIR}


def sync(descriptor: int) -> None:
    """Make a file or folder safe, as far as its file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise


def _sync_path(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if path.is_dir() and error.errno in {*UNSYNCED, errno.EACCES}:  # which keeps no file of it from being safe
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
