"""The score of a device: how much worse than its own past, on a scale that few can dominate. Pure.

Rules kept here: a device has a score once it has enough events, both arms alike; larger is worse,
whatever the direction of the metric; scores are integers (2^-20), so that sums are exact.
"""

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np

from fleet.rollout.gate.metrics import Kind, Metric
from fleet.rollout.gate.ring import Baseline, BoolArray, Counts, FloatArray, IntArray

__all__ = ["QUANTUM", "Scored", "rank_normal", "scored"]

QUANTUM: Final = 2**20
_HIGHEST: Final = 1024.0  # of a score, far beyond any: ln(1 + y/p) is below 50


@dataclass(frozen=True, slots=True)
class Scored:
    """One metric of every device of the pool.

    ``score`` in units of 1/``QUANTUM`` (0 without data), ``has`` whether there is data, and ``v``
    the value relative to the device's own past: y/p of a rate, the change of a level.
    """

    score: IntArray
    has: BoolArray
    v: FloatArray


def scored(metric: Metric, baseline: Baseline, counts: Counts) -> Scored | None:
    """Scores of one metric; None when nobody reported it.

    A rate: ln(1 + y/p), y = bad/total, for devices with at least ``metric.min_events`` events. A
    level: the normal score of the rank of its change among the devices that have one.
    """
    if metric.kind is Kind.LEVEL:
        level = counts.level.get(metric.name)
        if level is None or np.isnan(level).all():
            return None
        has: BoolArray = ~np.isnan(level)
        v = np.where(has, level - baseline.p, 0.0)
        raw = np.zeros(len(level))
        raw[has] = rank_normal(v[has])
    else:
        bad, total = counts.bad.get(metric.name), counts.total.get(metric.name)
        if bad is None or total is None:
            return None
        has = total >= max(1, metric.min_events)
        if not has.any():
            return None
        v = np.where(has, bad / np.maximum(total, 1) / baseline.p, 0.0)
        raw = np.log1p(v)
    sign = 1.0 if metric.worse == "higher" else -1.0
    units = np.rint(sign * np.clip(raw, -_HIGHEST, _HIGHEST) * QUANTUM).astype(np.int64)
    return Scored(units, has, v)


def rank_normal(values: FloatArray) -> FloatArray:
    """Normal scores: the quantile of the standard normal at (rank - 1/2)/n; ties share their mean rank.

    (Blom, "Statistical Estimates and Transformed Beta-Variables", 1958, has the family.)
    """
    ordered = np.sort(values)
    low = np.searchsorted(ordered, values, side="left")
    high = np.searchsorted(ordered, values, side="right")
    found: FloatArray = _quantiles(len(values))[low + high - 1]  # twice the mean rank, less 2
    return found


@lru_cache(maxsize=16)
def _quantiles(count: int) -> FloatArray:
    """The normal quantiles at 1/2, 1, 3/2, ... count - 1/2 of ``count``; ranks may be halves."""
    normal = NormalDist()
    return np.array([normal.inv_cdf(half / (2 * count)) for half in range(1, 2 * count)])
