"""Errors that users can act on; each message says where, what was given, what is allowed and what to do.

PixelPickError
+-- SpecError    the experiment or the command is wrong           (exit status 2)
+-- DataError    a data set or a weights file is wrong or absent  (exit status 2 if found before the start)
+-- StoreError   the store cannot be read or written
    +-- DamagedError   a record of the store is damaged
+-- RunError     a chain failed while running                     (exit status 1)
    +-- DivergedError  training diverged: a result, which every repetition would have too
"""

from collections.abc import Iterator
from contextlib import contextmanager

MOST_TOLD = 10  # problems listed in one message


class PixelPickError(Exception):
    """Base class of this package's errors."""


class SpecError(PixelPickError):
    """The experiment file, an override or an option is wrong."""


class DataError(PixelPickError):
    """A data set, an image, a label or a weights file is missing or damaged."""


class StoreError(PixelPickError):
    """A stored result contradicts its key, or the store cannot be used."""


class DamagedError(StoreError):
    """A record of the store is damaged; `problem` says how."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: is damaged ({problem}); restore it from a backup, or remove it and run again")
        self.problem = problem


class RunError(PixelPickError):
    """A chain failed while running."""


class DivergedError(RunError):
    """The loss or weights of a training are no longer finite; repeating it would give the same."""


@contextmanager
def naming(where: object) -> Iterator[None]:
    """Prefix the message of any SpecError raised in the block with its place: a field, or the name of a file."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from error


class DataErrors:
    """DataErrors collected to be raised as one."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.messages)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Collect a DataError raised in the block and carry on after it."""
        try:
            yield
        except DataError as error:
            self.messages += str(error).split("\n")

    def tell(self) -> None:
        """Raise a DataError with the first MOST_TOLD messages and the number of the rest, if there are any."""
        if self.messages:
            more = len(self.messages) - MOST_TOLD
            told = [*self.messages[:MOST_TOLD], f"and {more} more"] if more > 0 else self.messages
            raise DataError("\n".join(told))


@contextmanager
def data_errors() -> Iterator[DataErrors]:
    """Yield a collector of DataErrors, and raise those collected when the block ends."""
    wrong = DataErrors()
    yield wrong
    wrong.tell()
