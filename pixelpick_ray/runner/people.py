"""Waiting for people: which chains can continue after their answers."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from pixelpick_ray.config.canonical import counted
from pixelpick_ray.config.execution import Execution
from pixelpick_ray.data.answers import Pending, Waiting
from pixelpick_ray.errors import StoreError
from pixelpick_ray.planning import Chain, Plan
from pixelpick_ray.store import Store

LOOK_SECONDS = 1.0  # interval at which answers are checked
LOOK_SHARE = 0.1  # maximum share of time spent checking: books may be long


class People:
    """The answers that the chains of a plan are waiting for.

    `command` opens the annotation page; `tell` is called with messages for the user.
    """

    def __init__(
        self, plan: Plan, execution: Execution, command: str, tell: Callable[[str], None], stop: Callable[[], bool]
    ) -> None:
        self._waiting, self._waits = Waiting(Store(execution.store), plan.experiment), execution.wait
        self._command, self._tell, self._stop = command, tell, stop
        self._due, self._is_troubled = 0.0, False

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles a run's settings to restore them, which we never do; listeners belong to this process

    def pending(self, chains: Sequence[Chain]) -> dict[str, Pending]:
        """Return the pending answers, possibly none, of those of the chains that have asked people, by chain identity.

        Raises StoreError if the store cannot be read.
        """
        return self._waiting.look(chain.id for chain in chains)

    def answered_now(self, chains: Sequence[Chain]) -> list[Chain]:
        """Return which of the chains that asked people can continue; none if this was checked a moment ago."""
        pending = self._look(chains)
        return [] if pending is None else _ready(chains, pending)

    def answered(self, chains: Sequence[Chain]) -> list[Chain]:
        """Return which of the chains that asked people can continue; with `--wait`, block until some can, or a stop."""
        self._due, is_told = 0.0, False
        while chains and not self._stop():
            pending = self._look(chains)
            ready = [] if pending is None else _ready(chains, pending)
            if ready or not self._waits:
                return ready
            if pending and not is_told:
                self._tell(self.request(pending))
                is_told = True
            time.sleep(LOOK_SECONDS)
        return []

    def _look(self, chains: Sequence[Chain]) -> dict[str, Pending] | None:
        """What is pending; None if checked a moment ago, or if the store cannot be read.

        The latter is reported once and retried later, because other chains may be training.
        """
        if not chains or time.monotonic() < self._due:
            return None
        begun = time.monotonic()
        try:
            return self.pending(chains)
        except StoreError as error:
            if not self._is_troubled:
                self._tell(f"{error}; until this is fixed, new answers are not noticed")
            self._is_troubled = True
            return None
        finally:
            now = time.monotonic()
            self._due = now + max(LOOK_SECONDS, (now - begun) / LOOK_SHARE)

    def request(self, pending: dict[str, Pending]) -> str:
        """Say how many answers are missing, counting chains that share a pick once, and the command to type."""
        missing = sum({one.pick: one.missing for one in pending.values()}.values())
        return f"waiting for {counted(missing, 'answer')}: {self._command}"


def _ready(chains: Sequence[Chain], pending: dict[str, Pending]) -> list[Chain]:
    return [chain for chain in chains if chain.id not in pending or not pending[chain.id].missing]
