"""Who works on what: a table within this process, leases of the store between processes."""

from contextlib import ExitStack

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.store import Store

Key = tuple[str | int, ...]  # a book with an image, or with a pixel that is asked again


class Claims:
    """What people work on, each thing by one of them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[Key, tuple[str, ExitStack]] = {}

    def take(self, key: Key, who: str) -> bool:
        """Whether the thing is now theirs, be it that it was before."""
        if key in self._held:
            return self._held[key][0] == who
        lease = self._store.take("annotate", digest(list(key)))
        if lease is None:
            return False
        stack = ExitStack()
        stack.enter_context(lease)
        self._held[key] = who, stack
        return True

    def of(self, who: str) -> list[Key]:
        """What somebody has."""
        return [key for key, (holder, _) in self._held.items() if holder == who]

    def release(self, key: Key) -> None:
        """Give a thing back if it is held."""
        _, stack = self._held.pop(key, ("", ExitStack()))
        stack.close()

    def release_all(self) -> None:
        """Give everything back."""
        for key in list(self._held):
            self.release(key)
