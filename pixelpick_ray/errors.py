"""Errors that a user can act on; each message says where, what was given, what is allowed and what to do.

PixelPickError
+-- SpecError    the experiment or the command is wrong           (exit status 2)
+-- DataError    a data set or a weights file is wrong or absent  (exit status 2 before a start)
+-- StoreError   the store cannot be read or written
    +-- DamagedError   a record of the store is not as it was written
+-- RunError     a chain failed while it ran                      (exit status 1)
    +-- DivergedError  a training whose numbers are none any more: a result, which every repetition has too
"""

from collections.abc import Iterator
from contextlib import contextmanager

MOST_TOLD = 10  # wrong files in one message


class PixelPickError(Exception):
    """Root of the errors of this package."""


class SpecError(PixelPickError):
    """The experiment file, an override or an option is wrong."""


class DataError(PixelPickError):
    """A data set, an image, a label or a weights file is missing or damaged."""


class StoreError(PixelPickError):
    """A stored result contradicts its key, or the store cannot be used."""


class DamagedError(StoreError):
    """A record of the store is not as it was written; `problem` says how."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: is damaged: {problem}; put back the one that was there, or remove it and run again")
        self.problem = problem


class RunError(PixelPickError):
    """A chain failed while it ran."""


class DivergedError(RunError):
    """A training whose loss or weights are no finite numbers any more; repeating it gives the same."""


@contextmanager
def naming(where: object) -> Iterator[None]:
    """Begin the message of a SpecError with where it is: a field, or the name of a file."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from error


class DataErrors:
    """DataErrors that were kept, to be told together."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.messages)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep a DataError and go on behind the block."""
        try:
            yield
        except DataError as error:
            self.messages += str(error).split("\n")

    def tell(self) -> None:
        """DataError with the first ten and the number of the others, if there are any."""
        if self.messages:
            more = len(self.messages) - MOST_TOLD
            told = [*self.messages[:MOST_TOLD], f"and {more} more of such problems"] if more > 0 else self.messages
            raise DataError("\n".join(told))


@contextmanager
def data_errors() -> Iterator[DataErrors]:
    """What keeps DataErrors of the block, and tells them at its end."""
    wrong = DataErrors()
    yield wrong
    wrong.tell()
