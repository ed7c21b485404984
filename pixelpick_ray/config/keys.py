"""Keys: a result is stored under the SHA-256 of everything that it depends on (`tasks.py` says of what)."""

from dataclasses import dataclass
from typing import Any

# Raised by hand when the meaning of a step's result changes; older results are then computed again.
VERSIONS = {"initial": 2, "fit": 3, "evaluation": 2, "pick": 3, "split": 1, "question": 1, "book": 1}


@dataclass(frozen=True)
class Source:
    """What the results of a trial depend on beside its spec: the contents of the data set's splits, by fingerprint,
    and of the pretrained weights.
    """

    fingerprints: dict[str, str]
    training_split: str
    weights_digest: str | None


def versioned(step: str, **fields: Any) -> dict[str, Any]:
    """What a result of a step depends on, its version included."""
    return {"step": step, "version": VERSIONS[step], **fields}
