"""What each device was like before: its own rate, shrunk towards the pool's. Pure.

Rules kept here: made once, from the window before the rollout, of all devices of the pool alike; a
device without history gets the pool's rate; no rate is ever zero, since devices are compared by how
many times their own rate they have now.
"""

import math
from typing import Final

import numpy as np

from fleet.rollout.gate.ring import Baseline, FloatArray, IntArray

__all__ = ["UNKNOWN_RATE", "level_baseline", "rate_baseline"]

UNKNOWN_RATE: Final = 0.01  # when no device has a history: only the scale of ln(1 + y/p)
_RHO_LEAST: Final = 1e-4
_RHO_MOST: Final = 0.5


def rate_baseline(bad: IntArray, total: IntArray) -> Baseline:
    """The baseline of a rate from ``bad`` of ``total`` events per device, both of shape (devices,).

    With mu = sum k / sum m, s2 = sum m (k/m - mu)^2 / sum m and mbar the mean of m over the devices
    that have events, the correlation of two events of one device is estimated by moments,
    rho = (s2/(mu (1 - mu)) - 1/mbar) / (1 - 1/mbar), kept in 1e-4..0.5 (the beta-binomial model:
    Williams, "Extra-binomial variation in logistic linear models", Applied Statistics 31, 1982).
    kappa = 1/rho - 1 events of the pool are added to each device's own:
    p = (k + kappa mu)/(m + kappa), at least 1/(2 (m + kappa)).
    """
    has = total > 0
    known = int(np.count_nonzero(has))
    events = int(total.sum())
    if events == 0:
        return Baseline(np.full(len(total), UNKNOWN_RATE), UNKNOWN_RATE, 1 / _RHO_LEAST - 1, 0)
    mu = min(1.0, int(bad.sum()) / events)
    kappa = 1 / _correlation(bad[has], total[has], mu) - 1
    weight = total + kappa
    p = np.maximum((bad + kappa * mu) / weight, 1 / (2 * weight))
    return Baseline(p.astype(np.float64), mu, kappa, known)


def _correlation(bad: IntArray, total: IntArray, mu: float) -> float:
    mean_total = float(total.mean())
    if not 0 < mu < 1 or mean_total <= 1:
        return _RHO_LEAST
    spread = float((total * (bad / total - mu) ** 2).sum() / total.sum())
    rho = (spread / (mu * (1 - mu)) - 1 / mean_total) / (1 - 1 / mean_total)
    return min(max(rho, _RHO_LEAST), _RHO_MOST)


def level_baseline(level: FloatArray) -> Baseline:
    """The baseline of a level from each device's mean before; nan where there is none."""
    has = ~np.isnan(level)
    known = int(np.count_nonzero(has))
    mu = math.fsum(level[has].tolist()) / known if known else 0.0
    return Baseline(np.where(has, level, mu).astype(np.float64), mu, 0.0, known)
