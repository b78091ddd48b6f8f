"""How far a device's outputs have moved from what they were, beyond what chance moves them. Pure.

Rules kept here: a device with few outputs drifts by chance more than one with many, so what chance
alone would give is taken off and the score of nothing is zero for both; too few outputs have no score.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from fleet.rollout.gate.ring import FloatArray

__all__ = ["MIN_OUTPUTS", "drift_scores"]

MIN_OUTPUTS: Final = 20
_ADDED: Final = 0.5  # to each cell of the reference: none is impossible


def drift_scores(outputs: npt.NDArray[np.int64], reference: npt.NDArray[np.int64]) -> FloatArray:
    """The level ``output_drift`` of each device, shape (devices,); nan below ``MIN_OUTPUTS``.

    ``outputs`` counts the outputs since the ring started by bin, shape (devices, bins); ``reference``
    those before, of the same shape or, for all devices, (bins,). With shares q of m outputs and pi of
    m0: sum (q - pi)^2/pi less its expectation under "nothing has moved", (bins - 1)(1/m + 1/m0)
    (Pearson's statistic over m, whose mean is bins - 1). It can be negative.
    """
    bins = outputs.shape[1]
    seen = outputs.sum(axis=1)
    past = np.broadcast_to(reference, outputs.shape) + _ADDED
    known = past.sum(axis=1)
    share = past / known[:, None]
    now = outputs / np.maximum(seen, 1)[:, None]
    chance = (bins - 1) * (1 / np.maximum(seen, 1) + 1 / known)
    score = ((now - share) ** 2 / share).sum(axis=1) - chance
    found: FloatArray = np.where(seen >= MIN_OUTPUTS, score, np.nan)
    return found
