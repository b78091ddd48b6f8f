"""From sums over cohorts to one number a cohort: the worst of its metrics. Pure.

Rules kept here: every metric is put on the scale of its own virtual cohorts, the real one among them
(so that nothing tells it from the others); several metrics cost nothing, since each cohort is judged
by its own worst one, whatever the dependence between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fleet.rollout.gate.cohorts import BlockSums
from fleet.rollout.gate.ring import FloatArray

__all__ = ["Statistic", "statistic", "worst_of"]


@dataclass(frozen=True, slots=True)
class Statistic:
    """T of every cohort, real first, shape (virtual + 1,), and z of each metric that tells any apart."""

    worst: FloatArray
    z: Mapping[str, FloatArray]

    @property
    def driver(self) -> str:
        """The metric in which the real cohort is worst; "" when it has no data."""
        mine = {name: float(z[0]) for name, z in self.z.items() if np.isfinite(z[0])}
        return max(mine, key=lambda name: mine[name]) if mine else ""


def statistic(sums: Mapping[str, tuple[BlockSums, ...]], blocks: Sequence[int]) -> Statistic | None:
    """T_b = max over metrics of (mean score of cohort b - mean of the pool)/sd over b, in these blocks.

    None when no metric tells any two cohorts apart: there are no data.
    """
    z: dict[str, FloatArray] = {}
    for name, by_block in sums.items():
        parts = [by_block[index] for index in blocks]
        total = sum(part.all_score for part in parts)
        devices = sum(part.all_devices for part in parts)
        if devices == 0:
            continue
        score = np.sum([part.score for part in parts], axis=0)
        count = np.sum([part.devices for part in parts], axis=0)
        mean = np.divide(score, count, out=np.full(len(score), -np.inf), where=count > 0)
        z[name] = mean - total / devices
    return worst_of(z)


def worst_of(distances: Mapping[str, FloatArray]) -> Statistic | None:
    """Each metric's distances from the pool, real first, over their deviation; then the largest.

    -inf stands for a cohort without data. None when all are equal in every metric.
    """
    z: dict[str, FloatArray] = {}
    for name, distance in distances.items():
        finite = distance[np.isfinite(distance)]
        if len(finite) > 1 and finite.min() < finite.max():
            z[name] = distance / finite.std()
    return Statistic(np.max(list(z.values()), axis=0), z) if z else None
