"""When silence counts against a bundle.

Rules kept here: silence of the whole fleet, or as much of it among the devices without the bundle,
is a fault of the network or of ours and blames nobody; silence of the cohort alone is a failure.
"""

import math
from typing import Final

__all__ = ["BLAME_P", "is_excused", "tail_probability"]

BLAME_P: Final = 0.01  # above this, the arms are silent alike


def is_excused(at_risk: int, silent: int, control: int, control_silent: int) -> bool:
    """Whether ``silent`` of ``at_risk`` devices cannot be held against the bundle.

    Args:
        at_risk: devices of the cohort that serve the bundle or are about to.
        silent: how many of them have sent nothing for the silence time.
        control: devices without the bundle that were heard from when the stage began.
        control_silent: how many of them have sent nothing for the silence time.
    """
    if silent == 0:
        return False
    if control == 0:
        return silent == at_risk
    if control_silent == 0:
        return False
    return tail_probability(at_risk, silent, control, control_silent) > BLAME_P


def tail_probability(at_risk: int, silent: int, control: int, control_silent: int) -> float:
    """P(at least ``silent`` of the cohort are silent) when the bundle changes nothing.

    Then the silent devices are a random subset of both arms: the upper tail of the hypergeometric
    distribution (Fisher's exact test, one-sided).
    """
    pool = at_risk + control
    marked = silent + control_silent
    most = min(marked, at_risk)
    terms = (
        math.exp(
            _log_choose(marked, hits)
            + _log_choose(pool - marked, at_risk - hits)
            - _log_choose(pool, at_risk)
        )
        for hits in range(silent, most + 1)
        if at_risk - hits <= pool - marked
    )
    return min(1.0, math.fsum(terms))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
