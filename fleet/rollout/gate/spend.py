"""What a test may still spend, and whether it alarms. Pure.

Rules kept here: over all looks at most alpha of the cohorts, virtual and real, are ever dropped, and
a real cohort that would be among them is an alarm, so the chance of a false one is at most alpha;
ties count against an alarm; a look that was missed is spent with the next one.
"""

from dataclasses import dataclass

import numpy as np

from fleet.rollout.gate.ring import FloatArray, Spending

__all__ = ["Outcome", "allowed", "spend"]

_ROUNDING = 1e-9  # of a product that should be whole


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test at one look: ``above`` virtual cohorts still alive did at least as badly, an alarm
    needs fewer than ``allowed``; ``p_value`` ranks the real one among all, alive or not."""

    alarm: bool
    allowed: int
    above: int
    p_value: float
    spending: Spending


def allowed(spending: Spending, alpha: float, look: int, looks: int, virtual: int) -> int:
    """How many virtual cohorts may be dropped at this look: floor(alpha k/K (B+1)) less those before.

    A test begun anew at look ``since`` has what was left, over the looks that are left.
    """
    if look <= spending.since:
        return 0
    budget = alpha * (virtual + 1) - spending.before
    share = (look - spending.since) / (looks - spending.since)
    return max(0, int(budget * share + _ROUNDING) - spending.removed)


def spend(spending: Spending, may_drop: int, statistic: FloatArray) -> Outcome:
    """Compare the real cohort, ``statistic[0]``, with the virtual ones, and drop the worst of them.

    A statistic of -inf (no data) is never an alarm.
    """
    real, others = statistic[0], statistic[1:]
    alive = spending.alive(len(others))
    worse = others >= real
    above = int(np.count_nonzero(worse & alive))
    p_value = (1 + int(np.count_nonzero(worse))) / (len(others) + 1)
    alarm = bool(np.isfinite(real)) and above < may_drop
    if alarm or may_drop == 0:
        return Outcome(alarm, may_drop, above, p_value, spending)
    living = np.flatnonzero(alive)
    worst = living[np.argsort(-others[living], kind="stable")[:may_drop]]
    alive[worst] = False
    after = Spending(
        spending.removed + len(worst),
        np.packbits(alive).tobytes(),
        spending.since,
        spending.before,
    )
    return Outcome(alarm, may_drop, above, p_value, after)
