"""Object storage backend, on pyarrow file systems: no rename, no exclusive creation, no folders.

Guaranteed: an object is replaced atomically; a result exists once its manifest does, which is written last; reads are
verified. Not guaranteed: two processes that publish the same result at the same moment may mix their files, which is
detected on reading, and the result is made again; two that take the same lease at the same moment may both get it and
duplicate work. A lease's age is measured by the storage's clock.
"""

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pixelpick_ray.errors import SpecError, StoreError
from pixelpick_ray.store.backend import process_stamp, remove_stale, telling
from pixelpick_ray.store.paths import MANIFEST

SCRATCH = "pixelpick-ray-"
CONNECTIONS = 16  # objects read or written concurrently
SETTLE_SECONDS = 0.5  # delay after which concurrent creators of an object check who won


class Objects:
    """Objects below an address such as ``s3://bucket/prefix?region=...``; credentials from it or the environment."""

    publishes_whole = False

    def __init__(self, location: str) -> None:
        self._location = location
        self._appended: dict[str, int] = {}  # lines that this process has appended, by journal
        parts = urlsplit(location)
        self.address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return Objects, (self._location,)  # every process opens its own connection

    @functools.cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system and the path of the store in it."""
        try:
            from pyarrow.fs import FileSystem
        except ImportError as error:
            raise SpecError(f"--store {self.address}: object storage needs pyarrow; pip install pyarrow") from error
        try:
            system, root = FileSystem.from_uri(self._location)
        except ValueError as error:
            text = str(error).replace(self._location, self.address)  # which may contain credentials
            raise SpecError(
                f"--store {self.address}: {text}; give a folder, or an address such as s3://bucket/prefix"
            ) from error
        except OSError as error:
            raise self._explained(error, "") from error
        return system, root.rstrip("/")

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(CONNECTIONS)

    def _at(self, path: str) -> str:
        return f"{self._opened[1]}/{path}".rstrip("/")

    def read(self, path: str) -> bytes | None:
        """Return the content of an object, or None."""
        with self._told(path), contextlib.suppress(FileNotFoundError):
            with self._opened[0].open_input_stream(self._at(path), compression=None) as stream:
                return bytes(stream.read())
        return None

    def read_each(self, paths: Sequence[str]) -> list[bytes | None]:
        """Return the contents of several objects, read concurrently."""
        return list(self._pool.map(self.read, paths))

    def age_seconds(self, path: str) -> float | None:
        """Return how long ago an object was written, by the storage's clock, often in whole seconds, or None."""
        with self._told(path):
            found = self._opened[0].get_file_info(self._at(path))
        return time.time() - found.mtime_ns / 1e9 if found.is_file else None

    def names(self, folder: str) -> list[str]:
        """Return the names of the entries below a path, sorted."""
        return sorted({name.split("/")[0] for name in self._listed(folder, recursive=False)})

    def _listed(self, folder: str, *, recursive: bool) -> list[str]:
        from pyarrow.fs import FileSelector, FileType

        with self._told(folder):
            selector = FileSelector(self._at(folder), allow_not_found=True, recursive=recursive)
            found = self._opened[0].get_file_info(selector)
        start = len(self._at(folder)) + 1
        return [one.path[start:] for one in found if not (recursive and one.type == FileType.Directory)]

    def put(self, path: str, fill: Callable[[Path], None]) -> None:
        """Replace an object atomically by what `fill` writes to a local path."""
        with _scratch() as folder:
            with telling(str(folder), str(folder)):
                fill(folder / "file")
            self._upload(folder / "file", path)

    def write(self, path: str, *parts: bytes) -> None:
        """Replace an object atomically."""
        with self._told(path), self._writing(path) as stream:
            for part in parts:
                stream.write(part)

    def append(self, path: str, lines: Sequence[bytes]) -> None:
        """Append lines to a journal that only this process writes, as a new object named by its first line's number.

        Objects appear atomically and are never changed afterwards.
        """
        number = self._appended.get(path, 0)
        self.write(f"{path}/{number:012d}", *(line + b"\n" for line in lines))
        self._appended[path] = number + len(lines)

    def lines(self, path: str, start: int) -> list[bytes]:
        """Return the complete lines of a journal from line `start` on, without line ends."""
        numbers = [int(name) for name in self.names(path) if name.isdigit()]
        skipped = sum(number <= start for number in numbers[1:])  # objects that end before line `start`
        wanted = numbers[skipped:]
        contents = self.read_each([f"{path}/{number:012d}" for number in wanted])
        found = [line for content in contents for line in (content or b"").split(b"\n")[:-1]]
        return found[max(0, start - wanted[0]) :] if wanted else []

    def create(self, path: str, content: bytes) -> bool:
        """Create an object; return False if it already exists. Of concurrent callers, usually one succeeds."""
        if self.read(path) is not None:
            return False
        self.write(path, content)
        time.sleep(SETTLE_SECONDS)
        return self.read(path) == content

    def refresh(self, path: str, content: bytes) -> None:
        """Reset the age of an object if it has this content."""
        if self.read(path) == content:
            self.write(path, content)

    def remove(self, path: str, content: bytes | None = None) -> None:
        """Remove an object if it exists and, if `content` is given, has that content."""
        if content is None or self.read(path) == content:
            with self._told(path), contextlib.suppress(FileNotFoundError):
                self._opened[0].delete_file(self._at(path))

    def publish(self, path: str, fill: Callable[[Path], None]) -> None:
        """Publish the folder that `fill` writes, its manifest last; a published one is left as it is."""
        with _scratch() as folder:
            with telling(str(folder), str(folder)):
                fill(folder)
            if self.age_seconds(f"{path}/{MANIFEST}") is not None:
                return
            names = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
            names.remove(MANIFEST)
            self._each(lambda name: self._upload(folder / name, f"{path}/{name}"), names)
            self._upload(folder / MANIFEST, f"{path}/{MANIFEST}")

    def fetch(self, path: str, names: Sequence[str]) -> Path:
        """Return a local folder with those of the named objects that exist, kept for the lifetime of this process."""
        folder = _new_scratch()

        def download(name: str) -> None:
            with self._told(f"{path}/{name}"), contextlib.suppress(FileNotFoundError):
                with self._opened[0].open_input_stream(self._at(f"{path}/{name}"), compression=None) as stream:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    with telling(str(folder), str(folder)), open(folder / name, "wb") as file:
                        shutil.copyfileobj(stream, file, 1 << 20)

        self._each(download, names)
        return folder

    def move(self, source: str, target: str) -> bool:
        """Copy a folder, then remove the original; return False if it does not exist or the target does."""
        names = self._listed(source, recursive=True)
        if not names or self._listed(target, recursive=True):
            return False

        def copy(name: str) -> None:
            with self._told(f"{source}/{name}"), contextlib.suppress(FileNotFoundError):
                self._opened[0].copy_file(self._at(f"{source}/{name}"), self._at(f"{target}/{name}"))

        self._each(copy, names)
        self.remove_folder(source)
        return True

    def remove_folder(self, path: str) -> None:
        """Remove a folder if it exists, its manifest first."""
        self.remove(f"{path}/{MANIFEST}")
        with self._told(path), contextlib.suppress(FileNotFoundError):
            self._opened[0].delete_dir(self._at(path))

    def _each(self, act: Callable[[str], None], names: Iterable[str]) -> None:
        for _ in self._pool.map(act, names):
            pass

    def _upload(self, file: Path, path: str) -> None:
        with self._told(path), open(file, "rb") as content, self._writing(path) as stream:
            shutil.copyfileobj(content, stream, 1 << 20)

    def _writing(self, path: str) -> Any:
        system, where = self._opened[0], self._at(path)
        if system.type_name != "s3":  # other file systems need the folder
            system.create_dir(where.rpartition("/")[0], recursive=True)
        return system.open_output_stream(where, compression=None)

    @contextlib.contextmanager
    def _told(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._explained(error, path) from error

    def _explained(self, error: OSError, path: str) -> StoreError:
        text = " ".join(str(error).split())
        return StoreError(
            f"{self.address}/{path}: {text}; check the address, the credentials and the connection, and run again"
        )


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Yield a temporary local folder for the duration of the block."""
    folder = _new_scratch()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _new_scratch() -> Path:
    """Temporary local folder, removed when this process exits, or else by the next one."""
    _prepare_scratch(os.getpid())
    with telling(tempfile.gettempdir(), tempfile.gettempdir()):
        return Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{process_stamp()}-"))


@functools.cache
def _prepare_scratch(process: int) -> None:
    folder = Path(tempfile.gettempdir())
    remove_stale(folder, SCRATCH)

    def remove_mine() -> None:
        if os.getpid() == process:  # not in a forked child
            for path in folder.glob(f"{SCRATCH}{process_stamp()}-*"):
                shutil.rmtree(path, ignore_errors=True)

    atexit.register(remove_mine)
