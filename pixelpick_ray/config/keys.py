"""Keys: a result is stored under the SHA-256 of everything that it depends on (`tasks.py` says of what)."""

from dataclasses import dataclass
from typing import Any

from pixelpick_ray.config.model import NormaliseSpec

# Raised by hand when the meaning of a step's result changes; older results are then computed again.
VERSIONS = {"initial": 2, "fit": 3, "evaluation": 2, "pick": 3, "split": 1, "question": 1, "book": 1}
FEATURES_VERSION = 1  # of the features of frozen backbones; in the keys of fits on them alone


@dataclass(frozen=True)
class Source:
    """What the results of a trial depend on beside its spec: the contents of the data set's splits, by fingerprint,
    of the pretrained weights, and with which mean and deviation images are normalised, None for the data set's own.
    """

    fingerprints: dict[str, str]
    training_split: str
    weights_digest: str | None
    normalise: NormaliseSpec | None = None


def versioned(step: str, **fields: Any) -> dict[str, Any]:
    """What a result of a step depends on, its version included."""
    return {"step": step, "version": VERSIONS[step], **fields}
