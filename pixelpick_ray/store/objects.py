"""A store on object storage, through the file systems of pyarrow: no rename, no exclusive creation, no folders.

What holds: one object is replaced all at once; a result is there when its manifest is, which is written last; what is
read is verified. What does not: two processes that publish one result at the same moment may mix their files, which is
found when the result is read, and it is made again; two that take one lease at the same moment may both get it, and
compute the same twice. The age of a lease is told by the clock of the storage.
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
CONNECTIONS = 16  # objects that are read or written at the same time
SETTLE_SECONDS = 0.5  # two that create one object both look again after this


class Objects:
    """Objects below an address such as ``s3://bucket/prefix?region=...``; credentials from it or the environment."""

    publishes_whole = False

    def __init__(self, location: str) -> None:
        self._location = location
        self._appended: dict[str, int] = {}  # lines by journal, of this process
        parts = urlsplit(location)
        self.address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return Objects, (self._location,)  # every process connects for itself

    @functools.cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system and the path of the store in it."""
        try:
            from pyarrow.fs import FileSystem
        except ImportError as error:
            raise SpecError(f"--store {self.address}: an address needs pyarrow (pip install pyarrow)") from error
        try:
            system, root = FileSystem.from_uri(self._location)
        except ValueError as error:
            text = str(error).replace(self._location, self.address)  # which may have credentials
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
        """The content of an object."""
        with self._told(path), contextlib.suppress(FileNotFoundError):
            with self._opened[0].open_input_stream(self._at(path), compression=None) as stream:
                return bytes(stream.read())
        return None

    def read_each(self, paths: Sequence[str]) -> list[bytes | None]:
        """The contents of objects, read at the same time."""
        return list(self._pool.map(self.read, paths))

    def age_seconds(self, path: str) -> float | None:
        """How long ago an object was written, by the clock of the storage, often in whole seconds."""
        with self._told(path):
            found = self._opened[0].get_file_info(self._at(path))
        return time.time() - found.mtime_ns / 1e9 if found.is_file else None

    def names(self, folder: str) -> list[str]:
        """Names of what lies below a path, sorted."""
        return sorted({name.split("/")[0] for name in self._listed(folder, recursive=False)})

    def _listed(self, folder: str, *, recursive: bool) -> list[str]:
        from pyarrow.fs import FileSelector, FileType

        with self._told(folder):
            selector = FileSelector(self._at(folder), allow_not_found=True, recursive=recursive)
            found = self._opened[0].get_file_info(selector)
        start = len(self._at(folder)) + 1
        return [one.path[start:] for one in found if not (recursive and one.type == FileType.Directory)]

    def put(self, path: str, fill: Callable[[Path], None]) -> None:
        """Replace an object by what `fill` writes to a local path."""
        with _scratch() as folder:
            with telling(str(folder), str(folder)):
                fill(folder / "file")
            self._upload(folder / "file", path)

    def write(self, path: str, *parts: bytes) -> None:
        """Replace an object."""
        with self._told(path), self._writing(path) as stream:
            for part in parts:
                stream.write(part)

    def append(self, path: str, lines: Sequence[bytes]) -> None:
        """Add lines to a journal that this process alone writes, as an object of their own.

        Objects appear whole, and what was written is never touched again. Their names are the numbers of their first
        lines.
        """
        number = self._appended.get(path, 0)
        self.write(f"{path}/{number:012d}", *(line + b"\n" for line in lines))
        self._appended[path] = number + len(lines)

    def lines(self, path: str, start: int) -> list[bytes]:
        """The whole lines of a journal, without their ends, from that with the number `start` on."""
        numbers = [int(name) for name in self.names(path) if name.isdigit()]
        skipped = sum(number <= start for number in numbers[1:])  # objects that end before that line
        wanted = numbers[skipped:]
        contents = self.read_each([f"{path}/{number:012d}" for number in wanted])
        found = [line for content in contents for line in (content or b"").split(b"\n")[:-1]]
        return found[max(0, start - wanted[0]) :] if wanted else []

    def create(self, path: str, content: bytes) -> bool:
        """Write an object that is not there yet; False when it is there. Of several at once usually one succeeds."""
        if self.read(path) is not None:
            return False
        self.write(path, content)
        time.sleep(SETTLE_SECONDS)
        return self.read(path) == content

    def refresh(self, path: str, content: bytes) -> None:
        """Make an object young again while it has this content."""
        if self.read(path) == content:
            self.write(path, content)

    def remove(self, path: str, content: bytes | None = None) -> None:
        """Remove an object if it is there, and has this content where one is given."""
        if content is None or self.read(path) == content:
            with self._told(path), contextlib.suppress(FileNotFoundError):
                self._opened[0].delete_file(self._at(path))

    def publish(self, path: str, fill: Callable[[Path], None]) -> None:
        """Publish the folder that `fill` writes, its manifest last; one that is published already stays as it is."""
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
        """A local folder with those of the named objects that are there; it lasts as long as this process."""
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
        """Copy a folder and remove it, its manifest first; False when it is not there, or the target is."""
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
        """Remove a folder if it is there, its manifest first."""
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
        if system.type_name != "s3":  # elsewhere a file needs its folder
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
    """A local folder for what is written to the storage at the end of the block."""
    folder = _new_scratch()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _new_scratch() -> Path:
    """A local folder that is removed with this process, or after it by the next one."""
    _prepare_scratch(os.getpid())
    with telling(tempfile.gettempdir(), tempfile.gettempdir()):
        return Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{process_stamp()}-"))


@functools.cache
def _prepare_scratch(process: int) -> None:
    folder = Path(tempfile.gettempdir())
    remove_stale(folder, SCRATCH)

    def remove_mine() -> None:
        if os.getpid() == process:  # and not a child of it that ends
            for path in folder.glob(f"{SCRATCH}{process_stamp()}-*"):
                shutil.rmtree(path, ignore_errors=True)

    atexit.register(remove_mine)
