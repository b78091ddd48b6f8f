"""One test of one look, by virtual cohorts or, for very large cohorts, by a formula. Pure.

Rules kept here: a test sees only the blocks it is about; without data it spends nothing and never
alarms.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fleet.rollout.gate.blocks import Block
from fleet.rollout.gate.ring import Ring, Spending, State, fresh
from fleet.rollout.gate.scores import QUANTUM, Scored
from fleet.rollout.gate.spend import allowed, spend
from fleet.rollout.gate.statistic import Statistic
from fleet.rollout.gate.tails import pearson3_tail

__all__ = ["Judged", "Test", "by_formula", "by_rank"]


@dataclass(frozen=True, slots=True)
class Test:
    """What is tested: ``blocks`` are indices into ``ring.blocks``, ``look`` is k."""

    name: str
    blocks: tuple[int, ...]
    look: int

    def members(self, ring: Ring) -> tuple[Block, ...]:
        return tuple(ring.blocks[index] for index in self.blocks)


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of it. ``z`` and ``p_values`` are by metric; ``above``: virtual cohorts as bad, alive."""

    alarm: bool
    p_value: float
    driver: str
    t_real: float | None
    may_drop: int
    above: int
    spending: Spending
    z: Mapping[str, float] = field(default_factory=dict)
    p_values: Mapping[str, float] = field(default_factory=dict)


def by_rank(
    ring: Ring, state: State, found: Statistic | None, test: Test, *, anew: bool = False
) -> Judged:
    """Rank the real cohort, or naming of arms, among the virtual ones that are still alive.

    ``anew``: among all of them, with the same number allowed.
    """
    spending = state.tests.get(test.name) or fresh(ring.virtual)
    if found is None:
        return Judged(False, 1.0, "", None, 0, ring.virtual - spending.removed, spending)
    may_drop = allowed(spending, ring.tests[test.name], test.look, len(ring.looks_s), ring.virtual)
    outcome = spend(fresh(ring.virtual) if anew else spending, may_drop, found.worst)
    z = {name: float(values[0]) for name, values in found.z.items() if np.isfinite(values[0])}
    p_values = {
        name: (1 + int(np.count_nonzero(values[1:] >= values[0]))) / (ring.virtual + 1)
        for name, values in found.z.items()
    }
    real = float(found.worst[0])
    return Judged(
        alarm=outcome.alarm,
        p_value=outcome.p_value,
        driver=found.driver,
        t_real=real if math.isfinite(real) else None,
        may_drop=outcome.allowed,
        above=outcome.above,
        spending=outcome.spending,
        z=z,
        p_values=p_values,
    )


def by_formula(ring: Ring, state: State, found: Mapping[str, Scored], test: Test) -> Judged:
    """Without virtual cohorts, for more than ``FIXED_ABOVE`` canary devices.

    The mean of n of N scores has variance (1 - f) s^2/n and skewness gamma (1 - 2f)/sqrt(n (1 - f)),
    f = n/N (Cochran, "Sampling Techniques", 3rd edition, 1977, chapter 2, has the variance; the
    skewness follows from the third moment of a draw without return); the tail is Pearson's type III. The least
    p-value of all metrics, times their number, alarms at alpha (k - k')/K, k' the look before.
    """
    spending = state.tests.get(test.name) or fresh(0)
    within = np.zeros(ring.size, dtype=np.bool_)
    for block in test.members(ring):
        within[block.members] = True
    devices = np.flatnonzero(within)
    cohort = ring.cohort[devices]
    z: dict[str, float] = {}
    p_values: dict[str, float] = {}
    for name, one in found.items():
        has = one.has[devices]
        score = one.score[devices][has] / QUANTUM
        mine = score[cohort[has]]
        count, size = len(mine), len(score)
        deviation = float(score.std(ddof=1)) if size > 1 else 0.0
        if not 0 < count < size or deviation <= 0:
            continue
        share = count / size
        error = deviation * math.sqrt((1 - share) / count)
        z[name] = float(mine.mean() - score.mean()) / error
        skew = _skewness(score.tolist()) * (1 - 2 * share) / math.sqrt(count * (1 - share))
        p_values[name] = pearson3_tail(z[name], skew)
    if not z:
        return Judged(False, 1.0, "", None, 0, 0, spending)
    driver = min(p_values, key=lambda name: p_values[name])
    p_value = min(1.0, p_values[driver] * len(p_values))
    share_of_looks = max(0, test.look - state.looks) / len(ring.looks_s)
    alarm = p_value <= ring.tests[test.name] * share_of_looks
    return Judged(alarm, p_value, driver, z[driver], 0, 0, spending, z, p_values)


def _skewness(values: Sequence[float]) -> float:
    score = np.asarray(values)
    centred = score - score.mean()
    variance = float((centred**2).mean())
    return float((centred**3).mean()) / math.sqrt(variance) ** 3
