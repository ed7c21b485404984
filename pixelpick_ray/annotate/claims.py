"""Claims: who works on what, by a table within this process and leases in the store between processes."""

from contextlib import ExitStack

from pixelpick_ray.config.canonical import digest
from pixelpick_ray.store import Store

Key = tuple[str | int, ...]  # a book with an image, or with a repeated pixel


class Claims:
    """Images and repeated pixels claimed by one person each."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[Key, tuple[str, ExitStack]] = {}

    def take(self, key: Key, who: str) -> bool:
        """Claim something; return whether `who` has it now, possibly from before."""
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
        """Return somebody's claims."""
        return [key for key, (holder, _) in self._held.items() if holder == who]

    def release(self, key: Key) -> None:
        """Release a claim if it is held."""
        _, stack = self._held.pop(key, ("", ExitStack()))
        stack.close()

    def release_all(self) -> None:
        """Release all claims."""
        for key in list(self._held):
            self.release(key)
