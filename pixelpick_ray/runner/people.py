"""Waiting for people: which chains their answers let go on."""

import time
from collections.abc import Callable, Sequence

from pixelpick_ray.data.answers import Pending, pending_answers
from pixelpick_ray.plan import Chain, Plan
from pixelpick_ray.spec.execution import Execution
from pixelpick_ray.store import Store

WAIT_SECONDS = 1.0  # how often it is looked whether people have answered


class People:
    """What the chains of a plan are waiting for that only people can give.

    `command` opens the page where they answer; `tell` gets what a user should read.
    """

    def __init__(
        self, plan: Plan, execution: Execution, command: str, tell: Callable[[str], None], stop: Callable[[], bool]
    ) -> None:
        self._plan, self._store, self._waits = plan, Store(execution.store), execution.wait
        self._command, self._tell, self._stop = command, tell, stop

    def pending(self, chains: Sequence[Chain]) -> dict[str, Pending]:
        """What is missing for which of the chains, by its identity; only of those where something is."""
        found = {chain.id: pending_answers(self._store, self._plan.experiment, chain.id) for chain in chains}
        return {chain: pending for chain, pending in found.items() if pending is not None and pending.missing}

    def answered(self, chains: Sequence[Chain]) -> list[Chain]:
        """Of chains that have asked people, those that can go on now. Where it is waited for people, it returns when
        there are some, and at a stop none.
        """
        is_told = False
        while chains and not self._stop():
            pending = self.pending(chains)
            ready = [chain for chain in chains if chain.id not in pending]
            if ready or not self._waits:
                return ready
            if not is_told:
                self._tell(self.request(pending))
                is_told = True
            time.sleep(WAIT_SECONDS)
        return []

    def request(self, pending: dict[str, Pending]) -> str:
        """How many answers are missing, and the command to type. Chains that make a pick together count once."""
        missing = sum({one.pick: one.missing for one in pending.values()}.values())
        return f"{missing} answers are waited for: {self._command}"
