"""Keys: a result is stored under the SHA-256 of everything it depends on, which `tasks.py` lists."""

from dataclasses import dataclass
from typing import Any

from pixelpick_ray.config.model import NormaliseSpec

# Increment by hand when the meaning of a step's result changes; older results are then recomputed.
VERSIONS = {"initial": 2, "fit": 3, "evaluation": 2, "pick": 3, "split": 1, "question": 1, "book": 1}
FEATURES_VERSION = 1  # of frozen features; only in the keys of fits on them


@dataclass(frozen=True)
class Source:
    """What a trial's results depend on besides its spec: splits' fingerprints by name, weights and normalisation.

    `weights_digest` is None without pretrained weights; `normalise` is None for the data set's own values.
    """

    fingerprints: dict[str, str]
    training_split: str
    weights_digest: str | None
    normalise: NormaliseSpec | None = None


def versioned(step: str, **fields: Any) -> dict[str, Any]:
    """The fields that a step's result depends on, with the step's version."""
    return {"step": step, "version": VERSIONS[step], **fields}
