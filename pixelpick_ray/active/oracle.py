"""Who answers: the labels of asked pixels."""

import numpy as np
import numpy.typing as npt

from pixelpick_ray.data.labels import LabelledPixels


def ground_truth(
    label: npt.NDArray[np.uint8], indices: npt.NDArray[np.int64], *, image: str, stage: int
) -> LabelledPixels:
    """The true labels at flat `indices` of a label map (H, W)."""
    y, x = np.divmod(indices, label.shape[1])
    return LabelledPixels.of(names=np.full(len(indices), image), y=y, x=x, label=label[y, x], stage=stage)
